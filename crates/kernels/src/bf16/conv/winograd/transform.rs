//! Winograd's transformations, on vectors of pictures or channels.

use super::{POINTS, SIDE};
use crate::bf16::PICTURES;
use crate::simd::Simd;

/// Bᵀ: row i is input `FIRST[i]` and input `SECOND[i]`, added in row 1, the second subtracted in the others.
const FIRST: [usize; SIDE] = [0, 1, 2, 1];
const SECOND: [usize; SIDE] = [2, 2, 1, 3];

/// Row `i` of Bᵀ, of the two inputs that it has.
#[inline(always)]
unsafe fn row_of_b<S: Simd>(i: usize, first: S::V, second: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if i == 1 { S::add(first, second) } else { S::sub(first, second) } }
}

/// What lies outside a map.
static ZEROS: [u32; PICTURES] = [0; PICTURES];

/// The 4×4 positions that a tile reads: where their rows of pairs begin, and how far one row is from the next (no way where
/// the position is outside).
pub(super) struct Inputs {
    from: [*const u32; POINTS],
    step: [usize; POINTS],
}

impl Inputs {
    /// Of the tile whose outputs begin at (row, column) of a map of height × width positions; `at` says where the one at
    /// (h, w) begins, `step` how long its rows are.
    #[inline(always)]
    pub(super) fn of(
        [height, width]: [usize; 2],
        [row, column]: [usize; 2],
        step: usize,
        at: impl Fn(usize, usize) -> *const u32,
    ) -> Inputs {
        let mut inputs = Inputs { from: [ZEROS.as_ptr(); POINTS], step: [0; POINTS] };
        for i in 0..POINTS {
            // The first input is the one before the first output.
            let (h, w) = (row + i / SIDE, column + i % SIDE);
            if (1..=height).contains(&h) && (1..=width).contains(&w) {
                inputs.from[i] = at(h - 1, w - 1);
                inputs.step[i] = step;
            }
        }
        inputs
    }

    /// Row `i` of V = Bᵀ d B for the `LANES` pairs from lane `n` of row `p` on: even elements and odd ones.
    ///
    /// # Safety
    /// The positions have them.
    #[inline(always)]
    pub(super) unsafe fn row<S: Simd>(&self, i: usize, p: usize, n: usize) -> [(S::V, S::V); SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = (S::zero(), S::zero());
            let (mut down, mut row) = ([zero; SIDE], [zero; SIDE]);
            for (j, down) in down.iter_mut().enumerate() {
                let (a, b) = (FIRST[i] * SIDE + j, SECOND[i] * SIDE + j);
                let a = S::load_pairs(self.from[a].add(p * self.step[a] + n));
                let b = S::load_pairs(self.from[b].add(p * self.step[b] + n));
                *down = (row_of_b::<S>(i, a.0, b.0), row_of_b::<S>(i, a.1, b.1));
            }
            for (j, row) in row.iter_mut().enumerate() {
                let (a, b) = (down[FIRST[j]], down[SECOND[j]]);
                *row = (row_of_b::<S>(j, a.0, b.0), row_of_b::<S>(j, a.1, b.1));
            }
            row
        }
    }
}

/// Aᵀ m along one axis, of as many points as a strip has: its two outputs, the second without meaning if it has one.
#[inline(always)]
unsafe fn outputs_of<S: Simd>(m: [S::V; SIDE], points: usize) -> [S::V; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        if points == SIDE {
            [S::add(S::add(m[0], m[1]), m[2]), S::sub(S::sub(m[1], m[2]), m[3])]
        } else {
            [S::add(m[0], m[1]), S::zero()]
        }
    }
}

/// Y = Aᵀ M A of a tile with `R` × `Q` points, point i's sums at `m + i * distance`: outputs in rows of two.
///
/// # Safety
/// The sums are there.
#[inline(always)]
pub(super) unsafe fn output<S: Simd, const R: usize, const Q: usize>(
    m: *const f32,
    distance: usize,
) -> [[S::V; 2]; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::zero(); SIDE]; 2];
        for i in 0..R {
            let mut row = [S::zero(); SIDE];
            for (j, value) in row[..Q].iter_mut().enumerate() {
                *value = S::load(m.add((i * SIDE + j) * distance));
            }
            [rows[0][i], rows[1][i]] = outputs_of::<S>(row, Q);
        }
        let [left, right] = [outputs_of::<S>(rows[0], R), outputs_of::<S>(rows[1], R)];
        [[left[0], right[0]], [left[1], right[1]]]
    }
}

/// Row `i` of A along one axis, of two outputs.
#[inline(always)]
unsafe fn row_of_a<S: Simd>(i: usize, first: S::V, second: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        match i {
            0 => first,
            1 => S::add(first, second),
            2 => S::sub(first, second),
            _ => S::sub(S::zero(), second),
        }
    }
}

/// Row `i` of A dy Aᵀ: what the gradient of a tile's outputs, in rows of two and zero where there is none, is at each point.
#[inline(always)]
pub(super) unsafe fn output_gradient<S: Simd>(i: usize, dy: [[S::V; 2]; 2]) -> [S::V; SIDE] {
    // SAFETY: the caller's promise.
    unsafe {
        let left = row_of_a::<S>(i, dy[0][0], dy[1][0]);
        let right = row_of_a::<S>(i, dy[0][1], dy[1][1]);
        let mut row = [S::zero(); SIDE];
        for (j, value) in row.iter_mut().enumerate() {
            *value = row_of_a::<S>(j, left, right);
        }
        row
    }
}

/// G g along one axis, and the middle tap alone.
#[inline(always)]
unsafe fn points_of_taps<S: Simd>(g: [S::V; 3]) -> [S::V; SIDE + 1] {
    // SAFETY: the caller's promise.
    unsafe {
        let (half, sides) = (S::splat(0.5), S::add(g[0], g[2]));
        let even = S::mul(half, S::add(sides, g[1]));
        let odd = S::mul(half, S::sub(sides, g[1]));
        [g[0], even, odd, g[2], g[1]]
    }
}

/// U = G g Gᵀ of 3×3 taps, for every row of G along both axes.
#[inline(always)]
pub(super) unsafe fn weights<S: Simd>(g: [[S::V; 3]; 3]) -> [[S::V; SIDE + 1]; SIDE + 1] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::zero(); 3]; SIDE + 1];
        for s in 0..3 {
            let column = points_of_taps::<S>([g[0][s], g[1][s], g[2][s]]);
            for (row, value) in rows.iter_mut().zip(column) {
                row[s] = value;
            }
        }
        let mut all = [[S::zero(); SIDE + 1]; SIDE + 1];
        for (all, row) in all.iter_mut().zip(rows) {
            *all = points_of_taps::<S>(row);
        }
        all
    }
}

/// Gᵀ u along one axis.
#[inline(always)]
unsafe fn taps_of<S: Simd>(u: [S::V; SIDE + 1]) -> [S::V; 3] {
    // SAFETY: the caller's promise.
    unsafe {
        let half = S::splat(0.5);
        let sides = S::mul(half, S::add(u[1], u[2]));
        let middle = S::mul(half, S::sub(u[1], u[2]));
        [S::add(u[0], sides), S::add(middle, u[4]), S::add(u[3], sides)]
    }
}

/// dg = Gᵀ dU G: the gradient of 3×3 taps from that of their points.
#[inline(always)]
pub(super) unsafe fn weight_gradient<S: Simd>(du: [[S::V; SIDE + 1]; SIDE + 1]) -> [[S::V; 3]; 3] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::zero(); SIDE + 1]; 3];
        for j in 0..=SIDE {
            let column = taps_of::<S>([du[0][j], du[1][j], du[2][j], du[3][j], du[4][j]]);
            for (row, value) in rows.iter_mut().zip(column) {
                row[j] = value;
            }
        }
        [taps_of::<S>(rows[0]), taps_of::<S>(rows[1]), taps_of::<S>(rows[2])]
    }
}

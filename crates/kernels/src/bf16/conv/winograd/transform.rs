//! The transformations of maps of pairs.

use super::points::{FIRST, POINTS, SECOND, SIDE, outputs_of, positions, row_of_a, row_of_b};
use crate::bf16::PICTURES;
use crate::simd::Simd;

/// What lies outside a map.
static ZEROS: [u32; PICTURES] = [0; PICTURES];

/// The 4×4 positions that a tile reads: where their rows of pairs begin, and how far one row is from the next (no way where
/// the position is outside).
pub(super) struct Inputs {
    from: [*const u32; POINTS],
    step: [usize; POINTS],
}

impl Inputs {
    /// Of the tile whose first input is at `first` of a map of height × width positions, with `pad` of padding before them;
    /// `at` says where a position begins, `step` how long its rows are.
    #[inline(always)]
    pub(super) fn of(
        extents: [usize; 2],
        first: [usize; 2],
        pad: usize,
        step: usize,
        at: impl Fn(usize) -> *const u32,
    ) -> Inputs {
        let mut inputs = Inputs { from: [ZEROS.as_ptr(); POINTS], step: [0; POINTS] };
        for (i, position) in positions(extents, first, pad).into_iter().enumerate() {
            if let Some(position) = position {
                inputs.from[i] = at(position);
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

/// Y = Aᵀ M A of a tile with `rows` × `columns` points, point i's sums at `m + i * distance`: outputs in rows of two.
///
/// # Safety
/// The sums are there.
#[inline(always)]
pub(super) unsafe fn output<S: Simd>(
    m: *const f32,
    distance: usize,
    rows: usize,
    columns: usize,
) -> [[S::V; 2]; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut across = [[S::zero(); SIDE]; 2];
        for i in 0..rows {
            let mut row = [S::zero(); SIDE];
            for (j, value) in row[..columns].iter_mut().enumerate() {
                *value = S::load(m.add((i * SIDE + j) * distance));
            }
            [across[0][i], across[1][i]] = outputs_of::<S>(row, columns);
        }
        let [left, right] = [outputs_of::<S>(across[0], rows), outputs_of::<S>(across[1], rows)];
        [[left[0], right[0]], [left[1], right[1]]]
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

//! Local response normalization across maps, y_i = x_i · d_i^−β with d_i = k + a·Σ_j x_j², and its gradient
//! dx_i = g_i·d_i^−β − 2aβ·x_i·Σ_j g_j·x_j·d_j^(−β−1) over the windows j that contain i (paper §3.3).
//!
//! The maps of one picture at one position are consecutive in memory, so a window is a few unaligned loads. The sums are
//! taken picture by picture from a scratch row with zeros on both sides of each tower, which stand for the clipped edges;
//! squares of all pictures of a position are written first, so that no load waits for a store it overlaps.

use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, for_vectors};

/// Zeros on each side of a tower in scratch; also the widest half window.
pub(crate) const MARGIN: usize = 16;

/// A normalization over towers of maps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lrn {
    /// n: maps in a window, from i − ⌊n/2⌋; at most 16.
    pub size: usize,
    /// k
    pub k: f32,
    /// The factor of the sum of squares.
    pub alpha: f32,
    /// β
    pub beta: f32,
    /// C
    pub channels: usize,
    /// Parts of C whose windows do not mix.
    pub towers: usize,
}

/// y = x·d^−β at `positions` positions of `channels` maps each.
pub fn forward(ctx: &mut Context, lrn: &Lrn, x: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(lrn.channels), "maps");
    run(ctx, lrn, x, None, y, false);
}

/// dx from x and dy. With `relu`, dx is zero where x is not positive: x came out of a ReLU.
pub fn backward(ctx: &mut Context, lrn: &Lrn, x: &[f32], dy: &[f32], relu: bool, dx: &mut [f32]) {
    assert!(x.len() == dx.len() && dy.len() == x.len() && x.len().is_multiple_of(lrn.channels), "maps");
    run(ctx, lrn, x, Some(dy), dx, relu);
}

/// Elements of scratch that each thread needs.
pub fn scratch_len(lrn: &Lrn) -> usize {
    lrn.rows_scratch_len(UNIT * lrn.towers)
}

fn run(ctx: &mut Context, lrn: &Lrn, x: &[f32], dy: Option<&[f32]>, out: &mut [f32], relu: bool) {
    assert!(lrn.size >= 1 && lrn.size <= MARGIN && lrn.channels.is_multiple_of(lrn.towers), "normalization");
    let positions = x.len() / lrn.channels;
    ctx.run(&Normalize { lrn: *lrn, positions, x, dy, out: Ptr::from_mut(out), relu });
}

/// Positions (and pictures) of a unit.
const UNIT: usize = 32;

struct Normalize<'a> {
    lrn: Lrn,
    positions: usize,
    x: &'a [f32],
    /// Forward if absent.
    dy: Option<&'a [f32]>,
    out: Ptr,
    relu: bool,
}

/// d^−β; for β = 3/4 from [`fourth_root`].
#[inline(always)]
pub(crate) unsafe fn power<S: Simd>(d: S::V, beta: f32) -> S::V {
    // SAFETY: passed on from the caller.
    unsafe { power_and_inverse::<S>(d, beta)[0] }
}

/// d^−β and 1/d.
#[inline(always)]
pub(crate) unsafe fn power_and_inverse<S: Simd>(d: S::V, beta: f32) -> [S::V; 2] {
    // SAFETY: the caller's promise; no vector is longer than the array.
    unsafe {
        if beta == 0.75 {
            let root = fourth_root::<S>(d);
            let square = S::mul(root, root);
            [S::mul(square, root), S::mul(square, square)]
        } else {
            let mut lanes = [0.0f32; 16];
            S::store(lanes.as_mut_ptr(), d);
            for lane in &mut lanes[..S::LANES] {
                *lane = lane.powf(-beta);
            }
            [S::load(lanes.as_ptr()), S::div(S::splat(1.0), d)]
        }
    }
}

/// d^(−1/4) within 1.3e-7 (its cube within 4e-7, its fourth power within 6e-7), with multiplications alone: processors do
/// two of them at a time, and a root or a division in the time of many. With h = 1 − d·y⁴, d^(−1/4) = y·(1 − h)^(−1/4) = y·(1 + h/4 + 5h²/32 + ...): a step
/// leaves an error of 0.12·h³, and two make 3 % (h = 0.13) 3e-4 and then 3e-10, less than rounding.
#[inline(always)]
unsafe fn fourth_root<S: Simd>(d: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let mut y = S::fourth_root_guess(d);
        let minus = S::sub(S::zero(), d);
        for _ in 0..2 {
            let square = S::mul(y, y);
            let h = S::fma(S::mul(minus, square), square, S::splat(1.0));
            y = S::fma(S::mul(y, h), S::fma(h, S::splat(5.0 / 32.0), S::splat(0.25)), y);
        }
        y
    }
}

/// Σ of `size` elements from `first`, for as many windows as a vector has lanes.
#[inline(always)]
pub(crate) unsafe fn window_sum<S: Simd>(first: *const f32, size: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = S::load(first);
        for j in 1..size {
            sum = S::add(sum, S::load(first.add(j)));
        }
        sum
    }
}

impl Kernel for Normalize<'_> {
    fn units(&self) -> usize {
        self.positions.div_ceil(UNIT)
    }

    fn scratch_len(&self) -> usize {
        scratch_len(&self.lrn)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let channels = self.lrn.channels;
        let first = unit * UNIT;
        let rows = UNIT.min(self.positions - first) * self.lrn.towers;
        let (x, out) = (self.x.as_ptr().wrapping_add(first * channels), self.out.at(first * channels));
        // SAFETY: rows are consecutive in x, dy and out; there is scratch for so many.
        unsafe {
            self.lrn.clear_rows(rows, scratch);
            match self.dy {
                None => self.lrn.normalize_rows::<S>(rows, x, out, scratch),
                Some(dy) => {
                    let dy = dy.as_ptr().add(first * channels);
                    self.lrn.gradient_of_rows::<S>(rows, x, dy, self.relu, out, scratch);
                }
            }
        }
    }
}

/// Rows: the maps of a tower of one picture at one position, which are consecutive, as are the rows.
impl Lrn {
    /// n and β of every published network: the compiler knows them then.
    const PUBLISHED: (usize, f32) = (5, 0.75);

    fn is_published(&self) -> bool {
        (self.size, self.beta) == Self::PUBLISHED
    }

    /// Scratch elements of one row, with a margin on both sides that is at least as wide as half a window plus a vector's overhang.
    fn row_len(&self) -> usize {
        (self.channels / self.towers).next_multiple_of(16) + 2 * MARGIN
    }

    /// Elements of scratch for so many rows: squares, and for the gradient the terms of its sum.
    pub(crate) fn rows_scratch_len(&self, rows: usize) -> usize {
        2 * rows * self.row_len()
    }

    /// Makes scratch ready for so many rows, to be used any number of times: the margins stay zero.
    ///
    /// # Safety
    /// There is scratch for them.
    #[inline(always)]
    pub(crate) unsafe fn clear_rows(&self, rows: usize, scratch: *mut f32) {
        // SAFETY: passed on from the caller.
        unsafe { std::ptr::write_bytes(scratch, 0, self.rows_scratch_len(rows)) };
    }

    /// x², each row between its margins.
    #[inline(always)]
    unsafe fn squares<S: Simd>(&self, rows: usize, x: *const f32, squares: *mut f32) {
        let (width, row) = (self.channels / self.towers, self.row_len());
        for i in 0..rows {
            // SAFETY: the caller's promise.
            unsafe {
                let (x, s) = (x.add(i * width), squares.add(i * row + MARGIN));
                for_vectors!(S, width, |c, n| {
                    let v = S::load_part(x.add(c), n);
                    S::store(s.add(c), S::mul(v, v));
                });
            }
        }
    }

    /// y of `rows` rows.
    ///
    /// # Safety
    /// x and y have them; scratch was made ready for them; the processor has `S`.
    #[inline(always)]
    pub(crate) unsafe fn normalize_rows<S: Simd>(
        &self,
        rows: usize,
        x: *const f32,
        y: *mut f32,
        scratch: *mut f32,
    ) {
        // SAFETY: passed on from the caller.
        unsafe {
            if self.is_published() {
                self.normalize_rows_as::<S, true>(rows, x, y, scratch);
            } else {
                self.normalize_rows_as::<S, false>(rows, x, y, scratch);
            }
        }
    }

    /// [`Lrn::normalize_rows`] of a normalization that is published, or not.
    #[inline(always)]
    unsafe fn normalize_rows_as<S: Simd, const PUBLISHED: bool>(
        &self,
        rows: usize,
        x: *const f32,
        y: *mut f32,
        scratch: *mut f32,
    ) {
        let Lrn { k, alpha, channels, towers, .. } = *self;
        let (size, beta) = if PUBLISHED { Self::PUBLISHED } else { (self.size, self.beta) };
        let (width, row) = (channels / towers, self.row_len());
        // SAFETY: passed on from the caller.
        unsafe {
            self.squares::<S>(rows, x, scratch);
            let (k, alpha) = (S::splat(k), S::splat(alpha));
            for i in 0..rows {
                let (x, y) = (x.add(i * width), y.add(i * width));
                let s = scratch.add(i * row + MARGIN - size / 2);
                for_vectors!(S, width, |c, n| {
                    let d = S::fma(alpha, window_sum::<S>(s.add(c), size), k);
                    S::store_part(y.add(c), S::mul(S::load_part(x.add(c), n), power::<S>(d, beta)), n);
                });
            }
        }
    }

    /// dx of `rows` rows. With `relu`, zero where x is not positive.
    ///
    /// # Safety
    /// As [`Lrn::normalize_rows`], of x, dy and dx.
    #[inline(always)]
    pub(crate) unsafe fn gradient_of_rows<S: Simd>(
        &self,
        rows: usize,
        x: *const f32,
        dy: *const f32,
        relu: bool,
        dx: *mut f32,
        scratch: *mut f32,
    ) {
        // SAFETY: passed on from the caller.
        unsafe {
            if self.is_published() {
                self.gradient_of_rows_as::<S, true>(rows, x, dy, relu, dx, scratch);
            } else {
                self.gradient_of_rows_as::<S, false>(rows, x, dy, relu, dx, scratch);
            }
        }
    }

    /// [`Lrn::gradient_of_rows`] of a normalization that is published, or not.
    #[inline(always)]
    unsafe fn gradient_of_rows_as<S: Simd, const PUBLISHED: bool>(
        &self,
        rows: usize,
        x: *const f32,
        dy: *const f32,
        relu: bool,
        dx: *mut f32,
        scratch: *mut f32,
    ) {
        let Lrn { k, alpha, channels, towers, .. } = *self;
        let (size, beta) = if PUBLISHED { Self::PUBLISHED } else { (self.size, self.beta) };
        let (width, row) = (channels / towers, self.row_len());
        // Forward a window starts size/2 before its map; backward, among the windows that contain a map, the first is
        // that of the map (size − 1 − size/2) before it.
        let (before, after) = (size / 2, size - 1 - size / 2);
        // SAFETY: passed on from the caller.
        unsafe {
            let terms = scratch.add(rows * row);
            self.squares::<S>(rows, x, scratch);
            let factor = S::mul(S::splat(-2.0 * alpha), S::splat(beta));
            let (k, alpha) = (S::splat(k), S::splat(alpha));
            // The terms g·x·d^(−β−1); the powers g·d^−β wait in `dx`.
            for i in 0..rows {
                let (x, g, dx) = (x.add(i * width), dy.add(i * width), dx.add(i * width));
                let (s, t) = (scratch.add(i * row + MARGIN - before), terms.add(i * row + MARGIN));
                for_vectors!(S, width, |c, n| {
                    let d = S::fma(alpha, window_sum::<S>(s.add(c), size), k);
                    let [power, inverse] = power_and_inverse::<S>(d, beta);
                    let gp = S::mul(S::load_part(g.add(c), n), power);
                    S::store_part(dx.add(c), gp, n);
                    S::store_part(t.add(c), S::mul(S::mul(gp, S::load_part(x.add(c), n)), inverse), n);
                });
            }
            for i in 0..rows {
                let (x, dx) = (x.add(i * width), dx.add(i * width));
                let t = terms.add(i * row + MARGIN - after);
                for_vectors!(S, width, |c, n| {
                    let sum = window_sum::<S>(t.add(c), size);
                    let x = S::load_part(x.add(c), n);
                    let value = S::fma(S::mul(factor, x), sum, S::load_part(dx.add(c), n));
                    S::store_part(dx.add(c), if relu { S::where_positive(x, value) } else { value }, n);
                });
            }
        }
    }
}

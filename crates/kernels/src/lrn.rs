//! Local response normalization across maps, y_i = x_i · d_i^−β with d_i = k + a·Σ_j x_j², and its gradient
//! dx_i = g_i·d_i^−β − 2aβ·x_i·Σ_j g_j·x_j·d_j^(−β−1) over the windows j that contain i (paper §3.3).
//!
//! The maps of one picture at one position are consecutive in memory, so a window is a few unaligned loads. The sums are
//! taken picture by picture from a scratch row with zeros on both sides of each tower, which stand for the clipped edges;
//! squares of all pictures of a position are written first, so that no load waits for a store it overlaps.

use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, vectors};

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
    // Squares, and for the gradient the terms of its sum.
    2 * UNIT * lrn.towers * row(lrn)
}

/// Scratch elements of one tower of one position.
fn row(lrn: &Lrn) -> usize {
    (lrn.channels / lrn.towers).next_multiple_of(16) + 2 * MARGIN
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

/// d^−β; for β = 3/4 by square roots: 1 / (√d · √√d).
#[inline(always)]
pub(crate) unsafe fn power<S: Simd>(d: S::V, beta: f32) -> S::V {
    // SAFETY: the caller's promise; no vector is longer than the array.
    unsafe {
        if beta == 0.75 {
            let root = S::sqrt(d);
            S::div(S::splat(1.0), S::mul(root, S::sqrt(root)))
        } else {
            let mut lanes = [0.0f32; 16];
            S::store(lanes.as_mut_ptr(), d);
            for lane in &mut lanes[..S::LANES] {
                *lane = lane.powf(-beta);
            }
            S::load(lanes.as_ptr())
        }
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
        let Lrn { size, k, alpha, beta, channels, towers } = self.lrn;
        let (width, row) = (channels / towers, row(&self.lrn));
        let first = unit * UNIT;
        let rows = UNIT.min(self.positions - first) * towers;
        let (x, out) = (self.x.as_ptr().wrapping_add(first * channels), self.out.at(first * channels));
        let squares = scratch;
        let terms = scratch.wrapping_add(UNIT * towers * row);
        // Forward a window starts size/2 before its map; backward, among the windows that contain a map, the first is
        // that of the map (size − 1 − size/2) before it.
        let (before, after) = (size / 2, size - 1 - size / 2);
        // SAFETY: rows of `width` elements are consecutive in x, dy and out; scratch rows have a margin on both sides
        // that is at least as wide as half a window plus a vector's overhang.
        unsafe {
            std::ptr::write_bytes(squares, 0, rows * row);
            for i in 0..rows {
                let (x, s) = (x.add(i * width), squares.add(i * row + MARGIN));
                for (c, n) in vectors(width, S::LANES) {
                    let v = S::load_part(x.add(c), n);
                    S::store(s.add(c), S::mul(v, v));
                }
            }
            let (k, alpha) = (S::splat(k), S::splat(alpha));
            let Some(dy) = self.dy else {
                for i in 0..rows {
                    let (x, y) = (x.add(i * width), out.add(i * width));
                    let s = squares.add(i * row + MARGIN - before);
                    for (c, n) in vectors(width, S::LANES) {
                        let d = S::fma(alpha, window_sum::<S>(s.add(c), size), k);
                        let p = power::<S>(d, beta);
                        if n == S::LANES {
                            S::store(y.add(c), S::mul(S::load(x.add(c)), p));
                        } else {
                            S::store_first(y.add(c), S::mul(S::load_first(x.add(c), n), p), n);
                        }
                    }
                }
                return;
            };
            let dy = dy.as_ptr().add(first * channels);
            std::ptr::write_bytes(terms, 0, rows * row);
            // The terms g·x·d^(−β−1); the powers g·d^−β wait in `out`.
            for i in 0..rows {
                let (x, g, out) = (x.add(i * width), dy.add(i * width), out.add(i * width));
                let (s, t) = (squares.add(i * row + MARGIN - before), terms.add(i * row + MARGIN));
                for (c, n) in vectors(width, S::LANES) {
                    let d = S::fma(alpha, window_sum::<S>(s.add(c), size), k);
                    let p = power::<S>(d, beta);
                    if n == S::LANES {
                        let gp = S::mul(S::load(g.add(c)), p);
                        S::store(out.add(c), gp);
                        S::store(t.add(c), S::div(S::mul(gp, S::load(x.add(c))), d));
                    } else {
                        let gp = S::mul(S::load_first(g.add(c), n), p);
                        S::store_first(out.add(c), gp, n);
                        S::store_first(t.add(c), S::div(S::mul(gp, S::load_first(x.add(c), n)), d), n);
                    }
                }
            }
            let factor = S::mul(S::splat(-2.0 * self.lrn.alpha), S::splat(beta));
            for i in 0..rows {
                let (x, out) = (x.add(i * width), out.add(i * width));
                let t = terms.add(i * row + MARGIN - after);
                for (c, n) in vectors(width, S::LANES) {
                    let sum = window_sum::<S>(t.add(c), size);
                    if n == S::LANES {
                        let xv = S::load(x.add(c));
                        let dx = S::fma(S::mul(factor, xv), sum, S::load(out.add(c)));
                        S::store(out.add(c), if self.relu { S::where_positive(xv, dx) } else { dx });
                    } else {
                        let xv = S::load_first(x.add(c), n);
                        let dx = S::fma(S::mul(factor, xv), sum, S::load_first(out.add(c), n));
                        S::store_first(out.add(c), if self.relu { S::where_positive(xv, dx) } else { dx }, n);
                    }
                }
            }
        }
    }
}

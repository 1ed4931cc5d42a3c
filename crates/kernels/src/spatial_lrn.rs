//! Local response normalization within a map: as [`crate::lrn`], with the sum over n×n positions of the same map,
//! clipped to it (run #145 of the 2012 code has one after conv2). Maps are (blocks, H, W, block, C); all pictures and
//! channels of a position are handled lane by lane.

use crate::lrn::{power, power_and_inverse};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, vectors};

/// A normalization over n×n positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpatialLrn {
    /// n: the window starts ⌊n/2⌋ before the element.
    pub size: usize,
    /// k
    pub k: f32,
    /// The factor of the sum of squares.
    pub alpha: f32,
    /// β
    pub beta: f32,
    /// H
    pub height: usize,
    /// W
    pub width: usize,
    /// block · C: elements of one position.
    pub depth: usize,
}

/// y = x·d^−β
pub fn forward(ctx: &mut Context, lrn: &SpatialLrn, x: &[f32], y: &mut [f32]) {
    let blocks = lrn.blocks(x, y);
    ctx.run(&Forward { lrn: *lrn, blocks, x, y: Ptr::from_mut(y) });
}

/// dx from x and dy; `terms`, as large as x, is overwritten. With `relu`, dx is zero where x is not positive.
pub fn backward(
    ctx: &mut Context,
    lrn: &SpatialLrn,
    x: &[f32],
    dy: &[f32],
    relu: bool,
    terms: &mut [f32],
    dx: &mut [f32],
) {
    let blocks = lrn.blocks(x, dx);
    assert!(dy.len() == x.len() && terms.len() == x.len(), "maps");
    ctx.run(&Terms { lrn: *lrn, blocks, x, dy, terms: Ptr::from_mut(terms), dx: Ptr::from_mut(dx) });
    ctx.run(&Gather { lrn: *lrn, blocks, x, terms, relu, dx: Ptr::from_mut(dx) });
}

impl SpatialLrn {
    fn blocks(&self, x: &[f32], y: &[f32]) -> usize {
        let one = self.height * self.width * self.depth;
        assert!(x.len() == y.len() && one > 0 && x.len().is_multiple_of(one) && self.size > 0, "maps");
        x.len() / one
    }

    /// Rows or columns of the window that starts `before` positions before `at`.
    #[inline(always)]
    pub(crate) fn window(&self, at: usize, before: usize, extent: usize) -> std::ops::Range<usize> {
        at.saturating_sub(before)..(at + self.size - before).min(extent)
    }

    /// Offset of a position.
    #[inline(always)]
    fn at(&self, [block, h, w]: [usize; 3]) -> usize {
        ((block * self.height + h) * self.width + w) * self.depth
    }

    /// The vectors of row `unit`, counted over all blocks: position, first lane, lanes used.
    #[inline(always)]
    fn row(self, unit: usize, lanes: usize) -> impl Iterator<Item = ([usize; 3], usize, usize)> {
        let (block, h) = (unit / self.height, unit % self.height);
        let vectors = move |w| vectors(self.depth, lanes).map(move |(lane, n)| ([block, h, w], lane, n));
        (0..self.width).flat_map(vectors)
    }

    /// d of `n` lanes from `lane` at a position.
    #[inline(always)]
    unsafe fn denominator<S: Simd>(&self, x: &[f32], position: [usize; 3], lane: usize, n: usize) -> S::V {
        let [block, h, w] = position;
        let before = self.size / 2;
        // SAFETY: all positions are within the map and `lane + n` within the position.
        unsafe {
            let mut sum = S::zero();
            for h in self.window(h, before, self.height) {
                for w in self.window(w, before, self.width) {
                    let v = S::load_part(x.as_ptr().add(self.at([block, h, w]) + lane), n);
                    sum = S::fma(v, v, sum);
                }
            }
            S::fma(S::splat(self.alpha), sum, S::splat(self.k))
        }
    }
}

struct Forward<'a> {
    lrn: SpatialLrn,
    blocks: usize,
    x: &'a [f32],
    y: Ptr,
}

impl Kernel for Forward<'_> {
    fn units(&self) -> usize {
        self.blocks * self.lrn.height
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        for (position, lane, n) in self.lrn.row(unit, S::LANES) {
            let at = self.lrn.at(position) + lane;
            // SAFETY: within the maps, whose lengths were checked; this unit owns its row of y.
            unsafe {
                let d = self.lrn.denominator::<S>(self.x, position, lane, n);
                let x = S::load_part(self.x.as_ptr().add(at), n);
                S::store_part(self.y.at(at), S::mul(x, power::<S>(d, self.lrn.beta)), n);
            }
        }
    }
}

/// dx = g·d^−β and the terms g·x·d^(−β−1), of which [`Gather`] takes sums.
struct Terms<'a> {
    lrn: SpatialLrn,
    blocks: usize,
    x: &'a [f32],
    dy: &'a [f32],
    terms: Ptr,
    dx: Ptr,
}

impl Kernel for Terms<'_> {
    fn units(&self) -> usize {
        self.blocks * self.lrn.height
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        for (position, lane, n) in self.lrn.row(unit, S::LANES) {
            let at = self.lrn.at(position) + lane;
            // SAFETY: as in `Forward`; this unit owns its row of terms and dx.
            unsafe {
                let d = self.lrn.denominator::<S>(self.x, position, lane, n);
                let x = S::load_part(self.x.as_ptr().add(at), n);
                let g = S::load_part(self.dy.as_ptr().add(at), n);
                let [power, inverse] = power_and_inverse::<S>(d, self.lrn.beta);
                let gp = S::mul(g, power);
                S::store_part(self.dx.at(at), gp, n);
                S::store_part(self.terms.at(at), S::mul(S::mul(gp, x), inverse), n);
            }
        }
    }
}

struct Gather<'a> {
    lrn: SpatialLrn,
    blocks: usize,
    x: &'a [f32],
    terms: &'a [f32],
    relu: bool,
    dx: Ptr,
}

impl Kernel for Gather<'_> {
    fn units(&self) -> usize {
        self.blocks * self.lrn.height
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        // Windows that contain an element begin with that of the position (size − 1 − size/2) before it.
        let before = self.lrn.size - 1 - self.lrn.size / 2;
        for (position, lane, n) in self.lrn.row(unit, S::LANES) {
            let at = self.lrn.at(position) + lane;
            // SAFETY: as in `Forward`; this unit owns its row of dx.
            unsafe {
                let [block, h, w] = position;
                let mut sum = S::zero();
                for h in self.lrn.window(h, before, self.lrn.height) {
                    for w in self.lrn.window(w, before, self.lrn.width) {
                        let from = self.lrn.at([block, h, w]) + lane;
                        sum = S::add(sum, S::load_part(self.terms.as_ptr().add(from), n));
                    }
                }
                let x = S::load_part(self.x.as_ptr().add(at), n);
                let factor = S::mul(S::splat(-2.0 * self.lrn.alpha * self.lrn.beta), x);
                let dx = S::fma(factor, sum, S::load_part(self.dx.at(at), n));
                let dx = if self.relu { S::where_positive(x, dx) } else { dx };
                S::store_part(self.dx.at(at), dx, n);
            }
        }
    }
}

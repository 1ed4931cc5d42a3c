//! Local response normalization within a map (see [`crate::spatial_lrn`]) on bf16 maps with f32 arithmetic.
//!
//! The sum over n×n positions is one of n columns, then of n rows. A unit goes down the rows of a few pairs, and keeps the
//! n last rows of column sums in a ring:
//!
//! ```text
//! for row r of x                     squares, summed over columns          -> ring
//!   row r − after of y               rows of the ring; x·d^−β
//!   (backward) of the same row       g·x·d^(−β−1), summed over columns     -> second ring; g·d^−β -> third
//!   (backward) ⌊n/2⌋ rows above      rows of the second ring; dx
//! ```

use super::engine::{Engine, run_vectors};
use super::{MapLayout, PICTURES, pairs};
use crate::lrn::power_and_inverse;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::spatial_lrn::SpatialLrn;
use std::ops::Range;

/// Pairs of a unit: 512 bytes of every position, and rings that stay in L2 (27 columns, n = 5: 430 KiB).
const GROUP: usize = 4;
/// Values of a position of a unit.
const DEPTH: usize = 2 * GROUP * PICTURES;

/// y = x·d^−β for `blocks` blocks.
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    lrn: &SpatialLrn,
    map: &MapLayout,
    blocks: usize,
    x: &[f32],
    y: &mut [f32],
) {
    run(ctx, engine, lrn, map, blocks, x, None, false, y);
}

/// dx from x and dy. With `relu`, dx is zero where x is not positive: x came out of a ReLU.
pub fn backward(
    ctx: &mut Context,
    engine: Engine,
    lrn: &SpatialLrn,
    map: &MapLayout,
    blocks: usize,
    x: &[f32],
    dy: &[f32],
    relu: bool,
    dx: &mut [f32],
) {
    run(ctx, engine, lrn, map, blocks, x, Some(dy), relu, dx);
}

/// Elements of scratch that each thread needs: a row, and three rings.
pub fn scratch_len(lrn: &SpatialLrn, map: &MapLayout) -> usize {
    (1 + 3 * lrn.size) * map.width * DEPTH
}

fn run(
    ctx: &mut Context,
    engine: Engine,
    lrn: &SpatialLrn,
    map: &MapLayout,
    blocks: usize,
    x: &[f32],
    dy: Option<&[f32]>,
    relu: bool,
    out: &mut [f32],
) {
    let len = blocks * map.block_len();
    assert!(x.len() >= len && out.len() >= len && dy.is_none_or(|dy| dy.len() >= len), "maps");
    assert!(lrn.size > 0, "window");
    let kernel = Normalize {
        lrn: *lrn,
        map: *map,
        blocks,
        x: pairs(x),
        dy: dy.map(pairs),
        relu,
        out: Ptr::from_mut(out),
    };
    run_vectors(ctx, engine, &kernel);
}

struct Normalize<'a> {
    lrn: SpatialLrn,
    map: MapLayout,
    blocks: usize,
    x: &'a [u32],
    /// Forward if absent.
    dy: Option<&'a [u32]>,
    relu: bool,
    out: Ptr,
}

/// Positions of a window that starts `before` positions before `at`, within the map.
#[inline(always)]
fn window(at: usize, before: usize, size: usize, extent: usize) -> Range<usize> {
    at.saturating_sub(before)..(at + size - before).min(extent)
}

impl Kernel for Normalize<'_> {
    /// Groups of pairs of every split of every block.
    fn units(&self) -> usize {
        self.blocks * self.map.splits * self.map.split_pairs().div_ceil(GROUP)
    }

    fn scratch_len(&self) -> usize {
        scratch_len(&self.lrn, &self.map)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (size, height) = (self.lrn.size, self.map.height);
        let (before, after) = (size / 2, size - 1 - size / 2);
        let down = self.down(unit, scratch);
        // SAFETY: positions are within the maps, whose lengths were checked; scratch has a row and three rings; this unit
        // owns its pairs of the map that is written. A ring holds the rows of a window when they are summed.
        unsafe {
            for r in 0..height + after + before {
                if r < height {
                    down.squares::<S>(r);
                    down.sum_columns::<S>(down.ring(SQUARES, r), before);
                }
                let Some(h) = r.checked_sub(after) else { continue };
                if h < height {
                    down.normalize::<S>(h, window(h, before, size, height));
                    if self.dy.is_some() {
                        // The windows that contain a position begin with the one `after` before it.
                        down.sum_columns::<S>(down.ring(TERMS, h), after);
                    }
                }
                if let Some(h) = h.checked_sub(before)
                    && h < height
                    && self.dy.is_some()
                {
                    down.gradient::<S>(h, window(h, after, size, height));
                }
            }
        }
    }
}

/// The rings: sums of squares over columns, sums of the terms g·x·d^(−β−1) over columns, and g·d^−β.
const SQUARES: usize = 0;
const TERMS: usize = 1;
const PRODUCTS: usize = 2;

/// A unit on its way down the rows.
struct Down<'a> {
    of: &'a Normalize<'a>,
    split: usize,
    /// Where its pairs begin within the maps, at the origin of split 0.
    first: usize,
    /// Pairs of a position, all pictures.
    lanes: usize,
    /// A row of values that are summed over columns, and the rings.
    scratch: *mut f32,
}

impl Normalize<'_> {
    #[inline(always)]
    fn down(&self, unit: usize, scratch: *mut f32) -> Down<'_> {
        let map = self.map;
        let groups = map.split_pairs().div_ceil(GROUP);
        let (group, split, block) = (unit % groups, unit / groups % map.splits, unit / groups / map.splits);
        let first = block * map.block_len() + group * GROUP * PICTURES;
        let lanes = (map.split_pairs() - group * GROUP).min(GROUP) * PICTURES;
        Down { of: self, split, first, lanes, scratch }
    }
}

/// An even and an odd vector.
type Two<V> = (V, V);

// All methods are inlined into `unit`, so that they have its instructions.
impl Down<'_> {
    /// Where a vector of pairs lies in the maps.
    #[inline(always)]
    fn at(&self, h: usize, w: usize, lane: usize) -> usize {
        self.first + self.of.map.at(self.split, h, w) + lane
    }

    /// A row of a ring.
    #[inline(always)]
    fn ring(&self, which: usize, row: usize) -> *mut f32 {
        let size = self.of.lrn.size;
        self.scratch.wrapping_add((1 + which * size + row % size) * self.of.map.width * DEPTH)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(&self, from: &[u32], h: usize, w: usize, lane: usize) -> Two<S::V> {
        // SAFETY: the caller's promise that the position is within the map.
        unsafe { S::load_pairs(from.as_ptr().add(self.at(h, w, lane))) }
    }

    /// The squares of a row of x.
    #[inline(always)]
    unsafe fn squares<S: Simd>(&self, h: usize) {
        for w in 0..self.of.map.width {
            for lane in (0..self.lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let x = self.load::<S>(self.of.x, h, w, lane);
                    store::<S>(self.scratch.add(place(w, lane)), (S::mul(x.0, x.0), S::mul(x.1, x.1)));
                }
            }
        }
    }

    /// Sums of the row in scratch over the columns of each window that starts `before` columns before its own.
    #[inline(always)]
    unsafe fn sum_columns<S: Simd>(&self, to: *mut f32, before: usize) {
        let width = self.of.map.width;
        for w in 0..width {
            let columns = window(w, before, self.of.lrn.size, width);
            for lane in (0..self.lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut sum = (S::zero(), S::zero());
                    for column in columns.clone() {
                        sum = add::<S>(sum, self.scratch.add(place(column, lane)));
                    }
                    store::<S>(to.add(place(w, lane)), sum);
                }
            }
        }
    }

    /// Sums of a ring's rows at one place.
    #[inline(always)]
    unsafe fn sum_rows<S: Simd>(&self, which: usize, rows: Range<usize>, place: usize) -> Two<S::V> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = (S::zero(), S::zero());
            for row in rows {
                sum = add::<S>(sum, self.ring(which, row).add(place));
            }
            sum
        }
    }

    /// Row `h` of y; or, backward, its products and terms.
    #[inline(always)]
    unsafe fn normalize<S: Simd>(&self, h: usize, rows: Range<usize>) {
        let SpatialLrn { k, alpha, beta, .. } = self.of.lrn;
        for w in 0..self.of.map.width {
            for lane in (0..self.lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let sum = self.sum_rows::<S>(SQUARES, rows.clone(), place(w, lane));
                    let d0 = S::fma(S::splat(alpha), sum.0, S::splat(k));
                    let d1 = S::fma(S::splat(alpha), sum.1, S::splat(k));
                    let [p0, inverse0] = power_and_inverse::<S>(d0, beta);
                    let [p1, inverse1] = power_and_inverse::<S>(d1, beta);
                    let x = self.load::<S>(self.of.x, h, w, lane);
                    let Some(dy) = self.of.dy else {
                        let to = self.of.out.at(self.at(h, w, lane)).cast();
                        S::store_pairs(to, S::mul(x.0, p0), S::mul(x.1, p1));
                        continue;
                    };
                    let g = self.load::<S>(dy, h, w, lane);
                    let products = (S::mul(g.0, p0), S::mul(g.1, p1));
                    store::<S>(self.ring(PRODUCTS, h).add(place(w, lane)), products);
                    let terms = (
                        S::mul(S::mul(products.0, x.0), inverse0),
                        S::mul(S::mul(products.1, x.1), inverse1),
                    );
                    store::<S>(self.scratch.add(place(w, lane)), terms);
                }
            }
        }
    }

    /// Row `h` of dx.
    #[inline(always)]
    unsafe fn gradient<S: Simd>(&self, h: usize, rows: Range<usize>) {
        let SpatialLrn { alpha, beta, .. } = self.of.lrn;
        for w in 0..self.of.map.width {
            for lane in (0..self.lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let factor = S::splat(-2.0 * alpha * beta);
                    let sum = self.sum_rows::<S>(TERMS, rows.clone(), place(w, lane));
                    let x = self.load::<S>(self.of.x, h, w, lane);
                    let products = self.ring(PRODUCTS, h).add(place(w, lane));
                    let mut even = S::fma(S::mul(factor, x.0), sum.0, S::load(products));
                    let mut odd = S::fma(S::mul(factor, x.1), sum.1, S::load(products.add(S::LANES)));
                    if self.of.relu {
                        even = S::where_positive(x.0, even);
                        odd = S::where_positive(x.1, odd);
                    }
                    S::store_pairs(self.of.out.at(self.at(h, w, lane)).cast(), even, odd);
                }
            }
        }
    }
}

/// Where the values of a vector of pairs begin in a row of scratch: the even ones, then the odd ones.
#[inline(always)]
fn place(w: usize, lane: usize) -> usize {
    w * DEPTH + 2 * lane
}

#[inline(always)]
unsafe fn add<S: Simd>(sum: Two<S::V>, from: *const f32) -> Two<S::V> {
    // SAFETY: the caller's promise.
    unsafe { (S::add(sum.0, S::load(from)), S::add(sum.1, S::load(from.add(S::LANES)))) }
}

#[inline(always)]
unsafe fn store<S: Simd>(to: *mut f32, values: Two<S::V>) {
    // SAFETY: the caller's promise.
    unsafe {
        S::store(to, values.0);
        S::store(to.add(S::LANES), values.1);
    }
}

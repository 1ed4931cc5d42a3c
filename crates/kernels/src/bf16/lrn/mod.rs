//! Local response normalization across maps, and its gradient (see [`crate::lrn`]), on bf16 maps with f32 arithmetic.
//!
//! A vector is one channel of some pictures, so a window over channels is a sum of whole vectors: no lane ever moves. The
//! window of five, that of every published network, stays in registers (`five.rs`); others go through scratch memory.

mod five;

pub(super) use five::{Five, Sink, Source, Two, Walk};

use super::engine::{Engine, run_vectors};
use super::{MapLayout, PICTURES, pairs};
use crate::lrn::Lrn;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, prefetch};

/// y = x·d^−β for `blocks` blocks.
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    lrn: &Lrn,
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
    lrn: &Lrn,
    map: &MapLayout,
    blocks: usize,
    x: &[f32],
    dy: &[f32],
    relu: bool,
    dx: &mut [f32],
) {
    run(ctx, engine, lrn, map, blocks, x, Some(dy), relu, dx);
}

fn run(
    ctx: &mut Context,
    engine: Engine,
    lrn: &Lrn,
    map: &MapLayout,
    blocks: usize,
    x: &[f32],
    dy: Option<&[f32]>,
    relu: bool,
    out: &mut [f32],
) {
    let len = blocks * map.block_len();
    assert!(x.len() >= len && out.len() >= len && dy.is_none_or(|dy| dy.len() >= len), "maps");
    assert!(lrn.channels == map.channels && map.channels.is_multiple_of(lrn.towers), "towers");
    assert!(lrn.size >= 1, "window");
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

/// Elements of scratch that each thread needs: four values of every channel, for as many pictures as a vector has lanes.
pub fn scratch_len(lrn: &Lrn) -> usize {
    4 * rows_len(lrn)
}

/// A vector of 16 for every channel, and room for an empty half behind the last.
fn rows_len(lrn: &Lrn) -> usize {
    (lrn.channels + 1) * 16
}

struct Normalize<'a> {
    lrn: Lrn,
    map: MapLayout,
    blocks: usize,
    x: &'a [u32],
    /// Forward if absent.
    dy: Option<&'a [u32]>,
    relu: bool,
    out: Ptr,
}

/// d^−β to f32's precision or nearly so: pooling asks which of two is larger. For β = 3/4 without a division or a root: with
/// r = d^−½, y = r²·(r^−½) from estimates, and one step of Newton's for y^−4 = d³: y + y·(1 − d³·y⁴)/4.
#[inline(always)]
pub(super) unsafe fn power<S: Simd>(d: S::V, beta: f32) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        if beta == 0.75 {
            let (y, _) = powers::<S>(d, beta);
            let root = S::mul(d, S::mul(y, y));
            let off = S::fma(S::mul(root, root), S::sub(S::zero(), d), S::splat(1.0));
            S::fma(S::mul(y, S::splat(0.25)), off, y)
        } else {
            crate::lrn::power::<S>(d, beta)
        }
    }
}

/// d^−β and 1/d. For β = 3/4 from estimates, to 12 bits at least: what becomes of them is a gradient, which is rounded to 8.
#[inline(always)]
pub(super) unsafe fn powers<S: Simd>(d: S::V, beta: f32) -> (S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        if beta == 0.75 {
            let root = S::rsqrt_estimate(d);
            let inverse = S::mul(root, root);
            (S::mul(inverse, S::rsqrt_estimate(root)), inverse)
        } else {
            (crate::lrn::power::<S>(d, beta), S::div(S::splat(1.0), d))
        }
    }
}

/// y where x has its pair.
struct ToMap(Ptr);

impl Sink for ToMap {
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, at: usize, y: Two<S::V>) {
        // SAFETY: the caller's promise that the pairs are within the map, whose layout y has.
        unsafe { S::store_pairs(self.0.at(at).cast(), y[0], y[1]) }
    }
}

/// dy where x has its pair. It comes from memory as x does, so the next position is asked for as well.
struct OfMap<'a> {
    dy: &'a [u32],
    next_position: usize,
}

impl Source for OfMap<'_> {
    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self, at: usize) -> Two<S::V> {
        prefetch(self.dy.as_ptr().wrapping_add(at + self.next_position).cast());
        // SAFETY: the caller's promise that the pairs are within the map, whose layout dy has.
        unsafe { five::load::<S>(self.dy, at) }
    }
}

impl Kernel for Normalize<'_> {
    /// Rows of a block.
    fn units(&self) -> usize {
        self.blocks * self.map.height
    }

    fn scratch_len(&self) -> usize {
        scratch_len(&self.lrn)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let map = self.map;
        let row = unit / map.height * map.block_len() + map.at(0, unit % map.height, 0);
        let (split_channels, split_pairs) = (map.split_channels(), map.split_pairs());
        let values = scratch;
        let [squares, terms, products] = [1, 2, 3].map(|i| scratch.wrapping_add(i * rows_len(&self.lrn)));
        // SAFETY: positions are within the maps; scratch has four times `rows_len`.
        unsafe {
            if Five::takes(&self.lrn, &map) {
                let five = Five { lrn: self.lrn, map, x: self.x };
                for position in 0..map.width {
                    for lane in (0..PICTURES).step_by(S::LANES) {
                        let first = row + position * map.position_len() + lane;
                        match self.dy {
                            None => five.normalize::<S>(first, &mut ToMap(self.out)),
                            Some(dy) => {
                                let mut dy = OfMap { dy, next_position: map.position_len() };
                                five.gradient::<S>(first, &mut dy, self.relu, self.out);
                            }
                        }
                    }
                }
                return;
            }
            for position in 0..map.width {
                for lane in (0..PICTURES).step_by(S::LANES) {
                    let first = row + position * map.position_len() + lane;
                    let at = |split: usize, p: usize| first + split * map.split_len() + p * PICTURES;
                    for split in 0..map.splits {
                        for p in 0..split_pairs {
                            let (even, odd) = S::load_pairs(self.x.as_ptr().add(at(split, p)));
                            let c = split * split_channels + 2 * p;
                            // An empty half goes to the next split's first channel, which overwrites it, or beyond.
                            S::store(values.add(c * 16), even);
                            S::store(squares.add(c * 16), S::mul(even, even));
                            S::store(values.add((c + 1) * 16), odd);
                            S::store(squares.add((c + 1) * 16), S::mul(odd, odd));
                        }
                    }
                    if let Some(dy) = self.dy {
                        for split in 0..map.splits {
                            for p in 0..split_pairs {
                                let (even, odd) = S::load_pairs(dy.as_ptr().add(at(split, p)));
                                let c = split * split_channels + 2 * p;
                                S::store(terms.add(c * 16), even);
                                S::store(terms.add((c + 1) * 16), odd);
                            }
                        }
                        self.gradient::<S>(values, squares, terms, products);
                    } else {
                        self.normalize::<S>(values, squares);
                    }
                    for split in 0..map.splits {
                        for p in 0..split_pairs {
                            let c = split * split_channels + 2 * p;
                            let even = S::load(values.add(c * 16));
                            let odd = if 2 * p + 1 < split_channels {
                                S::load(values.add((c + 1) * 16))
                            } else {
                                S::zero()
                            };
                            S::store_pairs(self.out.at(at(split, p)).cast(), even, odd);
                        }
                    }
                }
            }
        }
    }
}

impl Normalize<'_> {
    /// values ← values·d^−β.
    #[inline(always)]
    unsafe fn normalize<S: Simd>(&self, values: *mut f32, squares: *const f32) {
        let Lrn { size, k, alpha, beta, channels, towers } = self.lrn;
        let width = channels / towers;
        let (before, after) = (size / 2, size - 1 - size / 2);
        // SAFETY: the caller's promise.
        unsafe {
            let (k, alpha) = (S::splat(k), S::splat(alpha));
            for tower in 0..towers {
                for i in 0..width {
                    let window = i.saturating_sub(before)..(i + after + 1).min(width);
                    let sum = sum_rows::<S>(squares.add(tower * width * 16), window.start, window.end);
                    let to = values.add((tower * width + i) * 16);
                    let power = power::<S>(S::fma(alpha, sum, k), beta);
                    S::store(to, S::mul(S::load(to), power));
                }
            }
        }
    }

    /// values ← dx. `terms` comes in as dy; `products` receives g·d^−β.
    #[inline(always)]
    unsafe fn gradient<S: Simd>(
        &self,
        values: *mut f32,
        squares: *const f32,
        terms: *mut f32,
        products: *mut f32,
    ) {
        let Lrn { size, k, alpha, beta, channels, towers } = self.lrn;
        let width = channels / towers;
        let (before, after) = (size / 2, size - 1 - size / 2);
        // SAFETY: the caller's promise.
        unsafe {
            let (k, scale) = (S::splat(k), S::splat(alpha));
            let factor = S::splat(-2.0 * alpha * beta);
            for tower in 0..towers {
                let first = tower * width;
                for i in 0..width {
                    let window = i.saturating_sub(before)..(i + after + 1).min(width);
                    let sum = sum_rows::<S>(squares.add(first * 16), window.start, window.end);
                    let d = S::fma(scale, sum, k);
                    let at = (first + i) * 16;
                    let (power, inverse) = powers::<S>(d, beta);
                    let product = S::mul(S::load(terms.add(at)), power);
                    S::store(products.add(at), product);
                    // g·x·d^(−β−1)
                    S::store(terms.add(at), S::mul(S::mul(product, S::load(values.add(at))), inverse));
                }
                for i in 0..width {
                    // The windows that contain i are those of i − after ..= i + before.
                    let window = i.saturating_sub(after)..(i + before + 1).min(width);
                    let sum = sum_rows::<S>(terms.add(first * 16), window.start, window.end);
                    let at = (first + i) * 16;
                    let x = S::load(values.add(at));
                    let dx = S::fma(S::mul(factor, x), sum, S::load(products.add(at)));
                    S::store(values.add(at), if self.relu { S::where_positive(x, dx) } else { dx });
                }
            }
        }
    }
}

/// The sum of rows `first..end` of 16 elements.
#[inline(always)]
unsafe fn sum_rows<S: Simd>(rows: *const f32, first: usize, end: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = S::load(rows.add(first * 16));
        for i in first + 1..end {
            sum = S::add(sum, S::load(rows.add(i * 16)));
        }
        sum
    }
}

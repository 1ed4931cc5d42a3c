//! Local response normalization across maps, and its gradient (see [`crate::lrn`]), on bf16 maps with f32 arithmetic.
//!
//! A vector is one channel of some pictures, so a window over channels is a sum of whole vectors: no lane ever moves.

use super::{MapLayout, PICTURES, pairs};
use crate::lrn::Lrn;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// y = x·d^−β for `blocks` blocks.
pub fn forward(ctx: &mut Context, lrn: &Lrn, map: &MapLayout, blocks: usize, x: &[f32], y: &mut [f32]) {
    run(ctx, lrn, map, blocks, x, None, false, y);
}

/// dx from x and dy. With `relu`, dx is zero where x is not positive: x came out of a ReLU.
pub fn backward(
    ctx: &mut Context,
    lrn: &Lrn,
    map: &MapLayout,
    blocks: usize,
    x: &[f32],
    dy: &[f32],
    relu: bool,
    dx: &mut [f32],
) {
    run(ctx, lrn, map, blocks, x, Some(dy), relu, dx);
}

fn run(
    ctx: &mut Context,
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
    ctx.run(&Normalize {
        lrn: *lrn,
        map: *map,
        blocks,
        x: pairs(x),
        dy: dy.map(pairs),
        relu,
        out: Ptr::from_mut(out),
    });
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

/// d^−β and 1/d. For β = 3/4 without a division or a root: with r = d^−½, d^−β = r·√r = r²·(r^−½).
#[inline(always)]
pub(super) unsafe fn powers<S: Simd>(d: S::V, beta: f32) -> (S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        if beta == 0.75 {
            let root = S::rsqrt(d);
            let inverse = S::mul(root, root);
            (S::mul(inverse, S::rsqrt(root)), inverse)
        } else {
            (crate::lrn::power::<S>(d, beta), S::div(S::splat(1.0), d))
        }
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
            if self.in_pairs() {
                for position in 0..map.width {
                    for lane in (0..PICTURES).step_by(S::LANES) {
                        let first = row + position * map.position_len() + lane;
                        match self.dy {
                            None => self.normalize_pairs::<S>(first),
                            Some(dy) => self.gradient_pairs::<S>(dy, first),
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

/// The window of every published AlexNet: two maps on either side.
const FIVE: usize = 5;

/// Two vectors, of an even channel and of the odd one beside it.
type Two<V> = [V; 2];

/// The sums of five around both channels of the middle pair.
#[inline(always)]
unsafe fn sums_of_five<S: Simd>(before: Two<S::V>, middle: Two<S::V>, after: Two<S::V>) -> Two<S::V> {
    // SAFETY: the caller's promise.
    unsafe {
        let common = S::add(S::add(before[1], middle[0]), S::add(middle[1], after[0]));
        [S::add(before[0], common), S::add(common, after[1])]
    }
}

#[inline(always)]
unsafe fn load<S: Simd>(from: &[u32], at: usize) -> Two<S::V> {
    // SAFETY: the caller's promise that the pairs are there.
    unsafe {
        let (even, odd) = S::load_pairs(from.as_ptr().add(at));
        [even, odd]
    }
}

#[inline(always)]
unsafe fn squares_of<S: Simd>(x: Two<S::V>) -> Two<S::V> {
    // SAFETY: the caller's promise.
    unsafe { [S::mul(x[0], x[0]), S::mul(x[1], x[1])] }
}

/// The pairs of a position, one after the other through the splits.
struct Walk {
    next: usize,
    /// Pairs to come in this split.
    left: usize,
    split_pairs: usize,
    /// From the last pair of a split to the first of the next.
    jump: usize,
}

impl Walk {
    /// Begins with pair number `pair` of the position whose first is at `first`.
    #[inline(always)]
    fn new(map: &MapLayout, first: usize, pair: usize) -> Walk {
        let split_pairs = map.split_pairs();
        let (split, p) = (pair / split_pairs, pair % split_pairs);
        Walk {
            next: first + split * map.split_len() + p * PICTURES,
            left: split_pairs - p,
            split_pairs,
            jump: map.split_len() - (split_pairs - 1) * PICTURES,
        }
    }

    /// Where the next pair lies; beyond the last, where one would.
    #[inline(always)]
    fn step(&mut self) -> usize {
        let at = self.next;
        self.left -= 1;
        if self.left == 0 {
            (self.next, self.left) = (at + self.jump, self.split_pairs);
        } else {
            self.next = at + PICTURES;
        }
        at
    }
}

impl Normalize<'_> {
    /// Whether windows are of five and no pair lies across towers: then a position is one walk along its pairs, with
    /// everything that a window needs in registers.
    #[inline(always)]
    fn in_pairs(&self) -> bool {
        let even = |channels: usize| channels.is_multiple_of(2);
        self.lrn.size == FIVE
            && even(self.lrn.channels / self.lrn.towers)
            && (self.map.splits == 1 || even(self.map.split_channels()))
    }

    /// y of one position, for as many lanes as a vector has, from `first` on.
    #[inline(always)]
    unsafe fn normalize_pairs<S: Simd>(&self, first: usize) {
        let (map, Lrn { k, alpha, beta, channels, towers, .. }) = (self.map, self.lrn);
        let pairs = channels / towers / 2;
        // SAFETY: the caller's promise that the position is within the maps.
        unsafe {
            let (k, scale) = (S::splat(k), S::splat(alpha));
            let zero = [S::zero(); 2];
            for tower in 0..towers {
                let mut walk = Walk::new(&map, first, tower * pairs);
                let mut here = walk.step();
                // x at the pair whose window is summed; squares of the pair before, at and after it.
                let mut x = load::<S>(self.x, here);
                let mut squares = [zero, squares_of::<S>(x)];
                for pair in 1..=pairs {
                    let after = walk.step();
                    let next = if pair < pairs { load::<S>(self.x, after) } else { zero };
                    let next_squares = squares_of::<S>(next);
                    let sums = sums_of_five::<S>(squares[0], squares[1], next_squares);
                    let (even, _) = powers::<S>(S::fma(scale, sums[0], k), beta);
                    let (odd, _) = powers::<S>(S::fma(scale, sums[1], k), beta);
                    S::store_pairs(self.out.at(here).cast(), S::mul(x[0], even), S::mul(x[1], odd));
                    (x, squares, here) = (next, [squares[1], next_squares], after);
                }
            }
        }
    }

    /// dx of one position, for as many lanes as a vector has, from `first` on: in one walk, whose sums of terms are a pair
    /// behind the sums of squares that the terms need.
    #[inline(always)]
    unsafe fn gradient_pairs<S: Simd>(&self, dy: &[u32], first: usize) {
        let (map, Lrn { k, alpha, beta, channels, towers, .. }) = (self.map, self.lrn);
        let pairs = channels / towers / 2;
        // SAFETY: the caller's promise that the position is within the maps.
        unsafe {
            let (k, scale) = (S::splat(k), S::splat(alpha));
            let factor = S::splat(-2.0 * alpha * beta);
            let zero = [S::zero(); 2];
            for tower in 0..towers {
                // Where the pairs before, at and after the one whose squares are summed lie.
                let mut walk = Walk::new(&map, first, tower * pairs);
                let (mut before, mut here) = (0, walk.step());
                // x and squares of the pairs before and at it.
                let mut x = [zero, load::<S>(self.x, here)];
                let mut squares = [zero, squares_of::<S>(x[1])];
                // The terms g·x·d^(−β−1) of the two pairs before it; g·d^−β of the last.
                let (mut terms, mut product) = ([zero; 2], zero);
                for pair in 0..=pairs {
                    let after = walk.step();
                    let next = if pair + 1 < pairs { load::<S>(self.x, after) } else { zero };
                    let next_squares = squares_of::<S>(next);
                    let (mut term, mut next_product) = (zero, zero);
                    if pair < pairs {
                        let sums = sums_of_five::<S>(squares[0], squares[1], next_squares);
                        let (p0, i0) = powers::<S>(S::fma(scale, sums[0], k), beta);
                        let (p1, i1) = powers::<S>(S::fma(scale, sums[1], k), beta);
                        let g = load::<S>(dy, here);
                        next_product = [S::mul(g[0], p0), S::mul(g[1], p1)];
                        term = [
                            S::mul(S::mul(next_product[0], x[1][0]), i0),
                            S::mul(S::mul(next_product[1], x[1][1]), i1),
                        ];
                    }
                    if pair > 0 {
                        let sums = sums_of_five::<S>(terms[0], terms[1], term);
                        let mut even = S::fma(S::mul(factor, x[0][0]), sums[0], product[0]);
                        let mut odd = S::fma(S::mul(factor, x[0][1]), sums[1], product[1]);
                        if self.relu {
                            even = S::where_positive(x[0][0], even);
                            odd = S::where_positive(x[0][1], odd);
                        }
                        S::store_pairs(self.out.at(before).cast(), even, odd);
                    }
                    (x, squares) = ([x[1], next], [squares[1], next_squares]);
                    (terms, product) = ([terms[1], term], next_product);
                    (before, here) = (here, after);
                }
            }
        }
    }

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
                    let (power, _) = powers::<S>(S::fma(alpha, sum, k), beta);
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

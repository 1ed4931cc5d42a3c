//! The window of five channels, two on either side: a position is one walk along its pairs, with everything that a window
//! needs in registers. What is before or behind a normalization can be computed in the same walk ([`Sink`], [`Source`]).

use super::{power, powers};
use crate::bf16::{MapLayout, PICTURES};
use crate::lrn::Lrn;
use crate::parallel::Ptr;
use crate::simd::{Simd, prefetch};

/// Channels of the window.
const FIVE: usize = 5;

/// Two vectors, of an even channel and of the odd one beside it.
pub(in crate::bf16) type Two<V> = [V; 2];

/// Takes y pair by pair, in the order of the channels.
pub(in crate::bf16) trait Sink {
    /// `at` is where the pair lies in x.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; the pairs at `at` are within x.
    unsafe fn put<S: Simd>(&mut self, at: usize, y: Two<S::V>);
}

/// Yields dy pair by pair, in the order of the channels.
pub(in crate::bf16) trait Source {
    /// `at` is where the pair lies in x.
    ///
    /// # Safety
    /// As [`Sink::put`].
    unsafe fn next<S: Simd>(&mut self, at: usize) -> Two<S::V>;
}

/// Normalization over windows of five.
#[derive(Clone, Copy)]
pub(in crate::bf16) struct Five<'a> {
    pub lrn: Lrn,
    pub map: MapLayout,
    pub x: &'a [u32],
}

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
pub(super) unsafe fn load<S: Simd>(from: &[u32], at: usize) -> Two<S::V> {
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
pub(in crate::bf16) struct Walk {
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
    pub fn new(map: &MapLayout, first: usize, pair: usize) -> Walk {
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
    pub fn step(&mut self) -> usize {
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

impl Five<'_> {
    /// Whether the window is of five and no pair lies across towers or splits.
    #[inline(always)]
    pub fn takes(lrn: &Lrn, map: &MapLayout) -> bool {
        let even = |channels: usize| channels.is_multiple_of(2);
        lrn.size == FIVE && even(lrn.channels / lrn.towers) && (map.splits == 1 || even(map.split_channels()))
    }

    /// y of one position, for as many lanes as a vector has, from `first` on.
    ///
    /// # Safety
    /// The position is within x; what `to` asks.
    #[inline(always)]
    pub unsafe fn normalize<S: Simd>(&self, first: usize, to: &mut impl Sink) {
        let Lrn { k, alpha, beta, channels, towers, .. } = self.lrn;
        let pairs = channels / towers / 2;
        // A walk is too short for the processor to foresee the next one, so it asks for that position's pairs.
        let ahead = self.map.position_len();
        // SAFETY: the caller's promise.
        unsafe {
            let (k, scale) = (S::splat(k), S::splat(alpha));
            let zero = [S::zero(); 2];
            for tower in 0..towers {
                let mut walk = Walk::new(&self.map, first, tower * pairs);
                let mut here = walk.step();
                // x at the pair whose window is summed; squares of the pair before, at and after it.
                let mut x = load::<S>(self.x, here);
                let mut squares = [zero, squares_of::<S>(x)];
                for pair in 1..=pairs {
                    let after = walk.step();
                    prefetch(self.x.as_ptr().wrapping_add(here + ahead).cast());
                    let next = if pair < pairs { load::<S>(self.x, after) } else { zero };
                    let next_squares = squares_of::<S>(next);
                    let sums = sums_of_five::<S>(squares[0], squares[1], next_squares);
                    let even = power::<S>(S::fma(scale, sums[0], k), beta);
                    let odd = power::<S>(S::fma(scale, sums[1], k), beta);
                    to.put::<S>(here, [S::mul(x[0], even), S::mul(x[1], odd)]);
                    (x, squares, here) = (next, [squares[1], next_squares], after);
                }
            }
        }
    }

    /// dx of one position, for as many lanes as a vector has, from `first` on: in one walk, whose sums of terms are a pair
    /// behind the sums of squares that the terms need. With `relu`, zero where x is not positive.
    ///
    /// # Safety
    /// The position is within x and `dx`; what `dy` asks.
    #[inline(always)]
    pub unsafe fn gradient<S: Simd>(&self, first: usize, dy: &mut impl Source, relu: bool, dx: Ptr) {
        let Lrn { k, alpha, beta, channels, towers, .. } = self.lrn;
        let pairs = channels / towers / 2;
        let ahead = self.map.position_len();
        // SAFETY: the caller's promise.
        unsafe {
            let (k, scale) = (S::splat(k), S::splat(alpha));
            let factor = S::splat(-2.0 * alpha * beta);
            let zero = [S::zero(); 2];
            for tower in 0..towers {
                // Where the pairs before, at and after the one whose squares are summed lie.
                let mut walk = Walk::new(&self.map, first, tower * pairs);
                let (mut before, mut here) = (0, walk.step());
                // x and squares of the pairs before and at it.
                let mut x = [zero, load::<S>(self.x, here)];
                let mut squares = [zero, squares_of::<S>(x[1])];
                // The terms g·x·d^(−β−1) of the two pairs before it; g·d^−β of the last.
                let (mut terms, mut product) = ([zero; 2], zero);
                for pair in 0..=pairs {
                    let after = walk.step();
                    prefetch(self.x.as_ptr().wrapping_add(here + ahead).cast());
                    let next = if pair + 1 < pairs { load::<S>(self.x, after) } else { zero };
                    let next_squares = squares_of::<S>(next);
                    let (mut term, mut next_product) = (zero, zero);
                    if pair < pairs {
                        let sums = sums_of_five::<S>(squares[0], squares[1], next_squares);
                        let (p0, i0) = powers::<S>(S::fma(scale, sums[0], k), beta);
                        let (p1, i1) = powers::<S>(S::fma(scale, sums[1], k), beta);
                        let g = dy.next::<S>(here);
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
                        if relu {
                            even = S::where_positive(x[0][0], even);
                            odd = S::where_positive(x[0][1], odd);
                        }
                        S::store_pairs(dx.at(before).cast(), even, odd);
                    }
                    (x, squares) = ([x[1], next], [squares[1], next_squares]);
                    (terms, product) = ([terms[1], term], next_product);
                    (before, here) = (here, after);
                }
            }
        }
    }
}

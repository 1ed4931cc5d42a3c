//! What follows the sums of a convolution before they are rounded and stored.

use crate::bf16::engine::{C_STRIDE, Rest};
use crate::bf16::{EDGE, PICTURES};
use crate::simd::Simd;

/// What follows a sum.
#[derive(Clone, Copy)]
pub(super) enum Finish<'a> {
    /// Adds the channel's bias; then perhaps a ReLU.
    Bias { bias: &'a [f32], relu: bool },
    /// Zero where this map, which came out of a ReLU, is not positive.
    Mask(&'a [u32]),
    /// Nothing.
    Store,
}

/// The bias of channels that have none: what it is added to keeps even its zeros' signs.
static NO_BIAS: [f32; 2 * EDGE] = [-0.0; 2 * EDGE];

impl Finish<'_> {
    /// What is to be done with the sums of `valid` channels from `channel` on, all pictures of a position, whose pairs go to
    /// `target` from `at` on: an odd channel at the end is left out.
    #[inline(always)]
    pub(super) fn rest(
        &self,
        sums: *const f32,
        channel: usize,
        valid: usize,
        at: usize,
        target: *mut u32,
    ) -> Rest {
        let (mut bias, mut mask, mut least) = (NO_BIAS.as_ptr(), std::ptr::null(), f32::NEG_INFINITY);
        match self {
            Finish::Bias { bias: all, relu } => {
                bias = all[channel..][..valid].as_ptr();
                least = if *relu { 0.0 } else { least };
            }
            Finish::Mask(x) => mask = x[at..][..valid / 2 * PICTURES].as_ptr(),
            Finish::Store => {}
        }
        Rest { sums, to: target.wrapping_add(at), bias, mask, least, pairs: valid / 2 }
    }

    /// The sums of `valid` channels from `channel` on, rows of C, for the first `lanes` pictures of a position, to the pairs
    /// from `at` on.
    ///
    /// # Safety
    /// As [`Finish::store`], for all of these pairs; C holds the sums.
    #[inline(always)]
    pub(super) unsafe fn store_panel<S: Simd>(
        &self,
        sums: *const f32,
        channel: usize,
        valid: usize,
        at: usize,
        lanes: usize,
        target: *mut u32,
    ) {
        let whole = valid / 2 * 2;
        // A loop for each of what follows, so that nothing is asked within one. SAFETY: the caller's promise.
        unsafe {
            match self {
                Finish::Bias { bias, relu } => {
                    let bias = &bias[channel..][..whole];
                    // In this order a NaN passes through the maximum.
                    let least = S::splat(if *relu { 0.0 } else { f32::NEG_INFINITY });
                    for (p, bias) in bias.chunks_exact(2).enumerate() {
                        let (b_even, b_odd) = (S::splat(bias[0]), S::splat(bias[1]));
                        for n in (0..lanes).step_by(S::LANES) {
                            let sums = sums.add(2 * p * C_STRIDE + n);
                            let even = S::max(least, S::add(S::load(sums), b_even));
                            let odd = S::max(least, S::add(S::load(sums.add(C_STRIDE)), b_odd));
                            S::store_pairs(target.add(at + p * PICTURES + n), even, odd);
                        }
                    }
                }
                Finish::Mask(x) => {
                    for p in 0..whole / 2 {
                        for n in (0..lanes).step_by(S::LANES) {
                            let sums = sums.add(2 * p * C_STRIDE + n);
                            let at = at + p * PICTURES + n;
                            let (x_even, x_odd) = S::load_pairs(x.as_ptr().add(at));
                            let even = S::where_positive(x_even, S::load(sums));
                            let odd = S::where_positive(x_odd, S::load(sums.add(C_STRIDE)));
                            S::store_pairs(target.add(at), even, odd);
                        }
                    }
                }
                Finish::Store => {
                    for p in 0..whole / 2 {
                        for n in (0..lanes).step_by(S::LANES) {
                            let sums = sums.add(2 * p * C_STRIDE + n);
                            let (even, odd) = (S::load(sums), S::load(sums.add(C_STRIDE)));
                            S::store_pairs(target.add(at + p * PICTURES + n), even, odd);
                        }
                    }
                }
            }
            if whole < valid {
                for n in (0..lanes).step_by(S::LANES) {
                    let even = S::load(sums.add(whole * C_STRIDE + n));
                    let at = at + whole / 2 * PICTURES;
                    self.store::<S>((even, S::zero()), channel + whole, false, at, n, target);
                }
            }
        }
    }

    /// Two channels' sums at one position, for the `LANES` pictures from `n` on, to the pair at `at` of the map `target`.
    /// `channel` counts over the whole map; if the odd one does not exist, its half becomes zero.
    ///
    /// # Safety
    /// The pair is within the map, which the mask is as large as, and nothing else touches it.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(
        &self,
        (even, odd): (S::V, S::V),
        channel: usize,
        odd_exists: bool,
        at: usize,
        n: usize,
        target: *mut u32,
    ) {
        debug_assert!(n < PICTURES);
        // SAFETY: the caller's promise.
        unsafe {
            let (mut even, mut odd) = (even, if odd_exists { odd } else { S::zero() });
            match self {
                Finish::Bias { bias, relu } => {
                    even = S::add(even, S::splat(bias[channel]));
                    if odd_exists {
                        odd = S::add(odd, S::splat(bias[channel + 1]));
                    }
                    if *relu {
                        // In this order a NaN passes through.
                        even = S::max(S::zero(), even);
                        odd = S::max(S::zero(), odd);
                    }
                }
                Finish::Mask(x) => {
                    let (x_even, x_odd) = S::load_pairs(x.as_ptr().add(at + n));
                    even = S::where_positive(x_even, even);
                    odd = S::where_positive(x_odd, odd);
                }
                Finish::Store => {}
            }
            S::store_pairs(target.add(at + n), even, odd);
        }
    }
}

//! What follows the sums of a convolution before they are rounded and stored.

use crate::bf16::PICTURES;
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

impl Finish<'_> {
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

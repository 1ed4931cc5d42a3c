//! Weights and inputs in f32, as the f32 executor has them: lanes are inputs, so that one picture fills them.

use super::{AHEAD_BYTES, ROWS, Weights};
use crate::simd::{Simd, prefetch, vectors};

/// w (O, I) where it lies. Inputs are rows (N, I).
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    outputs: usize,
    inputs: usize,
    w: &'a [f32],
}

impl<'a> Plain<'a> {
    /// `w` as `outputs` rows.
    ///
    /// # Panics
    /// If it is not.
    pub fn new(outputs: usize, w: &'a [f32]) -> Plain<'a> {
        assert!(outputs > 0 && w.len().is_multiple_of(outputs), "weights");
        Plain { outputs, inputs: w.len() / outputs, w }
    }
}

impl Weights for Plain<'_> {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn row_len(&self) -> usize {
        self.inputs
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const N: usize>(&self, group: usize, x: *const f32) -> [[f32; N]; ROWS] {
        // SAFETY: the caller's promise. A row beyond the last output is the last one again; asking for memory ahead reads
        // nothing.
        unsafe {
            let mut w = [self.w.as_ptr(); ROWS];
            for (row, w) in w.iter_mut().enumerate() {
                *w = w.add((group * ROWS + row).min(self.outputs - 1) * self.inputs);
            }
            let mut sums = [[S::zero(); N]; ROWS];
            for (i, n) in vectors(self.inputs, S::LANES) {
                let mut values = [S::zero(); N];
                for picture in 0..N {
                    values[picture] = S::load_part(x.add(picture * self.inputs + i), n);
                }
                for row in 0..ROWS {
                    prefetch(w[row].add(i).wrapping_byte_add(AHEAD_BYTES / ROWS));
                    let weights = S::load_part(w[row].add(i), n);
                    for picture in 0..N {
                        sums[row][picture] = S::fma(weights, values[picture], sums[row][picture]);
                    }
                }
            }
            let mut dots = [[0.0; N]; ROWS];
            for row in 0..ROWS {
                for picture in 0..N {
                    dots[row][picture] = S::sum(sums[row][picture]);
                }
            }
            dots
        }
    }
}

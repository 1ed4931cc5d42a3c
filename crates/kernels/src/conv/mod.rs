//! Convolution in blocks of pictures: maps are (blocks, H, W, block, C), so that the rows of every tile are pictures at
//! one position. Taps that fall outside the map are skipped exactly, for any stride and padding; nothing is padded.
//!
//! [`forward`] and [`backward_input`] are one loop over differently packed weights ([`Packed`]); [`backward_weight`] is
//! another.

mod correlate;
mod pack;
mod weight;

pub use correlate::{Epilogue, backward_input, forward};
pub use pack::{Fold, Packed, pack_backward, pack_forward};
pub use weight::{WeightPlan, backward_weight};

/// Weights of a chunk, bytes: half of a 48-KiB L1, which leaves room for the activations.
const CHUNK_BYTES: usize = 24 << 10;
/// Most taps in a chunk: bounds an array on the stack.
const CHUNK_TAPS: usize = 64;

/// One axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Input size, pixels.
    pub input: usize,
    /// Output size, pixels.
    pub output: usize,
    /// Kernel size, pixels.
    pub kernel: usize,
    /// Step between windows, pixels.
    pub stride: usize,
    /// Zeros before the first input pixel. Any number may follow the last.
    pub pad: usize,
}

impl Axis {
    /// The input position that output `o` reads through tap `t`, if it is within the map.
    #[inline(always)]
    pub(crate) fn forward(&self, o: usize, t: usize) -> Option<usize> {
        (o * self.stride + t).checked_sub(self.pad).filter(|&i| i < self.input)
    }

    /// The output positions whose windows lie within the map.
    pub(crate) fn inside(&self) -> std::ops::Range<usize> {
        let first = self.pad.div_ceil(self.stride);
        let end = (self.input + self.pad).checked_sub(self.kernel).map_or(0, |last| last / self.stride + 1);
        first..end.min(self.output)
    }

    /// The output position that reads input `i` through tap `t`, if there is one.
    #[inline(always)]
    pub(crate) fn backward(&self, i: usize, t: usize) -> Option<usize> {
        let reach = (i + self.pad).checked_sub(t)?;
        Some(reach / self.stride).filter(|&o| reach % self.stride == 0 && o < self.output)
    }
}

/// The geometry of a convolution of pictures in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Pictures that are interleaved at each position.
    pub block: usize,
    /// C, input channels over all groups.
    pub c: usize,
    /// K, filters over all groups.
    pub k: usize,
    /// G.
    pub groups: usize,
    /// H, P, R.
    pub rows: Axis,
    /// W, Q, S.
    pub columns: Axis,
}

impl Geometry {
    /// Elements of the input for `blocks` blocks.
    pub fn input_len(&self, blocks: usize) -> usize {
        blocks * self.rows.input * self.columns.input * self.block * self.c
    }

    /// Elements of the output for `blocks` blocks.
    pub fn output_len(&self, blocks: usize) -> usize {
        blocks * self.rows.output * self.columns.output * self.block * self.k
    }

    fn taps(&self) -> usize {
        self.rows.kernel * self.columns.kernel
    }
}

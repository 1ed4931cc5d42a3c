//! Linear layers on flat maps (blocks, pairs of features, 32 pictures): x (I), y (O), w (O, I) in f32, its rows
//! [`row_stride`] apart.
//!
//! Weights are the large operand; each pass reads the master weights from memory once and rounds them on the way, so that
//! no rounded copy of them takes room or traffic while training. [`Rounded`] is such a copy, for inference, where it
//! halves what has to be read.

mod backward;
mod forward;

use super::EDGE;

pub use crate::linear::Backward;
pub use backward::{backward, unzip, unzipped_len};
pub use forward::{Output, Rounded, Weights, forward};

/// Elements from a row of the master weights (and their momentum) to the next: an odd number of lines. A strip of columns is
/// a few lines of every row, and rows a power of two apart fall on few sets of a cache, which loses them before they are
/// used: of fc7's, 16 KiB long, an L2 of 1 MiB and 16 ways holds 64, and a turn of 128 outputs wants 512 (weights and
/// momentum, its own and those asked for ahead).
pub fn row_stride(inputs: usize) -> usize {
    (inputs.div_ceil(EDGE) | 1) * EDGE
}

/// Elements of scratch that each thread needs for the passes of a layer over `blocks` blocks.
pub fn scratch_len(blocks: usize) -> usize {
    forward::scratch_len(blocks).max(backward::scratch_len(blocks))
}

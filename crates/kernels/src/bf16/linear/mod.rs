//! Linear layers on flat maps (blocks, pairs of features, 32 pictures): x (I), y (O), w (O, I) in f32, in
//! [`strips`] of 32 columns.
//!
//! Weights are the large operand; each pass reads the master weights from memory once and rounds them on the way, so that
//! no rounded copy of them takes room or traffic while training. [`Rounded`] is such a copy, for inference, where it
//! halves what has to be read.

mod backward;
mod forward;

use super::EDGE;
use crate::strips::Strips;

pub use crate::linear::Backward;
pub use backward::{backward, unzip, unzipped_len};
pub use forward::{Output, Rounded, Weights, forward};

/// Columns of a strip of the master weights (and their momentum): a step of a product.
const STRIP: usize = 2 * EDGE;

/// How the master weights and their momentum lie.
pub fn strips(outputs: usize, inputs: usize) -> Strips {
    Strips { rows: outputs, columns: inputs, width: STRIP }
}

/// Elements of scratch that each thread needs for the passes of a layer over `blocks` blocks.
pub fn scratch_len(blocks: usize) -> usize {
    forward::scratch_len(blocks).max(backward::scratch_len(blocks))
}

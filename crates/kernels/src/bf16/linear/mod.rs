//! Linear layers on flat maps (blocks, pairs of features, 32 pictures): x (I), y (O), w (O, I) in f32.
//!
//! Weights are the large operand; each pass reads the master weights from memory once and rounds them on the way, so that
//! no rounded copy of them takes room or traffic while training. [`Rounded`] is such a copy, for inference, where it
//! halves what has to be read.

mod backward;
mod forward;

pub use crate::linear::Backward;
pub use backward::{backward, unzip, unzipped_len};
pub use forward::{Output, Rounded, Weights, forward};

/// Elements of scratch that each thread needs for the passes of a layer over `blocks` blocks.
pub fn scratch_len(blocks: usize) -> usize {
    forward::scratch_len(blocks).max(backward::scratch_len(blocks))
}

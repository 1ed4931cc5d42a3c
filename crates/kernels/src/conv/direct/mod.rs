//! Convolution as it is defined: every tap of every window. Taps that fall outside the map are skipped exactly, for any
//! stride and padding; nothing is padded.

mod correlate;
mod pack;
mod single;
mod weight;

pub(super) use correlate::{SCRATCH_LEN, backward_input, forward};
pub(super) use pack::{Packed, pack};
pub(super) use weight::{WeightPlan, backward_weight};

/// Weights of a chunk, bytes: half of a 48-KiB L1, which leaves room for the activations.
const CHUNK_BYTES: usize = 24 << 10;
/// Most taps in a chunk: bounds an array on the stack.
const CHUNK_TAPS: usize = 64;

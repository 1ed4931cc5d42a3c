//! Linear layers in parts, on plain matrices: x (N, I), y (N, O), and w (O, I) as it lies in [`Strips`], of whole rows or of 32
//! columns. Weights are the large operand: each pass reads them from memory once and splits them on the way.

mod backward;
mod forward;

pub use backward::{backward, parts_len as backward_parts_len};
pub use forward::{forward, parts_len as forward_parts_len};

use super::cells::SIDE;
use crate::bf16::engine::Threefold;
use crate::strips::Strips;

/// Columns of a strip of weights that training reads best.
const STRIP: usize = SIDE;

/// How weights and their momentum lie best.
pub fn strips(outputs: usize, inputs: usize) -> Strips {
    Strips { rows: outputs, columns: inputs, width: STRIP }
}

/// Elements of scratch that each thread needs for the passes over `count` pictures.
pub fn scratch_len(count: usize) -> usize {
    forward::scratch_len(count.div_ceil(SIDE)).max(backward::scratch_len(count.div_ceil(SIDE)))
}

/// A product of cells: the left ones consecutive, the right ones `b_step` pairs apart.
fn cells(b_step: usize) -> Threefold {
    Threefold { rows: 2, columns: 2, a_row: SIDE, a_low: SIDE * SIDE, a_step: 2 * SIDE * SIDE, b_step }
}

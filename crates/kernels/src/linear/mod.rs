//! Linear layers: x (N, I), w (O, I) as [`Strips`] says, y (N, O).
//!
//! The weights are the large operand: each pass reads them from memory once, a block while the one before is multiplied. Forward, a
//! tile is rows of w by a panel of pictures; backward, one pass over a strip of columns of w yields the input gradient and the
//! weight gradient and applies the update, so that no weight gradient is ever stored.
//!
//! ```text
//! forward, for some outputs                            (a unit)
//!   for columns of a strip, panel of pictures          a block of w in L2, its x in L1
//! backward, for a strip of columns                     (a unit)
//!   for some outputs                                   a block of w in L2
//!     dx += dy w                                       in L2 until the last
//!     dw = dyᵀ x, tile by tile, and what it moves
//! ```

mod backward;
pub mod few;
mod forward;

pub use backward::{Backward, Cut, backward, bias_gradient, transpose, transposed_row};
pub use forward::{PackedPictures, forward};

use crate::strips::Strips;

/// Columns of w of a unit of the backward pass.
const STRIP: usize = 128;

/// How weights lie that are trained: in strips, since both passes go through blocks of 128 columns.
pub fn strips(outputs: usize, inputs: usize) -> Strips {
    Strips { rows: outputs, columns: inputs, width: STRIP.min(inputs) }
}

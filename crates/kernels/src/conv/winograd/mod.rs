//! Convolution of 3×3 and 5×5 windows by Winograd's minimal filtering ([`points`]), tiles of 4×4 outputs at a time: 36
//! products for 144, 64 for 400.
//!
//! Operands are sums and differences, rounded to f32 before they are multiplied, and outputs are again: results are off by
//! 1e-6 (3×3) to 4e-6 (5×5) of their own size, by the direct method by 2e-7 to 6e-7; measured on layers of AlexNet's shapes,
//! uniform numbers.

mod correlate;
mod pack;
mod points;
mod values;
mod weight;

pub(super) use correlate::{backward_input, forward};
pub(super) use pack::{Packed, pack};
pub(super) use weight::{WeightPlan, backward_weight};

use super::{Geometry, has_winograd_windows};

/// Channels of a group are a multiple of this: whole vectors on every instruction set.
const CHANNELS: usize = 16;

/// Whether a geometry is one that this method computes.
pub(super) fn fits(g: &Geometry) -> bool {
    has_winograd_windows(&g.rows, &g.columns)
        && [g.c, g.k].iter().all(|c| (c / g.groups).is_multiple_of(CHANNELS))
}

/// Whether it is faster than the direct method.
pub(super) fn pays(g: &Geometry) -> bool {
    // With fewer channels the sums of a point are too short for the work around them, with fewer pictures its weights are
    // read for too little, and in smaller maps most taps of the direct method fall on padding.
    fits(g)
        && [g.c, g.k].iter().all(|c| c / g.groups >= 32)
        && g.block >= 16
        && g.rows.output.min(g.columns.output) >= 4
}

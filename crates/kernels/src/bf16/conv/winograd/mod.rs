//! Convolution of 3×3 and 5×5 windows by Winograd's minimal filtering ([`points`]).
//!
//! Operands are rounded to bf16 once more, after the transformations, whose sums grow by √2 an axis: what is stored is off
//! by 1.6 to 1.8 times as much as by the direct method, whose own error is the rounding of weights and of results. On small
//! integers both are exact. It pays where products are slow beside everything else: on AVX-512, not on AMX.

mod correlate;
mod pack;
mod points;
mod transform;
mod weight;

pub(super) use correlate::correlate;
pub(super) use pack::{Packed, pack};
pub(super) use weight::{WeightPlan, backward_weight};

use super::Geometry;
use crate::bf16::EDGE;
use crate::conv::has_winograd_windows;
use points::{TAPS, filters};

/// Channels of a step and of a panel.
const STEP: usize = 2 * EDGE;

/// Terms of a point's sum, (filters of a window, channels), at least: with fewer than three steps there is too little to gain
/// for the work around them.
const LEAST_DEPTH: usize = 3 * STEP;

/// Most outputs along an axis. A weight gradient holds a block's operands at a row of points: 2 MiB a panel for this many.
const MOST_SIDE: usize = 32;

/// Whether forward pass and input gradient of a geometry are ones that this method computes: with splits of whole tiles of
/// channels.
pub(super) fn fits(g: &Geometry) -> bool {
    has_winograd_windows(&g.rows, &g.columns)
        && g.rows.output.max(g.columns.output) <= MOST_SIDE
        && [g.input, g.output].iter().all(|map| map.split_channels().is_multiple_of(EDGE))
}

/// Whether it also computes the weight gradient: of 3×3 windows, and splits of whole steps of channels. (Of 5×5 windows the
/// operands at a row of points would outgrow the last cache.)
pub(super) fn fits_weight(g: &Geometry) -> bool {
    fits(g)
        && g.rows.kernel == TAPS
        && [g.input, g.output].iter().all(|map| map.split_channels().is_multiple_of(STEP))
}

/// Whether it is faster than the direct method where products take most of the time.
pub(super) fn pays(g: &Geometry) -> bool {
    let deep = |channels: usize| channels / g.groups * filters(g.rows.kernel).pow(2) >= LEAST_DEPTH;
    // At least 4×4 outputs: below, most taps of the direct method fall on padding.
    fits(g)
        && deep(g.input.channels)
        && deep(g.output.channels)
        && g.rows.output >= 4
        && g.columns.output >= 4
}

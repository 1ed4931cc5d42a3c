//! Convolution of 3×3 and 5×5 windows by Winograd's minimal filtering ([`points`]), from 36 products at most: tiles of
//! 4×4 outputs of 3×3 windows (144 products by the definition), 2×2 outputs of 5×5 windows (100).
//!
//! A strided first layer becomes one of these: its columns are folded into channels already, and every s-th row is a row of a
//! map of its own, so that 11×11 windows with stride 4 over 3 channels are 3×3 windows over (4 rows, 4 columns, 3).
//!
//! Operands are sums and differences, rounded to f32 before they are multiplied, and outputs are again: results are off by
//! 1.2e-6 (3×3) to 4.5e-6 (5×5) of their own size, by the direct method by 2e-7 to 6e-7; measured on layers of AlexNet's shapes,
//! uniform numbers.

mod correlate;
mod pack;
mod points;
mod values;
mod weight;

pub(super) use correlate::{backward_input, forward};
pub(super) use pack::{Packed, pack};
pub(super) use weight::{WeightPlan, backward_weight};

use super::{Fold, Geometry, has_winograd_windows};
use points::taps_of;

/// Channels of a group are a multiple of this: whole vectors on every instruction set.
const CHANNELS: usize = 16;
/// Pictures that are transformed together where a picture's channels are not whole vectors.
const PICTURES: usize = 8;
/// Rows of a strided window that are maps of their own, at most.
const PIECES: usize = 4;

/// Rows of a window that move as one: a stride of them.
#[inline(always)]
fn pieces(g: &Geometry) -> usize {
    g.rows.stride
}

/// Whether all three passes of a geometry are ones that this method computes.
pub(super) fn fits(g: &Geometry) -> bool {
    has_winograd_windows(&g.rows, &g.columns)
        && [g.c, g.k].iter().all(|c| (c / g.groups).is_multiple_of(CHANNELS))
}

/// Whether forward pass and weight gradient are, of rows that are a stride apart and columns that are folded into channels: a
/// first layer's.
pub(super) fn fits_first(g: &Geometry) -> bool {
    let whole = |axis: &super::Axis| axis.inside().len() == axis.output;
    g.groups == 1
        && (2..=PIECES).contains(&g.rows.stride)
        && [&g.rows, &g.columns].iter().all(|axis| taps_of(axis) == 3)
        && (g.columns.stride, g.columns.pad) == (1, 0)
        && whole(&g.columns)
        && g.k.is_multiple_of(CHANNELS)
        && g.block.is_multiple_of(PICTURES)
        && (g.c * PICTURES).is_multiple_of(CHANNELS)
        && g.c * pieces(g) <= correlate::CHUNK
}

/// Whether it is faster than the direct method.
pub(super) fn pays(g: &Geometry) -> bool {
    // With fewer channels the sums of a point are too short for the work around them, for one picture its weights, four times
    // as many as the window's, are read for too little, and in smaller maps most taps of the direct method fall on padding.
    (fits(g) || fits_first(g))
        && [g.c * pieces(g), g.k].iter().all(|c| c / g.groups >= 16)
        && g.block >= 2
        && g.rows.output.min(g.columns.output) >= 4
}

/// Where tap (r, s) of the channels at `read`, (rows of a stride, C/G), lies in a filter of the canonical bank, if it has it.
#[inline(always)]
fn canonical(g: &Geometry, fold: Fold, read: usize, [r, s]: [usize; 2]) -> Option<usize> {
    let channels = g.c / g.groups;
    let row = r * g.rows.stride + read / channels;
    let (channel, column) = fold.canonical(channels / fold.fold, read % channels, s)?;
    (row < g.rows.kernel).then_some((channel * g.rows.kernel + row) * fold.kernel + column)
}

/// Elements of a filter of the canonical bank.
#[inline(always)]
fn filter_len(g: &Geometry, fold: Fold) -> usize {
    g.c / g.groups / fold.fold * g.rows.kernel * fold.kernel
}

//! Convolution as it is defined: every tap of every window.
//!
//! For each position of the target map, the source positions under one row of the window are consecutive in memory, and
//! so are the channels of a split at each: one run of the product's depth. Taps outside the map are left out. Where the
//! channels do not fill whole steps (48 of conv2's groups), weights are packed once for every way in which the window
//! overhangs the map's sides (`Walk`), each padded to whole steps.

mod correlate;
mod entering;
mod pack;
mod pooled;
mod walk;
mod weight;

pub use correlate::MOST_RUNS;
pub(super) use correlate::{SCRATCH_LEN, Target, correlate};
pub(super) use pack::{Packed, pack};
pub(super) use pooled::Pooled;
pub(super) use weight::{WeightPlan, backward_weight};

use entering::Entering;
use walk::Walk;

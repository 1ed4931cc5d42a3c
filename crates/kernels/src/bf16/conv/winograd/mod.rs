//! Convolution of 3×3 windows by Winograd's minimal filtering F(2×2, 3×3) (Winograd 1980; Lavin and Gray 2016).
//!
//! Along one axis, two neighbouring outputs of three taps need four products instead of six:
//!
//! ```text
//! y = Aᵀ [(G g) ⊙ (Bᵀ d)]       g 3 taps, d 4 inputs, y 2 outputs, ⊙ product by product
//!
//!      1  0 −1  0          1   0   0
//! Bᵀ = 0  1  1  0     G =  ½   ½   ½      Aᵀ = 1  1  1  0
//!      0 −1  1  0          ½  −½   ½           0  1 −1 −1
//!      0  1  0 −1          0   0   1
//! ```
//!
//! Along both, tiles of 2×2 outputs need 16 instead of 36. Each of these 16 *points* is a product of matrices over channels.
//! A map of odd size ends in a tile of one output, whose last input is padding: two of its taps count, and they are the
//! whole of it: G's first row, and a fifth that is the middle tap alone, in place of the second (`Strip`). So 13 outputs
//! take 26 products, and 37 taps lie within the map: 676 against 1,369 in the plane.
//!
//! Operands are rounded to bf16 once more, after the transformations, whose sums grow by √2 an axis: what is stored is off
//! by 1.6 to 1.8 times as much as by the direct method, whose own error is the rounding of weights and of results. On small
//! integers both are exact. It pays where products are slow beside everything else: on AVX-512, not on AMX.

mod correlate;
mod pack;
mod transform;
mod weight;

pub(super) use correlate::correlate;
pub(super) use pack::{Packed, pack};
pub(super) use weight::{WeightPlan, backward_weight};

use super::Geometry;
use crate::bf16::EDGE;

/// Channels of a step and of a panel: those of a split fill whole ones.
const STEP: usize = 2 * EDGE;

/// Points of a tile along an axis.
const SIDE: usize = 4;

/// Points of a tile.
const POINTS: usize = SIDE * SIDE;

/// Channels that a group must read, at least: with fewer, the sums of a point are too short for the work around them.
const LEAST_CHANNELS: usize = 64;

/// Most outputs along an axis. A weight gradient holds all tiles of a panel at once: 16 MiB for this many.
const MOST_SIDE: usize = 32;

/// Whether a geometry is one that this method computes: 3×3 windows at every position, one row of padding on each side, and
/// splits of whole steps of channels.
pub(super) fn fits(g: &Geometry) -> bool {
    let axes = [g.rows, g.columns];
    axes.iter()
        .all(|a| a.kernel == 3 && a.stride == 1 && a.pad == 1 && a.input == a.output && a.output <= MOST_SIDE)
        && [g.input, g.output].iter().all(|map| map.split_channels().is_multiple_of(STEP))
}

/// Whether it is faster than the direct method where products take most of the time.
pub(super) fn pays(g: &Geometry) -> bool {
    let channels = [g.input, g.output].map(|map| map.channels / g.groups);
    // At least 4×4 outputs: below, most taps of the direct method fall on padding.
    fits(g) && channels.iter().all(|&c| c >= LEAST_CHANNELS) && g.rows.output >= 4 && g.columns.output >= 4
}

/// One or two outputs along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strip {
    /// The first output; the first of its four inputs is the one before.
    first: usize,
    /// One only at the end of an odd axis.
    outputs: usize,
}

impl Strip {
    /// Strip `i` of an axis of so many outputs.
    fn at(i: usize, outputs: usize) -> Strip {
        Strip { first: 2 * i, outputs: (outputs - 2 * i).min(2) }
    }

    /// Points along the axis that have a product.
    fn points(self) -> usize {
        if self.outputs == 2 { SIDE } else { 2 }
    }

    /// The point whose product has weights `weights` (a row of G, the middle tap being the fifth), if there is one.
    fn point(self, weights: usize) -> Option<usize> {
        match (self.outputs, weights) {
            (2, 0..SIDE) | (1, 0) => Some(weights),
            (1, SIDE) => Some(1),
            _ => None,
        }
    }
}

/// Rows of G along an axis: the fifth only where a strip has one output.
fn weight_points(outputs: usize) -> usize {
    SIDE + outputs % 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_of_a_strip_has_its_weights() {
        for outputs in 1..8usize {
            let strips: Vec<Strip> = (0..outputs.div_ceil(2)).map(|i| Strip::at(i, outputs)).collect();
            assert_eq!(strips.iter().map(|s| s.outputs).sum::<usize>(), outputs);
            for strip in strips {
                let mut points: Vec<usize> =
                    (0..weight_points(outputs)).filter_map(|weights| strip.point(weights)).collect();
                points.sort_unstable();
                assert_eq!(points, (0..strip.points()).collect::<Vec<_>>(), "{strip:?}");
            }
        }
    }
}

//! Convolution of 3×3 and 5×5 windows by Winograd's minimal filtering ([`crate::winograd`]).
//!
//! Sums and differences of operands are rounded to f32 before they are multiplied, so results are off by about twice as much
//! as by the direct method: still f32's own error, and none on small integers.

mod correlate;
mod pack;
mod weight;

pub(super) use correlate::{backward_input, forward};
pub(super) use pack::{Packed, pack};
pub(super) use weight::{WeightPlan, backward_weight};

use super::Geometry;
use crate::simd::Simd;
use crate::winograd::{FIRST, POINTS, SECOND, SIDE, has_windows, positions, row_of_b};

/// Channels of a group are a multiple of this: whole vectors on every instruction set.
const CHANNELS: usize = 16;

/// Whether a geometry is one that this method computes.
pub(super) fn fits(g: &Geometry) -> bool {
    has_windows(&g.rows, &g.columns) && [g.c, g.k].iter().all(|c| (c / g.groups).is_multiple_of(CHANNELS))
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

/// What lies outside a map.
static ZEROS: [f32; CHANNELS] = [0.0; CHANNELS];

/// The 4×4 positions that a tile reads of a block: where each begins, or none if it is outside.
struct Inputs([Option<*const f32>; POINTS]);

impl Inputs {
    /// Of the tile whose first input is at `first` of a map of height × width positions, each `len` long, with `pad` of padding
    /// before them.
    fn of(map: *const f32, extents: [usize; 2], len: usize, first: [usize; 2], pad: usize) -> Inputs {
        Inputs(positions(extents, first, pad).map(|at| at.map(|position| map.wrapping_add(position * len))))
    }

    /// Row `i` of V = Bᵀ d B: `channels` channels of `pictures` pictures, which lie `stride` apart, to consecutive rows;
    /// point j's begin at `to + j * distance`.
    ///
    /// # Safety
    /// The positions and `to` have them.
    #[inline(always)]
    unsafe fn row<S: Simd>(
        &self,
        i: usize,
        pictures: usize,
        stride: usize,
        channels: usize,
        to: *mut f32,
        distance: usize,
    ) {
        // The two rows of positions that this row of Bᵀ has, and 0 as the step where there is nothing to step over.
        let mut from = [[(ZEROS.as_ptr(), 0); 2]; SIDE];
        for (j, from) in from.iter_mut().enumerate() {
            for (from, row) in from.iter_mut().zip([FIRST[i], SECOND[i]]) {
                if let Some(position) = self.0[row * SIDE + j] {
                    *from = (position, 1);
                }
            }
        }
        for n in 0..pictures {
            for c in (0..channels).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let at = n * stride + c;
                    let mut down = [S::zero(); SIDE];
                    for j in 0..SIDE {
                        let [(a, a_step), (b, b_step)] = from[j];
                        down[j] = row_of_b::<S>(i, S::load(a.add(at * a_step)), S::load(b.add(at * b_step)));
                    }
                    for j in 0..SIDE {
                        let v = row_of_b::<S>(j, down[FIRST[j]], down[SECOND[j]]);
                        S::store(to.add(j * distance + n * channels + c), v);
                    }
                }
            }
        }
    }
}

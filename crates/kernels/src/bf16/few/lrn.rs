//! Local response normalization across maps (see [`crate::lrn`]), y = x·d^−β, forward, on a few pictures.
//!
//! The channels of a position are widened to a row of scratch, with zeros on both sides of each tower, so that a window is
//! a few unaligned loads.

use super::{PictureLayout, widen_values};
use crate::bf16::lrn::power;
use crate::bf16::{pairs, round_values};
use crate::lrn::{Lrn, MARGIN, window_sum};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, vectors};

/// y = x·d^−β for `count` pictures. y's border is not written.
pub fn forward(ctx: &mut Context, lrn: &Lrn, map: &PictureLayout, count: usize, x: &[f32], y: &mut [f32]) {
    let len = count * map.picture_len();
    assert!(x.len() >= len && y.len() >= len, "maps");
    assert!(lrn.channels == map.channels && map.channels.is_multiple_of(lrn.towers), "towers");
    assert!(lrn.size >= 1 && lrn.size <= MARGIN, "window");
    ctx.run(&Forward { lrn: *lrn, map: *map, count, x: pairs(x), y: Ptr::from_mut(y) });
}

/// Elements of scratch that each thread needs: the values of a position, and the squares of its towers.
pub fn scratch_len(lrn: &Lrn) -> usize {
    values_len(lrn) + lrn.towers * tower_len(lrn)
}

/// A value for every channel, room for an empty half and for the last vector.
fn values_len(lrn: &Lrn) -> usize {
    lrn.channels + 16
}

fn tower_len(lrn: &Lrn) -> usize {
    (lrn.channels / lrn.towers).next_multiple_of(16) + 2 * MARGIN
}

struct Forward<'a> {
    lrn: Lrn,
    map: PictureLayout,
    count: usize,
    x: &'a [u32],
    y: Ptr,
}

impl Kernel for Forward<'_> {
    /// Rows.
    fn units(&self) -> usize {
        self.count * self.map.height
    }

    fn scratch_len(&self) -> usize {
        scratch_len(&self.lrn)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let Forward { lrn: Lrn { size, k, alpha, beta, channels, towers }, map, .. } = *self;
        let (width, split_channels) = (channels / towers, map.split_channels());
        let start = unit / map.height * map.picture_len();
        let (values, squares) = (scratch, scratch.wrapping_add(values_len(&self.lrn)));
        // SAFETY: positions are within the maps, whose lengths were checked, and a unit owns its row of y. Rows of scratch
        // have room for the last vector, and margins at least as wide as half a window.
        unsafe {
            squares.write_bytes(0, towers * tower_len(&self.lrn));
            for w in 0..map.width {
                let at = |split: usize| start + map.at(split, unit % map.height, w);
                for split in 0..map.splits {
                    // An empty half goes where the next split begins, which overwrites it, or beyond.
                    let to = values.add(split * split_channels);
                    widen_values(self.x.as_ptr().add(at(split)), split_channels, to);
                }
                for tower in 0..towers {
                    let x = values.add(tower * width);
                    let s = squares.add(tower * tower_len(&self.lrn) + MARGIN);
                    for (c, n) in vectors(width, S::LANES) {
                        let v = S::load_part(x.add(c), n);
                        S::store(s.add(c), S::mul(v, v));
                    }
                    for (c, n) in vectors(width, S::LANES) {
                        let sum = window_sum::<S>(s.add(c).sub(size / 2), size);
                        let power = power::<S>(S::fma(S::splat(alpha), sum, S::splat(k)), beta);
                        S::store_part(x.add(c), S::mul(S::load_part(x.add(c), n), power), n);
                    }
                }
                for split in 0..map.splits {
                    let from = values.add(split * split_channels);
                    round_values::<S>(from, split_channels, self.y.at(at(split)).cast());
                }
            }
        }
    }
}

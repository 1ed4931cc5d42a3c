//! V = Bᵀ d B: what the tiles of a map are at the points.

use super::points::{POINTS, Strip, at_points, combine};
use super::{CHANNELS, PICTURES};
use crate::conv::{Axis, Geometry};
use crate::simd::Simd;
use std::ops::Range;

/// The inputs of a tile.
pub(super) struct Inputs {
    strips: [Strip; 2],
    /// The longest strips of both axes.
    longest: [Strip; 2],
    /// Which of them are not padding, along both axes.
    inside: [Range<usize>; 2],
    /// Where the first of these begins.
    first: *const f32,
    /// From a position to the one below.
    below: usize,
    /// From a position to the next.
    len: usize,
}

impl Inputs {
    /// Of the tile of two strips in a map of one block, whose positions are `len` elements each; of rows that are a stride
    /// apart, those that begin with the window's row `piece`.
    pub(super) fn of(map: *const f32, g: &Geometry, len: usize, strips: [Strip; 2], piece: usize) -> Inputs {
        let inside = |axis: &Axis, strip: Strip, piece: usize| {
            let first = strip.first * axis.stride + piece;
            let before = axis.pad.saturating_sub(first).div_ceil(axis.stride);
            let end = (axis.input + axis.pad).saturating_sub(first).div_ceil(axis.stride).min(strip.points);
            before.min(end)..end
        };
        let inside = [inside(&g.rows, strips[0], piece), inside(&g.columns, strips[1], 0)];
        let h = ((strips[0].first + inside[0].start) * g.rows.stride + piece).saturating_sub(g.rows.pad);
        let w = (strips[1].first + inside[1].start).saturating_sub(g.columns.pad);
        let first = map.wrapping_add((h * g.columns.input + w) * len);
        let longest = [Strip::at(&g.rows, 0), Strip::at(&g.columns, 0)];
        Inputs { strips, longest, inside, first, below: g.rows.stride * g.columns.input * len, len }
    }

    /// All points of `pictures` pictures, which lie `stride` apart and have `channels` channels: for each point, at its place
    /// among the longest strips', `distance` elements, of which the pictures are the first, `step` elements each.
    ///
    /// # Safety
    /// The positions, `to` and `buffer` (the points of one picture) have them.
    #[inline(always)]
    pub(super) unsafe fn at_points<S: Simd>(
        &self,
        [pictures, stride, channels]: [usize; 3],
        to: *mut f32,
        step: usize,
        distance: usize,
        buffer: *mut f32,
    ) {
        let [row, column] = self.strips;
        let [down, across] = &self.inside;
        let last = (self.longest[1].points - 1) * distance;
        let mut factors = [[0.0; POINTS]; POINTS];
        for (i, factors) in factors[..row.points].iter_mut().enumerate() {
            factors[..down.len()].copy_from_slice(&row.inputs_at(i)[down.clone()]);
        }
        let factors = &factors[..row.points];
        for n in 0..pictures {
            // SAFETY: the caller's promise.
            unsafe {
                for j in 0..column.points {
                    let mut from = [std::ptr::null(); POINTS];
                    let mut used = 0;
                    if across.contains(&j) {
                        let first = self.first.add((j - across.start) * self.len + n * stride);
                        for k in 0..down.len() {
                            from[k] = first.add(k * self.below);
                        }
                        used = down.len();
                    }
                    let to = buffer.add(j * channels);
                    combine::<S>(&from[..used], factors, channels, stride, to, column.points * channels);
                }
                for i in 0..row.points {
                    let from = buffer.add(i * column.points * channels);
                    let place = row.place(self.longest[0], i) * self.longest[1].points;
                    let to = to.add(place * distance + n * step);
                    match column.points {
                        3 => to_points::<S, 3>(from, channels, to, distance, last),
                        4 => to_points::<S, 4>(from, channels, to, distance, last),
                        5 => to_points::<S, 5>(from, channels, to, distance, last),
                        _ => to_points::<S, 6>(from, channels, to, distance, last),
                    }
                }
            }
        }
    }
}

/// Elements that [`Inputs::at_points`] has of a lot: see [`lots`].
pub(super) fn lot_len(channels: usize) -> usize {
    if channels.is_multiple_of(CHANNELS) { channels } else { PICTURES * channels }
}

/// How [`Inputs::at_points`] goes along `pictures` pictures of `channels` channels, of `stride` at a position: number,
/// stride, length. Where the channels are not whole vectors some pictures go together, the last of them perhaps without a picture.
pub(super) fn lots(pictures: usize, stride: usize, channels: usize) -> [usize; 3] {
    let len = lot_len(channels);
    if len == channels {
        [pictures, stride, len]
    } else {
        assert_eq!(stride, channels, "whole positions");
        [pictures.div_ceil(PICTURES), len, len]
    }
}

/// Bᵀ along a row of N columns at `from`, `channels` elements each, to N points `distance` apart, the last of them at `last`.
#[inline(always)]
unsafe fn to_points<S: Simd, const N: usize>(
    from: *const f32,
    channels: usize,
    to: *mut f32,
    distance: usize,
    last: usize,
) {
    for c in (0..channels).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut d = [S::zero(); N];
            for k in 0..N {
                d[k] = S::load(from.add(k * channels + c));
            }
            let v = at_points::<S, N>(d);
            for j in 0..N {
                let at = if j + 1 < N { j * distance } else { last };
                S::store(to.add(at + c), v[j]);
            }
        }
    }
}

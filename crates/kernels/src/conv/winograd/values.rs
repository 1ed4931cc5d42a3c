//! V = Bᵀ d B: what the tiles of a map are at the points.

use super::points::{POINTS, Strip, at_points};
use super::{CHANNELS, PICTURES};
use crate::conv::{Axis, Geometry};
use crate::simd::{Simd, prefetch};
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
        for n in 0..pictures {
            let first = self.first.wrapping_add(n * stride);
            // SAFETY: the caller's promise.
            unsafe {
                for j in 0..column.points {
                    let mut lines = [std::ptr::null(); POINTS];
                    if across.contains(&j) {
                        let first = first.add((j - across.start) * self.len);
                        for k in down.clone() {
                            lines[k] = first.add((k - down.start) * self.below);
                        }
                    }
                    let distance = column.points * channels;
                    let last = (row.points - 1) * distance;
                    let to = Lines { first: buffer.add(j * channels), distance, last };
                    transform::<S>(&lines[..row.points], channels, Some(stride), to);
                }
                for i in 0..row.points {
                    let mut lines = [std::ptr::null(); POINTS];
                    for (j, line) in lines[..column.points].iter_mut().enumerate() {
                        *line = buffer.add((i * column.points + j) * channels).cast_const();
                    }
                    let place = row.place(self.longest[0], i) * self.longest[1].points;
                    let to = to.add(place * distance + n * step);
                    transform::<S>(
                        &lines[..column.points],
                        channels,
                        None,
                        Lines { first: to, distance, last },
                    );
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

/// Where the points of some lines go: `distance` elements apart, but for the last one, infinity.
#[derive(Clone, Copy)]
struct Lines {
    first: *mut f32,
    distance: usize,
    /// From the first to the last.
    last: usize,
}

/// Bᵀ of lines of `len` elements, those of padding null: as many lines. What lies `ahead` of them is asked for.
///
/// # Safety
/// All lines have so many elements, whole vectors.
#[inline(always)]
unsafe fn transform<S: Simd>(lines: &[*const f32], len: usize, ahead: Option<usize>, to: Lines) {
    // SAFETY: passed on from the caller.
    unsafe {
        match lines.len() {
            3 => transform_lines::<S, 3>(lines, len, ahead, to),
            4 => transform_lines::<S, 4>(lines, len, ahead, to),
            5 => transform_lines::<S, 5>(lines, len, ahead, to),
            _ => transform_lines::<S, 6>(lines, len, ahead, to),
        }
    }
}

/// [`transform`] of N lines.
#[inline(always)]
unsafe fn transform_lines<S: Simd, const N: usize>(
    from: &[*const f32],
    len: usize,
    ahead: Option<usize>,
    to: Lines,
) {
    let mut lines = [std::ptr::null(); N];
    lines.copy_from_slice(from);
    let padded = lines.iter().any(|line| line.is_null());
    for c in (0..len).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut d = [S::zero(); N];
            for k in 0..N {
                if !padded || !lines[k].is_null() {
                    d[k] = S::load(lines[k].add(c));
                }
                if let Some(ahead) = ahead {
                    prefetch(lines[k].wrapping_add(c + ahead));
                }
            }
            let v = at_points::<S, N>(d);
            for j in 0..N {
                let at = if j + 1 < N { j * to.distance } else { to.last };
                S::store(to.first.add(at + c), v[j]);
            }
        }
    }
}

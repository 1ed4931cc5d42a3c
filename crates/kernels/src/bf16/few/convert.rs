//! Changes of layout: pixels to a map, maps to flat rows of pairs, and out of both.

use super::PictureLayout;
use crate::bf16::{EDGE, pairs, pairs_mut, round_values, widen};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// How pixels, (N, H, W, C) in f32, become map 0. A strided first convolution reads `fold` × `fold` pixels as the
/// channels of one position, in the order (row, column, channel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// C of the pixels.
    pub channels: usize,
    /// H of the pixels.
    pub height: usize,
    /// W of the pixels.
    pub width: usize,
    /// Pixels folded along each axis; 1 leaves the map as it is.
    pub fold: usize,
    /// Zeros before the first row and column of pixels that are folded.
    pub pad: usize,
    /// One split.
    pub map: PictureLayout,
}

impl Entry {
    /// Elements of scratch that each thread needs: the values of a row of map 0.
    pub fn scratch_len(&self) -> usize {
        self.map.width * self.map.channels
    }
}

/// Rounds the pixels of `count` pictures to map 0.
pub fn enter(ctx: &mut Context, entry: &Entry, count: usize, pixels: &[f32], to: &mut [f32]) {
    let Entry { channels, height, width, fold, map, .. } = *entry;
    assert!(map.splits == 1 && map.channels == channels * fold * fold, "map 0 of the folded pixels");
    assert!(pixels.len() >= count * height * width * channels, "pixels");
    assert!(to.len() >= count * map.picture_len(), "map 0");
    ctx.run(&Enter { entry: *entry, count, pixels, to: Ptr::from_mut(to) });
}

struct Enter<'a> {
    entry: Entry,
    count: usize,
    pixels: &'a [f32],
    to: Ptr,
}

impl Kernel for Enter<'_> {
    /// Rows of map 0.
    fn units(&self) -> usize {
        self.count * self.entry.map.height
    }

    fn scratch_len(&self) -> usize {
        self.entry.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let Entry { height, width, channels, fold, pad, map } = self.entry;
        let (n, h) = (unit / map.height, unit % map.height);
        let picture = &self.pixels[n * height * width * channels..][..height * width * channels];
        // SAFETY: this many elements of scratch were asked for.
        let row = unsafe { std::slice::from_raw_parts_mut(scratch, self.scratch_len()) };
        for r in 0..fold {
            let y = (h * fold + r).checked_sub(pad).filter(|&y| y < height);
            self.gather(y.map(|y| &picture[y * width * channels..][..width * channels]), r, row);
        }
        // SAFETY: the map has room for this row, which is the unit's own.
        unsafe {
            let to = self.to.at(n * map.picture_len() + map.at(0, h, 0)).cast::<u32>();
            if map.channels.is_multiple_of(2) {
                return round_values::<S>(row.as_ptr(), row.len(), to);
            }
            for (w, position) in row.chunks_exact(map.channels).enumerate() {
                round_values::<S>(position.as_ptr(), map.channels, to.add(w * map.split_pairs()));
            }
        }
    }
}

impl Enter<'_> {
    /// Row `r` of the pixels that are folded to a row of positions; `None` is one of the padding.
    #[inline(always)]
    fn gather(&self, pixels: Option<&[f32]>, r: usize, to: &mut [f32]) {
        let Entry { width, channels, fold, pad, map, .. } = self.entry;
        let len = fold * channels;
        let parts = to.chunks_exact_mut(map.channels).map(|position| &mut position[r * len..][..len]);
        let Some(pixels) = pixels else {
            return parts.for_each(|part| part.fill(0.0));
        };
        // Positions that lie within the picture as a whole.
        let (first, end) = (pad.div_ceil(fold), (pad + width) / fold);
        for (w, part) in parts.enumerate() {
            if w >= first && w < end {
                copy(&pixels[(w * fold - pad) * channels..][..len], part);
                continue;
            }
            let columns = (w * fold).max(pad)..((w + 1) * fold).min(pad + width);
            part.fill(0.0);
            if !columns.is_empty() {
                let from = &pixels[(columns.start - pad) * channels..][..columns.len() * channels];
                copy(from, &mut part[(columns.start - w * fold) * channels..][..from.len()]);
            }
        }
    }
}

/// Copies a few values, without the call that copying many is worth.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    for (to, from) in to_rest.iter_mut().zip(from_rest) {
        *to = *from;
    }
}

/// Pairs of a flat row of `features` features: whole vectors, zero beyond the last feature.
pub fn flat_len(features: usize) -> usize {
    features.div_ceil(2 * EDGE) * EDGE
}

/// The values of a picture's map in canonical order (C, H, W) from the `first` on, as bits.
fn canonical<'a>(map: &'a PictureLayout, x: &'a [u32], first: usize) -> impl Iterator<Item = u16> + 'a {
    let (plane, width) = (map.height * map.width, map.width);
    let (mut at, mut high) = (0, false);
    // Where the next value is: its place is looked up at the beginning of a row, and steps through the rest.
    let (mut c, mut h, mut w) = (first / plane, first % plane / width, first % width);
    let mut known = false;
    std::iter::from_fn(move || {
        if !known {
            if c == map.channels {
                return None;
            }
            (at, high) = map.offset(c, h, w);
            known = true;
        }
        let bits = if high { x[at] >> 16 } else { x[at] } as u16;
        at += map.split_pairs();
        w += 1;
        if w == width {
            (w, h, known) = (0, h + 1, false);
            if h == map.height {
                (h, c) = (0, c + 1);
            }
        }
        Some(bits)
    })
}

/// Maps to flat rows in canonical order (C, H, W), still as pairs: neighbours in a row become the halves of a pair.
pub fn flatten(ctx: &mut Context, map: &PictureLayout, count: usize, x: &[f32], to: &mut [f32]) {
    /// Pairs that a thread takes at a time.
    const CHUNK: usize = 512;
    let row = flat_len(map.channels * map.height * map.width);
    for (n, to) in pairs_mut(to).chunks_exact_mut(row).take(count).enumerate() {
        let x = &pairs(x)[n * map.picture_len()..][..map.picture_len()];
        ctx.for_each_chunk(to, CHUNK, |chunk, to| {
            let first = 2 * chunk * CHUNK;
            if first >= map.channels * map.height * map.width {
                return to.fill(0);
            }
            let mut values = canonical(map, x, first);
            for to in to {
                let mut half = || values.next().map_or(0, u32::from);
                *to = half() | half() << 16;
            }
        });
    }
}

/// A map's values in canonical order, (count, C, H, W).
pub fn to_canonical(map: &PictureLayout, count: usize, x: &[f32], to: &mut [f32]) {
    let features = map.channels * map.height * map.width;
    for (n, to) in to.chunks_exact_mut(features).take(count).enumerate() {
        let values = canonical(map, &pairs(x)[n * map.picture_len()..], 0);
        for (to, bits) in to.iter_mut().zip(values) {
            *to = widen(bits);
        }
    }
}

/// Flat rows of pairs as f32, (count, features).
pub fn flat_to_rows(features: usize, count: usize, x: &[f32], to: &mut [f32]) {
    for (x, to) in pairs(x).chunks_exact(flat_len(features)).zip(to.chunks_exact_mut(features)).take(count) {
        for (e, to) in to.iter_mut().enumerate() {
            *to = widen((x[e / 2] >> (e % 2 * 16)) as u16);
        }
    }
}

//! Changes of layout: pixels to rows, maps to flat rows of pairs, and out of both.

use super::RowLayout;
use crate::bf16::{EDGE, pair, pairs, pairs_mut, widen};
use crate::parallel::Context;

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
    pub map: RowLayout,
}

/// Rounds the pixels of `count` pictures to map 0.
pub fn enter(ctx: &mut Context, entry: &Entry, count: usize, pixels: &[f32], to: &mut [f32]) {
    let Entry { channels, height, width, fold, pad, map } = *entry;
    assert!(map.splits == 1 && map.channels == channels * fold * fold, "map 0 of the folded pixels");
    assert!(pixels.len() >= count * height * width * channels, "pixels");
    let (picture_len, row_len) = (map.picture_len(), map.row_len());
    // Cut at pictures first, so that the rows of a picture are chunks of one length.
    for (n, picture) in pairs_mut(to).chunks_exact_mut(picture_len).take(count).enumerate() {
        let pixels = &pixels[n * height * width * channels..][..height * width * channels];
        let rows = &mut picture[map.rows.before * row_len..][..map.height * row_len];
        ctx.for_each_chunk(rows, row_len, |h, row| {
            for (p, row) in row.chunks_exact_mut(map.pitch()).enumerate() {
                // Where both halves come from in the pixels of a position: the row, if it exists, column and channel.
                let halves = [2 * p, 2 * p + 1].map(|c| {
                    let (part, c) = (c / channels, c % channels);
                    let y = (h * fold + part / fold)
                        .checked_sub(pad)
                        .filter(|&y| y < height && part < fold * fold);
                    y.map(|y| (y * width * channels + c, part % fold))
                });
                for (w, to) in row[map.columns.before..][..map.width].iter_mut().enumerate() {
                    let [even, odd] = halves.map(|half| {
                        let (start, column) = half?;
                        let x = (w * fold + column).checked_sub(pad).filter(|&x| x < width)?;
                        Some(pixels[start + x * channels])
                    });
                    *to = pair(even.unwrap_or(0.0), odd.unwrap_or(0.0));
                }
            }
        });
    }
}

/// Pairs of a flat row of `features` features: whole vectors, zero beyond the last feature.
pub fn flat_len(features: usize) -> usize {
    features.div_ceil(2 * EDGE) * EDGE
}

/// Maps to flat rows in canonical order (C, H, W), still as pairs: neighbours in a row become the halves of a pair.
pub fn flatten(ctx: &mut Context, map: &RowLayout, count: usize, x: &[f32], to: &mut [f32]) {
    let features = map.channels * map.height * map.width;
    let x = pairs(x);
    let plane = map.height * map.width;
    /// Pairs that a thread takes at a time.
    const CHUNK: usize = 512;
    let row = flat_len(features);
    for (n, to) in pairs_mut(to).chunks_exact_mut(row).take(count).enumerate() {
        let x = &x[n * map.picture_len()..][..map.picture_len()];
        let half = |e: usize| {
            if e >= features {
                return 0;
            }
            let (at, high) = map.offset(e / plane, e % plane / map.width, e % map.width);
            if high { x[at] >> 16 } else { x[at] & 0xffff }
        };
        ctx.for_each_chunk(to, CHUNK, |chunk, to| {
            for (i, to) in to.iter_mut().enumerate() {
                let e = 2 * (chunk * CHUNK + i);
                *to = half(e) | half(e + 1) << 16;
            }
        });
    }
}

/// A map's values in canonical order, (count, C, H, W).
pub fn to_canonical(map: &RowLayout, count: usize, x: &[f32], to: &mut [f32]) {
    let features = map.channels * map.height * map.width;
    let plane = map.height * map.width;
    for (n, to) in to.chunks_exact_mut(features).take(count).enumerate() {
        let x = &pairs(x)[n * map.picture_len()..];
        for (e, to) in to.iter_mut().enumerate() {
            let (at, high) = map.offset(e / plane, e % plane / map.width, e % map.width);
            *to = widen(if high { x[at] >> 16 } else { x[at] } as u16);
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

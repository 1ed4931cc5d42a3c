//! Pixels become map 0: rounded, folded for a strided first convolution, and turned, so that pictures are lanes.
//!
//! A row of each of 32 pictures is rounded to pairs beside the others', and 16 × 16 pairs of them at a time are transposed,
//! while the next row of pixels is asked for.
//! Where the channels of `fold` neighbouring pixels are even in number they are whole pairs as they lie.

use super::engine::{Engine, Pieces, run_vectors};
use super::{EDGE, MapLayout, PICTURES, STREAMED_LEN, TILE, pair, round};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, prefetch, prefetch_far};
use std::ops::Range;

/// Values of pixels, (N, H, W, C).
#[derive(Clone, Copy, Debug)]
pub enum Pixels<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Rounded to bf16, its bits.
    Bf16(&'a [u16]),
}

impl<'a> Pixels<'a> {
    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            Pixels::F32(values) => values.len(),
            Pixels::Bf16(bits) => bits.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that were not rounded.
    ///
    /// # Panics
    /// If they were.
    pub fn as_f32(&self) -> &'a [f32] {
        match self {
            Pixels::F32(values) => values,
            Pixels::Bf16(_) => panic!("pixels in bf16, for what asked for f32"),
        }
    }

    fn value_bytes(&self) -> usize {
        match self {
            Pixels::F32(_) => size_of::<f32>(),
            Pixels::Bf16(_) => size_of::<u16>(),
        }
    }

    /// Where value `i` lies.
    fn address(&self, i: usize) -> *const u8 {
        match self {
            Pixels::F32(values) => values.as_ptr().wrapping_add(i).cast(),
            Pixels::Bf16(bits) => bits.as_ptr().wrapping_add(i).cast(),
        }
    }

    /// Value `i`, rounded.
    #[inline(always)]
    fn rounded(&self, i: usize) -> u16 {
        match self {
            Pixels::F32(values) => round(values[i]),
            Pixels::Bf16(bits) => bits[i],
        }
    }
}

/// Rows of the map that a unit fills: the first rows of pixels of a unit are those that nothing asked for.
const BAND_ROWS: usize = 4;

/// Pictures as the loader writes them, (N, H, W, C), to a map whose positions hold `fold` × `fold` pixels in the
/// order (row, column, channel); `pad` zero pixels precede the first row and column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// C
    pub channels: usize,
    /// H
    pub height: usize,
    /// W
    pub width: usize,
    /// Pixels folded along each axis.
    pub fold: usize,
    /// Zero pixels before the first.
    pub pad: usize,
    /// The map, of fold²·C channels.
    pub map: MapLayout,
}

impl Entry {
    /// Whether each row of a position's pixels is whole pairs, which lie side by side.
    fn in_rows(&self) -> bool {
        self.map.splits == 1 && (self.fold * self.channels).is_multiple_of(2)
    }

    /// Pairs of a position that come from one row of pixels, or all of them.
    fn part_pairs(&self) -> usize {
        if self.in_rows() { self.fold * self.channels / 2 } else { self.map.split_pairs() }
    }

    /// Pairs of a rounded row: whole tiles, and one more, so that the rows of 32 pictures are not all the same distance
    /// apart modulo a page.
    fn row_len(&self) -> usize {
        (self.map.width * self.part_pairs()).next_multiple_of(EDGE) + EDGE
    }

    /// Elements of scratch that each thread needs.
    pub fn scratch_len(&self) -> usize {
        PICTURES * self.row_len()
    }
}

/// Fills the map of the blocks of `count` pictures from their pixels; the lanes of missing pictures are zero.
pub fn enter(ctx: &mut Context, engine: Engine, entry: &Entry, count: usize, pixels: Pixels, to: &mut [f32]) {
    let Entry { channels, height, width, fold, map, .. } = *entry;
    assert_eq!(map.channels, fold * fold * channels, "the map holds folded pixels");
    assert!(pixels.len() >= count * height * width * channels, "pixels");
    let blocks = count.div_ceil(PICTURES);
    assert!(to.len() >= blocks * map.block_len(), "the map");
    let streams = blocks * map.block_len() >= STREAMED_LEN;
    let rows = Rows { entry: *entry, count, pixels, streams };
    run_vectors(ctx, engine, &Enter { rows, blocks, to: Ptr::from_mut(to) });
}

/// The rows of map 0, each computed from the pixels when it is wanted.
pub(super) struct Rows<'a> {
    entry: Entry,
    count: usize,
    pixels: Pixels<'a>,
    /// Whether they go beyond what caches hold until they are read.
    streams: bool,
}

struct Enter<'a> {
    rows: Rows<'a>,
    blocks: usize,
    to: Ptr,
}

impl Kernel for Enter<'_> {
    /// Bands of rows of a split of the map.
    fn units(&self) -> usize {
        let map = self.rows.entry.map;
        self.blocks * map.splits * map.height.div_ceil(BAND_ROWS)
    }

    fn scratch_len(&self) -> usize {
        self.rows.entry.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let map = self.rows.entry.map;
        let bands = map.height.div_ceil(BAND_ROWS);
        let (band, split, block) = (unit % bands, unit / bands % map.splits, unit / bands / map.splits);
        let end = ((band + 1) * BAND_ROWS).min(map.height);
        for h in band * BAND_ROWS..end {
            // SAFETY: passed on from the caller; this unit owns its rows of the map, whose length was checked.
            unsafe {
                let to = self.to.at(block * map.block_len() + map.at(split, h, 0)).cast::<u32>();
                self.rows.fill::<S>(block, split, h, end, scratch, to);
            }
        }
        if self.rows.streams {
            // SAFETY: the processor has the instructions of S.
            unsafe { S::release_lines() };
        }
    }
}

impl<'a> Rows<'a> {
    /// Rows that stay in a cache until they are read.
    pub fn new(entry: &Entry, count: usize, pixels: Pixels<'a>) -> Rows<'a> {
        let Entry { channels, height, width, .. } = *entry;
        assert!(pixels.len() >= count * height * width * channels, "pixels");
        Rows { entry: *entry, count, pixels, streams: false }
    }

    /// How pixels become the map.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The pixels that some rows of a block are made of.
    pub fn under(&self, block: usize, rows: Range<usize>) -> Pieces {
        let Entry { channels, height, width, fold, pad, .. } = self.entry;
        let pixel_row = |h: usize| (h * fold).saturating_sub(pad).min(height);
        let (start, end) = (pixel_row(rows.start), pixel_row(rows.end));
        let first = block * PICTURES;
        let pairs = |values: usize| (values * self.pixels.value_bytes()).div_ceil(size_of::<u32>());
        Pieces::new(
            self.pixels.address((first * height + start) * width * channels).cast(),
            pairs((end - start) * width * channels),
            pairs(height * width * channels),
            if start < end { PICTURES.min(self.count - first) } else { 0 },
        )
    }

    /// Computes row `h` of a split of a block; those up to `end` follow.
    ///
    /// # Safety
    /// `scratch` has [`Entry::scratch_len`] elements, and `to` room for a row; the processor has `S`.
    #[inline(always)]
    pub unsafe fn fill<S: Simd>(
        &self,
        block: usize,
        split: usize,
        h: usize,
        end: usize,
        scratch: *mut f32,
        to: *mut u32,
    ) {
        let entry = self.entry;
        let row_len = entry.row_len();
        let rows = scratch.cast::<u32>();
        let parts = if entry.in_rows() { entry.fold } else { 1 };
        for part in 0..parts {
            let next = if part + 1 < parts { (h, part + 1) } else { (h + 1, 0) };
            let next = self.row(block, next, end);
            // SAFETY: the caller's promise: scratch has 32 rows.
            unsafe {
                if let Some(lying) = self.lying(block, h * entry.fold + part) {
                    self.turn::<S>(part, to, next, |half, first| lying.tile(half, first, scratch.cast()));
                    continue;
                }
                for n in 0..PICTURES {
                    let row = std::slice::from_raw_parts_mut(rows.add(n * row_len), row_len);
                    let picture = block * PICTURES + n;
                    if picture >= self.count {
                        row.fill(0);
                    } else if entry.in_rows() {
                        match self.pixels {
                            Pixels::F32(values) => {
                                self.round_row::<S>(values, picture, h * entry.fold + part, row);
                            }
                            Pixels::Bf16(bits) => self.copy_row(bits, picture, h * entry.fold + part, row),
                        }
                    } else {
                        self.gather_row(picture, split, h, row);
                    }
                }
                let tile = |half: usize, first: usize| {
                    (rows.cast_const().wrapping_add(half * EDGE * row_len + first), row_len)
                };
                self.turn::<S>(part, to, next, tile);
            }
        }
    }
}

/// A row of 32 pictures' pixels in bf16, which are turned as they lie.
struct Lying<'a> {
    pixels: &'a [u16],
    /// Where the first picture's row begins, and its values; from a picture to the next.
    first: usize,
    len: usize,
    picture_len: usize,
    /// Zeros before it.
    padding: usize,
}

impl Lying<'_> {
    /// 16 pictures' 16 pairs from pair `first` of the padded row on, and the distance between pictures in pairs: the pixels, or,
    /// where they end, a copy with zeros in `scratch`, which has room for a tile.
    #[inline(always)]
    unsafe fn tile(&self, half: usize, first: usize, scratch: *mut u16) -> (*const u32, usize) {
        let at = self.first + half * EDGE * self.picture_len;
        if let Some(from) = (2 * first).checked_sub(self.padding)
            && from + 2 * EDGE <= self.len
        {
            return (self.pixels.as_ptr().wrapping_add(at + from).cast(), self.picture_len / 2);
        }
        let from = (2 * first).saturating_sub(self.padding).min(self.len);
        let end = (2 * first + 2 * EDGE).saturating_sub(self.padding).min(self.len);
        let place = (self.padding + from).saturating_sub(2 * first);
        // SAFETY: the caller's promise; `from..end` are at most 32 values of a row.
        unsafe {
            scratch.write_bytes(0, 2 * TILE);
            for n in 0..if from < end { EDGE } else { 0 } {
                let row = &self.pixels[at + n * self.picture_len..][from..end];
                let to = scratch.add(n * 2 * EDGE + place);
                std::ptr::copy_nonoverlapping(row.as_ptr(), to, row.len());
            }
        }
        (scratch.cast_const().cast(), EDGE)
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// A row of the pixels of some pictures, which is asked for while another is turned.
struct Row {
    from: *const u8,
    /// Bytes of a row, and from a picture to the next.
    len: usize,
    picture_len: usize,
    /// Pictures, and what has been asked for of the first.
    pictures: usize,
    asked: usize,
}

impl Row {
    /// Lines of all pictures, or a few more.
    fn lines(&self) -> usize {
        self.pictures * self.len.div_ceil(LINE)
    }

    /// Asks for some more lines.
    #[inline(always)]
    fn ask(&mut self, lines: usize) {
        for _ in 0..lines {
            prefetch_far(self.from.wrapping_add(self.asked).cast());
            self.asked += LINE;
            if self.asked >= self.len {
                self.asked = 0;
                self.from = self.from.wrapping_add(self.picture_len);
            }
        }
    }
}

impl Rows<'_> {
    /// The row of pixels that is part `part` of row `h` of a block of the map, if there is one and `h` is before `end`.
    fn row(&self, block: usize, (h, part): (usize, usize), end: usize) -> Row {
        let Entry { channels, height, width, fold, pad, .. } = self.entry;
        let y = (h * fold + part).checked_sub(pad).filter(|&y| y < height && h < end);
        let first = block * PICTURES;
        let at = (first * height + y.unwrap_or(0)) * width * channels;
        let bytes = self.pixels.value_bytes();
        Row {
            from: self.pixels.address(at),
            len: width * channels * bytes,
            picture_len: height * width * channels * bytes,
            pictures: if y.is_some() { PICTURES.min(self.count - first) } else { 0 },
            asked: 0,
        }
    }

    /// Row `y` of the padded pictures of a block, if it can be turned as it lies.
    #[inline(always)]
    fn lying(&self, block: usize, y: usize) -> Option<Lying<'_>> {
        let Entry { channels, height, width, pad, .. } = self.entry;
        let Pixels::Bf16(pixels) = self.pixels else { return None };
        let y = y.checked_sub(pad).filter(|&y| y < height)?;
        let (len, picture_len) = (width * channels, height * width * channels);
        let whole = (block + 1) * PICTURES <= self.count;
        (self.entry.in_rows() && whole && picture_len.is_multiple_of(2)).then_some(Lying {
            pixels,
            first: (block * PICTURES * height + y) * len,
            len,
            picture_len,
            padding: pad * channels,
        })
    }

    /// Row `y` of a padded picture as pairs; zero beyond the picture.
    #[inline(always)]
    unsafe fn round_row<S: Simd>(&self, pixels: &[f32], picture: usize, y: usize, to: &mut [u32]) {
        let Entry { channels, height, width, fold, pad, map } = self.entry;
        let Some(y) = y.checked_sub(pad).filter(|&y| y < height) else {
            to.fill(0);
            return;
        };
        let from = &pixels[(picture * height + y) * width * channels..][..width * channels];
        let before = pad * channels;
        let len = map.width * fold * channels / 2;
        for (i, to) in to.chunks_exact_mut(EDGE).enumerate() {
            // Values 32·i − before and on.
            let first = (2 * EDGE * i).checked_sub(before);
            if let Some(from) = first.and_then(|first| from.get(first..first + 2 * EDGE))
                && (i + 1) * EDGE <= len
            {
                // The same row of the next picture, which is too far away for the processor to foresee.
                let next = from.as_ptr().wrapping_add(height * width * channels);
                prefetch(next);
                prefetch(next.wrapping_add(EDGE));
                // SAFETY: 32 values and 16 pairs.
                unsafe { S::round_values(from.as_ptr(), to.as_mut_ptr()) };
                continue;
            }
            let value = |v: usize| v.checked_sub(before).and_then(|v| from.get(v)).copied().unwrap_or(0.0);
            for (j, to) in to.iter_mut().enumerate() {
                let p = i * EDGE + j;
                *to = if p < len { pair(value(2 * p), value(2 * p + 1)) } else { 0 };
            }
        }
    }

    /// [`Rows::round_row`] of values that are rounded.
    #[inline(always)]
    fn copy_row(&self, pixels: &[u16], picture: usize, y: usize, to: &mut [u32]) {
        let Entry { channels, height, width, fold, pad, map } = self.entry;
        let Some(y) = y.checked_sub(pad).filter(|&y| y < height) else {
            to.fill(0);
            return;
        };
        let from = &pixels[(picture * height + y) * width * channels..][..width * channels];
        // SAFETY: a pair is two halves, the low one first: every processor with these kernels is little-endian.
        let (before, to, after) = unsafe { to.align_to_mut::<u16>() };
        debug_assert!(before.is_empty() && after.is_empty() && cfg!(target_endian = "little"));
        let (padding, to) = to.split_at_mut(pad * channels);
        // The map may leave out columns that no window reads.
        let read = from.len().min(map.width * fold * channels - padding.len());
        padding.fill(0);
        to[..read].copy_from_slice(&from[..read]);
        to[read..].fill(0);
    }

    /// The pairs of each position of a row of one split, one by one.
    #[inline(always)]
    fn gather_row(&self, picture: usize, split: usize, h: usize, to: &mut [u32]) {
        let Entry { channels, height, width, fold, pad, map } = self.entry;
        let first = picture * height * width * channels;
        to.fill(0);
        for (w, to) in to.chunks_exact_mut(map.split_pairs()).take(map.width).enumerate() {
            let value = |c: usize| {
                if c >= map.split_channels() {
                    return 0;
                }
                let c = split * map.split_channels() + c;
                let (y, x) = (h * fold + c / channels / fold, w * fold + c / channels % fold);
                let inside = |v: usize, size: usize| v.checked_sub(pad).filter(|&v| v < size);
                match (inside(y, height), inside(x, width)) {
                    (Some(y), Some(x)) => {
                        self.pixels.rounded(first + (y * width + x) * channels + c % channels)
                    }
                    _ => 0,
                }
            };
            for (p, to) in to.iter_mut().enumerate() {
                *to = u32::from(value(2 * p)) | u32::from(value(2 * p + 1)) << 16;
            }
        }
    }

    /// 32 rows of pairs to positions of pairs of 32 pictures. `tile` says where 16 pictures' 16 pairs lie, from which pair on,
    /// and how far apart.
    #[inline(always)]
    unsafe fn turn<S: Simd>(
        &self,
        part: usize,
        to: *mut u32,
        mut next: Row,
        tile_of: impl Fn(usize, usize) -> (*const u32, usize),
    ) {
        let map = self.entry.map;
        let part_pairs = self.entry.part_pairs();
        let mut tile = [0u32; TILE];
        let each = next.lines().div_ceil(PICTURES / EDGE * (map.width * part_pairs).div_ceil(EDGE));
        for half in 0..PICTURES / EDGE {
            let (mut w, mut p) = (0, 0);
            for first in (0..map.width * part_pairs).step_by(EDGE) {
                // SAFETY: the caller's promise: rows are whole tiles, and the map's row has all positions.
                unsafe {
                    next.ask(each);
                    let (from, distance) = tile_of(half, first);
                    S::transpose(from, distance, tile.as_mut_ptr());
                    for lanes in tile.chunks_exact(EDGE).take(map.width * part_pairs - first) {
                        let at = (w * map.split_pairs() + part * part_pairs + p) * PICTURES + half * EDGE;
                        if self.streams {
                            S::stream_line(lanes.as_ptr(), to.add(at));
                        } else {
                            to.add(at).cast::<[u32; EDGE]>().write(lanes.try_into().expect("16 pictures"));
                        }
                        p += 1;
                        if p == part_pairs {
                            (w, p) = (w + 1, 0);
                        }
                    }
                }
            }
        }
    }
}

//! Changes of layout: into and out of bf16 maps, and the forms that the weight gradient's operands have.

use super::engine::{Engine, Matrix, MatrixKernel, run};
use super::{EDGE, MapLayout, PICTURES, STREAMED_LEN, TILE, pair, pairs, pairs_mut, widen};
use crate::parallel::{ChunkWork, Context, Kernel, Ptr};
use crate::simd::{Simd, prefetch, prefetch_far};

/// x with pictures paired, as the right operand of sums over pictures: (blocks, splits, H, tiles of 16 channels, W with positions
/// of zeros before and after it, as many as `pad` says, 16 pairs of pictures, 16 channels). A row of a tile is contiguous, for windows to slide
/// along.
///
/// Shapes: x as `map` says; returns with `to` filled for `blocks` blocks.
pub fn pair_pictures(
    ctx: &mut Context,
    engine: Engine,
    map: &MapLayout,
    pad: [usize; 2],
    blocks: usize,
    x: &[f32],
    to: &mut [f32],
) {
    assert!(x.len() >= blocks * map.block_len() && to.len() >= paired_len(map, pad, blocks), "maps");
    let streams = paired_len(map, pad, blocks) >= STREAMED_LEN;
    run(ctx, engine, &PairPictures { map: *map, pad, blocks, x: pairs(x), to: Ptr::from_mut(to), streams });
}

/// Elements that [`pair_pictures`] fills.
pub fn paired_len(map: &MapLayout, pad: [usize; 2], blocks: usize) -> usize {
    blocks * map.splits * map.height * paired_row_len(map, pad)
}

/// Pairs of one row of one split.
pub(super) fn paired_row_len(map: &MapLayout, pad: [usize; 2]) -> usize {
    map.split_channels().div_ceil(EDGE) * paired_tile_row(map, pad)
}

/// Pairs of one row of one tile of channels.
pub(super) fn paired_tile_row(map: &MapLayout, [before, after]: [usize; 2]) -> usize {
    (before + map.width + after) * TILE
}

struct PairPictures<'a> {
    map: MapLayout,
    pad: [usize; 2],
    blocks: usize,
    x: &'a [u32],
    to: Ptr,
    streams: bool,
}

impl MatrixKernel for PairPictures<'_> {
    /// Rows of a split.
    fn units(&self) -> usize {
        self.blocks * self.map.splits * self.map.height
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, _scratch: *mut f32) {
        let (map, [before, after]) = (&self.map, self.pad);
        let (row, tile_row) = (unit * paired_row_len(map, self.pad), paired_tile_row(map, self.pad));
        // SAFETY: a unit's positions are its own row of both maps.
        unsafe {
            for tile in 0..map.split_channels().div_ceil(EDGE) {
                let to = self.to.at(row + tile * tile_row).cast::<u32>();
                to.write_bytes(0, before * TILE);
                to.add((before + map.width) * TILE).write_bytes(0, after * TILE);
            }
            for w in 0..map.width {
                let from = self.x.as_ptr().add((unit * map.width + w) * map.position_len());
                let to = self.to.at(row + (before + w) * TILE).cast::<u32>();
                if self.streams {
                    stream_position::<M::S>(from, map.split_pairs(), tile_row, to);
                } else {
                    pair_position::<M::S>(from, map.split_pairs(), tile_row, to);
                }
            }
            if self.streams {
                M::S::release_lines();
            }
        }
    }
}

/// One position: `pairs` rows of 32 pairs of channels to tiles of 16 channels by 16 pairs of pictures, so far apart.
#[inline(always)]
pub(super) unsafe fn pair_position<S: Simd>(from: *const u32, pairs: usize, apart: usize, to: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for tile in 0..pairs.div_ceil(EDGE / 2) {
            let first = tile * (EDGE / 2);
            S::pair_tile(from.add(first * PICTURES), (pairs - first).min(EDGE / 2), to.add(tile * apart));
        }
    }
}

/// As [`pair_position`], past the caches.
#[inline(always)]
unsafe fn stream_position<S: Simd>(from: *const u32, pairs: usize, apart: usize, to: *mut u32) {
    let mut paired = [0; TILE];
    for tile in 0..pairs.div_ceil(EDGE / 2) {
        let first = tile * (EDGE / 2);
        // SAFETY: the caller's promise.
        unsafe {
            S::pair_tile(from.add(first * PICTURES), (pairs - first).min(EDGE / 2), paired.as_mut_ptr());
            for (line, paired) in paired.chunks_exact(EDGE).enumerate() {
                S::stream_line(paired.as_ptr(), to.add(tile * apart + line * EDGE));
            }
        }
    }
}

/// Asks for `pairs` pairs of channels of all pictures, which need not exist.
#[inline(always)]
pub(super) fn prefetch_pairs(from: *const u32, pairs: usize) {
    for line in (0..pairs * PICTURES).step_by(EDGE) {
        prefetch(from.wrapping_add(line).cast());
    }
}

/// Asks for a pair of channels of all pictures, which need not exist: for what is not used soon.
#[inline(always)]
pub(super) fn prefetch_pair(from: *const u32) {
    for line in (0..PICTURES).step_by(EDGE) {
        prefetch_far(from.wrapping_add(line).cast());
    }
}

/// `pairs` rows of 32 pairs of channels to twice as many rows of 16 pairs of pictures.
#[inline(always)]
pub(super) unsafe fn unzip_pairs<S: Simd>(from: *const u32, pairs: usize, to: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..pairs {
            let to = to.add(2 * p * EDGE);
            S::unzip(from.add(p * PICTURES), to, to.add(EDGE));
        }
    }
}

/// Adds the pictures of `pairs` pairs of channels to the channels' sums, 16 of each.
#[inline(always)]
pub(super) unsafe fn add_pictures<S: Simd>(from: *const u32, pairs: usize, sums: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..pairs {
            for n in (0..PICTURES).step_by(S::LANES) {
                let (even, odd) = S::load_pairs(from.add(p * PICTURES + n));
                let to = sums.add(2 * p * EDGE + n % EDGE);
                S::store(to, S::add(S::load(to), even));
                S::store(to.add(EDGE), S::add(S::load(to.add(EDGE)), odd));
            }
        }
    }
}

/// A row (N, F) of f32 for every picture to a flat map (blocks, 1, 1, pairs of F): what a loss hands back, for example.
pub fn from_rows(ctx: &mut Context, features: usize, count: usize, rows: &[f32], to: &mut [f32]) {
    let map = flat(features);
    let to = pairs_mut(to);
    ctx.for_each_chunk(&mut to[..count.div_ceil(PICTURES) * map.block_len()], PICTURES, |unit, to| {
        let (block, p) = (unit / map.split_pairs(), unit % map.split_pairs());
        for (n, to) in to.iter_mut().enumerate() {
            let picture = block * PICTURES + n;
            let value = |f: usize| {
                if picture < count && f < features { rows[picture * features + f] } else { 0.0 }
            };
            *to = pair(value(2 * p), value(2 * p + 1));
        }
    });
}

/// The layout of (N, F) rows: maps of one position.
pub fn flat(features: usize) -> MapLayout {
    MapLayout { channels: features, splits: 1, height: 1, width: 1 }
}

/// A map's values in canonical order, (count, C, H, W).
pub fn to_canonical(map: &MapLayout, count: usize, x: &[f32], to: &mut [f32]) {
    let (x, picture) = (pairs(x), map.channels * map.height * map.width);
    for n in 0..count {
        for c in 0..map.channels {
            for h in 0..map.height {
                for w in 0..map.width {
                    let (at, high) = map.offset(n % PICTURES, c, h, w);
                    let bits = x[n / PICTURES * map.block_len() + at];
                    to[n * picture + (c * map.height + h) * map.width + w] =
                        widen(if high { bits >> 16 } else { bits } as u16);
                }
            }
        }
    }
}

/// A map to flat rows in canonical order (C, H, W), still as pairs: neighbours in a row become the halves of a pair.
pub fn flatten(ctx: &mut Context, map: &MapLayout, blocks: usize, x: &[f32], to: &mut [f32]) {
    let flat = flat(map.channels * map.height * map.width);
    let (x, to) = (pairs(x), pairs_mut(to));
    ctx.for_each_chunk(&mut to[..blocks * flat.block_len()], PICTURES, |unit, to| {
        let (block, p) = (unit / flat.split_pairs(), unit % flat.split_pairs());
        let halves = [2 * p, 2 * p + 1].map(|e| (e < flat.channels).then(|| canonical(map, e)));
        let of = |half: Option<(usize, bool)>, n: usize| {
            half.map_or(0, |(at, high)| {
                let bits = x[block * map.block_len() + at + n];
                if high { bits >> 16 } else { bits & 0xffff }
            })
        };
        for (n, to) in to.iter_mut().enumerate() {
            *to = of(halves[0], n) | of(halves[1], n) << 16;
        }
    });
}

/// [`flatten`] backwards. With `relu`, zero where that (the map before, as it came out of a ReLU) is not positive.
pub fn unflatten(
    ctx: &mut Context,
    map: &MapLayout,
    blocks: usize,
    dy: &[f32],
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    let (dy, dx) = (pairs(dy), pairs_mut(dx));
    let work = Unflatten { map: *map, dy, relu: relu.map(pairs) };
    ctx.for_each_chunk_in_vectors(&mut dx[..blocks * map.block_len()], PICTURES, &work);
}

struct Unflatten<'a> {
    map: MapLayout,
    dy: &'a [u32],
    relu: Option<&'a [u32]>,
}

impl ChunkWork<u32> for Unflatten<'_> {
    /// One pair of channels at one position.
    #[inline(always)]
    fn chunk(&self, unit: usize, dx: &mut [u32]) {
        let map = &self.map;
        let (p, position) = (unit % map.split_pairs(), unit / map.split_pairs());
        let (w, h) = (position % map.width, position / map.width % map.height);
        let (split, block) = (
            position / (map.width * map.height) % map.splits,
            position / (map.width * map.height * map.splits),
        );
        let flat_block = flat(map.channels * map.height * map.width).block_len();
        // Where a channel's value lies in its picture's flat row: the pairs of all pictures, and which half. One that does
        // not exist is a half of the first pair, which the mask takes away.
        let half = |c: usize| {
            let exists = c < map.split_channels();
            let c = if exists { split * map.split_channels() + c } else { 0 };
            let e = (c * map.height + h) * map.width + w;
            let from = &self.dy[block * flat_block + e / 2 * PICTURES..][..PICTURES];
            (from, if e % 2 == 1 { 16 } else { 0 }, if exists { 0xffff } else { 0 })
        };
        let ((even, even_shift, _), (odd, odd_shift, odd_mask)) = (half(2 * p), half(2 * p + 1));
        for ((to, even), odd) in dx.iter_mut().zip(even).zip(odd) {
            *to = (even >> even_shift & 0xffff) | (odd >> odd_shift & odd_mask) << 16;
        }
        if let Some(x) = self.relu {
            for (to, x) in dx.iter_mut().zip(&x[unit * PICTURES..]) {
                *to &= positive(*x);
            }
        }
    }
}

/// All ones in each half that is positive.
#[inline(always)]
pub fn positive(pair: u32) -> u32 {
    let half = |bits: u32| if widen(bits as u16) > 0.0 { 0xffff } else { 0 };
    half(pair) | half(pair >> 16) << 16
}

/// Where picture 0's element `e`, in canonical order, lies within its block.
fn canonical(map: &MapLayout, e: usize) -> (usize, bool) {
    let (c, h, w) = (e / (map.height * map.width), e / map.width % map.height, e % map.width);
    map.offset(0, c, h, w)
}

/// A map as f32, (blocks, splits, H, W, 2·pairs, 32 pictures): for stages that have no kernel for pairs.
pub fn widen_map(ctx: &mut Context, x: &[f32], to: &mut [f32]) {
    let x = pairs(x);
    ctx.for_each_chunk(to, 2 * PICTURES, |unit, to| {
        let (even, odd) = to.split_at_mut(PICTURES);
        for ((pair, even), odd) in x[unit * PICTURES..].iter().zip(even).zip(odd) {
            *even = widen(*pair as u16);
            *odd = widen((pair >> 16) as u16);
        }
    });
}

/// The bits of each value, rounded.
pub fn round_values(ctx: &mut Context, from: &[f32], to: &mut [u16]) {
    struct Round<'a>(&'a [f32], Ptr);
    impl Kernel for Round<'_> {
        fn units(&self) -> usize {
            1
        }

        #[inline(always)]
        unsafe fn unit<S: Simd>(&self, _unit: usize, _scratch: *mut f32) {
            let Round(from, to) = *self;
            let even = from.len() / 2 * 2;
            // SAFETY: there are as many halves as values.
            unsafe {
                super::round_values::<S>(from.as_ptr(), even, to.at(0).cast());
                if even < from.len() {
                    to.at(0).cast::<u16>().add(even).write(super::round(from[even]));
                }
            }
        }
    }
    assert_eq!(from.len(), to.len(), "one for each");
    ctx.run(&Round(from, Ptr::from_bits(to)));
}

/// [`widen_map`] backwards.
pub fn round_map(ctx: &mut Context, x: &[f32], to: &mut [f32]) {
    ctx.for_each_chunk(pairs_mut(to), PICTURES, |unit, to| {
        let (even, odd) = x[unit * 2 * PICTURES..(unit + 1) * 2 * PICTURES].split_at(PICTURES);
        for ((to, even), odd) in to.iter_mut().zip(even).zip(odd) {
            *to = pair(*even, *odd);
        }
    });
}

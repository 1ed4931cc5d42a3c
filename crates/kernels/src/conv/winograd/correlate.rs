//! Forward and input gradient: one loop over differently packed weights. Its order, outside in:
//!
//! ```text
//! unit: one tile of a block (threads)
//!   group
//!     V = Bᵀ d B at all points: all channels of the group, (rows of a stride, pictures, channels)
//!     panel of output channels (up to 64)
//!       point, chunk of its weights that fits in half of L1
//!         some pictures (6-8): dot() over the chunk's channels
//!       the tile's outputs, from the sums of all points
//! ```

use super::pack::Packed;
use super::points::{OUTPUTS, POINTS, Strip, of_strip, outputs_of, strips};
use super::values::{Inputs, lot_len, lots};
use super::{PIECES, pieces};
use crate::conv::{Epilogue, Geometry};
use crate::panel::{Panel, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{LINE, Simd, prefetch, prefetch_run};
use crate::tile::{self, Ahead, Finish, Output, Run, Start};

/// Weights of a chunk, bytes: half of a 48-KiB L1.
const CHUNK_BYTES: usize = 24 << 10;
/// Channels of a chunk, at most: sums of this length are added up, and rounded with, their likes.
pub(super) const CHUNK: usize = 96;
/// Elements between the points of V, and of the sums, beyond their length, so that they do not share the sets of L1.
const GAP: usize = LINE;

/// Elements of scratch of a unit of so many pictures: V, the sums of a panel, and the points of a picture.
pub(super) fn scratch_len(g: &Geometry, longest: [Strip; 2], reads: usize, widest: usize) -> usize {
    let points: usize = longest.iter().map(|strip| strip.points).product();
    points * (distance(g.block, reads) + distance(g.block, widest) + lot_len(reads / pieces(g)))
}

/// From a point's matrix, of some pictures and channels, to the next point's.
fn distance(pictures: usize, channels: usize) -> usize {
    pictures * channels + GAP
}

/// y = x ∗ w + b for the first `count` pictures.
pub(in crate::conv) fn forward(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    x: &[f32],
    w: &Packed,
    bias: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
) {
    let finish = if epilogue == Epilogue::BiasRelu { Finish::Relu } else { Finish::Store };
    correlate(ctx, g, [g.c, g.k], count, x, w, Some(bias), finish, y);
}

/// dx = dy ∗ wᵀ for the first `count` pictures.
pub(in crate::conv) fn backward_input(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    dy: &[f32],
    w: &Packed,
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    let finish = relu.map_or(Finish::Store, |x| Finish::Mask(x.as_ptr()));
    correlate(ctx, g, [g.k, g.c], count, dy, w, None, finish, dx);
}

/// `channels` are those that are read and those that are written, over all groups.
fn correlate(
    ctx: &mut Context,
    g: &Geometry,
    channels: [usize; 2],
    count: usize,
    x: &[f32],
    w: &Packed,
    bias: Option<&[f32]>,
    finish: Finish,
    y: &mut [f32],
) {
    assert_eq!(w.lanes, ctx.isa().lanes(), "packed for another instruction set");
    assert_eq!(w.reads * g.groups, channels[0] * pieces(g), "packed for another geometry");
    ctx.run(&Correlate { g: *g, channels, count, x, w, bias, finish, y: Ptr::from_mut(y) });
}

struct Correlate<'a> {
    g: Geometry,
    channels: [usize; 2],
    count: usize,
    x: &'a [f32],
    w: &'a Packed,
    bias: Option<&'a [f32]>,
    finish: Finish,
    y: Ptr,
}

/// A tile of a block of pictures, and a group of channels.
#[derive(Clone, Copy)]
struct Tile {
    strips: [Strip; 2],
    /// Positions of the blocks before.
    before: usize,
    pictures: usize,
    group: usize,
}

impl Kernel for Correlate<'_> {
    fn units(&self) -> usize {
        self.count.div_ceil(self.g.block) * strips(&self.g.rows) * strips(&self.g.columns)
    }

    fn scratch_len(&self) -> usize {
        self.w.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (g, w, in_c) = (&self.g, self.w, self.channels[0]);
        let [rows, columns] = [strips(&g.rows), strips(&g.columns)];
        let (block, row, column) = (unit / (rows * columns), unit / columns % rows, unit % columns);
        let strips = [Strip::at(&g.rows, row), Strip::at(&g.columns, column)];
        let pictures = (self.count - block * g.block).min(g.block);
        let before = block * g.rows.output * g.columns.output;
        let [down, across] = w.longest.map(|strip| strip.points);
        let value_distance = distance(g.block, w.reads);
        let values = scratch;
        let sums = values.wrapping_add(down * across * value_distance);
        let buffer = sums.wrapping_add(down * across * distance(g.block, w.widest));
        let map = &self.x[block * g.rows.input * g.columns.input * g.block * in_c..];
        for group in 0..g.groups {
            let tile = Tile { strips, before, pictures, group };
            let channels = w.reads / pieces(g);
            for piece in 0..pieces(g) {
                let map = map[group * channels..].as_ptr();
                let inputs = Inputs::of(map, g, g.block * in_c, strips, piece);
                let to = values.wrapping_add(piece * g.block * channels);
                let lots = lots(pictures, in_c, channels);
                // SAFETY: the map was checked; scratch has room for these points.
                unsafe { inputs.at_points::<S>(lots, to, lots[2], value_distance, buffer) };
            }
            for panel in &w.panels {
                // SAFETY: as above, and for their sums; the unit owns its outputs.
                unsafe {
                    self.products::<S>(&tile, panel, values, sums);
                    self.outputs::<S>(&tile, panel, sums);
                }
            }
        }
    }
}

/// Asks for the first `len` elements of `rows` rows, if they are long enough for that to be worth it.
#[inline(always)]
fn ask_for_rows(x: *const f32, rows: usize, stride: usize, len: usize) {
    if len >= 2 * LINE {
        (0..rows).for_each(|row| prefetch_run(x.wrapping_add(row * stride), len));
    }
}

impl Correlate<'_> {
    /// The sums of a panel: (points, pictures, width). Its weights at a point are (rows of a stride, channels).
    ///
    /// # Safety
    /// V is there, and room for the sums.
    #[inline(always)]
    unsafe fn products<S: Simd>(&self, tile: &Tile, panel: &Panel, values: *const f32, sums: *mut f32) {
        let (g, w) = (&self.g, self.w);
        let (width, pieces) = (panel.vectors * S::LANES, pieces(g));
        let channels = w.reads / pieces;
        let most = (CHUNK_BYTES / size_of::<f32>() / width).clamp(1, CHUNK);
        let [down, across] = w.longest.map(|strip| strip.points);
        for (i, j) in (0..down).flat_map(|i| (0..across).map(move |j| (i, j))) {
            let points = [tile.strips[0].point(w.longest[0], i), tile.strips[1].point(w.longest[1], j)];
            if points.contains(&None) {
                continue;
            }
            let data = w.data[w.at(tile.group, panel, i, j)..].as_ptr();
            let values = values.wrapping_add((i * across + j) * distance(g.block, w.reads));
            let sums = sums.wrapping_add((i * across + j) * distance(g.block, width));
            for (first, len) in tiles(channels, most) {
                let start = if first > 0 { Start::Output } else { Start::Zero };
                let mut runs = [Run::default(); PIECES];
                for (piece, run) in runs[..pieces].iter_mut().enumerate() {
                    let (x, w) = (piece * g.block * channels, piece * channels * width);
                    *run = Run { x: x + first, w: w + first * width, len };
                }
                // Weights are one stream through channels and points.
                let stream = data.wrapping_add((first + pieces * len) * width);
                let mut ahead = Ahead::new(stream, pieces * len * width / tile.pictures, true);
                for (n, rows) in tiles(tile.pictures, S::ROWS[panel.vectors - 1]) {
                    ahead.ask(rows);
                    let last = n + rows == tile.pictures;
                    for run in &runs[..pieces] {
                        // Of the next pictures; or of the first ones, the next channels, or else the next point.
                        let next = match last {
                            false => run.x + (n + rows) * channels,
                            true if first + len < channels => run.x + len,
                            true => run.x - first + distance(g.block, w.reads),
                        };
                        ask_for_rows(values.wrapping_add(next), rows, channels, len);
                    }
                    // SAFETY: the caller's promise.
                    unsafe {
                        let (runs, x, y) = (&runs[..pieces], values.add(n * channels), sums.add(n * width));
                        let out = Output { y, stride: width, rows, valid: width };
                        tile::dot::<S>(panel.vectors, runs, x, channels, data, start, out, Finish::Store);
                    }
                }
            }
        }
    }

    /// The outputs of a tile, of a panel: Aᵀ M A, along the rows of points first.
    ///
    /// # Safety
    /// The sums are there; the outputs are the unit's own.
    #[inline(always)]
    unsafe fn outputs<S: Simd>(&self, tile: &Tile, panel: &Panel, sums: *const f32) {
        let (g, w, out_c) = (&self.g, self.w, self.channels[1]);
        let [row, column] = tile.strips;
        let across = w.longest[1].points;
        let width = panel.vectors * S::LANES;
        let distance = distance(g.block, width);
        let channel = tile.group * (out_c / g.groups) + panel.first;
        let position = tile.before + row.first * g.columns.output + column.first;
        // From a position's outputs to those of the one below, and of the next.
        let (below, next) = (g.columns.output * g.block * out_c, g.block * out_c);
        // SAFETY: the caller's promise of the instructions.
        let mut lines = [[unsafe { S::zero() }; OUTPUTS]; POINTS];
        for n in 0..tile.pictures {
            for c in (0..width).step_by(S::LANES) {
                let first = (position * g.block + n) * out_c + channel + c;
                // So many places lie too far apart for the processor to foresee the next picture's.
                for (p, q) in (0..row.outputs).flat_map(|p| (0..column.outputs).map(move |q| (p, q))) {
                    let at = first + p * below + q * next + out_c;
                    prefetch(self.y.at(at).cast_const());
                    if let Finish::Mask(mask) = self.finish {
                        prefetch(mask.wrapping_add(at));
                    }
                }
                // SAFETY: the caller's promise.
                unsafe {
                    for (i, line) in lines[..row.points].iter_mut().enumerate() {
                        let sums = sums.add(row.place(w.longest[0], i) * across * distance + n * width + c);
                        let last = (across - 1) * distance;
                        *line = along::<S>(column, |j, is_last| {
                            S::load(sums.add(if is_last { last } else { j * distance }))
                        });
                    }
                    let bias = self.bias.map(|bias| S::load(bias[channel + c..].as_ptr()));
                    for q in 0..column.outputs {
                        let outputs = along::<S>(row, |i, _| lines[i][q]);
                        for (p, &sum) in outputs[..row.outputs].iter().enumerate() {
                            let at = first + p * below + q * next;
                            let sum = bias.map_or(sum, |bias| S::add(bias, sum));
                            let sum = match self.finish {
                                Finish::Store => sum,
                                // In this order a NaN passes through.
                                Finish::Relu => S::max(S::zero(), sum),
                                Finish::Mask(mask) => S::where_positive(S::load(mask.add(at)), sum),
                            };
                            S::store(self.y.at(at), sum);
                        }
                    }
                }
            }
        }
    }
}

/// Aᵀ of the points of a strip, which `at` says, of each also whether it is the last: its outputs, and others that mean nothing.
#[inline(always)]
unsafe fn along<S: Simd>(strip: Strip, at: impl Fn(usize, bool) -> S::V) -> [S::V; OUTPUTS] {
    // SAFETY: passed on from the caller.
    unsafe {
        of_strip!(strip, N, M => {
            let mut m = [S::zero(); N];
            for j in 0..N {
                m[j] = at(j, j + 1 == N);
            }
            let mut outputs = [S::zero(); OUTPUTS];
            outputs[..M].copy_from_slice(&outputs_of::<S, N, M>(m));
            outputs
        })
    }
}

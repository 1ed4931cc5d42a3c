//! Forward and input gradient: one loop over differently packed weights. Its order, outside in:
//!
//! ```text
//! unit: one tile of a block (threads)
//!   group
//!     V = Bᵀ d B at all points: all channels of the group, (rows of a stride, chunks, pictures, channels)
//!     panel of output channels (up to 64)
//!       row of points
//!         point, chunk
//!           some pictures (6-8): dot() over the chunk's channels
//!         Aᵀ of the row's sums, which are still in L1
//!       the tile's outputs: Aᵀ of these, down
//! ```

use super::pack::Packed;
use super::points::{Strip, of_strip, outputs_of, strips};
use super::values::{Inputs, lot_len, lots};
use super::{CHANNELS, PIECES, pieces};
use crate::conv::{Epilogue, Geometry};
use crate::panel::{Panel, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{LINE, Simd, prefetch};
use crate::tile::{Ahead, DotRows, Finish, Output, Run, Start};

/// Channels of a chunk, at most: its weights for 64 filters are half of a 48-KiB L1, and sums of this length are added up, and
/// rounded with, their likes.
pub(super) const CHUNK: usize = 96;
/// Elements between the points of V, and of the sums, beyond their length, so that they do not share the sets of L1.
const GAP: usize = LINE;

/// Elements of scratch of a unit of so many pictures: V, the points of a picture, and of a panel the sums of a row of points and
/// the outputs across, of all rows.
pub(super) fn scratch_len(g: &Geometry, longest: [Strip; 2], reads: usize, widest: usize) -> usize {
    let [down, across] = longest.map(|strip| strip.points);
    let values = down * across * (distance(g.block, reads) + lot_len(reads / pieces(g)));
    values + (across + down * longest[1].outputs) * distance(g.block, widest)
}

/// Cuts the channels that a group reads: (first, how many), whole vectors.
fn chunks(channels: usize) -> impl Iterator<Item = (usize, usize)> {
    let unit = if channels.is_multiple_of(CHANNELS) { CHANNELS } else { channels };
    tiles(channels / unit, CHUNK / unit).map(move |(first, len)| (first * unit, len * unit))
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
    correlate(ctx, g, [g.c, g.k], count, x, w, Some(bias), epilogue.finish(), y);
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
        let buffer = values.wrapping_add(down * across * value_distance);
        let channels = w.reads / pieces(g);
        let sums = buffer.wrapping_add(down * across * lot_len(channels));
        let map = &self.x[block * g.rows.input * g.columns.input * g.block * in_c..];
        for group in 0..g.groups {
            let tile = Tile { strips, before, pictures, group };
            for (piece, (first, len)) in
                (0..pieces(g)).flat_map(|piece| chunks(channels).map(move |chunk| (piece, chunk)))
            {
                let map = map[group * channels + first..].as_ptr();
                let inputs = Inputs::of(map, g, g.block * in_c, strips, piece);
                let to = values.wrapping_add(g.block * (piece * channels + first));
                let lots = lots(pictures, in_c, len);
                // SAFETY: the map was checked; scratch has room for these points.
                unsafe { inputs.at_points::<S>(lots, to, lots[2], value_distance, buffer) };
            }
            for panel in &w.panels {
                let lines = sums.wrapping_add(across * distance(g.block, panel.vectors * S::LANES));
                // SAFETY: as above, and for sums and lines; the unit owns its outputs.
                unsafe {
                    for i in 0..down {
                        if strips[0].point(w.longest[0], i).is_some() {
                            self.products::<S>(&tile, panel, i, values, sums);
                            self.line::<S>(&tile, panel, i, sums, lines);
                        }
                    }
                    self.outputs::<S>(&tile, panel, lines);
                }
            }
        }
    }
}

impl Correlate<'_> {
    /// The sums of a panel at a row of points: (points, pictures, width). Its weights at a point are (rows of a stride, channels).
    ///
    /// # Safety
    /// V is there, and room for the sums; the processor has `S`.
    #[inline(always)]
    unsafe fn products<S: Simd>(
        &self,
        tile: &Tile,
        panel: &Panel,
        i: usize,
        values: *const f32,
        sums: *mut f32,
    ) {
        let (g, w) = (&self.g, self.w);
        let (width, pieces) = (panel.vectors * S::LANES, pieces(g));
        let channels = w.reads / pieces;
        let across = w.longest[1].points;
        for j in (0..across).filter(|&j| tile.strips[1].point(w.longest[1], j).is_some()) {
            let data = w.data[w.at(tile.group, panel, i, j)..].as_ptr();
            let values = values.wrapping_add((i * across + j) * distance(g.block, w.reads));
            let sums = sums.wrapping_add(j * distance(g.block, width));
            for (first, len) in chunks(channels) {
                let start = if first > 0 { Start::Output } else { Start::Zero };
                let mut runs = [Run::default(); PIECES];
                for (piece, run) in runs[..pieces].iter_mut().enumerate() {
                    let channel = piece * channels + first;
                    *run = Run { x: channel * g.block, w: channel * width, len };
                }
                // Weights are one stream through channels and points.
                let stream = data.wrapping_add((first + pieces * len) * width);
                let mut ahead = [Ahead::new(stream, pieces * len * width / tile.pictures, true)];
                // SAFETY: the caller's promise.
                unsafe {
                    S::call(DotRows {
                        vectors: panel.vectors,
                        runs: &runs[..pieces],
                        x: values,
                        x_stride: len,
                        next: true,
                        w: data,
                        start,
                        ahead: &mut ahead,
                        out: Output { y: sums, stride: width, rows: tile.pictures, valid: width },
                        finish: Finish::Store,
                    });
                }
            }
        }
    }

    /// A row of points of a panel turned into outputs across: (rows of points, outputs, pictures, width).
    ///
    /// # Safety
    /// The sums are there, and room for the outputs; the processor has `S`.
    #[inline(always)]
    unsafe fn line<S: Simd>(&self, tile: &Tile, panel: &Panel, i: usize, sums: *const f32, lines: *mut f32) {
        let (longest, width) = (self.w.longest[1], panel.vectors * S::LANES);
        let distance = distance(self.g.block, width);
        let lines = lines.wrapping_add(i * longest.outputs * distance);
        let last = (longest.points - 1) * distance;
        of_strip!(tile.strips[1], N, M => {
            for c in (0..tile.pictures * width).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut points = [S::zero(); N];
                    for j in 0..N {
                        points[j] = S::load(sums.add(c + if j + 1 < N { j * distance } else { last }));
                    }
                    let outputs = outputs_of::<S, N, M>(points);
                    for q in 0..M {
                        S::store(lines.add(q * distance + c), outputs[q]);
                    }
                }
            }
        });
    }

    /// The outputs of a tile, of a panel: Aᵀ of its lines, down.
    ///
    /// # Safety
    /// The lines are there; the outputs are the unit's own; the processor has `S`.
    #[inline(always)]
    unsafe fn outputs<S: Simd>(&self, tile: &Tile, panel: &Panel, lines: *const f32) {
        let (g, w, out_c) = (&self.g, self.w, self.channels[1]);
        let [row, column] = tile.strips;
        let width = panel.vectors * S::LANES;
        let distance = distance(g.block, width);
        let (next_line, last) =
            (w.longest[1].outputs * distance, (w.longest[0].points - 1) * w.longest[1].outputs * distance);
        let channel = tile.group * (out_c / g.groups) + panel.first;
        let position = tile.before + row.first * g.columns.output + column.first;
        // From a position's outputs to those of the one below, and of the next.
        let (below, next) = (g.columns.output * g.block * out_c, g.block * out_c);
        of_strip!(row, N, M => {
            for (n, c) in (0..tile.pictures).flat_map(|n| (0..width).step_by(S::LANES).map(move |c| (n, c))) {
                // SAFETY: the caller's promise.
                unsafe {
                    let bias = self.bias.map(|bias| S::load(bias[channel + c..].as_ptr()));
                    for q in 0..column.outputs {
                        let at = ((position * g.block) + n) * out_c + channel + c + q * next;
                        // So many places lie too far apart for the processor to foresee the next picture's.
                        for p in 0..M {
                            prefetch(self.y.at(at + p * below + out_c).cast_const());
                            if let Finish::Mask(mask) = self.finish {
                                prefetch(mask.wrapping_add(at + p * below + out_c));
                            }
                        }
                        let lines = lines.add(q * distance + n * width + c);
                        let mut points = [S::zero(); N];
                        for i in 0..N {
                            points[i] = S::load(lines.add(if i + 1 < N { i * next_line } else { last }));
                        }
                        let outputs = outputs_of::<S, N, M>(points);
                        for p in 0..M {
                            let at = at + p * below;
                            let sum = bias.map_or(outputs[p], |bias| S::add(bias, outputs[p]));
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
        });
    }
}

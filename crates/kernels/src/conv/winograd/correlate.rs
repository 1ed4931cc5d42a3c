//! Forward and input gradient: one loop over differently packed weights. Its order, outside in:
//!
//! ```text
//! unit: one block, a row of tiles, two of its tiles (threads)
//!   group
//!     row of points
//!       V = Bᵀ d B of all tiles that the filters of the window read, at these four points: all channels of the group
//!       panel of output channels (up to 64)
//!         point, chunk of its weights that fits in half of L1, tile
//!           some pictures (6-8): dot() over the chunk's channels
//!         what the four points add to the tiles' outputs
//! ```
//!
//! The outputs take up one row of points after the other: no tile's 16 sums are ever together.

use super::Inputs;
use super::pack::Packed;
use crate::conv::{Epilogue, Geometry};
use crate::panel::{Panel, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::{self, Finish, Output, Run, Start};
use crate::winograd::{SIDE, Strip, filters, filters_at, outputs_of, place};

/// Tiles of a unit: weights come from beyond L2 once for all of them.
const TILES: usize = 2;
/// Weights of a chunk, bytes: half of a 48-KiB L1.
const CHUNK_BYTES: usize = 24 << 10;
/// Filters of a window, at most.
const MOST_FILTERS: usize = 4;
/// Elements between the points of V, beyond their length: a line, so that they do not share the sets of L1.
const GAP: usize = 16;

/// Elements of scratch of a unit: V of `reads` channels at four points, and the sums of a panel at these.
pub(super) fn scratch_len(block: usize, kernel: usize, reads: usize, widest: usize) -> usize {
    SIDE * (value_distance(block, kernel, reads) + sum_distance(block, widest))
}

/// Tiles that the filters of a window read for those of a unit, in a row.
fn row_tiles(kernel: usize) -> usize {
    TILES + filters(kernel) - 1
}

/// From a point of V to the next.
fn value_distance(block: usize, kernel: usize, reads: usize) -> usize {
    filters(kernel) * row_tiles(kernel) * block * reads + GAP
}

/// From a point's sums to the next.
fn sum_distance(block: usize, width: usize) -> usize {
    TILES * block * width + GAP
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
    assert_eq!(w.reads * g.groups, channels[0], "packed for another geometry");
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

impl Correlate<'_> {
    /// Rows of tiles, and units of each.
    fn cut(&self) -> [usize; 2] {
        [self.g.rows.output.div_ceil(2), self.g.columns.output.div_ceil(2).div_ceil(TILES)]
    }
}

impl Kernel for Correlate<'_> {
    fn units(&self) -> usize {
        self.count.div_ceil(self.g.block) * self.cut().iter().product::<usize>()
    }

    fn scratch_len(&self) -> usize {
        self.w.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (g, w) = (&self.g, self.w);
        let [height, width] = [g.rows.output, g.columns.output];
        let [rows, units] = self.cut();
        let (block, row, unit) = (unit / (rows * units), unit / units % rows, unit % units);
        let pictures = (self.count - block * g.block).min(g.block);
        let row = Strip::at(row, height, g.rows.kernel);
        let columns = unit * TILES..((unit + 1) * TILES).min(width.div_ceil(2));
        let [in_c, out_c] = self.channels;
        let writes = out_c / g.groups;
        let map = self.x[block * height * width * g.block * in_c..].as_ptr();
        let values = scratch;
        let kernel = g.rows.kernel;
        let distance = value_distance(g.block, kernel, w.reads);
        let sums = scratch.wrapping_add(SIDE * distance);
        for group in 0..g.groups {
            for i in 0..row.points {
                for down in 0..filters_at(kernel, i) {
                    for tile in 0..columns.len() + filters(kernel) - 1 {
                        let map = map.wrapping_add(group * w.reads);
                        let at = [row.first + 2 * down, 2 * (columns.start + tile)];
                        let from = Inputs::of(map, [height, width], g.block * in_c, at, g.rows.pad);
                        let to = (down * row_tiles(kernel) + tile) * g.block * w.reads;
                        let to = values.wrapping_add(to);
                        // SAFETY: the map was checked; scratch has room for the points of the unit's tiles.
                        unsafe { from.row::<S>(i, pictures, in_c, w.reads, to, distance) };
                    }
                }
                for panel in &w.panels {
                    // SAFETY: as above, and for their sums.
                    unsafe {
                        self.products::<S>(group, panel, (row, i), &columns, pictures, values, sums);
                        for (tile, column) in columns.clone().enumerate() {
                            let strips = [row, Strip::at(column, width, g.rows.kernel)];
                            let sums = sums.add(tile * g.block * panel.vectors * S::LANES);
                            self.add::<S>(block, group * writes, panel, strips, i, pictures, sums);
                        }
                    }
                }
            }
        }
    }
}

impl Correlate<'_> {
    /// The sums of a panel at the points of a row, (4 points, tiles, pictures, width).
    ///
    /// # Safety
    /// V is there, and room for the sums.
    #[inline(always)]
    unsafe fn products<S: Simd>(
        &self,
        group: usize,
        panel: &Panel,
        (row, i): (Strip, usize),
        columns: &std::ops::Range<usize>,
        pictures: usize,
        values: *const f32,
        sums: *mut f32,
    ) {
        let (g, w) = (&self.g, self.w);
        let width = panel.vectors * S::LANES;
        let most = (CHUNK_BYTES / size_of::<f32>() / width).max(1);
        let (kernel, filters) = (g.rows.kernel, filters(g.rows.kernel));
        let distance = value_distance(g.block, kernel, w.reads);
        for weights in 0..w.points[1] {
            let data = w.data[w.at(group, panel, row.weights(i), weights)..].as_ptr();
            // Pieces of the depth, (filters, channels).
            let pieces = (0..filters * filters).filter_map(|filter| {
                let filter = [filter / filters, filter % filters];
                Some((filter, place(kernel, filter, [row.weights(i), weights])?))
            });
            let pieces = pieces.flat_map(|(filter, place)| {
                tiles(w.reads, most).map(move |(first, len)| (filter, place * w.reads, first, len))
            });
            let (mut pieces, mut started) = (pieces.peekable(), false);
            while pieces.peek().is_some() {
                // As many as a chunk has room for.
                let (mut runs, mut used, mut depth) = ([Run::default(); MOST_FILTERS], 0, 0);
                while let Some((filter, place, first, len)) =
                    pieces.next_if(|piece| used < MOST_FILTERS && (used == 0 || depth + piece.3 <= most))
                {
                    let x = (filter[0] * row_tiles(kernel) + filter[1]) * g.block * w.reads + first;
                    runs[used] = Run { x, w: (place + first) * width, len };
                    (used, depth) = (used + 1, depth + len);
                }
                let start = if started { Start::Output } else { Start::Zero };
                started = true;
                for (tile, column) in columns.clone().enumerate() {
                    let strip = Strip::at(column, g.columns.output, g.rows.kernel);
                    let Some(j) = strip.point(weights) else { continue };
                    let from = j * distance + tile * g.block * w.reads;
                    let to = j * sum_distance(g.block, width) + tile * g.block * width;
                    for (n, rows) in tiles(pictures, S::ROWS[panel.vectors - 1]) {
                        // SAFETY: the caller's promise.
                        unsafe {
                            let x = values.add(from + n * w.reads);
                            let y = sums.add(to + n * width);
                            let out = Output { y, stride: width, rows, valid: width };
                            let runs = &runs[..used];
                            tile::dot::<S>(panel.vectors, runs, x, w.reads, data, start, out, Finish::Store);
                        }
                    }
                }
            }
        }
    }

    /// Adds to a tile's outputs what row `i` of its points is to them: Aᵀ M A, one row of M after the other.
    ///
    /// # Safety
    /// The sums are there; the outputs are the unit's own.
    #[inline(always)]
    unsafe fn add<S: Simd>(
        &self,
        block: usize,
        group_channel: usize,
        panel: &Panel,
        [row, column]: [Strip; 2],
        i: usize,
        pictures: usize,
        sums: *const f32,
    ) {
        let (g, out_c) = (&self.g, self.channels[1]);
        let width = panel.vectors * S::LANES;
        let distance = sum_distance(g.block, width);
        for down in 0..row.outputs {
            // Row `down` of Aᵀ: the first output has points 0 to 2, the second 1 to 3, the last two of them subtracted.
            let (first, last) = if down == 0 { (0, row.points.min(3) - 1) } else { (1, 3) };
            if !(first..=last).contains(&i) {
                continue;
            }
            let position = (block * g.rows.output + row.first + down) * g.columns.output + column.first;
            let at = position * g.block * out_c + group_channel + panel.first;
            for n in 0..pictures {
                for c in (0..width).step_by(S::LANES) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let mut m = [S::zero(); SIDE];
                        for (j, m) in m.iter_mut().enumerate().take(column.points) {
                            *m = S::load(sums.add(j * distance + n * width + c));
                        }
                        let across = outputs_of::<S>(m, column.points);
                        for (q, value) in across.into_iter().enumerate().take(column.outputs) {
                            let at = at + (q * g.block + n) * out_c + c;
                            let before = if i > first {
                                S::load(self.y.at(at))
                            } else if let Some(bias) = self.bias {
                                S::load(bias[group_channel + panel.first + c..].as_ptr())
                            } else {
                                S::zero()
                            };
                            let sum = if down == 1 && i > 1 {
                                S::sub(before, value)
                            } else {
                                S::add(before, value)
                            };
                            let sum = match self.finish {
                                _ if i < last => sum,
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

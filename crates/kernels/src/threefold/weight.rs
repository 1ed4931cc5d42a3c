//! The weight gradient in parts: sums over pictures and positions. A step's depth is the 32 pictures of one position.
//!
//! ```text
//! for part of the blocks, 64 filters             (a unit: its dw stays in cache)
//!   for block, for a band of rows, 32 channels   (their x and dy of the band stay in L2 for all taps; the next channels' x
//!                                                 is asked for)
//!     for 32 filters, tap                        32 × 32 sums over the band's positions
//! ```
//!
//! Both maps are split first, with pictures as the depth: x in tiles of channels, the left operand, dy in pairs of pictures, the
//! right one; panels of 32 channels lie apart, so that a band of one is a stream. Every part has its own dw; they are added up in
//! order. The cut into parts depends on the number of blocks alone.

use crate::arena::Buffer;
use crate::bf16::engine::{
    C_LEN, C_STRIDE, Engine, Matrix, MatrixKernel, Pieces, Run, Threefold, run, run_vectors,
};
use crate::bf16::{EDGE, PICTURES, TILE, pairs};
use crate::conv::{Fold, Geometry};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use std::ops::Range;

/// Most parts of the blocks.
const MOST_PARTS: usize = 4;
/// Panels of filters of a unit, which share x.
const TOGETHER: usize = 2;
/// Bytes of a band of rows that an L2 of 2 MiB holds beside sums: x of 32 channels twice, that in use and the next one's, and dy.
const BAND_BYTES: usize = 1400 << 10;
/// Most rows of a band: bounds the number of runs.
const BAND_ROWS: usize = 64;
/// Pairs of two tiles in both parts.
const PANEL: usize = 4 * TILE;

/// How [`backward_weight`] is cut, and its sums; made once a plan.
#[derive(Debug)]
pub struct WeightPlan {
    g: Geometry,
    fold: Fold,
    /// Panels of 32 channels and of 32 filters of a group.
    channel_panels: usize,
    filter_panels: usize,
    parts: usize,
    /// Rows of y in a band.
    band: usize,
    /// dw of every part.
    sums: Buffer,
    /// db of every row of y.
    biases: Buffer,
}

impl WeightPlan {
    /// For at most `blocks` blocks.
    pub fn new(g: &Geometry, fold: Fold, blocks: usize) -> WeightPlan {
        let panels = |channels: usize| (channels / g.groups).div_ceil(2 * EDGE);
        let (channel_panels, filter_panels) = (panels(g.c), panels(g.k));
        let row = |columns: usize| columns * PANEL * size_of::<u32>();
        let (x_row, dy_row) = (row(g.columns.input), row(g.columns.output));
        let band = BAND_BYTES.saturating_sub(2 * (g.rows.kernel - 1) * x_row)
            / (2 * x_row * g.rows.stride + TOGETHER * dy_row);
        let parts = blocks.min(MOST_PARTS);
        let len = g.groups * filter_panels * channel_panels * g.rows.kernel * g.columns.kernel * C_LEN;
        WeightPlan {
            g: *g,
            fold,
            channel_panels,
            filter_panels,
            parts,
            band: band.clamp(1, BAND_ROWS.min(g.rows.output)),
            sums: Buffer::zeros(parts * len),
            biases: Buffer::zeros(blocks * g.rows.output * g.k),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        (self.sums.len() + self.biases.len()) * size_of::<f32>()
    }

    /// Elements of scratch that each thread needs.
    pub fn scratch_len(&self) -> usize {
        2 * TILE
    }

    /// Elements of the rooms for x and dy in parts.
    pub fn split_lens(&self, blocks: usize) -> [usize; 2] {
        let g = &self.g;
        let len = |positions: usize, panels: usize| blocks * positions * g.groups * panels * PANEL;
        [
            len(g.rows.input * g.columns.input, self.channel_panels),
            len(g.rows.output * g.columns.output, self.filter_panels),
        ]
    }

    /// Elements of dw of a panel of filters.
    fn panel_len(&self) -> usize {
        self.channel_panels * self.g.rows.kernel * self.g.columns.kernel * C_LEN
    }
}

/// dw and db, summed over the first `count` pictures; overwrites both.
///
/// Shapes: x (blocks, H, W, block, C), dy (blocks, P, Q, block, K), dw (K, C/G, R, S), db (K); `rooms` as
/// [`WeightPlan::split_lens`] says.
pub fn backward_weight(
    ctx: &mut Context,
    engine: Engine,
    plan: &mut WeightPlan,
    count: usize,
    x: &[f32],
    dy: &[f32],
    rooms: [&mut [f32]; 2],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let g = plan.g;
    let blocks = count.div_ceil(g.block);
    assert!(x.len() >= g.input_len(blocks) && dy.len() >= g.output_len(blocks), "maps");
    let [x_room, dy_room] = rooms;
    let [x_len, dy_len] = plan.split_lens(blocks);
    assert!(x_room.len() >= x_len && dy_room.len() >= dy_len, "rooms");
    let canonical = g.c / g.groups / plan.fold.fold;
    assert_eq!(dw.len(), g.k * canonical * g.rows.kernel * plan.fold.kernel, "weight gradient");
    assert_eq!(db.len(), g.k, "bias gradient");
    let (x_row, dy_row) = (g.columns.input, g.columns.output);
    let mut biases = std::mem::replace(&mut plan.biases, Buffer::zeros(0));
    let to = |map: Ptr, row: usize, rows: usize, channels: usize, panels: usize| SplitPictures {
        rows,
        row,
        block: g.block,
        block_rows: rows / blocks.max(1),
        count,
        groups: g.groups,
        channels,
        panels,
        to: map,
        x: &[],
        biases: None,
    };
    run_vectors(
        ctx,
        engine,
        &SplitPictures {
            x,
            ..to(Ptr::from_mut(x_room), x_row, blocks * g.rows.input, g.c, plan.channel_panels)
        },
    );
    run_vectors(
        ctx,
        engine,
        &SplitPictures {
            x: dy,
            biases: Some(Ptr::from_mut(&mut biases)),
            ..to(Ptr::from_mut(dy_room), dy_row, blocks * g.rows.output, g.k, plan.filter_panels)
        },
    );
    db.fill(0.0);
    for row in biases.chunks_exact(g.k).take(blocks * g.rows.output) {
        for (db, row) in db.iter_mut().zip(row) {
            *db += row;
        }
    }
    plan.biases = biases;
    let parts = plan.parts.min(blocks);
    let mut sums = std::mem::replace(&mut plan.sums, Buffer::zeros(0));
    let (x, dy) = (pairs(x_room), pairs(dy_room));
    run(ctx, engine, &WeightGradient { plan, blocks, parts, x, dy, sums: Ptr::from_mut(&mut sums) });
    plan.sums = sums;
    ctx.run(&SumParts { plan, parts, canonical, dw: Ptr::from_mut(dw) });
}

/// A map in parts with pictures as the depth: (blocks, groups, panels of 32 channels, H, W) of two tiles of high parts
/// and two of low ones. Tiles have pairs of pictures as rows; of x, which has no biases, they are turned: channels are.
struct SplitPictures<'a> {
    x: &'a [f32],
    /// Of all blocks, and positions of one.
    rows: usize,
    row: usize,
    /// Pictures of a block, and its rows.
    block: usize,
    block_rows: usize,
    /// Pictures that are there; all others are zero.
    count: usize,
    groups: usize,
    /// Of all groups.
    channels: usize,
    /// Of a group.
    panels: usize,
    to: Ptr,
    biases: Option<Ptr>,
}

impl Kernel for SplitPictures<'_> {
    fn units(&self) -> usize {
        self.rows
    }

    fn scratch_len(&self) -> usize {
        2 * TILE
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let group_channels = self.channels / self.groups;
        let (block, row) = (unit / self.block_rows, unit % self.block_rows);
        let panel_len = self.block_rows * self.row * PANEL;
        let pictures = (self.count - block * self.block).min(self.block);
        // SAFETY: the row is within x and its parts within `to`, of which this unit owns them; scratch has room for two tiles.
        unsafe {
            if let Some(biases) = self.biases {
                std::ptr::write_bytes(biases.at(unit * self.channels), 0, self.channels);
            }
            for w in 0..self.row {
                let from = self.x.as_ptr().add((unit * self.row + w) * self.block * self.channels);
                let to =
                    self.to.at(block * self.groups * self.panels * panel_len + (row * self.row + w) * PANEL);
                let to = to.cast::<u32>();
                for group in 0..self.groups {
                    for tile in 0..2 * self.panels {
                        let valid = group_channels.saturating_sub(tile * EDGE).min(EDGE);
                        let from = from.wrapping_add(group * group_channels + tile * EDGE);
                        let to = to.add((group * self.panels + tile / 2) * panel_len + tile % 2 * TILE);
                        let (high, low) = if self.biases.is_some() {
                            (to, to.add(2 * TILE))
                        } else {
                            (scratch.cast(), scratch.cast::<u32>().add(TILE))
                        };
                        for c in (0..EDGE).step_by(S::LANES) {
                            let lanes = valid.saturating_sub(c).min(S::LANES);
                            let mut bias = S::zero();
                            for p in 0..EDGE {
                                let mut both = [S::zero(); 2];
                                for (half, value) in both.iter_mut().enumerate() {
                                    let n = 2 * p + half;
                                    if lanes > 0 && n < pictures {
                                        *value = S::load_part(from.add(n * self.channels + c), lanes);
                                    }
                                }
                                bias = S::add(bias, S::add(both[0], both[1]));
                                let (high, low) = (high.add(p * EDGE + c), low.add(p * EDGE + c));
                                S::store_pairs(high, both[0], both[1]);
                                let rounded = S::load_pairs(high);
                                S::store_pairs(low, S::sub(both[0], rounded.0), S::sub(both[1], rounded.1));
                            }
                            if let (Some(biases), 1..) = (self.biases, lanes) {
                                let at = biases
                                    .at(unit * self.channels + group * group_channels + tile * EDGE + c);
                                S::store_part(at, S::add(S::load_part(at, lanes), bias), lanes);
                            }
                        }
                        if self.biases.is_none() {
                            S::transpose(high, EDGE, to);
                            S::transpose(low, EDGE, to.add(2 * TILE));
                        }
                    }
                }
            }
        }
    }
}

struct WeightGradient<'a> {
    plan: &'a WeightPlan,
    blocks: usize,
    parts: usize,
    x: &'a [u32],
    dy: &'a [u32],
    sums: Ptr,
}

impl MatrixKernel for WeightGradient<'_> {
    /// Some panels of filters in a part.
    fn units(&self) -> usize {
        self.parts * self.plan.g.groups * self.plan.filter_panels.div_ceil(TOGETHER)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, _scratch: *mut f32) {
        let WeightPlan { g, channel_panels, filter_panels, .. } = *self.plan;
        let group_units = filter_panels.div_ceil(TOGETHER);
        let (part, group, first) =
            (unit / (g.groups * group_units), unit / group_units % g.groups, unit % group_units * TOGETHER);
        let filters = first..(first + TOGETHER).min(filter_panels);
        let taps = || (0..g.rows.kernel).flat_map(|r| (0..g.columns.kernel).map(move |s| (r, s)));
        let mut runs = [Run::default(); BAND_ROWS];
        let mut started = false;
        for block in part * self.blocks / self.parts..(part + 1) * self.blocks / self.parts {
            for p0 in (0..g.rows.output).step_by(self.plan.band) {
                let band = p0..(p0 + self.plan.band).min(g.rows.output);
                for channels in 0..channel_panels {
                    let mut next = self.next(block, group, &band, channels);
                    for filters in filters.clone() {
                        let shape = self.shape(channels);
                        let panel = (part * g.groups + group) * filter_panels + filters;
                        let sums = self.sums.at(panel * self.plan.panel_len());
                        for (r, s) in taps() {
                            let used = self.runs(&band, (r, s), &mut runs);
                            if used == 0 && started {
                                continue;
                            }
                            let tap = (channels * g.rows.kernel + r) * g.columns.kernel + s;
                            let steps: usize = runs[..used].iter().map(|run| run.steps).sum();
                            let ahead = next.ask(steps, Threefold::LINES);
                            // SAFETY: `backward_weight` checked the maps, in which the runs lie; this unit owns its sums.
                            unsafe {
                                M::threefold(
                                    &shape,
                                    &runs[..used],
                                    self.x_panel(block, group, channels).cast(),
                                    self.dy_panel(block, group, filters),
                                    sums.add(tap * C_LEN),
                                    started,
                                    ahead,
                                );
                            }
                        }
                    }
                }
                started = true;
            }
        }
    }
}

impl WeightGradient<'_> {
    /// Of a panel of channels, only the tiles that have any.
    #[inline(always)]
    fn shape(&self, channels: usize) -> Threefold {
        let g = &self.plan.g;
        Threefold {
            rows: (g.c / g.groups - channels * 2 * EDGE).div_ceil(EDGE).min(2),
            columns: 2,
            a_row: 2 * EDGE,
            a_low: 2 * 2 * TILE,
            a_step: 2 * g.columns.stride * PANEL,
            b_step: PANEL,
        }
    }

    #[inline(always)]
    fn x_panel(&self, block: usize, group: usize, channels: usize) -> *const u32 {
        let WeightPlan { g, channel_panels, .. } = self.plan;
        let panel = (block * g.groups + group) * channel_panels + channels;
        self.x.as_ptr().wrapping_add(panel * g.rows.input * g.columns.input * PANEL)
    }

    #[inline(always)]
    fn dy_panel(&self, block: usize, group: usize, filters: usize) -> *const u32 {
        let WeightPlan { g, filter_panels, .. } = self.plan;
        let panel = (block * g.groups + group) * filter_panels + filters;
        self.dy.as_ptr().wrapping_add(panel * g.rows.output * g.columns.output * PANEL)
    }

    /// What products ask for while they read x of some channels in a band: x of the next ones.
    #[inline(always)]
    fn next(&self, block: usize, group: usize, band: &Range<usize>, channels: usize) -> Pieces {
        let WeightPlan { g, channel_panels, .. } = self.plan;
        if channels + 1 == *channel_panels {
            return Pieces::none(self.x.as_ptr());
        }
        let rows = &g.rows;
        let first = (band.start * rows.stride).saturating_sub(rows.pad);
        let end = ((band.end - 1) * rows.stride + rows.kernel).saturating_sub(rows.pad).min(rows.input);
        let row_len = g.columns.input * PANEL;
        let from = self.x_panel(block, group, channels + 1).wrapping_add(first * row_len);
        Pieces::new(from, end.saturating_sub(first) * row_len, 0, 1)
    }

    /// The positions of a band whose window has tap (r, s) inside the map, row by row. Returns the number of rows.
    #[inline(always)]
    fn runs(&self, band: &Range<usize>, (r, s): (usize, usize), runs: &mut [Run; BAND_ROWS]) -> usize {
        let g = &self.plan.g;
        let inside = |q: &usize| g.columns.forward(*q, s).is_some();
        let (Some(first), Some(last)) =
            ((0..g.columns.output).find(inside), (0..g.columns.output).rev().find(inside))
        else {
            return 0;
        };
        let w = first * g.columns.stride + s - g.columns.pad;
        let mut used = 0;
        for p in band.clone() {
            let Some(h) = g.rows.forward(p, r) else { continue };
            runs[used] = Run {
                a: 2 * (h * g.columns.input + w) * PANEL,
                b: (p * g.columns.output + first) * PANEL,
                steps: last + 1 - first,
            };
            used += 1;
        }
        used
    }
}

/// Adds up the parts' dw, in order.
struct SumParts<'a> {
    plan: &'a WeightPlan,
    parts: usize,
    /// C/G of the weights.
    canonical: usize,
    dw: Ptr,
}

impl Kernel for SumParts<'_> {
    /// Filters.
    fn units(&self) -> usize {
        self.plan.g.k
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, k: usize, _scratch: *mut f32) {
        let WeightPlan { g, fold, filter_panels, .. } = self.plan;
        let (group, filter) = (k / (g.k / g.groups), k % (g.k / g.groups));
        let panel = group * filter_panels + filter / (2 * EDGE);
        let (panel_len, panels) = (self.plan.panel_len(), g.groups * filter_panels);
        let (kernel, window) = (g.rows.kernel, g.columns.kernel);
        for c in 0..g.c / g.groups {
            for (r, s) in (0..kernel).flat_map(|r| (0..window).map(move |s| (r, s))) {
                let Some((canonical, column)) = fold.canonical(self.canonical, c, s) else { continue };
                let tap = (c / (2 * EDGE) * kernel + r) * window + s;
                let at = tap * C_LEN + c % (2 * EDGE) * C_STRIDE + filter % (2 * EDGE);
                let sum = (0..self.parts)
                    .fold(0.0, |sum, part| sum + self.plan.sums[(part * panels + panel) * panel_len + at]);
                let to = ((k * self.canonical + canonical) * kernel + r) * fold.kernel + column;
                // SAFETY: this unit owns the filter.
                unsafe { *self.dw.at(to) = sum };
            }
        }
    }
}

const _: () = assert!(PICTURES == 2 * EDGE);

//! The weight gradient: sums over pictures and positions. A step's depth is the 32 pictures of one position, so padding is
//! skipped exactly and no map size leaves a remainder.
//!
//! ```text
//! for part of the blocks, group, 64 filters      (a unit: its dw stays in cache)
//!   for block, for a band of rows                (dy of the band: rows of picture pairs, in scratch)
//!     for 32 channels, 32 filters                (their x and dy of the band stay in L2 for all taps)
//!       for tap                                  32 × 32 sums over the band's positions; on tiles, three or two taps of a
//!                                                row of the window at once, along which x slides
//! ```
//!
//! Every part has its own dw; [`sum_parts`] adds them in order. The cut into parts depends on the number of blocks alone.

use crate::arena::Buffer;
use crate::bf16::conv::{Fold, Geometry, Panel, panels};
use crate::bf16::convert::{
    add_pictures, pair_pictures, paired_row_len, paired_tile_row, prefetch_pair, unzip_pairs,
};
use crate::bf16::engine::{
    AHEAD_LINES, C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Pieces, Product, Right, Run, Slide, run,
};
use crate::bf16::{EDGE, PICTURES, TILE, pairs};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use std::ops::Range;

/// Most parts of the blocks, each with a dw of its own.
const MOST_PARTS: usize = 4;
/// Panels of filters in a unit.
const UNIT_PANELS: usize = 2;
/// Sums of the biases of a panel: 16 for every filter, whose sum they are.
const BIAS_LEN: usize = 2 * EDGE * EDGE;
/// Bytes of a band of rows: dy of a unit and 32 channels of x, which are read once for every tap. They stay in an L2 of
/// 2 MiB, as processors with AMX have; in one of 1 MiB smaller bands are no faster.
const BAND_BYTES: usize = 1536 << 10;
/// How many positions ahead a position of dy is asked for.
const POSITIONS_AHEAD: usize = 3;
/// Most rows of a band: bounds the number of runs.
const BAND_ROWS: usize = 64;

/// How [`backward_weight`] is cut; made once a plan.
#[derive(Debug)]
pub struct WeightPlan {
    panels: Vec<Panel>,
    /// First panels of the units of a part, and the number of panels.
    units: Vec<usize>,
    /// Rows of y in a band.
    band: usize,
    parts: usize,
    /// Elements of dw of one panel: (splits of the group, R, S, panels of channels) blocks of sums.
    panel_len: usize,
    /// dw of every part, and after it db.
    sums: Buffer,
}

impl WeightPlan {
    /// The cut for a geometry and at most `blocks` blocks.
    pub fn new(g: &Geometry, blocks: usize) -> WeightPlan {
        let panels = panels(&g.output);
        let mut units = vec![0];
        for (i, panel) in panels.iter().enumerate() {
            let first = units[units.len() - 1];
            if i - first == UNIT_PANELS || panels[first].split != panel.split {
                units.push(i);
            }
        }
        units.push(panels.len());
        let splits = g.input.splits / g.groups;
        let x_row = g.columns.input * 2 * TILE * size_of::<u32>();
        let dy_row = g.columns.output * UNIT_PANELS * 2 * TILE * size_of::<u32>();
        let over = (g.rows.kernel - 1) * x_row;
        let band = BAND_BYTES.saturating_sub(over) / (x_row * g.rows.stride + dy_row);
        let channel_panels = g.input.split_channels().div_ceil(2 * EDGE);
        let panel_len = splits * g.rows.kernel * g.columns.kernel * channel_panels * C_LEN;
        let parts = blocks.min(MOST_PARTS);
        let sums = Buffer::zeros(parts * panels.len() * (panel_len + 2 * EDGE));
        WeightPlan {
            panels,
            units,
            band: band.clamp(1, BAND_ROWS.min(g.rows.output)),
            parts,
            panel_len,
            sums,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.sums.len() * size_of::<f32>()
    }

    /// Elements of scratch that each thread needs: dy of a band, for every position the rows of a unit's panels, and a
    /// vector of sums for the bias of every filter.
    pub fn scratch_len(&self, g: &Geometry) -> usize {
        UNIT_PANELS * (self.dy_panel_len(g) + BIAS_LEN)
    }

    /// Pairs of dy of one panel at the positions of a band.
    fn dy_panel_len(&self, g: &Geometry) -> usize {
        self.band * g.columns.output * 2 * TILE
    }

    fn part_len(&self) -> usize {
        self.panels.len() * self.panel_len
    }
}

/// dw and db, summed over all pictures of the blocks that hold `count`; x is paired first.
pub(in crate::bf16::conv) fn backward_weight(
    ctx: &mut Context,
    engine: Engine,
    g: &Geometry,
    fold: Fold,
    plan: &mut WeightPlan,
    count: usize,
    x: &[f32],
    paired: &mut [f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let blocks = count.div_ceil(PICTURES);
    pair_pictures(ctx, engine, &g.input, g.paired_pad(), blocks, x, paired);
    assert!(dy.len() >= blocks * g.output.block_len(), "map");
    let channels = g.input.channels / g.groups / (fold.fold * fold.fold);
    assert_eq!(dw.len(), g.output.channels * channels * fold.kernel * fold.kernel, "weight gradient");
    assert_eq!(db.len(), g.output.channels, "bias gradient");
    let parts = plan.parts.min(blocks);
    let mut sums = std::mem::replace(&mut plan.sums, Buffer::zeros(0));
    let kernel = WeightGradient {
        g: *g,
        plan,
        blocks,
        parts,
        paired: pairs(paired),
        dy: pairs(dy),
        sums: Ptr::from_mut(&mut sums),
    };
    run(ctx, engine, &kernel);
    plan.sums = sums;
    ctx.run(&SumParts { g: *g, fold, channels, plan, parts, dw: Ptr::from_mut(dw), db: Ptr::from_mut(db) });
}

struct WeightGradient<'a> {
    g: Geometry,
    plan: &'a WeightPlan,
    blocks: usize,
    parts: usize,
    paired: &'a [u32],
    dy: &'a [u32],
    sums: Ptr,
}

impl WeightGradient<'_> {
    /// Blocks of a part.
    fn part(&self, part: usize) -> Range<usize> {
        part * self.blocks / self.parts..(part + 1) * self.blocks / self.parts
    }

    /// Where db of a part begins in the sums.
    fn bias_start(&self, part: usize) -> usize {
        self.plan.parts * self.plan.part_len() + part * self.plan.panels.len() * 2 * EDGE
    }
}

impl MatrixKernel for WeightGradient<'_> {
    fn units(&self) -> usize {
        self.parts * (self.plan.units.len() - 1)
    }

    fn scratch_len(&self) -> usize {
        self.plan.scratch_len(&self.g)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (g, plan) = (&self.g, self.plan);
        let (part, unit) = (unit / (plan.units.len() - 1), unit % (plan.units.len() - 1));
        let indices = plan.units[unit]..plan.units[unit + 1];
        let panels = &plan.panels[indices.clone()];
        let group_splits = g.input.splits / g.groups;
        let first_split = panels[0].split * g.groups / g.output.splits * group_splits;
        let channel_tiles = g.input.split_channels().div_ceil(EDGE);
        let taps = g.rows.kernel * g.columns.kernel;
        let sums = self.sums.at(part * plan.part_len() + indices.start * plan.panel_len);
        let bias = self.sums.at(self.bias_start(part) + indices.start * 2 * EDGE);
        let (dy, dy_panel) = (scratch.cast::<u32>(), plan.dy_panel_len(g));
        let bias_sums = scratch.wrapping_add(UNIT_PANELS * dy_panel);
        // SAFETY: maps were checked; bands lie within the maps and within scratch; (part, unit) owns its sums.
        unsafe {
            std::ptr::write_bytes(bias_sums, 0, UNIT_PANELS * BIAS_LEN);
            let mut started = false;
            for block in self.part(part) {
                for p0 in (0..g.rows.output).step_by(plan.band) {
                    let band = p0..(p0 + plan.band).min(g.rows.output);
                    for (i, panel) in panels.iter().enumerate() {
                        let to = dy.add(i * dy_panel);
                        self.unzip_band::<M::S>(block, panel, band.clone(), to, bias_sums.add(i * BIAS_LEN));
                    }
                    for split in 0..group_splits {
                        let x_row = (block * g.input.splits + first_split + split) * g.input.height;
                        for tile in (0..channel_tiles).step_by(2) {
                            let mut next = self.tiles_after(x_row, tile, band.clone());
                            for (i, panel) in panels.iter().enumerate() {
                                let place = Place { band: band.clone(), x_row, tile, started };
                                let at = (split * taps * channel_tiles.div_ceil(2) + tile / 2) * C_LEN;
                                let to = sums.add(i * plan.panel_len + at);
                                self.taps::<M>(panel, &place, dy.add(i * dy_panel), to, &mut next);
                            }
                        }
                    }
                    started = true;
                }
            }
            std::ptr::write_bytes(bias, 0, panels.len() * 2 * EDGE);
            for filter in 0..panels.len() * 2 * EDGE {
                for lane in (0..EDGE).step_by(M::S::LANES) {
                    *bias.add(filter) += M::S::sum(M::S::load(bias_sums.add(filter * EDGE + lane)));
                }
            }
        }
    }
}

impl WeightGradient<'_> {
    /// dy of a panel's filters at a band's positions as rows of picture pairs; adds its pictures to the biases' sums.
    ///
    /// # Safety
    /// The band lies within the map; `to` and `bias_sums` have room for it.
    #[inline(always)]
    unsafe fn unzip_band<S: Simd>(
        &self,
        block: usize,
        panel: &Panel,
        band: Range<usize>,
        to: *mut u32,
        bias_sums: *mut f32,
    ) {
        let map = self.g.output;
        let (pairs, len) = (panel.valid.div_ceil(2), panel.tiles * TILE);
        let first = block * map.block_len() + map.at(panel.split, band.start, 0) + panel.first / 2 * PICTURES;
        // SAFETY: the caller's promise. The positions of a band are one after the other on both sides.
        unsafe {
            for position in 0..band.len() * map.width {
                let from = self.dy.as_ptr().add(first + position * map.position_len());
                let to = to.add(position * len);
                for p in 0..pairs {
                    // Filters of later positions lie too far off for the processor to foresee them.
                    prefetch_pair(from.wrapping_add(POSITIONS_AHEAD * map.position_len() + p * PICTURES));
                    unzip_pairs::<S>(from.add(p * PICTURES), 1, to.add(2 * p * EDGE));
                }
                std::ptr::write_bytes(to.add(2 * pairs * EDGE), 0, len - 2 * pairs * EDGE);
                add_pictures::<S>(from, pairs, bias_sums);
            }
        }
    }

    /// What the two tiles of channels after `tile` are in the rows of x that a band reads: they come from memory.
    fn tiles_after(&self, x_row: usize, tile: usize, band: Range<usize>) -> Pieces {
        let g = &self.g;
        let tiles = g.input.split_channels().div_ceil(EDGE).saturating_sub(tile + 2).min(2);
        let rows = |p| (0..g.rows.kernel).filter_map(move |r| g.rows.forward(p, r));
        let (first, last) = (rows(band.start).min(), rows(band.end - 1).max());
        let (Some(first), Some(last), 1..) = (first, last, tiles) else {
            return Pieces::none(self.paired.as_ptr());
        };
        let (row, tile_row) =
            (paired_row_len(&g.input, g.paired_pad()), paired_tile_row(&g.input, g.paired_pad()));
        let from = self.paired.as_ptr().wrapping_add((x_row + first) * row + (tile + 2) * tile_row);
        Pieces::new(from, tiles * tile_row, row, last + 1 - first)
    }

    /// dw of a panel's filters and of two tiles of channels, every tap, over a band.
    ///
    /// # Safety
    /// The band lies within the maps, and `dy` holds its rows of the panel; the sums have room for every tap.
    #[inline(always)]
    unsafe fn taps<M: Matrix>(
        &self,
        panel: &Panel,
        place: &Place,
        dy: *const u32,
        sums: *mut f32,
        next: &mut Pieces,
    ) {
        let g = &self.g;
        let (window, channel_tiles) = (g.columns.kernel, g.input.split_channels().div_ceil(EDGE));
        let columns = (channel_tiles - place.tile).min(2);
        let tile_row = paired_tile_row(&g.input, g.paired_pad());
        let b = self.paired.as_ptr().wrapping_add(place.tile * tile_row);
        let c_tap = channel_tiles.div_ceil(2) * C_LEN;
        let slides = M::SLIDES && g.columns.stride == 1;
        let mut runs = [Run::default(); BAND_ROWS];
        for r in 0..g.rows.kernel {
            let mut s = 0;
            while s < window {
                let to = sums.wrapping_add((r * window + s) * c_tap);
                let rows = if slides { slide_rows(window - s, panel.tiles) } else { None };
                let used = self.runs(panel, place, (r, s), rows.is_some(), &mut runs);
                let runs = &runs[..used];
                // The first band starts the sums, even if it has no product.
                let idle = runs.is_empty() && place.started;
                if let Some(rows) = rows {
                    let steps = runs.iter().map(|run| run.steps).sum();
                    let shape = Slide { rows, c_tap, a_step: panel.tiles * TILE };
                    for (m, n) in
                        (0..panel.tiles).step_by(rows).flat_map(|m| (0..columns).map(move |n| (m, n)))
                    {
                        if !idle {
                            let to = to.wrapping_add(m * EDGE * C_STRIDE + n * EDGE);
                            let (a, b) = (dy.wrapping_add(m * TILE), b.wrapping_add(n * tile_row));
                            // SAFETY: the caller's promise; a row of x has zeros where windows overhang.
                            unsafe {
                                M::slide(&shape, runs, a, b, to, place.started, next.ask(steps, AHEAD_LINES))
                            };
                        }
                    }
                    s += shape.taps();
                } else {
                    let shape = Product {
                        rows: panel.tiles,
                        columns,
                        left: Left::Tiles,
                        right: Right::TilesApart(tile_row),
                        a_step: panel.tiles * TILE,
                        b_step: g.columns.stride * TILE,
                        last: EDGE,
                    };
                    if !idle {
                        // SAFETY: the caller's promise.
                        unsafe { M::product(&shape, runs, dy, b, to, place.started) };
                    }
                    s += 1;
                }
            }
        }
    }

    /// Fills in the positions of a band whose window has tap (r, s) inside the map, row by row: where dy of the panel and x
    /// lie. If `whole`, rows are whole: x has zeros where the window overhangs. Returns the number of rows.
    #[inline(always)]
    fn runs(
        &self,
        panel: &Panel,
        place: &Place,
        (r, s): (usize, usize),
        whole: bool,
        runs: &mut [Run; BAND_ROWS],
    ) -> usize {
        let Geometry { input, rows, columns, .. } = self.g;
        let (q0, q1) = if whole { (0, columns.output) } else { inside(&columns, s) };
        if q0 == q1 {
            return 0;
        }
        let mut used = 0;
        for (i, p) in place.band.clone().enumerate() {
            let Some(h) = rows.forward(p, r) else { continue };
            runs[used] = Run {
                a: (i * columns.output + q0) * panel.tiles * TILE,
                b: (place.x_row + h) * paired_row_len(&input, self.g.paired_pad())
                    + (q0 * columns.stride + s) * TILE,
                steps: q1 - q0,
            };
            used += 1;
        }
        used
    }
}

/// What of x some sums are over.
struct Place {
    /// Rows of dy.
    band: Range<usize>,
    /// The first row of the split of x.
    x_row: usize,
    /// The first of two tiles of channels.
    tile: usize,
    /// Whether the sums have been started.
    started: bool,
}

/// Tiles of filters that slide together when `left` taps of a row of the window are left: one with three taps, two with two.
fn slide_rows(left: usize, tiles: usize) -> Option<usize> {
    match left {
        1 => None,
        2 | 4 if tiles == 2 => Some(2),
        2 => None,
        _ => Some(1),
    }
}

/// Outputs whose window has tap `s` inside the map: consecutive ones.
fn inside(axis: &crate::conv::Axis, s: usize) -> (usize, usize) {
    let mut reads = (0..axis.output).filter(|&q| axis.forward(q, s).is_some());
    reads.next().map_or((0, 0), |first| (first, reads.next_back().unwrap_or(first) + 1))
}

/// dw and db from the sums of the parts.
struct SumParts<'a> {
    g: Geometry,
    fold: Fold,
    channels: usize,
    plan: &'a WeightPlan,
    parts: usize,
    dw: Ptr,
    db: Ptr,
}

impl Kernel for SumParts<'_> {
    /// Panels of filters.
    fn units(&self) -> usize {
        self.plan.panels.len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let (g, plan) = (&self.g, self.plan);
        let panel = plan.panels[unit];
        let split_channels = g.input.split_channels();
        let first_filter = panel.split * g.output.split_channels() + panel.first;
        let mut at = unit * plan.panel_len;
        for split in 0..g.input.splits / g.groups {
            for r in 0..g.rows.kernel {
                for s in 0..g.columns.kernel {
                    for first in (0..split_channels).step_by(2 * EDGE) {
                        for m in 0..panel.valid {
                            let mut row = [0.0; C_STRIDE];
                            self.sum_row::<S>(at + m * C_STRIDE, &mut row);
                            let filter = first_filter + m;
                            let count = (split_channels - first).min(2 * EDGE);
                            let first = split * split_channels + first;
                            // SAFETY: the panel owns its filters' elements, which are within dw.
                            unsafe { self.place(filter, first, r, s, &row[..count]) };
                        }
                        at += C_LEN;
                    }
                }
            }
        }
        let bias = plan.parts * plan.part_len() + unit * 2 * EDGE;
        for m in 0..panel.valid {
            let parts = (0..self.parts).map(|part| plan.sums[bias + part * plan.panels.len() * 2 * EDGE + m]);
            // SAFETY: the panel owns its filters' biases.
            unsafe { *self.db.at(first_filter + m) = parts.sum::<f32>() };
        }
    }
}

impl SumParts<'_> {
    /// A row of a block of dw: the parts' sums in order.
    #[inline(always)]
    fn sum_row<S: Simd>(&self, at: usize, row: &mut [f32; C_STRIDE]) {
        for c in (0..C_STRIDE).step_by(S::LANES) {
            // SAFETY: the row is within the sums of every part.
            unsafe {
                let mut sum = S::zero();
                for part in 0..self.parts {
                    let from = &self.plan.sums[part * self.plan.part_len() + at..][..C_STRIDE];
                    sum = S::add(sum, S::load(from.as_ptr().add(c)));
                }
                S::store(row.as_mut_ptr().add(c), sum);
            }
        }
    }

    /// Stores the gradients of a filter's weights of (perhaps folded) channels of its group from `first` on, at one tap.
    ///
    /// # Safety
    /// The filter is within dw, and nothing else touches it.
    #[inline(always)]
    unsafe fn place(&self, filter: usize, first: usize, r: usize, s: usize, row: &[f32]) {
        let Fold { kernel, fold } = self.fold;
        let filter_start = filter * self.channels * kernel * kernel;
        for (channel, value) in (first..).zip(row) {
            let (c, part) =
                if fold == 1 { (channel, 0) } else { (channel % self.channels, channel / self.channels) };
            let (r, s) = (r * fold + part / fold, s * fold + part % fold);
            if r < kernel && s < kernel {
                // SAFETY: the caller's promise; a folded tap beyond the kernel was left out.
                unsafe { *self.dw.at(filter_start + (c * kernel + r) * kernel + s) = *value };
            }
        }
    }
}

//! The weight gradient: sums over pictures and positions. A step's depth is the 32 pictures of one position, so padding is
//! skipped exactly and no map size leaves a remainder.
//!
//! ```text
//! for part of the blocks, group, 64 filters      (a unit: its dw stays in cache)
//!   for block, for a band of rows                (dy of the band: rows of picture pairs, in scratch)
//!     for 32 filters, tap, 32 channels           32 × 32 sums over the band's positions
//! ```
//!
//! Every part has its own dw; [`sum_parts`] adds them in order. The cut into parts depends on the number of blocks alone.

use super::{Fold, Geometry, Panel, panels};
use crate::arena::Buffer;
use crate::bf16::convert::{paired_len, paired_position_len, prefetch_pairs, unzip_pairs};
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, pairs};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use std::ops::Range;

/// Most parts of the blocks, each with a dw of its own.
const MOST_PARTS: usize = 4;
/// Panels of filters in a unit.
const UNIT_PANELS: usize = 2;
/// Bytes of x and dy of a band of rows: they are read once for every tap, so they should stay in an L2 of 1 MiB.
const BAND_BYTES: usize = 768 << 10;
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
        g.check();
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
        let x_row = splits * g.columns.input * paired_position_len(&g.input) * size_of::<u32>();
        let dy_row = g.columns.output * UNIT_PANELS * 2 * EDGE * EDGE * size_of::<u32>();
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
        (self.band * g.columns.output + 1) * UNIT_PANELS * 2 * EDGE * EDGE
    }

    fn part_len(&self) -> usize {
        self.panels.len() * self.panel_len
    }
}

/// dw and db, summed over all pictures of the blocks that hold `count`; overwrites both. Pictures beyond `count` count too:
/// their dy is zero.
///
/// Shapes: `paired` from [`crate::bf16::convert::pair_pictures`] of x, dy as the geometry says, dw (K, C/G, R, S), db (K).
pub fn backward_weight(
    ctx: &mut Context,
    engine: Engine,
    g: &Geometry,
    fold: Fold,
    plan: &mut WeightPlan,
    count: usize,
    paired: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let blocks = count.div_ceil(PICTURES);
    assert!(
        paired.len() >= paired_len(&g.input, blocks) && dy.len() >= blocks * g.output.block_len(),
        "maps"
    );
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
        let part = unit / (plan.units.len() - 1);
        let unit = unit % (plan.units.len() - 1);
        let indices = plan.units[unit]..plan.units[unit + 1];
        let panels = &plan.panels[indices.clone()];
        let first = panels[0];
        let tiles: usize = panels.iter().map(|p| p.tiles).sum();
        let position_len = tiles * EDGE * EDGE;
        let group = first.split * g.groups / g.output.splits;
        let group_splits = g.input.splits / g.groups;
        let sums = self.sums.at(part * plan.part_len() + indices.start * plan.panel_len);
        let bias = self.sums.at(self.bias_start(part) + indices.start * 2 * EDGE);
        let bias_sums = scratch.wrapping_add(plan.band * g.columns.output * UNIT_PANELS * 2 * EDGE * EDGE);
        let unit_pairs = panels.iter().map(|p| p.valid).sum::<usize>().div_ceil(2);
        let paired_position = paired_position_len(&g.input);
        let columns = g.columns;
        // SAFETY: maps were checked; bands lie within the maps and within scratch; (part, unit) owns its sums.
        unsafe {
            std::ptr::write_bytes(bias_sums, 0, 2 * unit_pairs * EDGE);
            let mut started = false;
            for block in self.part(part) {
                let dy = self.dy.as_ptr().add(block * g.output.block_len());
                let mut p0 = 0;
                while p0 < g.rows.output {
                    let band = p0..(p0 + plan.band).min(g.rows.output);
                    for p in band.clone() {
                        for q in 0..columns.output {
                            let from = dy.add(g.output.at(first.split, p, q) + first.first / 2 * PICTURES);
                            let to =
                                scratch.add(((p - p0) * columns.output + q) * position_len).cast::<u32>();
                            // The next position's filters lie too far off for the processor to foresee them.
                            prefetch_pairs(from.wrapping_add(g.output.position_len()), unit_pairs);
                            unzip_pairs::<M::S>(from, unit_pairs, to);
                            std::ptr::write_bytes(
                                to.add(2 * unit_pairs * EDGE),
                                0,
                                position_len - 2 * unit_pairs * EDGE,
                            );
                            add_pictures::<M::S>(from, unit_pairs, bias_sums);
                        }
                    }
                    let mut to = sums;
                    let mut first_tile = 0;
                    for panel in panels {
                        for split in 0..group_splits {
                            let x_split = group * group_splits + split;
                            let map = ((block * g.input.splits + x_split) * g.input.height) * g.input.width;
                            for r in 0..g.rows.kernel {
                                for s in 0..columns.kernel {
                                    let mut runs = [Run::default(); BAND_ROWS];
                                    let mut used = 0;
                                    let (q0, q1) = inside(&columns, s);
                                    for p in band.clone() {
                                        let Some(h) = g.rows.forward(p, r) else { continue };
                                        if q0 == q1 {
                                            continue;
                                        }
                                        let w = q0 * columns.stride + s - columns.pad;
                                        let a = ((p - p0) * columns.output + q0) * position_len;
                                        runs[used] = Run {
                                            a: a + first_tile * EDGE * EDGE,
                                            b: (map + h * g.input.width + w) * paired_position,
                                            steps: q1 - q0,
                                        };
                                        used += 1;
                                    }
                                    let channel_tiles = g.input.split_channels().div_ceil(EDGE);
                                    for tile in (0..channel_tiles).step_by(2) {
                                        let shape = Product {
                                            rows: panel.tiles,
                                            columns: (channel_tiles - tile).min(2),
                                            left: Left::Tiles,
                                            right: Right::Tiles,
                                            a_step: position_len,
                                            b_step: columns.stride * paired_position,
                                        };
                                        let b = self.paired.as_ptr().add(tile * EDGE * EDGE);
                                        // The first band starts the sums, even if it has no product.
                                        if used > 0 || !started {
                                            M::product(shape, &runs[..used], scratch.cast(), b, to, started);
                                        }
                                        to = to.add(C_LEN);
                                    }
                                }
                            }
                        }
                        first_tile += panel.tiles;
                    }
                    started = true;
                    p0 = band.end;
                }
            }
            std::ptr::write_bytes(bias, 0, panels.len() * 2 * EDGE);
            for filter in 0..2 * unit_pairs {
                for lane in (0..EDGE).step_by(M::S::LANES) {
                    *bias.add(filter) += M::S::sum(M::S::load(bias_sums.add(filter * EDGE + lane)));
                }
            }
        }
    }
}

/// Outputs whose window has tap `s` inside the map: consecutive ones.
fn inside(axis: &crate::conv::Axis, s: usize) -> (usize, usize) {
    let mut reads = (0..axis.output).filter(|&q| axis.forward(q, s).is_some());
    reads.next().map_or((0, 0), |first| (first, reads.next_back().unwrap_or(first) + 1))
}

/// Adds the pictures of `pairs` pairs of channels to the channels' sums, 16 of each.
#[inline(always)]
unsafe fn add_pictures<S: Simd>(from: *const u32, pairs: usize, sums: *mut f32) {
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

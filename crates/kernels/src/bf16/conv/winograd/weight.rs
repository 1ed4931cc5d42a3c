//! The weight gradient: at every point a product of matrices whose depth is tiles and pictures.
//!
//! ```text
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
//!
//! for block, group, 32 channels        V = Bᵀ d B of all tiles, pictures paired
//! for part of the blocks, 64 filters   (a unit)
//!   for block
//!     for tile                         A dy Aᵀ of the filters, in rows of picture pairs: in scratch
//!     for point                        (dy of the point stays in L2)
//!       for 32 channels, 32 filters    32 × 32 sums over tiles and pictures, in registers
//! ```
//!
//! Every part has its own sums; [`SumParts`] adds them in order and turns points into taps. The cut into parts depends on the
//! number of blocks alone.

use super::transform::{Inputs, input, output_gradient, weight_gradient};
use super::{MOST_SIDE, POINTS, SIDE, STEP, Strip, fits, weight_points};
use crate::arena::Buffer;
use crate::bf16::conv::{Geometry, Panel, panels};
use crate::bf16::convert::pair_position;
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, TILE, pairs};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use std::ops::Range;

/// Most parts of the blocks, each with sums of its own.
const MOST_PARTS: usize = 4;
/// Panels of filters in a unit.
const UNIT_PANELS: usize = 2;
/// Sums of the biases of a panel: 16 for every filter, whose sum they are.
const BIAS_LEN: usize = STEP * EDGE;
/// From a point of a tile to the next, pairs, while a panel's channels are transformed: a line more than they are long.
const VALUES_DISTANCE: usize = EDGE * PICTURES + EDGE;

/// How [`backward_weight`] is cut; made once a plan.
#[derive(Debug)]
pub(in crate::bf16::conv) struct WeightPlan {
    g: Geometry,
    panels: Vec<Panel>,
    /// First panels of the units of a part, and the number of panels.
    units: Vec<usize>,
    parts: usize,
    /// Rows of G along both axes.
    points: [usize; 2],
    /// Sums of every part, (panels, points, panels of channels) blocks; after them those of the biases.
    sums: Buffer,
}

impl WeightPlan {
    /// The cut for a geometry and at most `blocks` blocks.
    pub(in crate::bf16::conv) fn new(g: &Geometry, blocks: usize) -> WeightPlan {
        assert!(fits(g), "a convolution for Winograd's method");
        let panels = panels(&g.output);
        let mut units = vec![0];
        for (i, panel) in panels.iter().enumerate() {
            let first = units[units.len() - 1];
            if i - first == UNIT_PANELS || panels[first].split != panel.split {
                units.push(i);
            }
        }
        units.push(panels.len());
        let points = [weight_points(g.rows.output), weight_points(g.columns.output)];
        let mut plan =
            WeightPlan { g: *g, panels, units, parts: blocks.min(MOST_PARTS), points, sums: Buffer::zeros(0) };
        plan.sums = Buffer::zeros(plan.parts * (plan.part_len() + plan.panels.len() * STEP));
        plan
    }

    /// Bytes held.
    pub(in crate::bf16::conv) fn bytes(&self) -> usize {
        self.sums.len() * size_of::<f32>()
    }

    /// Elements of scratch that each thread needs: a unit's filters at every point of every tile, and a vector of sums for
    /// the bias of every filter.
    pub(in crate::bf16::conv) fn scratch_len(&self) -> usize {
        (UNIT_PANELS * (POINTS * self.dy_distance() + BIAS_LEN)).max(POINTS * VALUES_DISTANCE)
    }

    /// Elements of the room for V, for so many blocks.
    pub(in crate::bf16::conv) fn paired_len(&self, blocks: usize) -> usize {
        blocks * self.g.groups * self.channel_panels() * POINTS * self.point_len()
    }

    /// Strips along both axes.
    fn strips(&self) -> [usize; 2] {
        [self.g.rows.output.div_ceil(2), self.g.columns.output.div_ceil(2)]
    }

    /// Pairs of 32 channels, or of 32 filters, of all tiles at one point.
    fn point_len(&self) -> usize {
        self.strips().iter().product::<usize>() * 2 * TILE
    }

    /// Pairs from a point of a panel of dy to the next: a line more than they are long.
    fn dy_distance(&self) -> usize {
        self.point_len() + EDGE
    }

    /// Panels of the channels that a group reads.
    fn channel_panels(&self) -> usize {
        self.g.input.channels / self.g.groups / STEP
    }

    /// Sums of one panel of filters.
    fn panel_len(&self) -> usize {
        self.points[0] * self.points[1] * self.channel_panels() * C_LEN
    }

    fn part_len(&self) -> usize {
        self.panels.len() * self.panel_len()
    }

    /// Where db of a part begins in the sums.
    fn bias_start(&self, part: usize) -> usize {
        self.parts * self.part_len() + part * self.panels.len() * STEP
    }
}

/// dw and db, summed over all pictures of the blocks that hold `count`; V is put into `paired` first.
pub(in crate::bf16::conv) fn backward_weight(
    ctx: &mut Context,
    engine: Engine,
    plan: &mut WeightPlan,
    count: usize,
    x: &[f32],
    paired: &mut [f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let (g, blocks) = (plan.g, count.div_ceil(PICTURES));
    assert!(x.len() >= blocks * g.input.block_len() && dy.len() >= blocks * g.output.block_len(), "maps");
    assert!(paired.len() >= plan.paired_len(blocks), "room for pairs");
    assert_eq!(dw.len(), g.output.channels * (g.input.channels / g.groups) * 9, "weight gradient");
    assert_eq!(db.len(), g.output.channels, "bias gradient");
    run(ctx, engine, &PairTiles { plan, blocks, x: pairs(x), to: Ptr::from_mut(paired) });
    let parts = plan.parts.min(blocks);
    let mut sums = std::mem::replace(&mut plan.sums, Buffer::zeros(0));
    let sums_ptr = Ptr::from_mut(&mut sums);
    run(
        ctx,
        engine,
        &WeightGradient { plan, blocks, parts, paired: pairs(paired), dy: pairs(dy), sums: sums_ptr },
    );
    plan.sums = sums;
    ctx.run(&SumParts { plan, parts, dw: Ptr::from_mut(dw), db: Ptr::from_mut(db) });
}

/// V with pictures paired: (blocks, groups, panels of 32 channels, points, tiles), and at each two operand tiles of 16 pairs
/// of pictures by 16 channels.
struct PairTiles<'a> {
    plan: &'a WeightPlan,
    blocks: usize,
    x: &'a [u32],
    to: Ptr,
}

impl MatrixKernel for PairTiles<'_> {
    fn units(&self) -> usize {
        self.blocks * self.plan.g.groups * self.plan.channel_panels()
    }

    fn scratch_len(&self) -> usize {
        POINTS * VALUES_DISTANCE
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (map, point_len) = (&self.plan.g.input, self.plan.point_len());
        let panels = self.plan.g.groups * self.plan.channel_panels();
        let channel = unit % panels * STEP;
        let (split, first) = (channel / map.split_channels(), channel % map.split_channels());
        let values = scratch.cast::<u32>();
        let [rows, columns] = self.plan.strips();
        for tile in 0..rows * columns {
            let (row, column) = (2 * (tile / columns), 2 * (tile % columns));
            // SAFETY: the map was checked; a unit has its own part of the pairs.
            unsafe {
                let x = self.x.as_ptr().add(unit / panels * map.block_len() + first / 2 * PICTURES);
                let from = Inputs::of(x, map, split, row, column);
                input::<M::S>(&from, EDGE, PICTURES, values, VALUES_DISTANCE);
                for point in 0..POINTS {
                    let to = self.to.at((unit * POINTS + point) * point_len + tile * 2 * TILE).cast::<u32>();
                    pair_position::<M::S>(values.add(point * VALUES_DISTANCE), EDGE, to);
                }
            }
        }
    }
}

struct WeightGradient<'a> {
    plan: &'a WeightPlan,
    blocks: usize,
    parts: usize,
    paired: &'a [u32],
    dy: &'a [u32],
    sums: Ptr,
}

impl MatrixKernel for WeightGradient<'_> {
    fn units(&self) -> usize {
        self.parts * (self.plan.units.len() - 1)
    }

    fn scratch_len(&self) -> usize {
        self.plan.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let plan = self.plan;
        let (part, unit) = (unit / (plan.units.len() - 1), unit % (plan.units.len() - 1));
        let indices = plan.units[unit]..plan.units[unit + 1];
        let panels = &plan.panels[indices.clone()];
        let group = panels[0].split * plan.g.groups / plan.g.output.splits;
        let sums = self.sums.at(part * plan.part_len() + indices.start * plan.panel_len());
        let bias = self.sums.at(plan.bias_start(part) + indices.start * STEP);
        let (dy, dy_panel) = (scratch.cast::<u32>(), POINTS * plan.dy_distance());
        let bias_sums = scratch.wrapping_add(UNIT_PANELS * dy_panel);
        let shape = Product {
            rows: 2,
            columns: 2,
            left: Left::Tiles,
            right: Right::Tiles,
            a_step: 2 * TILE,
            b_step: 2 * TILE,
            last: EDGE,
        };
        let blocks = part * self.blocks / self.parts..(part + 1) * self.blocks / self.parts;
        // SAFETY: maps were checked; tiles lie within the pairs and within scratch; (part, unit) owns its sums.
        unsafe {
            std::ptr::write_bytes(bias_sums, 0, UNIT_PANELS * BIAS_LEN);
            for block in blocks.clone() {
                for (i, panel) in panels.iter().enumerate() {
                    let to = dy.add(i * dy_panel);
                    self.enter_gradient::<M::S>(block, panel, to, bias_sums.add(i * BIAS_LEN));
                }
                let paired = (block * plan.g.groups + group) * plan.channel_panels() * POINTS;
                let mut runs = [Run::default(); MOST_SIDE];
                for weights in 0..plan.points[0] * plan.points[1] {
                    let (point, used) = self.runs(weights, &mut runs);
                    for channels in 0..plan.channel_panels() {
                        let b = paired + channels * POINTS + point;
                        let b = self.paired.as_ptr().add(b * plan.point_len());
                        for i in 0..panels.len() {
                            let a = dy.add(i * dy_panel + point * plan.dy_distance());
                            let at = i * plan.panel_len() + (weights * plan.channel_panels() + channels) * C_LEN;
                            M::product(shape, &runs[..used], a, b, sums.add(at), block > blocks.start);
                        }
                    }
                }
            }
            for filter in 0..panels.len() * STEP {
                *bias.add(filter) = 0.0;
                for lane in (0..EDGE).step_by(M::S::LANES) {
                    *bias.add(filter) += M::S::sum(M::S::load(bias_sums.add(filter * EDGE + lane)));
                }
            }
        }
    }
}

impl WeightGradient<'_> {
    /// A dy Aᵀ of a panel's filters at every tile, as rows of picture pairs; adds its pictures to the biases' sums.
    ///
    /// # Safety
    /// `to` and `bias_sums` have room for it.
    #[inline(always)]
    unsafe fn enter_gradient<S: Simd>(
        &self,
        block: usize,
        panel: &Panel,
        to: *mut u32,
        bias_sums: *mut f32,
    ) {
        let (map, distance) = (&self.plan.g.output, self.plan.dy_distance());
        let [rows, columns] = self.plan.strips();
        let mut values = [[[0.0f32; PICTURES]; 2]; POINTS];
        for tile in 0..rows * columns {
            let [row, column] = [
                Strip::at(tile / columns, map.height),
                Strip::at(tile % columns, map.width),
            ];
            let first = block * map.block_len() + panel.first / 2 * PICTURES;
            let at = |i, j| first + map.at(panel.split, row.first + i, column.first + j);
            for pair in 0..EDGE {
                // SAFETY: the caller's promise; outputs of a strip are within the map.
                unsafe {
                    for n in (0..PICTURES).step_by(S::LANES) {
                        let (mut even, mut odd) = ([[S::zero(); 2]; 2], [[S::zero(); 2]; 2]);
                        for i in 0..row.outputs {
                            for j in 0..column.outputs {
                                let from = self.dy.as_ptr().add(at(i, j) + pair * PICTURES + n);
                                (even[i][j], odd[i][j]) = S::load_pairs(from);
                            }
                        }
                        for (half, dy) in [even, odd].into_iter().enumerate() {
                            let points = output_gradient::<S>(dy);
                            for i in 0..SIDE {
                                for j in 0..SIDE {
                                    let to = values[i * SIDE + j][half].as_mut_ptr().add(n);
                                    S::store(to, points[i][j]);
                                }
                            }
                            // Row 1 of A has every output of the tile.
                            let bias = bias_sums.add((2 * pair + half) * EDGE + n % EDGE);
                            S::store(bias, S::add(S::load(bias), points[1][1]));
                        }
                    }
                    for (point, values) in values.iter().enumerate() {
                        for (half, values) in values.iter().enumerate() {
                            let to = to.add(point * distance + tile * 2 * TILE + (2 * pair + half) * EDGE);
                            S::round_values(values.as_ptr(), to);
                        }
                    }
                }
            }
        }
    }

    /// Fills in the tiles whose product with weights `weights` counts, row by row, which are at the same place in both
    /// operands; returns their point and the number of rows.
    #[inline(always)]
    fn runs(&self, weights: usize, runs: &mut [Run; MOST_SIDE]) -> (usize, usize) {
        let [height, width] = [self.plan.g.rows.output, self.plan.g.columns.output];
        let (i, j) = (weights / self.plan.points[1], weights % self.plan.points[1]);
        let [rows, columns] = self.plan.strips();
        let (p, across) = tiles_of(columns, width, j);
        let (r, down) = tiles_of(rows, height, i);
        for (run, row) in runs.iter_mut().zip(down.clone()) {
            let at = (row * columns + across.start) * 2 * TILE;
            *run = Run { a: at, b: at, steps: across.len() };
        }
        (r * SIDE + p, down.len())
    }
}

/// The strips that have a product with row `weights` of G, consecutive ones, and its point.
#[inline(always)]
fn tiles_of(strips: usize, outputs: usize, weights: usize) -> (usize, Range<usize>) {
    let mut with = (0..strips).filter_map(|i| Some((i, Strip::at(i, outputs).point(weights)?)));
    let Some((first, point)) = with.next() else { return (0, 0..0) };
    (point, first..first + 1 + with.count())
}

/// dw and db from the sums of the parts.
struct SumParts<'a> {
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
        let plan = self.plan;
        let panel = plan.panels[unit];
        let first_filter = panel.split * plan.g.output.split_channels() + panel.first;
        let channels = plan.g.input.channels / plan.g.groups;
        for m in 0..STEP {
            for first in (0..channels).step_by(STEP) {
                let mut taps = [[0.0f32; STEP]; 9];
                for c in (0..STEP).step_by(S::LANES) {
                    // SAFETY: vectors lie within the sums of every part and within the rows.
                    unsafe {
                        let mut du = [[S::zero(); SIDE + 1]; SIDE + 1];
                        for i in 0..plan.points[0] {
                            for j in 0..plan.points[1] {
                                let weights = i * plan.points[1] + j;
                                let at = unit * plan.panel_len()
                                    + (weights * plan.channel_panels() + first / STEP) * C_LEN
                                    + m * C_STRIDE;
                                for part in 0..self.parts {
                                    let from = &plan.sums[part * plan.part_len() + at..][..C_STRIDE];
                                    du[i][j] = S::add(du[i][j], S::load(from.as_ptr().add(c)));
                                }
                            }
                        }
                        for (tap, value) in weight_gradient::<S>(du).into_iter().flatten().enumerate() {
                            S::store(taps[tap].as_mut_ptr().add(c), value);
                        }
                    }
                }
                let to = ((first_filter + m) * channels + first) * 9;
                for c in 0..STEP {
                    for (tap, values) in taps.iter().enumerate() {
                        // SAFETY: the panel owns its filters' elements, which are within dw.
                        unsafe { *self.dw.at(to + c * 9 + tap) = values[c] };
                    }
                }
            }
            let bias = |part| plan.sums[plan.bias_start(part) + unit * STEP + m];
            // SAFETY: the panel owns its filters' biases.
            unsafe { *self.db.at(first_filter + m) = (0..self.parts).map(bias).sum::<f32>() };
        }
    }
}

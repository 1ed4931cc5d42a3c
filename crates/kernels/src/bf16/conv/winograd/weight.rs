//! The weight gradient: at every point a product of matrices whose depth is the tiles of a map and the pictures of a block.
//!
//! ```text
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
//!
//! for block
//!   for panel, for row of the map       x and dy with pictures paired
//!   for row of points
//!     for panel, for row of tiles       Bᵀ d B and A dy Aᵀ of these points: operands
//!     for point, for some filters       (a unit: their operands stay in L2, those of x go by once)
//!       for 32 channels, 32 filters     32 × 32 sums over tiles and pictures, in registers
//! ```
//!
//! Blocks are added one after the other, so the operands of a row of points in one block are all that there is at a time:
//! about 10 MB for conv3, which the last cache holds. [`Taps`] turns the sums of the points into taps.

use super::points::{SIDE, Strip, TAPS, strips_of, weight_gradient, weight_points};
use super::transform::{Inputs, output_gradient};
use super::{MOST_SIDE, STEP, fits_weight};
use crate::arena::Buffer;
use crate::bf16::conv::{Geometry, Panel, panels};
use crate::bf16::convert::{add_pictures, pair_position, prefetch_pairs, unzip_pairs};
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, TILE, pairs};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// Bytes of dy's operands in a unit: with 32 channels' of x they should stay in an L2 of 1 MiB.
const UNIT_BYTES: usize = 640 << 10;
/// Pairs of 32 channels or filters at one position or tile: two operand tiles.
const POSITION: usize = 2 * TILE;

/// How [`backward_weight`] is cut; made once a plan.
#[derive(Debug)]
pub(in crate::bf16::conv) struct WeightPlan {
    g: Geometry,
    /// Panels of filters.
    panels: Vec<Panel>,
    /// Rows of G along both axes.
    points: [usize; 2],
    /// (panels of filters, points, panels of channels) blocks of sums.
    sums: Buffer,
    /// Sums of dy, (P, K).
    bias_sums: Buffer,
}

impl WeightPlan {
    /// The cut for a geometry.
    pub(in crate::bf16::conv) fn new(g: &Geometry) -> WeightPlan {
        assert!(fits_weight(g), "a convolution for Winograd's method");
        let points = [weight_points(g.rows.output, TAPS), weight_points(g.columns.output, TAPS)];
        let empty = || Buffer::zeros(0);
        let mut plan =
            WeightPlan { g: *g, panels: panels(&g.output), points, sums: empty(), bias_sums: empty() };
        plan.sums = Buffer::zeros(plan.panels.len() * plan.panel_len());
        plan.bias_sums = Buffer::zeros(g.rows.output * g.output.channels);
        plan
    }

    /// Bytes held.
    pub(in crate::bf16::conv) fn bytes(&self) -> usize {
        (self.sums.len() + self.bias_sums.len()) * size_of::<f32>()
    }

    /// Elements of the room for a block of both maps with pictures paired, and for its operands at a row of points.
    pub(in crate::bf16::conv) fn paired_len(&self) -> usize {
        self.all_panels() * (self.map_len() + SIDE * self.point_len())
    }

    /// Panels of filters, and after them those of channels.
    fn all_panels(&self) -> usize {
        self.panels.len() + self.g.input.channels / STEP
    }

    /// Pairs of one panel in one block.
    fn map_len(&self) -> usize {
        self.g.rows.output * self.g.columns.output * POSITION
    }

    /// Strips along both axes.
    fn strips(&self) -> [usize; 2] {
        [self.g.rows.output.div_ceil(2), self.g.columns.output.div_ceil(2)]
    }

    /// Pairs of 32 channels, or of 32 filters, of all tiles at one point.
    fn point_len(&self) -> usize {
        self.strips().iter().product::<usize>() * POSITION
    }

    /// Panels of the channels that a group reads.
    fn channel_panels(&self) -> usize {
        self.g.input.channels / self.g.groups / STEP
    }

    /// Sums of one panel of filters.
    fn panel_len(&self) -> usize {
        self.points[0] * self.points[1] * self.channel_panels() * C_LEN
    }

    /// Panels of filters in a unit.
    fn unit_panels(&self) -> usize {
        (UNIT_BYTES / (self.point_len() * size_of::<u32>())).clamp(1, self.panels.len() / self.g.groups)
    }
}

/// dw and db, summed over all pictures of the blocks that hold `count`; `paired` is room for the operands of one block.
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
    assert!(paired.len() >= plan.paired_len(), "room for pairs");
    assert_eq!(dw.len(), g.output.channels * (g.input.channels / g.groups) * 9, "weight gradient");
    assert_eq!(db.len(), g.output.channels, "bias gradient");
    let [mut sums, mut bias_sums] =
        [&mut plan.sums, &mut plan.bias_sums].map(|sums| std::mem::replace(sums, Buffer::zeros(0)));
    let (maps, operands) = paired.split_at_mut(plan.all_panels() * plan.map_len());
    for block in 0..blocks {
        let x = &pairs(x)[block * g.input.block_len()..][..g.input.block_len()];
        let dy = &pairs(dy)[block * g.output.block_len()..][..g.output.block_len()];
        let (to, bias) = (Ptr::from_mut(maps), Ptr::from_mut(&mut bias_sums));
        run(ctx, engine, &PairMaps { plan, first: block == 0, x, dy, to, bias_sums: bias });
        for row in 0..SIDE {
            run(ctx, engine, &Operands { plan, row, maps: pairs(maps), to: Ptr::from_mut(operands) });
            let sums = Ptr::from_mut(&mut sums);
            run(ctx, engine, &Products { plan, row, first: block == 0, operands: pairs(operands), sums });
        }
    }
    (plan.sums, plan.bias_sums) = (sums, bias_sums);
    ctx.run(&Taps { plan, dw: Ptr::from_mut(dw), db: Ptr::from_mut(db) });
}

/// dy and x of a block with pictures paired, (panels, H, W): of dy two tiles of 16 filters by 16 pairs of pictures, of x two
/// of 16 pairs of pictures by 16 channels.
struct PairMaps<'a> {
    plan: &'a WeightPlan,
    /// Whether the sums begin with this block.
    first: bool,
    x: &'a [u32],
    dy: &'a [u32],
    to: Ptr,
    bias_sums: Ptr,
}

impl MatrixKernel for PairMaps<'_> {
    /// Rows of the panels.
    fn units(&self) -> usize {
        self.plan.all_panels() * self.plan.g.rows.output
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, _scratch: *mut f32) {
        let (g, filter_panels) = (&self.plan.g, self.plan.panels.len());
        let (panel, h) = (unit / g.rows.output, unit % g.rows.output);
        let is_x = panel >= filter_panels;
        let (map, values) = if is_x { (&g.input, self.x) } else { (&g.output, self.dy) };
        let channel = if is_x { panel - filter_panels } else { panel } * STEP;
        let (split, first) = (channel / map.split_channels(), channel % map.split_channels());
        let mut bias_sums = [0.0f32; STEP * EDGE];
        for w in 0..map.width {
            // SAFETY: the maps were checked; a unit has its own row.
            unsafe {
                let from = values.as_ptr().add(map.at(split, h, w) + first / 2 * PICTURES);
                let to = self.to.at((unit * map.width + w) * POSITION).cast::<u32>();
                // The next position lies too far off for the processor to foresee it.
                prefetch_pairs(from.wrapping_add(map.position_len()), EDGE);
                if is_x {
                    pair_position::<M::S>(from, EDGE, TILE, to);
                } else {
                    unzip_pairs::<M::S>(from, EDGE, to);
                    add_pictures::<M::S>(from, EDGE, bias_sums.as_mut_ptr());
                }
            }
        }
        if !is_x {
            for (filter, sums) in bias_sums.chunks_exact(EDGE).enumerate() {
                // SAFETY: this unit owns the panel's sums at this row.
                unsafe {
                    let to = self.bias_sums.at(h * map.channels + channel + filter);
                    let mut sum = if self.first { 0.0 } else { *to };
                    for lane in (0..EDGE).step_by(M::S::LANES) {
                        sum += M::S::sum(M::S::load(sums.as_ptr().add(lane)));
                    }
                    *to = sum;
                }
            }
        }
    }
}

/// The operands of a block at a row of points, (panels, 4 points, tiles), rounded.
struct Operands<'a> {
    plan: &'a WeightPlan,
    row: usize,
    maps: &'a [u32],
    to: Ptr,
}

impl MatrixKernel for Operands<'_> {
    /// Rows of tiles of the panels.
    fn units(&self) -> usize {
        self.plan.all_panels() * self.plan.strips()[0]
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, _scratch: *mut f32) {
        let plan = self.plan;
        let [rows, columns] = plan.strips();
        let [height, width] = [plan.g.rows.output, plan.g.columns.output];
        let (panel, row) = (unit / rows, unit % rows);
        let map = self.maps[panel * plan.map_len()..][..plan.map_len()].as_ptr();
        let at = |position: usize| map.wrapping_add(position * POSITION);
        for column in 0..columns {
            let to = panel * SIDE * plan.point_len() + (row * columns + column) * POSITION;
            let to = self.to.at(to).cast::<u32>();
            if panel < plan.panels.len() {
                let strips = [Strip::at(row, height, TAPS), Strip::at(column, width, TAPS)];
                // SAFETY: a unit has its own part of the operands.
                unsafe { self.gradient::<M::S>(strips, at, to) };
                continue;
            }
            let from = Inputs::of([height, width], [2 * row, 2 * column], 1, EDGE, at);
            for p in 0..POSITION / EDGE {
                for n in (0..EDGE).step_by(M::S::LANES) {
                    // SAFETY: as above; a position has as many rows.
                    unsafe {
                        let points = from.row::<M::S>(self.row, p, n);
                        for (j, (even, odd)) in points.into_iter().enumerate() {
                            M::S::store_pairs(to.add(j * plan.point_len() + p * EDGE + n), even, odd);
                        }
                    }
                }
            }
        }
    }
}

impl Operands<'_> {
    /// A row of A dy Aᵀ of the tile of these strips.
    ///
    /// # Safety
    /// `to` has room for it.
    #[inline(always)]
    unsafe fn gradient<S: Simd>(
        &self,
        [row, column]: [Strip; 2],
        at: impl Fn(usize) -> *const u32,
        to: *mut u32,
    ) {
        let width = self.plan.g.columns.output;
        let mut from = [[std::ptr::null(); 2]; 2];
        for (i, from) in from.iter_mut().enumerate().take(row.outputs) {
            for (j, from) in from.iter_mut().enumerate().take(column.outputs) {
                *from = at((row.first + i) * width + column.first + j);
            }
        }
        for n in (0..POSITION).step_by(S::LANES) {
            // SAFETY: the caller's promise; outputs of a strip are within the map.
            unsafe {
                let (mut even, mut odd) = ([[S::zero(); 2]; 2], [[S::zero(); 2]; 2]);
                for i in 0..row.outputs {
                    for j in 0..column.outputs {
                        (even[i][j], odd[i][j]) = S::load_pairs(from[i][j].add(n));
                    }
                }
                let even = output_gradient::<S>(self.row, even);
                let odd = output_gradient::<S>(self.row, odd);
                for j in 0..SIDE {
                    S::store_pairs(to.add(j * self.plan.point_len() + n), even[j], odd[j]);
                }
            }
        }
    }
}

/// The products of a block's operands at a row of points.
struct Products<'a> {
    plan: &'a WeightPlan,
    row: usize,
    /// Whether the sums begin with this block.
    first: bool,
    operands: &'a [u32],
    sums: Ptr,
}

impl Products<'_> {
    /// Units of a point in one group.
    fn point_units(&self) -> usize {
        (self.plan.panels.len() / self.plan.g.groups).div_ceil(self.plan.unit_panels())
    }

    /// Rows of G whose products are at this row of points: its own, and at row 1 also the middle tap alone.
    fn weight_rows(&self) -> usize {
        if self.row == 1 && self.plan.points[0] > SIDE { 2 } else { 1 }
    }
}

impl MatrixKernel for Products<'_> {
    fn units(&self) -> usize {
        self.plan.g.groups * self.weight_rows() * self.plan.points[1] * self.point_units()
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, _scratch: *mut f32) {
        let plan = self.plan;
        let (point, unit) = (unit / self.point_units(), unit % self.point_units());
        let (point, j) = (point / plan.points[1], point % plan.points[1]);
        let (group, i) =
            (point / self.weight_rows(), if point % self.weight_rows() == 0 { self.row } else { SIDE });
        let group_panels = plan.panels.len() / plan.g.groups;
        let first = group * group_panels + unit * plan.unit_panels();
        let panels = first..(first + plan.unit_panels()).min((group + 1) * group_panels);
        // The tiles that have a product with these weights, row by row, are at the same place in both operands.
        let [_, columns] = plan.strips();
        let (_, down) = strips_of(plan.g.rows.output, TAPS, i);
        let (point, across) = strips_of(plan.g.columns.output, TAPS, j);
        let mut runs = [Run::default(); MOST_SIDE];
        let used = if across.is_empty() { 0 } else { down.len() };
        for (run, row) in runs.iter_mut().zip(down) {
            let at = (row * columns + across.start) * POSITION;
            *run = Run { a: at, b: at, steps: across.len() };
        }
        let shape = Product {
            rows: 2,
            columns: 2,
            left: Left::Tiles,
            right: Right::Tiles,
            a_step: POSITION,
            b_step: POSITION,
            last: EDGE,
        };
        let operand = |panel: usize| self.operands[(panel * SIDE + point) * plan.point_len()..].as_ptr();
        let weights = i * plan.points[1] + j;
        for channels in 0..plan.channel_panels() {
            let b = operand(plan.panels.len() + group * plan.channel_panels() + channels);
            for panel in panels.clone() {
                let at = panel * plan.panel_len() + (weights * plan.channel_panels() + channels) * C_LEN;
                // SAFETY: runs lie within the operands; this unit owns the sums of its filters at its point.
                unsafe {
                    M::product(&shape, &runs[..used], operand(panel), b, self.sums.at(at), !self.first);
                }
            }
        }
    }
}

/// dw and db from the sums.
struct Taps<'a> {
    plan: &'a WeightPlan,
    dw: Ptr,
    db: Ptr,
}

impl Kernel for Taps<'_> {
    /// Pairs of a panel of filters and a panel of channels.
    fn units(&self) -> usize {
        self.plan.panels.len() * self.plan.channel_panels()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let plan = self.plan;
        let (panel, first) = (unit / plan.channel_panels(), unit % plan.channel_panels());
        let channels = plan.channel_panels() * STEP;
        let [rows, columns] = plan.points;
        let sums = &plan.sums[panel * plan.panel_len()..][..plan.panel_len()];
        for m in 0..STEP {
            let mut taps = [[0.0f32; STEP]; 9];
            for c in (0..STEP).step_by(S::LANES) {
                // SAFETY: vectors lie within the sums and within the rows.
                unsafe {
                    let mut du = [[S::zero(); SIDE + 1]; SIDE + 1];
                    for i in 0..rows {
                        for j in 0..columns {
                            let at = ((i * columns + j) * plan.channel_panels() + first) * C_LEN;
                            du[i][j] = S::load(sums[at + m * C_STRIDE..][..C_STRIDE].as_ptr().add(c));
                        }
                    }
                    for (tap, value) in weight_gradient::<S>(du).into_iter().flatten().enumerate() {
                        S::store(taps[tap].as_mut_ptr().add(c), value);
                    }
                }
            }
            let to = ((panel * STEP + m) * channels + first * STEP) * 9;
            for c in 0..STEP {
                for (tap, values) in taps.iter().enumerate() {
                    // SAFETY: the unit owns its filters' and channels' elements, which are within dw.
                    unsafe { *self.dw.at(to + c * 9 + tap) = values[c] };
                }
            }
            if first == 0 {
                let filter = panel * STEP + m;
                let sums =
                    (0..plan.g.rows.output).map(|row| plan.bias_sums[row * plan.g.output.channels + filter]);
                // SAFETY: the first of a panel's units owns its filters' biases.
                unsafe { *self.db.at(filter) = sums.sum::<f32>() };
            }
        }
    }
}

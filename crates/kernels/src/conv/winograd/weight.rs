//! The weight gradient, and the bias gradient with it.
//!
//! ```text
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
//!
//! unit: one group, one panel of filters, one row of weights in G (threads)
//!   block, row of tiles, two of its tiles
//!     Bᵀ d B of all channels of the group and A dy Aᵀ of the panel at this row of points
//!     point: outer() over the pictures of both tiles
//! ```
//!
//! No sum crosses units, so the result does not depend on the threads. [`Taps`] turns the sums of the points into taps.

use super::{Inputs, fits};
use crate::arena::Buffer;
use crate::conv::Geometry;
use crate::isa::Isa;
use crate::panel::{Panel, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::{self, Output, Run, Start};
use crate::winograd::{SIDE, Strip, row_of_a, strips_of, weight_gradient, weight_points};

/// Tiles that are multiplied together: the longer the sums, the less often they are loaded and stored.
const TILES: usize = 2;
/// Elements between the points of an operand, beyond their length.
const GAP: usize = 16;

/// How [`backward_weight`] is cut into units; made once a plan.
#[derive(Debug)]
pub(in crate::conv) struct WeightPlan {
    g: Geometry,
    /// Panels of each group.
    panels: Vec<Panel>,
    lanes: usize,
    /// Rows of G along both axes.
    points: [usize; 2],
    /// (groups, panels, points, C/G, width)
    sums: Buffer,
}

impl WeightPlan {
    /// The cut for a geometry, which does not depend on the number of threads.
    pub(in crate::conv) fn new(isa: Isa, g: &Geometry) -> WeightPlan {
        assert!(fits(g), "a convolution for Winograd's method");
        let points = [weight_points(g.rows.output), weight_points(g.columns.output)];
        let sums = Buffer::zeros(points[0] * points[1] * g.k * g.c / g.groups);
        WeightPlan { g: *g, panels: panels(isa, g.k / g.groups), lanes: isa.lanes(), points, sums }
    }

    /// Bytes held.
    pub(in crate::conv) fn bytes(&self) -> usize {
        self.sums.len() * size_of::<f32>()
    }

    /// Elements of scratch that each thread needs: both operands at four points.
    pub(in crate::conv) fn scratch_len(&self) -> usize {
        SIDE * (self.distance(self.g.c / self.g.groups) + self.distance(self.width()))
    }

    /// The widest panel, elements.
    fn width(&self) -> usize {
        self.panels.iter().map(|p| p.vectors).max().unwrap_or(1) * self.lanes
    }

    /// From a point of an operand of so many channels to the next.
    fn distance(&self, channels: usize) -> usize {
        TILES * self.g.block * channels + GAP
    }

    /// Where the sums of a panel begin at a point.
    fn at(&self, group: usize, panel: &Panel, i: usize, j: usize) -> usize {
        let (channels, width) = (self.g.c / self.g.groups, panel.vectors * self.lanes);
        let first = group * (self.g.k / self.g.groups) + panel.first;
        (first * self.points[0] * self.points[1] + (i * self.points[1] + j) * width) * channels
    }
}

/// dw and db, summed over the first `count` pictures, in canonical order.
pub(in crate::conv) fn backward_weight(
    ctx: &mut Context,
    plan: &mut WeightPlan,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    assert_eq!(plan.lanes, ctx.isa().lanes(), "planned for another instruction set");
    let mut sums = std::mem::replace(&mut plan.sums, Buffer::zeros(0));
    let to = Ptr::from_mut(&mut sums);
    ctx.run(&WeightGradient { plan, count, x, dy, sums: to, db: Ptr::from_mut(db) });
    plan.sums = sums;
    ctx.run(&Taps { plan, dw: Ptr::from_mut(dw) });
}

struct WeightGradient<'a> {
    plan: &'a WeightPlan,
    count: usize,
    x: &'a [f32],
    dy: &'a [f32],
    sums: Ptr,
    db: Ptr,
}

impl Kernel for WeightGradient<'_> {
    fn units(&self) -> usize {
        self.plan.g.groups * self.plan.panels.len() * self.plan.points[0]
    }

    fn scratch_len(&self) -> usize {
        self.plan.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (plan, g) = (self.plan, &self.plan.g);
        let (panel, i) = (unit / plan.points[0], unit % plan.points[0]);
        let (group, panel) = (panel / plan.panels.len(), &plan.panels[panel % plan.panels.len()]);
        let [height, width] = [g.rows.output, g.columns.output];
        let (cg, panel_width) = (g.c / g.groups, panel.vectors * S::LANES);
        let channel = group * (g.k / g.groups) + panel.first;
        let (values, x_distance) = (scratch, plan.distance(cg));
        let (gradient, dy_distance) = (scratch.wrapping_add(SIDE * x_distance), plan.distance(panel_width));
        let (row_point, down) = strips_of(height.div_ceil(2), height, i);
        let sums = plan.at(group, panel, i, 0);
        // SAFETY: maps were checked; scratch has room for both operands; the unit owns its sums, and the first row of G
        // the panel's biases.
        unsafe {
            std::ptr::write_bytes(self.sums.at(sums), 0, plan.points[1] * cg * panel_width);
            for block in 0..self.count.div_ceil(g.block) {
                let pictures = (self.count - block * g.block).min(g.block);
                let x = self.x[block * height * width * g.block * g.c + group * cg..].as_ptr();
                let dy = self.dy[block * height * width * g.block * g.k + channel..].as_ptr();
                for row in down.clone() {
                    let row = Strip::at(row, height);
                    for (first, count) in (0..width.div_ceil(2))
                        .step_by(TILES)
                        .map(|first| (first, TILES.min(width.div_ceil(2) - first)))
                    {
                        for tile in 0..count {
                            let column = Strip::at(first + tile, width);
                            let at = [row.first, column.first];
                            let from = Inputs::of(x, [height, width], g.block * g.c, at);
                            let to = values.add(tile * pictures * cg);
                            from.row::<S>(row_point, pictures, g.c, cg, to, x_distance);
                            let to = gradient.add(tile * pictures * panel_width);
                            self.gradient::<S>(
                                dy,
                                panel,
                                [row, column],
                                row_point,
                                pictures,
                                to,
                                dy_distance,
                            );
                        }
                        for weights in 0..plan.points[1] {
                            let mut runs = [Run::default(); TILES];
                            let (mut used, mut point) = (0, 0);
                            for tile in 0..count {
                                let Some(j) = Strip::at(first + tile, width).point(weights) else { continue };
                                let (x, w) = (tile * pictures * cg, tile * pictures * panel_width);
                                runs[used] = Run { x, w, len: pictures };
                                (used, point) = (used + 1, j);
                            }
                            if used == 0 {
                                continue;
                            }
                            for (c, rows) in tiles(cg, S::ROWS[panel.vectors - 1]) {
                                let y = self.sums.at(sums + (weights * cg + c) * panel_width);
                                tile::outer::<S>(
                                    panel.vectors,
                                    &runs[..used],
                                    values.add(point * x_distance + c),
                                    cg,
                                    gradient.add(point * dy_distance),
                                    Start::Output,
                                    Output { y, stride: panel_width, rows, valid: panel_width },
                                );
                            }
                        }
                    }
                }
            }
            if i == 0 {
                self.biases::<S>(panel, channel);
            }
        }
    }
}

impl WeightGradient<'_> {
    /// Row `i` of A dy Aᵀ of a panel at a tile: (4 points, pictures, width).
    ///
    /// # Safety
    /// `dy` begins at the panel's channels of a block; `to` has room.
    #[inline(always)]
    unsafe fn gradient<S: Simd>(
        &self,
        dy: *const f32,
        panel: &Panel,
        [row, column]: [Strip; 2],
        i: usize,
        pictures: usize,
        to: *mut f32,
        distance: usize,
    ) {
        let g = &self.plan.g;
        let width = panel.vectors * S::LANES;
        for n in 0..pictures {
            for c in (0..width).step_by(S::LANES) {
                // SAFETY: the caller's promise; outputs of a strip are within the map.
                unsafe {
                    let mut outputs = [[S::zero(); 2]; 2];
                    for (p, outputs) in outputs.iter_mut().enumerate().take(row.outputs) {
                        for (q, output) in outputs.iter_mut().enumerate().take(column.outputs) {
                            let position = (row.first + p) * g.columns.output + column.first + q;
                            *output = S::load(dy.add((position * g.block + n) * g.k + c));
                        }
                    }
                    let left = row_of_a::<S>(i, outputs[0][0], outputs[1][0]);
                    let right = row_of_a::<S>(i, outputs[0][1], outputs[1][1]);
                    for j in 0..SIDE {
                        S::store(to.add(j * distance + n * width + c), row_of_a::<S>(j, left, right));
                    }
                }
            }
        }
    }

    /// The bias gradients of a panel: every position's sum over the pictures, added to those before.
    ///
    /// # Safety
    /// The filters are the unit's own.
    #[inline(always)]
    unsafe fn biases<S: Simd>(&self, panel: &Panel, channel: usize) {
        let g = &self.plan.g;
        let positions = g.rows.output * g.columns.output;
        for c in (0..panel.vectors * S::LANES).step_by(S::LANES) {
            // SAFETY: the caller's promise; the map was checked.
            unsafe {
                let mut total = S::zero();
                for block in 0..self.count.div_ceil(g.block) {
                    let pictures = (self.count - block * g.block).min(g.block);
                    for position in block * positions..(block + 1) * positions {
                        let mut sum = S::zero();
                        for n in 0..pictures {
                            let at = (position * g.block + n) * g.k + channel + c;
                            sum = S::add(sum, S::load(self.dy.as_ptr().add(at)));
                        }
                        total = S::add(total, sum);
                    }
                }
                S::store(self.db.at(channel + c), total);
            }
        }
    }
}

/// dw from the sums.
struct Taps<'a> {
    plan: &'a WeightPlan,
    dw: Ptr,
}

/// Channels of a unit of [`Taps`].
const UNIT: usize = 16;

impl Kernel for Taps<'_> {
    /// Some channels of a panel of a group.
    fn units(&self) -> usize {
        let g = &self.plan.g;
        g.groups * self.plan.panels.len() * (g.c / g.groups).div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let (plan, g) = (self.plan, &self.plan.g);
        let cg = g.c / g.groups;
        let (panel, first) = (unit / cg.div_ceil(UNIT), unit % cg.div_ceil(UNIT) * UNIT);
        let (group, panel) = (panel / plan.panels.len(), &plan.panels[panel % plan.panels.len()]);
        let filter = group * (g.k / g.groups) + panel.first;
        let width = panel.vectors * S::LANES;
        for c in first..(first + UNIT).min(cg) {
            for v in (0..width).step_by(S::LANES) {
                let mut taps = [[0.0f32; 16]; 9];
                // SAFETY: vectors lie within the sums.
                unsafe {
                    let mut du = [[S::zero(); SIDE + 1]; SIDE + 1];
                    for i in 0..plan.points[0] {
                        for j in 0..plan.points[1] {
                            let from = &plan.sums[plan.at(group, panel, i, j) + c * width + v..][..S::LANES];
                            du[i][j] = S::load(from.as_ptr());
                        }
                    }
                    let dg = weight_gradient::<S>(du);
                    for (tap, values) in taps.iter_mut().enumerate() {
                        S::store(values.as_mut_ptr(), dg[tap / 3][tap % 3]);
                    }
                }
                for lane in 0..S::LANES {
                    let to = ((filter + v + lane) * cg + c) * 9;
                    for (tap, values) in taps.iter().enumerate() {
                        // SAFETY: the unit owns these elements of dw.
                        unsafe { *self.dw.at(to + tap) = values[lane] };
                    }
                }
            }
        }
    }
}

//! The weight gradient, and the bias gradient with it.
//!
//! ```text
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
//!
//! unit: one group, two panels of filters, one row of weights in G (threads)
//!   block, row of tiles, two of its tiles
//!     Bᵀ d B of all channels of the group at this row of points
//!     panel: A dy Aᵀ
//!       point: outer() over the pictures of both tiles
//! ```
//!
//! No sum crosses units, so the result does not depend on the threads. [`Taps`] turns the sums of the points into taps.

use super::{Inputs, fits_weight};
use crate::arena::Buffer;
use crate::conv::Geometry;
use crate::isa::Isa;
use crate::panel::{Panel, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::{self, Output, Run, Start};
use crate::winograd::{SIDE, Strip, TAPS, row_of_a, strips_of, weight_gradient, weight_points};
use std::ops::Range;

/// Tiles that are multiplied together: the longer the sums, the less often they are loaded and stored.
const TILES: usize = 2;
/// Panels of filters in a unit: V is transformed for all of them.
const PANELS: usize = 2;
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
        assert!(fits_weight(g), "a convolution for Winograd's method");
        let points = [weight_points(g.rows.output, TAPS), weight_points(g.columns.output, TAPS)];
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
    let g = &plan.g;
    assert_eq!(dw.len(), g.k * (g.c / g.groups) * g.taps(), "weight gradient");
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
        self.plan.g.groups * self.group_units() * self.plan.points[0]
    }

    fn scratch_len(&self) -> usize {
        self.plan.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (plan, g) = (self.plan, &self.plan.g);
        let (panels, i) = (unit / plan.points[0], unit % plan.points[0]);
        let (group, first) = (panels / self.group_units(), panels % self.group_units() * PANELS);
        let panels = &plan.panels[first..(first + PANELS).min(plan.panels.len())];
        let [height, width] = [g.rows.output, g.columns.output];
        let channels = g.c / g.groups;
        let (values, distance) = (scratch, plan.distance(channels));
        let gradient = scratch.wrapping_add(SIDE * distance);
        let (point, down) = strips_of(height.div_ceil(2), height, i);
        // SAFETY: maps were checked; scratch has room for both operands; the unit owns its sums, and the first row of G
        // the panels' biases.
        unsafe {
            for panel in panels {
                let len = plan.points[1] * channels * panel.vectors * S::LANES;
                std::ptr::write_bytes(self.sums.at(plan.at(group, panel, i, 0)), 0, len);
            }
            for block in 0..self.count.div_ceil(g.block) {
                let pictures = (self.count - block * g.block).min(g.block);
                let x = self.x[block * height * width * g.block * g.c + group * channels..].as_ptr();
                for row in down.clone() {
                    let row = Strip::at(row, height, TAPS);
                    for first in (0..width.div_ceil(2)).step_by(TILES) {
                        let columns = first..(first + TILES).min(width.div_ceil(2));
                        for (tile, column) in columns.clone().enumerate() {
                            let at = [row.first, 2 * column];
                            let from = Inputs::of(x, [height, width], g.block * g.c, at, 1);
                            let to = values.add(tile * pictures * channels);
                            from.row::<S>(point, pictures, g.c, channels, to, distance);
                        }
                        for panel in panels {
                            let at = (group, panel, i);
                            self.gradient::<S>(at, block, row, columns.clone(), point, gradient);
                            self.products::<S>(at, columns.clone(), pictures, values, gradient);
                        }
                    }
                }
            }
            if i == 0 {
                for panel in panels {
                    self.biases::<S>(panel, group * (g.k / g.groups) + panel.first);
                }
            }
        }
    }
}

impl WeightGradient<'_> {
    /// Units of a group at one row of G.
    fn group_units(&self) -> usize {
        self.plan.panels.len().div_ceil(PANELS)
    }

    /// Adds the products of a panel's operands at some tiles to its sums.
    ///
    /// # Safety
    /// The operands are there, and the sums are the unit's own.
    #[inline(always)]
    unsafe fn products<S: Simd>(
        &self,
        (group, panel, i): (usize, &Panel, usize),
        columns: Range<usize>,
        pictures: usize,
        values: *const f32,
        gradient: *const f32,
    ) {
        let (plan, g) = (self.plan, &self.plan.g);
        let (channels, width) = (g.c / g.groups, panel.vectors * S::LANES);
        for weights in 0..plan.points[1] {
            let mut runs = [Run::default(); TILES];
            let (mut used, mut point) = (0, 0);
            for (tile, column) in columns.clone().enumerate() {
                let Some(j) = Strip::at(column, g.columns.output, TAPS).point(weights) else { continue };
                runs[used] = Run { x: tile * pictures * channels, w: tile * pictures * width, len: pictures };
                (used, point) = (used + 1, j);
            }
            if used == 0 {
                continue;
            }
            let sums = plan.at(group, panel, i, weights);
            for (c, rows) in tiles(channels, S::ROWS[panel.vectors - 1]) {
                let out = Output { y: self.sums.at(sums + c * width), stride: width, rows, valid: width };
                // SAFETY: the caller's promise.
                unsafe {
                    let x = values.add(point * plan.distance(channels) + c);
                    let w = gradient.add(point * plan.distance(width));
                    tile::outer::<S>(panel.vectors, &runs[..used], x, channels, w, Start::Output, out);
                }
            }
        }
    }

    /// Row `point` of A dy Aᵀ of a panel at some tiles of a row: (4 points, tiles, pictures, width).
    ///
    /// # Safety
    /// `to` has room.
    #[inline(always)]
    unsafe fn gradient<S: Simd>(
        &self,
        (group, panel, _): (usize, &Panel, usize),
        block: usize,
        row: Strip,
        columns: Range<usize>,
        point: usize,
        to: *mut f32,
    ) {
        let g = &self.plan.g;
        let (width, distance) = (panel.vectors * S::LANES, self.plan.distance(panel.vectors * S::LANES));
        let pictures = (self.count - block * g.block).min(g.block);
        let first = block * g.rows.output * g.columns.output;
        let channel = group * (g.k / g.groups) + panel.first;
        for (tile, column) in columns.enumerate() {
            let column = Strip::at(column, g.columns.output, TAPS);
            for n in 0..pictures {
                for c in (0..width).step_by(S::LANES) {
                    // SAFETY: the caller's promise; outputs of a strip are within the map.
                    unsafe {
                        let mut outputs = [[S::zero(); 2]; 2];
                        for (p, outputs) in outputs.iter_mut().enumerate().take(row.outputs) {
                            for (q, output) in outputs.iter_mut().enumerate().take(column.outputs) {
                                let position = (row.first + p) * g.columns.output + column.first + q;
                                let at = ((first + position) * g.block + n) * g.k + channel + c;
                                *output = S::load(self.dy.as_ptr().add(at));
                            }
                        }
                        let left = row_of_a::<S>(point, outputs[0][0], outputs[1][0]);
                        let right = row_of_a::<S>(point, outputs[0][1], outputs[1][1]);
                        for j in 0..SIDE {
                            let to = to.add(j * distance + (tile * pictures + n) * width + c);
                            S::store(to, row_of_a::<S>(j, left, right));
                        }
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

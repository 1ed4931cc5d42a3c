//! The weight gradient, and the bias gradient with it.
//!
//! ```text
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
//!
//! unit: one group, two panels of filters, one row of weights in G of one row of filters of the window (threads)
//!   block, row of tiles, four of its tiles
//!     Bᵀ d B of all channels of the group at this row of points, of the tiles that these filters read
//!     panel: A dy Aᵀ
//!       point, filter of the row: outer() over the pictures of all four
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
use crate::winograd::{SIDE, Strip, TAPS, filters, products, row_of_a, strips_of, tap, weight_gradient};
use std::ops::Range;

/// Tiles that are multiplied together: the longer the sums, the less often they are loaded and stored.
const TILES: usize = 4;
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
    /// The products along both axes: a row of G and a filter of the window each.
    products: [Vec<[usize; 2]>; 2],
    /// (groups, panels, products, C/G, width)
    sums: Buffer,
}

impl WeightPlan {
    /// The cut for a geometry, which does not depend on the number of threads.
    pub(in crate::conv) fn new(isa: Isa, g: &Geometry) -> WeightPlan {
        assert!(fits(g), "a convolution for Winograd's method");
        let products = [g.rows, g.columns].map(|axis| products(axis.output, axis.kernel));
        let sums = Buffer::zeros(products[0].len() * products[1].len() * g.k * g.c / g.groups);
        WeightPlan { g: *g, panels: panels(isa, g.k / g.groups), lanes: isa.lanes(), products, sums }
    }

    /// Bytes held.
    pub(in crate::conv) fn bytes(&self) -> usize {
        self.sums.len() * size_of::<f32>()
    }

    /// Elements of scratch that each thread needs: both operands at four points.
    pub(in crate::conv) fn scratch_len(&self) -> usize {
        SIDE * (self.value_distance() + self.gradient_distance(self.width()))
    }

    /// The widest panel, elements.
    fn width(&self) -> usize {
        self.panels.iter().map(|p| p.vectors).max().unwrap_or(1) * self.lanes
    }

    /// From a point of V to the next.
    fn value_distance(&self) -> usize {
        (TILES + filters(self.g.columns.kernel) - 1) * self.g.block * (self.g.c / self.g.groups) + GAP
    }

    /// From a point of A dy Aᵀ, of a panel so wide, to the next.
    fn gradient_distance(&self, width: usize) -> usize {
        TILES * self.g.block * width + GAP
    }

    /// Where the sums of a panel begin for two products along the axes.
    fn at(&self, group: usize, panel: &Panel, down: usize, across: usize) -> usize {
        let (channels, width) = (self.g.c / self.g.groups, panel.vectors * self.lanes);
        let first = group * (self.g.k / self.g.groups) + panel.first;
        let [rows, columns] = [self.products[0].len(), self.products[1].len()];
        (first * rows * columns + (down * columns + across) * width) * channels
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
        self.plan.g.groups * self.group_units() * self.plan.products[0].len()
    }

    fn scratch_len(&self) -> usize {
        self.plan.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (plan, g) = (self.plan, &self.plan.g);
        let (panels, down) = (unit / plan.products[0].len(), unit % plan.products[0].len());
        let [weights, filter] = plan.products[0][down];
        let (group, first) = (panels / self.group_units(), panels % self.group_units() * PANELS);
        let panels = &plan.panels[first..(first + PANELS).min(plan.panels.len())];
        let [height, width] = [g.rows.output, g.columns.output];
        let channels = g.c / g.groups;
        let (values, distance) = (scratch, plan.value_distance());
        let gradient = scratch.wrapping_add(SIDE * distance);
        let kernel = g.rows.kernel;
        let (point, rows) = strips_of(height, kernel, weights);
        // SAFETY: maps were checked; scratch has room for both operands; the unit owns its sums, and the first row of G
        // the panels' biases.
        unsafe {
            for panel in panels {
                let len = plan.products[1].len() * channels * panel.vectors * S::LANES;
                std::ptr::write_bytes(self.sums.at(plan.at(group, panel, down, 0)), 0, len);
            }
            for block in 0..self.count.div_ceil(g.block) {
                let pictures = (self.count - block * g.block).min(g.block);
                let x = self.x[block * height * width * g.block * g.c + group * channels..].as_ptr();
                for row in rows.clone() {
                    let row = Strip::at(row, height, kernel);
                    for first in (0..width.div_ceil(2)).step_by(TILES) {
                        let columns = first..(first + TILES).min(width.div_ceil(2));
                        for tile in 0..columns.len() + filters(kernel) - 1 {
                            let at = [row.first + 2 * filter, 2 * (first + tile)];
                            let from = Inputs::of(x, [height, width], g.block * g.c, at, g.rows.pad);
                            let to = values.add(tile * pictures * channels);
                            from.row::<S>(point, pictures, g.c, channels, to, distance);
                        }
                        for panel in panels {
                            let at = (group, panel, down);
                            self.gradient::<S>(at, block, row, columns.clone(), point, gradient);
                            self.products::<S>(at, columns.clone(), pictures, values, gradient);
                        }
                    }
                }
            }
            if down == 0 {
                for panel in panels {
                    self.biases::<S>(panel, group * (g.k / g.groups) + panel.first);
                }
            }
        }
    }
}

impl WeightGradient<'_> {
    /// Units of a group for one product down.
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
        (group, panel, down): (usize, &Panel, usize),
        columns: Range<usize>,
        pictures: usize,
        values: *const f32,
        gradient: *const f32,
    ) {
        let (plan, g) = (self.plan, &self.plan.g);
        let (channels, width) = (g.c / g.groups, panel.vectors * S::LANES);
        for (across, &[weights, filter]) in plan.products[1].iter().enumerate() {
            let mut runs = [Run::default(); TILES];
            let (mut used, mut point) = (0, 0);
            for (tile, column) in columns.clone().enumerate() {
                let strip = Strip::at(column, g.columns.output, g.columns.kernel);
                let Some(j) = strip.point(weights) else { continue };
                let x = (tile + filter) * pictures * channels;
                runs[used] = Run { x, w: tile * pictures * width, len: pictures };
                (used, point) = (used + 1, j);
            }
            if used == 0 {
                continue;
            }
            let sums = plan.at(group, panel, down, across);
            for (c, rows) in tiles(channels, S::ROWS[panel.vectors - 1]) {
                let out = Output { y: self.sums.at(sums + c * width), stride: width, rows, valid: width };
                // SAFETY: the caller's promise.
                unsafe {
                    let x = values.add(point * plan.value_distance() + c);
                    let w = gradient.add(point * plan.gradient_distance(width));
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
        let width = panel.vectors * S::LANES;
        let distance = self.plan.gradient_distance(width);
        let pictures = (self.count - block * g.block).min(g.block);
        let first = block * g.rows.output * g.columns.output;
        let channel = group * (g.k / g.groups) + panel.first;
        for (tile, column) in columns.enumerate() {
            let column = Strip::at(column, g.columns.output, g.columns.kernel);
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
        let (kernel, parts) = (g.rows.kernel, filters(g.rows.kernel));
        for (c, part) in
            (first..(first + UNIT).min(cg)).flat_map(|c| (0..parts * parts).map(move |part| (c, part)))
        {
            let part = [part / parts, part % parts];
            for v in (0..width).step_by(S::LANES) {
                let mut taps = [[0.0f32; 16]; TAPS * TAPS];
                // SAFETY: vectors lie within the sums.
                unsafe {
                    let mut du = [[S::zero(); SIDE + 1]; SIDE + 1];
                    for (down, &[i, a]) in plan.products[0].iter().enumerate() {
                        for (across, &[j, b]) in plan.products[1].iter().enumerate() {
                            if [a, b] == part {
                                let from = plan.at(group, panel, down, across) + c * width + v;
                                du[i][j] = S::load(plan.sums[from..][..S::LANES].as_ptr());
                            }
                        }
                    }
                    let dg = weight_gradient::<S>(du);
                    for (i, values) in taps.iter_mut().enumerate() {
                        S::store(values.as_mut_ptr(), dg[i / TAPS][i % TAPS]);
                    }
                }
                for lane in 0..S::LANES {
                    let to = ((filter + v + lane) * cg + c) * kernel * kernel;
                    for (i, values) in taps.iter().enumerate() {
                        let (Some(r), Some(s)) = (tap(part[0], i / TAPS), tap(part[1], i % TAPS)) else {
                            continue;
                        };
                        // SAFETY: the unit owns these elements of dw.
                        unsafe { *self.dw.at(to + r * kernel + s) = values[lane] };
                    }
                }
            }
        }
    }
}

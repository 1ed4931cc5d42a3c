//! The weight gradient, and the bias gradient with it.
//!
//! ```text
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
//!
//! for block, row of tiles
//!   for tile, group, some pictures       V = Bᵀ d B
//!   for group, row of points, panel      (a unit)
//!     A dy Aᵀ of these
//!     point, four tiles
//!       some channels: outer() over the pictures of these
//! ```
//!
//! V is computed once for all panels, and read from the last cache; a row of points of a panel stays in L2. Sums are one
//! unit's each, so the result does not depend on the threads. [`Taps`] turns the sums of the points into taps.

use super::points::{OUTPUTS, POINTS, Strip, TAPS, combine, points_of, strips, tap_powers, taps_of};
use super::values::{Inputs, lot_len, lots};
use super::{CHANNELS, PICTURES, canonical, filter_len, fits, fits_first, pieces};
use crate::arena::Buffer;
use crate::conv::{Fold, Geometry};
use crate::isa::Isa;
use crate::panel::{Panel, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{LINE, Simd, odd_lines};
use crate::tile::{self, Output, Run, Start};

/// Tiles whose products are summed before they are added to the sums: of 32 pictures the operand of a panel has half of L1.
const TILES: usize = 4;
/// Elements between the points of an operand, beyond their length, so that they do not share the sets of L1.
const GAP: usize = LINE;

/// How [`backward_weight`] is cut; made once a plan.
#[derive(Debug)]
pub(in crate::conv) struct WeightPlan {
    g: Geometry,
    fold: Fold,
    /// Panels of each group.
    panels: Vec<Panel>,
    lanes: usize,
    /// The longest strips of both axes, whose points the sums are of.
    longest: [Strip; 2],
    /// (groups, panels, points, channels, width)
    sums: Buffer,
    /// V of a row of tiles: (groups, points, rows of a stride, depth, C/G), see [`WeightPlan::step_len`].
    values: Buffer,
}

impl WeightPlan {
    /// The cut for a geometry, which does not depend on the number of threads.
    pub(in crate::conv) fn new(isa: Isa, g: &Geometry, fold: Fold) -> WeightPlan {
        assert!(fits(g) && fold.fold == 1 || fits_first(g), "a convolution for Winograd's method");
        let longest = [Strip::at(&g.rows, 0), Strip::at(&g.columns, 0)];
        let [down, across] = longest.map(|strip| strip.points);
        let sums = Buffer::zeros(down * across * g.k * g.c / g.groups * pieces(g));
        let (panels, values) = (panels(isa, g.k / g.groups), Buffer::zeros(0));
        let mut plan = WeightPlan { g: *g, fold, panels, lanes: isa.lanes(), longest, sums, values };
        plan.values = Buffer::zeros(plan.values_at(g.groups));
        plan
    }

    /// Bytes held.
    pub(in crate::conv) fn bytes(&self) -> usize {
        (self.sums.len() + self.values.len()) * size_of::<f32>()
    }

    /// Elements of scratch that each thread needs: V of a picture, or a row of points of A dy Aᵀ and of one picture of it.
    pub(in crate::conv) fn scratch_len(&self) -> usize {
        let [down, across] = self.longest.map(|strip| strip.points);
        let width = self.panels.iter().map(|p| p.vectors).max().unwrap_or(1) * self.lanes;
        (down * across * lot_len(self.g.c / self.g.groups))
            .max(across * (self.gradient_distance(width) + width))
    }

    /// Channels that a group reads, (rows of a stride, C/G).
    fn reads(&self) -> usize {
        pieces(&self.g) * self.g.c / self.g.groups
    }

    /// Steps of the depth: the pictures of a row of tiles.
    fn depth(&self) -> usize {
        strips(&self.g.columns) * self.g.block
    }

    /// From one step of V to the next: the products go down a few channels of all steps, so these are an odd number of lines apart
    /// and fall into all sets of L1.
    fn step_len(&self) -> usize {
        let channels = self.g.c / self.g.groups;
        if channels.is_multiple_of(LINE) { odd_lines(channels) } else { channels }
    }

    /// From V at one point to that at the next.
    fn values_distance(&self) -> usize {
        pieces(&self.g) * self.depth() * self.step_len() + GAP
    }

    /// From A dy Aᵀ of a panel at one point to that at the next.
    fn gradient_distance(&self, width: usize) -> usize {
        self.depth() * width + GAP
    }

    /// Where V of a group begins.
    fn values_at(&self, group: usize) -> usize {
        let points: usize = self.longest.iter().map(|strip| strip.points).product();
        group * points * self.values_distance()
    }

    /// Where the sums of a panel begin at a point.
    fn at(&self, group: usize, panel: &Panel, i: usize, j: usize) -> usize {
        let [down, across] = self.longest.map(|strip| strip.points);
        let width = panel.vectors * self.lanes;
        let first = group * (self.g.k / self.g.groups) + panel.first;
        (first * down * across + (i * across + j) * width) * self.reads()
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
    let g = plan.g;
    assert_eq!(dw.len(), g.k * filter_len(&g, plan.fold), "weight gradient");
    let [mut sums, mut values] =
        [&mut plan.sums, &mut plan.values].map(|buffer| std::mem::replace(buffer, Buffer::zeros(0)));
    for block in 0..count.div_ceil(g.block) {
        let pictures = (count - block * g.block).min(g.block);
        for row in 0..strips(&g.rows) {
            let part = Part { plan, block, pictures, row };
            ctx.run(&Values { part, x, to: Ptr::from_mut(&mut values) });
            ctx.run(&Products { part, dy, values: &values, sums: Ptr::from_mut(&mut sums) });
        }
    }
    (plan.sums, plan.values) = (sums, values);
    ctx.run(&Biases { g: &g, count, dy, db: Ptr::from_mut(db) });
    ctx.run(&Taps { plan, dw: Ptr::from_mut(dw) });
}

/// What is multiplied at a time: a row of tiles of a block.
#[derive(Clone, Copy)]
struct Part<'a> {
    plan: &'a WeightPlan,
    block: usize,
    pictures: usize,
    row: usize,
}

/// V of a part.
struct Values<'a> {
    part: Part<'a>,
    x: &'a [f32],
    to: Ptr,
}

impl Kernel for Values<'_> {
    /// Some pictures of a tile, the channels of a group.
    fn units(&self) -> usize {
        let (part, g) = (&self.part, &self.part.plan.g);
        strips(&g.columns) * g.groups * part.pictures.div_ceil(PICTURES)
    }

    fn scratch_len(&self) -> usize {
        self.part.plan.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (part, plan, g) = (&self.part, self.part.plan, &self.part.plan.g);
        let (unit, first) =
            (unit / part.pictures.div_ceil(PICTURES), unit % part.pictures.div_ceil(PICTURES));
        let first = first * PICTURES;
        let pictures = (part.pictures - first).min(PICTURES);
        let (tile, group) = (unit / g.groups, unit % g.groups);
        let strips = [Strip::at(&g.rows, part.row), Strip::at(&g.columns, tile)];
        let channels = g.c / g.groups;
        // SAFETY: the map was checked; a unit has its own steps of V, for which there is room.
        unsafe {
            let positions = g.rows.input * g.columns.input;
            let x = self.x.as_ptr().add((part.block * positions * g.block + first) * g.c + group * channels);
            let (distance, step_len) = (plan.values_distance(), plan.step_len());
            for piece in 0..pieces(g) {
                let inputs = Inputs::of(x, g, g.block * g.c, strips, piece);
                let step = piece * plan.depth() + tile * g.block + first;
                let to = self.to.at(plan.values_at(group) + step * step_len);
                let lots = lots(pictures, g.c, channels);
                inputs.at_points::<S>(lots, to, step_len, distance, scratch);
            }
        }
    }
}

/// A along a row of M outputs at `from`, `width` elements each, to N points `distance` apart, the last of them at `last`.
#[inline(always)]
unsafe fn spread<S: Simd, const N: usize, const M: usize>(
    from: *const f32,
    width: usize,
    to: *mut f32,
    distance: usize,
    last: usize,
) {
    for c in (0..width).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut dy = [S::zero(); M];
            for q in 0..M {
                dy[q] = S::load(from.add(q * width + c));
            }
            let values = points_of::<S, N, M>(dy);
            for j in 0..N {
                let at = if j + 1 < N { j * distance } else { last };
                S::store(to.add(at + c), values[j]);
            }
        }
    }
}

/// The products of a part's operands, added to the sums.
struct Products<'a> {
    part: Part<'a>,
    dy: &'a [f32],
    values: &'a [f32],
    sums: Ptr,
}

impl Kernel for Products<'_> {
    /// A row of points of a panel.
    fn units(&self) -> usize {
        let plan = self.part.plan;
        plan.g.groups * plan.longest[0].points * plan.panels.len()
    }

    fn scratch_len(&self) -> usize {
        self.part.plan.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (part, plan, g) = (&self.part, self.part.plan, &self.part.plan.g);
        let [down, across] = plan.longest.map(|strip| strip.points);
        let (unit, panel) = (unit / plan.panels.len(), &plan.panels[unit % plan.panels.len()]);
        let (group, i) = (unit / down, unit % down);
        let (channels, width) = (g.c / g.groups, panel.vectors * S::LANES);
        let step_len = plan.step_len();
        let Some(point) = Strip::at(&g.rows, part.row).point(plan.longest[0], i) else { return };
        let gradient = scratch;
        // SAFETY: the map was checked; scratch has room.
        unsafe {
            let filter = group * (g.k / g.groups) + panel.first;
            self.gradient::<S>(
                point,
                filter,
                width,
                gradient,
                gradient.add(across * plan.gradient_distance(width)),
            );
        }
        for j in 0..across {
            // Tiles that have a point are the first ones.
            let tiles_with = (0..strips(&g.columns))
                .take_while(|&tile| Strip::at(&g.columns, tile).point(plan.longest[1], j).is_some())
                .count();
            let x = plan.values_at(group) + (i * across + j) * plan.values_distance();
            let w = gradient.wrapping_add(j * plan.gradient_distance(width));
            let sums = plan.at(group, panel, i, j);
            for first in (0..tiles_with).step_by(TILES) {
                let mut runs = [Run::default(); TILES];
                let used = (tiles_with - first).min(TILES);
                for (tile, run) in runs[..used].iter_mut().enumerate() {
                    let step = (first + tile) * g.block;
                    *run = Run { x: step * step_len, w: step * width, len: part.pictures };
                }
                let is_first = part.block == 0 && part.row == 0 && first == 0;
                let start = if is_first { Start::Zero } else { Start::Output };
                for piece in 0..pieces(g) {
                    for (c, rows) in tiles(channels, S::ROWS[panel.vectors - 1]) {
                        // SAFETY: both operands are there; the unit owns the panel's sums at its points.
                        unsafe {
                            let y = self.sums.at(sums + (piece * channels + c) * width);
                            let out = Output { y, stride: width, rows, valid: width };
                            let x = self.values[x + piece * plan.depth() * step_len + c..].as_ptr();
                            tile::outer::<S>(panel.vectors, &runs[..used], x, step_len, w, start, out);
                        }
                    }
                }
            }
        }
    }
}

impl Products<'_> {
    /// Row `point` of A dy Aᵀ of `width` filters from `filter` on, of the part's tiles: (points, depth, width).
    ///
    /// # Safety
    /// `to` and `buffer` (a row of points of one picture) have room.
    #[inline(always)]
    unsafe fn gradient<S: Simd>(
        &self,
        point: usize,
        filter: usize,
        width: usize,
        to: *mut f32,
        buffer: *mut f32,
    ) {
        let (part, plan, g) = (&self.part, self.part.plan, &self.part.plan.g);
        let (row, distance) = (Strip::at(&g.rows, part.row), plan.gradient_distance(width));
        let last = (plan.longest[1].points - 1) * distance;
        let factors = row.outputs_at(point);
        for tile in 0..strips(&g.columns) {
            let column = Strip::at(&g.columns, tile);
            let position = (part.block * g.rows.output + row.first) * g.columns.output + column.first;
            for n in 0..part.pictures {
                // SAFETY: the caller's promise; outputs of a strip are within the map.
                unsafe {
                    for q in 0..column.outputs {
                        let mut from = [std::ptr::null(); OUTPUTS];
                        for p in 0..row.outputs {
                            let position = position + p * g.columns.output + q;
                            from[p] = self.dy.as_ptr().add((position * g.block + n) * g.k + filter);
                        }
                        combine::<S>(&from[..row.outputs], factors, width, g.k, buffer.add(q * width));
                    }
                    let to = to.add((tile * g.block + n) * width);
                    match (column.points, column.outputs) {
                        (3, 1) => spread::<S, 3, 1>(buffer, width, to, distance, last),
                        (4, 2) => spread::<S, 4, 2>(buffer, width, to, distance, last),
                        (5, 3) => spread::<S, 5, 3>(buffer, width, to, distance, last),
                        (6, 4) => spread::<S, 6, 4>(buffer, width, to, distance, last),
                        (5, 1) => spread::<S, 5, 1>(buffer, width, to, distance, last),
                        _ => spread::<S, 6, 2>(buffer, width, to, distance, last),
                    }
                }
            }
        }
    }
}

/// db: every position's sum over the pictures, added to those before.
struct Biases<'a> {
    g: &'a Geometry,
    count: usize,
    dy: &'a [f32],
    db: Ptr,
}

impl Kernel for Biases<'_> {
    /// Some filters.
    fn units(&self) -> usize {
        self.g.k / CHANNELS
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let g = self.g;
        let positions = g.rows.output * g.columns.output;
        for c in (unit * CHANNELS..(unit + 1) * CHANNELS).step_by(S::LANES) {
            // SAFETY: the map was checked; the unit owns its filters.
            unsafe {
                let mut total = S::zero();
                for block in 0..self.count.div_ceil(g.block) {
                    let pictures = (self.count - block * g.block).min(g.block);
                    for position in block * positions..(block + 1) * positions {
                        let mut sum = S::zero();
                        for n in 0..pictures {
                            sum = S::add(
                                sum,
                                S::load(self.dy.as_ptr().add((position * g.block + n) * g.k + c)),
                            );
                        }
                        total = S::add(total, sum);
                    }
                }
                S::store(self.db.at(c), total);
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
        g.groups * self.plan.panels.len() * self.plan.reads().div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let (plan, g) = (self.plan, &self.plan.g);
        let cg = plan.reads();
        let (panel, first) = (unit / cg.div_ceil(UNIT), unit % cg.div_ceil(UNIT) * UNIT);
        let (group, panel) = (panel / plan.panels.len(), &plan.panels[panel % plan.panels.len()]);
        let filter = group * (g.k / g.groups) + panel.first;
        let width = panel.vectors * S::LANES;
        let size = taps_of(&g.columns);
        let points = plan.longest.map(|strip| tap_powers(strip.points, size));
        for (c, v) in
            (first..(first + UNIT).min(cg)).flat_map(|c| (0..panel.vectors).map(move |v| (c, v * S::LANES)))
        {
            let from = &plan.sums[plan.at(group, panel, 0, 0) + c * width + v..];
            let mut window = [[[0.0f32; 16]; TAPS]; TAPS];
            // SAFETY: vectors lie within the sums, those of a point after those of the one before.
            unsafe {
                let from = (from.as_ptr(), plan.longest.map(|strip| strip.points), cg * width);
                match size {
                    3 => load_taps::<S, 3>(from, &points, &mut window),
                    _ => load_taps::<S, 5>(from, &points, &mut window),
                }
            }
            for (r, s) in (0..size).flat_map(|r| (0..size).map(move |s| (r, s))) {
                let Some(at) = canonical(g, plan.fold, c, [r, s]) else { continue };
                for (lane, value) in window[r][s].iter().enumerate().take(S::LANES) {
                    // SAFETY: the unit owns these elements of dw.
                    unsafe { *self.dw.at((filter + v + lane) * filter_len(g, plan.fold) + at) = *value };
                }
            }
        }
    }
}

/// Gᵀ u G of so many points down and across that lie `distance` apart: R×R taps.
#[inline(always)]
unsafe fn load_taps<S: Simd, const R: usize>(
    (from, [down, across], distance): (*const f32, [usize; 2], usize),
    points: &[[[f32; TAPS]; POINTS]; 2],
    window: &mut [[[f32; 16]; TAPS]; TAPS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::zero(); R]; R];
        for i in 0..down {
            let mut row = [S::zero(); R];
            for j in 0..across {
                let u = S::load(from.add((i * across + j) * distance));
                for s in 0..R {
                    row[s] = S::fma(S::splat(points[1][j][s]), u, row[s]);
                }
            }
            for r in 0..R {
                for s in 0..R {
                    sums[r][s] = S::fma(S::splat(points[0][i][r]), row[s], sums[r][s]);
                }
            }
        }
        for r in 0..R {
            for s in 0..R {
                S::store(window[r][s].as_mut_ptr(), sums[r][s]);
            }
        }
    }
}

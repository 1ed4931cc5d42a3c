//! The weight gradient, and the bias gradient with it.

use super::{CHUNK_BYTES, CHUNK_TAPS};
use crate::conv::{Fold, Geometry};
use crate::isa::Isa;
use crate::panel::{Panel, copy_rows, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, prefetch_far};
use crate::tile::{self, Output, Run, Start};

/// Elements of a cache line.
const LINE: usize = 16;

/// dw and db, summed over the first `count` pictures, in canonical order.
///
/// A unit is one group, one panel of filters and a few rows of the kernel, over all pictures: no sum crosses units, so
/// the result does not depend on the threads. Within a unit a few positions of dy (24 KiB) are copied together and
/// multiplied with x for the unit's rows, all columns of the kernel and all channels.
pub(in crate::conv) fn backward_weight(
    ctx: &mut Context,
    g: &Geometry,
    plan: &WeightPlan,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    assert_eq!(plan.lanes, ctx.isa().lanes(), "planned for another instruction set");
    let canonical_channels = g.c / g.groups / plan.fold.fold;
    assert_eq!(dw.len(), g.k * canonical_channels * g.rows.kernel * plan.fold.kernel, "weight gradient");
    let (dw, db) = (Ptr::from_mut(dw), Ptr::from_mut(db));
    ctx.run(&WeightGradient { g: *g, count, x, dy, plan, dw, db });
}

/// How [`super::backward_weight`] is cut into units; made once a plan.
#[derive(Clone, Debug)]
pub struct WeightPlan {
    panels: Vec<Panel>,
    fold: Fold,
    lanes: usize,
    /// Positions of dy copied together.
    together: usize,
    /// Rows of the kernel in a unit.
    unit_rows: usize,
    /// The widest panel, elements.
    width: usize,
}

impl WeightPlan {
    /// The cut for a geometry, which does not depend on the number of threads.
    pub fn new(isa: Isa, g: &Geometry, fold: Fold) -> Self {
        let panels = panels(isa, g.k / g.groups);
        let width = panels.iter().map(|p| p.vectors).max().unwrap_or(1) * isa.lanes();
        let together = CHUNK_BYTES / size_of::<f32>() / width / g.block;
        // As many rows as leave eight units and as have their sums in half of a 1-MiB L2.
        let row_bytes = g.columns.kernel * (g.c / g.groups) * width * size_of::<f32>();
        let rows = g.rows.kernel;
        let unit_rows =
            (rows * panels.len() * g.groups).div_ceil(8).min((512 << 10) / row_bytes).clamp(1, rows);
        let together = together.clamp(1, g.columns.output.min(CHUNK_TAPS));
        WeightPlan { panels, fold, lanes: isa.lanes(), together, unit_rows, width }
    }

    /// Elements of scratch that each thread needs.
    pub fn scratch_len(&self, g: &Geometry) -> usize {
        let sums = self.unit_rows * g.columns.kernel * (g.c / g.groups) * self.width;
        sums + self.together * g.block * self.width + 2 * self.width
    }
}

struct WeightGradient<'a> {
    g: Geometry,
    count: usize,
    x: &'a [f32],
    dy: &'a [f32],
    plan: &'a WeightPlan,
    dw: Ptr,
    db: Ptr,
}

impl WeightGradient<'_> {
    /// Units that share a panel.
    fn row_units(&self) -> usize {
        self.g.rows.kernel.div_ceil(self.plan.unit_rows)
    }

    /// Elements of the sums of one row of the kernel, (S, C/G, width).
    fn row_sums(&self, width: usize) -> usize {
        self.g.columns.kernel * (self.g.c / self.g.groups) * width
    }
}

impl Kernel for WeightGradient<'_> {
    fn units(&self) -> usize {
        self.g.groups * self.plan.panels.len() * self.row_units()
    }

    fn scratch_len(&self) -> usize {
        self.plan.scratch_len(&self.g)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let g = &self.g;
        let (rows, columns) = (g.rows, g.columns);
        let first_r = unit % self.row_units() * self.plan.unit_rows;
        let kernel_rows = first_r..(first_r + self.plan.unit_rows).min(rows.kernel);
        let strip = unit / self.row_units();
        let (group, panel) =
            (strip / self.plan.panels.len(), self.plan.panels[strip % self.plan.panels.len()]);
        let (cg, kg) = (g.c / g.groups, g.k / g.groups);
        let width = panel.vectors * S::LANES;
        let channel = group * kg + panel.first;
        // The sums (rows, S, C/G, width), the copied dy (positions, pictures, width), the bias sums (total, row).
        let sums = scratch;
        let copy = sums.wrapping_add(self.plan.unit_rows * self.row_sums(width));
        let total = copy.wrapping_add(self.plan.together * g.block * width);
        let row_sum = total.wrapping_add(width);
        let with_bias = first_r == 0;
        // SAFETY: the scratch is as long as `scratch_len` says; positions are within the maps, whose lengths
        // `backward_weight` checked; (group, panel, rows) own their elements of dw, and the first rows those of db.
        unsafe {
            std::ptr::write_bytes(sums, 0, self.plan.unit_rows * self.row_sums(width));
            std::ptr::write_bytes(total, 0, width);
            for block in 0..self.count.div_ceil(g.block) {
                let pictures = (self.count - block * g.block).min(g.block);
                for p in 0..rows.output {
                    if !with_bias && kernel_rows.clone().all(|r| rows.forward(p, r).is_none()) {
                        continue;
                    }
                    std::ptr::write_bytes(row_sum, 0, width);
                    let mut q0 = 0;
                    while q0 < columns.output {
                        let positions = self.plan.together.min(columns.output - q0);
                        let from =
                            ((block * rows.output + p) * columns.output + q0) * g.block * g.k + channel;
                        for position in 0..positions {
                            let from = self.dy.as_ptr().add(from + position * g.block * g.k);
                            copy_rows::<S>(from, g.k, panel, copy.add(position * pictures * width), pictures);
                        }
                        if with_bias {
                            add_rows::<S>(copy, panel.vectors, positions * pictures, row_sum);
                        }
                        // The rows of dy that follow are fetched meanwhile, some at each product: rows of a panel are
                        // too short for the processor to foresee.
                        let rows_of_dy = positions * g.block;
                        let next = self.dy.as_ptr().wrapping_add(from + rows_of_dy * g.k);
                        let calls =
                            columns.kernel * kernel_rows.len() * cg.div_ceil(S::ROWS[panel.vectors - 1]);
                        let share = rows_of_dy.div_ceil(calls);
                        let mut fetched = 0;
                        for s in 0..columns.kernel {
                            let channels = self.plan.fold.channels_at(cg, s);
                            let mut runs = [Run::default(); CHUNK_TAPS];
                            let mut used = 0;
                            for position in 0..positions {
                                if let Some(v) = columns.forward(q0 + position, s) {
                                    let x = v * g.block * g.c;
                                    runs[used] = Run { x, w: position * pictures * width, len: pictures };
                                    used += 1;
                                }
                            }
                            if used == 0 {
                                continue;
                            }
                            for r in kernel_rows.clone() {
                                let Some(h) = rows.forward(p, r) else { continue };
                                let x = (block * rows.input + h) * columns.input * g.block * g.c + group * cg;
                                let sums = sums.add((r - first_r) * self.row_sums(width));
                                for (c, n) in tiles(channels, S::ROWS[panel.vectors - 1]) {
                                    for row in fetched..(fetched + share).min(rows_of_dy) {
                                        for c in (0..width).step_by(LINE) {
                                            prefetch_far(next.wrapping_add(row * g.k + c));
                                        }
                                    }
                                    fetched += share;
                                    let y = sums.add((s * cg + c) * width);
                                    tile::outer::<S>(
                                        panel.vectors,
                                        &runs[..used],
                                        self.x.as_ptr().add(x + c),
                                        g.c,
                                        copy,
                                        Start::Output,
                                        Output { y, stride: width, rows: n, valid: width },
                                    );
                                }
                            }
                        }
                        q0 += positions;
                    }
                    if with_bias {
                        add_rows::<S>(row_sum, panel.vectors, 1, total);
                    }
                }
            }
            let fold = self.plan.fold;
            let channels = cg / fold.fold;
            for r in kernel_rows {
                let sums = sums.add((r - first_r) * self.row_sums(width));
                for s in 0..columns.kernel {
                    for c in 0..cg {
                        let Some((c_out, s_out)) = fold.canonical(channels, c, s) else { continue };
                        for lane in 0..panel.valid {
                            let k = channel + lane;
                            let at = ((k * channels + c_out) * rows.kernel + r) * fold.kernel + s_out;
                            *self.dw.at(at) = *sums.add((s * cg + c) * width + lane);
                        }
                    }
                }
            }
            if with_bias {
                std::ptr::copy_nonoverlapping(total, self.db.at(channel), panel.valid);
            }
        }
    }
}

/// total[·] += Σ_rows rows[·], `vectors` vectors wide.
#[inline(always)]
unsafe fn add_rows<S: Simd>(rows: *const f32, vectors: usize, count: usize, total: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for v in 0..vectors {
            let mut sum = S::load(total.add(v * S::LANES));
            for n in 0..count {
                sum = S::add(sum, S::load(rows.add((n * vectors + v) * S::LANES)));
            }
            S::store(total.add(v * S::LANES), sum);
        }
    }
}

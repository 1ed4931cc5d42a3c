//! The products of a part's operands, added to the sums of the parts before.

use super::super::pieces;
use super::super::points::{of_strip, points_of};
use super::{Part, TILES};
use crate::parallel::{Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::{OuterRows, Output, Run, Start};

/// Sums of all points, and db.
pub(super) struct Products<'a> {
    pub part: Part<'a>,
    pub values: &'a [f32],
    pub gradients: &'a [f32],
    pub column_sums: &'a [f32],
    pub sums: Ptr,
    pub db: Ptr,
}

impl Kernel for Products<'_> {
    /// A row of points of a panel: one panel after the other, for which V of the row stays in L2.
    fn units(&self) -> usize {
        let layout = self.part.layout;
        layout.g.groups * layout.longest[0].points * layout.panels.len()
    }

    fn scratch_len(&self) -> usize {
        self.part.layout.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (part, layout, g) = (&self.part, self.part.layout, &self.part.layout.g);
        let [down, across] = layout.points();
        let (unit, index) = (unit / layout.panels.len(), unit % layout.panels.len());
        let (group, i) = (unit / down, unit % down);
        let panel = &layout.panels[index];
        let width = panel.vectors * S::LANES;
        if i == 0 {
            // SAFETY: the unit owns the biases of its panel.
            unsafe { self.biases::<S>(layout.filter(group, panel), width) };
        }
        if part.rows().point(layout.longest[0], i).is_none() {
            return;
        }
        let gradient = layout.gradient_at(group, index) + i * layout.gradient_distance(width);
        // SAFETY: A dy was computed; scratch has room.
        unsafe { self.across::<S>(self.gradients[gradient..].as_ptr(), width, scratch) };
        let (channels, step_len) = (g.c / g.groups, layout.step_len());
        for j in 0..across {
            // Tiles that have a point are the first ones.
            let with_point = |&tile: &usize| part.strip(tile).point(layout.longest[1], j).is_some();
            let used = (0..part.tiles).take_while(with_point).count();
            let mut runs = [Run::default(); TILES];
            for (tile, run) in runs[..used].iter_mut().enumerate() {
                let step = tile * g.block;
                *run = Run { x: step * step_len, w: step * width, len: part.pictures };
            }
            let x = layout.values_at(group) + (i * across + j) * layout.values_distance();
            let sums = layout.sums_at(group, panel, [i, j]);
            for piece in 0..pieces(g) {
                let x = x + piece * layout.depth() * step_len;
                let y = self.sums.at(sums + piece * channels * width);
                // SAFETY: both operands are there; the unit owns the panel's sums at its points.
                unsafe {
                    S::call(OuterRows {
                        vectors: panel.vectors,
                        runs: &runs[..used],
                        x: self.values[x..].as_ptr(),
                        x_stride: step_len,
                        w: scratch.wrapping_add(j * layout.operand_distance(width)),
                        start: if part.is_first() { Start::Zero } else { Start::Output },
                        out: Output { y, stride: width, rows: channels, valid: width },
                    });
                }
            }
        }
    }
}

impl Products<'_> {
    /// (A dy) Aᵀ of a row of points of a panel: from (columns, pictures, width) to (points, depth, width).
    ///
    /// # Safety
    /// `from` has them, `to` has room; the processor has `S`.
    #[inline(always)]
    unsafe fn across<S: Simd>(&self, from: *const f32, width: usize, to: *mut f32) {
        let (part, layout) = (&self.part, self.part.layout);
        let next = layout.g.block * width;
        let distance = layout.operand_distance(width);
        let last = (layout.longest[1].points - 1) * distance;
        for tile in 0..part.tiles {
            let column = part.strip(tile);
            // SAFETY: the caller's promise.
            unsafe {
                let from = from.add((column.first - part.columns().start) * next);
                let to = to.add(tile * next);
                of_strip!(column, N, M => {
                    for c in (0..part.pictures * width).step_by(S::LANES) {
                        let mut outputs = [S::zero(); M];
                        for q in 0..M {
                            outputs[q] = S::load(from.add(q * next + c));
                        }
                        let points = points_of::<S, N, M>(outputs);
                        for j in 0..N {
                            let at = if j + 1 < N { j * distance } else { last };
                            S::store(to.add(at + c), points[j]);
                        }
                    }
                });
            }
        }
    }

    /// db of `width` filters from `filter` on: the sums of the part's columns, added to those of the parts before.
    ///
    /// # Safety
    /// They are nobody else's; the processor has `S`.
    #[inline(always)]
    unsafe fn biases<S: Simd>(&self, filter: usize, width: usize) {
        let (part, k) = (&self.part, self.part.layout.g.k);
        for c in (filter..filter + width).step_by(S::LANES) {
            // SAFETY: the caller's promise; a column has K sums.
            unsafe {
                let mut sum = S::zero();
                for column in 0..part.columns().len() {
                    sum = S::add(sum, S::load(self.column_sums.as_ptr().add(column * k + c)));
                }
                let before = if part.is_first() { S::zero() } else { S::load(self.db.at(c)) };
                S::store(self.db.at(c), S::add(before, sum));
            }
        }
    }
}

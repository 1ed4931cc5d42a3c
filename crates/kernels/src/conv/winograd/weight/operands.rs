//! The operands of a part: V = Bᵀ d B, and A dy.

use super::super::points::{of_strip, points_of};
use super::super::values::{Inputs, lots};
use super::super::{PICTURES, pieces};
use super::Part;
use crate::parallel::{Kernel, Ptr};
use crate::simd::Simd;

/// Both, and dy of every column, summed; see [`Layout`](super::Layout) for how they lie.
pub(super) struct Operands<'a> {
    pub part: Part<'a>,
    pub x: &'a [f32],
    pub dy: &'a [f32],
    pub values: Ptr,
    pub gradients: Ptr,
    pub column_sums: Ptr,
}

impl Kernel for Operands<'_> {
    /// Some pictures of a tile, the channels of a group; then a column of outputs.
    fn units(&self) -> usize {
        self.units_of_values() + self.part.columns().len()
    }

    fn scratch_len(&self) -> usize {
        self.part.layout.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        // SAFETY: passed on from the caller.
        unsafe {
            match unit.checked_sub(self.units_of_values()) {
                None => self.values::<S>(unit, scratch),
                Some(column) => of_strip!(self.part.rows(), N, M => self.gradients::<S, N, M>(column)),
            }
        }
    }
}

impl Operands<'_> {
    fn units_of_values(&self) -> usize {
        let part = &self.part;
        part.tiles * part.layout.g.groups * part.pictures.div_ceil(PICTURES)
    }

    /// V of a unit.
    ///
    /// # Safety
    /// The processor has `S`; scratch has room.
    #[inline(always)]
    unsafe fn values<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (part, layout, g) = (&self.part, self.part.layout, &self.part.layout.g);
        let lots_of_pictures = part.pictures.div_ceil(PICTURES);
        let (unit, first) = (unit / lots_of_pictures, unit % lots_of_pictures * PICTURES);
        let pictures = (part.pictures - first).min(PICTURES);
        let (tile, group) = (unit / g.groups, unit % g.groups);
        let channels = g.c / g.groups;
        // SAFETY: the map was checked; a unit has its own steps of V, for which there is room.
        unsafe {
            let positions = g.rows.input * g.columns.input;
            let x = self.x.as_ptr().add((part.block * positions * g.block + first) * g.c + group * channels);
            let (distance, step_len) = (layout.values_distance(), layout.step_len());
            for piece in 0..pieces(g) {
                let inputs = Inputs::of(x, g, g.block * g.c, [part.rows(), part.strip(tile)], piece);
                let step = piece * layout.depth() + tile * g.block + first;
                let to = self.values.at(layout.values_at(group) + step * step_len);
                inputs.at_points::<S>(lots(pictures, g.c, channels), to, step_len, distance, scratch);
            }
        }
    }

    /// A dy of a column of M outputs, N points down, of all filters: picture by picture, as dy lies.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn gradients<S: Simd, const N: usize, const M: usize>(&self, column: usize) {
        let (part, layout, g) = (&self.part, self.part.layout, &self.part.layout.g);
        let first = (part.block * g.rows.output + part.rows().first) * g.columns.output;
        let first = (first + part.columns().start + column) * g.block;
        let below = g.columns.output * g.block * g.k;
        let of_group = layout.gradients_of_group();
        // SAFETY: the map was checked; the unit owns its column of A dy and its sums.
        unsafe {
            let sums = self.column_sums.at(column * g.k);
            sums.write_bytes(0, g.k);
            for n in 0..part.pictures {
                let dy = self.dy.as_ptr().add((first + n) * g.k);
                for group in 0..g.groups {
                    let mut to = group * of_group;
                    for panel in &layout.panels {
                        let (filter, width) = (layout.filter(group, panel), panel.vectors * S::LANES);
                        let distance = layout.gradient_distance(width);
                        let last = (layout.longest[0].points - 1) * distance;
                        let steps = self.gradients.at(to + (column * g.block + n) * width);
                        for c in (0..width).step_by(S::LANES) {
                            let mut outputs = [S::zero(); M];
                            let mut sum = S::load(sums.add(filter + c));
                            for p in 0..M {
                                outputs[p] = S::load(dy.add(p * below + filter + c));
                                sum = S::add(sum, outputs[p]);
                            }
                            S::store(sums.add(filter + c), sum);
                            let points = points_of::<S, N, M>(outputs);
                            for i in 0..N {
                                let at = if i + 1 < N { i * distance } else { last };
                                S::store(steps.add(at + c), points[i]);
                            }
                        }
                        to += layout.longest[0].points * distance;
                    }
                }
            }
        }
    }
}

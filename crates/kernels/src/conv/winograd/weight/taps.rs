//! dg = Gᵀ u G: taps from the sums of the points.

use super::super::points::{POINTS, TAPS, tap_powers, taps_of};
use super::super::{canonical, filter_len};
use super::Layout;
use crate::parallel::{Kernel, Ptr};
use crate::simd::Simd;

/// dw, in canonical order.
pub(super) struct Taps<'a> {
    pub layout: &'a Layout,
    pub sums: &'a [f32],
    pub dw: Ptr,
}

/// Channels of a unit of [`Taps`].
const UNIT: usize = 16;

impl Kernel for Taps<'_> {
    /// Some channels of a panel of a group.
    fn units(&self) -> usize {
        let layout = self.layout;
        layout.g.groups * layout.panels.len() * layout.reads().div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let (layout, g) = (self.layout, &self.layout.g);
        let cg = layout.reads();
        let (panel, first) = (unit / cg.div_ceil(UNIT), unit % cg.div_ceil(UNIT) * UNIT);
        let (group, panel) = (panel / layout.panels.len(), &layout.panels[panel % layout.panels.len()]);
        let filter = layout.filter(group, panel);
        let width = panel.vectors * S::LANES;
        let size = taps_of(&g.columns);
        let points = layout.points().map(|points| tap_powers(points, size));
        for (c, v) in
            (first..(first + UNIT).min(cg)).flat_map(|c| (0..panel.vectors).map(move |v| (c, v * S::LANES)))
        {
            let from = &self.sums[layout.sums_at(group, panel, [0, 0]) + c * width + v..];
            let mut window = [[[0.0f32; 16]; TAPS]; TAPS];
            // SAFETY: vectors lie within the sums, those of a point after those of the one before.
            unsafe {
                let from = (from.as_ptr(), layout.points(), cg * width);
                match size {
                    3 => load_taps::<S, 3>(from, &points, &mut window),
                    _ => load_taps::<S, 5>(from, &points, &mut window),
                }
            }
            for (r, s) in (0..size).flat_map(|r| (0..size).map(move |s| (r, s))) {
                let Some(at) = canonical(g, layout.fold, c, [r, s]) else { continue };
                for (lane, value) in window[r][s].iter().enumerate().take(S::LANES) {
                    // SAFETY: the unit owns these elements of dw.
                    unsafe { *self.dw.at((filter + v + lane) * filter_len(g, layout.fold) + at) = *value };
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

//! U = G g Gᵀ of the weights: for every panel of every group, point by point, channel by channel, one panel-wide row each.

use super::points::{POINTS, Strip, TAPS, tap_powers, taps_of};
use super::{canonical, filter_len, fits, fits_first, pieces};
use crate::arena::Buffer;
use crate::conv::{Fold, Geometry};
use crate::isa::Isa;
use crate::panel::{Panel, panels};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// Packed weights of one direction.
#[derive(Debug)]
pub(in crate::conv) struct Packed {
    /// Panels of each group.
    pub(super) panels: Vec<Panel>,
    /// The longest strips of both axes, whose points the weights are given at.
    pub(super) longest: [Strip; 2],
    fold: Fold,
    /// Channels that a group reads, (rows of a stride, C/G).
    pub(super) reads: usize,
    /// Channels that a group writes.
    writes: usize,
    pub(super) lanes: usize,
    /// Elements of scratch that a unit of the convolution needs.
    scratch_len: usize,
    pub(super) data: Buffer,
}

impl Packed {
    /// Room for the weights of the forward pass.
    pub(in crate::conv) fn for_forward(isa: Isa, g: &Geometry, fold: Fold) -> Packed {
        assert!(fits(g) && fold.fold == 1 || fits_first(g), "a convolution for Winograd's method");
        Packed::new(isa, g, fold, g.c * pieces(g), g.k)
    }

    /// Room for the weights of the input gradient.
    pub(in crate::conv) fn for_backward(isa: Isa, g: &Geometry) -> Packed {
        assert!(fits(g), "a convolution for Winograd's method");
        Packed::new(isa, g, Fold::none(g.columns.kernel), g.k, g.c)
    }

    fn new(isa: Isa, g: &Geometry, fold: Fold, reads: usize, writes: usize) -> Packed {
        let (reads, writes) = (reads / g.groups, writes / g.groups);
        let longest = [Strip::at(&g.rows, 0), Strip::at(&g.columns, 0)];
        let panels = panels(isa, writes);
        let widest = panels.iter().map(|p| p.vectors).max().unwrap_or(1) * isa.lanes();
        let scratch_len = super::correlate::scratch_len(g, longest, reads, widest);
        let data = Buffer::zeros(longest[0].points * longest[1].points * g.groups * reads * writes);
        Packed { panels, longest, fold, reads, writes, lanes: isa.lanes(), scratch_len, data }
    }

    /// Bytes held.
    pub(in crate::conv) fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Elements of scratch that each thread needs to compute with them.
    pub(in crate::conv) fn scratch_len(&self) -> usize {
        self.scratch_len
    }

    /// Where the rows of a group's panel begin at a point.
    #[inline(always)]
    pub(super) fn at(&self, group: usize, panel: &Panel, i: usize, j: usize) -> usize {
        let [down, across] = self.longest.map(|strip| strip.points);
        let width = panel.vectors * self.lanes;
        ((group * self.writes + panel.first) * down * across + (i * across + j) * width) * self.reads
    }
}

/// Packs w (K, C/G, R, S) for the forward pass, or else for the input gradient.
pub(in crate::conv) fn pack(ctx: &mut Context, g: &Geometry, w: &[f32], packed: &mut Packed, backward: bool) {
    assert_eq!(w.len(), g.k * filter_len(g, packed.fold), "weights");
    assert_eq!(packed.lanes, ctx.isa().lanes(), "packed for another instruction set");
    let data = Ptr::from_mut(&mut packed.data);
    ctx.run(&Pack { g: *g, w, backward, packed, data });
}

struct Pack<'a> {
    g: Geometry,
    w: &'a [f32],
    backward: bool,
    packed: &'a Packed,
    data: Ptr,
}

/// Channels that are read, in a unit.
const UNIT: usize = 16;

impl Kernel for Pack<'_> {
    /// Some channels that a panel of a group reads.
    fn units(&self) -> usize {
        self.g.groups * self.packed.panels.len() * self.packed.reads.div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let p = self.packed;
        let (i, first) = (unit / p.reads.div_ceil(UNIT), unit % p.reads.div_ceil(UNIT) * UNIT);
        let (group, panel) = (i / p.panels.len(), &p.panels[i % p.panels.len()]);
        let g = &self.g;
        let (kg, len) = (g.k / g.groups, filter_len(g, p.fold));
        let width = panel.vectors * S::LANES;
        let size = taps_of(&g.columns);
        let points = p.longest.map(|strip| tap_powers(strip.points, size));
        for read in first..(first + UNIT).min(p.reads) {
            // Where the taps lie: from `from` on, `step` for each channel that is written.
            let mut at = [[None; TAPS]; TAPS];
            for (r, s) in (0..size).flat_map(|r| (0..size).map(move |s| (r, s))) {
                // Turned by half a circle for the input gradient.
                at[r][s] = if self.backward {
                    Some((size - 1 - r) * size + size - 1 - s)
                } else {
                    canonical(g, p.fold, read, [r, s])
                };
            }
            let (from, step) = if self.backward {
                ((group * kg + read) * len, size * size)
            } else {
                (group * kg * len, len)
            };
            for v in 0..panel.vectors {
                let mut window = [[[0.0f32; 16]; TAPS]; TAPS];
                for (r, s) in (0..size).flat_map(|r| (0..size).map(move |s| (r, s))) {
                    let Some(at) = at[r][s] else { continue };
                    for (lane, value) in window[r][s].iter_mut().enumerate().take(S::LANES) {
                        *value = self.w[from + (panel.first + v * S::LANES + lane) * step + at];
                    }
                }
                // SAFETY: rows are within the panel, whose room `Packed::new` added up; this unit owns them.
                unsafe {
                    let to = self.data.at(p.at(group, panel, 0, 0) + read * width + v * S::LANES);
                    let to = (to, p.longest.map(|strip| strip.points), p.reads * width);
                    match size {
                        3 => store_points::<S, 3>(&window, &points, to),
                        _ => store_points::<S, 5>(&window, &points, to),
                    }
                }
            }
        }
    }
}

/// G g Gᵀ of R×R taps, a vector of windows, to so many points down and across that lie `distance` apart.
#[inline(always)]
unsafe fn store_points<S: Simd, const R: usize>(
    window: &[[[f32; 16]; TAPS]; TAPS],
    points: &[[[f32; TAPS]; POINTS]; 2],
    (to, [down, across], distance): (*mut f32, [usize; 2], usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..down {
            let mut row = [S::zero(); R];
            for s in 0..R {
                for r in 0..R {
                    row[s] = S::fma(S::splat(points[0][i][r]), S::load(window[r][s].as_ptr()), row[s]);
                }
            }
            for j in 0..across {
                let mut value = S::zero();
                for s in 0..R {
                    value = S::fma(S::splat(points[1][j][s]), row[s], value);
                }
                S::store(to.add((i * across + j) * distance), value);
            }
        }
    }
}

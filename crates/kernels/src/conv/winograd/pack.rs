//! U = G g Gᵀ of the weights: for every panel of every group, point by point, channel by channel, one panel-wide row each.

use super::fits;
use super::points::{POINTS, Strip, TAPS, taps};
use crate::arena::Buffer;
use crate::conv::Geometry;
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
    /// Channels that a group reads.
    pub(super) reads: usize,
    /// Channels that a group writes.
    writes: usize,
    pub(super) lanes: usize,
    /// The widest panel, elements.
    pub(super) widest: usize,
    /// Elements of scratch that a unit of the convolution needs.
    scratch_len: usize,
    pub(super) data: Buffer,
}

impl Packed {
    /// Room for the weights of the forward pass.
    pub(in crate::conv) fn for_forward(isa: Isa, g: &Geometry) -> Packed {
        Packed::new(isa, g, g.c, g.k)
    }

    /// Room for the weights of the input gradient.
    pub(in crate::conv) fn for_backward(isa: Isa, g: &Geometry) -> Packed {
        Packed::new(isa, g, g.k, g.c)
    }

    fn new(isa: Isa, g: &Geometry, reads: usize, writes: usize) -> Packed {
        assert!(fits(g), "a convolution for Winograd's method");
        let (reads, writes) = (reads / g.groups, writes / g.groups);
        let longest = [Strip::at(&g.rows, 0), Strip::at(&g.columns, 0)];
        let panels = panels(isa, writes);
        let widest = panels.iter().map(|p| p.vectors).max().unwrap_or(1) * isa.lanes();
        let scratch_len = super::correlate::scratch_len(g.block, longest, reads, widest);
        let data = Buffer::zeros(longest[0].points * longest[1].points * g.groups * reads * writes);
        Packed { panels, longest, reads, writes, lanes: isa.lanes(), widest, scratch_len, data }
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

/// Packs w (K, C/G, R, R) for the forward pass, or else for the input gradient.
pub(in crate::conv) fn pack(ctx: &mut Context, g: &Geometry, w: &[f32], packed: &mut Packed, backward: bool) {
    assert_eq!(w.len(), g.k * (g.c / g.groups) * g.taps(), "weights");
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
        let (kg, cg) = (self.g.k / self.g.groups, self.g.c / self.g.groups);
        let width = panel.vectors * S::LANES;
        let kernel = self.g.rows.kernel;
        let points = p.longest.map(|strip| taps(strip.points, kernel));
        for (read, v) in
            (first..(first + UNIT).min(p.reads)).flat_map(|read| (0..panel.vectors).map(move |v| (read, v)))
        {
            let mut window = [[[0.0f32; 16]; TAPS]; TAPS];
            for lane in 0..S::LANES {
                let write = panel.first + v * S::LANES + lane;
                let (k, c) = if self.backward { (read, write) } else { (write, read) };
                let len = kernel * kernel;
                let w = &self.w[((group * kg + k) * cg + c) * len..][..len];
                for (at, &value) in w.iter().enumerate() {
                    // Turned by half a circle for the input gradient.
                    let at = if self.backward { len - 1 - at } else { at };
                    window[at / kernel][at % kernel][lane] = value;
                }
            }
            // SAFETY: rows are within the panel, whose room `Packed::new` added up; this unit owns them.
            unsafe {
                let to = self.data.at(p.at(group, panel, 0, 0) + read * width + v * S::LANES);
                let to = (to, p.longest.map(|strip| strip.points), p.reads * width);
                match kernel {
                    3 => store_points::<S, 3>(&window, &points, to),
                    _ => store_points::<S, 5>(&window, &points, to),
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

//! U = G g Gᵀ of the weights: for every panel of every group, point by point, filter of the window by filter that has the
//! point, channel by channel, one panel-wide row each.

use super::fits;
use crate::arena::Buffer;
use crate::conv::Geometry;
use crate::isa::Isa;
use crate::panel::{Panel, panels};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::winograd::{TAPS, filters, filters_at, place, tap, weight_points, weights};

/// Packed weights of one direction.
#[derive(Debug)]
pub(in crate::conv) struct Packed {
    /// Panels of each group.
    pub(super) panels: Vec<Panel>,
    /// R = S.
    kernel: usize,
    /// Rows of G along both axes.
    pub(super) points: [usize; 2],
    /// Where each of these points begins within a panel, in rows; and the number of rows.
    starts: Vec<usize>,
    /// Channels that a group reads.
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
        let points =
            [weight_points(g.rows.output, g.rows.kernel), weight_points(g.columns.output, g.rows.kernel)];
        let panels = panels(isa, writes);
        let widest = panels.iter().map(|p| p.vectors).max().unwrap_or(1) * isa.lanes();
        let kernel = g.rows.kernel;
        let mut starts = vec![0];
        for point in (0..points[0]).flat_map(|i| (0..points[1]).map(move |j| [i, j])) {
            let [down, across] = point.map(|row| filters_at(kernel, row));
            starts.push(starts[starts.len() - 1] + down * across * reads);
        }
        let data = Buffer::zeros(g.groups * starts[starts.len() - 1] * writes);
        let scratch_len = super::correlate::scratch_len(g.block, kernel, reads, widest);
        Packed { panels, kernel, points, starts, reads, writes, lanes: isa.lanes(), scratch_len, data }
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
        let width = panel.vectors * self.lanes;
        (group * self.writes + panel.first) * self.starts[self.points[0] * self.points[1]]
            + self.starts[i * self.points[1] + j] * width
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
        let (kernel, parts) = (p.kernel, filters(p.kernel));
        for (read, filter) in
            (first..(first + UNIT).min(p.reads)).flat_map(|read| (0..parts * parts).map(move |f| (read, f)))
        {
            let [a, b] = [filter / parts, filter % parts];
            for v in 0..panel.vectors {
                let mut taps = [[0.0f32; 16]; TAPS * TAPS];
                for lane in 0..S::LANES {
                    let write = panel.first + v * S::LANES + lane;
                    let (k, c) = if self.backward { (read, write) } else { (write, read) };
                    let len = kernel * kernel;
                    let window = &self.w[((group * kg + k) * cg + c) * len..][..len];
                    for (i, values) in taps.iter_mut().enumerate() {
                        if let (Some(r), Some(s)) = (tap(a, i / TAPS), tap(b, i % TAPS)) {
                            // Turned by half a circle for the input gradient.
                            let at = r * kernel + s;
                            values[lane] = window[if self.backward { len - 1 - at } else { at }];
                        }
                    }
                }
                // SAFETY: rows are within the panel, whose room `Packed::new` added up; this unit owns them.
                unsafe {
                    let mut g = [[S::zero(); TAPS]; TAPS];
                    for (tap, values) in taps.iter().enumerate() {
                        g[tap / TAPS][tap % TAPS] = S::load(values.as_ptr());
                    }
                    let u = weights::<S>(g);
                    for i in 0..p.points[0] {
                        for j in 0..p.points[1] {
                            let Some(place) = place(kernel, [a, b], [i, j]) else { continue };
                            let row = place * p.reads + read;
                            let to = p.at(group, panel, i, j) + row * width + v * S::LANES;
                            S::store(self.data.at(to), u[i][j]);
                        }
                    }
                }
            }
        }
    }
}

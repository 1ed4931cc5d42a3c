//! Weights as left operands: U = G g Gᵀ, rounded, for every panel of target channels and every point the steps' tiles one
//! after the other.

use super::correlate::scratch_len;
use super::{STEP, fits};
use crate::arena::Buffer;
use crate::bf16::conv::{Geometry, Panel, panels};
use crate::bf16::{EDGE, MapLayout, TILE};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::winograd::{SIDE, weight_points, weights};

/// Rows of G along both axes, and the taps themselves.
const MOST_POINTS: usize = (SIDE + 1) * (SIDE + 1);

/// Packed weights of one direction.
#[derive(Debug)]
pub(in crate::bf16::conv) struct Packed {
    pub(super) panels: Vec<Panel>,
    /// G of the convolution.
    pub(super) groups: usize,
    /// Channels that a group reads.
    pub(super) depth: usize,
    /// Rows of G along both axes.
    pub(super) points: [usize; 2],
    /// The map that is read.
    pub(super) source: MapLayout,
    /// The map that is written.
    pub(super) target: MapLayout,
    pub(super) data: Buffer,
}

impl Packed {
    /// Room for the weights of the forward pass.
    pub(in crate::bf16::conv) fn for_forward(g: &Geometry) -> Packed {
        Packed::new(g, g.input, g.output)
    }

    /// Room for the weights of the input gradient.
    pub(in crate::bf16::conv) fn for_backward(g: &Geometry) -> Packed {
        Packed::new(g, g.output, g.input)
    }

    fn new(g: &Geometry, source: MapLayout, target: MapLayout) -> Packed {
        assert!(fits(g), "a convolution for Winograd's method");
        let (panels, depth) = (panels(&target), source.channels / g.groups);
        let points = [weight_points(target.height), weight_points(target.width)];
        let data = Buffer::zeros(panels.len() * points[0] * points[1] * depth / STEP * 2 * TILE);
        Packed { panels, groups: g.groups, depth, points, source, target, data }
    }

    /// Bytes held.
    pub(in crate::bf16::conv) fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Elements of scratch that each thread needs to compute with them.
    pub(in crate::bf16::conv) fn scratch_len(&self) -> usize {
        scratch_len(self)
    }

    /// Pairs of one panel at one point.
    #[inline(always)]
    pub(super) fn point_len(&self) -> usize {
        self.depth / STEP * 2 * TILE
    }

    /// Pairs of one panel.
    #[inline(always)]
    pub(super) fn panel_len(&self) -> usize {
        self.points[0] * self.points[1] * self.point_len()
    }

    /// The group of a panel.
    #[inline(always)]
    pub(super) fn group(&self, panel: &Panel) -> usize {
        panel.split * self.groups / self.target.splits
    }
}

/// Packs w (K, C/G, 3, 3) for the forward pass, or else for the input gradient.
pub(in crate::bf16::conv) fn pack(
    ctx: &mut Context,
    g: &Geometry,
    w: &[f32],
    packed: &mut Packed,
    forward: bool,
) {
    assert_eq!(w.len(), g.output.channels * (g.input.channels / g.groups) * 9, "weights");
    let mut data = std::mem::replace(&mut packed.data, Buffer::zeros(0));
    ctx.run(&Pack { g: *g, w, packed, forward, data: Ptr::from_mut(&mut data) });
    packed.data = data;
}

struct Pack<'a> {
    g: Geometry,
    w: &'a [f32],
    packed: &'a Packed,
    forward: bool,
    data: Ptr,
}

impl Kernel for Pack<'_> {
    /// Panels.
    fn units(&self) -> usize {
        self.packed.panels.len()
    }

    /// All points of a step's 32 filters by 32 channels, as pairs of filters.
    fn scratch_len(&self) -> usize {
        MOST_POINTS * 2 * TILE
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let p = self.packed;
        let panel = &p.panels[unit];
        let group = p.group(panel);
        let (channels, filters) =
            (self.g.input.channels / self.g.groups, self.g.output.channels / self.g.groups);
        // The panel's first target channel within the group.
        let first = panel.split % (p.target.splits / p.groups) * p.target.split_channels() + panel.first;
        let taps = |filter: usize, channel: usize| {
            self.w[((group * filters + filter) * channels + channel) * 9..][..STEP * 9].as_ptr()
        };
        let mut u = [[0.0; STEP]; MOST_POINTS];
        for step in 0..p.depth / STEP {
            // SAFETY: panels' parts of the data are disjoint and within it; scratch has room for the points of a step.
            unsafe {
                let to = self.data.at(unit * p.panel_len() + step * 2 * TILE).cast::<u32>();
                if self.forward {
                    // Rows are filters, and the pairs of a row are channels, as w has them.
                    for m in 0..STEP {
                        points_of_channels::<S>(taps(first + m, step * STEP), false, &mut u);
                        for (at, point) in self.points() {
                            S::round_values(u[point].as_ptr(), to.add(at * p.point_len() + m * EDGE));
                        }
                    }
                    continue;
                }
                // Rows are channels, and the pairs of a row are filters: pairs of rows of w, transposed.
                let rows = scratch.cast::<u32>();
                let mut even = u;
                for pair in 0..EDGE {
                    let filter = step * STEP + 2 * pair;
                    points_of_channels::<S>(taps(filter, first), true, &mut even);
                    points_of_channels::<S>(taps(filter + 1, first), true, &mut u);
                    for (_, point) in self.points() {
                        for c in (0..STEP).step_by(S::LANES) {
                            let to = rows.add(point * 2 * TILE + pair * STEP + c);
                            let [even, odd] = [even[point].as_ptr().add(c), u[point].as_ptr().add(c)];
                            S::store_pairs(to, S::load(even), S::load(odd));
                        }
                    }
                }
                for (at, point) in self.points() {
                    for tile in 0..2 {
                        let from = rows.add(point * 2 * TILE + tile * EDGE);
                        S::transpose(from, STEP, to.add(at * p.point_len() + tile * TILE));
                    }
                }
            }
        }
    }
}

impl Pack<'_> {
    /// The points that are packed, each with its place among those of [`weights`].
    #[inline(always)]
    fn points(&self) -> impl Iterator<Item = (usize, usize)> {
        let [rows, columns] = self.packed.points;
        (0..rows * columns).map(move |i| (i, i / columns * (SIDE + 1) + i % columns))
    }
}

/// The points of 32 neighbouring channels' taps; `turned` by half a circle for the input gradient.
///
/// # Safety
/// `w` has 9 taps of 32 channels.
#[inline(always)]
unsafe fn points_of_channels<S: Simd>(w: *const f32, turned: bool, u: &mut [[f32; STEP]; MOST_POINTS]) {
    let mut taps = [[0.0f32; STEP]; 9];
    for c in 0..STEP {
        for (tap, values) in taps.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            values[c] = unsafe { *w.add(c * 9 + tap) };
        }
    }
    if turned {
        taps.reverse();
    }
    for c in (0..STEP).step_by(S::LANES) {
        // SAFETY: vectors lie within the rows.
        unsafe {
            let mut g = [[S::zero(); 3]; 3];
            for (tap, values) in taps.iter().enumerate() {
                g[tap / 3][tap % 3] = S::load(values.as_ptr().add(c));
            }
            for (i, row) in weights::<S>(g).into_iter().enumerate() {
                for (j, value) in row.into_iter().enumerate() {
                    S::store(u[i * (SIDE + 1) + j].as_mut_ptr().add(c), value);
                }
            }
        }
    }
}

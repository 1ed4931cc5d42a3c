//! Weights as left operands: U = G g Gᵀ, rounded, for every panel of target channels and every point the steps' tiles one
//! after the other. The depth of a point is (filters of the window that have it, channels).

use super::correlate::scratch_len;
use super::fits;
use super::points::{SIDE, TAPS, filters, filters_at, place, tap, weight_points, weights};
use crate::arena::Buffer;
use crate::bf16::conv::{Geometry, Panel, panels};
use crate::bf16::{EDGE, MapLayout, TILE};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// Rows of G along both axes, and the taps themselves.
const MOST_POINTS: usize = (SIDE + 1) * (SIDE + 1);

/// Packed weights of one direction.
#[derive(Debug)]
pub(in crate::bf16::conv) struct Packed {
    pub(super) panels: Vec<Panel>,
    /// Where each panel's weights begin, in pairs.
    pub(super) starts: Vec<usize>,
    /// G of the convolution.
    pub(super) groups: usize,
    /// R = S.
    pub(super) kernel: usize,
    /// Pairs of channels that a group reads.
    pub(super) pairs: usize,
    /// Rows of G along both axes.
    pub(super) points: [usize; 2],
    /// Where the weights of each of these begin within a panel, in steps; and the number of steps.
    pub(super) steps: Vec<usize>,
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
        let kernel = g.rows.kernel;
        let mut packed = Packed {
            panels: panels(&target),
            starts: vec![0],
            groups: g.groups,
            kernel,
            pairs: source.channels / g.groups / 2,
            points: [weight_points(target.height, kernel), weight_points(target.width, kernel)],
            steps: vec![0],
            source,
            target,
            data: Buffer::zeros(0),
        };
        for weights in 0..packed.points[0] * packed.points[1] {
            let steps = packed.depth(packed.point(weights)).div_ceil(EDGE);
            packed.steps.push(packed.steps[weights] + steps);
        }
        let steps = packed.steps[packed.steps.len() - 1];
        for (i, panel) in packed.panels.iter().enumerate() {
            packed.starts.push(packed.starts[i] + steps * panel.tiles * TILE);
        }
        packed.data = Buffer::zeros(packed.starts[packed.panels.len()]);
        packed
    }

    /// Bytes held.
    pub(in crate::bf16::conv) fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Elements of scratch that each thread needs to compute with them.
    pub(in crate::bf16::conv) fn scratch_len(&self) -> usize {
        scratch_len(self)
    }

    /// Rows of G along both axes of the weights with this number.
    #[inline(always)]
    pub(super) fn rows_of_g(&self, weights: usize) -> [usize; 2] {
        [weights / self.points[1], weights % self.points[1]]
    }

    /// The point of the weights with this number.
    #[inline(always)]
    fn point(&self, weights: usize) -> usize {
        let [i, j] = self.rows_of_g(weights).map(|row| if row == SIDE { 1 } else { row });
        i * SIDE + j
    }

    /// Pairs of the depth of a point's product.
    #[inline(always)]
    fn depth(&self, point: usize) -> usize {
        filters_at(self.kernel, point / SIDE) * filters_at(self.kernel, point % SIDE) * self.pairs
    }

    /// Where a filter's channels begin in the depth of a point, in pairs, if it has the point.
    #[inline(always)]
    fn place(&self, filter: [usize; 2], point: usize) -> Option<usize> {
        Some(place(self.kernel, filter, [point / SIDE, point % SIDE])? * self.pairs)
    }

    /// The group of a panel.
    #[inline(always)]
    pub(super) fn group(&self, panel: &Panel) -> usize {
        panel.split * self.groups / self.target.splits
    }
}

/// Packs w (K, C/G, R, R) for the forward pass, or else for the input gradient.
pub(in crate::bf16::conv) fn pack(
    ctx: &mut Context,
    g: &Geometry,
    w: &[f32],
    packed: &mut Packed,
    forward: bool,
) {
    let taps = packed.kernel * packed.kernel;
    assert_eq!(w.len(), g.output.channels * (g.input.channels / g.groups) * taps, "weights");
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
    /// Tiles of panels and the filters of a window.
    fn units(&self) -> usize {
        let tiles: usize = self.packed.panels.iter().map(|panel| panel.tiles).sum();
        tiles * filters(self.packed.kernel).pow(2)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let p = self.packed;
        let parts = filters(p.kernel);
        let (tile, filter) = (unit / (parts * parts), unit % (parts * parts));
        let filter = [filter / parts, filter % parts];
        // The tile's panel, and its place in it.
        let mut tiles =
            p.panels.iter().zip(&p.starts).flat_map(|(p, start)| (0..p.tiles).map(move |t| (p, *start, t)));
        let Some((panel, start, tile)) = tiles.nth(tile) else { return };
        let group = p.group(panel);
        let (channels, filters) =
            (self.g.input.channels / self.g.groups, self.g.output.channels / self.g.groups);
        // The tile's first target channel within the group.
        let first = panel.split % (p.target.splits / p.groups) * p.target.split_channels()
            + panel.first
            + tile * EDGE;
        let taps = |filter: usize, channel: usize| {
            let len = p.kernel * p.kernel;
            &self.w[((group * filters + filter) * channels + channel) * len..][..EDGE * len]
        };
        // 16 values each, and as many zeros, since rounding takes 32.
        let (mut u, mut even) = ([[0.0; 2 * EDGE]; MOST_POINTS], [[0.0; 2 * EDGE]; MOST_POINTS]);
        for source in (0..p.pairs).step_by(EDGE / 2) {
            if self.forward {
                // Rows are filters, and the pairs of a row are channels, as w has them.
                for m in 0..EDGE {
                    // SAFETY: rows of 16 channels; the tile's part of the data is this unit's own.
                    unsafe {
                        self.points_of::<S>(taps(first + m, 2 * source), filter, &mut u);
                        for (at, point) in self.points(start, panel, filter, source) {
                            let mut pairs = [0; EDGE];
                            S::round_values(u[point].as_ptr(), pairs.as_mut_ptr());
                            let to = self.data.at(at + (tile * EDGE + m) * EDGE).cast::<u32>();
                            std::ptr::copy_nonoverlapping(pairs.as_ptr(), to, EDGE / 2);
                        }
                    }
                }
                continue;
            }
            // Rows are channels, and the pairs of a row are filters.
            for pair in source..source + EDGE / 2 {
                // SAFETY: as above.
                unsafe {
                    self.points_of::<S>(taps(2 * pair, first), filter, &mut even);
                    self.points_of::<S>(taps(2 * pair + 1, first), filter, &mut u);
                    for (at, point) in self.points(start, panel, filter, pair) {
                        let mut pairs = [0; EDGE];
                        for c in (0..EDGE).step_by(S::LANES) {
                            let [even, odd] = [even[point].as_ptr().add(c), u[point].as_ptr().add(c)];
                            S::store_pairs(pairs.as_mut_ptr().add(c), S::load(even), S::load(odd));
                        }
                        for (m, pair) in pairs.into_iter().enumerate() {
                            *self.data.at(at + (tile * EDGE + m) * EDGE).cast::<u32>() = pair;
                        }
                    }
                }
            }
        }
    }
}

impl Pack<'_> {
    /// For each point that is packed where a pair of a filter's sources goes, for row 0 of the panel, and its place among
    /// those of [`weights`].
    #[inline(always)]
    fn points(
        &self,
        start: usize,
        panel: &Panel,
        filter: [usize; 2],
        pair: usize,
    ) -> impl Iterator<Item = (usize, usize)> {
        let p = self.packed;
        let tiles = panel.tiles;
        (0..p.points[0] * p.points[1]).filter_map(move |weights| {
            let depth = p.place(filter, p.point(weights))? + pair;
            let [i, j] = p.rows_of_g(weights);
            let at = start + (p.steps[weights] + depth / EDGE) * tiles * TILE + depth % EDGE;
            Some((at, i * (SIDE + 1) + j))
        })
    }

    /// The points of a filter of 16 neighbouring channels' windows.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn points_of<S: Simd>(
        &self,
        w: &[f32],
        [a, b]: [usize; 2],
        u: &mut [[f32; 2 * EDGE]; MOST_POINTS],
    ) {
        let kernel = self.packed.kernel;
        let mut taps = [[0.0f32; EDGE]; TAPS * TAPS];
        for (c, window) in w.chunks_exact(kernel * kernel).enumerate() {
            for (i, values) in taps.iter_mut().enumerate() {
                if let (Some(r), Some(s)) = (tap(a, i / TAPS), tap(b, i % TAPS)) {
                    // Turned by half a circle for the input gradient.
                    let at = r * kernel + s;
                    values[c] = window[if self.forward { at } else { kernel * kernel - 1 - at }];
                }
            }
        }
        for c in (0..EDGE).step_by(S::LANES) {
            // SAFETY: vectors lie within the rows.
            unsafe {
                let mut g = [[S::zero(); TAPS]; TAPS];
                for (tap, values) in taps.iter().enumerate() {
                    g[tap / TAPS][tap % TAPS] = S::load(values.as_ptr().add(c));
                }
                for (i, row) in weights::<S>(g).into_iter().enumerate() {
                    for (j, value) in row.into_iter().enumerate() {
                        S::store(u[i * (SIDE + 1) + j].as_mut_ptr().add(c), value);
                    }
                }
            }
        }
    }
}

//! The forward pass of a convolution whose windows move by one position.
//!
//! ```text
//! for panel                        32 output channels: their weights stay in L2
//!   for picture, for some tiles    (a unit)
//!     for two tiles of columns     32 × 32 sums over all runs of the window, in registers
//!       epilogue                   bias, ReLU; rounded to pairs
//! ```
//!
//! A tile is up to 16 columns of an output row; its partner is the next one, in the same row or the one below. A run is
//! one column of the window and one split: `kernel` rows of pairs, which are consecutive in memory.

use super::RowLayout;
use crate::arena::Buffer;
use crate::bf16::conv::Fold;
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, TILE, pair, pairs, pairs_mut};
use crate::parallel::{Context, Ptr};
use crate::simd::{Simd, prefetch_far};

/// Units for each thread, at least: more would read the panels' weights more often than they even out.
const UNITS: usize = 3;

/// Elements of scratch that each thread needs.
pub const SCRATCH_LEN: usize = C_LEN;

/// A convolution whose windows move by one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// x (splits, H, W, C), with the padding in its border; its splits are a multiple of the groups.
    pub input: RowLayout,
    /// y (splits, P, Q, K); its splits are a multiple of the groups.
    pub output: RowLayout,
    /// G
    pub groups: usize,
    /// R and S.
    pub kernel: [usize; 2],
    /// Rows and columns of padding before the first: at most what the input's border has.
    pub pad: [usize; 2],
}

impl Geometry {
    fn check(&self) {
        for map in [self.input, self.output] {
            assert!(
                map.splits.is_multiple_of(self.groups) && map.channels.is_multiple_of(map.splits),
                "splits"
            );
        }
        for (axis, border, size, windows) in [
            (0, self.input.rows, self.input.height, self.output.height),
            (1, self.input.columns, self.input.width, self.output.width),
        ] {
            let reach = windows - 1 + self.kernel[axis];
            assert!(self.pad[axis] <= border.before, "the border is narrower than the padding");
            assert!(reach <= self.pad[axis] + size + border.after, "windows reach beyond the border");
        }
    }
}

/// Channels that a product computes: up to 32 of one split of the output.
#[derive(Clone, Copy, Debug)]
struct Panel {
    split: usize,
    first: usize,
    valid: usize,
    tiles: usize,
    /// Where its weights begin, in pairs.
    start: usize,
}

/// Packed weights, and where the windows' runs lie.
#[derive(Debug)]
pub struct Packed {
    geometry: Geometry,
    panels: Vec<Panel>,
    /// Runs of the window at the origin of a group's first split, columns of the window by splits of the group: for
    /// panels of one tile and of two, whose weights lie twice as far apart.
    runs: [Vec<Run>; 2],
    /// First row and column of each tile of the output.
    tiles: Vec<(usize, usize)>,
    data: Buffer,
}

impl Packed {
    /// Room for [`Packed::set`].
    ///
    /// # Panics
    /// If the geometry's maps do not fit each other.
    pub fn new(geometry: &Geometry) -> Packed {
        geometry.check();
        let Geometry { input, output, groups, kernel: [rows, columns], .. } = *geometry;
        let steps = (rows * input.split_pairs()).div_ceil(EDGE);
        let group_splits = input.splits / groups;
        let runs = [1, 2].map(|tiles| {
            let windows = (0..columns).flat_map(|s| (0..group_splits).map(move |split| (s, split)));
            let run = |(i, (s, split))| Run {
                a: i * steps * tiles * TILE,
                b: split * input.split_len() + s,
                steps,
            };
            windows.enumerate().map(run).collect::<Vec<_>>()
        });
        let mut panels = vec![];
        let mut start = 0;
        for split in 0..output.splits {
            for first in (0..output.split_channels()).step_by(2 * EDGE) {
                let valid = (output.split_channels() - first).min(2 * EDGE);
                let tiles = valid.div_ceil(EDGE);
                panels.push(Panel { split, first, valid, tiles, start });
                start += columns * group_splits * steps * tiles * TILE;
            }
        }
        let tiles = (0..output.height).flat_map(|h| (0..output.width).step_by(EDGE).map(move |w| (h, w)));
        Packed { geometry: *geometry, panels, runs, tiles: tiles.collect(), data: Buffer::zeros(start) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Rounds and packs w (K, C/G, R, S). With a fold, w is that of the strided convolution (see [`Fold`]).
    pub fn set(&mut self, ctx: &mut Context, fold: Fold, w: &[f32]) {
        let Geometry { input, output, groups, kernel: [rows, _], .. } = self.geometry;
        let channels = input.channels / groups / (fold.fold * fold.fold);
        assert_eq!(w.len(), output.channels * channels * fold.kernel * fold.kernel, "weights");
        let (pairs, split_channels) = (input.split_pairs(), input.split_channels());
        let group_splits = input.splits / groups;
        // The weight of a folded position: which pixel of the window it is, if it is within.
        let weight = |k: usize, c: usize, r: usize, s: usize| {
            let (c, part) = (c % channels, c / channels);
            let (r, s) = (r * fold.fold + part / fold.fold, s * fold.fold + part % fold.fold);
            let inside = r < fold.kernel && s < fold.kernel;
            if inside { w[((k * channels + c) * fold.kernel + r) * fold.kernel + s] } else { 0.0 }
        };
        let runs = &self.runs;
        let mut parts = vec![];
        let mut rest = pairs_mut(&mut self.data);
        for (i, panel) in self.panels.iter().enumerate() {
            let len = self.panels.get(i + 1).map_or(rest.len(), |next| next.start - panel.start);
            let (part, tail) = rest.split_at_mut(len);
            parts.push((panel, part));
            rest = tail;
        }
        ctx.for_each(&mut parts, |(panel, to)| {
            for (i, run) in runs[panel.tiles - 1].iter().enumerate() {
                let (s, split) = (i / group_splits, i % group_splits);
                for m in 0..panel.valid {
                    let k = panel.split * output.split_channels() + panel.first + m;
                    for depth in 0..rows * pairs {
                        let (r, p) = (depth / pairs, depth % pairs);
                        let half = |half: usize| {
                            let c = 2 * p + half;
                            let exists = c < split_channels;
                            if exists { weight(k, split * split_channels + c, r, s) } else { 0.0 }
                        };
                        let tile = run.a + (depth / EDGE * panel.tiles + m / EDGE) * TILE;
                        to[tile + m % EDGE * EDGE + depth % EDGE] = pair(half(0), half(1));
                    }
                }
            }
        });
    }
}

/// y = x ∗ w + b, through a ReLU if `relu`, for `count` pictures. y's border is not written.
///
/// Shapes: x and y as the geometry's layouts say, bias (K).
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    count: usize,
    x: &[f32],
    packed: &Packed,
    bias: &[f32],
    relu: bool,
    y: &mut [f32],
) {
    let Geometry { input, output, .. } = packed.geometry;
    assert!(x.len() >= count * input.picture_len(), "the map that is read");
    assert!(y.len() >= count * output.picture_len(), "the map that is written");
    assert_eq!(bias.len(), output.channels, "bias");
    let pieces = (ctx.threads() * UNITS).div_ceil(count * packed.panels.len());
    let unit_tiles = packed.tiles.len().div_ceil(pieces).next_multiple_of(2);
    run(ctx, engine, &Forward { count, unit_tiles, x: pairs(x), packed, bias, relu, y: Ptr::from_mut(y) });
}

struct Forward<'a> {
    count: usize,
    /// Tiles of a unit, even.
    unit_tiles: usize,
    x: &'a [u32],
    packed: &'a Packed,
    bias: &'a [f32],
    relu: bool,
    y: Ptr,
}

impl Forward<'_> {
    fn pieces(&self) -> usize {
        self.packed.tiles.len().div_ceil(self.unit_tiles)
    }
}

impl MatrixKernel for Forward<'_> {
    /// Panels, pictures, pieces of the tiles.
    fn units(&self) -> usize {
        self.packed.panels.len() * self.count * self.pieces()
    }

    fn scratch_len(&self) -> usize {
        SCRATCH_LEN
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let p = self.packed;
        let Geometry { input, output, groups, pad, .. } = p.geometry;
        let (piece, rest) = (unit % self.pieces(), unit / self.pieces());
        let (picture, panel) = (rest % self.count, p.panels[rest / self.count]);
        let group = panel.split * groups / output.splits;
        // The window of the output's first position begins at the padding, within the border.
        let origin = picture * input.picture_len()
            + group * (input.splits / groups) * input.split_len()
            + (input.rows.before - pad[0]) * input.row_len()
            + (input.columns.before - pad[1]);
        let first = piece * self.unit_tiles;
        let tiles = &p.tiles[first..p.tiles.len().min(first + self.unit_tiles)];
        let at = |&(h, w): &(usize, usize)| origin + h * input.row_len() + w;
        // One picture leaves the weights no time to come by themselves: the first product would wait for each line.
        let end = p.panels.get(rest / self.count + 1).map_or(p.data.len(), |next| next.start);
        for line in p.data[panel.start..end].chunks(EDGE) {
            prefetch_far(line.as_ptr());
        }
        for two in tiles.chunks(2) {
            let right = Right::Apart {
                row: input.pitch(),
                second: two.get(1).map_or(0, |second| at(second) - at(&two[0])),
            };
            let shape = Product {
                rows: panel.tiles,
                columns: two.len(),
                right,
                a_step: panel.tiles * TILE,
                b_step: EDGE * input.pitch(),
            };
            // SAFETY: `forward` checked the maps, and the geometry that windows stay within the border: a tile's lanes
            // beyond the row and the depth beyond the last pair reach no further than the zeros after the picture. A
            // unit owns its panel's channels at its tiles.
            unsafe {
                let (a, b) = (pairs(&p.data).as_ptr().add(panel.start), self.x.as_ptr().add(at(&two[0])));
                M::product(shape, &p.runs[panel.tiles - 1], a, b, scratch, false);
                for (i, &(h, w)) in two.iter().enumerate() {
                    self.store::<M::S>(picture, &panel, h, w, scratch.add(i * EDGE));
                }
            }
        }
    }
}

impl Forward<'_> {
    /// Rounds a tile's sums to pairs, after bias and ReLU; lanes beyond the row are left out.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, picture: usize, panel: &Panel, h: usize, w: usize, sums: *const f32) {
        let map = self.packed.geometry.output;
        let columns = (map.width - w).min(EDGE);
        let channel = panel.split * map.split_channels() + panel.first;
        // SAFETY: the caller's promise that the sums are 32 rows of 16, and that this tile is the unit's own.
        unsafe {
            for m in (0..panel.valid).step_by(2) {
                let odd_exists = m + 1 < panel.valid;
                let mut out = [0u32; EDGE];
                for lane in (0..EDGE).step_by(S::LANES) {
                    let of = |m: usize| {
                        let sum = S::load(sums.add(m * C_STRIDE + lane));
                        let sum = S::add(sum, S::splat(self.bias[channel + m]));
                        // In this order a NaN passes through.
                        if self.relu { S::max(S::zero(), sum) } else { sum }
                    };
                    let odd = if odd_exists { of(m + 1) } else { S::zero() };
                    S::store_pairs(out.as_mut_ptr().add(lane), of(m), odd);
                }
                let at = picture * map.picture_len() + map.at(panel.split, (panel.first + m) / 2, h, w);
                std::ptr::copy_nonoverlapping(out.as_ptr(), self.y.at(at).cast(), columns);
            }
        }
    }
}

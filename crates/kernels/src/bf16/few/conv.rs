//! The forward pass of a convolution.
//!
//! ```text
//! for panel                        32 output channels: their weights stay in L2
//!   for picture, for some tiles    (a unit)
//!     for two tiles of positions   28 × 32 sums over all rows of the window, in registers
//!       epilogue                   bias, ReLU; rounded to pairs
//! ```
//!
//! A tile is up to 14 positions of an output row; rows are cut evenly, so that none is left with a few. A run is one row of
//! the window and one split: all columns of pairs, which are consecutive in memory.

use super::PictureLayout;
use crate::arena::Buffer;
use crate::bf16::conv::Fold;
use crate::bf16::engine::{
    C_LEN, C_STRIDE, Engine, Left, MOST_ROWS, Matrix, MatrixKernel, Product, Right, Run, run,
};
use crate::bf16::{EDGE, TILE, pair, pairs, pairs_mut, round_values};
use crate::parallel::{Context, Ptr};
use crate::simd::{Simd, prefetch_far};

/// Units for each thread, at least: more would read the panels' weights more often than they even out.
const UNITS: usize = 3;

/// Elements of scratch that each thread needs.
pub const SCRATCH_LEN: usize = C_LEN;

/// A convolution between two maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// x (splits, H, W, C), with the padding in its border; its splits are a multiple of the groups.
    pub input: PictureLayout,
    /// y (splits, P, Q, K); its splits are a multiple of the groups.
    pub output: PictureLayout,
    /// G
    pub groups: usize,
    /// R and S.
    pub kernel: [usize; 2],
    /// From a window to the next, along both axes.
    pub stride: usize,
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
            let reach = (windows - 1) * self.stride + self.kernel[axis];
            assert!(self.pad[axis] <= border.before, "the border is narrower than the padding");
            assert!(reach <= self.pad[axis] + size + border.after, "windows reach beyond the border");
        }
    }

    /// Pairs from a window to the next in its row.
    fn step(&self) -> usize {
        self.stride * self.input.split_pairs()
    }

    /// Elements that x needs behind its last picture: a tile's rows are read whether they exist or not.
    pub fn overhang(&self) -> usize {
        EDGE * self.step()
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

/// Some positions of an output row.
#[derive(Clone, Copy, Debug)]
struct Tile {
    row: usize,
    column: usize,
    len: usize,
}

/// Packed weights, and where the windows' runs lie.
#[derive(Debug)]
pub struct Packed {
    geometry: Geometry,
    panels: Vec<Panel>,
    /// Runs of the window at the origin of a group's first split, rows of the window by splits of the group: for panels of
    /// one tile and of two, whose weights lie twice as far apart.
    runs: [Vec<Run>; 2],
    tiles: Vec<Tile>,
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
        let steps = (columns * input.split_pairs()).div_ceil(EDGE);
        let group_splits = input.splits / groups;
        let runs = [1, 2].map(|tiles| {
            let windows = (0..rows).flat_map(|r| (0..group_splits).map(move |split| (r, split)));
            let run = |(i, (r, split))| Run {
                a: split * input.split_len() + r * input.row_len(),
                b: i * steps * tiles * TILE,
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
                start += rows * group_splits * steps * tiles * TILE;
            }
        }
        let pieces = output.width.div_ceil(MOST_ROWS);
        let cut = |piece: usize| piece * output.width / pieces;
        let tiles = (0..output.height).flat_map(|row| {
            let tile = move |piece| Tile { row, column: cut(piece), len: cut(piece + 1) - cut(piece) };
            (0..pieces).map(tile)
        });
        Packed { geometry: *geometry, panels, runs, tiles: tiles.collect(), data: Buffer::zeros(start) }
    }

    /// The convolution.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Rounds and packs w (K, C/G, R, S). With a fold, w is that of the strided convolution (see [`Fold`]).
    pub fn set(&mut self, ctx: &mut Context, fold: Fold, w: &[f32]) {
        let Geometry { input, output, groups, kernel: [_, columns], .. } = self.geometry;
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
                let (r, split) = (i / group_splits, i % group_splits);
                for m in 0..panel.valid {
                    let k = panel.split * output.split_channels() + panel.first + m;
                    for depth in 0..columns * pairs {
                        let (s, p) = (depth / pairs, depth % pairs);
                        let half = |half: usize| {
                            let c = 2 * p + half;
                            let exists = c < split_channels;
                            if exists { weight(k, split * split_channels + c, r, s) } else { 0.0 }
                        };
                        to[run.b + depth * panel.tiles * EDGE + m] = pair(half(0), half(1));
                    }
                }
            }
        });
    }
}

/// y = x ∗ w + b, through a ReLU if `relu`, for `count` pictures. y's border is not written.
///
/// Shapes: x (its pictures, and [`Geometry::overhang`]) and y as the geometry's layouts say, bias (K).
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
    let geometry @ Geometry { input, output, .. } = packed.geometry;
    assert!(x.len() >= count * input.picture_len() + geometry.overhang(), "the map that is read");
    assert!(y.len() >= count * output.picture_len(), "the map that is written");
    assert_eq!(bias.len(), output.channels, "bias");
    let pieces = (ctx.threads() * UNITS).div_ceil(count.max(1) * packed.panels.len());
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
        let geometry @ Geometry { input, output, groups, stride, pad, .. } = p.geometry;
        let (piece, rest) = (unit % self.pieces(), unit / self.pieces());
        let (picture, panel) = (rest % self.count, p.panels[rest / self.count]);
        let group = panel.split * groups / output.splits;
        // The window of the output's first position begins at the padding, within the border.
        let origin = picture * input.picture_len()
            + group * (input.splits / groups) * input.split_len()
            + (input.rows.before - pad[0]) * input.row_len()
            + (input.columns.before - pad[1]) * input.split_pairs();
        let first = piece * self.unit_tiles;
        let tiles = &p.tiles[first..p.tiles.len().min(first + self.unit_tiles)];
        let at = |tile: &Tile| origin + tile.row * stride * input.row_len() + tile.column * geometry.step();
        // One picture leaves the weights no time to come by themselves: the first product would wait for each line.
        let end = p.panels.get(rest / self.count + 1).map_or(p.data.len(), |next| next.start);
        for line in p.data[panel.start..end].chunks(EDGE) {
            prefetch_far(line.as_ptr());
        }
        for two in tiles.chunks(2) {
            let second = two.get(1);
            let left = Left::Apart {
                row: geometry.step(),
                second: second.map_or(0, |second| at(second) - at(&two[0])),
                rows: [two[0].len, second.map_or(0, |second| second.len)],
            };
            let shape = Product {
                rows: two.len(),
                columns: panel.tiles,
                left,
                right: if panel.tiles == 1 { Right::Tiles } else { Right::Rows },
                a_step: EDGE,
                b_step: panel.tiles * TILE,
                last: EDGE,
            };
            // SAFETY: `forward` checked the maps, and the geometry that windows stay within the border: the depth beyond
            // the last pair reaches no further than the zeros after the picture, rows beyond the tile's own no further
            // than the overhang. A unit owns its panel's channels at its tiles.
            unsafe {
                let (a, b) = (self.x.as_ptr().add(at(&two[0])), pairs(&p.data).as_ptr().add(panel.start));
                M::product(&shape, &p.runs[panel.tiles - 1], a, b, scratch, false);
                for (i, tile) in two.iter().enumerate() {
                    self.store::<M::S>(picture, &panel, tile, scratch.add(i * EDGE * C_STRIDE));
                }
            }
        }
    }
}

impl Forward<'_> {
    /// Rounds a tile's sums to pairs, after bias and ReLU.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, picture: usize, panel: &Panel, tile: &Tile, sums: *mut f32) {
        let map = self.packed.geometry.output;
        let mut bias = [0.0; 2 * EDGE];
        let channel = panel.split * map.split_channels() + panel.first;
        bias[..panel.valid].copy_from_slice(&self.bias[channel..][..panel.valid]);
        // SAFETY: the caller's promise that the sums are rows of 32, and that this tile is the unit's own.
        unsafe {
            for position in 0..tile.len {
                let sums = sums.add(position * C_STRIDE);
                for c in (0..panel.tiles * EDGE).step_by(S::LANES) {
                    let sum = S::add(S::load(sums.add(c)), S::load(bias.as_ptr().add(c)));
                    // In this order a NaN passes through.
                    S::store(sums.add(c), if self.relu { S::max(S::zero(), sum) } else { sum });
                }
                let at = map.at(panel.split, tile.row, tile.column + position) + panel.first / 2;
                let to = self.y.at(picture * map.picture_len() + at);
                round_values::<S>(sums, panel.valid, to.cast());
            }
        }
    }
}

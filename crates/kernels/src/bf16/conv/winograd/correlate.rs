//! The forward pass and the input gradient: one loop over packed weights.
//!
//! ```text
//! for block, group, for some tiles     (a unit)
//!   for tile, filter of the window     V = Bᵀ d B of all channels that the group reads: stays in L2
//!   for panel                          32 target channels
//!     for point, for tile              32 × 32 sums over filters and channels, in registers
//!     for tile                         Y = Aᵀ M A; bias, ReLU or mask; rounded to pairs
//! ```
//!
//! Weights come from beyond L2, once for all tiles of a unit.

use super::pack::Packed;
use super::transform::{Inputs, output};
use crate::bf16::conv::Panel;
use crate::bf16::conv::finish::Finish;
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, TAIL, TILE, pairs};
use crate::parallel::{Context, Ptr};
use crate::simd::Simd;
use crate::winograd::{POINTS, SIDE, Strip, TAPS, filters};

/// Bytes of the tiles of a unit: half of an L2 of 1 MiB.
const TILES_BYTES: usize = 512 << 10;
/// Most tiles of a unit.
const MOST_TILES: usize = 8;
/// From a point's sums to the next: a line more than they are long, so that 16 points do not share the sets of L1.
const C_DISTANCE: usize = C_LEN + EDGE;

/// Where the points of a unit's tiles begin, in pairs, and how long all are. Behind each are a step of zeros, which the last
/// step of a product may reach into, and a line, so that 16 points do not share the sets of L1.
fn point_starts(packed: &Packed, tiles: usize) -> ([usize; POINTS], usize) {
    let (mut starts, mut len) = ([0; POINTS], 0);
    for (point, start) in starts.iter_mut().enumerate() {
        *start = len;
        len += (tiles * packed.depth(point) + EDGE) * PICTURES + EDGE;
    }
    (starts, len)
}

/// Tiles of a unit.
fn unit_tiles(packed: &Packed) -> usize {
    let pairs: usize = (0..POINTS).map(|point| packed.depth(point)).sum();
    (TILES_BYTES / (pairs * PICTURES * size_of::<u32>())).clamp(1, MOST_TILES)
}

/// Elements of scratch that each thread needs.
pub(super) fn scratch_len(packed: &Packed) -> usize {
    let tiles = unit_tiles(packed);
    point_starts(packed, tiles).1 + tiles * POINTS * C_DISTANCE
}

/// The sums of every position of the target and what follows them, for the first `count` pictures.
pub(in crate::bf16::conv) fn correlate(
    ctx: &mut Context,
    engine: Engine,
    count: usize,
    source: &[f32],
    packed: &Packed,
    finish: Finish,
    target: &mut [f32],
) {
    let blocks = count.div_ceil(PICTURES);
    assert!(source.len() >= blocks * packed.source.block_len() + TAIL, "the map that is read");
    assert!(target.len() >= blocks * packed.target.block_len(), "the map that is written");
    run(
        ctx,
        engine,
        &Correlate {
            blocks,
            narrow: count <= EDGE,
            source: pairs(source),
            packed,
            weights: pairs(&packed.data),
            finish,
            target: Ptr::from_mut(target),
            tiles: unit_tiles(packed),
        },
    );
}

struct Correlate<'a> {
    blocks: usize,
    /// Only the first 16 pictures of the only block are there.
    narrow: bool,
    source: &'a [u32],
    packed: &'a Packed,
    weights: &'a [u32],
    finish: Finish<'a>,
    target: Ptr,
    /// Tiles of a unit.
    tiles: usize,
}

impl Correlate<'_> {
    /// Strips along both axes.
    fn strips(&self) -> [usize; 2] {
        [self.packed.target.height.div_ceil(2), self.packed.target.width.div_ceil(2)]
    }

    /// Units of one group of one block.
    fn group_units(&self) -> usize {
        let [rows, columns] = self.strips();
        (rows * columns).div_ceil(self.tiles)
    }
}

impl MatrixKernel for Correlate<'_> {
    fn units(&self) -> usize {
        self.blocks * self.packed.groups * self.group_units()
    }

    fn scratch_len(&self) -> usize {
        scratch_len(self.packed)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (p, units) = (self.packed, self.group_units());
        let (block, group, unit) = (unit / (p.groups * units), unit / units % p.groups, unit % units);
        let [rows, columns] = self.strips();
        let tiles = unit * self.tiles..((unit + 1) * self.tiles).min(rows * columns);
        let mut strips = [[Strip { first: 0, outputs: 0, points: 0 }; 2]; MOST_TILES];
        let [height, width] = [p.target.height, p.target.width];
        for (tile, strips) in tiles.clone().zip(&mut strips) {
            *strips =
                [Strip::at(tile / columns, height, p.kernel), Strip::at(tile % columns, width, p.kernel)];
        }
        let strips = &strips[..tiles.len()];
        let (values, (starts, len)) = (scratch.cast::<u32>(), point_starts(p, self.tiles));
        let sums = scratch.wrapping_add(len);
        let group_splits = p.source.splits / p.groups;
        let lanes = if self.narrow { EDGE } else { PICTURES };
        let source = self.source[block * p.source.block_len()..].as_ptr();
        let filters = filters(p.kernel);
        // SAFETY: `correlate` checked the maps; scratch has room for the points of the unit's tiles and for their sums;
        // this unit owns the group's channels at the tiles' outputs.
        unsafe {
            for (point, start) in starts.iter().enumerate() {
                let end = start + strips.len() * p.depth(point) * PICTURES;
                std::ptr::write_bytes(values.add(end), 0, EDGE * PICTURES);
            }
            for (tile, [row, column]) in strips.iter().enumerate() {
                for filter in 0..filters * filters {
                    let filter = [filter / filters, filter % filters];
                    let at = [row.first + filter[0] * TAPS, column.first + filter[1] * TAPS];
                    for split in 0..group_splits {
                        let map = &p.source;
                        let start = map.at(group * group_splits + split, 0, 0);
                        let position = |i| source.wrapping_add(start + i * map.position_len());
                        let from = Inputs::of([height, width], at, p.kernel / 2, PICTURES, position);
                        let mut to = [None; POINTS];
                        for (point, to) in to.iter_mut().enumerate() {
                            let depth = p.place(filter, point).map(|place| place + split * map.split_pairs());
                            *to =
                                depth.map(|depth| starts[point] + (tile * p.depth(point) + depth) * PICTURES);
                        }
                        input::<M::S>(&from, map.split_pairs(), lanes, values, &to);
                    }
                }
            }
            let group_panels = p.panels.len() / p.groups;
            for index in group * group_panels..(group + 1) * group_panels {
                let panel = &p.panels[index];
                for weights in 0..p.points[0] * p.points[1] {
                    let steps = p.steps[weights + 1] - p.steps[weights];
                    let a = p.starts[index] + p.steps[weights] * panel.tiles * TILE;
                    let [i, j] = p.rows_of_g(weights);
                    for (tile, [row, column]) in strips.iter().enumerate() {
                        let (Some(i), Some(j)) = (row.point(i), column.point(j)) else { continue };
                        let point = i * SIDE + j;
                        let depth = p.depth(point);
                        let shape = Product {
                            rows: panel.tiles,
                            columns: if self.narrow { 1 } else { 2 },
                            left: Left::Tiles,
                            right: Right::Rows,
                            a_step: panel.tiles * TILE,
                            b_step: EDGE * PICTURES,
                            last: depth - (steps - 1) * EDGE,
                        };
                        let run = Run { a, b: starts[point] + tile * depth * PICTURES, steps };
                        let c = sums.add((tile * POINTS + point) * C_DISTANCE);
                        M::product(shape, &[run], self.weights.as_ptr(), values, c, false);
                    }
                }
                for (tile, [row, column]) in strips.iter().enumerate() {
                    let sums = sums.add(tile * POINTS * C_DISTANCE);
                    if [row.points, column.points] == [SIDE; 2] {
                        self.store::<M::S, true>(block, panel, row, column, sums);
                    } else {
                        self.store::<M::S, false>(block, panel, row, column, sums);
                    }
                }
            }
        }
    }
}

/// V of a tile for `pairs` pairs of channels of the first `lanes` pictures, rounded: point i's to `values + to[i]`, if there.
///
/// # Safety
/// The inputs are within their map and `values` has room.
#[inline(always)]
unsafe fn input<S: Simd>(
    from: &Inputs,
    pairs: usize,
    lanes: usize,
    values: *mut u32,
    to: &[Option<usize>; POINTS],
) {
    for p in 0..pairs {
        for n in (0..lanes).step_by(S::LANES) {
            for i in 0..SIDE {
                // SAFETY: the caller's promise.
                unsafe {
                    let row = from.row::<S>(i, p, n);
                    for (j, (even, odd)) in row.into_iter().enumerate() {
                        if let Some(to) = to[i * SIDE + j] {
                            S::store_pairs(values.add(to + p * PICTURES + n), even, odd);
                        }
                    }
                }
            }
        }
    }
}

impl Correlate<'_> {
    /// Finishes the outputs of a tile; `WHOLE` if it has all points.
    #[inline(always)]
    unsafe fn store<S: Simd, const WHOLE: bool>(
        &self,
        block: usize,
        panel: &Panel,
        row: &Strip,
        column: &Strip,
        sums: *const f32,
    ) {
        let map = self.packed.target;
        let channel = panel.split * map.split_channels() + panel.first;
        let lanes = if self.narrow { EDGE } else { PICTURES };
        let target = self.target.at(0).cast::<u32>();
        let at = block * map.block_len() + panel.first / 2 * PICTURES;
        // Numbers that the compiler knows, where it matters.
        let [rows, columns] = if WHOLE { [SIDE; 2] } else { [row.points, column.points] };
        let [down, across] = if WHOLE { [2; 2] } else { [row.outputs, column.outputs] };
        for m in (0..panel.valid).step_by(2) {
            for n in (0..lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let sums = sums.add(m * C_STRIDE + n);
                    let even = output::<S>(sums, C_DISTANCE, rows, columns);
                    let odd = output::<S>(sums.add(C_STRIDE), C_DISTANCE, rows, columns);
                    for i in 0..down {
                        for j in 0..across {
                            let position = map.at(panel.split, row.first + i, column.first + j);
                            let at = at + position + m / 2 * PICTURES;
                            let both = (even[i][j], odd[i][j]);
                            self.finish.store::<S>(both, channel + m, true, at, n, target);
                        }
                    }
                }
            }
        }
    }
}

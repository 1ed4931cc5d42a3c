//! The forward pass and the input gradient: one loop over packed weights.
//!
//! ```text
//! for block, group, for some tiles     (a unit)
//!   for tile                           V = Bᵀ d B of all channels that the group reads: stays in L2
//!   for panel                          32 target channels
//!     for point, for tile              32 × 32 sums over the channels, in registers
//!     for tile                         Y = Aᵀ M A; bias, ReLU or mask; rounded to pairs
//! ```
//!
//! Weights come from beyond L2, once for all tiles of a unit.

use super::STEP;
use super::pack::Packed;
use super::transform::{Inputs, output};
use crate::bf16::conv::Panel;
use crate::bf16::conv::finish::Finish;
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, TAIL, TILE, pairs};
use crate::parallel::{Context, Ptr};
use crate::simd::Simd;
use crate::winograd::{POINTS, SIDE, Strip};

/// Bytes of the tiles of a unit: half of an L2 of 1 MiB.
const TILES_BYTES: usize = 512 << 10;
/// Most tiles of a unit.
const MOST_TILES: usize = 8;
/// From a point's sums to the next: a line more than they are long, so that 16 points do not share the sets of L1.
const C_DISTANCE: usize = C_LEN + EDGE;

/// Pairs from a point of a tile to the next, for all tiles of a unit.
fn point_distance(packed: &Packed, tiles: usize) -> usize {
    tiles * packed.depth / 2 * PICTURES + EDGE
}

/// Tiles of a unit.
fn unit_tiles(packed: &Packed) -> usize {
    let tile_bytes = POINTS * packed.depth / 2 * PICTURES * size_of::<u32>();
    (TILES_BYTES / tile_bytes).clamp(1, MOST_TILES)
}

/// Elements of scratch that each thread needs.
pub(super) fn scratch_len(packed: &Packed) -> usize {
    let tiles = unit_tiles(packed);
    POINTS * (point_distance(packed, tiles) + tiles * C_DISTANCE)
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
        let mut strips = [[Strip { first: 0, outputs: 0 }; 2]; MOST_TILES];
        for (tile, strips) in tiles.clone().zip(&mut strips) {
            let [height, width] = [p.target.height, p.target.width];
            *strips = [Strip::at(tile / columns, height), Strip::at(tile % columns, width)];
        }
        let strips = &strips[..tiles.len()];
        let (values, distance) = (scratch.cast::<u32>(), point_distance(p, self.tiles));
        let sums = scratch.wrapping_add(POINTS * distance);
        let (tile_pairs, group_splits) = (p.depth / 2 * PICTURES, p.source.splits / p.groups);
        let lanes = if self.narrow { EDGE } else { PICTURES };
        let source = self.source[block * p.source.block_len()..].as_ptr();
        // SAFETY: `correlate` checked the maps; scratch has room for the points of the unit's tiles and for their sums;
        // this unit owns the group's channels at the tiles' outputs.
        unsafe {
            for (tile, [row, column]) in strips.iter().enumerate() {
                for split in 0..group_splits {
                    let map = &p.source;
                    let at = |h, w| source.wrapping_add(map.at(group * group_splits + split, h, w));
                    let tile_at = [row.first, column.first];
                    let from = Inputs::of([map.height, map.width], tile_at, PICTURES, at);
                    let to = values.add(tile * tile_pairs + split * map.position_len());
                    input::<M::S>(&from, map.split_pairs(), lanes, to, distance);
                }
            }
            let shape = Product {
                rows: 2,
                columns: if self.narrow { 1 } else { 2 },
                left: Left::Tiles,
                right: Right::Rows,
                a_step: 2 * TILE,
                b_step: EDGE * PICTURES,
                last: EDGE,
            };
            let group_panels = p.panels.len() / p.groups;
            for index in group * group_panels..(group + 1) * group_panels {
                for weights in 0..p.points[0] * p.points[1] {
                    let a = index * p.panel_len() + weights * p.point_len();
                    for (tile, [row, column]) in strips.iter().enumerate() {
                        let (i, j) = (weights / p.points[1], weights % p.points[1]);
                        let (Some(i), Some(j)) = (row.point(i), column.point(j)) else { continue };
                        let point = i * SIDE + j;
                        let run = Run { a, b: point * distance + tile * tile_pairs, steps: p.depth / STEP };
                        let c = sums.add((tile * POINTS + point) * C_DISTANCE);
                        M::product(shape, &[run], self.weights.as_ptr(), values, c, false);
                    }
                }
                for (tile, [row, column]) in strips.iter().enumerate() {
                    let sums = sums.add(tile * POINTS * C_DISTANCE);
                    let panel = &p.panels[index];
                    match (row.points(), column.points()) {
                        (SIDE, SIDE) => self.store::<M::S, SIDE, SIDE>(block, panel, row, column, sums),
                        (SIDE, _) => self.store::<M::S, SIDE, 2>(block, panel, row, column, sums),
                        (_, SIDE) => self.store::<M::S, 2, SIDE>(block, panel, row, column, sums),
                        _ => self.store::<M::S, 2, 2>(block, panel, row, column, sums),
                    }
                }
            }
        }
    }
}

/// V of a tile for `pairs` pairs of channels of the first `lanes` pictures, rounded: point i's begin at `to + i * distance`.
///
/// # Safety
/// The inputs are within their map and `to` has room.
#[inline(always)]
unsafe fn input<S: Simd>(from: &Inputs, pairs: usize, lanes: usize, to: *mut u32, distance: usize) {
    for p in 0..pairs {
        for n in (0..lanes).step_by(S::LANES) {
            for i in 0..SIDE {
                // SAFETY: the caller's promise.
                unsafe {
                    let row = from.row::<S>(i, p, n);
                    for (j, (even, odd)) in row.into_iter().enumerate() {
                        S::store_pairs(to.add((i * SIDE + j) * distance + p * PICTURES + n), even, odd);
                    }
                }
            }
        }
    }
}

impl Correlate<'_> {
    /// Finishes the outputs of a tile of `R` × `Q` points.
    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize, const Q: usize>(
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
        for m in (0..STEP).step_by(2) {
            for n in (0..lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let sums = sums.add(m * C_STRIDE + n);
                    let even = output::<S, R, Q>(sums, C_DISTANCE);
                    let odd = output::<S, R, Q>(sums.add(C_STRIDE), C_DISTANCE);
                    for i in 0..R / 2 {
                        for j in 0..Q / 2 {
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

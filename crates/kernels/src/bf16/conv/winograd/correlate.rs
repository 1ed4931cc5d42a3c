//! The forward pass and the input gradient: one loop over packed weights.
//!
//! ```text
//! for block, group, patch of tiles     (a unit)
//!   for tile that a filter reads       V = Bᵀ d B of all channels that the group reads: stays in L2
//!   for panel                          32 target channels
//!     for point, for tile              32 × 32 sums over filters and channels, in registers
//!     for tile                         Y = Aᵀ M A; bias, ReLU or mask; rounded to pairs
//! ```
//!
//! Weights come from beyond L2, once for all tiles of a unit.

use super::pack::Packed;
use super::points::{POINTS, SIDE, Strip, filters, filters_at};
use super::transform::{Inputs, output};
use crate::bf16::conv::Panel;
use crate::bf16::conv::finish::Finish;
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, TAIL, TILE, pairs};
use crate::parallel::{Context, Ptr};
use crate::simd::Simd;

/// Bytes of V in a unit: half of an L2 of 1 MiB where a window is one filter, and three quarters where more tiles together
/// share more.
const VALUES_BYTES: [usize; 2] = [512 << 10, 768 << 10];
/// Most tiles of a unit.
const MOST_TILES: usize = 8;
/// Filters of a window along an axis, at most.
const MOST_FILTERS: usize = 2;
/// From a point's sums to the next: a line more than they are long, so that 16 points do not share the sets of L1.
const C_DISTANCE: usize = C_LEN + EDGE;

/// The tiles of a unit, rows × columns, and V of those that their filters read: as many rows and columns of tiles more as
/// filters of a window begin further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    /// Rows and columns.
    tiles: [usize; 2],
    /// Rows and columns of V.
    values: [usize; 2],
    /// Pairs of channels of a tile at a point.
    pairs: usize,
}

impl Patch {
    fn new(tiles: [usize; 2], kernel: usize, pairs: usize) -> Patch {
        Patch { tiles, values: tiles.map(|tiles| tiles + filters(kernel) - 1), pairs }
    }

    /// The patch that cuts a map into the fewest units, of those that fit.
    fn best(packed: &Packed) -> Patch {
        let [rows, columns] = strips(packed);
        let tile_bytes = POINTS * packed.pairs * PICTURES * size_of::<u32>();
        let most = VALUES_BYTES[filters(packed.kernel) - 1];
        (1..=rows.min(MOST_TILES))
            .flat_map(|down| (1..=columns.min(MOST_TILES / down)).map(move |across| [down, across]))
            .map(|tiles| Patch::new(tiles, packed.kernel, packed.pairs))
            .filter(|patch| patch.tiles == [1; 2] || patch.value_tiles() * tile_bytes <= most)
            .min_by_key(|patch| {
                (rows.div_ceil(patch.tiles[0]) * columns.div_ceil(patch.tiles[1]), patch.value_tiles())
            })
            .expect("a patch of one tile always fits")
    }

    fn value_tiles(&self) -> usize {
        self.values[0] * self.values[1]
    }

    /// From a point of V to the next, in pairs. Behind each are a step of zeros, which the last step of a product may reach
    /// into, and a line, so that 16 points do not share the sets of L1.
    fn point_distance(&self) -> usize {
        (self.value_tiles() * self.pairs + EDGE) * PICTURES + EDGE
    }

    /// Where V of a tile begins at point (i, j), in pairs. What the filters read that have the point shall lie side by side:
    /// column by column at the points that only the first filter of a row has, otherwise row by row.
    #[inline(always)]
    fn value(&self, [row, column]: [usize; 2], [i, j]: [usize; 2]) -> usize {
        let tile = if j == 0 { column * self.values[0] + row } else { row * self.values[1] + column };
        (i * SIDE + j) * self.point_distance() + tile * self.pairs * PICTURES
    }

    /// Whether a filter reads V of a tile at a point: beyond the patch the first does not, which alone has the first points.
    /// (The very first point has all: at it a product's last step may read into the next tile.)
    #[inline(always)]
    fn has_value(&self, [row, column]: [usize; 2], [i, j]: [usize; 2]) -> bool {
        let [down, across] = self.tiles;
        (i == 0 && j == 0) || ((i != 0 || row < down) && (j != 0 || column < across))
    }

    /// Where the sums of a tile begin, counted from the first's.
    #[inline(always)]
    fn sums(&self, [row, column]: [usize; 2]) -> usize {
        (row * self.tiles[1] + column) * POINTS * C_DISTANCE
    }

    /// Elements of scratch of V, and of all.
    fn scratch_len(&self) -> [usize; 2] {
        let values = POINTS * self.point_distance();
        [values, values + self.tiles[0] * self.tiles[1] * POINTS * C_DISTANCE]
    }
}

/// Strips of the target along both axes.
fn strips(packed: &Packed) -> [usize; 2] {
    [packed.target.height.div_ceil(2), packed.target.width.div_ceil(2)]
}

/// Elements of scratch that each thread needs.
pub(super) fn scratch_len(packed: &Packed) -> usize {
    Patch::best(packed).scratch_len()[1]
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
            patch: Patch::best(packed),
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
    /// Of a unit, but at the end of the map.
    patch: Patch,
}

impl Correlate<'_> {
    /// Patches along both axes.
    fn patches(&self) -> [usize; 2] {
        let ([rows, columns], [down, across]) = (strips(self.packed), self.patch.tiles);
        [rows.div_ceil(down), columns.div_ceil(across)]
    }
}

impl MatrixKernel for Correlate<'_> {
    fn units(&self) -> usize {
        self.blocks * self.packed.groups * self.patches().iter().product::<usize>()
    }

    fn scratch_len(&self) -> usize {
        self.patch.scratch_len()[1]
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let p = self.packed;
        let [patch_rows, patch_columns] = self.patches();
        let units = patch_rows * patch_columns;
        let (block, group, unit) = (unit / (p.groups * units), unit / units % p.groups, unit % units);
        let [rows, columns] = strips(p);
        let (first_row, first_column) =
            (unit / patch_columns * self.patch.tiles[0], unit % patch_columns * self.patch.tiles[1]);
        let tiles =
            [self.patch.tiles[0].min(rows - first_row), self.patch.tiles[1].min(columns - first_column)];
        let patch = Patch::new(tiles, p.kernel, p.pairs);
        let [height, width] = [p.target.height, p.target.width];
        let mut strips = [([0; 2], [Strip::at(0, 1, p.kernel); 2]); MOST_TILES];
        for (i, (tile, strips)) in strips.iter_mut().enumerate().take(tiles[0] * tiles[1]) {
            *tile = [i / tiles[1], i % tiles[1]];
            let [row, column] = [first_row + tile[0], first_column + tile[1]];
            *strips = [Strip::at(row, height, p.kernel), Strip::at(column, width, p.kernel)];
        }
        let strips = &strips[..tiles[0] * tiles[1]];
        let (values, sums) = (scratch.cast::<u32>(), scratch.wrapping_add(patch.scratch_len()[0]));
        let group_splits = p.source.splits / p.groups;
        let lanes = if self.narrow { EDGE } else { PICTURES };
        let source = self.source[block * p.source.block_len()..].as_ptr();
        // SAFETY: `correlate` checked the maps; scratch has room for V of a whole patch and for its sums; this unit owns
        // the group's channels at the tiles' outputs.
        unsafe {
            for point in 0..POINTS {
                let end = (point * patch.point_distance()) + patch.value_tiles() * p.pairs * PICTURES;
                std::ptr::write_bytes(values.add(end), 0, EDGE * PICTURES);
            }
            for i in 0..patch.value_tiles() {
                let tile = [i / patch.values[1], i % patch.values[1]];
                let at = [2 * (first_row + tile[0]), 2 * (first_column + tile[1])];
                for split in 0..group_splits {
                    let map = &p.source;
                    let start = map.at(group * group_splits + split, 0, 0);
                    let position = |i| source.wrapping_add(start + i * map.position_len());
                    let from = Inputs::of([height, width], at, p.kernel / 2, PICTURES, position);
                    let depth = split * map.split_pairs() * PICTURES;
                    let to = std::array::from_fn(|i| {
                        let point = [i / SIDE, i % SIDE];
                        patch.has_value(tile, point).then(|| patch.value(tile, point) + depth)
                    });
                    input::<M::S>(&from, map.split_pairs(), lanes, values, &to);
                }
            }
            let group_panels = p.panels.len() / p.groups;
            for index in group * group_panels..(group + 1) * group_panels {
                let panel = &p.panels[index];
                for weights in 0..p.points[0] * p.points[1] {
                    let [i, j] = p.rows_of_g(weights);
                    let a = p.starts[index] + p.steps[weights] * panel.tiles * TILE;
                    for &(tile, [row, column]) in strips {
                        let (Some(i), Some(j)) = (row.point(i), column.point(j)) else { continue };
                        let (runs, last) = self.runs(&patch, tile, [i, j], a, panel);
                        let shape = Product {
                            rows: panel.tiles,
                            columns: if self.narrow { 1 } else { 2 },
                            left: Left::Tiles,
                            right: Right::Rows,
                            a_step: panel.tiles * TILE,
                            b_step: EDGE * PICTURES,
                            last,
                        };
                        let runs = &runs[..if j == 0 { 1 } else { filters_at(p.kernel, i) }];
                        let c = sums.add(patch.sums(tile) + (i * SIDE + j) * C_DISTANCE);
                        M::product(&shape, runs, self.weights.as_ptr(), values, c, false);
                    }
                }
                for &(tile, [row, column]) in strips {
                    let sums = sums.add(patch.sums(tile));
                    if [row.points, column.points] == [SIDE; 2] {
                        self.store::<M::S, true>(block, panel, &row, &column, sums);
                    } else {
                        self.store::<M::S, false>(block, panel, &row, &column, sums);
                    }
                }
            }
        }
    }
}

/// V of a tile for `pairs` pairs of channels of the first `lanes` pictures, rounded: point i's to `values + to[i]`, if it is asked for.
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
    /// The runs of a tile's product at a point, whose weights begin at `a`, and the pairs of the last step of each: one for
    /// all filters where they have V side by side, one for each row of them otherwise.
    #[inline(always)]
    fn runs(
        &self,
        patch: &Patch,
        [row, column]: [usize; 2],
        [i, j]: [usize; 2],
        a: usize,
        panel: &Panel,
    ) -> ([Run; MOST_FILTERS], usize) {
        let kernel = self.packed.kernel;
        let filters = filters_at(kernel, if j == 0 { i } else { j });
        let depth = filters * self.packed.pairs;
        let steps = depth.div_ceil(EDGE);
        let runs = std::array::from_fn(|down| {
            let a = a + down * steps * panel.tiles * TILE;
            Run { a, b: patch.value([row + down, column], [i, j]), steps }
        });
        (runs, depth - (steps - 1) * EDGE)
    }

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

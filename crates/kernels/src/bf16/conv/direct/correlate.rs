//! The forward pass and the input gradient: one loop over packed weights.
//!
//! ```text
//! for chunk of panels            (weights of a chunk stay in L2)
//!   for block, for rows          (a unit: source rows under the window stay in L2)
//!     for panel                  32 target channels
//!       for column               one position: 32 × 32 sums over all runs of the window, in registers
//!         epilogue               bias, ReLU or mask; rounded to pairs
//! ```

use super::Packed;
use super::pack::rows_of;
use crate::bf16::conv::Panel;
use crate::bf16::conv::finish::Finish;
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, TAIL, pairs};
use crate::conv::Axis;
use crate::parallel::{Context, Ptr};
use crate::simd::Simd;

/// Units of a chunk: enough that the last ones to finish do not leave the others waiting for long.
const CHUNK_UNITS: usize = 16;
/// Most runs of a product: rows of the window times the splits of the map that a group reads. It bounds two arrays on the
/// stack at every position, 2.5 KiB. Published networks have 11 at most: conv1, if it is not folded.
pub const MOST_RUNS: usize = 64;

/// The sums of every position of the target and what follows them, for the first `count` pictures.
pub(in crate::bf16::conv) fn correlate(
    ctx: &mut Context,
    engine: Engine,
    groups: usize,
    rows: &Axis,
    forward: bool,
    count: usize,
    source: &[f32],
    packed: &Packed,
    finish: Finish,
    target: &mut [f32],
) {
    let blocks = count.div_ceil(PICTURES);
    assert!(source.len() >= blocks * packed.source.block_len() + TAIL, "the map that is read");
    assert!(target.len() >= blocks * packed.target.block_len(), "the map that is written");
    assert!(packed.group_splits * rows.kernel <= MOST_RUNS, "a window of at most {MOST_RUNS} rows");
    let unit_rows = (blocks * packed.target.height).div_ceil(CHUNK_UNITS).min(packed.target.height);
    run(
        ctx,
        engine,
        &Correlate {
            groups,
            rows: *rows,
            forward,
            blocks,
            narrow: count <= EDGE,
            source: pairs(source),
            packed,
            weights: pairs(&packed.data),
            left: if packed.weights_pass(rows.kernel) { Left::Passing } else { Left::Tiles },
            finish,
            target: Ptr::from_mut(target),
            unit_rows,
        },
    );
}

struct Correlate<'a> {
    groups: usize,
    rows: Axis,
    forward: bool,
    blocks: usize,
    /// Only the first 16 pictures of the only block are there.
    narrow: bool,
    source: &'a [u32],
    packed: &'a Packed,
    weights: &'a [u32],
    finish: Finish<'a>,
    target: Ptr,
    /// Whether weights stay in L1.
    left: Left,
    /// Rows of a unit.
    unit_rows: usize,
}

impl Correlate<'_> {
    /// Units of one block.
    fn block_units(&self) -> usize {
        self.packed.target.height.div_ceil(self.unit_rows)
    }
}

impl MatrixKernel for Correlate<'_> {
    fn units(&self) -> usize {
        (self.packed.chunks.len() - 1) * self.blocks * self.block_units()
    }

    fn scratch_len(&self) -> usize {
        C_LEN
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (p, target) = (self.packed, self.packed.target);
        let (chunk, rest) =
            (unit / (self.blocks * self.block_units()), unit % (self.blocks * self.block_units()));
        let (block, first_row) = (rest / self.block_units(), rest % self.block_units() * self.unit_rows);
        let source = block * p.source.block_len();
        let columns = if self.narrow { 1 } else { 2 };
        for row in first_row..(first_row + self.unit_rows).min(target.height) {
            for index in self.packed.chunks[chunk]..self.packed.chunks[chunk + 1] {
                let panel = p.panels[index];
                let first_split = panel.split * self.groups / target.splits * p.group_splits;
                // For each row of the window in each split: where its weights begin, and its map row.
                let mut window = [(0, 0); MOST_RUNS];
                let mut used = 0;
                for split in 0..p.group_splits {
                    for (r, h) in rows_of(&self.rows, row, self.forward) {
                        let weights = p.row_start(index, split, self.rows.kernel, r);
                        window[used] = (weights, source + p.source.at(first_split + split, h, 0));
                        used += 1;
                    }
                }
                let mut shape = Product {
                    rows: panel.tiles,
                    columns,
                    left: self.left,
                    right: Right::Rows,
                    a_step: panel.tiles * EDGE * EDGE,
                    b_step: EDGE * PICTURES,
                    last: EDGE,
                };
                for (w, column) in p.walk.columns.iter().enumerate() {
                    let mut runs = [Run::default(); MOST_RUNS];
                    let mut count = 0;
                    if let Some(column) = column {
                        let (first_step, steps) = p.runs[column.taps];
                        let depth = p.walk.taps[column.taps].count * p.source.split_pairs();
                        shape.last = depth - (steps - 1) * EDGE;
                        for &(weights, map) in &window[..used] {
                            let a = weights + first_step * shape.a_step;
                            runs[count] = Run { a, b: map + column.source * p.source.position_len(), steps };
                            count += 1;
                        }
                    }
                    // SAFETY: `correlate` checked the maps; runs lie within them and, where the last step of a run
                    // reaches beyond, within the map's tail; this unit owns the panel's pairs at these rows.
                    unsafe {
                        M::product(
                            shape,
                            &runs[..count],
                            self.weights.as_ptr(),
                            self.source.as_ptr(),
                            scratch,
                            false,
                        );
                        self.store::<M::S>(block, &panel, row, w, scratch);
                    }
                }
            }
        }
    }
}

impl Correlate<'_> {
    /// Finishes the sums of a position.
    #[inline(always)]
    unsafe fn store<S: Simd>(
        &self,
        block: usize,
        panel: &Panel,
        row: usize,
        column: usize,
        sums: *const f32,
    ) {
        let map = self.packed.target;
        let at = block * map.block_len() + map.at(panel.split, row, column) + panel.first / 2 * PICTURES;
        let channel = panel.split * map.split_channels() + panel.first;
        let lanes = if self.narrow { EDGE } else { PICTURES };
        let target = self.target.at(0).cast::<u32>();
        for m in (0..panel.valid).step_by(2) {
            for n in (0..lanes).step_by(S::LANES) {
                // SAFETY: the caller's promise; C has a row for every channel of a tile, also where none exists.
                unsafe {
                    let sums = sums.add(m * C_STRIDE + n);
                    let both = (S::load(sums), S::load(sums.add(C_STRIDE)));
                    let odd_exists = m + 1 < panel.valid;
                    self.finish.store::<S>(both, channel + m, odd_exists, at + m / 2 * PICTURES, n, target);
                }
            }
        }
    }
}

//! The backward pass of a linear layer: both gradients and the update in one pass over strips of the weights' columns.
//!
//! ```text
//! for 128 inputs              (a unit: a strip of columns of w, and their dx)
//!   for 64 outputs            (their rounded weights, transposed, in scratch)
//!     for 32 inputs, block    dx: 32 inputs × 32 pictures over the outputs
//!     for 32 outputs, inputs  dw: 32 outputs × 32 inputs over all pictures; w and v move
//! ```
//!
//! Moving waits for memory, and products leave it idle: the next turn's weights are asked for a few lines at a time before
//! every product and every row that moves ([`Ahead`]).

use super::{STRIP, strips};
use crate::bf16::convert::{flat, paired_len, unzip_pairs};
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, PICTURES, TAIL, TILE, pairs};
use crate::linear::Backward;
use crate::parallel::{Context, Kernel, Ptr};
use crate::sgd::{Mover, Update};
use crate::simd::{Simd, prefetch_far};

/// Columns of w of a unit of the backward pass.
const COLUMNS: usize = 4 * STRIP;
/// Strips of a unit.
const PARTS: usize = COLUMNS / STRIP;
/// Outputs that a unit of the backward pass takes at a time: their rounded weights, transposed, are 16 KiB.
const ROWS: usize = 64;

/// dy of a linear layer in rows of picture pairs, (blocks, tiles of outputs, 16 outputs, 16 pairs of pictures): the left
/// operand of its weight gradient. And db (O).
pub fn unzip(ctx: &mut Context, outputs: usize, blocks: usize, dy: &[f32], to: &mut [f32], db: &mut [f32]) {
    assert!(
        dy.len() >= blocks * flat(outputs).block_len() && to.len() >= unzipped_len(outputs, blocks),
        "maps"
    );
    assert_eq!(db.len(), outputs, "bias gradient");
    ctx.run(&Unzip { outputs, blocks, dy: pairs(dy), to: Ptr::from_mut(to), db: Ptr::from_mut(db) });
}

/// Elements that [`unzip`] fills.
pub fn unzipped_len(outputs: usize, blocks: usize) -> usize {
    blocks * outputs.div_ceil(2 * EDGE) * 2 * TILE
}

struct Unzip<'a> {
    outputs: usize,
    blocks: usize,
    dy: &'a [u32],
    to: Ptr,
    db: Ptr,
}

impl Kernel for Unzip<'_> {
    /// 32 outputs.
    fn units(&self) -> usize {
        self.outputs.div_ceil(2 * EDGE)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let map = flat(self.outputs);
        let first = unit * 2 * EDGE;
        let rows = (self.outputs - first).min(2 * EDGE);
        let mut db = [0.0f32; 2 * EDGE];
        // SAFETY: 32 outputs own their rows and biases; lengths were checked.
        unsafe {
            for block in 0..self.blocks {
                let from = self.dy.as_ptr().add(block * map.block_len() + first / 2 * PICTURES);
                let to = self.to.at((block * self.units() + unit) * 2 * TILE).cast::<u32>();
                unzip_pairs::<S>(from, rows.div_ceil(2), to);
                let written = rows.div_ceil(2) * 2 * EDGE;
                std::ptr::write_bytes(to.add(written), 0, 2 * TILE - written);
                for m in 0..rows {
                    for p in 0..EDGE {
                        let both = *to.add(m * EDGE + p);
                        db[m] += f32::from_bits(both << 16) + f32::from_bits(both & 0xffff_0000);
                    }
                }
            }
            std::ptr::copy_nonoverlapping(db.as_ptr(), self.db.at(first), rows);
        }
    }
}

/// In one pass over the weights: dx = dy w, then w and v moved by dw = dyᵀ x. Returns whether all weights that moved are
/// finite.
///
/// Shapes: `paired` from [`crate::bf16::convert::pair_pictures`] of x, dy a flat map with [`TAIL`] behind it, dy_rows from
/// [`unzip`]; dx and the ReLU's output in `pass` are flat maps.
pub fn backward(
    ctx: &mut Context,
    engine: Engine,
    inputs: usize,
    outputs: usize,
    count: usize,
    paired: &[f32],
    dy: &[f32],
    dy_rows: &[f32],
    pass: Backward,
) -> bool {
    let blocks = count.div_ceil(PICTURES);
    let (x_map, y_map) = (flat(inputs), flat(outputs));
    assert!(dy.len() >= blocks * y_map.block_len() + TAIL, "output gradient");
    assert!(dy_rows.len() >= unzipped_len(outputs, blocks), "output gradient");
    assert!(paired.len() >= paired_len(&x_map, [0, 0], blocks), "inputs");
    assert!(pass.w.len() == strips(outputs, inputs).len() && pass.v.len() == pass.w.len(), "weights");
    assert!(pass.dx.as_ref().is_none_or(|dx| dx.len() >= blocks * x_map.block_len()), "input gradient");
    assert!(pass.relu.is_none_or(|x| x.len() >= blocks * x_map.block_len()), "activation");
    let units = inputs.div_ceil(COLUMNS);
    let mut flags = [0.0f32; 1024];
    assert!(units <= flags.len(), "more inputs than {}", COLUMNS * flags.len());
    let kernel = BackwardKernel {
        inputs,
        outputs,
        blocks,
        paired: pairs(paired),
        dy: pairs(dy),
        dy_rows: pairs(dy_rows),
        dx: pass.dx.map(Ptr::from_mut),
        relu: pass.relu.map(pairs),
        w: Ptr::from_mut(pass.w),
        v: Ptr::from_mut(pass.v),
        update: pass.update,
        flags: Ptr::from_mut(&mut flags),
    };
    run(ctx, engine, &kernel);
    flags[..units].iter().all(|f| *f == 0.0)
}

/// Elements of scratch: transposed weights, sums of dx of every block, sums of dw.
pub(super) fn scratch_len(blocks: usize) -> usize {
    ROWS * COLUMNS / 2 + blocks * PARTS * C_LEN + C_LEN
}

struct BackwardKernel<'a> {
    inputs: usize,
    outputs: usize,
    blocks: usize,
    paired: &'a [u32],
    dy: &'a [u32],
    dy_rows: &'a [u32],
    dx: Option<Ptr>,
    relu: Option<&'a [u32]>,
    w: Ptr,
    v: Ptr,
    update: Update,
    /// One element a unit: not zero if a weight became infinite or NaN.
    flags: Ptr,
}

impl MatrixKernel for BackwardKernel<'_> {
    /// Strips of columns of w.
    fn units(&self) -> usize {
        self.inputs.div_ceil(COLUMNS)
    }

    fn scratch_len(&self) -> usize {
        scratch_len(self.blocks)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (inputs, outputs, blocks) = (self.inputs, self.outputs, self.blocks);
        let place = strips(outputs, inputs);
        let column = unit * COLUMNS;
        let columns = COLUMNS.min(inputs - column);
        let parts = columns.div_ceil(2 * EDGE);
        let x_tiles = inputs.div_ceil(EDGE);
        let transposed = scratch.cast::<u32>();
        let dx_sums = scratch.wrapping_add(ROWS * COLUMNS / 2);
        let dw_sums = dx_sums.wrapping_add(blocks * PARTS * C_LEN);
        let moves = self.update.lr != 0.0;
        let y_map = flat(outputs);
        // SAFETY: `backward` checked all lengths; this unit owns its columns of w, v and dx, and its flag. Steps beyond
        // the outputs multiply zero weights with what follows dy, at most its tail.
        unsafe {
            let mut mover = Mover::<M::S>::new(self.update);
            let mut row = 0;
            while row < outputs {
                let rows = ROWS.min(outputs - row);
                let mut ahead = Ahead::new(|part| {
                    let at = place.at(row + rows, column + part * STRIP);
                    (self.w.at(at), self.v.at(at))
                });
                if self.dx.is_some() {
                    let steps = rows.div_ceil(2 * EDGE);
                    for part in 0..parts {
                        let to = transposed.add(part * (ROWS / (2 * EDGE)) * 2 * TILE);
                        let first = column + part * 2 * EDGE;
                        let width = (inputs - first).min(2 * EDGE);
                        let w = self.w.at(place.at(row, first));
                        for step in 0..steps {
                            let rows = (rows - step * 2 * EDGE).min(2 * EDGE);
                            let w = w.add(step * 2 * EDGE * STRIP);
                            transpose_rows::<M::S>(w, rows, width, to.add(step * 2 * TILE));
                        }
                        for block in 0..blocks {
                            let shape = Product {
                                rows: width.div_ceil(EDGE),
                                columns: 2,
                                left: Left::Tiles,
                                right: Right::Rows,
                                a_step: 2 * TILE,
                                b_step: EDGE * PICTURES,
                                last: EDGE,
                            };
                            let b = block * y_map.block_len() + row / 2 * PICTURES;
                            let sums = dx_sums.add((part * blocks + block) * C_LEN);
                            let run = [Run { a: 0, b, steps }];
                            ahead.ask::<{ Ahead::BEFORE_DX }>(part);
                            M::product(&shape, &run, to, self.dy.as_ptr(), sums, row > 0);
                        }
                    }
                }
                if moves {
                    for first in (row..row + rows).step_by(2 * EDGE) {
                        let rows = (outputs - first).min(2 * EDGE);
                        for part in 0..parts {
                            let tile = column / EDGE + part * 2;
                            let shape = Product {
                                rows: rows.div_ceil(EDGE),
                                columns: (x_tiles - tile).min(2),
                                left: Left::Tiles,
                                right: Right::Tiles,
                                a_step: outputs.div_ceil(2 * EDGE) * 2 * TILE,
                                b_step: x_tiles * TILE,
                                last: EDGE,
                            };
                            let run = [Run { a: first * EDGE, b: tile * TILE, steps: blocks }];
                            ahead.ask::<{ Ahead::BEFORE_DW }>(part);
                            M::product(
                                &shape,
                                &run,
                                self.dy_rows.as_ptr(),
                                self.paired.as_ptr(),
                                dw_sums,
                                false,
                            );
                            let c = column + part * 2 * EDGE;
                            for m in 0..rows {
                                let at = place.at(first + m, c);
                                ahead.ask::<{ Ahead::BEFORE_ROW }>(part);
                                mover.step(
                                    dw_sums.add(m * C_STRIDE),
                                    self.w.at(at),
                                    self.v.at(at),
                                    (inputs - c).min(2 * EDGE),
                                );
                            }
                        }
                    }
                }
                row += rows;
            }
            if let Some(dx) = self.dx {
                for part in 0..parts {
                    for block in 0..blocks {
                        let first = column + part * 2 * EDGE;
                        let sums = dx_sums.add((part * blocks + block) * C_LEN);
                        self.store::<M::S>(dx, first, block, sums);
                    }
                }
            }
            *self.flags.at(unit) = mover.check();
        }
    }
}

/// What a unit's next turn reads of w and v, asked for ahead of time. A processor has few requests of a core on their way
/// at once; more of them together only wait for each other, and products wait with them. With the 128 pictures of a common
/// batch all is asked for, with fewer some is left to the processor's own foresight.
struct Ahead {
    /// Where the next turn's part of every strip begins in w and v.
    starts: [(*mut f32, *mut f32); PARTS],
    /// Elements asked for of each strip, of w and of v.
    asked: [usize; PARTS],
}

impl Ahead {
    /// Elements of w asked for before a product of dx, and as many of v.
    const BEFORE_DX: usize = 8 * EDGE;
    /// Before a product of dw.
    const BEFORE_DW: usize = 16 * EDGE;
    /// Before a row moves.
    const BEFORE_ROW: usize = EDGE;

    #[inline(always)]
    fn new(start: impl Fn(usize) -> (*mut f32, *mut f32)) -> Ahead {
        let mut starts = [(std::ptr::null_mut(), std::ptr::null_mut()); PARTS];
        for (part, place) in starts.iter_mut().enumerate() {
            *place = start(part);
        }
        Ahead { starts, asked: [0; PARTS] }
    }

    /// The next elements of a strip, which need not exist.
    #[inline(always)]
    fn ask<const COUNT: usize>(&mut self, part: usize) {
        let (w, v) = self.starts[part];
        let asked = self.asked[part];
        if asked < ROWS * STRIP {
            for line in (0..COUNT).step_by(EDGE) {
                prefetch_far(w.wrapping_add(asked + line));
                prefetch_far(v.wrapping_add(asked + line));
            }
            self.asked[part] = asked + COUNT;
        }
    }
}

impl BackwardKernel<'_> {
    /// Masks and rounds the gradient of up to 32 inputs from `first` on.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, dx: Ptr, first: usize, block: usize, sums: *const f32) {
        let at = block * flat(self.inputs).block_len() + first / 2 * PICTURES;
        let rows = (self.inputs - first).min(2 * EDGE);
        // SAFETY: the caller's promise; the activation has dx's layout.
        unsafe {
            for m in (0..rows).step_by(2) {
                let at = at + m / 2 * PICTURES;
                for n in (0..PICTURES).step_by(S::LANES) {
                    let mut even = S::load(sums.add(m * C_STRIDE + n));
                    let mut odd =
                        if m + 1 < rows { S::load(sums.add((m + 1) * C_STRIDE + n)) } else { S::zero() };
                    if let Some(x) = self.relu {
                        let (x_even, x_odd) = S::load_pairs(x.as_ptr().add(at + n));
                        even = S::where_positive(x_even, even);
                        odd = S::where_positive(x_odd, odd);
                    }
                    S::store_pairs(self.dx_at(dx, at + n), even, odd);
                }
            }
        }
    }

    #[inline(always)]
    fn dx_at(&self, dx: Ptr, at: usize) -> *mut u32 {
        dx.at(at).cast()
    }
}

/// `rows` outputs by `width` inputs of w to two tiles of 16 inputs × 16 pairs of outputs; zero beyond.
#[inline(always)]
unsafe fn transpose_rows<S: Simd>(w: *const f32, rows: usize, width: usize, to: *mut u32) {
    let mut both = [0u32; TILE];
    // SAFETY: the caller's promise; no vector reaches beyond the 16 inputs of a tile.
    unsafe {
        for tile in 0..width.div_ceil(EDGE) {
            let columns = (width - tile * EDGE).min(EDGE);
            for p in 0..EDGE {
                let w = w.wrapping_add(2 * p * STRIP + tile * EDGE);
                for c in (0..EDGE).step_by(S::LANES) {
                    let n = columns.saturating_sub(c).min(S::LANES);
                    let row = |exists: bool, w: *const f32| {
                        if !exists || n == 0 {
                            S::zero()
                        } else if n == S::LANES {
                            S::load(w)
                        } else {
                            S::load_first(w, n)
                        }
                    };
                    let even = row(2 * p < rows, w.wrapping_add(c));
                    let odd = row(2 * p + 1 < rows, w.wrapping_add(STRIP + c));
                    S::store_pairs(both.as_mut_ptr().add(p * EDGE + c), even, odd);
                }
            }
            S::transpose(both.as_ptr(), EDGE, to.add(tile * TILE));
        }
    }
}

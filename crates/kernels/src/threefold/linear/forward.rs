//! The forward pass of a linear layer: weights are the left operand.
//!
//! ```text
//! for up to 512 outputs       (a unit: x comes from beyond L2 once for each)
//!   for 8 blocks of pictures  (their sums are held at once)
//!     for 256 inputs
//!       for 32 outputs        (their weights are split: 32 KiB)
//!         for block           32 outputs × 32 pictures
//! ```

use super::cells;
use crate::bf16::engine::{Ahead, C_LEN, C_STRIDE, Engine, Matrix, MatrixKernel, Run, run, run_vectors};
use crate::bf16::pairs;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::strips::Strips;
use crate::threefold::cells::{CELL, SIDE, left, right_turned};

/// Most blocks that a unit holds sums of at once.
const TOGETHER: usize = 8;
/// Most outputs of a unit.
const ROWS: usize = 512;
/// Steps of a chunk of the depth.
const CHUNK_STEPS: usize = 8;

/// Elements of the room for x in parts.
pub fn parts_len(inputs: usize, count: usize) -> usize {
    inputs.div_ceil(SIDE) * count.div_ceil(SIDE) * CELL
}

/// Elements of scratch: sums, and a chunk's weights of 32 outputs.
pub(super) fn scratch_len(blocks: usize) -> usize {
    ROWS / SIDE * blocks.min(TOGETHER) * C_LEN + CHUNK_STEPS * CELL
}

/// y = x wᵀ + b, then max(·, 0) if `relu`, for the first `count` pictures.
///
/// Shapes: x (N, I), w (O, I) in `place`, bias (O), y (N, O); `parts` as [`parts_len`] says.
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    place: Strips,
    count: usize,
    x: &[f32],
    parts: &mut [f32],
    w: &[f32],
    bias: &[f32],
    relu: bool,
    y: &mut [f32],
) {
    let Strips { rows: outputs, columns: inputs, width } = place;
    let blocks = count.div_ceil(SIDE);
    assert!(w.len() == place.len() && (width == inputs || width == SIDE), "weights");
    assert_eq!(bias.len(), outputs, "biases");
    assert!(x.len() >= count * inputs && y.len() >= count * outputs, "matrices");
    assert!(parts.len() >= parts_len(inputs, count), "parts");
    run_vectors(ctx, engine, &SplitPictures { inputs, count, blocks, x, to: Ptr::from_mut(parts) });
    // Large units read x best, but every thread should have two. Sums are the same in any.
    let unit_rows = outputs.div_ceil(2 * ctx.threads()).next_multiple_of(SIDE).min(ROWS);
    let x = pairs(parts);
    run(ctx, engine, &Forward { place, count, blocks, x, w, bias, relu, y: Ptr::from_mut(y), unit_rows });
}

/// x in parts, in the order in which products read it: cells of (inputs, pictures), a step's blocks one after the other.
struct SplitPictures<'a> {
    inputs: usize,
    count: usize,
    blocks: usize,
    x: &'a [f32],
    to: Ptr,
}

impl Kernel for SplitPictures<'_> {
    /// Chunks.
    fn units(&self) -> usize {
        self.inputs.div_ceil(CHUNK_STEPS * SIDE)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        for block in 0..self.blocks {
            let rows = (self.count - block * SIDE).min(SIDE);
            for step in unit * CHUNK_STEPS..((unit + 1) * CHUNK_STEPS).min(self.inputs.div_ceil(SIDE)) {
                // SAFETY: `forward` checked the matrices; this unit owns its cells.
                unsafe {
                    let from = self.x.as_ptr().add(block * SIDE * self.inputs + step * SIDE);
                    let to = self.to.at((step * self.blocks + block) * CELL).cast();
                    right_turned::<S>(from, self.inputs, rows, self.inputs - step * SIDE, to);
                }
            }
        }
    }
}

struct Forward<'a> {
    place: Strips,
    count: usize,
    blocks: usize,
    /// In parts.
    x: &'a [u32],
    w: &'a [f32],
    bias: &'a [f32],
    relu: bool,
    y: Ptr,
    /// Outputs of a unit, whole panels of 32.
    unit_rows: usize,
}

impl MatrixKernel for Forward<'_> {
    fn units(&self) -> usize {
        self.bias.len().div_ceil(self.unit_rows)
    }

    fn scratch_len(&self) -> usize {
        scratch_len(self.blocks)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let Strips { rows: outputs, columns: inputs, width } = self.place;
        let steps = inputs.div_ceil(SIDE);
        let rows = unit * self.unit_rows..((unit + 1) * self.unit_rows).min(outputs);
        let shape = cells(self.blocks * CELL);
        let split = scratch.wrapping_add(ROWS / SIDE * self.blocks.min(TOGETHER) * C_LEN).cast::<u32>();
        for first_block in (0..self.blocks).step_by(TOGETHER) {
            let blocks = (self.blocks - first_block).min(TOGETHER);
            let sums = |row: usize, block: usize| {
                scratch.wrapping_add(((row - rows.start) / SIDE * blocks + block) * C_LEN)
            };
            for step in (0..steps).step_by(CHUNK_STEPS) {
                let count = CHUNK_STEPS.min(steps - step);
                for row in rows.clone().step_by(SIDE) {
                    let valid = (rows.end - row).min(SIDE);
                    // The rows behind these, or the first ones' next inputs.
                    let (next_row, next_step) =
                        if row + SIDE < rows.end { (row + SIDE, step) } else { (rows.start, step + count) };
                    // SAFETY: `forward` checked all lengths.
                    unsafe {
                        for s in 0..count {
                            let at = self.place.at(row, (step + s) * SIDE);
                            let columns = inputs - (step + s) * SIDE;
                            left::<M::S>(self.w.as_ptr().add(at), width, valid, columns, split.add(s * CELL));
                        }
                        for block in 0..blocks {
                            let b = (step * self.blocks + first_block + block) * CELL;
                            let run = [Run { a: 0, b, steps: count }];
                            let from = self.place.at(next_row + block * (SIDE / 4), next_step * SIDE);
                            let ahead = Ahead {
                                from: self.w.as_ptr().wrapping_add(from).cast(),
                                step: if width == SIDE { self.place.rows * SIDE } else { SIDE },
                            };
                            M::threefold(
                                &shape,
                                &run,
                                split.cast_const().cast(),
                                self.x.as_ptr(),
                                sums(row, block),
                                step > 0,
                                ahead,
                            );
                        }
                    }
                }
            }
            for row in rows.clone().step_by(SIDE) {
                for block in 0..blocks {
                    // SAFETY: these sums were just computed; this unit owns its outputs.
                    unsafe { self.store(row, first_block + block, sums(row, block)) };
                }
            }
        }
    }
}

impl Forward<'_> {
    /// Bias and ReLU of up to 32 outputs from `first` on.
    #[inline(always)]
    unsafe fn store(&self, first: usize, block: usize, sums: *const f32) {
        let outputs = self.bias.len();
        for n in 0..SIDE.min(self.count - block * SIDE) {
            for m in 0..SIDE.min(outputs - first) {
                // SAFETY: the caller's promise; sums have 32 rows of 32 pictures.
                unsafe {
                    let value = *sums.add(m * C_STRIDE + n) + self.bias[first + m];
                    // In this order a NaN passes through.
                    let value = if self.relu && value < 0.0 { 0.0 } else { value };
                    *self.y.at((block * SIDE + n) * outputs + first + m) = value;
                }
            }
        }
    }
}

//! The backward pass of a linear layer: both gradients and the update in one pass over strips of the weights' columns.
//!
//! ```text
//! for 128 inputs              (a unit: a strip of columns of w, and their dx)
//!   for 128 outputs           (their weights are split, 64 KiB)
//!     for 32 inputs, block    dx: 32 pictures × 32 inputs over the outputs
//!     for 32 outputs, inputs  dw: 32 outputs × 32 inputs over all pictures; w and v move
//! ```

use super::cells;
use crate::bf16::engine::{
    Ahead, C_LEN, C_STRIDE, Engine, Matrix, MatrixKernel, Run, Threefold, run, run_vectors,
};
use crate::bf16::{EDGE, pairs};
use crate::linear::Backward;
use crate::parallel::{Context, Kernel, Ptr};
use crate::sgd::Mover;
use crate::simd::Simd;
use crate::strips::Strips;
use crate::threefold::cells::{CELL, SIDE, left, right};

/// Columns of w of a unit, in cells.
const PARTS: usize = 4;
/// Outputs that a unit takes at a time, in cells.
const STEPS: usize = 4;

/// Elements of the room for dy in parts, twice: (N, O) and (O, N).
pub fn parts_len(outputs: usize, count: usize) -> usize {
    2 * outputs.div_ceil(SIDE) * count.div_ceil(SIDE) * CELL
}

/// Elements of scratch: x and w in parts, sums of dx and of dw.
pub(super) fn scratch_len(blocks: usize) -> usize {
    PARTS * (blocks + STEPS) * CELL + PARTS * blocks * C_LEN + C_LEN
}

/// In one pass over the weights: dx = dy w, then w and v moved by dw = dyᵀ x. With `whole` nothing moves, and dw is written to
/// `pass.v`, for updates that need the whole gradient first. Returns whether all weights that moved are finite.
///
/// Shapes: x (N, I), dy (N, O) and its transpose dy_t (O, N), for N = `count` pictures; w, v in `place`; `parts` as
/// [`parts_len`] says.
pub fn backward(
    ctx: &mut Context,
    engine: Engine,
    place: Strips,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dy_t: &[f32],
    parts: &mut [f32],
    pass: Backward,
    whole: bool,
) -> bool {
    let Strips { rows: outputs, columns: inputs, width } = place;
    let blocks = count.div_ceil(SIDE);
    assert!(dy_t.len() == outputs * count && dy.len() >= count * outputs, "output gradient");
    assert!(pass.w.len() == place.len() && pass.v.len() == pass.w.len(), "weights");
    assert!(width == inputs || width == SIDE, "strips");
    assert!(x.len() >= count * inputs && parts.len() >= parts_len(outputs, count), "inputs");
    assert!(pass.dx.as_ref().is_none_or(|dx| dx.len() >= count * inputs), "input gradient");
    assert!(pass.relu.is_none_or(|a| a.len() >= count * inputs), "activation");
    let (dy_parts, dy_t_parts) = parts.split_at_mut(parts_len(outputs, count) / 2);
    for (rows, columns, from, to) in
        [(count, outputs, dy, &mut *dy_parts), (outputs, count, dy_t, &mut *dy_t_parts)]
    {
        run_vectors(ctx, engine, &SplitRows { rows, columns, from, to: Ptr::from_mut(to) });
    }
    let units = inputs.div_ceil(PARTS * SIDE);
    let mut flags = [0.0f32; 1024];
    assert!(units <= flags.len(), "more inputs than {}", PARTS * SIDE * flags.len());
    let kernel = BackwardKernel {
        place,
        count,
        blocks,
        x,
        dy: pairs(dy_parts),
        dy_t: pairs(dy_t_parts),
        dx: pass.dx.map(Ptr::from_mut),
        relu: pass.relu,
        w: Ptr::from_mut(pass.w),
        v: Ptr::from_mut(pass.v),
        update: pass.update,
        whole,
        flags: Ptr::from_mut(&mut flags),
    };
    run(ctx, engine, &kernel);
    flags[..units].iter().all(|f| *f == 0.0)
}

/// A matrix in parts as a left operand: for every 32 rows the cells of their columns.
struct SplitRows<'a> {
    rows: usize,
    columns: usize,
    from: &'a [f32],
    to: Ptr,
}

impl Kernel for SplitRows<'_> {
    /// 32 rows.
    fn units(&self) -> usize {
        self.rows.div_ceil(SIDE)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let steps = self.columns.div_ceil(SIDE);
        let rows = (self.rows - unit * SIDE).min(SIDE);
        for step in 0..steps {
            // SAFETY: `backward` checked the matrices; this unit owns its cells.
            unsafe {
                let from = self.from.as_ptr().add(unit * SIDE * self.columns + step * SIDE);
                let to = self.to.at((unit * steps + step) * CELL).cast();
                left::<S>(from, self.columns, rows, self.columns - step * SIDE, to);
            }
        }
    }
}

struct BackwardKernel<'a> {
    place: Strips,
    count: usize,
    blocks: usize,
    x: &'a [f32],
    /// In parts, as left operands.
    dy: &'a [u32],
    dy_t: &'a [u32],
    dx: Option<Ptr>,
    relu: Option<&'a [f32]>,
    w: Ptr,
    v: Ptr,
    update: crate::sgd::Update,
    /// v receives dw, and nothing moves.
    whole: bool,
    /// One element a unit: not zero if a weight became infinite or NaN.
    flags: Ptr,
}

impl MatrixKernel for BackwardKernel<'_> {
    /// Strips of columns of w.
    fn units(&self) -> usize {
        self.place.columns.div_ceil(PARTS * SIDE)
    }

    fn scratch_len(&self) -> usize {
        scratch_len(self.blocks)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let Strips { rows: outputs, columns: inputs, width } = self.place;
        let (count, blocks) = (self.count, self.blocks);
        let first = unit * PARTS * SIDE;
        let parts = (inputs - first).div_ceil(SIDE).min(PARTS);
        let steps = outputs.div_ceil(SIDE);
        let x_parts = scratch.cast::<u32>();
        let w_parts = x_parts.wrapping_add(PARTS * blocks * CELL);
        let dx_sums = w_parts.wrapping_add(PARTS * STEPS * CELL).cast::<f32>();
        let dw_sums = dx_sums.wrapping_add(PARTS * blocks * C_LEN);
        let moves = self.update.lr != 0.0;
        let shape = cells(CELL);
        // SAFETY: `backward` checked all lengths; this unit owns its columns of w, v and dx, and its flag.
        unsafe {
            let mut mover = Mover::<M::S>::new(self.update);
            for (part, block) in (0..parts).flat_map(|part| (0..blocks).map(move |block| (part, block))) {
                let column = first + part * SIDE;
                let from = self.x.as_ptr().add(block * SIDE * inputs + column);
                let to = x_parts.add((part * blocks + block) * CELL);
                right::<M::S>(from, inputs, (count - block * SIDE).min(SIDE), inputs - column, to);
            }
            for step in (0..steps).step_by(STEPS) {
                let taken = STEPS.min(steps - step);
                // What the next turn reads of w and v: half of the lines, the processor foresees the others.
                let next = |array: Ptr, part: usize, row: usize| -> *const u32 {
                    let at = self.place.at((step + taken) * SIDE + row, first + part * SIDE);
                    array.at(0).wrapping_add(at).cast_const().cast()
                };
                if self.dx.is_some() {
                    for part in 0..parts {
                        let column = first + part * SIDE;
                        for s in 0..taken {
                            let row = (step + s) * SIDE;
                            let from = self.w.at(self.place.at(row, column));
                            let to = w_parts.add(s * CELL);
                            right::<M::S>(from, width, (outputs - row).min(SIDE), inputs - column, to);
                        }
                        for block in 0..blocks {
                            let run = [Run { a: 2 * (block * steps + step) * CELL, b: 0, steps: taken }];
                            let ahead = Ahead {
                                from: next(self.w, part, block * SIDE),
                                step: Threefold::LINES * EDGE,
                            };
                            M::threefold(
                                &shape,
                                &run,
                                self.dy.as_ptr().cast(),
                                w_parts,
                                dx_sums.add((part * blocks + block) * C_LEN),
                                step > 0,
                                ahead,
                            );
                        }
                    }
                }
                if moves {
                    for (s, part) in (0..taken).flat_map(|s| (0..parts).map(move |part| (s, part))) {
                        let (row, column) = ((step + s) * SIDE, first + part * SIDE);
                        let run = [Run {
                            a: 2 * (step + s) * blocks * CELL,
                            b: part * blocks * CELL,
                            steps: blocks,
                        }];
                        let ahead =
                            Ahead { from: next(self.v, part, s * SIDE), step: Threefold::LINES * EDGE };
                        M::threefold(&shape, &run, self.dy_t.as_ptr().cast(), x_parts, dw_sums, false, ahead);
                        for m in 0..SIDE.min(outputs - row) {
                            let at = self.place.at(row + m, column);
                            let (dw, len) = (dw_sums.add(m * C_STRIDE), SIDE.min(inputs - column));
                            if self.whole {
                                std::ptr::copy_nonoverlapping(dw, self.v.at(at), len);
                            } else {
                                mover.step(dw, self.w.at(at), self.v.at(at), len);
                            }
                        }
                    }
                }
            }
            if let Some(dx) = self.dx {
                for (part, block) in (0..parts).flat_map(|part| (0..blocks).map(move |block| (part, block))) {
                    let sums = dx_sums.add((part * blocks + block) * C_LEN);
                    self.store::<M::S>(dx, first + part * SIDE, block, sums);
                }
            }
            *self.flags.at(unit) = mover.check();
        }
    }
}

impl BackwardKernel<'_> {
    /// Masks the gradient of up to 32 inputs from `first` on.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, dx: Ptr, first: usize, block: usize, sums: *const f32) {
        let inputs = self.place.columns;
        for n in 0..SIDE.min(self.count - block * SIDE) {
            for c in (0..SIDE.min(inputs - first)).step_by(S::LANES) {
                let lanes = (inputs - first - c).min(S::LANES);
                let at = (block * SIDE + n) * inputs + first + c;
                // SAFETY: the caller's promise; the activation has dx's layout.
                unsafe {
                    let mut value = S::load(sums.add(n * C_STRIDE + c));
                    if let Some(x) = self.relu {
                        value = S::where_positive(S::load_part(x.as_ptr().add(at), lanes), value);
                    }
                    S::store_part(dx.at(at), value, lanes);
                }
            }
        }
    }
}

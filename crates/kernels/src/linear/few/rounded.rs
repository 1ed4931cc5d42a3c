//! Weights in bf16. Products and sums are f32 on widened operands: two lines of weights a cycle can be widened and
//! multiplied, which is faster than they come.

use super::{AHEAD_BYTES, ROWS, Weights};
use crate::arena::Buffer;
use crate::bf16::few::convert::flat_len;
use crate::bf16::{EDGE, pair, pairs, pairs_mut};
use crate::parallel::Context;
use crate::simd::{Simd, prefetch};

/// Streams in which a group of rows is read, one part of its columns each: memory serves a few of a core faster than one.
const STREAMS: usize = 4;

/// w (O, I) rounded, as they are read: for each group of rows, 16 pairs of the first, 16 of the second, and so on. Rows
/// and columns that do not exist are zero.
#[derive(Debug)]
pub struct Rounded {
    outputs: usize,
    inputs: usize,
    data: Buffer,
}

impl Rounded {
    /// Room for `outputs` × `inputs`.
    pub fn new(outputs: usize, inputs: usize) -> Rounded {
        let groups = outputs.div_ceil(ROWS);
        Rounded { outputs, inputs, data: Buffer::zeros(groups * ROWS * flat_len(inputs)) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Rounds w (O, I).
    pub fn set(&mut self, ctx: &mut Context, w: &[f32]) {
        assert_eq!(w.len(), self.outputs * self.inputs, "weights");
        let inputs = self.inputs;
        ctx.for_each_chunk(pairs_mut(&mut self.data), ROWS * flat_len(inputs), |group, to| {
            for (row, w) in w.chunks_exact(inputs).skip(group * ROWS).take(ROWS).enumerate() {
                for (step, w) in w.chunks(2 * EDGE).enumerate() {
                    let to = &mut to[(step * ROWS + row) * EDGE..][..EDGE];
                    for (to, w) in to.iter_mut().zip(w.chunks(2)) {
                        *to = pair(w[0], w.get(1).copied().unwrap_or(0.0));
                    }
                }
            }
        });
    }
}

impl Weights for Rounded {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn row_len(&self) -> usize {
        flat_len(self.inputs)
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const N: usize>(&self, group: usize, x: *const f32) -> [[f32; N]; ROWS] {
        let len = self.row_len();
        let x = x.cast::<u32>();
        let (steps, stream_steps) = (len / EDGE, len / EDGE / STREAMS);
        const AHEAD: usize = AHEAD_BYTES / (STREAMS * ROWS * EDGE * size_of::<u32>());
        // SAFETY: the caller's promise; whole steps are within the weights and the flat rows. Asking for memory ahead
        // reads nothing.
        unsafe {
            let w = pairs(&self.data).as_ptr().add(group * ROWS * len);
            let mut sums = [[S::zero(); N]; ROWS];
            for i in 0..stream_steps {
                // Behind a stream's end the same stream of the next group follows.
                let ahead = if i + AHEAD < stream_steps { AHEAD } else { AHEAD + steps - stream_steps };
                for stream in 0..STREAMS {
                    let step = stream * stream_steps + i;
                    for row in 0..ROWS {
                        prefetch(w.wrapping_add(((step + ahead) * ROWS + row) * EDGE).cast());
                    }
                    self.step::<S, N>(step, w, x, &mut sums);
                }
            }
            for step in STREAMS * stream_steps..steps {
                self.step::<S, N>(step, w, x, &mut sums);
            }
            sums.map(|row| row.map(|sum| S::sum(sum)))
        }
    }
}

impl Rounded {
    /// One step of a group, whose weights begin at `w`.
    #[inline(always)]
    unsafe fn step<S: Simd, const N: usize>(
        &self,
        step: usize,
        w: *const u32,
        x: *const u32,
        sums: &mut [[S::V; N]; ROWS],
    ) {
        let len = self.row_len();
        // SAFETY: the caller's promise that the step is within the weights and the flat rows.
        unsafe {
            let w = w.add(step * ROWS * EDGE);
            for lane in (0..EDGE).step_by(S::LANES) {
                let mut values = [(S::zero(), S::zero()); N];
                for n in 0..N {
                    values[n] = S::load_pairs(x.add(n * len + step * EDGE + lane));
                }
                for row in 0..ROWS {
                    let (even, odd) = S::load_pairs(w.add(row * EDGE + lane));
                    for n in 0..N {
                        sums[row][n] = S::fma(odd, values[n].1, S::fma(even, values[n].0, sums[row][n]));
                    }
                }
            }
        }
    }
}

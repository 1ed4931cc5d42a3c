//! Linear layers on a few flat rows: y = x wᵀ + b.
//!
//! What takes time is reading the weights, so they are held in bf16 and read once for all pictures. Products and sums are f32 on widened operands: two lines of weights a cycle can be widened and multiplied,
//! which is faster than they come.

use super::convert::flat_len;
use crate::arena::Buffer;
use crate::bf16::{EDGE, pair, pairs, pairs_mut};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, prefetch};

/// Rows of weights that are read side by side, so that a load of the pictures serves them all.
const ROWS: usize = 4;
/// Pictures that share a pass over the rows: sums of 4 × 4 vectors beside their operands fill the registers.
const PICTURES: usize = 4;
/// Groups of rows of a unit.
const UNIT_GROUPS: usize = 8;
/// How far ahead weights are asked for, in pairs: 8 KiB, what arrives at 30 GB/s while memory takes 250 ns to answer.
const AHEAD: usize = 2048;

/// w (O, I) rounded, as they are read: for each group of rows, 16 pairs of the first, 16 of the second, and so on. So a
/// group is one stream through memory. Rows and columns that do not exist are zero.
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

/// Where the outputs go.
#[derive(Debug)]
pub enum Output<'a> {
    /// Flat rows of pairs.
    Flat(&'a mut [f32]),
    /// (N, O) in f32.
    Rows(&'a mut [f32]),
}

/// y = x wᵀ + b, then max(·, 0) if `relu`, for `count` pictures.
///
/// Shapes: x flat rows of pairs, bias (O).
pub fn forward(
    ctx: &mut Context,
    count: usize,
    x: &[f32],
    weights: &Rounded,
    bias: &[f32],
    relu: bool,
    y: Output,
) {
    let Rounded { outputs, inputs, .. } = *weights;
    assert!(x.len() >= count * flat_len(inputs), "inputs");
    assert_eq!(bias.len(), outputs, "bias");
    let (y, flat) = match y {
        Output::Flat(y) => {
            assert!(y.len() >= count * flat_len(outputs), "outputs");
            (Ptr::from_mut(y), true)
        }
        Output::Rows(y) => {
            assert!(y.len() >= count * outputs, "outputs");
            (Ptr::from_mut(y), false)
        }
    };
    ctx.run(&Forward { count, x: pairs(x), weights, bias, relu, y, flat });
}

struct Forward<'a> {
    count: usize,
    x: &'a [u32],
    weights: &'a Rounded,
    bias: &'a [f32],
    relu: bool,
    y: Ptr,
    flat: bool,
}

impl Kernel for Forward<'_> {
    fn units(&self) -> usize {
        self.weights.outputs.div_ceil(ROWS * UNIT_GROUPS)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let groups = self.weights.outputs.div_ceil(ROWS);
        for group in unit * UNIT_GROUPS..groups.min((unit + 1) * UNIT_GROUPS) {
            for picture in (0..self.count).step_by(PICTURES) {
                // SAFETY: the group and the pictures exist; a unit owns its rows of y.
                unsafe {
                    match self.count - picture {
                        1 => self.group::<S, 1>(group, picture),
                        2 => self.group::<S, 2>(group, picture),
                        3 => self.group::<S, 3>(group, picture),
                        _ => self.group::<S, PICTURES>(group, picture),
                    }
                }
            }
        }
    }
}

impl Forward<'_> {
    /// The outputs of a group of rows for `N` pictures.
    #[inline(always)]
    unsafe fn group<S: Simd, const N: usize>(&self, group: usize, picture: usize) {
        let outputs = self.weights.outputs;
        let first = group * ROWS;
        let rows = (outputs - first).min(ROWS);
        // SAFETY: the caller's promise.
        unsafe {
            let sums = self.sums::<S, N>(group, picture);
            for n in 0..N {
                let mut values = [0.0; ROWS];
                for row in 0..rows {
                    let sum = S::sum(sums[row][n]) + self.bias[first + row];
                    // A NaN passes through.
                    values[row] = if self.relu && sum <= 0.0 { 0.0 } else { sum };
                }
                if self.flat {
                    let to = self.y.at((picture + n) * flat_len(outputs) + first / 2).cast::<u32>();
                    for two in 0..rows.div_ceil(2) {
                        *to.add(two) = pair(values[2 * two], values[2 * two + 1]);
                    }
                } else {
                    for (row, value) in values[..rows].iter().enumerate() {
                        *self.y.at((picture + n) * outputs + first + row) = *value;
                    }
                }
            }
        }
    }

    /// Dot products of a group of rows with `N` pictures, not yet summed over the lanes.
    #[inline(always)]
    unsafe fn sums<S: Simd, const N: usize>(&self, group: usize, picture: usize) -> [[S::V; N]; ROWS] {
        let len = flat_len(self.weights.inputs);
        // SAFETY: the caller's promise; whole steps are within the weights and the flat rows. Asking for memory ahead
        // reads nothing.
        unsafe {
            let mut w = pairs(&self.weights.data).as_ptr().add(group * ROWS * len);
            let x = self.x.as_ptr().add(picture * len);
            let mut sums = [[S::zero(); N]; ROWS];
            for step in 0..len / EDGE {
                for row in 0..ROWS {
                    prefetch(w.wrapping_add(AHEAD + row * EDGE).cast());
                }
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
                w = w.add(ROWS * EDGE);
            }
            sums
        }
    }
}

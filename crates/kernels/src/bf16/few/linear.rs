//! Linear layers on a few flat rows: y = x wᵀ + b.
//!
//! What takes time is reading the weights, so they are held in bf16, row by row, and each row is read once for all
//! pictures. Products and sums are f32 on widened operands: two lines of weights a cycle can be widened and multiplied,
//! which is faster than they come.

use super::convert::flat_len;
use crate::arena::Buffer;
use crate::bf16::{pair, pairs, pairs_mut};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// Rows of weights that are read side by side: as many streams as a prefetcher follows, and enough sums in flight.
const ROWS: usize = 4;
/// Pictures that share a pass over the rows' registers.
const PICTURES: usize = 4;
/// Rows of a unit.
const UNIT_ROWS: usize = 32;

/// w (O, I) rounded, each row a flat row of pairs.
#[derive(Debug)]
pub struct Rounded {
    outputs: usize,
    inputs: usize,
    data: Buffer,
}

impl Rounded {
    /// Room for `outputs` × `inputs`.
    pub fn new(outputs: usize, inputs: usize) -> Rounded {
        Rounded { outputs, inputs, data: Buffer::zeros(outputs * flat_len(inputs)) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Rounds w (O, I).
    pub fn set(&mut self, ctx: &mut Context, w: &[f32]) {
        assert_eq!(w.len(), self.outputs * self.inputs, "weights");
        let inputs = self.inputs;
        ctx.for_each_chunk(pairs_mut(&mut self.data), flat_len(inputs), |output, to| {
            let w = &w[output * inputs..][..inputs];
            let (two, one) = w.as_chunks::<2>();
            to.iter_mut().zip(two).for_each(|(to, w)| *to = pair(w[0], w[1]));
            if let [last] = one {
                to[inputs / 2] = pair(*last, 0.0);
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
        self.weights.outputs.div_ceil(UNIT_ROWS)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let outputs = self.weights.outputs;
        let end = outputs.min((unit + 1) * UNIT_ROWS);
        for first in (unit * UNIT_ROWS..end).step_by(ROWS) {
            let rows = (end - first).min(ROWS);
            let mut picture = 0;
            while picture < self.count {
                let pictures = (self.count - picture).min(PICTURES);
                // SAFETY: rows and pictures exist; where fewer are left, the last one is computed again and left out.
                unsafe {
                    let sums = match pictures {
                        1 => self.sums::<S, 1>(first, rows, picture),
                        2 => self.sums::<S, 2>(first, rows, picture),
                        3 => self.sums::<S, 3>(first, rows, picture),
                        _ => self.sums::<S, PICTURES>(first, rows, picture),
                    };
                    for n in 0..pictures {
                        let value = |row: usize| {
                            let sum = sums[row][n] + self.bias[first + row];
                            // A NaN passes through.
                            if self.relu && sum <= 0.0 { 0.0 } else { sum }
                        };
                        if self.flat {
                            let to = self.y.at((picture + n) * flat_len(outputs) + first / 2).cast::<u32>();
                            for row in (0..rows).step_by(2) {
                                let odd = if row + 1 < rows { value(row + 1) } else { 0.0 };
                                *to.add(row / 2) = pair(value(row), odd);
                            }
                        } else {
                            for row in 0..rows {
                                *self.y.at((picture + n) * outputs + first + row) = value(row);
                            }
                        }
                    }
                }
                picture += pictures;
            }
        }
    }
}

impl Forward<'_> {
    /// Dot products of `rows` rows of weights with `N` pictures.
    #[inline(always)]
    unsafe fn sums<S: Simd, const N: usize>(
        &self,
        first: usize,
        rows: usize,
        picture: usize,
    ) -> [[f32; PICTURES]; ROWS] {
        let len = flat_len(self.weights.inputs);
        // SAFETY: the caller's promise.
        unsafe {
            let w: [*const u32; ROWS] = std::array::from_fn(|row| {
                pairs(&self.weights.data).as_ptr().add((first + row.min(rows - 1)) * len)
            });
            let x: [*const u32; N] = std::array::from_fn(|n| self.x.as_ptr().add((picture + n) * len));
            let mut sums = [[S::zero(); N]; ROWS];
            let whole = len / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                let x = x.map(|x| S::load_pairs(x.add(at)));
                for row in 0..ROWS {
                    let (even, odd) = S::load_pairs(w[row].add(at));
                    for n in 0..N {
                        sums[row][n] = S::fma(odd, x[n].1, S::fma(even, x[n].0, sums[row][n]));
                    }
                }
            }
            let mut out = [[0.0; PICTURES]; ROWS];
            for row in 0..ROWS {
                for n in 0..N {
                    out[row][n] = S::sum(sums[row][n]);
                    for at in whole..len {
                        let product = |shift: u32| {
                            let half = |pair: u32| f32::from_bits(pair << shift & 0xffff_0000);
                            half(*w[row].add(at)) * half(*x[n].add(at))
                        };
                        out[row][n] += product(16) + product(0);
                    }
                }
            }
            out
        }
    }
}

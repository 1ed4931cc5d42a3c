//! Linear layers on a few rows: y = x wᵀ + b.
//!
//! What takes time is reading the weights, so they are read once for all pictures, and in few bytes: in f32 as they are
//! ([`Plain`]), in bf16 ([`Rounded`]), or in eight bits with a scale for each output ([`Quantized`]). Lanes are inputs.

mod plain;
mod quantized;
mod rounded;

pub use plain::Plain;
pub use quantized::{Quantized, quantize, quantized_len};
pub use rounded::Rounded;

use crate::bf16::few::convert::flat_len;
use crate::bf16::pair;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// Rows of weights that are read side by side, so that a load of the pictures serves them all.
const ROWS: usize = 4;
/// Pictures that share a pass over the rows: sums of 4 × 4 vectors beside their operands fill the registers.
const PICTURES: usize = 4;
/// Groups of rows of a unit.
const UNIT_GROUPS: usize = 8;
/// How far ahead weights are asked for: 8 KiB, what arrives at 30 GB/s while memory takes 250 ns to answer.
const AHEAD_BYTES: usize = 8192;

/// Weights w (O, I) as they are read: in groups of 4 outputs, each group one stream through memory.
pub trait Weights: Sync {
    /// O
    fn outputs(&self) -> usize;

    /// Elements of an arena that the inputs of a picture take.
    fn row_len(&self) -> usize;

    /// Dot products of the outputs of a group with `N` pictures that lie one behind the other.
    ///
    /// # Safety
    /// The group exists, `x` points to `N` rows of `row_len` elements, and the processor has the instructions of `S`.
    unsafe fn dots<S: Simd, const N: usize>(&self, group: usize, x: *const f32) -> [[f32; N]; ROWS];
}

/// Where inputs come from.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Flat rows of pairs.
    Flat(&'a [f32]),
    /// (N, I) in f32.
    Rows(&'a [f32]),
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
/// Shapes: x flat rows of pairs for [`Rounded`], what [`quantize`] made of them for [`Quantized`], (N, I) for [`Plain`];
/// bias (O).
pub fn forward<W: Weights>(
    ctx: &mut Context,
    count: usize,
    x: &[f32],
    weights: &W,
    bias: &[f32],
    relu: bool,
    y: Output,
) {
    let outputs = weights.outputs();
    assert!(x.len() >= count * weights.row_len(), "inputs");
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
    ctx.run(&Forward { count, x, weights, bias, relu, y, flat });
}

struct Forward<'a, W> {
    count: usize,
    x: &'a [f32],
    weights: &'a W,
    bias: &'a [f32],
    relu: bool,
    y: Ptr,
    flat: bool,
}

impl<W: Weights> Kernel for Forward<'_, W> {
    fn units(&self) -> usize {
        self.weights.outputs().div_ceil(ROWS * UNIT_GROUPS)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let groups = self.weights.outputs().div_ceil(ROWS);
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

impl<W: Weights> Forward<'_, W> {
    /// The outputs of a group of rows for `N` pictures.
    #[inline(always)]
    unsafe fn group<S: Simd, const N: usize>(&self, group: usize, picture: usize) {
        let outputs = self.weights.outputs();
        let first = group * ROWS;
        let rows = (outputs - first).min(ROWS);
        // SAFETY: the caller's promise; `forward` checked the rows of x.
        unsafe {
            let x = self.x.as_ptr().add(picture * self.weights.row_len());
            let dots = self.weights.dots::<S, N>(group, x);
            for n in 0..N {
                let mut values = [0.0; ROWS];
                for row in 0..rows {
                    let sum = dots[row][n] + self.bias[first + row];
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
}

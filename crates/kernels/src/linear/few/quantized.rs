//! Weights in eight bits: each output has a scale of its own, by which its largest weight becomes 127. The inputs of a
//! picture share a scale too and have more bits, up to 15, as many as exact sums in 32 bits leave room for: the error is
//! that of the weights. Sums are exact, so every instruction set gives the same.

use super::{AHEAD_BYTES, Input, ROWS, Weights};
use crate::arena::Buffer;
use crate::bf16::few::convert::flat_len;
use crate::bf16::{pairs, widen};
use crate::parallel::{ChunkWork, Context, Kernel, Ptr};
use crate::simd::{Simd, prefetch};

/// Weights of a row that lie together: a line of memory.
const LINE: usize = 64;
/// The largest weight.
const MOST: f32 = 127.0;
/// Lanes that share the sum of an output on the narrowest instruction set.
const LEAST_LANES: usize = 4;
/// Elements before a picture's quantized inputs, the first of which is their scale.
const HEAD: usize = 16;

/// w (O, I) in eight bits, as they are read: for each group of rows, 64 of the first, 64 of the second, and so on. Rows and
/// columns that do not exist are zero.
#[derive(Debug)]
pub struct Quantized {
    outputs: usize,
    inputs: usize,
    /// What one step of each output's weights is worth; NaN where a weight is not finite.
    scales: Vec<f32>,
    data: Buffer,
}

/// Columns of weights, those that do not exist included.
fn columns(inputs: usize) -> usize {
    inputs.next_multiple_of(LINE)
}

/// What the largest input becomes: no lane's sum of its share of the products can leave 32 bits.
fn levels(inputs: usize) -> f32 {
    let products = columns(inputs) / LEAST_LANES;
    (i32::MAX as usize / (products * MOST as usize)).min(i16::MAX as usize) as f32
}

/// Elements of an arena that the quantized inputs of one picture take.
pub fn quantized_len(inputs: usize) -> usize {
    HEAD + columns(inputs) / 2
}

impl Quantized {
    /// Whether exact sums leave so many inputs eight bits each. Half a million is too many.
    pub fn takes(inputs: usize) -> bool {
        levels(inputs) >= MOST
    }

    /// Room for `outputs` × `inputs`.
    ///
    /// # Panics
    /// Unless [`Quantized::takes`] so many inputs.
    pub fn new(outputs: usize, inputs: usize) -> Quantized {
        assert!(Quantized::takes(inputs), "{inputs} inputs are too many for exact sums");
        let rows = outputs.next_multiple_of(ROWS);
        let data = Buffer::zeros((rows * columns(inputs)).div_ceil(size_of::<f32>()));
        Quantized { outputs, inputs, scales: vec![0.0; rows], data }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.data) + size_of_val(&*self.scales)
    }

    /// Quantizes w (O, I).
    pub fn set(&mut self, ctx: &mut Context, w: &[f32]) {
        assert_eq!(w.len(), self.outputs * self.inputs, "weights");
        let inputs = self.inputs;
        ctx.for_each_chunk_in_vectors(&mut self.scales, ROWS, &Scales { inputs, w });
        let work = Quantizing { inputs, w, scales: &self.scales };
        ctx.for_each_chunk_in_vectors(bytes_mut(&mut self.data), ROWS * columns(inputs), &work);
    }
}

/// The scales of a group of rows of w.
struct Scales<'a> {
    inputs: usize,
    w: &'a [f32],
}

impl ChunkWork<f32> for Scales<'_> {
    #[inline(always)]
    fn chunk(&self, group: usize, scales: &mut [f32]) {
        let rows = self.w.chunks_exact(self.inputs).skip(group * ROWS);
        for (scale, w) in scales.iter_mut().zip(rows) {
            // Not finite where one is not, NaN included: the bits of |w| are in its order.
            let largest = w.iter().map(|w| w.to_bits() & !(1 << 31)).max().map_or(0.0, f32::from_bits);
            *scale = if largest.is_finite() { largest / MOST } else { f32::NAN };
        }
    }
}

/// A group of rows of w in eight bits.
struct Quantizing<'a> {
    inputs: usize,
    w: &'a [f32],
    scales: &'a [f32],
}

impl ChunkWork<i8> for Quantizing<'_> {
    #[inline(always)]
    fn chunk(&self, group: usize, to: &mut [i8]) {
        let rows = self.w.chunks_exact(self.inputs).zip(self.scales).skip(group * ROWS);
        for (row, (w, scale)) in rows.take(ROWS).enumerate() {
            for (step, w) in w.chunks(LINE).enumerate() {
                let to = &mut to[(step * ROWS + row) * LINE..][..LINE];
                for (to, w) in to.iter_mut().zip(w) {
                    // 0 / 0, where all weights are zero, becomes zero.
                    *to = (w / scale).round_ties_even() as i8;
                }
            }
        }
    }
}

fn bytes_mut(data: &mut [f32]) -> &mut [i8] {
    // SAFETY: i8 has a smaller alignment than f32, and every bit pattern is one of both.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) }
}

/// Quantizes the inputs of `count` pictures. Where one is not finite, the picture's scale is NaN, and so will be its
/// outputs.
pub fn quantize(ctx: &mut Context, count: usize, inputs: usize, x: Input, to: &mut [f32]) {
    let len = match x {
        Input::Flat(x) => x.len() / flat_len(inputs),
        Input::Rows(x) => x.len() / inputs,
    };
    assert!(len >= count, "inputs");
    assert!(to.len() >= count * quantized_len(inputs), "quantized inputs");
    ctx.run(&Quantize { count, inputs, x, to: Ptr::from_mut(to) });
}

struct Quantize<'a> {
    count: usize,
    inputs: usize,
    x: Input<'a>,
    to: Ptr,
}

impl Kernel for Quantize<'_> {
    fn units(&self) -> usize {
        self.count
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, picture: usize, _scratch: *mut f32) {
        let inputs = self.inputs;
        // SAFETY: `quantize` checked the room; a unit owns its picture's.
        let (head, to) = unsafe {
            let to = self.to.at(picture * quantized_len(inputs));
            (to, std::slice::from_raw_parts_mut(to.add(HEAD).cast::<i16>(), columns(inputs)))
        };
        to.fill(0);
        let scale = match self.x {
            Input::Flat(x) => {
                let x = &pairs(x)[picture * flat_len(inputs)..][..inputs.div_ceil(2)];
                let largest = x.iter().map(|x| (x & 0x7fff).max(x >> 16 & 0x7fff)).max().unwrap_or(0);
                let step = Step::of(widen(largest as u16), inputs);
                let (to, _) = to.as_chunks_mut::<2>();
                for (to, x) in to.iter_mut().zip(x) {
                    *to = [*x as u16, (x >> 16) as u16].map(|x| step.round(widen(x)));
                }
                step.worth
            }
            Input::Rows(x) => {
                let x = &x[picture * inputs..][..inputs];
                let largest = x.iter().map(|x| x.to_bits() & !(1 << 31)).max().unwrap_or(0);
                let step = Step::of(f32::from_bits(largest), inputs);
                for (to, x) in to.iter_mut().zip(x) {
                    *to = step.round(*x);
                }
                step.worth
            }
        };
        // SAFETY: as above.
        unsafe { *head = scale };
    }
}

/// What the inputs of a picture are counted in.
struct Step {
    /// NaN where one is not finite.
    worth: f32,
    /// Steps that make 1.
    rate: f32,
}

impl Step {
    /// For inputs up to `largest`.
    #[inline(always)]
    fn of(largest: f32, inputs: usize) -> Step {
        let levels = levels(inputs);
        Step {
            worth: if largest.is_finite() { largest / levels } else { f32::NAN },
            // A picture of zeros remains one.
            rate: if largest > 0.0 { levels / largest } else { 0.0 },
        }
    }

    #[inline(always)]
    fn round(&self, x: f32) -> i16 {
        (x * self.rate).round_ties_even() as i16
    }
}

impl Weights for Quantized {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn row_len(&self) -> usize {
        quantized_len(self.inputs)
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const N: usize>(&self, group: usize, x: *const f32) -> [[f32; N]; ROWS] {
        let columns = columns(self.inputs);
        // SAFETY: the caller's promise; whole steps are within the weights and the rows of inputs. Asking for memory ahead
        // reads nothing.
        unsafe {
            let pictures: [*const f32; N] = std::array::from_fn(|n| x.add(n * self.row_len()));
            let values = pictures.map(|x| x.add(HEAD).cast::<i16>());
            let mut w = self.data.as_ptr().cast::<i8>().add(group * ROWS * columns);
            let mut sums = [[S::zero_ints(); N]; ROWS];
            for start in (0..columns).step_by(LINE) {
                for row in 0..ROWS {
                    prefetch(w.add(row * LINE).wrapping_byte_add(AHEAD_BYTES).cast());
                }
                for lane in (0..LINE).step_by(2 * S::LANES) {
                    for row in 0..ROWS {
                        let w = S::load_bytes(w.add(row * LINE + lane));
                        for n in 0..N {
                            sums[row][n] = S::add_products(sums[row][n], w, values[n].add(start + lane));
                        }
                    }
                }
                w = w.add(ROWS * LINE);
            }
            std::array::from_fn(|row| {
                let scale = self.scales[group * ROWS + row];
                std::array::from_fn(|n| S::sum_ints(sums[row][n]) as f32 * (scale * *pictures[n]))
            })
        }
    }
}

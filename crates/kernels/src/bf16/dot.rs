//! Products without tiles: AVX-512's dot product of pairs, and f32 arithmetic on widened pairs.

use super::EDGE;
use super::engine::{C_STRIDE, Left, Matrix, MatrixKernel, Product, Right, Run};
use crate::parallel::Kernel;
use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_storeu_ps,
};
use std::marker::PhantomData;

/// `vdpbf16ps`: 16 dot products of pairs, added to f32.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Dot;

/// Runs a unit with the instructions that [`Dot`] needs.
///
/// # Safety
/// The processor has them; otherwise as [`MatrixKernel::unit`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn run<K: MatrixKernel>(kernel: &K, unit: usize, scratch: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe { kernel.unit::<Dot>(unit, scratch) }
}

/// Runs a unit that multiplies nothing, with vectors that round to bf16 by an instruction.
///
/// # Safety
/// The processor has AVX-512-BF16; otherwise as [`Kernel::unit`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn run_vectors<K: Kernel>(kernel: &K, unit: usize, scratch: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe { kernel.unit::<Avx512<true>>(unit, scratch) }
}

/// Rows of C that are summed together: with two column vectors 24 accumulators, which with the two vectors of the right
/// operand and one of the left leave five of the 32 registers.
#[cfg(target_arch = "x86_64")]
const ROWS: [usize; 3] = [12, 12, 8];

#[cfg(target_arch = "x86_64")]
impl Matrix for Dot {
    type S = Avx512<true>;

    #[inline(always)]
    unsafe fn product(shape: &Product, runs: &[Run], a: *const u32, b: *const u32, c: *mut f32, add: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Left::Apart { row, second, rows } = shape.left {
                for tile in 0..shape.rows {
                    let (a, c) = (a.wrapping_add(tile * second), c.add(tile * EDGE * C_STRIDE));
                    super::apart::product(shape.columns, row, rows[tile], runs, a, b, c, add);
                }
                return;
            }
            match (shape.columns, shape.rows) {
                (1, _) => {
                    for tile in 0..shape.rows {
                        let first = tile * EDGE;
                        dot_rows::<16, 1>(shape, runs, a, b, c, first, add);
                    }
                }
                (_, 1) => {
                    dot_rows::<8, 2>(shape, runs, a, b, c, 0, add);
                    dot_rows::<8, 2>(shape, runs, a, b, c, 8, add);
                }
                _ => {
                    dot_rows::<{ ROWS[0] }, 2>(shape, runs, a, b, c, 0, add);
                    dot_rows::<{ ROWS[1] }, 2>(shape, runs, a, b, c, ROWS[0], add);
                    dot_rows::<{ ROWS[2] }, 2>(shape, runs, a, b, c, ROWS[0] + ROWS[1], add);
                }
            }
        }
    }
}

/// One pair of the depth of a step: adds its products to `R` rows of sums.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn dot_pair<const R: usize, const V: usize>(
    form: Right,
    left: *const u32,
    right: *const u32,
    depth: usize,
    sums: &mut [[__m512; V]; R],
) {
    let (row, second) = form.distances();
    // SAFETY: the caller's promise; bits are only reinterpreted.
    unsafe {
        let mut columns = [std::mem::transmute::<__m512, __m512bh>(_mm512_setzero_ps()); V];
        for v in 0..V {
            let vector = _mm512_loadu_ps(right.add(depth * row + v * second).cast());
            columns[v] = std::mem::transmute::<__m512, __m512bh>(vector);
        }
        for r in 0..R {
            let bits = left.add(r * EDGE).cast::<i32>().read();
            let weight = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(bits));
            for v in 0..V {
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], weight, columns[v]);
            }
        }
    }
}

/// `R` rows of C from `first` on, `V` vectors wide.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn dot_rows<const R: usize, const V: usize>(
    shape: &Product,
    runs: &[Run],
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    first: usize,
    add: bool,
) {
    // SAFETY: the caller's promise; bits are only reinterpreted.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        if add {
            for r in 0..R {
                for v in 0..V {
                    sums[r][v] = _mm512_loadu_ps(c.add((first + r) * C_STRIDE + v * EDGE));
                }
            }
        }
        for run in runs {
            let (mut left, mut right) = (a.add(run.a + first * EDGE), b.add(run.b));
            for _ in 1..run.steps {
                for depth in 0..EDGE {
                    dot_pair(shape.right, left.add(depth), right, depth, &mut sums);
                }
                left = left.wrapping_add(shape.a_step);
                right = right.wrapping_add(shape.b_step);
            }
            if shape.last == EDGE {
                for depth in 0..EDGE {
                    dot_pair(shape.right, left.add(depth), right, depth, &mut sums);
                }
            } else {
                for depth in 0..shape.last {
                    dot_pair(shape.right, left.add(depth), right, depth, &mut sums);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                _mm512_storeu_ps(c.add((first + r) * C_STRIDE + v * EDGE), sums[r][v]);
            }
        }
    }
}

/// Operands widened to f32 and multiplied as such: runs everywhere, and says what the others should yield.
#[derive(Clone, Copy)]
pub(crate) struct Widen<S>(PhantomData<S>);

/// Runs a unit of [`Widen`] on AVX-512.
///
/// # Safety
/// The processor has it; otherwise as [`MatrixKernel::unit`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
pub(super) unsafe fn widen_avx512<K: MatrixKernel>(kernel: &K, unit: usize, scratch: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe { kernel.unit::<Widen<Avx512>>(unit, scratch) }
}

/// Runs a unit of [`Widen`] on AVX2.
///
/// # Safety
/// The processor has it; otherwise as [`MatrixKernel::unit`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn widen_avx2<K: MatrixKernel>(kernel: &K, unit: usize, scratch: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe { kernel.unit::<Widen<Avx2>>(unit, scratch) }
}

impl<S: Simd> Matrix for Widen<S> {
    type S = S;

    #[inline(always)]
    unsafe fn product(shape: &Product, runs: &[Run], a: *const u32, b: *const u32, c: *mut f32, add: bool) {
        /// Rows of C that are summed together.
        const TOGETHER: usize = 4;
        let (left_row, left_second) = shape.left.distances();
        let (row, second) = shape.right.distances();
        // SAFETY: the caller's promise.
        unsafe {
            for first in (0..shape.rows * EDGE).step_by(TOGETHER) {
                for column in (0..shape.columns * EDGE).step_by(S::LANES) {
                    let (tile, lane) = (column / EDGE, column % EDGE);
                    let left_start = first / EDGE * left_second + first % EDGE * left_row;
                    let c = c.add(first * C_STRIDE + column);
                    let mut sums = [S::zero(); TOGETHER];
                    if add {
                        for r in 0..TOGETHER {
                            sums[r] = S::load(c.add(r * C_STRIDE));
                        }
                    }
                    for run in runs {
                        for step in 0..run.steps {
                            let left = a.add(run.a + step * shape.a_step + left_start);
                            let right = b.add(run.b + step * shape.b_step + lane);
                            for depth in 0..EDGE {
                                let (even, odd) = S::load_pairs(right.add(depth * row + tile * second));
                                for r in 0..TOGETHER {
                                    let bits = *left.add(r * left_row + depth);
                                    let low = S::splat(f32::from_bits(bits << 16));
                                    let high = S::splat(f32::from_bits(bits & 0xffff_0000));
                                    sums[r] = S::fma(high, odd, S::fma(low, even, sums[r]));
                                }
                            }
                        }
                    }
                    for r in 0..TOGETHER {
                        S::store(c.add(r * C_STRIDE), sums[r]);
                    }
                }
            }
        }
    }
}

//! The few vector operations that the kernels are written in, once, and their three spellings: AVX-512, AVX2 with
//! FMA, and portable code that the compiler vectorizes for whatever it targets (SSE2, NEON).
//!
//! Every method is `unsafe`: the caller promises that the processor has the instructions and that pointers are valid
//! for `LANES` elements. Methods are `inline(always)` so that they take on the target features of the function
//! that they are inlined into (see [`crate::parallel`]).

#![allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

/// One instruction set's vectors of f32.
pub trait Simd: Copy {
    /// A vector of `LANES` elements.
    type V: Copy;
    /// Elements in a vector.
    const LANES: usize;
    /// Vectors in the widest tile.
    const PANEL: usize;
    /// Most rows of a tile that is 1, 2, 3, 4 vectors wide: as many accumulators as fit beside the operands.
    const ROWS: [usize; 4];

    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn splat(x: f32) -> Self::V;
    /// a·b + c
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// `b` where `a` > 0, else 0.
    unsafe fn where_positive(a: Self::V, b: Self::V) -> Self::V;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        Self::splat(0.0)
    }

    /// The first `n` lanes from memory, zero in the others.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; 16];
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
        Self::load(lanes.as_ptr())
    }

    /// Stores the first `n` lanes.
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        let mut lanes = [0.0f32; 16];
        Self::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
    }
}

/// 512-bit vectors: 32 registers, two FMAs a cycle on most chips.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    type V = std::arch::x86_64::__m512;
    const LANES: usize = 16;
    const PANEL: usize = 4;
    // 6×4 accumulators + 4 weights, 8×3 + 3, 12×2 + 2: all below 32 registers; 8 chains hide the FMA's latency.
    const ROWS: [usize; 4] = [8, 8, 8, 6];

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        std::arch::x86_64::_mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        std::arch::x86_64::_mm512_storeu_ps(p, v)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        std::arch::x86_64::_mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_sqrt_ps(a)
    }
    #[inline(always)]
    unsafe fn where_positive(a: Self::V, b: Self::V) -> Self::V {
        use std::arch::x86_64::{_CMP_GT_OQ, _mm512_cmp_ps_mask, _mm512_maskz_mov_ps, _mm512_setzero_ps};
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, _mm512_setzero_ps()), b)
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        std::arch::x86_64::_mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p)
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        std::arch::x86_64::_mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v)
    }
}

/// 256-bit vectors with fused multiply-add: 16 registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type V = std::arch::x86_64::__m256;
    const LANES: usize = 8;
    const PANEL: usize = 2;
    // 6×2 accumulators + 2 weights + 1 broadcast: 15 of 16 registers.
    const ROWS: [usize; 4] = [8, 6, 0, 0];

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        std::arch::x86_64::_mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        std::arch::x86_64::_mm256_storeu_ps(p, v)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        std::arch::x86_64::_mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::arch::x86_64::_mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        std::arch::x86_64::_mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        std::arch::x86_64::_mm256_sqrt_ps(a)
    }
    #[inline(always)]
    unsafe fn where_positive(a: Self::V, b: Self::V) -> Self::V {
        use std::arch::x86_64::{_CMP_GT_OQ, _mm256_and_ps, _mm256_cmp_ps, _mm256_setzero_ps};
        _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, _mm256_setzero_ps()), b)
    }
}

/// Arrays of four, which compilers turn into SSE2 or NEON instructions.
#[derive(Clone, Copy)]
pub struct Portable;

/// Applies a function lane by lane.
#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const PANEL: usize = 2;
    // 4×2 accumulators + 2 weights + 1 broadcast: 11 of SSE2's 16 registers.
    const ROWS: [usize; 4] = [8, 4, 0, 0];

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        p.cast::<[f32; 4]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        p.cast::<[f32; 4]>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // `mul_add` is one instruction where the target has it and a slow library call elsewhere.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            lanes(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanes(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // The second operand when either is NaN, as the x86 instruction does.
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        lanes(|i| a[i].sqrt())
    }
    #[inline(always)]
    unsafe fn where_positive(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > 0.0 { b[i] } else { 0.0 })
    }
}

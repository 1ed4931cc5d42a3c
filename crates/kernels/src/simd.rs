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
    /// A vector of 2·`LANES` integers of 16 bits.
    type Shorts: Copy;
    /// A vector of `LANES` integers of 32 bits.
    type Ints: Copy;
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

    unsafe fn load_shorts(p: *const i16) -> Self::Shorts;
    unsafe fn store_shorts(p: *mut i16, v: Self::Shorts);
    unsafe fn splat_short(x: i16) -> Self::Shorts;
    unsafe fn max_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts;
    unsafe fn or_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts;
    /// Each shifted left by so many bits, fewer than 16.
    unsafe fn shift_shorts(a: Self::Shorts, bits: usize) -> Self::Shorts;
    /// `x` where `a` > `b`, else `y`.
    unsafe fn where_greater(
        a: Self::Shorts,
        b: Self::Shorts,
        x: Self::Shorts,
        y: Self::Shorts,
    ) -> Self::Shorts;
    /// For each bf16 an integer that orders as it does (`bf16::key`).
    unsafe fn keys(bits: Self::Shorts) -> Self::Shorts;
    /// The bf16 of each key.
    unsafe fn values_of(keys: Self::Shorts) -> Self::Shorts;

    unsafe fn zero_ints() -> Self::Ints;
    /// 2·`LANES` signed bytes, widened.
    unsafe fn load_bytes(p: *const i8) -> Self::Shorts;
    /// Each lane of `sums` and the products of two neighbours of `a` with those at `p`.
    unsafe fn add_products(sums: Self::Ints, a: Self::Shorts, p: *const i16) -> Self::Ints;
    /// The sum of all lanes.
    unsafe fn sum_ints(a: Self::Ints) -> i64;

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

    /// `LANES` pairs of bf16, widened: the even elements and the odd ones.
    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (Self::V, Self::V) {
        let (mut even, mut odd) = ([0.0f32; 16], [0.0f32; 16]);
        for i in 0..Self::LANES {
            let pair = *p.add(i);
            even[i] = f32::from_bits(pair << 16);
            odd[i] = f32::from_bits(pair & 0xffff_0000);
        }
        (Self::load(even.as_ptr()), Self::load(odd.as_ptr()))
    }

    /// As `load_pairs`, with zero for the elements whose mask at `masks` lacks `bit`.
    #[inline(always)]
    unsafe fn load_pairs_where(p: *const u32, masks: *const u16, bit: u16) -> (Self::V, Self::V) {
        let mut pairs = [0u32; 16];
        for i in 0..Self::LANES {
            let low = if *masks.add(2 * i) & bit != 0 { 0xffff } else { 0 };
            let high = if *masks.add(2 * i + 1) & bit != 0 { 0xffff_0000 } else { 0 };
            pairs[i] = *p.add(i) & (low | high);
        }
        Self::load_pairs(pairs.as_ptr())
    }

    /// Rounds to `LANES` pairs of bf16 (see [`crate::bf16::round`]).
    #[inline(always)]
    unsafe fn store_pairs(p: *mut u32, even: Self::V, odd: Self::V) {
        let (mut e, mut o) = ([0.0f32; 16], [0.0f32; 16]);
        Self::store(e.as_mut_ptr(), even);
        Self::store(o.as_mut_ptr(), odd);
        for i in 0..Self::LANES {
            *p.add(i) = crate::bf16::pair(e[i], o[i]);
        }
    }

    /// Rounds 32 consecutive values to 16 pairs of neighbours.
    #[inline(always)]
    unsafe fn round_values(p: *const f32, to: *mut u32) {
        for i in 0..16 {
            *to.add(i) = crate::bf16::pair(*p.add(2 * i), *p.add(2 * i + 1));
        }
    }

    /// 32 pairs of channels to two rows of 16 pairs of pictures: the even channel's and the odd one's.
    #[inline(always)]
    unsafe fn unzip(p: *const u32, even: *mut u32, odd: *mut u32) {
        for i in 0..16 {
            let (a, b) = (*p.add(2 * i), *p.add(2 * i + 1));
            *even.add(i) = a & 0xffff | b << 16;
            *odd.add(i) = a >> 16 | b & 0xffff_0000;
        }
    }

    /// Transposes 16 rows of 16 pairs, `from` with this stride, `to` consecutive. They do not overlap.
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        for i in 0..16 {
            for j in 0..16 {
                *to.add(j * 16 + i) = *from.add(i * stride + j);
            }
        }
    }

    /// The sum of all lanes, in order.
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        let mut lanes = [0.0f32; 16];
        Self::store(lanes.as_mut_ptr(), a);
        lanes[..Self::LANES].iter().sum()
    }

    /// 1/√a to f32's precision or nearly so.
    #[inline(always)]
    unsafe fn rsqrt(a: Self::V) -> Self::V {
        Self::div(Self::splat(1.0), Self::sqrt(a))
    }

    /// Stores the first `n` lanes.
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        let mut lanes = [0.0f32; 16];
        Self::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
    }

    /// `load`, or `load_first` of the last vector of a row.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
        if n == Self::LANES { Self::load(p) } else { Self::load_first(p, n) }
    }

    /// `store`, or `store_first` of the last vector of a row.
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
        if n == Self::LANES { Self::store(p, v) } else { Self::store_first(p, v, n) }
    }
}

/// (first element, lanes used) of each vector of a row, the last perhaps not full.
#[inline(always)]
pub(crate) fn vectors(width: usize, lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..width).step_by(lanes).map(move |c| (c, lanes.min(width - c)))
}

/// Asks for the line of memory at `p` to be brought into the caches. A hint: the line need not exist.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and it reads nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// As [`prefetch`], but no nearer than the second cache: for what is not used soon.
#[inline(always)]
pub(crate) fn prefetch_far(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// 512-bit vectors: 32 registers, two FMAs a cycle on most chips.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    type V = std::arch::x86_64::__m512;
    type Shorts = std::arch::x86_64::__m512i;
    type Ints = std::arch::x86_64::__m512i;
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
    unsafe fn load_pairs_where(p: *const u32, masks: *const u16, bit: u16) -> (Self::V, Self::V) {
        use std::arch::x86_64::*;
        let wanted = _mm512_test_epi16_mask(_mm512_loadu_si512(masks.cast()), _mm512_set1_epi16(bit as i16));
        let pairs = _mm512_maskz_loadu_epi16(wanted, p.cast());
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (Self::V, Self::V) {
        use std::arch::x86_64::*;
        let pairs = _mm512_loadu_si512(p.cast());
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd))
    }
    #[inline(always)]
    unsafe fn store_pairs(p: *mut u32, even: Self::V, odd: Self::V) {
        use std::arch::x86_64::*;
        let even = _mm512_srli_epi32::<16>(rounded(_mm512_castps_si512(even)));
        let odd = rounded(_mm512_castps_si512(odd));
        // (odd & high) | even
        let high = _mm512_set1_epi32(0xffff_0000u32 as i32);
        _mm512_storeu_si512(p.cast(), _mm512_ternarylogic_epi32::<0xea>(odd, high, even));
    }
    #[inline(always)]
    unsafe fn round_values(p: *const f32, to: *mut u32) {
        use std::arch::x86_64::*;
        for half in 0..2 {
            let bits = rounded(_mm512_loadu_si512(p.add(half * 16).cast()));
            let values = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            _mm256_storeu_si256(to.add(half * 8).cast(), values);
        }
    }
    #[inline(always)]
    unsafe fn unzip(p: *const u32, even: *mut u32, odd: *mut u32) {
        use std::arch::x86_64::*;
        for half in 0..2 {
            let pairs = _mm512_loadu_si512(p.add(half * 16).cast());
            let low = _mm512_cvtepi32_epi16(pairs);
            let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs));
            _mm256_storeu_si256(even.add(half * 8).cast(), low);
            _mm256_storeu_si256(odd.add(half * 8).cast(), high);
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        use std::arch::x86_64::*;
        let mut rows = [_mm512_setzero_si512(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(from.add(i * stride).cast());
        }
        // Within each quarter of 4 lanes: 4×4 blocks of four rows are transposed ...
        let mut quads = [_mm512_setzero_si512(); 16];
        for i in 0..4 {
            let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            quads[4 * i] = _mm512_unpacklo_epi64(ab_low, cd_low);
            quads[4 * i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
            quads[4 * i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            quads[4 * i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        // ... and then the quarters themselves.
        for j in 0..4 {
            let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
            let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
            let out = [
                _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even),
                _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd),
                _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even),
                _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd),
            ];
            for (quarter, row) in out.into_iter().enumerate() {
                _mm512_storeu_si512(to.add((4 * quarter + j) * 16).cast(), row);
            }
        }
    }
    #[inline(always)]
    unsafe fn rsqrt(a: Self::V) -> Self::V {
        use std::arch::x86_64::*;
        // The estimate has 14 bits; one step of Newton's doubles them: r·(3 − a·r²)/2.
        let r = _mm512_rsqrt14_ps(a);
        let half = _mm512_mul_ps(r, _mm512_set1_ps(0.5));
        _mm512_mul_ps(half, _mm512_fnmadd_ps(_mm512_mul_ps(a, r), r, _mm512_set1_ps(3.0)))
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        std::arch::x86_64::_mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p)
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        std::arch::x86_64::_mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v)
    }
    #[inline(always)]
    unsafe fn load_shorts(p: *const i16) -> Self::Shorts {
        std::arch::x86_64::_mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn store_shorts(p: *mut i16, v: Self::Shorts) {
        std::arch::x86_64::_mm512_storeu_si512(p.cast(), v)
    }
    #[inline(always)]
    unsafe fn splat_short(x: i16) -> Self::Shorts {
        std::arch::x86_64::_mm512_set1_epi16(x)
    }
    #[inline(always)]
    unsafe fn max_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts {
        std::arch::x86_64::_mm512_max_epi16(a, b)
    }
    #[inline(always)]
    unsafe fn or_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts {
        std::arch::x86_64::_mm512_or_si512(a, b)
    }
    #[inline(always)]
    unsafe fn shift_shorts(a: Self::Shorts, bits: usize) -> Self::Shorts {
        use std::arch::x86_64::{_mm_cvtsi64_si128, _mm512_sll_epi16};
        _mm512_sll_epi16(a, _mm_cvtsi64_si128(bits as i64))
    }
    #[inline(always)]
    unsafe fn where_greater(
        a: Self::Shorts,
        b: Self::Shorts,
        x: Self::Shorts,
        y: Self::Shorts,
    ) -> Self::Shorts {
        use std::arch::x86_64::{_mm512_cmpgt_epi16_mask, _mm512_mask_blend_epi16};
        _mm512_mask_blend_epi16(_mm512_cmpgt_epi16_mask(a, b), y, x)
    }
    #[inline(always)]
    unsafe fn keys(bits: Self::Shorts) -> Self::Shorts {
        use std::arch::x86_64::*;
        let magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff));
        let negative = _mm512_movepi16_mask(bits);
        let negative = _mm512_mask_cmple_epi16_mask(negative, magnitude, _mm512_set1_epi16(0x7f80));
        _mm512_mask_sub_epi16(magnitude, negative, _mm512_setzero_si512(), magnitude)
    }
    #[inline(always)]
    unsafe fn values_of(keys: Self::Shorts) -> Self::Shorts {
        use std::arch::x86_64::*;
        let sign = _mm512_and_si512(keys, _mm512_set1_epi16(i16::MIN));
        _mm512_or_si512(_mm512_abs_epi16(keys), sign)
    }
    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        std::arch::x86_64::_mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const i8) -> Self::Shorts {
        use std::arch::x86_64::*;
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn add_products(sums: Self::Ints, a: Self::Shorts, p: *const i16) -> Self::Ints {
        use std::arch::x86_64::*;
        _mm512_add_epi32(sums, _mm512_madd_epi16(a, _mm512_loadu_si512(p.cast())))
    }
    #[inline(always)]
    unsafe fn sum_ints(a: Self::Ints) -> i64 {
        let mut lanes = [0i32; Self::LANES];
        std::arch::x86_64::_mm512_storeu_si512(lanes.as_mut_ptr().cast(), a);
        lanes.into_iter().map(i64::from).sum()
    }
}

/// The bits of f32, rounded to bf16 in their high halves.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn rounded(bits: std::arch::x86_64::__m512i) -> std::arch::x86_64::__m512i {
    use std::arch::x86_64::*;
    let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)))
}

/// 256-bit vectors with fused multiply-add: 16 registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type V = std::arch::x86_64::__m256;
    type Shorts = std::arch::x86_64::__m256i;
    type Ints = std::arch::x86_64::__m256i;
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
    #[inline(always)]
    unsafe fn load_pairs_where(p: *const u32, masks: *const u16, bit: u16) -> (Self::V, Self::V) {
        use std::arch::x86_64::*;
        let bits = _mm256_set1_epi16(bit as i16);
        let wanted = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_loadu_si256(masks.cast()), bits), bits);
        let pairs = _mm256_and_si256(_mm256_loadu_si256(p.cast()), wanted);
        let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd))
    }
    #[inline(always)]
    unsafe fn load_shorts(p: *const i16) -> Self::Shorts {
        std::arch::x86_64::_mm256_loadu_si256(p.cast())
    }
    #[inline(always)]
    unsafe fn store_shorts(p: *mut i16, v: Self::Shorts) {
        std::arch::x86_64::_mm256_storeu_si256(p.cast(), v)
    }
    #[inline(always)]
    unsafe fn splat_short(x: i16) -> Self::Shorts {
        std::arch::x86_64::_mm256_set1_epi16(x)
    }
    #[inline(always)]
    unsafe fn max_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts {
        std::arch::x86_64::_mm256_max_epi16(a, b)
    }
    #[inline(always)]
    unsafe fn or_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts {
        std::arch::x86_64::_mm256_or_si256(a, b)
    }
    #[inline(always)]
    unsafe fn shift_shorts(a: Self::Shorts, bits: usize) -> Self::Shorts {
        use std::arch::x86_64::{_mm_cvtsi64_si128, _mm256_sll_epi16};
        _mm256_sll_epi16(a, _mm_cvtsi64_si128(bits as i64))
    }
    #[inline(always)]
    unsafe fn where_greater(
        a: Self::Shorts,
        b: Self::Shorts,
        x: Self::Shorts,
        y: Self::Shorts,
    ) -> Self::Shorts {
        use std::arch::x86_64::{_mm256_blendv_epi8, _mm256_cmpgt_epi16};
        _mm256_blendv_epi8(y, x, _mm256_cmpgt_epi16(a, b))
    }
    #[inline(always)]
    unsafe fn keys(bits: Self::Shorts) -> Self::Shorts {
        use std::arch::x86_64::*;
        let magnitude = _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff));
        let nan = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16(0x7f80));
        // The sign of what stays positive is taken away.
        let sign = _mm256_or_si256(_mm256_andnot_si256(nan, bits), _mm256_set1_epi16(1));
        _mm256_sign_epi16(magnitude, sign)
    }
    #[inline(always)]
    unsafe fn values_of(keys: Self::Shorts) -> Self::Shorts {
        use std::arch::x86_64::*;
        let sign = _mm256_and_si256(keys, _mm256_set1_epi16(i16::MIN));
        _mm256_or_si256(_mm256_abs_epi16(keys), sign)
    }
    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        std::arch::x86_64::_mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const i8) -> Self::Shorts {
        use std::arch::x86_64::*;
        _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn add_products(sums: Self::Ints, a: Self::Shorts, p: *const i16) -> Self::Ints {
        use std::arch::x86_64::*;
        _mm256_add_epi32(sums, _mm256_madd_epi16(a, _mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn sum_ints(a: Self::Ints) -> i64 {
        let mut lanes = [0i32; Self::LANES];
        std::arch::x86_64::_mm256_storeu_si256(lanes.as_mut_ptr().cast(), a);
        lanes.into_iter().map(i64::from).sum()
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
    type Shorts = [i16; 8];
    type Ints = [i32; 4];
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
    #[inline(always)]
    unsafe fn load_shorts(p: *const i16) -> Self::Shorts {
        p.cast::<[i16; 8]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store_shorts(p: *mut i16, v: Self::Shorts) {
        p.cast::<[i16; 8]>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn splat_short(x: i16) -> Self::Shorts {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn max_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts {
        std::array::from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    unsafe fn or_shorts(a: Self::Shorts, b: Self::Shorts) -> Self::Shorts {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn shift_shorts(a: Self::Shorts, bits: usize) -> Self::Shorts {
        a.map(|x| x << bits)
    }
    #[inline(always)]
    unsafe fn where_greater(
        a: Self::Shorts,
        b: Self::Shorts,
        x: Self::Shorts,
        y: Self::Shorts,
    ) -> Self::Shorts {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn keys(bits: Self::Shorts) -> Self::Shorts {
        bits.map(crate::bf16::key)
    }
    #[inline(always)]
    unsafe fn values_of(keys: Self::Shorts) -> Self::Shorts {
        keys.map(crate::bf16::value_of)
    }
    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        [0; 4]
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const i8) -> Self::Shorts {
        p.cast::<[i8; 8]>().read_unaligned().map(i16::from)
    }
    #[inline(always)]
    unsafe fn add_products(sums: Self::Ints, a: Self::Shorts, p: *const i16) -> Self::Ints {
        let b = p.cast::<[i16; 8]>().read_unaligned();
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        std::array::from_fn(|i| sums[i] + product(2 * i) + product(2 * i + 1))
    }
    #[inline(always)]
    unsafe fn sum_ints(a: Self::Ints) -> i64 {
        a.into_iter().map(i64::from).sum()
    }
}

//! AVX-512: F, BW and VL, and perhaps BF16.

use super::{Routine, Simd};

/// 512-bit vectors: 32 registers, two FMAs a cycle on most chips. With `BF16` they are rounded by AVX-512-BF16's instruction,
/// which takes denormals for zero and is otherwise equal.
#[derive(Clone, Copy)]
pub struct Avx512<const BF16: bool = false>;

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = std::arch::x86_64::__m512;
    type Shorts = std::arch::x86_64::__m512i;
    type Ints = std::arch::x86_64::__m512i;
    const LANES: usize = 16;
    const PANEL: usize = 4;
    // 6×4 accumulators + 4 weights, 8×3 + 3, 12×2 + 2: all below 32 registers; 8 chains hide the FMA's latency.
    const ROWS: [usize; 4] = [8, 8, 8, 6];

    #[inline(always)]
    unsafe fn call<R: Routine>(routine: R) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        #[inline(never)]
        unsafe fn function<R: Routine>(routine: R) {
            routine.run::<Avx512>()
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
        #[inline(never)]
        unsafe fn function_bf16<R: Routine>(routine: R) {
            routine.run::<Avx512<true>>()
        }
        if BF16 { function_bf16(routine) } else { function(routine) }
    }
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
    unsafe fn where_equal(a: Self::V, to: Self::V, b: Self::V) -> Self::V {
        use std::arch::x86_64::{_CMP_EQ_OQ, _mm512_cmp_ps_mask, _mm512_maskz_mov_ps};
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, to), b)
    }
    #[inline(always)]
    unsafe fn where_larger(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        use std::arch::x86_64::{_CMP_GT_OQ, _CMP_UNORD_Q, _mm512_cmp_ps_mask, _mm512_mask_blend_ps};
        let larger = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
        _mm512_mask_blend_ps(larger, y, x)
    }
    #[inline(always)]
    unsafe fn fourth_root_guess(a: Self::V) -> Self::V {
        use std::arch::x86_64::*;
        let quarter = _mm512_srli_epi32::<2>(_mm512_castps_si512(a));
        _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_set1_epi32(super::FOURTH_ROOT as i32), quarter))
    }
    #[inline(always)]
    unsafe fn mirror_pixels(from: *const u8, to: *mut u8) {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_shuffle_epi8, _mm_storeu_si128};
        let order = _mm_loadu_si128(super::FIVE_PIXELS.as_ptr().cast());
        _mm_storeu_si128(to.cast(), _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), order));
    }
    #[inline(always)]
    unsafe fn load_numbers(p: *const u8) -> Self::V {
        use std::arch::x86_64::{_mm_loadu_si128, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32};
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_numbers(p: *mut u8, v: Self::V) {
        use std::arch::x86_64::{_mm_storeu_si128, _mm512_cvtepi32_epi8, _mm512_cvtps_epi32};
        _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
    }
    #[inline(always)]
    unsafe fn load_pairs_where(p: *const u32, masks: *const u16, bit: u16) -> (Self::V, Self::V) {
        use std::arch::x86_64::*;
        let wanted = _mm512_test_epi16_mask(_mm512_loadu_si512(masks.cast()), _mm512_set1_epi16(bit as i16));
        widened(_mm512_maskz_loadu_epi16(wanted, p.cast()))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (Self::V, Self::V) {
        widened(std::arch::x86_64::_mm512_loadu_si512(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_pairs(p: *mut u32, even: Self::V, odd: Self::V) {
        use std::arch::x86_64::*;
        if BF16 {
            // The even elements' 16 halves, then the odd ones', to pairs.
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
            let order = _mm512_loadu_si512(INTERLEAVED.as_ptr().cast());
            return _mm512_storeu_si512(p.cast(), _mm512_permutexvar_epi16(order, halves));
        }
        let even = _mm512_srli_epi32::<16>(rounded(_mm512_castps_si512(even)));
        let odd = rounded(_mm512_castps_si512(odd));
        // (odd & high) | even
        let high = _mm512_set1_epi32(0xffff_0000u32 as i32);
        _mm512_storeu_si512(p.cast(), _mm512_ternarylogic_epi32::<0xea>(odd, high, even));
    }
    #[inline(always)]
    unsafe fn round_values(p: *const f32, to: *mut u32) {
        use std::arch::x86_64::*;
        if BF16 {
            let halves = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(p.add(16)), _mm512_loadu_ps(p));
            return _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(halves));
        }
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
    unsafe fn gather_pairs(
        from: *const u32,
        [even, odd]: [usize; 2],
        apart: usize,
        count: usize,
        to: *mut u32,
    ) {
        use std::arch::x86_64::*;
        let count = ((1u32 << count) - 1) as u16;
        let first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let at = _mm512_mullo_epi32(first, _mm512_set1_epi32(apart as i32));
        let zero = _mm512_setzero_si512();
        let even = _mm512_mask_i32gather_epi32::<2>(zero, count, at, from.cast::<u16>().add(even).cast());
        let odd = _mm512_mask_i32gather_epi32::<2>(zero, count, at, from.cast::<u16>().add(odd).cast());
        // (even & low) | odd << 16
        let low = _mm512_set1_epi32(0xffff);
        let both = _mm512_ternarylogic_epi32::<0xea>(even, low, _mm512_slli_epi32::<16>(odd));
        _mm512_mask_storeu_epi32(to.cast(), count, both);
    }
    #[inline(always)]
    unsafe fn pair_tile(from: *const u32, count: usize, to: *mut u32) {
        use std::arch::x86_64::*;
        let low = _mm512_set1_epi32(0xffff);
        let mut rows = [_mm512_setzero_si512(); 16];
        for p in 0..8 {
            // A mask for all lanes or none keeps the rows in registers.
            let exists = if p < count { !0 } else { 0 };
            let first = _mm512_maskz_loadu_epi32(exists, from.wrapping_add(p * 32).cast());
            let second = _mm512_maskz_loadu_epi32(exists, from.wrapping_add(p * 32 + 16).cast());
            rows[2 * p] = _mm512_packus_epi32(_mm512_and_si512(first, low), _mm512_and_si512(second, low));
            rows[2 * p + 1] =
                _mm512_packus_epi32(_mm512_srli_epi32::<16>(first), _mm512_srli_epi32::<16>(second));
        }
        // Packing works within quarters: each has two pairs of the first 16 pictures, then two of the second 16.
        for (i, row) in transposed(rows).into_iter().enumerate() {
            let pair = i / 4 * 2 + i % 2 + i / 2 % 2 * 8;
            _mm512_storeu_si512(to.add(pair * 16).cast(), row);
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        use std::arch::x86_64::*;
        let mut rows = [_mm512_setzero_si512(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(from.add(i * stride).cast());
        }
        for (i, row) in transposed(rows).into_iter().enumerate() {
            _mm512_storeu_si512(to.add(i * 16).cast(), row);
        }
    }
    #[inline(always)]
    unsafe fn stream_line(from: *const u32, to: *mut u32) {
        use std::arch::x86_64::*;
        let line = _mm512_loadu_si512(from.cast());
        if to.addr().is_multiple_of(64) {
            _mm512_stream_si512(to.cast(), line);
        } else {
            _mm512_storeu_si512(to.cast(), line);
        }
    }
    #[inline(always)]
    unsafe fn release_lines() {
        std::arch::x86_64::_mm_sfence();
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
    unsafe fn rsqrt_estimate(a: Self::V) -> Self::V {
        std::arch::x86_64::_mm512_rsqrt14_ps(a)
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
    unsafe fn magnitudes(bits: Self::Shorts) -> Self::Shorts {
        use std::arch::x86_64::{_mm512_and_si512, _mm512_set1_epi16};
        _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff))
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
        let mut lanes = [0i32; 16];
        std::arch::x86_64::_mm512_storeu_si512(lanes.as_mut_ptr().cast(), a);
        lanes.into_iter().map(i64::from).sum()
    }
}

/// Two rows of 16 integers of 16 bits, element by element: the order for `vpermw`.
pub(crate) static INTERLEAVED: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

/// 16 rows of 16 as columns.
#[inline(always)]
unsafe fn transposed(rows: [std::arch::x86_64::__m512i; 16]) -> [std::arch::x86_64::__m512i; 16] {
    use std::arch::x86_64::*;
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
    let mut columns = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
    columns
}

/// The even elements of pairs of bf16 and the odd ones, as f32.
#[inline(always)]
unsafe fn widened(
    pairs: std::arch::x86_64::__m512i,
) -> (std::arch::x86_64::__m512, std::arch::x86_64::__m512) {
    use std::arch::x86_64::*;
    let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
    (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd))
}

/// The bits of f32, rounded to bf16 in their high halves.
#[inline(always)]
unsafe fn rounded(bits: std::arch::x86_64::__m512i) -> std::arch::x86_64::__m512i {
    use std::arch::x86_64::*;
    let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)))
}

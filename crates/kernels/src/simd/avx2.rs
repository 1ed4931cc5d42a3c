//! AVX2 with FMA.

use super::{FIVE_PIXELS, FOURTH_ROOT, Routine, Simd};

/// 256-bit vectors with fused multiply-add: 16 registers.
#[derive(Clone, Copy)]
pub struct Avx2;

impl Simd for Avx2 {
    type V = std::arch::x86_64::__m256;
    type Shorts = std::arch::x86_64::__m256i;
    type Ints = std::arch::x86_64::__m256i;
    const LANES: usize = 8;
    const PANEL: usize = 2;
    // 6×2 accumulators + 2 weights + 1 broadcast: 15 of 16 registers.
    const ROWS: [usize; 4] = [8, 6, 0, 0];

    #[inline(always)]
    unsafe fn call<R: Routine>(routine: R) {
        #[target_feature(enable = "avx2,fma")]
        #[inline(never)]
        unsafe fn function<R: Routine>(routine: R) {
            routine.run::<Avx2>()
        }
        function(routine)
    }
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
    unsafe fn where_equal(a: Self::V, to: Self::V, b: Self::V) -> Self::V {
        use std::arch::x86_64::{_CMP_EQ_OQ, _mm256_and_ps, _mm256_cmp_ps};
        _mm256_and_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, to), b)
    }
    #[inline(always)]
    unsafe fn where_larger(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        use std::arch::x86_64::{_CMP_GT_OQ, _CMP_UNORD_Q, _mm256_blendv_ps, _mm256_cmp_ps, _mm256_or_ps};
        let larger = _mm256_or_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b), _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
        _mm256_blendv_ps(y, x, larger)
    }
    #[inline(always)]
    unsafe fn fourth_root_guess(a: Self::V) -> Self::V {
        use std::arch::x86_64::*;
        let quarter = _mm256_srli_epi32::<2>(_mm256_castps_si256(a));
        _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(FOURTH_ROOT as i32), quarter))
    }
    #[inline(always)]
    unsafe fn mirror_pixels(from: *const u8, to: *mut u8) {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_shuffle_epi8, _mm_storeu_si128};
        let order = _mm_loadu_si128(FIVE_PIXELS.as_ptr().cast());
        _mm_storeu_si128(to.cast(), _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), order));
    }
    #[inline(always)]
    unsafe fn load_numbers(p: *const u8) -> Self::V {
        use std::arch::x86_64::{_mm_loadl_epi64, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32};
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_numbers(p: *mut u8, v: Self::V) {
        use std::arch::x86_64::*;
        let ints = _mm256_cvtps_epi32(v);
        let shorts = _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints));
        _mm_storel_epi64(p.cast(), _mm_packus_epi16(shorts, shorts));
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
    unsafe fn magnitudes(bits: Self::Shorts) -> Self::Shorts {
        use std::arch::x86_64::{_mm256_and_si256, _mm256_set1_epi16};
        _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff))
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

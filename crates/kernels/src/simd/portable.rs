//! Code for any processor.

use super::{Routine, Simd};

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
    unsafe fn call<R: Routine>(routine: R) {
        #[inline(never)]
        unsafe fn function<R: Routine>(routine: R) {
            routine.run::<Portable>()
        }
        function(routine)
    }
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
    unsafe fn where_equal(a: Self::V, to: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] == to[i] { b[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn where_larger(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] || a[i].is_nan() { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn fourth_root_guess(a: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(super::FOURTH_ROOT.wrapping_sub(a[i].to_bits() >> 2)))
    }
    #[inline(always)]
    unsafe fn load_numbers(p: *const u8) -> Self::V {
        let bytes = p.cast::<[u8; 4]>().read();
        lanes(|i| f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn store_numbers(p: *mut u8, v: Self::V) {
        p.cast::<[u8; 4]>().write(v.map(|v| v as u8));
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
    unsafe fn magnitudes(bits: Self::Shorts) -> Self::Shorts {
        bits.map(|x| x & 0x7fff)
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

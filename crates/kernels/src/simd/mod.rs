//! The few vector operations that the kernels are written in, once, and their three spellings, one a file: AVX-512, AVX2
//! with FMA, and portable code that the compiler vectorizes for whatever it targets (SSE2, NEON).
//!
//! Every method is `unsafe`: the caller promises that the processor has the instructions and that pointers are valid
//! for `LANES` elements. Methods are `inline(always)` so that they take on the target features of the function
//! that they are inlined into (see [`crate::parallel`]).

#![allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::INTERLEAVED;
pub use portable::Portable;

/// Where each byte of [`Simd::mirror_pixels`] comes from.
const FIVE_PIXELS: [u8; 16] = [13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0];

/// These bits less a quarter of those of a are about the bits of a^(−1/4): exponents count powers of two, mantissas nearly so. The
/// one of its kind that errs least.
const FOURTH_ROOT: u32 = 0x4f58_51eb;

/// Work in vectors that is worth a function of its own; see [`Simd::call`].
pub trait Routine {
    /// Does it; to be marked `#[inline(always)]`.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; and what whoever made it promises.
    unsafe fn run<S: Simd>(self);
}

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

    /// Runs it as a function, where everything else is inlined into one: a loop that needs all registers gets them only where
    /// the compiler has nothing else to keep in some.
    unsafe fn call<R: Routine>(routine: R);

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
    /// `b` where `a` is the same as `to`, else 0.
    unsafe fn where_equal(a: Self::V, to: Self::V, b: Self::V) -> Self::V;
    /// `x` where `a` > `b` or `a` is a NaN, else `y`.
    unsafe fn where_larger(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// a^(−1/4) of positive numbers, about: within 3.2 %, from `FOURTH_ROOT`.
    unsafe fn fourth_root_guess(a: Self::V) -> Self::V;
    /// `LANES` bytes as numbers.
    unsafe fn load_numbers(p: *const u8) -> Self::V;
    /// Whole numbers below 256 as `LANES` bytes.
    unsafe fn store_numbers(p: *mut u8, v: Self::V);

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
    /// The bits of each bf16 without its sign: the key of one that came out of a ReLU.
    unsafe fn magnitudes(bits: Self::Shorts) -> Self::Shorts;
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

    /// At most 16 pairs, of halves of the pairs in `from`: those number `even` and `odd`, and each `apart` halves further on.
    /// Also the half behind each may be read.
    #[inline(always)]
    unsafe fn gather_pairs(
        from: *const u32,
        [even, odd]: [usize; 2],
        apart: usize,
        count: usize,
        to: *mut u32,
    ) {
        for i in 0..count {
            let [even, odd] = [even, odd].map(|half| half + i * apart);
            let [even, odd] = [even, odd].map(|half| *from.add(half / 2) >> (half % 2 * 16) & 0xffff);
            *to.add(i) = even | odd << 16;
        }
    }

    /// `count` rows (at most 8, consecutive) of 32 pairs of channels to a tile: 16 pairs of pictures × 16 channels, zero where
    /// there are none.
    #[inline(always)]
    unsafe fn pair_tile(from: *const u32, count: usize, to: *mut u32) {
        let mut rows = [0; 256];
        for p in 0..count {
            let row = rows.as_mut_ptr().add(2 * p * 16);
            Self::unzip(from.add(p * 32), row, row.add(16));
        }
        Self::transpose(rows.as_ptr(), 16, to);
    }

    /// Transposes 16 rows of 16 pairs, `from` with this stride and perhaps not aligned, `to` consecutive. They do not overlap.
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        for i in 0..16 {
            for j in 0..16 {
                *to.add(j * 16 + i) = from.add(i * stride + j).read_unaligned();
            }
        }
    }

    /// Copies a line, 16 pairs; where the processor can, to memory without reading the line first or keeping it in a cache: for
    /// what is not read soon. Another thread sees it only after [`Simd::release_lines`].
    #[inline(always)]
    unsafe fn stream_line(from: *const u32, to: *mut u32) {
        std::ptr::copy_nonoverlapping(from, to, 16);
    }

    /// Makes what [`Simd::stream_line`] copied precede whatever this thread stores later.
    #[inline(always)]
    unsafe fn release_lines() {}

    /// The last five pixels of three bytes of sixteen bytes, from the last to the first, and a byte that means nothing.
    #[inline(always)]
    unsafe fn mirror_pixels(from: *const u8, to: *mut u8) {
        let bytes = from.cast::<[u8; 16]>().read();
        to.cast::<[u8; 16]>().write(std::array::from_fn(|i| bytes[FIVE_PIXELS[i] as usize]));
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

    /// 1/√a to 14 bits at least.
    #[inline(always)]
    unsafe fn rsqrt_estimate(a: Self::V) -> Self::V {
        Self::rsqrt(a)
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

    /// The first `n` lanes of [`Simd::load_numbers`], zero in the others.
    #[inline(always)]
    unsafe fn load_numbers_part(p: *const u8, n: usize) -> Self::V {
        if n == Self::LANES {
            return Self::load_numbers(p);
        }
        let mut bytes = [0; 16];
        std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), n);
        Self::load_numbers(bytes.as_ptr())
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

/// Runs a block for each vector of a row of so many elements, as [`vectors`] counts them. It stands there twice: of full vectors the
/// compiler knows that they are, and leaves out what a part of one would need.
macro_rules! for_vectors {
    ($simd:ident, $width:expr, |$first:ident, $lanes:ident| $block:block) => {{
        let width: usize = $width;
        let mut $first = 0;
        while $first + $simd::LANES <= width {
            let $lanes = $simd::LANES;
            $block
            $first += $simd::LANES;
        }
        if $first < width {
            let $lanes = width - $first;
            $block
        }
    }};
}
pub(crate) use for_vectors;

/// Elements of a line of memory.
pub(crate) const LINE: usize = 16;

/// So many elements and the rest of an odd number of lines: what lies this far apart falls into all sets of a cache.
pub(crate) fn odd_lines(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

/// Asks for `len` elements.
#[inline(always)]
pub(crate) fn prefetch_run(p: *const f32, len: usize) {
    for line in (0..len).step_by(LINE) {
        prefetch(p.wrapping_add(line));
    }
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

//! Products on AMX tiles. The intrinsics are not stable yet, so the tile instructions stand in `asm!`. Tile registers
//! cannot be carried from one block of assembly to the next: a whole product, its loops and its eight tiles, is one
//! block.

#![cfg(target_arch = "x86_64")]

use super::engine::{
    Ahead, C_STRIDE, Left, Matrix, MatrixKernel, Product, Rest, Right, Run, Slide, Threefold,
};
use super::{EDGE, PICTURES};
use crate::simd::{Avx512, INTERLEAVED};
use std::arch::asm;
use std::sync::OnceLock;

/// Whether the processor has AMX tiles with bf16 and the system lets this process use them. Asks the system once, for the
/// whole process; threads that start later inherit the permission.
pub(super) fn request() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    // Every processor with AMX rounds to bf16 in AVX-512 too.
    *GRANTED
        .get_or_init(|| is_x86_feature_detected!("avx512bf16") && processor_has_it() && system_grants_it())
}

fn processor_has_it() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    /// XCR0: tile configuration and tile data.
    const TILE_STATE: u64 = 3 << 17;
    #[target_feature(enable = "xsave")]
    unsafe fn xcr0() -> u64 {
        // SAFETY: the caller found OSXSAVE.
        unsafe { _xgetbv(0) }
    }
    let leaves = __cpuid(0).eax;
    if leaves < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: OSXSAVE says that XGETBV can be executed.
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && unsafe { xcr0() } & TILE_STATE == TILE_STATE
}

/// Linux gives a process the tile registers, 8 KiB a thread, only when it asks.
#[cfg(target_os = "linux")]
fn system_grants_it() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call changes nothing but this process's permission.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn system_grants_it() -> bool {
    false
}

/// What LDTILECFG reads: palette 1, and for every tile 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Runs a unit with the tiles configured, and leaves them released, so that the system has nothing to save.
///
/// # Safety
/// AMX may be used, and the processor has AVX-512; otherwise as [`MatrixKernel::unit`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn run<K: MatrixKernel>(kernel: &K, unit: usize, scratch: *mut f32) {
    // SAFETY: passed on from the caller; the configuration is 64 valid bytes. A unit that panics leaves the tiles
    // configured, which the next one repeats.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, preserves_flags));
        kernel.unit::<Amx>(unit, scratch);
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
}

/// AMX tiles.
#[derive(Clone, Copy)]
pub(crate) struct Amx;

/// What the assembly reads of a product besides its runs and steps: where operands lie, and distances in bytes.
#[repr(C)]
struct Frame {
    a: *const u32,
    b: *const u32,
    b_row: usize,
    b_second: usize,
    a_second: usize,
}

/// The whole product in one block of assembly. It reads the shape's steps itself: a compiler that joins two of them to a
/// vector would wait, where the caller has just written them one by one, for every store before them. tmm0-3 are C, tmm4-5 the left operand's tiles, tmm6-7 the right's; lists in
/// brackets are left out where a product is one tile high or wide.
macro_rules! product {
    (
        $shape:ident, $runs:ident, $frame:ident, $a_row:ident, $c:ident, $add:ident,
        load [$($load:expr),*], zero [$($zero:expr),*], step [$($step:expr),*], store [$($store:expr),*]
    ) => {
        asm!(
            "test {row:e}, {row:e}",
            "jz 2f",
            "mov {left:e}, 128",
            $($load,)*
            "jmp 3f",
            "2:",
            $($zero,)*
            "3:",
            "mov {row}, [{frame} + 16]",
            "mov {b_step}, [{a_step} + {b_step_offset}]",
            "shl {b_step}, 2",
            "mov {a_step}, [{a_step} + {a_step_offset}]",
            "shl {a_step}, 2",
            // A run: its left and right operands (both tiles of each) and its number of steps.
            "4:",
            "mov {ap}, [{run}]",
            "mov {bp}, [{run} + 8]",
            "mov {left}, [{run} + 16]",
            "shl {ap}, 2",
            "add {ap}, [{frame}]",
            "mov {aq}, {ap}",
            "add {aq}, [{frame} + 32]",
            "shl {bp}, 2",
            "add {bp}, [{frame} + 8]",
            "mov {bq}, {bp}",
            "add {bq}, [{frame} + 24]",
            "add {run}, 24",
            "5:",
            $($step,)*
            "add {ap}, {a_step}",
            "add {aq}, {a_step}",
            "add {bp}, {b_step}",
            "add {bq}, {b_step}",
            "dec {left}",
            "jnz 5b",
            "cmp {run}, {end}",
            "jne 4b",
            "mov {left:e}, 128",
            $($store,)*
            run = inout(reg) $runs.as_ptr() => _,
            end = in(reg) $runs.as_ptr().add($runs.len()),
            frame = in(reg) &raw const $frame,
            c = in(reg) $c,
            // Whether to add; then the distance of the right operand's rows.
            row = inout(reg) usize::from($add) => _,
            // The shape; then its step of the left operand.
            a_step = inout(reg) &raw const *$shape => _,
            b_step = out(reg) _,
            a_step_offset = const std::mem::offset_of!(Product, a_step),
            b_step_offset = const std::mem::offset_of!(Product, b_step),
            ap = out(reg) _,
            aq = out(reg) _,
            bp = out(reg) _,
            bq = out(reg) _,
            left = out(reg) _,
            a_row = in(reg) $a_row,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// What the assembly reads of a product with something beside it, again without vectors that wait for the caller's stores.
#[repr(C)]
struct BesideFrame {
    a: *const u32,
    b: *const u32,
    a_step: usize,
    b_step: usize,
    /// The run to come.
    run: *const Run,
    runs_end: *const Run,
    /// Bytes of `to` that all pairs of the rest take.
    rest_end: usize,
    to: *mut u32,
    mask: *const u32,
    least: f32,
    /// From the two lines asked for in a step to the next.
    ahead_step: usize,
}

/// Nothing to be done beside a product.
const NO_REST: Rest = Rest {
    sums: std::ptr::null(),
    to: std::ptr::null_mut(),
    bias: std::ptr::null(),
    mask: std::ptr::null(),
    least: 0.0,
    pairs: 0,
};

/// As `product!`, of tiles that follow each other on the left and rows of 32 columns that pass on the right. After the
/// tiles of a step, it asks for two lines, and two vectors finish a pair of channels of the rest: tiles keep the vector
/// unit's ports free, and the caches have the time of a step for two lines. {at} counts the bytes stored.
macro_rules! product_beside {
    (
        $frame:ident, $ahead:ident, $rest:ident, $stored:ident, $c:ident, $add:ident,
        load [$($load:expr),*], zero [$($zero:expr),*], step [$($step:expr),*], store [$($store:expr),*],
        interleave [$($interleave:expr),*]
    ) => {
        asm!(
            "mov {mask}, [{frame} + {mask_offset}]",
            "mov {to}, [{frame} + {to_offset}]",
            "vbroadcastss zmm28, dword ptr [{frame} + {least_offset}]",
            "mov {ap:e}, 0x7f817f81",
            "vpbroadcastd zmm29, {ap:e}",
            "vpxord zmm30, zmm30, zmm30",
            "vmovdqu64 zmm31, [{bp}]",
            "test {left:e}, {left:e}",
            "jz 2f",
            $($load,)*
            "jmp 3f",
            "2:",
            $($zero,)*
            "3:",
            "4:",
            "mov {left}, [{frame} + {run_offset}]",
            "add qword ptr [{frame} + {run_offset}], 24",
            "mov {ap}, [{left}]",
            "mov {bp}, [{left} + 8]",
            "mov {left}, [{left} + 16]",
            "shl {ap}, 2",
            "add {ap}, [{frame}]",
            "shl {bp}, 2",
            "add {bp}, [{frame} + 8]",
            "5:",
            $($step,)*
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "add {ahead}, [{frame} + {ahead_offset}]",
            "add {ap}, [{frame} + {a_step_offset}]",
            "add {bp}, [{frame} + {b_step_offset}]",
            "cmp {at}, [{frame} + {rest_offset}]",
            "jae 6f",
            "vmovups zmm16, [{sums} + 2*{at}]",
            "vmovups zmm17, [{sums} + 2*{at} + 128]",
            "vmovups zmm18, [{sums} + 2*{at} + 64]",
            "vmovups zmm19, [{sums} + 2*{at} + 192]",
            "vaddps zmm16, zmm16, dword ptr [{bias}]{{1to16}}",
            "vaddps zmm17, zmm17, dword ptr [{bias} + 4]{{1to16}}",
            "vaddps zmm18, zmm18, dword ptr [{bias}]{{1to16}}",
            "vaddps zmm19, zmm19, dword ptr [{bias} + 4]{{1to16}}",
            // In this order a NaN passes through.
            "vmaxps zmm16, zmm28, zmm16",
            "vmaxps zmm17, zmm28, zmm17",
            "vmaxps zmm18, zmm28, zmm18",
            "vmaxps zmm19, zmm28, zmm19",
            "vcvtne2ps2bf16 zmm16, zmm17, zmm16",
            "vcvtne2ps2bf16 zmm18, zmm19, zmm18",
            $($interleave,)*
            "vmovdqu64 [{to} + {at}], zmm16",
            "vmovdqu64 [{to} + {at} + 64], zmm18",
            "add {at}, 128",
            "add {bias}, 8",
            "6:",
            "dec {left}",
            "jnz 5b",
            "mov {left}, [{frame} + {run_offset}]",
            "cmp {left}, [{frame} + {end_offset}]",
            "jne 4b",
            $($store,)*
            frame = in(reg) &raw mut $frame,
            c = in(reg) $c,
            ahead = inout(reg) $ahead.from => _,
            // How many steps a run has left; before, whether to add.
            left = inout(reg) usize::from($add) => _,
            // The right operand; before, the order of pairs.
            bp = inout(reg) INTERLEAVED.as_ptr() => _,
            ap = out(reg) _,
            a_row = in(reg) 64usize,
            row = in(reg) 128usize,
            at = inout(reg) 0usize => $stored,
            sums = in(reg) $rest.sums,
            bias = inout(reg) $rest.bias => _,
            mask = out(reg) _,
            to = out(reg) _,
            a_step_offset = const std::mem::offset_of!(BesideFrame, a_step),
            b_step_offset = const std::mem::offset_of!(BesideFrame, b_step),
            run_offset = const std::mem::offset_of!(BesideFrame, run),
            ahead_offset = const std::mem::offset_of!(BesideFrame, ahead_step),
            end_offset = const std::mem::offset_of!(BesideFrame, runs_end),
            rest_offset = const std::mem::offset_of!(BesideFrame, rest_end),
            to_offset = const std::mem::offset_of!(BesideFrame, to),
            mask_offset = const std::mem::offset_of!(BesideFrame, mask),
            least_offset = const std::mem::offset_of!(BesideFrame, least),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _, out("k1") _, out("k2") _,
            options(nostack),
        )
    };
}

/// As `product!`, of two tiles that follow each other on the left and rows of 32 columns on the right; every step asks for
/// eight lines.
macro_rules! product_ahead {
    ($shape:ident, $runs:ident, $frame:ident, $c:ident, $add:ident, $ahead:ident) => {
        asm!(
            "test {left:e}, {left:e}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {row}*1]",
            "tileloadd tmm1, [{c} + {row}*1 + 64]",
            "tileloadd tmm2, [{c} + {row}*1 + 2048]",
            "tileloadd tmm3, [{c} + {row}*1 + 2112]",
            "jmp 4f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "4:",
            "mov {ap}, [{run}]",
            "mov {bp}, [{run} + 8]",
            "mov {left}, [{run} + 16]",
            "add {run}, 24",
            "shl {ap}, 2",
            "add {ap}, [{frame}]",
            "shl {bp}, 2",
            "add {bp}, [{frame} + 8]",
            "5:",
            "tileloadd tmm4, [{ap} + {a_row}*1]",
            "tileloadd tmm6, [{bp} + {row}*1]",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{bp} + {row}*1 + 64]",
            "prefetcht1 [{ahead} + 128]",
            "prefetcht1 [{ahead} + 192]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{ap} + {a_row}*1 + 1024]",
            "prefetcht1 [{ahead} + 256]",
            "prefetcht1 [{ahead} + 320]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{ahead} + 384]",
            "prefetcht1 [{ahead} + 448]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {ap}, {a_step}",
            "add {bp}, {b_step}",
            "add {ahead}, {ahead_step}",
            "dec {left}",
            "jnz 5b",
            "cmp {run}, {end}",
            "jne 4b",
            "tilestored [{c} + {row}*1], tmm0",
            "tilestored [{c} + {row}*1 + 64], tmm1",
            "tilestored [{c} + {row}*1 + 2048], tmm2",
            "tilestored [{c} + {row}*1 + 2112], tmm3",
            run = inout(reg) $runs.as_ptr() => _,
            end = in(reg) $runs.as_ptr_range().end,
            frame = in(reg) &raw const $frame,
            c = in(reg) $c,
            // How many steps a run has left; before, whether to add.
            left = inout(reg) usize::from($add) => _,
            ap = out(reg) _,
            bp = out(reg) _,
            a_row = in(reg) 64usize,
            row = in(reg) 128usize,
            a_step = in(reg) $shape.a_step * size_of::<u32>(),
            b_step = in(reg) $shape.b_step * size_of::<u32>(),
            ahead = inout(reg) $ahead.from => _,
            ahead_step = in(reg) $ahead.step * size_of::<u32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Taps whose right operand slides. tmm0-3 are the taps' C; {steps} uses every tile that it loads for several of them. Every
/// eighth step or so stores a tile, which is not done with: a store after many steps without one takes several hundred
/// nanoseconds, and these take a few each.
macro_rules! slide {
    (
        $shape:ident, $runs:ident, $frame:ident, $c:ident, $add:ident, $ahead:ident,
        load [$($load:expr),*], zero [$($zero:expr),*], first [$($first:expr),*], steps [$($steps:expr),*],
        store [$($store:expr),*]
    ) => {
        asm!(
            "lea {c1}, [{c} + {tap}]",
            "lea {ap}, [{c1} + {tap}]",
            "test {left:e}, {left:e}",
            "jz 2f",
            $($load,)*
            "jmp 4f",
            "2:",
            $($zero,)*
            "4:",
            "mov {ap}, [{run}]",
            "mov {bp}, [{run} + 8]",
            "mov {left}, [{run} + 16]",
            "shl {ap}, 2",
            "add {ap}, [{frame}]",
            "shl {bp}, 2",
            "add {bp}, [{frame} + 8]",
            "add {run}, 24",
            $($first,)*
            "5:",
            $($steps,)*
            "test {left:l}, 6",
            "jnz 5b",
            "tilestored [{c} + {c_row}*1], tmm0",
            "jmp 5b",
            "6:",
            "cmp {run}, {end}",
            "jne 4b",
            "lea {ap}, [{c1} + {tap}]",
            $($store,)*
            run = inout(reg) $runs.as_ptr() => _,
            end = in(reg) $runs.as_ptr_range().end,
            frame = in(reg) &raw const $frame,
            c = in(reg) $c,
            c1 = out(reg) _,
            tap = in(reg) $shape.c_tap * size_of::<f32>(),
            a_step = in(reg) $shape.a_step * size_of::<u32>(),
            ahead = inout(reg) $ahead.from => _,
            ahead_step = in(reg) $ahead.step * size_of::<u32>(),
            ap = out(reg) _,
            bp = out(reg) _,
            // How many steps a run has left; before, whether to add.
            left = inout(reg) usize::from($add) => _,
            row = in(reg) 64usize,
            c_row = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// What the assembly reads of a product in high and low parts.
#[repr(C)]
struct ThreefoldFrame {
    a: *const u16,
    b: *const u32,
    /// Bytes from the first tile of rows to the second.
    a_second: usize,
    /// Bytes from the high parts to the low ones.
    a_low: usize,
    /// Steps until a tile is stored (see `slide!`).
    busy: usize,
    /// From the four lines asked for in a step to the next.
    ahead_step: usize,
    /// From a step's operands to the next.
    a_step: usize,
    b_step: usize,
}

/// Steps of [`Matrix::threefold`] between two stores of a tile.
const THREEFOLD_BUSY: usize = 4;

/// Three products a step: high parts of rows with low and high ones of columns, low ones with high ones, so that each of the eight
/// tiles is loaded once. tmm4-5 are the left operand's, tmm6-7 the right's; every step asks for four lines.
macro_rules! threefold {
    (
        $runs:ident, $frame:ident, $shape:ident, $c:ident, $add:ident, $ahead:ident,
        load [$($load:expr),*], zero [$($zero:expr),*], step [$($step:expr),*], store [$($store:expr),*]
    ) => {
        asm!(
            "test {left:e}, {left:e}",
            "jz 2f",
            $($load,)*
            "jmp 4f",
            "2:",
            $($zero,)*
            "4:",
            "mov {ap}, [{run}]",
            "mov {bp}, [{run} + 8]",
            "mov {left}, [{run} + 16]",
            "add {run}, 24",
            "add {ap}, {ap}",
            "add {ap}, [{frame}]",
            "mov {aq}, {ap}",
            "add {aq}, [{frame} + 16]",
            "mov {al}, {ap}",
            "add {al}, [{frame} + 24]",
            "mov {am}, {aq}",
            "add {am}, [{frame} + 24]",
            "shl {bp}, 2",
            "add {bp}, [{frame} + 8]",
            "5:",
            $($step,)*
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "prefetcht1 [{ahead} + 128]",
            "prefetcht1 [{ahead} + 192]",
            "add {ahead}, [{frame} + 40]",
            "add {ap}, [{frame} + 48]",
            "add {aq}, [{frame} + 48]",
            "add {al}, [{frame} + 48]",
            "add {am}, [{frame} + 48]",
            "add {bp}, [{frame} + 56]",
            "dec qword ptr [{frame} + 32]",
            "jnz 6f",
            "mov qword ptr [{frame} + 32], {busy}",
            "tilestored [{c} + {b_row}*2], tmm6",
            "6:",
            "dec {left}",
            "jnz 5b",
            "cmp {run}, {end}",
            "jne 4b",
            $($store,)*
            run = inout(reg) $runs.as_ptr() => _,
            end = in(reg) $runs.as_ptr_range().end,
            frame = in(reg) &raw mut $frame,
            c = in(reg) $c,
            left = inout(reg) usize::from($add) => _,
            ap = out(reg) _,
            aq = out(reg) _,
            al = out(reg) _,
            am = out(reg) _,
            bp = out(reg) _,
            a_row = in(reg) $shape.a_row * size_of::<u16>(),
            b_row = in(reg) 64usize,
            ahead = inout(reg) $ahead.from => _,
            busy = const THREEFOLD_BUSY,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

impl Matrix for Amx {
    type S = Avx512<true>;

    const SLIDES: bool = true;

    #[inline(never)]
    unsafe fn slide(
        shape: &Slide,
        runs: &[Run],
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        add: bool,
        ahead: Ahead,
    ) {
        if runs.is_empty() {
            for tap in 0..if add { 0 } else { shape.taps() } {
                for row in 0..shape.rows * EDGE {
                    // SAFETY: the caller's promise that C has these rows.
                    unsafe { c.add(tap * shape.c_tap + row * C_STRIDE).write_bytes(0, EDGE) };
                }
            }
            return;
        }
        debug_assert!(runs.iter().all(|run| run.steps > 0));
        let frame = [a, b];
        // SAFETY: the caller's promise: operands are in their memory, and `run` has configured the tiles.
        unsafe {
            if shape.rows == 1 {
                // tmm3-5 are the tiles of x under the three taps: the newest takes the oldest's place.
                slide!(
                    shape, runs, frame, c, add, ahead,
                    load ["tileloadd tmm0, [{c} + {c_row}*1]", "tileloadd tmm1, [{c1} + {c_row}*1]",
                        "tileloadd tmm2, [{ap} + {c_row}*1]"],
                    zero ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2"],
                    first ["tileloaddt1 tmm3, [{bp} + {row}*1]", "tileloaddt1 tmm4, [{bp} + {row}*1 + 1024]"],
                    steps [
                        "tileloaddt1 tmm5, [{bp} + {row}*1 + 2048]", "tileloaddt1 tmm6, [{ap} + {row}*1]",
                        "tdpbf16ps tmm0, tmm6, tmm3", "tdpbf16ps tmm1, tmm6, tmm4", "tdpbf16ps tmm2, tmm6, tmm5",
                        "prefetcht1 [{ahead}]", "prefetcht1 [{ahead} + 64]", "add {ahead}, {ahead_step}",
                        "add {ap}, {a_step}", "dec {left}", "jz 6f",
                        "tileloaddt1 tmm3, [{bp} + {row}*1 + 3072]", "tileloaddt1 tmm7, [{ap} + {row}*1]",
                        "tdpbf16ps tmm0, tmm7, tmm4", "tdpbf16ps tmm1, tmm7, tmm5", "tdpbf16ps tmm2, tmm7, tmm3",
                        "prefetcht1 [{ahead}]", "prefetcht1 [{ahead} + 64]", "add {ahead}, {ahead_step}",
                        "add {ap}, {a_step}", "dec {left}", "jz 6f",
                        "tileloaddt1 tmm4, [{bp} + {row}*1 + 4096]", "tileloaddt1 tmm6, [{ap} + {row}*1]",
                        "tdpbf16ps tmm0, tmm6, tmm5", "tdpbf16ps tmm1, tmm6, tmm3", "tdpbf16ps tmm2, tmm6, tmm4",
                        "prefetcht1 [{ahead}]", "prefetcht1 [{ahead} + 64]", "add {ahead}, {ahead_step}",
                        "add {ap}, {a_step}", "add {bp}, 3072", "dec {left}", "jz 6f"
                    ],
                    store ["tilestored [{c} + {c_row}*1], tmm0", "tilestored [{c1} + {c_row}*1], tmm1",
                        "tilestored [{ap} + {c_row}*1], tmm2"]
                )
            } else {
                // tmm4-5 are the tiles of x under the two taps; C is tap by tap, its second tiles of rows behind the first.
                slide!(
                    shape, runs, frame, c, add, ahead,
                    load ["tileloadd tmm0, [{c} + {c_row}*1]", "tileloadd tmm1, [{c1} + {c_row}*1]",
                        "tileloadd tmm2, [{c} + {c_row}*1 + 2048]", "tileloadd tmm3, [{c1} + {c_row}*1 + 2048]"],
                    zero ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                    first ["tileloaddt1 tmm4, [{bp} + {row}*1]"],
                    steps [
                        "tileloaddt1 tmm5, [{bp} + {row}*1 + 1024]", "tileloaddt1 tmm6, [{ap} + {row}*1]",
                        "tdpbf16ps tmm0, tmm6, tmm4", "tdpbf16ps tmm1, tmm6, tmm5",
                        "tileloaddt1 tmm7, [{ap} + {row}*1 + 1024]",
                        "tdpbf16ps tmm2, tmm7, tmm4", "tdpbf16ps tmm3, tmm7, tmm5",
                        "prefetcht1 [{ahead}]", "prefetcht1 [{ahead} + 64]", "add {ahead}, {ahead_step}",
                        "add {ap}, {a_step}", "dec {left}", "jz 6f",
                        "tileloaddt1 tmm4, [{bp} + {row}*1 + 2048]", "tileloaddt1 tmm6, [{ap} + {row}*1]",
                        "tdpbf16ps tmm0, tmm6, tmm5", "tdpbf16ps tmm1, tmm6, tmm4",
                        "tileloaddt1 tmm7, [{ap} + {row}*1 + 1024]",
                        "tdpbf16ps tmm2, tmm7, tmm5", "tdpbf16ps tmm3, tmm7, tmm4",
                        "prefetcht1 [{ahead}]", "prefetcht1 [{ahead} + 64]", "add {ahead}, {ahead_step}",
                        "add {ap}, {a_step}", "add {bp}, 2048", "dec {left}", "jz 6f"
                    ],
                    store ["tilestored [{c} + {c_row}*1], tmm0", "tilestored [{c1} + {c_row}*1], tmm1",
                        "tilestored [{c} + {c_row}*1 + 2048], tmm2", "tilestored [{c1} + {c_row}*1 + 2048], tmm3"]
                )
            }
        }
    }

    #[inline(never)]
    unsafe fn threefold(
        shape: &Threefold,
        runs: &[Run],
        a: *const u16,
        b: *const u32,
        c: *mut f32,
        add: bool,
        ahead: Ahead,
    ) {
        debug_assert!(runs.iter().all(|run| run.steps > 0));
        if runs.is_empty() {
            for row in 0..if add { 0 } else { shape.rows * EDGE } {
                // SAFETY: the caller's promise that C has these rows and columns.
                unsafe { c.add(row * C_STRIDE).write_bytes(0, shape.columns * EDGE) };
            }
            return;
        }
        let row_bytes = shape.a_row * size_of::<u16>();
        let mut frame = ThreefoldFrame {
            a,
            b,
            a_second: EDGE * row_bytes,
            a_low: shape.a_low * size_of::<u16>(),
            busy: THREEFOLD_BUSY,
            ahead_step: ahead.step * size_of::<u32>(),
            a_step: shape.a_step * size_of::<u16>(),
            b_step: shape.b_step * size_of::<u32>(),
        };
        // SAFETY: the caller's promise: operands are in their memory, and `run` has configured the tiles.
        unsafe {
            match (shape.rows, shape.columns) {
                (2, 2) => threefold!(
                    runs, frame, shape, c, add, ahead,
                    load ["tileloadd tmm0, [{c} + {b_row}*2]", "tileloadd tmm1, [{c} + {b_row}*2 + 64]",
                        "tileloadd tmm2, [{c} + {b_row}*2 + 2048]", "tileloadd tmm3, [{c} + {b_row}*2 + 2112]"],
                    zero ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                    step [
                        "tileloadd tmm4, [{ap} + {a_row}*1]", "tileloaddt1 tmm6, [{bp} + {b_row}*1 + 2048]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloaddt1 tmm7, [{bp} + {b_row}*1 + 3072]",
                        "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm5, [{aq} + {a_row}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                        "tileloaddt1 tmm6, [{bp} + {b_row}*1]", "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloaddt1 tmm7, [{bp} + {b_row}*1 + 1024]", "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                        "tileloadd tmm4, [{al} + {a_row}*1]", "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm5, [{am} + {a_row}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"
                    ],
                    store ["tilestored [{c} + {b_row}*2], tmm0", "tilestored [{c} + {b_row}*2 + 64], tmm1",
                        "tilestored [{c} + {b_row}*2 + 2048], tmm2", "tilestored [{c} + {b_row}*2 + 2112], tmm3"]
                ),
                (1, 2) => threefold!(
                    runs, frame, shape, c, add, ahead,
                    load ["tileloadd tmm0, [{c} + {b_row}*2]", "tileloadd tmm1, [{c} + {b_row}*2 + 64]"],
                    zero ["tilezero tmm0", "tilezero tmm1"],
                    step [
                        "tileloadd tmm4, [{ap} + {a_row}*1]", "tileloaddt1 tmm6, [{bp} + {b_row}*1 + 2048]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloaddt1 tmm7, [{bp} + {b_row}*1 + 3072]",
                        "tdpbf16ps tmm1, tmm4, tmm7", "tileloaddt1 tmm6, [{bp} + {b_row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloaddt1 tmm7, [{bp} + {b_row}*1 + 1024]",
                        "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm5, [{al} + {a_row}*1]",
                        "tdpbf16ps tmm0, tmm5, tmm6", "tdpbf16ps tmm1, tmm5, tmm7"
                    ],
                    store ["tilestored [{c} + {b_row}*2], tmm0", "tilestored [{c} + {b_row}*2 + 64], tmm1"]
                ),
                (2, _) => threefold!(
                    runs, frame, shape, c, add, ahead,
                    load ["tileloadd tmm0, [{c} + {b_row}*2]", "tileloadd tmm2, [{c} + {b_row}*2 + 2048]"],
                    zero ["tilezero tmm0", "tilezero tmm2"],
                    step [
                        "tileloadd tmm4, [{ap} + {a_row}*1]", "tileloaddt1 tmm7, [{bp} + {b_row}*1 + 1024]",
                        "tdpbf16ps tmm0, tmm4, tmm7", "tileloadd tmm5, [{aq} + {a_row}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm7", "tileloaddt1 tmm6, [{bp} + {b_row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
                        "tileloadd tmm4, [{al} + {a_row}*1]", "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{am} + {a_row}*1]", "tdpbf16ps tmm2, tmm5, tmm6"
                    ],
                    store ["tilestored [{c} + {b_row}*2], tmm0", "tilestored [{c} + {b_row}*2 + 2048], tmm2"]
                ),
                _ => threefold!(
                    runs, frame, shape, c, add, ahead,
                    load ["tileloadd tmm0, [{c} + {b_row}*2]"],
                    zero ["tilezero tmm0"],
                    step [
                        "tileloadd tmm4, [{ap} + {a_row}*1]", "tileloaddt1 tmm7, [{bp} + {b_row}*1 + 1024]",
                        "tdpbf16ps tmm0, tmm4, tmm7", "tileloaddt1 tmm6, [{bp} + {b_row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm5, [{al} + {a_row}*1]",
                        "tdpbf16ps tmm0, tmm5, tmm6"
                    ],
                    store ["tilestored [{c} + {b_row}*2], tmm0"]
                ),
            }
        }
    }

    #[inline(never)]
    unsafe fn product_beside(
        shape: &Product,
        runs: &[Run],
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        add: bool,
        ahead: Ahead,
        rest: Option<&Rest>,
    ) -> usize {
        const { assert!(C_STRIDE == 32 && EDGE == 16 && PICTURES == 32, "offsets in the assembly") };
        debug_assert!(shape.left == Left::Tiles && shape.right == Right::Rows && shape.columns == 2);
        debug_assert!(runs.iter().all(|run| run.steps > 0));
        if runs.is_empty() {
            if !add {
                // SAFETY: the caller's promise.
                unsafe { zero(shape, c) };
            }
            return 0;
        }
        let rest = rest.unwrap_or(&NO_REST);
        let mut frame = BesideFrame {
            a,
            b,
            a_step: shape.a_step * size_of::<u32>(),
            b_step: shape.b_step * size_of::<u32>(),
            run: runs.as_ptr(),
            runs_end: runs.as_ptr_range().end,
            ahead_step: ahead.step * size_of::<u32>(),
            rest_end: rest.pairs * PICTURES * size_of::<u32>(),
            to: rest.to,
            mask: rest.mask,
            least: rest.least,
        };
        let stored: usize;
        /// One or two tiles of rows; how rounded sums become pairs.
        macro_rules! beside {
            (two, [$($interleave:expr),*]) => {
                product_beside!(
                    frame, ahead, rest, stored, c, add,
                    load ["tileloadd tmm0, [{c} + {row}*1]", "tileloadd tmm1, [{c} + {row}*1 + 64]",
                        "tileloadd tmm2, [{c} + {row}*1 + 2048]", "tileloadd tmm3, [{c} + {row}*1 + 2112]"],
                    zero ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                    step ["tileloadd tmm4, [{ap} + {a_row}*1]", "tileloaddt1 tmm6, [{bp} + {row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloaddt1 tmm7, [{bp} + {row}*1 + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm5, [{ap} + {a_row}*1 + 1024]",
                        "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"],
                    store ["tilestored [{c} + {row}*1], tmm0", "tilestored [{c} + {row}*1 + 64], tmm1",
                        "tilestored [{c} + {row}*1 + 2048], tmm2", "tilestored [{c} + {row}*1 + 2112], tmm3"],
                    interleave [$($interleave),*]
                )
            };
            (one, [$($interleave:expr),*]) => {
                product_beside!(
                    frame, ahead, rest, stored, c, add,
                    load ["tileloadd tmm0, [{c} + {row}*1]", "tileloadd tmm1, [{c} + {row}*1 + 64]"],
                    zero ["tilezero tmm0", "tilezero tmm1"],
                    step ["tileloadd tmm4, [{ap} + {a_row}*1]", "tileloaddt1 tmm6, [{bp} + {row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloaddt1 tmm7, [{bp} + {row}*1 + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7"],
                    store ["tilestored [{c} + {row}*1], tmm0", "tilestored [{c} + {row}*1 + 64], tmm1"],
                    interleave [$($interleave),*]
                )
            };
        }
        // SAFETY: the caller's promise: operands and the rest are in their memory, and `run` has configured the tiles.
        unsafe {
            // A mask takes a tenth of a step: its comparisons and the tiles share a port. Positive bf16 are positive integers,
            // and less than NaNs.
            match (shape.rows, rest.mask.is_null()) {
                (2, true) => beside!(two, ["vpermw zmm16, zmm31, zmm16", "vpermw zmm18, zmm31, zmm18"]),
                (2, false) => beside!(
                    two,
                    [
                        "vmovdqu64 zmm20, [{mask} + {at}]",
                        "vmovdqu64 zmm21, [{mask} + {at} + 64]",
                        "vpcmpgtw k1, zmm20, zmm30",
                        "vpcmpgtw k2, zmm21, zmm30",
                        "vpcmpgtw k1 {{k1}}, zmm29, zmm20",
                        "vpcmpgtw k2 {{k2}}, zmm29, zmm21",
                        "vpermw zmm16 {{k1}}{{z}}, zmm31, zmm16",
                        "vpermw zmm18 {{k2}}{{z}}, zmm31, zmm18"
                    ]
                ),
                (_, true) => beside!(one, ["vpermw zmm16, zmm31, zmm16", "vpermw zmm18, zmm31, zmm18"]),
                (_, false) => beside!(
                    one,
                    [
                        "vmovdqu64 zmm20, [{mask} + {at}]",
                        "vmovdqu64 zmm21, [{mask} + {at} + 64]",
                        "vpcmpgtw k1, zmm20, zmm30",
                        "vpcmpgtw k2, zmm21, zmm30",
                        "vpcmpgtw k1 {{k1}}, zmm29, zmm20",
                        "vpcmpgtw k2 {{k2}}, zmm29, zmm21",
                        "vpermw zmm16 {{k1}}{{z}}, zmm31, zmm16",
                        "vpermw zmm18 {{k2}}{{z}}, zmm31, zmm18"
                    ]
                ),
            }
        }
        stored / (PICTURES * size_of::<u32>())
    }

    #[inline(never)]
    unsafe fn product_ahead(
        shape: &Product,
        runs: &[Run],
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        add: bool,
        ahead: Ahead,
    ) {
        debug_assert!(shape.left == Left::Tiles && shape.right == Right::Rows);
        debug_assert!(runs.iter().all(|run| run.steps > 0));
        if shape.rows < 2 || shape.columns < 2 || runs.is_empty() {
            // SAFETY: the caller's promise.
            unsafe { Self::product(shape, runs, a, b, c, add) };
            return;
        }
        let frame = [a, b];
        // SAFETY: the caller's promise: operands are in their memory, and `run` has configured the tiles.
        unsafe { product_ahead!(shape, runs, frame, c, add, ahead) }
    }

    // Not inlined: a block of assembly for every shape is large, and a call costs nothing beside a product.
    #[inline(never)]
    unsafe fn product(shape: &Product, runs: &[Run], a: *const u32, b: *const u32, c: *mut f32, add: bool) {
        const { assert!(C_STRIDE == 32, "rows of C are 128 bytes apart, its lower tiles 2,048 bytes") };
        debug_assert!(runs.iter().all(|run| run.steps > 0));
        if runs.is_empty() {
            if !add {
                // SAFETY: the caller's promise.
                unsafe { zero(shape, c) };
            }
            return;
        }
        let ((a_row, a_second), (b_row, b_second)) = (shape.left.distances(), shape.right.distances());
        let [a_row, a_second, b_row, b_second] = [a_row, a_second, b_row, b_second].map(|pairs| pairs * 4);
        let frame = Frame { a, b, b_row, b_second, a_second };
        // SAFETY: the caller's promise: operands are in their memory, and `run` has configured the tiles.
        unsafe {
            match (shape.rows, shape.columns) {
                (2, 2) => product!(
                    shape, runs, frame, a_row, c, add,
                    load ["tileloadd tmm0, [{c} + {left}*1]", "tileloadd tmm1, [{c} + {left}*1 + 64]",
                        "tileloadd tmm2, [{c} + {left}*1 + 2048]", "tileloadd tmm3, [{c} + {left}*1 + 2112]"],
                    zero ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                    step ["tileloadd tmm4, [{ap} + {a_row}*1]", "tileloadd tmm6, [{bp} + {row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{bq} + {row}*1]",
                        "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm5, [{aq} + {a_row}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"],
                    store ["tilestored [{c} + {left}*1], tmm0", "tilestored [{c} + {left}*1 + 64], tmm1",
                        "tilestored [{c} + {left}*1 + 2048], tmm2", "tilestored [{c} + {left}*1 + 2112], tmm3"]
                ),
                (1, 2) => product!(
                    shape, runs, frame, a_row, c, add,
                    load ["tileloadd tmm0, [{c} + {left}*1]", "tileloadd tmm1, [{c} + {left}*1 + 64]"],
                    zero ["tilezero tmm0", "tilezero tmm1"],
                    step ["tileloadd tmm4, [{ap} + {a_row}*1]", "tileloadd tmm6, [{bp} + {row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{bq} + {row}*1]",
                        "tdpbf16ps tmm1, tmm4, tmm7"],
                    store ["tilestored [{c} + {left}*1], tmm0", "tilestored [{c} + {left}*1 + 64], tmm1"]
                ),
                (2, _) => product!(
                    shape, runs, frame, a_row, c, add,
                    load ["tileloadd tmm0, [{c} + {left}*1]", "tileloadd tmm2, [{c} + {left}*1 + 2048]"],
                    zero ["tilezero tmm0", "tilezero tmm2"],
                    step ["tileloadd tmm4, [{ap} + {a_row}*1]", "tileloadd tmm6, [{bp} + {row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm5, [{aq} + {a_row}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6"],
                    store ["tilestored [{c} + {left}*1], tmm0", "tilestored [{c} + {left}*1 + 2048], tmm2"]
                ),
                _ => product!(
                    shape, runs, frame, a_row, c, add,
                    load ["tileloadd tmm0, [{c} + {left}*1]"],
                    zero ["tilezero tmm0"],
                    step ["tileloadd tmm4, [{ap} + {a_row}*1]", "tileloadd tmm6, [{bp} + {row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6"],
                    store ["tilestored [{c} + {left}*1], tmm0"]
                ),
            }
        }
    }
}

/// The sum of no runs.
unsafe fn zero(shape: &Product, c: *mut f32) {
    for row in 0..shape.rows * 16 {
        // SAFETY: the caller's promise that C has these rows and columns.
        unsafe { std::ptr::write_bytes(c.add(row * C_STRIDE), 0, shape.columns * 16) };
    }
}

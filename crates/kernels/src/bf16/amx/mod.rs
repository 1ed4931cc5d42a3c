//! Products on AMX tiles. The intrinsics are not stable yet, so the tile instructions stand in `asm!`. Tile registers
//! cannot be carried from one block of assembly to the next: a whole product, its loops and its eight tiles, is one
//! block, and each kind of product a file.

#![cfg(target_arch = "x86_64")]

mod beside;
mod slide;
mod threefold;

use super::engine::{
    Ahead, C_STRIDE, Left, Matrix, MatrixKernel, Product, Rest, Right, Run, Slide, Threefold,
};
use crate::simd::Avx512;
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

impl Matrix for Amx {
    type S = Avx512<true>;

    const SLIDES: bool = true;

    #[inline(always)]
    unsafe fn slide(
        shape: &Slide,
        runs: &[Run],
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        add: bool,
        ahead: Ahead,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { slide::slide(shape, runs, a, b, c, add, ahead) }
    }

    #[inline(always)]
    unsafe fn threefold(
        shape: &Threefold,
        runs: &[Run],
        a: *const u16,
        b: *const u32,
        c: *mut f32,
        add: bool,
        ahead: Ahead,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { threefold::threefold(shape, runs, a, b, c, add, ahead) }
    }

    #[inline(always)]
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
        // SAFETY: passed on from the caller.
        unsafe { beside::product_beside(shape, runs, a, b, c, add, ahead, rest) }
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

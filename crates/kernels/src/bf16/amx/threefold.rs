//! Products in high and low parts.

use crate::bf16::EDGE;
use crate::bf16::engine::{Ahead, C_STRIDE, Run, Threefold};
use std::arch::asm;

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

/// [`Matrix::threefold`](crate::bf16::engine::Matrix::threefold).
///
/// # Safety
/// As there; the tiles are configured.
#[inline(never)]
pub(super) unsafe fn threefold(
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

//! Products whose right operand slides from tap to tap.

use crate::bf16::EDGE;
use crate::bf16::engine::{Ahead, C_STRIDE, Run, Slide};
use std::arch::asm;

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

/// [`Matrix::slide`](crate::bf16::engine::Matrix::slide).
///
/// # Safety
/// As there; the tiles are configured.
#[inline(never)]
pub(super) unsafe fn slide(
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

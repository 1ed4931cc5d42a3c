//! Products with the epilogue of the sums before beside them.

use super::zero;
use crate::bf16::engine::{Ahead, C_STRIDE, Left, Product, Rest, Right, Run};
use crate::bf16::{EDGE, PICTURES};
use crate::simd::INTERLEAVED;
use std::arch::asm;

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

/// [`Matrix::product_beside`](crate::bf16::engine::Matrix::product_beside).
///
/// # Safety
/// As there; the tiles are configured.
#[inline(never)]
pub(super) unsafe fn product_beside(
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

//! Products of AVX-512-BF16 whose left operand's rows lie apart ([`Left::Apart`](super::engine::Left)): positions of a map.
//! The loops stand in assembly: left to itself, the compiler spreads the pairs of all rows over vectors before it
//! multiplies the first, and runs out of registers.
//!
//! ```text
//! for run
//!   for pair of the depth       a vector or two of the right operand
//!     for row                   its pair, spread over a vector; one dot product for each vector
//! ```

#![cfg(target_arch = "x86_64")]

use super::EDGE;
use super::engine::{C_STRIDE, MOST_ROWS, Run};
use std::arch::asm;

/// What the assembly reads besides the runs: where the operands lie.
#[repr(C)]
struct Frame {
    a: *const u32,
    b: *const u32,
}

/// The product of so many `rows`, which lie `row` pairs apart, with `columns` tiles of columns. Both operands go on from
/// step to step without a gap, the right one in rows of 16 or 32 columns. Each number of rows has code of its own.
///
/// # Safety
/// As [`Matrix::product`](super::engine::Matrix::product), on a processor with AVX-512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn product(
    columns: usize,
    row: usize,
    rows: usize,
    runs: &[Run],
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    add: bool,
) {
    const { assert!(C_STRIDE == 32 && EDGE == 16, "rows of C are 128 bytes apart, runs count in 16 pairs") };
    if !add {
        for r in 0..rows {
            // SAFETY: the caller's promise that C has these rows.
            unsafe { c.add(r * C_STRIDE).write_bytes(0, columns * EDGE) };
        }
    }
    if runs.is_empty() {
        return;
    }
    let frame = Frame { a, b };
    let row_bytes = row * size_of::<u32>();
    // Sums of two vectors are zmm0-27, those of one zmm0-13; zmm30-31 are the right operand's row, zmm29 a pair of the left
    // one. Every third row has a pointer; the two behind it are one and two distances further on.
    macro_rules! loops {
        (
            $b_row:literal,
            load [$($load:expr),*], columns [$($columns:expr),*], step [$($step:expr),*], store [$($store:expr),*]
        ) => {
            asm!(
                $($load,)*
                // A run: its left and right operands and its depth in pairs.
                "2:",
                "mov {p0}, [{run}]",
                "mov {bp}, [{run} + 8]",
                "mov {left}, [{run} + 16]",
                "shl {p0}, 2",
                "add {p0}, [{frame}]",
                "shl {bp}, 2",
                "add {bp}, [{frame} + 8]",
                "shl {left}, 4",
                "lea {p12}, [{d} + 2*{d}]",
                "lea {p3}, [{p0} + {p12}]",
                "lea {p6}, [{p0} + 2*{p12}]",
                "lea {p9}, [{p3} + 2*{p12}]",
                "lea {p12}, [{p0} + 4*{p12}]",
                "add {run}, 24",
                "3:",
                $($columns,)*
                $($step,)*
                "add {p0}, 4",
                "add {p3}, 4",
                "add {p6}, 4",
                "add {p9}, 4",
                "add {p12}, 4",
                concat!("add {bp}, ", $b_row),
                "dec {left}",
                "jnz 3b",
                "cmp {run}, {end}",
                "jne 2b",
                $($store,)*
                run = inout(reg) runs.as_ptr() => _,
                end = in(reg) runs.as_ptr().add(runs.len()),
                frame = in(reg) &raw const frame,
                c = in(reg) c,
                d = in(reg) row_bytes,
                bp = out(reg) _,
                left = out(reg) _,
                p0 = out(reg) _, p3 = out(reg) _, p6 = out(reg) _, p9 = out(reg) _, p12 = out(reg) _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                out("zmm30") _, out("zmm31") _,
                options(nostack),
            )
        };
    }
    // One vector of columns, and two.
    macro_rules! one {
        ($(($n:literal, $s:literal, $t:literal, $pair:literal, $c:literal))*) => {
            loops!(
                "64",
                load [$(concat!("vmovups ", $s, ", [{c} + ", $c, "]")),*],
                columns ["vmovups zmm30, [{bp}]"],
                step [$(concat!("vdpbf16ps ", $s, ", zmm30, dword ptr [", $pair, "]{{1to16}}")),*],
                store [$(concat!("vmovups [{c} + ", $c, "], ", $s)),*]
            )
        };
    }
    macro_rules! two {
        ($(($n:literal, $s:literal, $t:literal, $pair:literal, $c:literal))*) => {
            loops!(
                "128",
                load [
                    $(concat!("vmovups ", $s, ", [{c} + ", $c, "]")),*,
                    $(concat!("vmovups ", $t, ", [{c} + ", $c, " + 64]")),*
                ],
                columns ["vmovups zmm30, [{bp}]", "vmovups zmm31, [{bp} + 64]"],
                step [$(
                    concat!("vpbroadcastd zmm29, dword ptr [", $pair, "]"),
                    concat!("vdpbf16ps ", $s, ", zmm30, zmm29"),
                    concat!("vdpbf16ps ", $t, ", zmm31, zmm29")
                ),*],
                store [
                    $(concat!("vmovups [{c} + ", $c, "], ", $s)),*,
                    $(concat!("vmovups [{c} + ", $c, " + 64], ", $t)),*
                ]
            )
        };
    }
    // The code of every number of rows: a row more, until there are as many as are asked for.
    macro_rules! of {
        ($vectors:ident, [$($rows:tt)*]) => {
            unreachable!("a tile of {rows} rows, more than {MOST_ROWS}")
        };
        ($vectors:ident, [$($rows:tt)*] ($n:literal, $($row:tt)*) $($more:tt)*) => {
            if rows == $n {
                $vectors!($($rows)* ($n, $($row)*))
            } else {
                of!($vectors, [$($rows)* ($n, $($row)*)] $($more)*)
            }
        };
    }
    // Number, sums of either vector, the pair, and where the row of C begins.
    macro_rules! all {
        ($vectors:ident) => {
            of! {
                $vectors, []
                (1, "zmm0", "zmm14", "{p0}", "0")
                (2, "zmm1", "zmm15", "{p0} + {d}", "128")
                (3, "zmm2", "zmm16", "{p0} + 2*{d}", "256")
                (4, "zmm3", "zmm17", "{p3}", "384")
                (5, "zmm4", "zmm18", "{p3} + {d}", "512")
                (6, "zmm5", "zmm19", "{p3} + 2*{d}", "640")
                (7, "zmm6", "zmm20", "{p6}", "768")
                (8, "zmm7", "zmm21", "{p6} + {d}", "896")
                (9, "zmm8", "zmm22", "{p6} + 2*{d}", "1024")
                (10, "zmm9", "zmm23", "{p9}", "1152")
                (11, "zmm10", "zmm24", "{p9} + {d}", "1280")
                (12, "zmm11", "zmm25", "{p9} + 2*{d}", "1408")
                (13, "zmm12", "zmm26", "{p12}", "1536")
                (14, "zmm13", "zmm27", "{p12} + {d}", "1664")
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe { if columns == 1 { all!(one) } else { all!(two) } }
}

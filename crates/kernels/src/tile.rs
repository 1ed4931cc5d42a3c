//! The two inner loops that nearly all arithmetic runs in. Both keep a tile of C in registers: ROWS rows by KV vectors,
//! and for each step of the reduction load KV vectors of one operand and broadcast ROWS elements of the other.
//!
//! - [`dot`]: C[j][·] += Σ_c x[j][c] · w[c][·]. Rows of x are contiguous in the reduction: convolution forward (rows are
//!   pictures, the reduction is channels of a tap), its input gradient, linear layers.
//! - [`outer`]: C[i][·] += Σ_n x[n][i] · w[n][·]. Rows of x are contiguous in i: weight gradients (i is an input
//!   channel, the reduction is pictures and positions).
//!
//! For AVX-512 a 6×4 tile takes 24 accumulators, 4 vectors of w and no register for x, whose broadcast is an operand
//! of the FMA: 10 loads for 24 FMAs, and 24 independent chains against a latency of about 8 FMAs.

use crate::simd::Simd;

/// A run of the reduction: `len` steps, reading x from `x` and packed w from `w`, offsets in elements.
#[derive(Clone, Copy, Default)]
pub(crate) struct Run {
    pub x: usize,
    pub w: usize,
    pub len: usize,
}

/// What the accumulators start with.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// The same panel-wide row for every row of the tile.
    Row(*const f32),
    /// What the output holds.
    Output,
}

/// What happens to finished sums on their way to memory.
#[derive(Clone, Copy)]
pub(crate) enum Finish {
    /// Nothing.
    Store,
    /// max(·, 0)
    Relu,
    /// Zero where this array, laid out as the output, is not positive: the gradient of a ReLU.
    Mask(*const f32),
}

/// Where a tile of results goes: `rows` rows at `stride`, each `valid` elements of the panel's width.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub y: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub valid: usize,
}

/// C[j][·] += Σ_runs Σ_c x[run.x + j·x_stride + c] · w[run.w + c·width + ·], `vectors` vectors wide, at most
/// `S::ROWS[vectors − 1]` rows.
///
/// # Safety
/// All rows, runs and the output are within their arrays; the processor has `S`.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(
    vectors: usize,
    runs: &[Run],
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    start: Start,
    out: Output,
    finish: Finish,
) {
    macro_rules! pick {
        ($($kv:literal: $($nr:literal)*;)*) => {
            match (vectors, out.rows) {
                $($(($kv, $nr) if $kv <= S::PANEL && $nr <= S::ROWS[$kv - 1] => unsafe {
                    dot_tile::<S, $kv, $nr>(runs, x, x_stride, w, start, out, finish)
                },)*)*
                _ => unreachable!("no tile of {} rows by {vectors} vectors", out.rows),
            }
        };
    }
    pick! { 4: 6 5 4 3 2 1; 3: 8 7 6 5 4 3 2 1; 2: 8 7 6 5 4 3 2 1; 1: 8 7 6 5 4 3 2 1; }
}

#[inline(always)]
unsafe fn dot_tile<S: Simd, const KV: usize, const NR: usize>(
    runs: &[Run],
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    start: Start,
    out: Output,
    finish: Finish,
) {
    // SAFETY: the caller's promise; all offsets stay within the arrays that it describes.
    unsafe {
        let mut acc = begin::<S, KV, NR>(start, out);
        for run in runs {
            let mut wp = w.add(run.w);
            let xp = x.add(run.x);
            for c in 0..run.len {
                let mut wv = [S::zero(); KV];
                for v in 0..KV {
                    wv[v] = S::load(wp.add(v * S::LANES));
                }
                for j in 0..NR {
                    let b = S::splat(*xp.add(j * x_stride + c));
                    for v in 0..KV {
                        acc[j][v] = S::fma(b, wv[v], acc[j][v]);
                    }
                }
                wp = wp.add(KV * S::LANES);
            }
        }
        end::<S, KV, NR>(acc, out, finish);
    }
}

/// C[i][·] += Σ_runs Σ_n x[run.x + n·x_stride + i] · w[run.w + n·width + ·], `vectors` vectors wide; `width` is the
/// packed panel. The output is panel-wide.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
pub(crate) unsafe fn outer<S: Simd>(
    vectors: usize,
    runs: &[Run],
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    start: Start,
    out: Output,
) {
    macro_rules! pick {
        ($($kv:literal: $($nr:literal)*;)*) => {
            match (vectors, out.rows) {
                $($(($kv, $nr) if $kv <= S::PANEL && $nr <= S::ROWS[$kv - 1] => unsafe {
                    outer_tile::<S, $kv, $nr>(runs, x, x_stride, w, start, out)
                },)*)*
                _ => unreachable!("no tile of {} rows by {vectors} vectors", out.rows),
            }
        };
    }
    pick! { 4: 6 5 4 3 2 1; 3: 8 7 6 5 4 3 2 1; 2: 8 7 6 5 4 3 2 1; 1: 8 7 6 5 4 3 2 1; }
}

#[inline(always)]
unsafe fn outer_tile<S: Simd, const KV: usize, const MR: usize>(
    runs: &[Run],
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    start: Start,
    out: Output,
) {
    // SAFETY: the caller's promise; all offsets stay within the arrays that it describes.
    unsafe {
        let mut acc = begin::<S, KV, MR>(start, out);
        for run in runs {
            let mut wp = w.add(run.w);
            let mut xp = x.add(run.x);
            for _ in 0..run.len {
                let mut wv = [S::zero(); KV];
                for v in 0..KV {
                    wv[v] = S::load(wp.add(v * S::LANES));
                }
                for i in 0..MR {
                    let b = S::splat(*xp.add(i));
                    for v in 0..KV {
                        acc[i][v] = S::fma(b, wv[v], acc[i][v]);
                    }
                }
                wp = wp.add(KV * S::LANES);
                xp = xp.add(x_stride);
            }
        }
        end::<S, KV, MR>(acc, out, Finish::Store);
    }
}

/// Loads vector `v` of a row of which `valid` elements exist.
#[inline(always)]
unsafe fn load_part<S: Simd>(row: *const f32, v: usize, valid: usize) -> S::V {
    // SAFETY: reads only elements below `valid`.
    unsafe {
        if valid >= (v + 1) * S::LANES {
            S::load(row.add(v * S::LANES))
        } else {
            S::load_first(row.wrapping_add(v * S::LANES), valid.saturating_sub(v * S::LANES))
        }
    }
}

#[inline(always)]
unsafe fn begin<S: Simd, const KV: usize, const NR: usize>(start: Start, out: Output) -> [[S::V; KV]; NR] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::zero(); KV]; NR];
        match start {
            Start::Zero => {}
            Start::Row(row) => {
                for v in 0..KV {
                    let r = S::load(row.add(v * S::LANES));
                    for j in 0..NR {
                        acc[j][v] = r;
                    }
                }
            }
            Start::Output => {
                for j in 0..NR {
                    for v in 0..KV {
                        acc[j][v] = load_part::<S>(out.y.add(j * out.stride), v, out.valid);
                    }
                }
            }
        }
        acc
    }
}

#[inline(always)]
unsafe fn end<S: Simd, const KV: usize, const NR: usize>(acc: [[S::V; KV]; NR], out: Output, finish: Finish) {
    // SAFETY: the caller's promise; stores only elements below `valid`.
    unsafe {
        for j in 0..NR {
            let row = out.y.add(j * out.stride);
            for v in 0..KV {
                let value = match finish {
                    Finish::Store => acc[j][v],
                    // In this order a NaN passes through.
                    Finish::Relu => S::max(S::zero(), acc[j][v]),
                    Finish::Mask(mask) => {
                        S::where_positive(load_part::<S>(mask.add(j * out.stride), v, out.valid), acc[j][v])
                    }
                };
                if out.valid >= (v + 1) * S::LANES {
                    S::store(row.add(v * S::LANES), value);
                } else {
                    S::store_first(
                        row.wrapping_add(v * S::LANES),
                        value,
                        out.valid.saturating_sub(v * S::LANES).min(S::LANES),
                    );
                }
            }
        }
    }
}

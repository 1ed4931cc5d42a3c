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

use crate::panel::tiles;
use crate::simd::{LINE, Routine, Simd, prefetch, prefetch_far};
use std::mem::MaybeUninit;

/// A run of the reduction: `len` steps, reading x from `x` and packed w from `w`, offsets in elements.
#[derive(Clone, Copy, Default)]
pub(crate) struct Run {
    pub x: usize,
    pub w: usize,
    pub len: usize,
}

/// What sums start with.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// The same panel-wide row for every row of the tile.
    Row(*const f32),
    /// What the output holds. It is added at the end: a long sum is rounded once for each short one that it takes up, not once
    /// for each of its terms.
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

// SAFETY: threads only read the array that it may point to.
unsafe impl Sync for Finish {}

/// Where a tile of results goes: `rows` rows at `stride`, each `valid` elements of the panel's width.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub y: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub valid: usize,
}

/// An operand that comes next, asked for a little at a time while rows are multiplied.
pub(crate) struct Ahead {
    next: *const f32,
    /// Elements for each row.
    share: usize,
    /// Whether for the first cache, or the second.
    near: bool,
}

impl Ahead {
    /// `share` elements from `next` on for each row; none if it is 0.
    pub(crate) fn new(next: *const f32, share: usize, near: bool) -> Ahead {
        Ahead { next, share, near }
    }

    /// Asks for the share of so many rows, in whole lines.
    #[inline(always)]
    pub(crate) fn ask(&mut self, rows: usize) {
        let share = (rows * self.share).next_multiple_of(LINE);
        for line in (0..share).step_by(LINE) {
            let line = self.next.wrapping_add(line);
            if self.near { prefetch(line) } else { prefetch_far(line) }
        }
        self.next = self.next.wrapping_add(share);
    }
}

/// [`dot`] of any number of rows, as a function of its own: a tile needs all registers.
pub(crate) struct DotRows<'a> {
    pub vectors: usize,
    pub runs: &'a [Run],
    pub x: *const f32,
    pub x_stride: usize,
    /// Whether the rows of x lie one after the other, so that those of the next tile are asked for.
    pub next: bool,
    pub w: *const f32,
    pub start: Start,
    /// What else is asked for meanwhile.
    pub ahead: &'a mut [Ahead],
    pub out: Output,
    pub finish: Finish,
}

impl Routine for DotRows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let DotRows { vectors, runs, x, x_stride, next, w, start, ahead, out, finish } = self;
        for (row, rows) in tiles(out.rows, S::ROWS[vectors - 1]) {
            ahead.iter_mut().for_each(|ahead| ahead.ask(rows));
            // SAFETY: the promise of whoever made it, that of `dot`.
            unsafe {
                let first = row * out.stride;
                let finish = match finish {
                    Finish::Mask(mask) => Finish::Mask(mask.add(first)),
                    other => other,
                };
                let out = Output { y: out.y.add(first), rows, ..out };
                dot::<S>(vectors, runs, x.add(row * x_stride), x_stride, next, w, start, out, finish);
            }
        }
    }
}

/// [`outer`] of any number of rows, as a function of its own: a tile needs all registers.
pub(crate) struct OuterRows<'a> {
    pub vectors: usize,
    pub runs: &'a [Run],
    pub x: *const f32,
    pub x_stride: usize,
    pub w: *const f32,
    pub start: Start,
    pub out: Output,
}

impl Routine for OuterRows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let OuterRows { vectors, runs, x, x_stride, w, start, out } = self;
        for (row, rows) in tiles(out.rows, S::ROWS[vectors - 1]) {
            // SAFETY: the promise of whoever made it, that of `outer`.
            unsafe {
                let out = Output { y: out.y.add(row * out.stride), rows, ..out };
                outer::<S>(vectors, runs, x.add(row), x_stride, w, start, out);
            }
        }
    }
}

/// C[j][·] += Σ_runs Σ_c x[run.x + j·x_stride + c] · w[run.w + c·width + ·], `vectors` vectors wide, at most
/// `S::ROWS[vectors − 1]` rows. With `next`, for rows of x that lie one after the other, the rows after these are asked for on the
/// way: a few elements a step, which does not make the processor wait as asking for all of them at once does.
///
/// # Safety
/// All rows, runs and the output are within their arrays; the processor has `S`.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(
    vectors: usize,
    runs: &[Run],
    x: *const f32,
    x_stride: usize,
    next: bool,
    w: *const f32,
    start: Start,
    out: Output,
    finish: Finish,
) {
    macro_rules! pick {
        ($($kv:literal: $($nr:literal)*;)*) => {
            match (vectors, out.rows) {
                // SAFETY: passed on from the caller.
                $($(($kv, $nr) if $kv <= S::PANEL && $nr <= S::ROWS[$kv - 1] => unsafe {
                    dot_tile::<S, $kv, $nr>(runs, x, x_stride, next, w, start, out, finish)
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
    next: bool,
    w: *const f32,
    start: Start,
    out: Output,
    finish: Finish,
) {
    // SAFETY: the caller's promise; all offsets stay within the arrays that it describes.
    unsafe {
        let mut acc = begin::<S, KV, NR>(start);
        for run in runs {
            let mut wp = w.add(run.w);
            let xp = x.add(run.x);
            let (mut ahead, step) = if next { (xp.wrapping_add(NR * x_stride), NR) } else { (xp, 0) };
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
                prefetch(ahead);
                ahead = ahead.wrapping_add(step);
                wp = wp.add(KV * S::LANES);
            }
        }
        end::<S, KV, NR>(acc, start, out, finish);
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
                // SAFETY: passed on from the caller.
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
        let mut acc = begin::<S, KV, MR>(start);
        for run in runs {
            let mut wp = w.add(run.w);
            let mut xp = x.add(run.x);
            for _ in 0..run.len {
                let mut wv = [S::zero(); KV];
                for v in 0..KV {
                    wv[v] = S::load(wp.add(v * S::LANES));
                }
                // What the tile to the right of this one reads.
                prefetch(xp.wrapping_add(LINE));
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
        end::<S, KV, MR>(acc, start, out, Finish::Store);
    }
}

/// Most elements of a tile: 24 accumulators of 16 lanes.
const TILE: usize = 24 * 16;

/// The starting accumulators. Loops over them must unroll entirely, or the compiler keeps them in memory: hence one
/// plain loop nest a case, and partial panels by way of a buffer.
#[inline(always)]
unsafe fn begin<S: Simd, const KV: usize, const NR: usize>(start: Start) -> [[S::V; KV]; NR] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::zero(); KV]; NR];
        if let Start::Row(row) = start {
            for j in 0..NR {
                for v in 0..KV {
                    acc[j][v] = S::load(row.add(v * S::LANES));
                }
            }
        }
        acc
    }
}

/// Stores the accumulators; see [`begin`] on the form of the loops.
#[inline(always)]
unsafe fn end<S: Simd, const KV: usize, const NR: usize>(
    mut acc: [[S::V; KV]; NR],
    start: Start,
    out: Output,
    finish: Finish,
) {
    let width = KV * S::LANES;
    // SAFETY: the caller's promise; a partial panel is only read and written up to `valid`.
    unsafe {
        // Zeroed only where it is used: for every tile, that took 9 % of conv2's time (bench/records).
        let mut buffer = MaybeUninit::<[f32; TILE]>::uninit();
        let (y, stride) = if out.valid == width {
            (out.y, out.stride)
        } else {
            (buffer.write([0.0; TILE]).as_mut_ptr(), width)
        };
        if let Start::Output = start {
            if out.valid != width {
                copy_part(out.y, out.stride, y, width, NR, out.valid);
            }
            for j in 0..NR {
                for v in 0..KV {
                    acc[j][v] = S::add(S::load(y.add(j * stride + v * S::LANES)), acc[j][v]);
                }
            }
        }
        match finish {
            Finish::Store => {
                for j in 0..NR {
                    for v in 0..KV {
                        S::store(y.add(j * stride + v * S::LANES), acc[j][v]);
                    }
                }
            }
            Finish::Relu => {
                for j in 0..NR {
                    for v in 0..KV {
                        // In this order a NaN passes through.
                        S::store(y.add(j * stride + v * S::LANES), S::max(S::zero(), acc[j][v]));
                    }
                }
            }
            Finish::Mask(mask) => {
                let mut mask_buffer = [0.0f32; TILE];
                let (mask, mask_stride) = if out.valid == width {
                    (mask, out.stride)
                } else {
                    copy_part(mask, out.stride, mask_buffer.as_mut_ptr(), width, NR, out.valid);
                    (mask_buffer.as_ptr(), width)
                };
                for j in 0..NR {
                    for v in 0..KV {
                        let m = S::load(mask.add(j * mask_stride + v * S::LANES));
                        S::store(y.add(j * stride + v * S::LANES), S::where_positive(m, acc[j][v]));
                    }
                }
            }
        }
        if out.valid != width {
            copy_part(y, width, out.y, out.stride, NR, out.valid);
        }
    }
}

/// Copies `rows` rows of `len` elements between two strides.
#[inline(never)]
unsafe fn copy_part(
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
    rows: usize,
    len: usize,
) {
    for j in 0..rows {
        // SAFETY: the caller's promise that both have these rows.
        unsafe { std::ptr::copy_nonoverlapping(from.add(j * from_stride), to.add(j * to_stride), len) };
    }
}

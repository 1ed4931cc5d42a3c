//! Max and average pooling over square, possibly overlapping windows (paper §3.4), on maps (blocks, H, W, block, C). All
//! pictures and channels of a position are consecutive: windows are compared or added lane by lane.
//!
//! Max pooling records which element won, as a byte: the element's place in the window in row order. The gradient is
//! gathered: each input looks at the few windows that contain it, so that no two threads add to one element.

use crate::conv::Axis;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, for_vectors, prefetch};
use std::ops::Range;

/// The geometry of a pooling; `Axis::pad` is zero, and windows are clipped to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// H, P, window
    pub rows: Axis,
    /// W, Q, window
    pub columns: Axis,
    /// block · C: elements of one position.
    pub depth: usize,
}

impl Geometry {
    /// Elements of the input for `blocks` blocks.
    pub fn input_len(&self, blocks: usize) -> usize {
        blocks * self.rows.input * self.columns.input * self.depth
    }

    /// Elements of the output for `blocks` blocks.
    pub fn output_len(&self, blocks: usize) -> usize {
        blocks * self.rows.output * self.columns.output * self.depth
    }

    pub(crate) fn check(&self, blocks: usize, x: usize, y: usize) {
        assert!(x == self.input_len(blocks) && y == self.output_len(blocks), "maps");
        assert!(self.rows.kernel * self.columns.kernel <= 256, "a window is at most 16×16");
        assert!(self.rows.pad == 0 && self.columns.pad == 0, "pooling does not pad");
    }
}

/// y = max over each window of x; `winners`, if they are wanted, receive the place of the (first) maximum.
pub fn max_forward(ctx: &mut Context, g: &Geometry, x: &[f32], y: &mut [f32], winners: Option<&mut [u8]>) {
    let blocks = x.len() / g.input_len(1);
    g.check(blocks, x.len(), y.len());
    let largest = Largest::new(y, winners);
    ctx.run(&MaxForward { g: *g, blocks, x, largest });
}

struct MaxForward<'a> {
    g: Geometry,
    blocks: usize,
    x: &'a [f32],
    largest: Largest,
}

impl Kernel for MaxForward<'_> {
    fn units(&self) -> usize {
        self.blocks * self.g.rows.output
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Geometry { rows, columns, depth } = self.g;
        let (block, p) = (unit / rows.output, unit % rows.output);
        let mut window = Window::new();
        for q in 0..columns.output {
            window.find(&self.g, p, q, |h, w| {
                let at = ((block * rows.input + h) * columns.input + w) * depth;
                // The next window's elements, as far as this one has not them already.
                let ahead = if w + 1 == columns.input { 0 } else { columns.stride * depth };
                (self.x[at..].as_ptr(), ahead)
            });
            let out = ((block * rows.output + p) * columns.output + q) * depth;
            // SAFETY: the window is within x; this unit owns row p of the block in y and in the winners.
            unsafe { self.largest.of::<S>(&window, depth, out) };
        }
    }
}

/// Most places of a window.
const MOST_PLACES: usize = 256;

/// The positions of a window.
pub(crate) struct Window {
    /// Where the elements of each begin, its place in the window in row order, and how far ahead to ask for memory.
    positions: [(*const f32, f32, usize); MOST_PLACES],
    used: usize,
}

impl Window {
    pub(crate) fn new() -> Window {
        Window { positions: [(std::ptr::null(), 0.0, 0); MOST_PLACES], used: 0 }
    }

    /// Finds window (p, q), clipped to the map; `at` says where a position's elements begin.
    #[inline(always)]
    pub(crate) fn find(
        &mut self,
        g: &Geometry,
        p: usize,
        q: usize,
        at: impl Fn(usize, usize) -> (*const f32, usize),
    ) {
        let inside = |axis: Axis, o: usize| 0..axis.kernel.min(axis.input.saturating_sub(o * axis.stride));
        self.used = 0;
        for r in inside(g.rows, p) {
            for s in inside(g.columns, q) {
                let (from, ahead) = at(p * g.rows.stride + r, q * g.columns.stride + s);
                self.positions[self.used] = (from, (r * g.columns.kernel + s) as f32, ahead);
                self.used += 1;
            }
        }
    }
}

/// Where the largest element of each window goes, and its place.
#[derive(Clone, Copy)]
pub(crate) struct Largest {
    y: Ptr,
    /// Address of the winners, or 0.
    winners: usize,
}

impl Largest {
    pub(crate) fn new(y: &mut [f32], winners: Option<&mut [u8]>) -> Largest {
        assert!(winners.as_ref().is_none_or(|winners| winners.len() == y.len()), "winners");
        Largest { winners: winners.map_or(0, |winners| winners.as_mut_ptr() as usize), y: Ptr::from_mut(y) }
    }

    /// The largest of `len` elements of a window, to y and the winners from `out` on.
    ///
    /// # Safety
    /// The window has them; the caller owns these outputs; the processor has `S`.
    #[inline(always)]
    pub(crate) unsafe fn of<S: Simd>(&self, window: &Window, len: usize, out: usize) {
        // SAFETY: passed on from the caller.
        unsafe {
            if self.winners == 0 {
                self.vectors_of::<S, false>(window, len, out);
            } else {
                self.vectors_of::<S, true>(window, len, out);
            }
        }
    }

    #[inline(always)]
    unsafe fn vectors_of<S: Simd, const RECORD: bool>(&self, window: &Window, len: usize, out: usize) {
        /// Vectors side by side, to hide the latency of comparisons.
        const TOGETHER: usize = 4;
        let mut c = 0;
        // SAFETY: passed on from the caller.
        unsafe {
            while c + TOGETHER * S::LANES <= len {
                self.some_of::<S, RECORD, TOGETHER>(window, c, out);
                c += TOGETHER * S::LANES;
            }
            while c + S::LANES <= len {
                self.some_of::<S, RECORD, 1>(window, c, out);
                c += S::LANES;
            }
            for c in c..len {
                let (mut best, mut place) = (f32::NEG_INFINITY, 0.0);
                for &(x, this, _) in &window.positions[..window.used] {
                    let x = *x.add(c);
                    if x > best || x.is_nan() {
                        (best, place) = (x, this);
                    }
                }
                *self.y.at(out + c) = best;
                if RECORD {
                    *(self.winners as *mut u8).add(out + c) = place as u8;
                }
            }
        }
    }

    /// `N` vectors from element `c` on. Where x is larger than the best so far, it is the best; a NaN is never passed over.
    #[inline(always)]
    unsafe fn some_of<S: Simd, const RECORD: bool, const N: usize>(
        &self,
        window: &Window,
        c: usize,
        out: usize,
    ) {
        // SAFETY: passed on from the caller.
        unsafe {
            let (mut best, mut place) = ([S::splat(f32::NEG_INFINITY); N], [S::zero(); N]);
            for &(x, this, ahead) in &window.positions[..window.used] {
                let this = S::splat(this);
                for v in 0..N {
                    let x = x.add(c + v * S::LANES);
                    if ahead > 0 {
                        prefetch(x.wrapping_add(ahead));
                    }
                    let x = S::load(x);
                    if RECORD {
                        place[v] = S::where_larger(x, best[v], this, place[v]);
                    }
                    best[v] = S::where_larger(x, best[v], x, best[v]);
                }
            }
            for v in 0..N {
                let at = out + c + v * S::LANES;
                S::store(self.y.at(at), best[v]);
                if RECORD {
                    S::store_numbers((self.winners as *mut u8).add(at), place[v]);
                }
            }
        }
    }
}

/// y = mean over each window of x, clipped to the map.
pub fn average_forward(ctx: &mut Context, g: &Geometry, x: &[f32], y: &mut [f32]) {
    let blocks = x.len() / g.input_len(1);
    g.check(blocks, x.len(), y.len());
    let (rows, columns, depth) = (g.rows, g.columns, g.depth);
    ctx.for_each_chunk(y, columns.output * depth, |unit, y| {
        let (block, p) = (unit / rows.output, unit % rows.output);
        let h0 = p * rows.stride;
        let h1 = (h0 + rows.kernel).min(rows.input);
        for (q, y) in y.chunks_exact_mut(depth).enumerate() {
            let w0 = q * columns.stride;
            let w1 = (w0 + columns.kernel).min(columns.input);
            y.fill(0.0);
            for h in h0..h1 {
                for w in w0..w1 {
                    let at = ((block * rows.input + h) * columns.input + w) * depth;
                    y.iter_mut().zip(&x[at..at + depth]).for_each(|(y, x)| *y += x);
                }
            }
            let area = 1.0 / ((h1 - h0) * (w1 - w0)) as f32;
            y.iter_mut().for_each(|y| *y *= area);
        }
    });
}

/// Which elements of a window receive the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub enum Share<'a> {
    /// The recorded winner (Caffe, PyTorch).
    Winner(&'a [u8]),
    /// Every element that equals the output y, in full (cuda-convnet).
    EveryMaximum {
        /// The input of the forward pass.
        x: &'a [f32],
        /// Its output.
        y: &'a [f32],
    },
    /// Every element, divided by the clipped window's area.
    Mean,
}

/// dx gathered from dy. With `relu`, dx is zero where that (the input, as it came out of a ReLU) is not positive.
pub fn backward(
    ctx: &mut Context,
    g: &Geometry,
    share: Share,
    dy: &[f32],
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    let blocks = dx.len() / g.input_len(1);
    g.check(blocks, dx.len(), dy.len());
    match share {
        Share::Winner(winner) => assert_eq!(winner.len(), dy.len(), "winners"),
        Share::EveryMaximum { x, y } => assert!(x.len() == dx.len() && y.len() == dy.len(), "maps"),
        Share::Mean => {}
    }
    assert!(relu.is_none_or(|a| a.len() == dx.len()), "activation");
    ctx.run(&Backward { g: *g, blocks, share, dy, relu, dx: Ptr::from_mut(dx) });
}

struct Backward<'a> {
    g: Geometry,
    blocks: usize,
    share: Share<'a>,
    dy: &'a [f32],
    relu: Option<&'a [f32]>,
    dx: Ptr,
}

/// Windows along one axis that contain position `i`: (window, place of i in it).
#[inline(always)]
pub(crate) fn windows_of(axis: Axis, i: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = (i + 1).saturating_sub(axis.kernel).div_ceil(axis.stride);
    (first..axis.output)
        .map(move |o| (o, i.wrapping_sub(o * axis.stride)))
        .take_while(move |&(o, _)| o * axis.stride <= i)
}

impl Kernel for Backward<'_> {
    fn units(&self) -> usize {
        self.blocks * self.g.rows.input
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Geometry { rows, columns, depth } = self.g;
        let (block, h) = (unit / rows.input, unit % rows.input);
        for w in 0..columns.input {
            let at = ((block * rows.input + h) * columns.input + w) * depth;
            // SAFETY: this unit owns row h of the block in dx, whose length was checked, as were the others'.
            unsafe {
                let (dx, x) = (
                    self.dx.at(at),
                    match self.share {
                        Share::EveryMaximum { x, .. } => x[at..].as_ptr(),
                        _ => std::ptr::null(),
                    },
                );
                gather::<S>(&self.g, self.share, self.dy, block, [h, w], 0..depth, x, dx);
                if let Some(a) = self.relu {
                    for_vectors!(S, depth, |c, n| {
                        let (a, sum) = (S::load_part(a.as_ptr().add(at + c), n), S::load_part(dx.add(c), n));
                        S::store_part(dx.add(c), S::where_positive(a, sum), n);
                    });
                }
            }
        }
    }
}

/// What the `elements` of position (h, w) of a block receive from the windows that contain it, to `to`. `x` are these elements, which
/// [`Share::EveryMaximum`] compares.
///
/// # Safety
/// The maps have the position and its windows, `to` the elements; the processor has `S`.
#[inline(always)]
pub(crate) unsafe fn gather<S: Simd>(
    g: &Geometry,
    share: Share,
    dy: &[f32],
    block: usize,
    [h, w]: [usize; 2],
    elements: Range<usize>,
    x: *const f32,
    to: *mut f32,
) {
    let Geometry { rows, columns, depth } = *g;
    // SAFETY: passed on from the caller.
    unsafe {
        std::ptr::write_bytes(to, 0, elements.len());
        for (p, r) in windows_of(rows, h) {
            for (q, s) in windows_of(columns, w) {
                let out = ((block * rows.output + p) * columns.output + q) * depth + elements.start;
                let dy = dy.as_ptr().add(out);
                match share {
                    Share::Winner(winners) => {
                        let (winners, this) =
                            (winners.as_ptr().add(out), S::splat((r * columns.kernel + s) as f32));
                        for_vectors!(S, elements.len(), |c, n| {
                            let winner = S::load_numbers_part(winners.add(c), n);
                            let won = S::where_equal(winner, this, S::load_part(dy.add(c), n));
                            S::store_part(to.add(c), S::add(S::load_part(to.add(c), n), won), n);
                        });
                    }
                    Share::EveryMaximum { y, .. } => {
                        let y = y.as_ptr().add(out);
                        for_vectors!(S, elements.len(), |c, n| {
                            let (x, y) = (S::load_part(x.add(c), n), S::load_part(y.add(c), n));
                            let won = S::where_equal(x, y, S::load_part(dy.add(c), n));
                            S::store_part(to.add(c), S::add(S::load_part(to.add(c), n), won), n);
                        });
                    }
                    Share::Mean => {
                        let height = rows.kernel.min(rows.input - p * rows.stride);
                        let width = columns.kernel.min(columns.input - q * columns.stride);
                        let part = S::splat(1.0 / (height * width) as f32);
                        for_vectors!(S, elements.len(), |c, n| {
                            let sum = S::fma(part, S::load_part(dy.add(c), n), S::load_part(to.add(c), n));
                            S::store_part(to.add(c), sum, n);
                        });
                    }
                }
            }
        }
    }
}

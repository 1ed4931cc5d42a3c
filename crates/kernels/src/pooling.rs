//! Max and average pooling over square, possibly overlapping windows (paper §3.4), on maps (blocks, H, W, block, C). All
//! pictures and channels of a position are consecutive: windows are compared or added lane by lane.
//!
//! Max pooling records which element won, as a byte: the element's place in the window in row order. The gradient is
//! gathered: each input looks at the few windows that contain it, so that no two threads add to one element.

use crate::conv::Axis;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

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

    fn check(&self, blocks: usize, x: usize, y: usize) {
        assert!(x == self.input_len(blocks) && y == self.output_len(blocks), "maps");
        assert!(self.rows.kernel * self.columns.kernel <= 256, "a window is at most 16×16");
        assert!(self.rows.pad == 0 && self.columns.pad == 0, "pooling does not pad");
    }
}

/// Lanes that are handled together: enough to hide latencies, few enough to stay in registers.
const LANES: usize = 64;

/// y = max over each window of x; `winner` receives the place of the (first) maximum.
pub fn max_forward(ctx: &mut Context, g: &Geometry, x: &[f32], y: &mut [f32], winner: &mut [u8]) {
    let blocks = x.len() / g.input_len(1);
    g.check(blocks, x.len(), y.len());
    assert_eq!(winner.len(), y.len(), "winners");
    let winner = winner.as_mut_ptr() as usize;
    ctx.run(&MaxForward { g: *g, blocks, x, y: Ptr::from_mut(y), winner });
}

struct MaxForward<'a> {
    g: Geometry,
    blocks: usize,
    x: &'a [f32],
    y: Ptr,
    /// Address of the winners.
    winner: usize,
}

impl Kernel for MaxForward<'_> {
    fn units(&self) -> usize {
        self.blocks * self.g.rows.output
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Geometry { rows, columns, depth } = self.g;
        let (block, p) = (unit / rows.output, unit % rows.output);
        let h0 = p * rows.stride;
        let h1 = (h0 + rows.kernel).min(rows.input);
        for q in 0..columns.output {
            let w0 = q * columns.stride;
            let w1 = (w0 + columns.kernel).min(columns.input);
            let out = ((block * rows.output + p) * columns.output + q) * depth;
            let mut first = 0;
            while first < depth {
                let n = LANES.min(depth - first);
                let mut best = [f32::NEG_INFINITY; LANES];
                let mut place = [0u8; LANES];
                for h in h0..h1 {
                    for w in w0..w1 {
                        let at = ((block * rows.input + h) * columns.input + w) * depth + first;
                        let x = &self.x[at..at + n];
                        let this = ((h - h0) * columns.kernel + (w - w0)) as u8;
                        if n == LANES {
                            take_larger(&mut best, &mut place, x, this);
                        } else {
                            take_larger(&mut best[..n], &mut place[..n], x, this);
                        }
                    }
                }
                // SAFETY: this unit owns row p of the block in y and in the winners, whose lengths were checked.
                unsafe {
                    std::ptr::copy_nonoverlapping(best.as_ptr(), self.y.at(out + first), n);
                    std::ptr::copy_nonoverlapping(
                        place.as_ptr(),
                        (self.winner as *mut u8).add(out + first),
                        n,
                    );
                }
                first += n;
            }
        }
    }
}

/// Where x is larger than the best so far, it is the best; a NaN is never passed over.
#[inline(always)]
fn take_larger(best: &mut [f32], place: &mut [u8], x: &[f32], this: u8) {
    for ((best, place), &x) in best.iter_mut().zip(place).zip(x) {
        let larger = x > *best || x.is_nan();
        *best = if larger { x } else { *best };
        *place = if larger { this } else { *place };
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
            let mut first = 0;
            while first < depth {
                let n = LANES.min(depth - first);
                let mut sum = [0.0f32; LANES];
                for (p, r) in windows_of(rows, h) {
                    for (q, s) in windows_of(columns, w) {
                        let out = ((block * rows.output + p) * columns.output + q) * depth + first;
                        let dy = &self.dy[out..out + n];
                        match self.share {
                            Share::Winner(winner) => {
                                let (winner, this) = (&winner[out..out + n], (r * columns.kernel + s) as u8);
                                if n == LANES {
                                    add_won(&mut sum, dy, winner, this);
                                } else {
                                    add_won(&mut sum[..n], dy, winner, this);
                                }
                            }
                            Share::EveryMaximum { x, y } => {
                                let (x, y) = (&x[at + first..at + first + n], &y[out..out + n]);
                                for (((sum, dy), x), y) in sum.iter_mut().zip(dy).zip(x).zip(y) {
                                    *sum += if x == y { *dy } else { 0.0 };
                                }
                            }
                            Share::Mean => {
                                let height = rows.kernel.min(rows.input - p * rows.stride);
                                let width = columns.kernel.min(columns.input - q * columns.stride);
                                let area = 1.0 / (height * width) as f32;
                                sum.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy * area);
                            }
                        }
                    }
                }
                if let Some(a) = self.relu {
                    let a = &a[at + first..at + first + n];
                    sum.iter_mut().zip(a).for_each(|(sum, a)| *sum = if *a > 0.0 { *sum } else { 0.0 });
                }
                // SAFETY: this unit owns row h of the block in dx, whose length was checked.
                unsafe { std::ptr::copy_nonoverlapping(sum.as_ptr(), self.dx.at(at + first), n) };
                first += n;
            }
        }
    }
}

#[inline(always)]
fn add_won(sum: &mut [f32], dy: &[f32], winner: &[u8], this: u8) {
    for ((sum, dy), winner) in sum.iter_mut().zip(dy).zip(winner) {
        *sum += if *winner == this { *dy } else { 0.0 };
    }
}

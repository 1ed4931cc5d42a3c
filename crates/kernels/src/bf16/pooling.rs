//! Max pooling on bf16 maps (see [`crate::pooling`]): the first maximum of a window wins, its place is recorded as a byte,
//! and the gradient is gathered.

use super::{MapLayout, PICTURES, pairs};
use crate::conv::Axis;
use crate::parallel::{Context, Kernel, Ptr};
use crate::pooling::windows_of;
use crate::simd::Simd;

/// The geometry of a pooling; `Axis::pad` is zero, and windows are clipped to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// x
    pub input: MapLayout,
    /// y, whose channels may be split otherwise.
    pub output: MapLayout,
    /// H, P, window
    pub rows: Axis,
    /// W, Q, window
    pub columns: Axis,
}

impl Geometry {
    fn check(&self, blocks: usize, x: usize, y: usize, winner: usize) {
        assert!(x >= blocks * self.input.block_len() && y >= blocks * self.output.block_len(), "maps");
        assert!(winner >= 2 * blocks * self.output.block_len(), "winners");
        assert_eq!(self.input.channels, self.output.channels, "channels");
        assert!(self.rows.kernel * self.columns.kernel <= 256, "a window is at most 16×16");
        assert!(self.rows.pad == 0 && self.columns.pad == 0, "pooling does not pad");
        // A pair of one map is a pair of the other.
        let even = |map: &MapLayout| map.splits == 1 || map.split_channels().is_multiple_of(2);
        let (x, y) = (&self.input, &self.output);
        assert!(x.splits == y.splits || even(x) && even(y), "splits of an odd number of channels");
    }

    /// Where channel pair `p`, counted over all splits, lies within a block at the origin; any position is
    /// `MapLayout::at(0, h, w)` further on.
    #[inline(always)]
    fn at(map: &MapLayout, p: usize) -> usize {
        map.at(p / map.split_pairs(), 0, 0) + p % map.split_pairs() * PICTURES
    }

    /// Channel pairs over all splits.
    fn pairs(&self) -> usize {
        self.input.splits * self.input.split_pairs()
    }
}

/// y = max over each window of x; `winner` receives the place of the (first) maximum, a byte for each half of each pair.
pub fn max_forward(
    ctx: &mut Context,
    g: &Geometry,
    blocks: usize,
    x: &[f32],
    y: &mut [f32],
    winner: &mut [u8],
) {
    g.check(blocks, x.len(), y.len(), winner.len());
    let winner = winner.as_mut_ptr() as usize;
    ctx.run(&MaxForward { g: *g, blocks, x: pairs(x), y: Ptr::from_mut(y), winner });
}

struct MaxForward<'a> {
    g: Geometry,
    blocks: usize,
    x: &'a [u32],
    y: Ptr,
    /// Address of the winners.
    winner: usize,
}

impl Kernel for MaxForward<'_> {
    /// Rows of y.
    fn units(&self) -> usize {
        self.blocks * self.g.rows.output
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Geometry { input, output, rows, columns } = self.g;
        let (block, p) = (unit / rows.output, unit % rows.output);
        let h0 = p * rows.stride;
        let h1 = (h0 + rows.kernel).min(rows.input);
        for q in 0..columns.output {
            let w0 = q * columns.stride;
            let w1 = (w0 + columns.kernel).min(columns.input);
            for pair in 0..self.g.pairs() {
                let from = block * input.block_len() + Geometry::at(&input, pair);
                let mut best = [i16::MIN; HALVES];
                let mut winner = [0i16; HALVES];
                for h in h0..h1 {
                    for w in w0..w1 {
                        let at = from + input.at(0, h, w);
                        let place = ((h - h0) * columns.kernel + (w - w0)) as i16;
                        for (n, &x) in halves(&self.x[at..at + PICTURES]).iter().enumerate() {
                            let key = key(x);
                            winner[n] = if key > best[n] { place } else { winner[n] };
                            best[n] = best[n].max(key);
                        }
                    }
                }
                let out = block * output.block_len() + Geometry::at(&output, pair) + output.at(0, p, q);
                // SAFETY: this unit owns row p of the block in y and in the winners, whose lengths were checked.
                unsafe {
                    self.y.at(out).cast::<[i16; HALVES]>().write_unaligned(best.map(value_of));
                    let to = (self.winner as *mut u8).add(2 * out).cast::<[u8; HALVES]>();
                    to.write_unaligned(winner.map(|place| place as u8));
                }
            }
        }
    }
}

/// Windows that hold one position: all of 16×16 at most.
const MOST_WINDOWS: usize = 256;

/// Values of 32 pairs.
const HALVES: usize = 2 * PICTURES;

/// The bits of the values of 32 pairs: even channel and odd channel of a picture, then of the next.
#[inline(always)]
fn halves(pairs: &[u32]) -> &[i16; HALVES] {
    const { assert!(cfg!(target_endian = "little"), "the even channel comes first in memory") };
    assert_eq!(pairs.len(), PICTURES);
    // SAFETY: 64 halves are the bytes of 32 pairs, with a smaller alignment, and have no invalid bits.
    unsafe { &*pairs.as_ptr().cast() }
}

/// An integer that orders as the bf16 with these bits does. Negative numbers have their magnitude's bits turned round. A
/// NaN is larger than any number, so that it is not passed over.
#[inline(always)]
fn key(bits: i16) -> i16 {
    let bits = if bits & 0x7fff > 0x7f80 { bits & 0x7fff } else { bits };
    value_of(bits)
}

/// The bits of a key; and the key of the bits of a number.
#[inline(always)]
fn value_of(key: i16) -> i16 {
    key ^ ((key >> 15) & 0x7fff)
}

/// Which elements of a window receive the gradient of its maximum.
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
}

/// dx gathered from dy: each input receives the gradients of the windows whose maximum it is. With `relu`, dx is zero where
/// that (the input, as it came out of a ReLU) is not positive.
pub fn max_backward(
    ctx: &mut Context,
    g: &Geometry,
    blocks: usize,
    dy: &[f32],
    share: Share,
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    g.check(blocks, dx.len(), dy.len(), usize::MAX);
    match share {
        Share::Winner(winner) => assert!(winner.len() >= 2 * blocks * g.output.block_len(), "winners"),
        Share::EveryMaximum { x, y } => g.check(blocks, x.len(), y.len(), usize::MAX),
    }
    assert!(relu.is_none_or(|x| x.len() >= blocks * g.input.block_len()), "activation");
    ctx.run(&MaxBackward {
        g: *g,
        blocks,
        dy: pairs(dy),
        share,
        relu: relu.map(pairs),
        dx: Ptr::from_mut(dx),
    });
}

struct MaxBackward<'a> {
    g: Geometry,
    blocks: usize,
    dy: &'a [u32],
    share: Share<'a>,
    relu: Option<&'a [u32]>,
    dx: Ptr,
}

impl Kernel for MaxBackward<'_> {
    /// Rows of one split of one block of x.
    fn units(&self) -> usize {
        self.blocks * self.g.input.splits * self.g.input.height
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Geometry { input, output, rows, columns } = self.g;
        let (h, split, block) =
            (unit % input.height, unit / input.height % input.splits, unit / input.height / input.splits);
        // The windows that hold a position: where each writes, and the position's place in it.
        let mut windows = [(0usize, 0u8); MOST_WINDOWS];
        for w in 0..input.width {
            let mut count = 0;
            for (p, r) in windows_of(rows, h) {
                for (q, s) in windows_of(columns, w) {
                    windows[count] = (output.at(0, p, q), (r * columns.kernel + s) as u8);
                    count += 1;
                }
            }
            for p in 0..input.split_pairs() {
                let to = block * output.block_len() + Geometry::at(&output, split * input.split_pairs() + p);
                let at = block * input.block_len() + input.at(split, h, w) + p * PICTURES;
                let mut sums = [[0.0f32; PICTURES]; 2];
                for &(position, this) in &windows[..count] {
                    let out = to + position;
                    let dy: &[u32; PICTURES] = self.dy[out..out + PICTURES].try_into().expect("32 pairs");
                    match self.share {
                        Share::Winner(winner) => {
                            let winner = &winner[2 * out..2 * out + HALVES];
                            let mut won = *halves(dy);
                            for (dy, &place) in won.iter_mut().zip(winner) {
                                *dy = if place == this { *dy } else { 0 };
                            }
                            // SAFETY: 32 pairs are the bytes of 64 halves.
                            let won = unsafe { std::mem::transmute::<[i16; HALVES], [u32; PICTURES]>(won) };
                            add_where(&mut sums, &won, |_| true, |_| true);
                        }
                        Share::EveryMaximum { x, y } => {
                            let (x, y) = (&pairs(x)[at..at + PICTURES], &pairs(y)[out..out + PICTURES]);
                            let equal = |a: u32, b: u32| f32::from_bits(a) == f32::from_bits(b);
                            add_where(
                                &mut sums,
                                dy,
                                |n| equal(x[n] << 16, y[n] << 16),
                                |n| equal(x[n] & 0xffff_0000, y[n] & 0xffff_0000),
                            );
                        }
                    }
                }
                // SAFETY: this unit owns row h of the split of the block in dx, whose length was checked; sums hold 32
                // pictures, whole vectors.
                unsafe {
                    for n in (0..PICTURES).step_by(S::LANES) {
                        let [mut even, mut odd] = [0, 1].map(|half| S::load(sums[half].as_ptr().add(n)));
                        if let Some(x) = self.relu {
                            let (x_even, x_odd) = S::load_pairs(x.as_ptr().add(at + n));
                            even = S::where_positive(x_even, even);
                            odd = S::where_positive(x_odd, odd);
                        }
                        S::store_pairs(self.dx.at(at + n).cast(), even, odd);
                    }
                }
            }
        }
    }
}

/// Adds the halves of dy to the sums of the pictures that they go to.
#[inline(always)]
fn add_where(
    sums: &mut [[f32; PICTURES]; 2],
    dy: &[u32; PICTURES],
    even: impl Fn(usize) -> bool,
    odd: impl Fn(usize) -> bool,
) {
    for n in 0..PICTURES {
        sums[0][n] += if even(n) { f32::from_bits(dy[n] << 16) } else { 0.0 };
    }
    for n in 0..PICTURES {
        sums[1][n] += if odd(n) { f32::from_bits(dy[n] & 0xffff_0000) } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::round;

    #[test]
    fn keys_order_as_the_numbers_do() {
        let values = [f32::NEG_INFINITY, -2.0, -1.0, -0.0, 0.0, 1e-30, 1.0, 2.0, f32::INFINITY, f32::NAN];
        let bits = |v: f32| round(v) as i16;
        let keys: Vec<i16> = values.iter().map(|v| key(bits(*v))).collect();
        assert!(keys.is_sorted() && keys[0] > i16::MIN);
        assert!(key(bits(-f32::NAN)) > key(bits(f32::INFINITY)));
        for v in values {
            assert_eq!(value_of(key(bits(v))), bits(v), "{v}");
        }
    }
}

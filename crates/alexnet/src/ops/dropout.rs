//! Dropout (paper §4.2). While training each element is set to zero with probability `rate`. Then
//!
//! | | training, kept element | test time |
//! |---|---|---|
//! | as in 2012 | y = x | y = x·(1 − rate) |
//! | inverted (Caffe, PyTorch) | y = x / (1 − rate) | y = x |
//!
//! Which elements are dropped is a function of (seed, step, layer, element), so that any executor, in any order of
//! work, drops the same ones.

use super::Real;
use crate::net::Dropout;
use crate::rng::{Purpose, Stream};

/// Which elements one layer drops in one step.
#[derive(Clone, Debug)]
pub struct Mask {
    stream: Stream,
    /// An element is kept if its 32 random bits are at least this.
    threshold: u64,
}

impl Mask {
    /// The mask of layer number `layer` of the network in step `step` of the run with this seed.
    pub fn new(rate: f64, seed: u64, step: u64, layer: usize) -> Self {
        let threshold = (rate * (1u64 << 32) as f64).ceil() as u64;
        Mask { stream: Stream::new(seed, Purpose::Dropout, step, layer as u64), threshold }
    }

    /// Whether element number `i` of the batch, in (N, C, H, W) order, is kept: its 32 random bits, as a fraction
    /// of 2³², are not below the rate.
    pub fn keeps(&self, i: usize) -> bool {
        u64::from(self.stream.at(i as u64)) >= self.threshold
    }

    /// [`Mask::keeps`] of elements 4·`quad` to 4·`quad` + 3, which share one draw.
    pub fn keeps_four(&self, quad: usize) -> [bool; 4] {
        self.stream.block_at(quad as u64).map(|bits| u64::from(bits) >= self.threshold)
    }
}

impl Mask {
    /// [`Mask::keeps_four`] of several fours: for each of the four elements, all ones in the lanes that keep it.
    #[inline(always)]
    pub fn keeps_fours<const N: usize>(&self, quads: [u64; N]) -> [[u32; N]; 4] {
        // Bits of 32 are at least a threshold of 33 if they are above the one before it; of threshold 0 all are.
        let (above, all) = (self.threshold.saturating_sub(1) as u32, self.threshold == 0);
        let mut bits = self.stream.blocks_at(quads);
        for word in &mut bits {
            for bits in word {
                *bits = if *bits > above || all { u32::MAX } else { 0 };
            }
        }
        bits
    }
}

/// What multiplies a kept element while training.
pub fn scale<T: Real>(dropout: &Dropout) -> T {
    if dropout.inverted { T::of(1.0 / (1.0 - dropout.rate)) } else { T::one() }
}

/// Training: kept elements pass, scaled if the dropout is inverted; the others become zero.
pub fn forward<T: Real>(
    dropout: &Dropout,
    mask: &Mask,
    x: &[T],     // (N, C, H, W)
    y: &mut [T], // (N, C, H, W)
) {
    assert_eq!(x.len(), y.len(), "x and y differ in shape");
    let scale = scale(dropout);
    for (quad, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
        for ((y, &x), keep) in y.iter_mut().zip(x).zip(mask.keeps_four(quad)) {
            *y = if keep { x * scale } else { T::zero() };
        }
    }
}

/// Test time: everything passes, scaled unless the dropout is inverted.
pub fn forward_test<T: Real>(
    dropout: &Dropout,
    x: &[T],     // (N, C, H, W)
    y: &mut [T], // (N, C, H, W)
) {
    assert_eq!(x.len(), y.len(), "x and y differ in shape");
    let scale = if dropout.inverted { T::one() } else { T::of(1.0 - dropout.rate) };
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * scale;
    }
}

/// The gradient with respect to the input: that of the elements kept, scaled as they were.
pub fn backward<T: Real>(
    dropout: &Dropout,
    mask: &Mask,
    dy: &[T],     // (N, C, H, W)
    dx: &mut [T], // (N, C, H, W)
) {
    forward(dropout, mask, dy, dx);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    const PLAIN: Dropout = Dropout { rate: 0.5, inverted: false };
    const INVERTED: Dropout = Dropout { rate: 0.2, inverted: true };

    #[test]
    fn the_two_conventions() {
        let x = [3.0f64; 40];
        for (dropout, kept, test) in [(PLAIN, 3.0, 1.5), (INVERTED, 3.75, 3.0)] {
            let mask = Mask::new(dropout.rate, 7, 11, 3);
            let mut y = [f64::NAN; 40];
            forward(&dropout, &mask, &x, &mut y);
            for (i, y) in y.into_iter().enumerate() {
                assert_eq!(y, if mask.keeps(i) { kept } else { 0.0 });
            }
            assert!(y.contains(&0.0) && y.contains(&kept));
            forward_test(&dropout, &x, &mut y);
            assert_eq!(y, [test; 40]);
        }
    }

    #[test]
    fn fours_side_by_side_are_the_same_draws() {
        for rate in [0.0, 1e-12, 0.3, 0.5, 1.0 - 1e-12] {
            let mask = Mask::new(rate, 3, 5, 1);
            let quads: [u64; 7] = std::array::from_fn(|n| n as u64 * 0x3000_0001);
            let keeps = mask.keeps_fours(quads);
            for (n, &quad) in quads.iter().enumerate() {
                let want = mask.keeps_four(quad as usize).map(|keep| if keep { u32::MAX } else { 0 });
                assert_eq!(std::array::from_fn(|word| keeps[word][n]), want, "{rate} {quad}");
            }
        }
    }

    #[test]
    fn masks_follow_their_definition_and_differ_by_step_layer_and_seed() {
        let stream = Stream::new(9, Purpose::Dropout, 4, 2);
        let bits = |mask: &Mask| (0..256).map(|i| mask.keeps(i)).collect::<Vec<_>>();
        let mask = bits(&Mask::new(0.5, 9, 4, 2));
        assert!((0..256).all(|i| mask[i] == (stream.at(i as u64) >> 31 == 1)));
        let fours = Mask::new(0.5, 9, 4, 2);
        assert!((0..64).all(|quad| fours.keeps_four(quad)[..] == mask[4 * quad..4 * quad + 4]));
        for other in [Mask::new(0.5, 8, 4, 2), Mask::new(0.5, 9, 5, 2), Mask::new(0.5, 9, 4, 3)] {
            assert_ne!(mask, bits(&other));
        }
    }

    #[test]
    fn the_rate_is_kept() {
        for rate in [0.0, 0.1, 0.5, 0.9] {
            let mask = Mask::new(rate, 1, 0, 0);
            let n = 100_000;
            let dropped = (0..n).filter(|&i| !mask.keeps(i)).count() as f64 / n as f64;
            // Five standard errors.
            assert!(
                (dropped - rate).abs() <= 5.0 * (rate * (1.0 - rate) / n as f64).sqrt(),
                "{rate}: {dropped}"
            );
        }
    }

    #[test]
    fn gradients() {
        for dropout in [PLAIN, INVERTED] {
            let mask = Mask::new(dropout.rate, 3, 1, 0);
            let (x, dy) = (check::uniform(0, 50), check::uniform(1, 50));
            let mut dx = vec![f64::NAN; 50];
            backward(&dropout, &mask, &dy, &mut dx);
            check::gradient("dx", &x, &dx, |x| {
                let mut y = vec![f64::NAN; 50];
                forward(&dropout, &mask, x, &mut y);
                check::dot(&y, &dy)
            });
        }
    }
}

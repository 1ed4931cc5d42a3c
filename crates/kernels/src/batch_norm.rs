//! Batch normalization: y = (x − m)·γ/√(v + ε) + β for each channel, with its statistics and gradients.
//!
//! Maps are rows of channels: (blocks, H·W, block, C), a row for each picture at each position; (N, C) is the same with
//! one position. Sums over rows are taken in units of fixed size and added in f64 in the order of the units, so that they
//! do not depend on the number of threads. Rows of pictures of weight 0 (unreadable ones, and those that fill a block up)
//! are not looked at by any sum.

use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, vectors};

/// Where a row's picture and channels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// C
    pub channels: usize,
    /// Pictures in a block.
    pub block: usize,
    /// H·W
    pub positions: usize,
}

/// Rows of a unit: with 96 channels 96 KiB, which stay in L2 between the two passes over them.
const UNIT: usize = 256;

impl Rows {
    /// The picture of a row.
    #[inline(always)]
    fn picture(&self, row: usize) -> usize {
        row / (self.block * self.positions) * self.block + row % self.block
    }

    /// The weights of a unit's rows.
    #[inline(always)]
    fn weights_of(&self, unit: usize, rows: usize, weights: &[f32]) -> ([f32; UNIT], usize) {
        let mut of_rows = [0.0; UNIT];
        let count = UNIT.min(rows - unit * UNIT);
        for (i, weight) in of_rows[..count].iter_mut().enumerate() {
            *weight = weights[self.picture(unit * UNIT + i)];
        }
        (of_rows, count)
    }

    /// Elements of `partials` for maps of `len` elements.
    pub fn partials_len(&self, len: usize) -> usize {
        (len / self.channels).div_ceil(UNIT) * self.partial()
    }

    /// Two sums for each channel, and the weight of the unit's rows.
    fn partial(&self) -> usize {
        2 * self.channels + 1
    }

    fn check(&self, x: &[f32], weights: &[f32]) -> usize {
        assert!(self.channels > 0 && x.len().is_multiple_of(self.channels), "maps");
        let rows = x.len() / self.channels;
        assert!(rows == 0 || self.picture(rows - 1) < weights.len(), "one weight a picture");
        rows
    }
}

/// Mean and variance (divided by the weight) of each channel over the rows, by the weights of their pictures. Returns the
/// weight of all rows.
pub fn statistics(
    ctx: &mut Context,
    shape: Rows,
    x: &[f32],
    weights: &[f32],
    partials: &mut [f32],
    mean: &mut [f32],
    variance: &mut [f32],
) -> f64 {
    let rows = shape.check(x, weights);
    assert!(partials.len() >= shape.partials_len(x.len()), "room for sums");
    assert!(mean.len() == shape.channels && variance.len() == shape.channels, "statistics");
    let kernel = Moments { shape, rows, x, weights, partials: Ptr::from_mut(partials) };
    ctx.run(&kernel);
    let mut total = 0.0;
    let units = || partials.chunks_exact(shape.partial()).take(rows.div_ceil(UNIT));
    for c in 0..shape.channels {
        // Means and sums of squares of the units, merged (Chan, Golub, LeVeque 1979).
        let (mut count, mut m, mut squares) = (0.0f64, 0.0f64, 0.0f64);
        for unit in units() {
            let weight = f64::from(unit[2 * shape.channels]);
            if weight > 0.0 {
                let delta = f64::from(unit[c]) - m;
                let sum = count + weight;
                squares += f64::from(unit[shape.channels + c]) + delta * delta * count * weight / sum;
                m += delta * weight / sum;
                count = sum;
            }
        }
        mean[c] = m as f32;
        variance[c] = (squares / count.max(f64::MIN_POSITIVE)) as f32;
        total = count;
    }
    total
}

/// y = (x − mean)·factor + beta
pub fn apply(
    ctx: &mut Context,
    shape: Rows,
    x: &[f32],
    mean: &[f32],
    factor: &[f32],
    beta: &[f32],
    y: &mut [f32],
) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(shape.channels), "maps");
    assert!([mean, factor, beta].iter().all(|s| s.len() == shape.channels), "channels");
    let rows = x.len() / shape.channels;
    ctx.run(&Apply { channels: shape.channels, rows, x, mean, factor, beta, y: Ptr::from_mut(y) });
}

/// The gradients dβ = Σ dy and dγ = Σ dy·(x − mean)·inverse, with inverse = 1/√(v + ε).
pub fn backward_weight(
    ctx: &mut Context,
    shape: Rows,
    x: &[f32],
    dy: &[f32],
    weights: &[f32],
    mean: &[f32],
    inverse: &[f32],
    partials: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let rows = shape.check(x, weights);
    assert!(partials.len() >= shape.partials_len(x.len()), "room for sums");
    assert!(dy.len() == x.len(), "gradient");
    assert!([mean, inverse, &*dgamma, &*dbeta].iter().all(|s| s.len() == shape.channels), "channels");
    let kernel = Sums { shape, rows, x, dy, weights, mean, inverse, partials: Ptr::from_mut(partials) };
    ctx.run(&kernel);
    for c in 0..shape.channels {
        let units = partials.chunks_exact(shape.partial()).take(rows.div_ceil(UNIT));
        let (beta, gamma) = units.fold((0.0f64, 0.0f64), |(beta, gamma), unit| {
            (beta + f64::from(unit[c]), gamma + f64::from(unit[shape.channels + c]))
        });
        (dbeta[c], dgamma[c]) = (beta as f32, gamma as f32);
    }
}

/// What [`backward_input`] reads besides the maps: (C) each.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The batch's means.
    pub mean: &'a [f32],
    /// 1/√(v + ε)
    pub inverse: &'a [f32],
    /// γ
    pub gamma: &'a [f32],
    /// dγ
    pub dgamma: &'a [f32],
    /// dβ
    pub dbeta: &'a [f32],
    /// M, the weight of all rows.
    pub count: f64,
}

/// dx = γ·inverse·(dy − w/M·(dβ + (x − mean)·inverse·dγ)), w the weight of the picture. With `relu`, dx is zero where x is
/// not positive: x came out of a ReLU.
pub fn backward_input(
    ctx: &mut Context,
    shape: Rows,
    x: &[f32],
    dy: &[f32],
    weights: &[f32],
    input: Input,
    relu: bool,
    dx: &mut [f32],
) {
    let rows = shape.check(x, weights);
    assert!(dy.len() == x.len() && dx.len() == x.len(), "gradient");
    let Input { mean, inverse, gamma, dgamma, dbeta, .. } = input;
    assert!([mean, inverse, gamma, dgamma, dbeta].iter().all(|s| s.len() == shape.channels), "channels");
    ctx.run(&Gradient { shape, rows, x, dy, weights, input, relu, dx: Ptr::from_mut(dx) });
}

/// Mean, Σ w(x − mean)² and Σ w of each unit.
struct Moments<'a> {
    shape: Rows,
    rows: usize,
    x: &'a [f32],
    weights: &'a [f32],
    partials: Ptr,
}

impl Kernel for Moments<'_> {
    fn units(&self) -> usize {
        self.rows.div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let channels = self.shape.channels;
        let (weights, rows) = self.shape.weights_of(unit, self.rows, self.weights);
        let counted =
            || (0..rows).map(|i| (unit * UNIT + i, weights[i])).filter(|(_, weight)| *weight != 0.0);
        let weight: f32 = counted().map(|(_, w)| w).sum();
        let out = self.partials.at(unit * self.shape.partial());
        // SAFETY: `statistics` saw that the rows are within x and the unit's sums within the partials.
        unsafe {
            *out.add(2 * channels) = weight;
            let share = S::splat(if weight > 0.0 { 1.0 / weight } else { 0.0 });
            for (c, n) in vectors(channels, S::LANES) {
                let mut sum = S::zero();
                for (r, w) in counted() {
                    sum = S::fma(S::splat(w), S::load_part(self.x.as_ptr().add(r * channels + c), n), sum);
                }
                let mean = S::mul(sum, share);
                let mut squares = S::zero();
                for (r, w) in counted() {
                    let x = S::sub(S::load_part(self.x.as_ptr().add(r * channels + c), n), mean);
                    squares = S::fma(S::mul(S::splat(w), x), x, squares);
                }
                S::store_part(out.add(c), mean, n);
                S::store_part(out.add(channels + c), squares, n);
            }
        }
    }
}

struct Apply<'a> {
    channels: usize,
    rows: usize,
    x: &'a [f32],
    mean: &'a [f32],
    factor: &'a [f32],
    beta: &'a [f32],
    y: Ptr,
}

impl Kernel for Apply<'_> {
    fn units(&self) -> usize {
        self.rows.div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        // SAFETY: `apply` checked all lengths; the unit owns its rows of y.
        unsafe {
            for (c, n) in vectors(self.channels, S::LANES) {
                let mean = S::load_part(self.mean.as_ptr().add(c), n);
                let factor = S::load_part(self.factor.as_ptr().add(c), n);
                let beta = S::load_part(self.beta.as_ptr().add(c), n);
                for r in unit * UNIT..(unit * UNIT + UNIT).min(self.rows) {
                    let at = r * self.channels + c;
                    let x = S::sub(S::load_part(self.x.as_ptr().add(at), n), mean);
                    S::store_part(self.y.at(at), S::fma(x, factor, beta), n);
                }
            }
        }
    }
}

/// Σ dy and Σ dy·x̂ of each unit.
struct Sums<'a> {
    shape: Rows,
    rows: usize,
    x: &'a [f32],
    dy: &'a [f32],
    weights: &'a [f32],
    mean: &'a [f32],
    inverse: &'a [f32],
    partials: Ptr,
}

impl Kernel for Sums<'_> {
    fn units(&self) -> usize {
        self.rows.div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let channels = self.shape.channels;
        let out = self.partials.at(unit * self.shape.partial());
        let (weights, rows) = self.shape.weights_of(unit, self.rows, self.weights);
        // SAFETY: `backward_weight` saw that the rows are within x and dy and the unit's sums within the partials.
        unsafe {
            for (c, n) in vectors(channels, S::LANES) {
                let mean = S::load_part(self.mean.as_ptr().add(c), n);
                let inverse = S::load_part(self.inverse.as_ptr().add(c), n);
                let (mut beta, mut gamma) = (S::zero(), S::zero());
                for (i, weight) in weights[..rows].iter().enumerate() {
                    if *weight == 0.0 {
                        continue;
                    }
                    let at = (unit * UNIT + i) * channels + c;
                    let dy = S::load_part(self.dy.as_ptr().add(at), n);
                    let x = S::mul(S::sub(S::load_part(self.x.as_ptr().add(at), n), mean), inverse);
                    beta = S::add(beta, dy);
                    gamma = S::fma(dy, x, gamma);
                }
                S::store_part(out.add(c), beta, n);
                S::store_part(out.add(channels + c), gamma, n);
            }
        }
    }
}

struct Gradient<'a> {
    shape: Rows,
    rows: usize,
    x: &'a [f32],
    dy: &'a [f32],
    weights: &'a [f32],
    input: Input<'a>,
    relu: bool,
    dx: Ptr,
}

impl Kernel for Gradient<'_> {
    fn units(&self) -> usize {
        self.rows.div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let channels = self.shape.channels;
        let Input { mean, inverse, gamma, dgamma, dbeta, count } = self.input;
        let (weights, rows) = self.shape.weights_of(unit, self.rows, self.weights);
        // SAFETY: `backward_input` checked all lengths; the unit owns its rows of dx.
        unsafe {
            for (c, n) in vectors(channels, S::LANES) {
                let of = |s: &[f32]| S::load_part(s.as_ptr().add(c), n);
                let (mean, inverse, dgamma, dbeta) = (of(mean), of(inverse), of(dgamma), of(dbeta));
                let factor = S::mul(of(gamma), inverse);
                for (i, &weight) in weights[..rows].iter().enumerate() {
                    let at = (unit * UNIT + i) * channels + c;
                    if weight == 0.0 {
                        S::store_part(self.dx.at(at), S::zero(), n);
                        continue;
                    }
                    let share = S::splat(-(f64::from(weight) / count) as f32);
                    let x = S::load_part(self.x.as_ptr().add(at), n);
                    let normalized = S::mul(S::sub(x, mean), inverse);
                    let dy = S::load_part(self.dy.as_ptr().add(at), n);
                    let inner = S::fma(share, S::fma(normalized, dgamma, dbeta), dy);
                    let dx = S::mul(factor, inner);
                    S::store_part(self.dx.at(at), if self.relu { S::where_positive(x, dx) } else { dx }, n);
                }
            }
        }
    }
}

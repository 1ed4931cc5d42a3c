//! Batch normalization (Ioffe and Szegedy, arXiv 1502.03167), for each channel:
//!
//! y = γ·x̂ + β,  x̂ = (x − m) / √(v + ε)
//!
//! Training: m and v are mean and variance (divided by the count) of the channel over the batch and all positions,
//! pictures counted by their weights, so that a picture of weight 0 has no part in them. Use: m and v are running
//! values, each moved by every training step towards the batch's mean and unbiased variance. A layer that a recipe freezes is
//! used in training too: it normalizes by its running values, and they stay.

use super::Real;
use crate::net::{self, Shape};

/// One normalization over a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// N, pictures.
    pub n: usize,
    /// (C, H, W) of one picture, input and output.
    pub shape: Shape,
    /// ε
    pub eps: f64,
}

impl Geometry {
    /// A normalization of a layer's batch.
    pub fn new(n: usize, shape: Shape, norm: &net::BatchNorm) -> Self {
        Geometry { n, shape, eps: norm.eps }
    }

    /// Indices of channel `c`, each with its picture.
    fn channel(&self, c: usize) -> impl Iterator<Item = (usize, usize)> {
        let (len, area) = (self.shape.len(), self.shape.h * self.shape.w);
        (0..self.n).flat_map(move |n| (0..area).map(move |i| (n * len + c * area + i, n)))
    }

    /// 1 / √(v + ε)
    fn inverse<T: Real>(&self, variance: T) -> T {
        T::one() / (variance + T::of(self.eps)).sqrt()
    }
}

/// Mean and variance of each channel, pictures counted by their weights; and what the weights and positions add up to.
pub fn statistics<T: Real>(
    g: &Geometry,
    x: &[T],            // (N, C, H, W)
    weights: &[f32],    // (N)
    mean: &mut [T],     // (C)
    variance: &mut [T], // (C)
) -> f64 {
    assert_eq!((x.len(), weights.len()), (g.n * g.shape.len(), g.n), "x, weights are not (N, C, H, W), (N)");
    let area = (g.shape.h * g.shape.w) as f64;
    let count = weights.iter().map(|&w| f64::from(w) * area).sum::<f64>().max(f64::MIN_POSITIVE);
    let weight = |n: usize| T::of(f64::from(weights[n]));
    for c in 0..g.shape.c {
        let sum = g.channel(c).fold(T::zero(), |sum, (i, n)| sum + weight(n) * x[i]);
        mean[c] = sum / T::of(count);
        let squares = g.channel(c).fold(T::zero(), |sum, (i, n)| {
            let centred = x[i] - mean[c];
            sum + weight(n) * centred * centred
        });
        variance[c] = squares / T::of(count);
    }
    count
}

/// The normalized activations, by these means and variances.
pub fn forward<T: Real>(
    g: &Geometry,
    x: &[T],        // (N, C, H, W)
    mean: &[T],     // (C)
    variance: &[T], // (C)
    gamma: &[T],    // (C)
    beta: &[T],     // (C)
    y: &mut [T],    // (N, C, H, W)
) {
    assert_eq!((x.len(), y.len()), (g.n * g.shape.len(), g.n * g.shape.len()), "x, y are not (N, C, H, W)");
    for c in 0..g.shape.c {
        let inverse = g.inverse(variance[c]);
        for (i, _) in g.channel(c) {
            y[i] = gamma[c] * (x[i] - mean[c]) * inverse + beta[c];
        }
    }
}

/// The gradients with respect to γ, β and the input, where `mean` and `variance` are the batch's own:
///
/// dγ = Σ dy·x̂,  dβ = Σ dy,  dx = γ / √(v + ε) · (dy − w/M·(dβ + x̂·dγ))
///
/// with w the picture's weight and M the sum of weights over pictures and positions. A picture of weight 0 has dy = 0.
pub fn backward<T: Real>(
    g: &Geometry,
    x: &[T],          // (N, C, H, W)
    dy: &[T],         // (N, C, H, W)
    weights: &[f32],  // (N)
    mean: &[T],       // (C)
    variance: &[T],   // (C)
    gamma: &[T],      // (C)
    dgamma: &mut [T], // (C)
    dbeta: &mut [T],  // (C)
    dx: &mut [T],     // (N, C, H, W)
) {
    let area = (g.shape.h * g.shape.w) as f64;
    let count = weights.iter().map(|&w| f64::from(w) * area).sum::<f64>().max(f64::MIN_POSITIVE);
    for c in 0..g.shape.c {
        let inverse = g.inverse(variance[c]);
        let normalized = |i: usize| (x[i] - mean[c]) * inverse;
        dgamma[c] = g.channel(c).fold(T::zero(), |sum, (i, _)| sum + dy[i] * normalized(i));
        dbeta[c] = g.channel(c).fold(T::zero(), |sum, (i, _)| sum + dy[i]);
        for (i, n) in g.channel(c) {
            let share = T::of(f64::from(weights[n]) / count);
            dx[i] = gamma[c] * inverse * (dy[i] - share * (dbeta[c] + normalized(i) * dgamma[c]));
        }
    }
}

/// running ← (1 − m)·running + m·batch, the batch's variance divided by M − 1 in place of M (as PyTorch and Caffe do).
pub fn move_statistics<T: Real>(
    norm: &net::BatchNorm,
    count: f64,
    mean: &[T],                 // (C)
    variance: &[T],             // (C)
    running_mean: &mut [T],     // (C)
    running_variance: &mut [T], // (C)
) {
    let (m, keep) = (T::of(norm.momentum), T::of(1.0 - norm.momentum));
    let unbiased = T::of(unbiased(count));
    for (r, &batch) in running_mean.iter_mut().zip(mean) {
        *r = keep * *r + m * batch;
    }
    for (r, &batch) in running_variance.iter_mut().zip(variance) {
        *r = keep * *r + m * unbiased * batch;
    }
}

/// M / (M − 1), and 1 for a single element.
pub fn unbiased(count: f64) -> f64 {
    if count > 1.0 { count / (count - 1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    fn norm(g: &Geometry) -> net::BatchNorm {
        net::BatchNorm { eps: g.eps, momentum: 0.1 }
    }

    fn run(g: &Geometry, x: &[f64], weights: &[f32], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
        let (mut mean, mut variance) = (vec![0.0; g.shape.c], vec![0.0; g.shape.c]);
        statistics(g, x, weights, &mut mean, &mut variance);
        let mut y = vec![f64::NAN; x.len()];
        forward(g, x, &mean, &variance, gamma, beta, &mut y);
        y
    }

    #[test]
    fn one_channel_by_hand() {
        let g = Geometry { n: 3, shape: Shape::new(1, 1, 2), eps: 1.0 };
        // The second picture has no part: of 1, 3, 5, 7 the mean is 4 and the variance 5.
        let x = [1.0, 3.0, 100.0, 100.0, 5.0, 7.0];
        let (mut mean, mut variance) = ([0.0], [0.0]);
        let count = statistics(&g, &x, &[1.0, 0.0, 1.0], &mut mean, &mut variance);
        assert_eq!((count, mean, variance), (4.0, [4.0], [5.0]));
        let y = run(&g, &x, &[1.0, 0.0, 1.0], &[2.0], &[10.0]);
        let by_hand = |x: f64| 10.0 + 2.0 * (x - 4.0) / 6f64.sqrt();
        assert!(y.iter().zip(x).all(|(y, x)| (y - by_hand(x)).abs() < 1e-12), "{y:?}");
        let (mut running_mean, mut running_variance) = ([1.0], [2.0]);
        move_statistics(&norm(&g), count, &mean, &variance, &mut running_mean, &mut running_variance);
        assert!((running_mean[0] - (0.9 + 0.4)).abs() < 1e-12);
        assert!((running_variance[0] - (1.8 + 0.1 * 5.0 * 4.0 / 3.0)).abs() < 1e-12);
    }

    #[test]
    fn gradients() {
        for (key, (n, shape, weights)) in [
            (4, Shape::new(3, 2, 3), vec![1.0; 4]),
            (5, Shape::new(2, 1, 1), vec![1.0, 1.0, 0.0, 1.0, 1.0]),
            (3, Shape::new(1, 3, 2), vec![0.5, 1.0, 2.0]),
        ]
        .into_iter()
        .enumerate()
        {
            let g = Geometry { n, shape, eps: 1e-3 };
            let key = 10 * key as u64;
            let x = check::uniform(key, n * shape.len());
            let mut dy = check::uniform(key + 1, x.len());
            for (n, weight) in weights.iter().enumerate() {
                if *weight == 0.0 {
                    dy[n * shape.len()..][..shape.len()].fill(0.0);
                }
            }
            let (gamma, beta) = (check::uniform(key + 2, shape.c), check::uniform(key + 3, shape.c));
            let (mut mean, mut variance) = (vec![0.0; shape.c], vec![0.0; shape.c]);
            statistics(&g, &x, &weights, &mut mean, &mut variance);
            let (mut dgamma, mut dbeta) = (vec![0.0; shape.c], vec![0.0; shape.c]);
            let mut dx = vec![f64::NAN; x.len()];
            backward(&g, &x, &dy, &weights, &mean, &variance, &gamma, &mut dgamma, &mut dbeta, &mut dx);
            let loss =
                |x: &[f64], gamma: &[f64], beta: &[f64]| check::dot(&run(&g, x, &weights, gamma, beta), &dy);
            check::gradient(&format!("dx of {g:?}"), &x, &dx, |x| loss(x, &gamma, &beta));
            check::gradient(&format!("dγ of {g:?}"), &gamma, &dgamma, |gamma| loss(&x, gamma, &beta));
            check::gradient(&format!("dβ of {g:?}"), &beta, &dbeta, |beta| loss(&x, &gamma, beta));
        }
    }
}

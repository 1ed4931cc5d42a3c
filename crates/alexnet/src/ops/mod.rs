//! The mathematics of every layer, one file each, forward above backward: the specification that every fast
//! executor is tested against.
//!
//! Each operation is the formula of its doc comment written as loops over plain slices, for f32 and f64. Layouts
//! are canonical: activations (N, C, H, W), filters (K, C/G, R, S), matrices (outputs, inputs), last axis fastest.
//! `y` is an operation's output, `dy` the gradient of the loss with respect to it; every function overwrites
//! what it yields. Slices must have exactly the stated shapes; a slice of another length is a bug of the caller
//! and panics.

pub mod activation;
pub mod batch_norm;
pub mod conv;
pub mod dropout;
pub mod linear;
pub mod loss;
pub mod lrn;
pub mod pool;
pub mod update;

/// The numbers that the operations are computed in: f32, as in training, or f64, as in gradient checks.
pub trait Real:
    num_traits::Float + num_traits::NumAssign + Default + std::fmt::Debug + Send + Sync + 'static
{
    /// `f32` or `f64`.
    const NAME: &'static str;

    /// The nearest number to `x`.
    fn of(x: f64) -> Self;

    /// This number, exactly.
    fn as_f64(self) -> f64;
}

impl Real for f32 {
    const NAME: &'static str = "f32";

    fn of(x: f64) -> Self {
        x as f32
    }

    fn as_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const NAME: &'static str = "f64";

    fn of(x: f64) -> Self {
        x
    }

    fn as_f64(self) -> f64 {
        self
    }
}

/// What the tests of the operations share: inputs, and the comparison with finite differences.
#[cfg(test)]
pub(crate) mod check {
    use crate::rng::{Purpose, Stream};

    /// `len` numbers uniform in ±1; `key` tells the tensors of a test apart.
    pub fn uniform(key: u64, len: usize) -> Vec<f64> {
        let mut stream = Stream::new(1, Purpose::Synthetic, key, 0);
        (0..len).map(|_| stream.range(-1.0, 1.0)).collect()
    }

    /// `len` numbers in random order, all at least 2/len apart and 1/len away from zero, so that a small step
    /// changes neither a sign nor which of them is the largest.
    pub fn spaced(key: u64, len: usize) -> Vec<f64> {
        let mut values: Vec<f64> = (0..len).map(|i| (2 * i + 1) as f64 / len as f64 - 1.0).collect();
        if len % 2 == 1 {
            values.iter_mut().for_each(|v| *v += 1.0 / len as f64);
        }
        Stream::new(2, Purpose::Synthetic, key, 0).shuffle(&mut values);
        values
    }

    /// The integers −4..=4 in random order: small enough for every sum in a test to be exact in f32.
    pub fn integers(key: u64, len: usize) -> Vec<f32> {
        let mut stream = Stream::new(3, Purpose::Synthetic, key, 0);
        (0..len).map(|_| stream.below(9) as f32 - 4.0).collect()
    }

    /// Σ a·b.
    pub fn dot(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// ‖a − b‖ / ‖b‖, and ‖a‖ where b is zero.
    pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        let norm = dot(b, b).sqrt();
        dot(&difference, &difference).sqrt() / if norm > 0.0 { norm } else { 1.0 }
    }

    /// Asserts that `gradient` is that of `f` at `x`, by central differences, to 1e-6 of its norm.
    #[track_caller]
    pub fn gradient(what: &str, x: &[f64], gradient: &[f64], mut f: impl FnMut(&[f64]) -> f64) {
        let step = 1e-5;
        let mut x = x.to_vec();
        let differences: Vec<f64> = (0..x.len())
            .map(|i| {
                let at = x[i];
                x[i] = at + step;
                let above = f(&x);
                x[i] = at - step;
                let below = f(&x);
                x[i] = at;
                (above - below) / (2.0 * step)
            })
            .collect();
        let error = relative_error(gradient, &differences);
        assert!(error <= 1e-6, "{what}: the gradient is off by {error:.2e} of its norm");
    }
}

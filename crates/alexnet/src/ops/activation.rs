//! Functions of each element (paper §3.1): y = f(x).
//!
//! | | f(x) | f′(x) |
//! |---|---|---|
//! | ReLU | max(x, 0) | 1 where x > 0, else 0 |
//! | tanh | tanh(x) | 1 − y² |
//! | logistic | 1 / (1 + exp(−x)) | y·(1 − y) |
//! | \|tanh\| | \|tanh(x)\| | sign(x)·(1 − y²), 0 at 0 |

use super::Real;
use crate::net::Activation;

/// f of one element.
pub fn value<T: Real>(f: Activation, x: T) -> T {
    match f {
        // Written so that NaN stays NaN.
        Activation::Relu if x <= T::zero() => T::zero(),
        Activation::Relu => x,
        Activation::Tanh => x.tanh(),
        Activation::Logistic => T::one() / (T::one() + (-x).exp()),
        Activation::AbsTanh => x.tanh().abs(),
    }
}

/// f′ of one element, from x and y = f(x).
pub fn slope<T: Real>(f: Activation, x: T, y: T) -> T {
    match f {
        Activation::Relu if y > T::zero() => T::one(),
        Activation::Relu => T::zero(),
        Activation::Tanh => T::one() - y * y,
        Activation::Logistic => y * (T::one() - y),
        Activation::AbsTanh if x == T::zero() => T::zero(),
        Activation::AbsTanh => x.signum() * (T::one() - y * y),
    }
}

/// y = f(x).
pub fn forward<T: Real>(
    f: Activation,
    x: &[T],     // (N, C, H, W)
    y: &mut [T], // (N, C, H, W)
) {
    assert_eq!(x.len(), y.len(), "x and y differ in shape");
    for (y, &x) in y.iter_mut().zip(x) {
        *y = value(f, x);
    }
}

/// dx = dy · f′(x).
pub fn backward<T: Real>(
    f: Activation,
    x: &[T],      // (N, C, H, W)
    y: &[T],      // (N, C, H, W)
    dy: &[T],     // (N, C, H, W)
    dx: &mut [T], // (N, C, H, W)
) {
    assert_eq!([x.len(), y.len(), dy.len()], [dx.len(); 3], "x, y, dy, dx differ in shape");
    for (i, dx) in dx.iter_mut().enumerate() {
        *dx = dy[i] * slope(f, x[i], y[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    const ALL: [Activation; 4] =
        [Activation::Relu, Activation::Tanh, Activation::Logistic, Activation::AbsTanh];

    #[test]
    fn known_values() {
        let x = [-1.0, 0.0, 2.0];
        let expected = [
            [0.0, 0.0, 2.0],
            [-0.761_594_155_955_764_9, 0.0, 0.964_027_580_075_816_9],
            [0.268_941_421_369_995_1, 0.5, 0.880_797_077_977_882_3],
            [0.761_594_155_955_764_9, 0.0, 0.964_027_580_075_816_9],
        ];
        for (f, expected) in ALL.into_iter().zip(expected) {
            let mut y = [f64::NAN; 3];
            forward(f, &x, &mut y);
            assert!(check::relative_error(&y, &expected) < 1e-15, "{f:?}: {y:?}");
        }
    }

    #[test]
    fn slopes_at_the_kinks_are_zero() {
        assert_eq!(slope(Activation::Relu, 0.0, 0.0), 0.0);
        assert_eq!(slope(Activation::AbsTanh, 0.0, 0.0), 0.0);
    }

    #[test]
    fn not_a_number_stays_so() {
        for f in ALL {
            assert!(value(f, f64::NAN).is_nan(), "{f:?}");
        }
    }

    #[test]
    fn far_values_stay_finite() {
        for f in [Activation::Tanh, Activation::Logistic, Activation::AbsTanh] {
            for x in [-1e4f32, 1e4] {
                let y = value(f, x);
                assert!(y.is_finite() && slope(f, x, y).is_finite(), "{f:?} at {x}");
            }
        }
    }

    #[test]
    fn gradients() {
        for f in ALL {
            let (x, dy) = (check::spaced(0, 64), check::uniform(1, 64));
            let run = |x: &[f64]| {
                let mut y = vec![f64::NAN; x.len()];
                forward(f, x, &mut y);
                y
            };
            let mut dx = vec![f64::NAN; 64];
            backward(f, &x, &run(&x), &dy, &mut dx);
            check::gradient(&format!("dx of {f:?}"), &x, &dx, |x| check::dot(&run(x), &dy));
        }
    }
}

//! Local response normalization (paper §3.3), across neighbouring maps or within a map:
//!
//! y_i = x_i · d_i^−β,  d_i = k + a·Σ_{j∈W(i)} x_j²
//!
//! W(i) is the window of element i: the `size` maps from i − ⌊size/2⌋ at the same position, clipped to the tower;
//! or `size`×`size` positions from −⌊size/2⌋ of the same map, clipped to the map (cuda-convnet's `conv_util.cu`).
//! a is α as the source means it: [`net::Lrn::effective_alpha`].

use super::Real;
use crate::net::{self, Shape};
use std::ops::Range;

/// What is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// This many maps, out of a tower of `tower` maps.
    Across { size: usize, tower: usize },
    /// This many rows and columns.
    Within { size: usize },
}

/// One normalization over a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// N, pictures.
    pub n: usize,
    /// (C, H, W) of one picture, input and output.
    pub shape: Shape,
    /// The constant k.
    pub k: f64,
    /// What multiplies the sum of squares.
    pub a: f64,
    /// The exponent β.
    pub beta: f64,
    window: Window,
}

impl Geometry {
    /// Normalization across maps.
    pub fn across(n: usize, shape: Shape, lrn: &net::Lrn) -> Self {
        let window = Window::Across { size: lrn.size, tower: shape.c / lrn.towers };
        Geometry { n, shape, k: lrn.k, a: lrn.effective_alpha(), beta: lrn.beta, window }
    }

    /// Normalization within a map.
    pub fn within(n: usize, shape: Shape, lrn: &net::SpatialLrn) -> Self {
        let window = Window::Within { size: lrn.size };
        Geometry { n, shape, k: lrn.k, a: lrn.effective_alpha(), beta: lrn.beta, window }
    }

    /// W(i), as indices in the batch.
    fn window(&self, i: usize) -> impl Iterator<Item = usize> {
        let Shape { c: maps, h, w } = self.shape;
        let (n, c, y, x) = (i / (maps * h * w), i / (h * w) % maps, i / w % h, i % w);
        let (cs, ys, xs) = match self.window {
            Window::Across { size, tower } => {
                (clipped(c, size, c / tower * tower, tower), y..y + 1, x..x + 1)
            }
            Window::Within { size } => (c..c + 1, clipped(y, size, 0, h), clipped(x, size, 0, w)),
        };
        cs.flat_map(move |c| {
            let xs = xs.clone();
            ys.clone().flat_map(move |y| xs.clone().map(move |x| ((n * maps + c) * h + y) * w + x))
        })
    }

    /// d_i
    fn denominator<T: Real>(&self, x: &[T], i: usize) -> T {
        let sum = self.window(i).fold(T::zero(), |sum, j| sum + x[j] * x[j]);
        T::of(self.k) + T::of(self.a) * sum
    }
}

/// `size` indices from i − ⌊size/2⌋, clipped to the `len` indices from `first`.
fn clipped(i: usize, size: usize, first: usize, len: usize) -> Range<usize> {
    i.saturating_sub(size / 2).max(first)..(i + size - size / 2).min(first + len)
}

/// The normalized activations.
pub fn forward<T: Real>(
    g: &Geometry,
    x: &[T],     // (N, C, H, W)
    y: &mut [T], // (N, C, H, W)
) {
    assert_eq!((x.len(), y.len()), (g.n * g.shape.len(), g.n * g.shape.len()), "x, y are not (N, C, H, W)");
    for (i, y) in y.iter_mut().enumerate() {
        *y = x[i] * g.denominator(x, i).powf(-T::of(g.beta));
    }
}

/// The gradient with respect to the input:
///
/// dx_i = dy_i · d_i^−β − 2aβ · x_i · Σ_{j: i∈W(j)} dy_j·y_j/d_j
pub fn backward<T: Real>(
    g: &Geometry,
    x: &[T],      // (N, C, H, W)
    y: &[T],      // (N, C, H, W)
    dy: &[T],     // (N, C, H, W)
    dx: &mut [T], // (N, C, H, W)
) {
    let len = g.n * g.shape.len();
    assert_eq!([x.len(), y.len(), dy.len(), dx.len()], [len; 4], "x, y, dy, dx are not (N, C, H, W)");
    // First the sum over j, each j adding to the elements of its own window: with an even size the elements whose
    // window holds i are not the window of i.
    dx.fill(T::zero());
    for j in 0..len {
        let share = dy[j] * y[j] / g.denominator(x, j);
        for i in g.window(j) {
            dx[i] += share;
        }
    }
    for (i, dx) in dx.iter_mut().enumerate() {
        let scale = g.denominator(x, i).powf(-T::of(g.beta));
        *dx = dy[i] * scale - T::of(2.0 * g.a * g.beta) * x[i] * *dx;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    fn across(n: usize, shape: (usize, usize, usize), size: usize, towers: usize) -> Geometry {
        let lrn = net::Lrn { size, k: 2.0, alpha: 0.7, alpha_div_n: false, beta: 0.75, towers };
        Geometry::across(n, Shape::new(shape.0, shape.1, shape.2), &lrn)
    }

    fn within(n: usize, shape: (usize, usize, usize), size: usize) -> Geometry {
        let lrn = net::SpatialLrn { size, k: 1.0, alpha: 9.0, alpha_div_n: true, beta: 0.75 };
        Geometry::within(n, Shape::new(shape.0, shape.1, shape.2), &lrn)
    }

    fn run(g: &Geometry, x: &[f64]) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        forward(g, x, &mut y);
        y
    }

    /// The denominators that a forward pass shows: d = (x/y)^(1/β).
    fn denominators(g: &Geometry, x: &[f64]) -> Vec<f64> {
        run(g, x).iter().zip(x).map(|(y, x)| (x / y).powf(1.0 / g.beta)).collect()
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert!(check::relative_error(found, expected) < 1e-12, "{found:?} is not {expected:?}");
    }

    #[test]
    fn windows_across_maps_by_hand() {
        // Squares 1 4 9 16 25 36; d = 2 + 0.7·(sum over the window).
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let d = |sums: &[f64]| -> Vec<f64> { sums.iter().map(|s| 2.0 + 0.7 * s).collect() };
        let odd = denominators(&across(1, (6, 1, 1), 3, 1), &x);
        assert_near(&odd, &d(&[5.0, 14.0, 29.0, 50.0, 77.0, 61.0]));
        // An even window reaches one further down than up.
        let even = denominators(&across(1, (6, 1, 1), 4, 1), &x);
        assert_near(&even, &d(&[5.0, 14.0, 30.0, 54.0, 86.0, 77.0]));
        let towers = denominators(&across(1, (6, 1, 1), 5, 2), &x);
        assert_near(&towers, &d(&[14.0, 14.0, 14.0, 77.0, 77.0, 77.0]));
    }

    #[test]
    fn windows_within_a_map_by_hand() {
        // Squares 1 4 9 / 16 25 36; d = 1 + (9/size²)·(sum over the window).
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let d = denominators(&within(1, (1, 2, 3), 3), &x);
        assert_near(&d, &[47.0, 92.0, 75.0, 47.0, 92.0, 75.0]);
        let d = denominators(&within(1, (1, 2, 3), 2), &x);
        let sums = [1.0, 5.0, 13.0, 17.0, 46.0, 74.0];
        assert_near(&d, &sums.map(|s| 1.0 + 9.0 / 4.0 * s));
    }

    #[test]
    fn alpha_with_and_without_division() {
        let mut lrn = net::Lrn { size: 5, k: 2.0, alpha: 1e-4, alpha_div_n: true, beta: 0.75, towers: 1 };
        assert_eq!(Geometry::across(1, Shape::new(4, 1, 1), &lrn).a, 2e-5);
        lrn.alpha_div_n = false;
        assert_eq!(Geometry::across(1, Shape::new(4, 1, 1), &lrn).a, 1e-4);
        let lrn = net::SpatialLrn { size: 5, k: 1.0, alpha: 1e-3, alpha_div_n: true, beta: 0.75 };
        assert_eq!(Geometry::within(1, Shape::new(4, 1, 1), &lrn).a, 4e-5);
    }

    #[test]
    fn gradients() {
        let mut geometries =
            vec![across(2, (6, 1, 1), 5, 1), across(2, (6, 2, 3), 3, 2), across(1, (9, 2, 1), 5, 3)];
        geometries.extend([
            across(1, (6, 1, 2), 4, 1),
            across(1, (3, 2, 2), 9, 1),
            across(2, (4, 1, 1), 1, 4),
        ]);
        geometries.extend([within(2, (2, 4, 5), 3), within(1, (2, 5, 4), 4), within(1, (1, 3, 3), 5)]);
        geometries.push(within(2, (3, 1, 1), 3));
        for (key, g) in geometries.iter().enumerate() {
            let len = g.n * g.shape.len();
            let (x, dy) = (check::uniform(key as u64, len), check::uniform(50 + key as u64, len));
            let mut dx = vec![f64::NAN; len];
            backward(g, &x, &run(g, &x), &dy, &mut dx);
            check::gradient(&format!("dx of {g:?}"), &x, &dx, |x| check::dot(&run(g, x), &dy));
        }
    }
}

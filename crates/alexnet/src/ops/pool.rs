//! Max and average pooling with square windows (paper §3.4, overlapping when size > stride):
//!
//! y\[p,q\] = max or mean of x\[y,x\] over the window: rows p·stride .. p·stride+size, columns likewise, clipped to
//! the map
//!
//! A mean is over the clipped window. Where maxima tie, either the first in row order receives the gradient (Caffe,
//! PyTorch) or each of them the whole gradient (cuda-convnet).

use super::Real;
use crate::net::{self, PoolKind, Shape, Ties, windows};

/// One pooling over a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// N·C, maps of the batch.
    pub maps: usize,
    /// H, height of the input.
    pub h: usize,
    /// W, width of the input.
    pub w: usize,
    /// P, height of the output.
    pub p: usize,
    /// Q, width of the output.
    pub q: usize,
    /// Size of the window.
    pub size: usize,
    /// Step between windows.
    pub stride: usize,
    /// Max or mean.
    pub kind: PoolKind,
    /// Who receives the gradient when maxima tie.
    pub ties: Ties,
}

impl Geometry {
    /// The sizes of `pool` on `n` pictures of shape `input`.
    ///
    /// Panics where [`crate::Network::trace`] reports an error: not one window fits.
    pub fn new(n: usize, input: Shape, pool: &net::Pool) -> Self {
        let outputs = |extent| windows(extent, pool.size, pool.stride, pool.rounding).expect("a window fits");
        let &net::Pool { kind, size, stride, ties, .. } = pool;
        let (p, q) = (outputs(input.h), outputs(input.w));
        Geometry { maps: n * input.c, h: input.h, w: input.w, p, q, size, stride, kind, ties }
    }

    /// The indices in x of the window of y\[o\], clipped to the map, in row order.
    fn window(&self, o: usize) -> impl ExactSizeIterator<Item = usize> + Clone + use<> {
        let Geometry { h, w, size, .. } = *self;
        let (map, p, q) = (o / (self.p * self.q), o / self.q % self.p, o % self.q);
        let (top, left) = (p * self.stride, q * self.stride);
        let (rows, columns) = (size.min(h - top), size.min(w - left));
        (0..rows * columns).map(move |i| (map * h + top + i / columns) * w + left + i % columns)
    }

    fn assert_lengths<T>(&self, x: &[T], y: &[T]) {
        assert_eq!(x.len(), self.maps * self.h * self.w, "x is not (N, C, H, W)");
        assert_eq!(y.len(), self.maps * self.p * self.q, "y is not (N, C, P, Q)");
    }
}

/// The pooled maps.
pub fn forward<T: Real>(
    g: &Geometry,
    x: &[T],     // (N, C, H, W)
    y: &mut [T], // (N, C, P, Q)
) {
    g.assert_lengths(x, y);
    for (o, y) in y.iter_mut().enumerate() {
        let window = g.window(o);
        *y = match g.kind {
            // A value that is not a number is kept, so that it is noticed.
            PoolKind::Max => {
                window.fold(T::neg_infinity(), |max, i| if x[i] > max || x[i].is_nan() { x[i] } else { max })
            }
            PoolKind::Average => {
                let count = T::of(window.len() as f64);
                window.fold(T::zero(), |sum, i| sum + x[i]) / count
            }
        };
    }
}

/// The gradient with respect to the input; where the maxima were is found again from x and y.
pub fn backward<T: Real>(
    g: &Geometry,
    x: &[T],      // (N, C, H, W)
    y: &[T],      // (N, C, P, Q)
    dy: &[T],     // (N, C, P, Q)
    dx: &mut [T], // (N, C, H, W)
) {
    g.assert_lengths(x, y);
    g.assert_lengths(dx, dy);
    dx.fill(T::zero());
    for o in 0..y.len() {
        let window = g.window(o);
        let mut maxima = window.clone().filter(|&i| x[i] == y[o]);
        match (g.kind, g.ties) {
            (PoolKind::Max, Ties::First) => maxima.next().into_iter().for_each(|i| dx[i] += dy[o]),
            (PoolKind::Max, Ties::All) => maxima.for_each(|i| dx[i] += dy[o]),
            (PoolKind::Average, _) => {
                let share = dy[o] / T::of(window.len() as f64);
                window.for_each(|i| dx[i] += share);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Rounding;
    use crate::ops::check;

    fn geometry(maps: usize, h: usize, w: usize, size: usize, stride: usize, rounding: Rounding) -> Geometry {
        let pool = net::Pool { kind: PoolKind::Max, size, stride, rounding, ties: Ties::First };
        Geometry::new(1, Shape::new(maps, h, w), &pool)
    }

    #[test]
    fn max_and_mean_by_hand_with_a_clipped_edge() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, -6.0, 7.0, 8.0, -9.0, 0.0, 1.0, -2.0]; // 3 rows of 4
        let mut g = geometry(1, 3, 4, 3, 2, Rounding::Ceil);
        assert_eq!((g.p, g.q), (1, 2));
        let mut y = [0.0; 2];
        forward(&g, &x, &mut y);
        assert_eq!(y, [7.0, 8.0]);
        g.kind = PoolKind::Average;
        forward(&g, &x, &mut y);
        assert_eq!(y, [4.0 / 9.0, 21.0 / 6.0]);
        assert_eq!(geometry(1, 3, 4, 3, 2, Rounding::Floor).q, 1);
        // All negative, so that a maximum that starts from zero is noticed.
        let (mut g, mut y) = (geometry(1, 1, 2, 2, 1, Rounding::Ceil), [0.0]);
        forward(&g, &[-3.0, -2.0], &mut y);
        assert_eq!(y, [-2.0]);
        g.kind = PoolKind::Average;
        forward(&g, &[-3.0, -2.0], &mut y);
        assert_eq!(y, [-2.5]);
    }

    #[test]
    fn tied_maxima_by_both_rules() {
        // Windows (0,1,2) and (2,3,4) of one row share their middle element, which is a maximum of both.
        let x = [5.0, 1.0, 5.0, 5.0, 5.0];
        let mut g = geometry(1, 1, 5, 3, 2, Rounding::Ceil);
        assert_eq!((g.p, g.q), (1, 2));
        let (mut y, mut dx) = ([0.0; 2], [9.0; 5]);
        forward(&g, &x, &mut y);
        backward(&g, &x, &y, &[1.0, 10.0], &mut dx);
        assert_eq!(dx, [1.0, 0.0, 10.0, 0.0, 0.0]);
        g.ties = Ties::All;
        backward(&g, &x, &y, &[1.0, 10.0], &mut dx);
        assert_eq!(dx, [1.0, 0.0, 11.0, 10.0, 10.0]);
    }

    #[test]
    fn first_is_first_in_row_order() {
        let x = [0.0, 7.0, 7.0, 0.0];
        let g = geometry(1, 2, 2, 2, 2, Rounding::Floor);
        let mut dx = [0.0; 4];
        backward(&g, &x, &[7.0], &[1.0], &mut dx);
        assert_eq!(dx, [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_value_that_is_not_a_number_is_passed_on() {
        for at in 0..3 {
            let (mut x, mut y) = ([1.0, 3.0, 2.0], [0.0]);
            x[at] = f64::NAN;
            forward(&geometry(1, 1, 3, 3, 1, Rounding::Ceil), &x, &mut y);
            assert!(y[0].is_nan(), "{x:?}: {y:?}");
        }
    }

    #[test]
    fn gradients() {
        for (key, (maps, h, w, size, stride, rounding)) in [
            (2, 7, 7, 3, 2, Rounding::Floor),
            (2, 6, 8, 3, 2, Rounding::Ceil),
            (1, 5, 5, 2, 2, Rounding::Ceil),
            (1, 9, 7, 3, 3, Rounding::Floor),
            (3, 4, 4, 4, 1, Rounding::Floor),
            (2, 3, 3, 5, 2, Rounding::Ceil),
            (4, 1, 1, 1, 1, Rounding::Floor),
            (2, 8, 5, 1, 3, Rounding::Ceil),
        ]
        .into_iter()
        .enumerate()
        {
            for (kind, ties) in
                [(PoolKind::Max, Ties::First), (PoolKind::Max, Ties::All), (PoolKind::Average, Ties::First)]
            {
                let g = Geometry { kind, ties, ..geometry(maps, h, w, size, stride, rounding) };
                let x = check::spaced(key as u64, maps * h * w);
                let dy = check::uniform(50 + key as u64, maps * g.p * g.q);
                let run = |x: &[f64]| {
                    let mut y = vec![f64::NAN; dy.len()];
                    forward(&g, x, &mut y);
                    y
                };
                let mut dx = vec![f64::NAN; x.len()];
                backward(&g, &x, &run(&x), &dy, &mut dx);
                check::gradient(&format!("dx of {g:?}"), &x, &dx, |x| check::dot(&run(x), &dy));
            }
        }
    }
}

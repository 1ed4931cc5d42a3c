//! The fully connected layer: y\[n,k\] = b\[k\] + Σ_c w\[k,c\]·x\[n,c\], with the input of a picture flattened in
//! C, H, W order.

use super::Real;

/// The sizes of one linear layer over a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// N, pictures.
    pub n: usize,
    /// C, inputs of one picture.
    pub c: usize,
    /// K, outputs of one picture.
    pub k: usize,
}

impl Geometry {
    fn assert_lengths<T>(&self, x: &[T], w: &[T], b: Option<&[T]>, y: &[T]) {
        assert_eq!(x.len(), self.n * self.c, "x is not (N, C)");
        assert_eq!(w.len(), self.k * self.c, "w is not (K, C)");
        assert_eq!(b.map_or(self.k, <[T]>::len), self.k, "b is not (K)");
        assert_eq!(y.len(), self.n * self.k, "y is not (N, K)");
    }
}

/// y = x·wᵀ + b.
pub fn forward<T: Real>(
    g: &Geometry,
    x: &[T],     // (N, C)
    w: &[T],     // (K, C)
    b: &[T],     // (K)
    y: &mut [T], // (N, K)
) {
    g.assert_lengths(x, w, Some(b), y);
    for n in 0..g.n {
        for k in 0..g.k {
            let (x, w) = (&x[n * g.c..][..g.c], &w[k * g.c..][..g.c]);
            y[n * g.k + k] = x.iter().zip(w).fold(b[k], |sum, (&x, &w)| sum + x * w);
        }
    }
}

/// dx = dy·w.
pub fn backward_input<T: Real>(
    g: &Geometry,
    dy: &[T],     // (N, K)
    w: &[T],      // (K, C)
    dx: &mut [T], // (N, C)
) {
    g.assert_lengths(dx, w, None, dy);
    dx.fill(T::zero());
    for n in 0..g.n {
        for k in 0..g.k {
            for (dx, &w) in dx[n * g.c..][..g.c].iter_mut().zip(&w[k * g.c..]) {
                *dx += dy[n * g.k + k] * w;
            }
        }
    }
}

/// dw = dyᵀ·x, db\[k\] = Σ_n dy\[n,k\].
pub fn backward_weight<T: Real>(
    g: &Geometry,
    x: &[T],      // (N, C)
    dy: &[T],     // (N, K)
    dw: &mut [T], // (K, C)
    db: &mut [T], // (K)
) {
    g.assert_lengths(x, dw, Some(db), dy);
    dw.fill(T::zero());
    db.fill(T::zero());
    for n in 0..g.n {
        for k in 0..g.k {
            for (dw, &x) in dw[k * g.c..][..g.c].iter_mut().zip(&x[n * g.c..]) {
                *dw += dy[n * g.k + k] * x;
            }
            db[k] += dy[n * g.k + k];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    #[test]
    fn by_hand() {
        let g = Geometry { n: 2, c: 3, k: 2 };
        let (x, w) = ([1.0, 2.0, 3.0, -1.0, 0.0, 1.0], [1.0, 10.0, 100.0, 2.0, 0.0, -1.0]);
        let mut y = [0.0; 4];
        forward(&g, &x, &w, &[0.5, -0.5], &mut y);
        assert_eq!(y, [321.5, -1.5, 99.5, -3.5]);
        let (mut dx, mut dw, mut db) = ([9.0; 6], [9.0; 6], [9.0; 2]);
        let dy = [1.0, 2.0, 0.0, -1.0];
        backward_input(&g, &dy, &w, &mut dx);
        assert_eq!(dx, [5.0, 10.0, 98.0, -2.0, 0.0, 1.0]);
        backward_weight(&g, &x, &dy, &mut dw, &mut db);
        assert_eq!((dw, db), ([1.0, 2.0, 3.0, 3.0, 4.0, 5.0], [1.0, 1.0]));
    }

    #[test]
    fn gradients() {
        for (n, c, k) in [(3, 5, 4), (1, 1, 1), (2, 7, 3)] {
            let g = Geometry { n, c, k };
            let (x, w, b) = (check::uniform(0, n * c), check::uniform(1, k * c), check::uniform(2, k));
            let dy = check::uniform(3, n * k);
            let loss = |x: &[f64], w: &[f64], b: &[f64]| {
                let mut y = vec![f64::NAN; n * k];
                forward(&g, x, w, b, &mut y);
                check::dot(&y, &dy)
            };
            let (mut dx, mut dw, mut db) = (vec![f64::NAN; n * c], vec![f64::NAN; k * c], vec![f64::NAN; k]);
            backward_input(&g, &dy, &w, &mut dx);
            backward_weight(&g, &x, &dy, &mut dw, &mut db);
            check::gradient("dx", &x, &dx, |x| loss(x, &w, &b));
            check::gradient("dw", &w, &dw, |w| loss(&x, w, &b));
            check::gradient("db", &b, &db, |b| loss(&x, &w, b));
        }
    }
}

//! Convolution with groups, stride and zero padding (paper §3.5; cross-correlation, as in every implementation):
//!
//! y\[n,k,p,q\] = b\[k\] + Σ_{c,r,s} w\[k,c,r,s\] · x\[n, c₀+c, p·stride+r−pad, q·stride+s−pad\]
//!
//! with c over the C/G channels of filter k's group, which start at c₀ = ⌊k/(K/G)⌋·C/G, and x = 0 outside the map.
//! Since taps outside the map read zero on every side, padding below and right of the map and a last window that
//! overhangs its edge are only a matter of how many outputs there are.

use super::Real;
use crate::net::{self, Shape, windows};

/// The sizes of one convolution over a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// N, pictures.
    pub n: usize,
    /// C, channels of the input.
    pub c: usize,
    /// H, height of the input.
    pub h: usize,
    /// W, width of the input.
    pub w: usize,
    /// K, filters over all groups.
    pub k: usize,
    /// R = S, size of the kernel.
    pub r: usize,
    /// Step between windows.
    pub stride: usize,
    /// Zeros above and left of the map.
    pub pad_before: usize,
    /// G, groups.
    pub groups: usize,
    /// P, height of the output.
    pub p: usize,
    /// Q, width of the output.
    pub q: usize,
}

impl Geometry {
    /// The sizes of `conv` on `n` pictures of shape `input`.
    ///
    /// Panics where [`crate::Network::trace`] reports an error: not one window fits.
    pub fn new(n: usize, input: Shape, conv: &net::Conv) -> Self {
        let pad = conv.pad.before + conv.pad.after;
        let outputs =
            |extent| windows(extent + pad, conv.kernel, conv.stride, conv.rounding).expect("a window fits");
        Geometry {
            n,
            c: input.c,
            h: input.h,
            w: input.w,
            k: conv.filters,
            r: conv.kernel,
            stride: conv.stride,
            pad_before: conv.pad.before,
            groups: conv.groups,
            p: outputs(input.h),
            q: outputs(input.w),
        }
    }

    /// Calls `f(i, j, o)` for every product x\[i\]·w\[j\] of the sum and the element y\[o\] that it is added to.
    #[inline]
    fn products(&self, mut f: impl FnMut(usize, usize, usize)) {
        let (group_c, group_k) = (self.c / self.groups, self.k / self.groups);
        // The taps, along one axis, of a window that starts at `at` of the padded map and that lie on the map.
        let taps = |at: usize, extent: usize| {
            self.pad_before.saturating_sub(at)..self.r.min((extent + self.pad_before).saturating_sub(at))
        };
        for (n, k) in (0..self.n * self.k).map(|nk| (nk / self.k, nk % self.k)) {
            for (p, q) in (0..self.p * self.q).map(|pq| (pq / self.q, pq % self.q)) {
                let o = ((n * self.k + k) * self.p + p) * self.q + q;
                for c in 0..group_c {
                    let map = n * self.c + k / group_k * group_c + c;
                    for r in taps(p * self.stride, self.h) {
                        for s in taps(q * self.stride, self.w) {
                            let (row, column) = (p * self.stride + r, q * self.stride + s);
                            let i =
                                (map * self.h + row - self.pad_before) * self.w + column - self.pad_before;
                            let j = ((k * group_c + c) * self.r + r) * self.r + s;
                            f(i, j, o);
                        }
                    }
                }
            }
        }
    }

    fn assert_lengths<T>(&self, x: &[T], w: &[T], b: Option<&[T]>, y: &[T]) {
        assert_eq!(x.len(), self.n * self.c * self.h * self.w, "x is not (N, C, H, W)");
        assert_eq!(w.len(), self.k * (self.c / self.groups) * self.r * self.r, "w is not (K, C/G, R, S)");
        assert_eq!(b.map_or(self.k, <[T]>::len), self.k, "b is not (K)");
        assert_eq!(y.len(), self.n * self.k * self.p * self.q, "y is not (N, K, P, Q)");
    }
}

/// The output of the convolution.
pub fn forward<T: Real>(
    g: &Geometry,
    x: &[T],     // (N, C, H, W)
    w: &[T],     // (K, C/G, R, S)
    b: &[T],     // (K)
    y: &mut [T], // (N, K, P, Q)
) {
    g.assert_lengths(x, w, Some(b), y);
    for (o, y) in y.iter_mut().enumerate() {
        *y = b[o / (g.p * g.q) % g.k];
    }
    g.products(|i, j, o| y[o] += x[i] * w[j]);
}

/// The gradient with respect to the input: dx\[i\] = Σ w\[j\]·dy\[o\] over the products that x\[i\] is in.
pub fn backward_input<T: Real>(
    g: &Geometry,
    dy: &[T],     // (N, K, P, Q)
    w: &[T],      // (K, C/G, R, S)
    dx: &mut [T], // (N, C, H, W)
) {
    g.assert_lengths(dx, w, None, dy);
    dx.fill(T::zero());
    g.products(|i, j, o| dx[i] += w[j] * dy[o]);
}

/// The gradients with respect to the filters and the biases: dw\[j\] = Σ x\[i\]·dy\[o\] over the products that
/// w\[j\] is in; db\[k\] = Σ_{n,p,q} dy\[n,k,p,q\].
pub fn backward_weight<T: Real>(
    g: &Geometry,
    x: &[T],      // (N, C, H, W)
    dy: &[T],     // (N, K, P, Q)
    dw: &mut [T], // (K, C/G, R, S)
    db: &mut [T], // (K)
) {
    g.assert_lengths(x, dw, Some(db), dy);
    dw.fill(T::zero());
    db.fill(T::zero());
    g.products(|i, j, o| dw[j] += x[i] * dy[o]);
    for (o, &dy) in dy.iter().enumerate() {
        db[o / (g.p * g.q) % g.k] += dy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Conv, Init, Pad, Rounding};
    use crate::ops::check;

    fn geometry(
        n: usize,
        input: (usize, usize, usize),
        (filters, kernel, stride): (usize, usize, usize),
        (before, after): (usize, usize),
        groups: usize,
        rounding: Rounding,
    ) -> Geometry {
        let (weight, bias) = (Init::FanIn, Init::FanIn);
        let pad = Pad { before, after };
        let conv = Conv { filters, kernel, stride, pad, groups, rounding, weight, bias };
        Geometry::new(n, Shape::new(input.0, input.1, input.2), &conv)
    }

    /// Kernels of 1 to 5, strides of 1 to 4, one and two groups, no, even and one-sided padding, windows that
    /// overhang the map or leave a rest of it unread, maps of one pixel.
    fn geometries() -> Vec<Geometry> {
        use Rounding::{Ceil, Floor};
        vec![
            geometry(2, (3, 5, 6), (4, 3, 1), (1, 1), 1, Floor),
            geometry(2, (4, 6, 5), (6, 3, 1), (1, 1), 2, Floor),
            geometry(1, (4, 7, 7), (2, 5, 1), (2, 2), 2, Floor),
            geometry(2, (3, 12, 13), (4, 5, 4), (0, 0), 1, Ceil),
            geometry(2, (3, 12, 13), (4, 5, 4), (0, 0), 1, Floor),
            geometry(1, (2, 9, 8), (3, 4, 3), (0, 3), 1, Floor),
            geometry(1, (2, 8, 9), (2, 3, 2), (2, 0), 2, Ceil),
            geometry(3, (2, 1, 1), (3, 3, 1), (1, 1), 1, Floor),
            geometry(2, (5, 4, 4), (5, 1, 1), (0, 0), 5, Floor),
            geometry(1, (1, 3, 3), (2, 5, 2), (0, 0), 1, Ceil),
        ]
    }

    fn lengths(g: &Geometry) -> (usize, usize, usize) {
        (g.n * g.c * g.h * g.w, g.k * (g.c / g.groups) * g.r * g.r, g.n * g.k * g.p * g.q)
    }

    #[test]
    fn by_hand() {
        // Two overlapping windows over 1 2 3 4, the last one overhanging: 1·1+2·10+3·100, 3·1+4·10+0·100, plus 0.5.
        let mut g = geometry(1, (1, 1, 4), (1, 1, 1), (0, 0), 1, Rounding::Floor);
        (g.r, g.stride, g.p, g.q) = (3, 2, 1, 2);
        let w = [1.0, 10.0, 100.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0];
        let mut y = [0.0; 2];
        forward(&g, &[1.0, 2.0, 3.0, 4.0], &w, &[0.5], &mut y);
        assert_eq!(y, [321.5, 43.5]);
        let (mut dx, mut dw, mut db) = ([9.0; 4], [9.0; 9], [9.0]);
        backward_input(&g, &[1.0, 2.0], &w, &mut dx);
        assert_eq!(dx, [1.0, 10.0, 102.0, 20.0]);
        backward_weight(&g, &[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0], &mut dw, &mut db);
        assert_eq!((dw, db), ([7.0, 10.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [3.0]));
    }

    #[test]
    fn the_first_layer_of_2012() {
        let g = geometry(1, (3, 224, 224), (96, 11, 4), (0, 0), 1, Rounding::Ceil);
        assert_eq!((g.p, g.q), (55, 55));
    }

    /// The formula written the other way: the map is copied into a field of zeros, each output gathers a patch.
    #[test]
    fn forward_of_integers_equals_the_padded_formula() {
        for (key, g) in geometries().into_iter().enumerate() {
            let (nx, nw, ny) = lengths(&g);
            let (x, w) = (check::integers(key as u64, nx), check::integers(100 + key as u64, nw));
            let b = check::integers(200 + key as u64, g.k);
            let side = g.h.max(g.w) + 2 * g.r + g.stride;
            let mut field = vec![0.0f32; g.n * g.c * side * side];
            for map in 0..g.n * g.c {
                for row in 0..g.h {
                    for column in 0..g.w {
                        let at = (map * side + row + g.pad_before) * side + column + g.pad_before;
                        field[at] = x[(map * g.h + row) * g.w + column];
                    }
                }
            }
            let (gc, gk) = (g.c / g.groups, g.k / g.groups);
            let mut expected = Vec::new();
            for n in 0..g.n {
                for k in 0..g.k {
                    for p in 0..g.p {
                        for q in 0..g.q {
                            let mut sum = b[k];
                            for (j, &w) in w[k * gc * g.r * g.r..][..gc * g.r * g.r].iter().enumerate() {
                                let (c, r, s) = (j / (g.r * g.r), j / g.r % g.r, j % g.r);
                                let map = n * g.c + (k / gk) * gc + c;
                                sum += w * field[(map * side + p * g.stride + r) * side + q * g.stride + s];
                            }
                            expected.push(sum);
                        }
                    }
                }
            }
            let mut y = vec![f32::NAN; ny];
            forward(&g, &x, &w, &b, &mut y);
            assert_eq!(y, expected, "{g:?}");
        }
    }

    #[test]
    fn gradients() {
        for (key, g) in geometries().into_iter().enumerate() {
            let (nx, nw, ny) = lengths(&g);
            let key = 10 * key as u64;
            let (x, w, b) =
                (check::uniform(key, nx), check::uniform(key + 1, nw), check::uniform(key + 2, g.k));
            let dy = check::uniform(key + 3, ny);
            let loss = |x: &[f64], w: &[f64], b: &[f64]| {
                let mut y = vec![f64::NAN; ny];
                forward(&g, x, w, b, &mut y);
                check::dot(&y, &dy)
            };
            let (mut dx, mut dw, mut db) = (vec![f64::NAN; nx], vec![f64::NAN; nw], vec![f64::NAN; g.k]);
            backward_input(&g, &dy, &w, &mut dx);
            backward_weight(&g, &x, &dy, &mut dw, &mut db);
            check::gradient(&format!("dx of {g:?}"), &x, &dx, |x| loss(x, &w, &b));
            check::gradient(&format!("dw of {g:?}"), &w, &dw, |w| loss(&x, w, &b));
            check::gradient(&format!("db of {g:?}"), &b, &db, |b| loss(&x, &w, b));
        }
    }
}

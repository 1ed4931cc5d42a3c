//! Winograd's minimal filtering F(m, r) (Winograd 1980; Lavin and Gray 2016): m neighbouring outputs of r taps along an axis
//! from m + r − 1 products instead of m·r, here from up to 6: 4 outputs of 3 taps (12), 2 outputs of 5 (10).
//!
//! Taps and inputs are coefficients of polynomials; these are evaluated at *points*, multiplied there, and the outputs
//! interpolated from the products:
//!
//! ```text
//! y = Aᵀ [(G g) ⊙ (Bᵀ d)]       g r taps, d m + r − 1 inputs, y m outputs, ⊙ product by product
//!
//! G    row i: 1, p, p², ... at the point p
//! Aᵀ   column i: the same, over Π (p − q) for all other points q
//! Bᵀ   row i: coefficients of Π (x − q) for all other points q
//! ```
//!
//! The last point is infinity, the last coefficient alone. The others come in the order of [`FINITE`]: a strip of fewer
//! outputs has fewer of them, the first ones, so the weights at the points are the same for all strips of a map. Rounding
//! grows with the points: these and their order keep it small (measured in `bench/winograd_points.py`), and with eight of them, 4
//! outputs of 5 taps, single elements would be off by more than 1e-5·√K.

use crate::conv::Axis;
use crate::simd::Simd;

/// Points along an axis, at most.
pub(super) const POINTS: usize = 6;

/// Taps along an axis, at most.
pub(super) const TAPS: usize = 5;

/// Outputs of a strip, at most: those of 3 taps.
pub(super) const OUTPUTS: usize = 4;

/// The points but for infinity.
const FINITE: [f64; POINTS - 1] = [0.0, 1.0, -1.0, 0.5, -2.0];

/// Neighbouring outputs along an axis, as many as [`POINTS`] yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strip {
    /// The first output; also the first input, counted in strides from where the padding begins.
    pub first: usize,
    /// m.
    pub outputs: usize,
    /// m + r − 1: inputs, and points.
    pub points: usize,
}

/// r of an axis. With a stride of s every s-th tap is one of a window that moves by 1, over one of s interleaved maps.
#[inline(always)]
pub(super) fn taps_of(axis: &Axis) -> usize {
    axis.kernel.div_ceil(axis.stride)
}

/// How many strips an axis has.
#[inline(always)]
pub(super) fn strips(axis: &Axis) -> usize {
    axis.output.div_ceil(POINTS + 1 - taps_of(axis))
}

impl Strip {
    /// Strip `i` of an axis; they are as equal as can be, longer ones first.
    #[inline(always)]
    pub(super) fn at(axis: &Axis, i: usize) -> Strip {
        let count = strips(axis);
        let (base, longer) = (axis.output / count, axis.output % count);
        let outputs = base + usize::from(i < longer);
        Strip { first: i * base + i.min(longer), outputs, points: outputs + taps_of(axis) - 1 }
    }

    /// The place of a point among those of the longest strip of the axis: infinity is always the last.
    #[inline(always)]
    pub(super) fn place(self, longest: Strip, point: usize) -> usize {
        if point + 1 == self.points { longest.points - 1 } else { point }
    }

    /// The point at a place among those of the longest strip, if the strip has it.
    #[inline(always)]
    pub(super) fn point(self, longest: Strip, place: usize) -> Option<usize> {
        if place + 1 == longest.points {
            Some(self.points - 1)
        } else {
            (place + 1 < self.points).then_some(place)
        }
    }
}

/// Bᵀ of `n` points.
const fn inputs(n: usize) -> [[f32; POINTS]; POINTS] {
    let mut rows = [[0.0; POINTS]; POINTS];
    let mut i = 0;
    while i < n {
        // Π (x − q) over all finite points q but point i.
        let mut product = [0.0; POINTS];
        product[0] = 1.0;
        let mut j = 0;
        while j + 1 < n {
            if j != i {
                let mut k = n - 1;
                while k > 0 {
                    product[k] = product[k - 1] - FINITE[j] * product[k];
                    k -= 1;
                }
                product[0] *= -FINITE[j];
            }
            j += 1;
        }
        let mut k = 0;
        while k < n {
            rows[i][k] = product[k] as f32;
            k += 1;
        }
        i += 1;
    }
    rows
}

/// A of `n` points and `m` outputs.
const fn results(n: usize, m: usize) -> [[f32; OUTPUTS]; POINTS] {
    let mut rows = [[0.0; OUTPUTS]; POINTS];
    let mut i = 0;
    while i + 1 < n {
        let mut value = 1.0;
        let mut j = 0;
        while j + 1 < n {
            if j != i {
                value /= FINITE[i] - FINITE[j];
            }
            j += 1;
        }
        let mut k = 0;
        while k < m {
            rows[i][k] = value as f32;
            value *= FINITE[i];
            k += 1;
        }
        i += 1;
    }
    rows[n - 1][m - 1] = 1.0;
    rows
}

/// G of `n` points and `r` taps.
pub(super) fn tap_powers(n: usize, r: usize) -> [[f32; TAPS]; POINTS] {
    let mut rows = [[0.0; TAPS]; POINTS];
    for (row, point) in rows.iter_mut().zip(FINITE).take(n - 1) {
        for (k, value) in row.iter_mut().enumerate().take(r) {
            *value = point.powi(k as i32) as f32;
        }
    }
    rows[n - 1][r - 1] = 1.0;
    rows
}

/// `sum` and c·v, where the compiler knows c.
#[inline(always)]
unsafe fn and<S: Simd>(sum: Option<S::V>, c: f32, v: S::V) -> Option<S::V> {
    // SAFETY: the caller's promise.
    unsafe {
        match sum {
            sum if c == 0.0 => sum,
            None if c == 1.0 => Some(v),
            None => Some(S::mul(S::splat(c), v)),
            Some(sum) if c == 1.0 => Some(S::add(sum, v)),
            Some(sum) if c == -1.0 => Some(S::sub(sum, v)),
            Some(sum) => Some(S::fma(S::splat(c), v, sum)),
        }
    }
}

/// R sums of C vectors, row i with coefficients c(i, ·) that the compiler knows.
#[inline(always)]
unsafe fn times<S: Simd, const R: usize, const C: usize>(
    c: impl Fn(usize, usize) -> f32,
    v: [S::V; C],
) -> [S::V; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [S::zero(); R];
        for i in 0..R {
            let mut sum = None;
            for k in 0..C {
                sum = and::<S>(sum, c(i, k), v[k]);
            }
            sums[i] = sum.unwrap_or(S::zero());
        }
        sums
    }
}

/// Bᵀ d of N inputs.
#[inline(always)]
pub(super) unsafe fn at_points<S: Simd, const N: usize>(d: [S::V; N]) -> [S::V; N] {
    let b = const { inputs(N) };
    // SAFETY: the caller's promise.
    unsafe { times::<S, N, N>(|i, k| b[i][k], d) }
}

/// Aᵀ m of N products.
#[inline(always)]
pub(super) unsafe fn outputs_of<S: Simd, const N: usize, const M: usize>(m: [S::V; N]) -> [S::V; M] {
    let a = const { results(N, M) };
    // SAFETY: the caller's promise.
    unsafe { times::<S, M, N>(|k, i| a[i][k], m) }
}

/// A dy of M outputs.
#[inline(always)]
pub(super) unsafe fn points_of<S: Simd, const N: usize, const M: usize>(dy: [S::V; M]) -> [S::V; N] {
    let a = const { results(N, M) };
    // SAFETY: the caller's promise.
    unsafe { times::<S, N, M>(|i, k| a[i][k], dy) }
}

/// `$body` with the points and outputs of a strip as constants, for all that strips have.
macro_rules! of_strip {
    ($strip:expr, $n:ident, $m:ident => $body:expr) => {
        $crate::conv::winograd::points::of_strip!($strip, $n, $m => $body; 3 1, 4 2, 5 3, 6 4, 5 1, 6 2)
    };
    ($strip:expr, $n:ident, $m:ident => $body:expr; $($points:literal $outputs:literal),*) => {{
        let strip: $crate::conv::winograd::points::Strip = $strip;
        match (strip.points, strip.outputs) {
            $(($points, $outputs) => {
                const $n: usize = $points;
                const $m: usize = $outputs;
                $body
            })*
            _ => unreachable!("{strip:?}"),
        }
    }};
}
pub(super) use of_strip;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every strip computes its outputs, by scalars in f64 of the very tables.
    #[test]
    fn strips_have_the_outputs_of_the_definition() {
        for kernel in [3, 5] {
            for output in 1..30 {
                let axis = Axis { input: output, output, kernel, stride: 1, pad: kernel / 2 };
                let longest = Strip::at(&axis, 0);
                let g = tap_powers(longest.points, kernel);
                let mut next = 0;
                for strip in (0..strips(&axis)).map(|i| Strip::at(&axis, i)) {
                    assert_eq!(strip.first, next);
                    next += strip.outputs;
                    let input = |k: usize| (k * k % 7) as f64 - 2.0;
                    let tap = |k: usize| (k * 5 % 3) as f64 - 1.5;
                    for o in 0..strip.outputs {
                        let want: f64 = (0..kernel).map(|k| tap(k) * input(o + k)).sum();
                        let got: f64 = (0..strip.points)
                            .map(|i| {
                                let place = strip.place(longest, i);
                                assert_eq!(strip.point(longest, place), Some(i));
                                let u: f64 = (0..kernel).map(|k| f64::from(g[place][k]) * tap(k)).sum();
                                let b = inputs(strip.points)[i];
                                let v: f64 = (0..strip.points).map(|k| f64::from(b[k]) * input(k)).sum();
                                f64::from(results(strip.points, strip.outputs)[i][o]) * u * v
                            })
                            .sum();
                        assert!((got - want).abs() < 1e-5, "{strip:?} output {o}: {got}, not {want}");
                    }
                }
                assert_eq!(next, output);
            }
        }
    }
}

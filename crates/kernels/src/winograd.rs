//! Winograd's minimal filtering F(2×2, 3×3) (Winograd 1980; Lavin and Gray 2016): convolution of 3×3 windows with fewer
//! products. The transformations, on vectors of whatever lies side by side.
//!
//! Along one axis, two neighbouring outputs of three taps need four products instead of six:
//!
//! ```text
//! y = Aᵀ [(G g) ⊙ (Bᵀ d)]       g 3 taps, d 4 inputs, y 2 outputs, ⊙ product by product
//!
//!      1  0 −1  0          1   0   0
//! Bᵀ = 0  1  1  0     G =  ½   ½   ½      Aᵀ = 1  1  1  0
//!      0 −1  1  0          ½  −½   ½           0  1 −1 −1
//!      0  1  0 −1          0   0   1
//! ```
//!
//! Along both, tiles of 2×2 outputs need 16 instead of 36. Each of these 16 *points* is a product of matrices over channels.
//! A map of odd size ends in a tile of one output, whose last input is padding: two of its taps count, and they are the
//! whole of it: G's first row, and a fifth that is the middle tap alone, in place of the second (`Strip`). So 13 outputs
//! take 26 products, and 37 taps lie within the map: 676 against 1,369 in the plane.
//!
//! A window of 5 is the sum of two filters, of the first 3 taps and of the last 2. The second is one of 3 taps whose last is
//! zero, and so is its last point: 7 products for 10 along an axis, 49 for 100 in the plane. All filters of a window share
//! the points of a tile, so theirs is one sum over (filters, channels), and only the inputs are transformed for each.

use crate::conv::Axis;
use crate::simd::Simd;
use std::ops::Range;

/// Points of a tile along an axis.
pub(crate) const SIDE: usize = 4;

/// Points of a tile.
pub(crate) const POINTS: usize = SIDE * SIDE;

/// The taps that one filter takes of a window along an axis: a window of 5 is one of 3 and one of 2, which is one of 3 whose
/// last tap is zero.
pub(crate) const TAPS: usize = 3;

/// Filters of 3 taps along an axis that make a window of `kernel`.
pub(crate) fn filters(kernel: usize) -> usize {
    kernel.div_ceil(TAPS)
}

/// Whether filter `filter` of a window of `kernel` has a product at point `point`: the last point of one whose last tap is
/// zero is zero.
#[inline(always)]
pub(crate) fn has_point(kernel: usize, filter: usize, point: usize) -> bool {
    point + 1 != SIDE || (filter + 1) * TAPS <= kernel
}

/// Filters of a window that have a product at point `point`.
#[inline(always)]
pub(crate) fn filters_at(kernel: usize, point: usize) -> usize {
    (0..filters(kernel)).filter(|&filter| has_point(kernel, filter, point)).count()
}

/// Which of the filters that have a product at a point of the plane filter `filter` is, if it is one of them.
#[inline(always)]
pub(crate) fn place(kernel: usize, filter: [usize; 2], point: [usize; 2]) -> Option<usize> {
    let [a, b] = filter;
    let [i, j] = point;
    let has = has_point(kernel, a, i) && has_point(kernel, b, j);
    has.then(|| a * filters_at(kernel, j) + b)
}

/// Whether a convolution has windows that the method computes: 3×3 or 5×5, at every position, with even padding around them.
pub(crate) fn has_windows(rows: &Axis, columns: &Axis) -> bool {
    let axis =
        |a: &Axis| [(3, 1), (5, 2)].contains(&(a.kernel, a.pad)) && a.stride == 1 && a.input == a.output;
    axis(rows) && axis(columns) && rows.kernel == columns.kernel
}

/// The 4×4 positions that a tile reads of a map of height × width, from (row, column) on after so many of padding: their
/// numbers, none where they are outside.
#[inline(always)]
pub(crate) fn positions(
    [height, width]: [usize; 2],
    [row, column]: [usize; 2],
    pad: usize,
) -> [Option<usize>; POINTS] {
    std::array::from_fn(|i| {
        let (h, w) = ((row + i / SIDE).wrapping_sub(pad), (column + i % SIDE).wrapping_sub(pad));
        (h < height && w < width).then_some(h * width + w)
    })
}

/// One or two outputs along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strip {
    /// The first output.
    pub first: usize,
    /// One only at the end of an odd axis.
    pub outputs: usize,
    /// Points along the axis that have a product.
    pub points: usize,
}

impl Strip {
    /// Strip `i` of an axis of so many outputs of windows of `kernel`.
    #[inline(always)]
    pub(crate) fn at(i: usize, outputs: usize, kernel: usize) -> Strip {
        let outputs = (outputs - 2 * i).min(2);
        let points = match (outputs, kernel) {
            (2, _) => SIDE,
            // The third input is padding.
            (_, TAPS) => 2,
            // The last point is the second output's alone.
            _ => SIDE - 1,
        };
        Strip { first: 2 * i, outputs, points }
    }

    /// Which weights (a row of G, the middle tap being the fifth) the product at a point has.
    pub(crate) fn weights(self, point: usize) -> usize {
        if self.points == 2 && point == 1 { SIDE } else { point }
    }

    /// The point whose product has weights `weights`, if there is one.
    #[inline(always)]
    pub(crate) fn point(self, weights: usize) -> Option<usize> {
        match (self.points, weights) {
            (2, 0) => Some(0),
            (2, SIDE) => Some(1),
            (2, _) => None,
            (points, _) => (weights < points).then_some(weights),
        }
    }
}

/// Rows of G along an axis: the fifth only where a strip has one output of three taps.
pub(crate) fn weight_points(outputs: usize, kernel: usize) -> usize {
    SIDE + if kernel == TAPS { outputs % 2 } else { 0 }
}

/// The point whose product has row `weights` of G, and the strips of windows of 3 that have it, consecutive ones.
#[inline(always)]
pub(crate) fn strips_of(strips: usize, outputs: usize, weights: usize) -> (usize, Range<usize>) {
    let mut with = (0..strips).filter_map(|i| Some((i, Strip::at(i, outputs, TAPS).point(weights)?)));
    let Some((first, point)) = with.next() else { return (0, 0..0) };
    (point, first..first + 1 + with.count())
}

/// Bᵀ: row i is input `FIRST[i]` and input `SECOND[i]`, added in row 1, the second subtracted in the others.
pub(crate) const FIRST: [usize; SIDE] = [0, 1, 2, 1];
pub(crate) const SECOND: [usize; SIDE] = [2, 2, 1, 3];

/// Row `i` of Bᵀ, of the two inputs that it has.
#[inline(always)]
pub(crate) unsafe fn row_of_b<S: Simd>(i: usize, first: S::V, second: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if i == 1 { S::add(first, second) } else { S::sub(first, second) } }
}

/// Aᵀ m along one axis, of as many points as a strip has: its two outputs, the second without meaning if it has one.
#[inline(always)]
pub(crate) unsafe fn outputs_of<S: Simd>(m: [S::V; SIDE], points: usize) -> [S::V; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        match points {
            SIDE => [S::add(S::add(m[0], m[1]), m[2]), S::sub(S::sub(m[1], m[2]), m[3])],
            2 => [S::add(m[0], m[1]), S::zero()],
            _ => [S::add(S::add(m[0], m[1]), m[2]), S::zero()],
        }
    }
}

/// Row `i` of A along one axis, of two outputs.
#[inline(always)]
pub(crate) unsafe fn row_of_a<S: Simd>(i: usize, first: S::V, second: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        match i {
            0 => first,
            1 => S::add(first, second),
            2 => S::sub(first, second),
            _ => S::sub(S::zero(), second),
        }
    }
}

/// G g along one axis, and the middle tap alone.
#[inline(always)]
unsafe fn points_of_taps<S: Simd>(g: [S::V; 3]) -> [S::V; SIDE + 1] {
    // SAFETY: the caller's promise.
    unsafe {
        let (half, sides) = (S::splat(0.5), S::add(g[0], g[2]));
        let even = S::mul(half, S::add(sides, g[1]));
        let odd = S::mul(half, S::sub(sides, g[1]));
        [g[0], even, odd, g[2], g[1]]
    }
}

/// U = G g Gᵀ of 3×3 taps, for every row of G along both axes.
#[inline(always)]
pub(crate) unsafe fn weights<S: Simd>(g: [[S::V; 3]; 3]) -> [[S::V; SIDE + 1]; SIDE + 1] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::zero(); 3]; SIDE + 1];
        for s in 0..3 {
            let column = points_of_taps::<S>([g[0][s], g[1][s], g[2][s]]);
            for (row, value) in rows.iter_mut().zip(column) {
                row[s] = value;
            }
        }
        let mut all = [[S::zero(); SIDE + 1]; SIDE + 1];
        for (all, row) in all.iter_mut().zip(rows) {
            *all = points_of_taps::<S>(row);
        }
        all
    }
}

/// Gᵀ u along one axis.
#[inline(always)]
unsafe fn taps_of<S: Simd>(u: [S::V; SIDE + 1]) -> [S::V; 3] {
    // SAFETY: the caller's promise.
    unsafe {
        let half = S::splat(0.5);
        let sides = S::mul(half, S::add(u[1], u[2]));
        let middle = S::mul(half, S::sub(u[1], u[2]));
        [S::add(u[0], sides), S::add(middle, u[4]), S::add(u[3], sides)]
    }
}

/// dg = Gᵀ dU G: the gradient of 3×3 taps from that of their points.
#[inline(always)]
pub(crate) unsafe fn weight_gradient<S: Simd>(du: [[S::V; SIDE + 1]; SIDE + 1]) -> [[S::V; 3]; 3] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::zero(); SIDE + 1]; 3];
        for j in 0..=SIDE {
            let column = taps_of::<S>([du[0][j], du[1][j], du[2][j], du[3][j], du[4][j]]);
            for (row, value) in rows.iter_mut().zip(column) {
                row[j] = value;
            }
        }
        [taps_of::<S>(rows[0]), taps_of::<S>(rows[1]), taps_of::<S>(rows[2])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_of_a_strip_has_its_weights() {
        for (outputs, kernel) in (1..8usize).flat_map(|outputs| [(outputs, 3), (outputs, 5)]) {
            let strips: Vec<Strip> =
                (0..outputs.div_ceil(2)).map(|i| Strip::at(i, outputs, kernel)).collect();
            assert_eq!(strips.iter().map(|s| s.outputs).sum::<usize>(), outputs);
            for strip in strips {
                let mut points: Vec<usize> =
                    (0..weight_points(outputs, kernel)).filter_map(|weights| strip.point(weights)).collect();
                points.sort_unstable();
                assert_eq!(points, (0..strip.points).collect::<Vec<_>>(), "{strip:?}");
                assert!(points.iter().all(|&point| strip.point(strip.weights(point)) == Some(point)));
            }
        }
    }
}

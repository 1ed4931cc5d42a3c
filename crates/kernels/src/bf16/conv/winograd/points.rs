//! Winograd's minimal filtering F(2×2, 3×3) (Winograd 1980; Lavin and Gray 2016): convolution of 3×3 windows with fewer
//! products. The transformations, on vectors of whatever lies side by side. More than these four points an axis, as f32 has
//! them, would make too much of bf16's rounding.
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
//! A window of 5 is the sum of two filters two taps apart: one of its first three taps, and one of a zero and the last two,
//! whose first point is zero too: 7 products for 10 along an axis, 49 for 100 in the plane. Two taps apart is as far as tiles
//! are, so what the second filter reads of a tile is what the first reads of the next: inputs are transformed once. And all
//! filters of a window share the points of a tile, so theirs is one sum over (filters, channels).

use crate::simd::Simd;
use std::ops::Range;

/// Points of a tile along an axis.
pub(super) const SIDE: usize = 4;

/// Points of a tile.
pub(super) const POINTS: usize = SIDE * SIDE;

/// Taps of a filter along an axis.
pub(super) const TAPS: usize = 3;

/// Filters along an axis that make a window of `kernel`.
#[inline(always)]
pub(super) fn filters(kernel: usize) -> usize {
    (kernel - 1) / 2
}

/// Which tap of the window a filter's is, unless it is a zero: the filters of a window are two taps apart, and the tap that
/// two of them share is the first's.
#[inline(always)]
pub(super) fn tap(filter: usize, tap: usize) -> Option<usize> {
    (filter == 0 || tap != 0).then_some(2 * filter + tap)
}

/// Filters along an axis that have a product at point `point`, the first ones: where the first tap is zero, so is the first
/// point.
#[inline(always)]
pub(super) fn filters_at(kernel: usize, point: usize) -> usize {
    if point == 0 { 1 } else { filters(kernel) }
}

/// Which of the filters that have a product at a point of the plane filter `filter` is, if it is one of them.
#[inline(always)]
pub(super) fn place(kernel: usize, filter: [usize; 2], point: [usize; 2]) -> Option<usize> {
    let [down, across] = point.map(|point| filters_at(kernel, point));
    (filter[0] < down && filter[1] < across).then(|| filter[0] * across + filter[1])
}

/// The 4×4 positions that a tile reads of a map of height × width, from (row, column) on after so many of padding: their
/// numbers, none where they are outside.
#[inline(always)]
pub(super) fn positions(
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
pub(super) struct Strip {
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
    pub(super) fn at(i: usize, outputs: usize, kernel: usize) -> Strip {
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

    /// The point whose product has weights `weights`, if there is one.
    #[inline(always)]
    pub(super) fn point(self, weights: usize) -> Option<usize> {
        match (self.points, weights) {
            (2, 0) => Some(0),
            (2, SIDE) => Some(1),
            (2, _) => None,
            (points, _) => (weights < points).then_some(weights),
        }
    }
}

/// Rows of G along an axis: the fifth only where a strip has one output of three taps.
pub(super) fn weight_points(outputs: usize, kernel: usize) -> usize {
    SIDE + if kernel == TAPS { outputs % 2 } else { 0 }
}

/// The point whose product has row `weights` of G, and the strips that have it, consecutive ones.
#[inline(always)]
pub(super) fn strips_of(outputs: usize, kernel: usize, weights: usize) -> (usize, Range<usize>) {
    let strips = 0..outputs.div_ceil(2);
    let mut with = strips.filter_map(|i| Some((i, Strip::at(i, outputs, kernel).point(weights)?)));
    let Some((first, point)) = with.next() else { return (0, 0..0) };
    (point, first..first + 1 + with.count())
}

/// Bᵀ: row i is input `FIRST[i]` and input `SECOND[i]`, added in row 1, the second subtracted in the others.
pub(super) const FIRST: [usize; SIDE] = [0, 1, 2, 1];
pub(super) const SECOND: [usize; SIDE] = [2, 2, 1, 3];

/// Row `i` of Bᵀ, of the two inputs that it has.
#[inline(always)]
pub(super) unsafe fn row_of_b<S: Simd>(i: usize, first: S::V, second: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if i == 1 { S::add(first, second) } else { S::sub(first, second) } }
}

/// Aᵀ m along one axis, of as many points as a strip has: its two outputs, the second without meaning if it has one.
#[inline(always)]
pub(super) unsafe fn outputs_of<S: Simd>(m: [S::V; SIDE], points: usize) -> [S::V; 2] {
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
pub(super) unsafe fn row_of_a<S: Simd>(i: usize, first: S::V, second: S::V) -> S::V {
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
pub(super) unsafe fn weights<S: Simd>(g: [[S::V; 3]; 3]) -> [[S::V; SIDE + 1]; SIDE + 1] {
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
pub(super) unsafe fn weight_gradient<S: Simd>(du: [[S::V; SIDE + 1]; SIDE + 1]) -> [[S::V; 3]; 3] {
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
            }
        }
    }
}

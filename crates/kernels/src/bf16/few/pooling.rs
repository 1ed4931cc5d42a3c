//! Max and average pooling, forward, on a few pictures.

use super::{PictureLayout, store_first_pairs};
use crate::bf16::pairs;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, vectors};

/// A pooling of pictures; windows may overhang the last row and column, and take what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// x
    pub input: PictureLayout,
    /// y, with the same splits or others whose pairs are the same.
    pub output: PictureLayout,
    /// Rows and columns of a window.
    pub size: usize,
    /// From a window to the next.
    pub stride: usize,
    /// The mean of a window instead of its largest value.
    pub average: bool,
}

/// y = the largest value or the mean of each window, for `count` pictures. y's border is not written.
pub fn forward(ctx: &mut Context, g: &Geometry, count: usize, x: &[f32], y: &mut [f32]) {
    let Geometry { input, output, stride, .. } = *g;
    assert!(x.len() >= count * input.picture_len() && y.len() >= count * output.picture_len(), "maps");
    assert_eq!(input.channels, output.channels, "channels");
    let even = |map: PictureLayout| map.splits == 1 || map.split_channels().is_multiple_of(2);
    assert!(input.splits == output.splits || (even(input) && even(output)), "splits cut a pair");
    assert!((output.height - 1) * stride < input.height, "rows");
    assert!((output.width - 1) * stride < input.width, "columns");
    ctx.run(&Forward { g: *g, count, x: pairs(x), y: Ptr::from_mut(y) });
}

struct Forward<'a> {
    g: Geometry,
    count: usize,
    x: &'a [u32],
    y: Ptr,
}

impl Kernel for Forward<'_> {
    /// Rows of the output.
    fn units(&self) -> usize {
        self.count * self.g.output.height
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Geometry { input, output, size, stride, average } = self.g;
        let (picture, row) = (unit / output.height, unit % output.height);
        let rows = row * stride..input.height.min(row * stride + size);
        // Pairs that lie together on both sides.
        let together = input.split_pairs().min(output.split_pairs());
        for column in 0..output.width {
            let columns = column * stride..input.width.min(column * stride + size);
            for part in (0..input.splits * input.split_pairs()).step_by(together) {
                let at = |map: PictureLayout, h: usize, w: usize| {
                    let (split, p) = (part / map.split_pairs(), part % map.split_pairs());
                    picture * map.picture_len() + map.at(split, h, w) + p
                };
                for (p, n) in vectors(together, S::LANES) {
                    // SAFETY: the window is within the map; a vector that begins within it reaches less than the zeros
                    // behind a picture. A unit owns its row of the output.
                    unsafe {
                        let load =
                            |h: usize, w: usize| S::load_pairs(self.x.as_ptr().add(at(input, h, w) + p));
                        let (mut even, mut odd) = load(rows.start, columns.start);
                        for h in rows.clone() {
                            for w in columns.clone().skip(usize::from(h == rows.start)) {
                                let next = load(h, w);
                                (even, odd) = if average {
                                    (S::add(even, next.0), S::add(odd, next.1))
                                } else {
                                    // In this order a NaN of the later position passes through.
                                    (S::max(even, next.0), S::max(odd, next.1))
                                };
                            }
                        }
                        if average {
                            let count = S::splat((rows.len() * columns.len()) as f32);
                            (even, odd) = (S::div(even, count), S::div(odd, count));
                        }
                        store_first_pairs::<S>(self.y.at(at(output, row, column) + p).cast(), even, odd, n);
                    }
                }
            }
        }
    }
}

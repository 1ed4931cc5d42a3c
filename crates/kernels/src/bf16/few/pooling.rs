//! Max pooling forward.

use super::RowLayout;
use crate::bf16::{EDGE, pair, pairs};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// A pooling of pictures; windows may overhang the last row and column, and take what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// x
    pub input: RowLayout,
    /// y, with the same splits or others whose pairs are the same.
    pub output: RowLayout,
    /// Rows and columns of a window.
    pub size: usize,
    /// From a window to the next.
    pub stride: usize,
}

impl Geometry {
    /// Elements of scratch that each thread needs: the largest of each column of a window's rows, of even channels and of
    /// odd ones, and room for the last vector of each.
    pub fn scratch_len(&self) -> usize {
        2 * self.half()
    }

    fn half(&self) -> usize {
        self.input.pitch() + EDGE
    }
}

/// y = the largest of each window, for `count` pictures. y's border is not written.
pub fn max(ctx: &mut Context, g: &Geometry, count: usize, x: &[f32], y: &mut [f32]) {
    let Geometry { input, output, stride, .. } = *g;
    assert!(x.len() >= count * input.picture_len() && y.len() >= count * output.picture_len(), "maps");
    assert_eq!(input.channels, output.channels, "channels");
    let even = |map: RowLayout| map.splits == 1 || map.split_channels().is_multiple_of(2);
    assert!(input.splits == output.splits || (even(input) && even(output)), "splits cut a pair");
    assert!((output.height - 1) * stride < input.height, "rows");
    assert!((output.width - 1) * stride < input.width, "columns");
    ctx.run(&Max { g: *g, count, x: pairs(x), y: Ptr::from_mut(y) });
}

struct Max<'a> {
    g: Geometry,
    count: usize,
    x: &'a [u32],
    y: Ptr,
}

impl Kernel for Max<'_> {
    /// Rows of the output.
    fn units(&self) -> usize {
        self.count * self.g.output.height
    }

    fn scratch_len(&self) -> usize {
        self.g.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let Geometry { input, output, size, stride } = self.g;
        let (picture, row) = (unit / output.height, unit % output.height);
        let rows = row * stride..input.height.min(row * stride + size);
        let half = self.g.half();
        // SAFETY: rows and columns are within the maps; a vector that begins within a row reaches less than a tile
        // beyond it, which the picture and the scratch have room for. A unit owns its row of the output.
        unsafe {
            for pair_index in 0..input.splits * input.split_pairs() {
                let (split, p) = (pair_index / input.split_pairs(), pair_index % input.split_pairs());
                for w in (0..input.width).step_by(S::LANES) {
                    let at = |h: usize| {
                        let at = picture * input.picture_len() + input.at(split, p, h, w);
                        S::load_pairs(self.x.as_ptr().add(at))
                    };
                    let (mut even, mut odd) = at(rows.start);
                    for h in rows.start + 1..rows.end {
                        let next = at(h);
                        // In this order a NaN of the later row passes through.
                        (even, odd) = (S::max(even, next.0), S::max(odd, next.1));
                    }
                    S::store(scratch.add(w), even);
                    S::store(scratch.add(half + w), odd);
                }
                let evens = std::slice::from_raw_parts(scratch, input.width);
                let odds = std::slice::from_raw_parts(scratch.add(half), input.width);
                let (split, p) = (pair_index / output.split_pairs(), pair_index % output.split_pairs());
                let to = picture * output.picture_len() + output.at(split, p, row, 0);
                let to = std::slice::from_raw_parts_mut(self.y.at(to).cast::<u32>(), output.width);
                for (w, to) in to.iter_mut().enumerate() {
                    let window = w * stride..input.width.min(w * stride + size);
                    let (mut even, mut odd) = (evens[window.start], odds[window.start]);
                    for i in window.start + 1..window.end {
                        even = if even > evens[i] { even } else { evens[i] };
                        odd = if odd > odds[i] { odd } else { odds[i] };
                    }
                    *to = pair(even, odd);
                }
            }
        }
    }
}

//! Local response normalization within a map (see [`crate::spatial_lrn`]), forward, on a few pictures.

use super::{PictureLayout, store_first_pairs};
use crate::bf16::pairs;
use crate::lrn::power;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::{Simd, vectors};
use crate::spatial_lrn::SpatialLrn;

/// y = x·d^−β for `count` pictures. y's border is not written.
pub fn forward(
    ctx: &mut Context,
    lrn: &SpatialLrn,
    map: &PictureLayout,
    count: usize,
    x: &[f32],
    y: &mut [f32],
) {
    let len = count * map.picture_len();
    assert!(x.len() >= len && y.len() >= len, "maps");
    assert!(lrn.height == map.height && lrn.width == map.width && lrn.size > 0, "map");
    ctx.run(&Forward { lrn: *lrn, map: *map, count, x: pairs(x), y: Ptr::from_mut(y) });
}

struct Forward<'a> {
    lrn: SpatialLrn,
    map: PictureLayout,
    count: usize,
    x: &'a [u32],
    y: Ptr,
}

impl Kernel for Forward<'_> {
    /// Rows of splits.
    fn units(&self) -> usize {
        self.count * self.map.splits * self.map.height
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let map = self.map;
        let (h, rest) = (unit % map.height, unit / map.height);
        let (split, picture) = (rest % map.splits, rest / map.splits);
        let start = picture * map.picture_len();
        let rows = self.lrn.window(h, self.lrn.size / 2, map.height);
        for w in 0..map.width {
            let columns = self.lrn.window(w, self.lrn.size / 2, map.width);
            for (p, n) in vectors(map.split_pairs(), S::LANES) {
                // SAFETY: the window is within the map; a vector that begins within it reaches less than the zeros behind
                // a picture. A unit owns its row of y.
                unsafe {
                    let load = |h: usize, w: usize| {
                        S::load_pairs(self.x.as_ptr().add(start + map.at(split, h, w) + p))
                    };
                    let mut sum = (S::zero(), S::zero());
                    for row in rows.clone() {
                        for column in columns.clone() {
                            let x = load(row, column);
                            sum = (S::fma(x.0, x.0, sum.0), S::fma(x.1, x.1, sum.1));
                        }
                    }
                    let scaled = |x: S::V, sum: S::V| {
                        let d = S::fma(S::splat(self.lrn.alpha), sum, S::splat(self.lrn.k));
                        S::mul(x, power::<S>(d, self.lrn.beta))
                    };
                    let x = load(h, w);
                    let to = self.y.at(start + map.at(split, h, w) + p).cast();
                    store_first_pairs::<S>(to, scaled(x.0, sum.0), scaled(x.1, sum.1), n);
                }
            }
        }
    }
}

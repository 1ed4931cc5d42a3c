//! A convolution of the f32 executor's maps by its definition.

use alexnet_kernels::conv::{Fold, Geometry};

/// Calls `f` with the offsets of input, weight and output and the filter of every product, for the first `count` pictures.
pub fn each_product(g: &Geometry, fold: Fold, count: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    let channels = g.c / g.groups / fold.fold;
    for n in 0..count {
        for k in 0..g.k {
            let group = k / (g.k / g.groups);
            for p in 0..g.rows.output {
                for q in 0..g.columns.output {
                    let y = (((n / g.block * g.rows.output + p) * g.columns.output + q) * g.block
                        + n % g.block)
                        * g.k
                        + k;
                    for c in 0..g.c / g.groups {
                        for r in 0..g.rows.kernel {
                            for s in 0..g.columns.kernel {
                                let h = (p * g.rows.stride + r) as isize - g.rows.pad as isize;
                                let w = (q * g.columns.stride + s) as isize - g.columns.pad as isize;
                                if h < 0
                                    || w < 0
                                    || h >= g.rows.input as isize
                                    || w >= g.columns.input as isize
                                {
                                    continue;
                                }
                                let (h, w) = (h as usize, w as usize);
                                let x = (((n / g.block * g.rows.input + h) * g.columns.input + w) * g.block
                                    + n % g.block)
                                    * g.c
                                    + group * (g.c / g.groups)
                                    + c;
                                let column = s * fold.fold + c / channels;
                                if column < fold.kernel {
                                    let weight = ((k * channels + c % channels) * g.rows.kernel + r)
                                        * fold.kernel
                                        + column;
                                    f(x, weight, y, k);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

//! The constants of normalizations as the kernels take them, in f32.

use crate::net;
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::spatial_lrn::SpatialLrn;

/// A normalization across maps, of `channels` channels.
pub(super) fn lrn(op: &net::Lrn, channels: usize) -> Lrn {
    Lrn {
        size: op.size,
        k: op.k as f32,
        alpha: op.effective_alpha() as f32,
        beta: op.beta as f32,
        channels,
        towers: op.towers,
    }
}

/// A normalization within maps of `height` rows and `width` columns, with `depth` values at every position.
pub(super) fn spatial_lrn(op: &net::SpatialLrn, height: usize, width: usize, depth: usize) -> SpatialLrn {
    SpatialLrn {
        size: op.size,
        k: op.k as f32,
        alpha: op.effective_alpha() as f32,
        beta: op.beta as f32,
        height,
        width,
        depth,
    }
}

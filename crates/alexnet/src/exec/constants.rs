//! Operations as the kernels take them: windows along an axis, and the constants of normalizations in f32.

use crate::net;
use alexnet_kernels::conv::Axis;
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::spatial_lrn::SpatialLrn;

/// One axis of a convolution, whose `fold` neighbouring pixels are channels of one position: then its kernel is that much
/// smaller, its stride 1, and the padding part of the input.
pub(super) fn conv_axis(op: &net::Conv, fold: usize, input: usize, output: usize) -> Axis {
    match fold {
        1 => Axis { input, output, kernel: op.kernel, stride: op.stride, pad: op.pad.before },
        fold => Axis { input, output, kernel: op.kernel.div_ceil(fold), stride: 1, pad: 0 },
    }
}

/// One axis of a pooling.
pub(super) fn pool_axis(op: &net::Pool, input: usize, output: usize) -> Axis {
    Axis { input, output, kernel: op.size, stride: op.stride, pad: 0 }
}

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

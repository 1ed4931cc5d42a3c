//! Normalization and pooling stages.

use super::{Cpu, StageState};
use crate::exec::contract::Batch;
use crate::net::{self, PoolKind, Shape, Ties};
use alexnet_kernels::conv::Axis;
use alexnet_kernels::lrn::{self, Lrn};
use alexnet_kernels::pooling::{self, Geometry, Share};
use alexnet_kernels::spatial_lrn::{self, SpatialLrn};

/// The kernel's constants of a normalization across maps.
pub(in crate::exec) fn lrn(op: &net::Lrn, channels: usize) -> Lrn {
    Lrn {
        size: op.size,
        k: op.k as f32,
        alpha: op.effective_alpha() as f32,
        beta: op.beta as f32,
        channels,
        towers: op.towers,
    }
}

/// The kernel's constants of a normalization within a map.
pub(super) fn spatial_lrn(op: &net::SpatialLrn, shape: Shape, block: usize) -> SpatialLrn {
    SpatialLrn {
        size: op.size,
        k: op.k as f32,
        alpha: op.effective_alpha() as f32,
        beta: op.beta as f32,
        height: shape.h,
        width: shape.w,
        depth: block * shape.c,
    }
}

/// The geometry of a pooling and what it does.
pub(super) struct PoolState {
    geometry: Geometry,
    kind: PoolKind,
    ties: Ties,
}

impl PoolState {
    pub(super) fn new(op: &net::Pool, input: Shape, output: Shape, block: usize) -> Self {
        let axis = |input, output| Axis { input, output, kernel: op.size, stride: op.stride, pad: 0 };
        let (rows, columns) = (axis(input.h, output.h), axis(input.w, output.w));
        PoolState {
            geometry: Geometry { rows, columns, depth: block * input.c },
            kind: op.kind,
            ties: op.ties,
        }
    }
}

impl Cpu {
    pub(super) fn norm_pool_forward(&mut self, i: usize, batch: &Batch) {
        let (from, to) = self.used_blocks(i, batch);
        let ([x], [y]) = self
            .arena
            .split([self.maps[i].first(if i == 0 { 0 } else { from })], [self.maps[i + 1].first(to)]);
        let x = &Self::input_of(x, batch, i)[..from];
        match &self.stages[i] {
            StageState::Lrn(state) => lrn::forward(&mut self.ctx, state, x, y),
            StageState::SpatialLrn(state, _) => spatial_lrn::forward(&mut self.ctx, state, x, y),
            StageState::Pool(state) => match state.kind {
                PoolKind::Max => {
                    pooling::max_forward(&mut self.ctx, &state.geometry, x, y, &mut self.winners[i][..to]);
                }
                PoolKind::Average => pooling::average_forward(&mut self.ctx, &state.geometry, x, y),
            },
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }

    pub(super) fn norm_pool_backward(&mut self, i: usize, batch: &Batch) {
        let (from, to) = self.used_blocks(i, batch);
        let terms = match &self.stages[i] {
            StageState::SpatialLrn(_, terms) => terms.first(from),
            _ => Default::default(),
        };
        let ([x, y, dy], [dx, terms]) = self.arena.split(
            [self.maps[i].first(from), self.maps[i + 1].first(to), self.gradients[i + 1].first(to)],
            [self.gradients[i].first(from), terms],
        );
        let relu = self.plan.stages[i].masks_input;
        match &self.stages[i] {
            StageState::Lrn(state) => lrn::backward(&mut self.ctx, state, x, dy, relu, dx),
            StageState::SpatialLrn(state, _) => {
                spatial_lrn::backward(&mut self.ctx, state, x, dy, relu, terms, dx);
            }
            StageState::Pool(state) => {
                let share = match (state.kind, state.ties) {
                    (PoolKind::Average, _) => Share::Mean,
                    (PoolKind::Max, Ties::First) => Share::Winner(&self.winners[i][..to]),
                    (PoolKind::Max, Ties::All) => Share::EveryMaximum { x, y },
                };
                pooling::backward(&mut self.ctx, &state.geometry, share, dy, relu.then_some(x), dx);
            }
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }

    /// Elements of the blocks in which the batch has pictures, of the map before and of the map after stage `i`.
    fn used_blocks(&self, i: usize, batch: &Batch) -> (usize, usize) {
        let pictures = batch.count.div_ceil(self.plan.block) * self.plan.block;
        (pictures * self.plan.maps[i].shape.len(), pictures * self.plan.maps[i + 1].shape.len())
    }
}

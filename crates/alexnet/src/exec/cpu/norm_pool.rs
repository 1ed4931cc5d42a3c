//! Normalization and pooling stages.

use super::{Cpu, StageState};
use crate::exec::constants::pool_axis;
use crate::exec::contract::Batch;
use crate::net::{self, PoolKind, Shape, Ties};
use alexnet_kernels::lrn;
use alexnet_kernels::lrn_pool::{self, LrnPool, Won};
use alexnet_kernels::pooling::{self, Geometry, Share};
use alexnet_kernels::spatial_lrn;

/// The geometry of a pooling and what it does.
pub(super) struct PoolState {
    geometry: Geometry,
    kind: PoolKind,
    ties: Ties,
    /// Which input each maximum came from; empty where nobody asks.
    winners: Vec<u8>,
}

impl PoolState {
    /// `output_len` is the length of the map after it, `gradient` whether that of its input is wanted.
    pub(super) fn new(
        op: &net::Pool,
        input: Shape,
        output: Shape,
        block: usize,
        output_len: usize,
        gradient: bool,
    ) -> Self {
        let (rows, columns) = (pool_axis(op, input.h, output.h), pool_axis(op, input.w, output.w));
        PoolState {
            geometry: Geometry { rows, columns, depth: block * input.c },
            kind: op.kind,
            ties: op.ties,
            winners: vec![
                0;
                if gradient && (op.kind, op.ties) == (PoolKind::Max, Ties::First) {
                    output_len
                } else {
                    0
                }
            ],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.winners.len()
    }

    /// Where the winners of the first `len` outputs go, if they are wanted.
    fn record(&mut self, len: usize) -> Option<&mut [u8]> {
        (!self.winners.is_empty()).then(|| &mut self.winners[..len])
    }

    /// With the normalization before it.
    pub(super) fn after(&self, lrn: lrn::Lrn) -> LrnPool {
        LrnPool { lrn, pool: self.geometry }
    }
}

impl Cpu {
    pub(super) fn norm_pool_forward(&mut self, i: usize, batch: &Batch) {
        let (from, to) = self.used_blocks(i, batch);
        let ([x], [y]) = self.frame.arena.split(
            [self.frame.maps[i].first(if i == 0 { 0 } else { from })],
            [self.frame.maps[i + 1].first(to)],
        );
        let x = &Self::input_of(x, batch, i)[..from];
        match &mut self.stages[i] {
            StageState::Lrn(state) => lrn::forward(&mut self.frame.ctx, state, x, y),
            StageState::SpatialLrn(state, _) => spatial_lrn::forward(&mut self.frame.ctx, state, x, y),
            StageState::Pool(state) => match state.kind {
                PoolKind::Max => {
                    let geometry = state.geometry;
                    pooling::max_forward(&mut self.frame.ctx, &geometry, x, y, state.record(to));
                }
                PoolKind::Average => pooling::average_forward(&mut self.frame.ctx, &state.geometry, x, y),
            },
            StageState::LrnPool(lrn, state) => {
                lrn_pool::forward(&mut self.frame.ctx, &state.after(*lrn), x, y, state.record(to));
            }
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }

    pub(super) fn norm_pool_backward(&mut self, i: usize, batch: &Batch) {
        let (from, to) = self.used_blocks(i, batch);
        let terms = match &self.stages[i] {
            StageState::SpatialLrn(_, terms) => terms.first(from),
            _ => Default::default(),
        };
        let ([x, y, dy], [dx, terms]) = self.frame.arena.split(
            [
                self.frame.maps[i].first(from),
                self.frame.maps[i + 1].first(to),
                self.frame.gradients[i + 1].first(to),
            ],
            [self.frame.gradients[i].first(from), terms],
        );
        let relu = self.frame.plan.stages[i].masks_input;
        match &self.stages[i] {
            StageState::Lrn(state) => lrn::backward(&mut self.frame.ctx, state, x, dy, relu, dx),
            StageState::SpatialLrn(state, _) => {
                spatial_lrn::backward(&mut self.frame.ctx, state, x, dy, relu, terms, dx);
            }
            StageState::Pool(state) => {
                let share = match (state.kind, state.ties) {
                    (PoolKind::Average, _) => Share::Mean,
                    (PoolKind::Max, Ties::First) => Share::Winner(&state.winners[..to]),
                    (PoolKind::Max, Ties::All) => Share::EveryMaximum { x, y },
                };
                pooling::backward(&mut self.frame.ctx, &state.geometry, share, dy, relu.then_some(x), dx);
            }
            StageState::LrnPool(lrn, state) => {
                let won = match state.ties {
                    Ties::First => Won::Winner(&state.winners[..to]),
                    Ties::All => Won::EveryMaximum(y),
                };
                lrn_pool::backward(&mut self.frame.ctx, &state.after(*lrn), x, won, dy, relu, dx);
            }
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }

    /// Elements of the blocks in which the batch has pictures, of the map before and of the map after stage `i`.
    fn used_blocks(&self, i: usize, batch: &Batch) -> (usize, usize) {
        let pictures = batch.count.div_ceil(self.frame.plan.block) * self.frame.plan.block;
        (pictures * self.frame.plan.maps[i].shape.len(), pictures * self.frame.plan.maps[i + 1].shape.len())
    }
}

//! Normalization and pooling stages.

use super::{Mixed, StageState};
use crate::exec::constants::pool_axis;
use crate::exec::contract::Batch;
use crate::net::{self, PoolKind, Ties};
use alexnet_kernels::bf16::convert::{round_map, widen_map};
use alexnet_kernels::bf16::{MapLayout, PICTURES, lrn, pooling as pairs_pooling, spatial_lrn};
use alexnet_kernels::pooling::{self, Geometry, Share};

/// f32 values of one position of one split of a widened map.
pub(super) fn depth(map: &MapLayout) -> usize {
    2 * map.split_pairs() * PICTURES
}

/// The geometry of a pooling and what it does.
pub(super) struct PoolState {
    geometry: pairs_pooling::Geometry,
    kind: PoolKind,
    ties: Ties,
    /// Which input each maximum came from; empty for averages.
    winners: Vec<u8>,
}

impl PoolState {
    pub(super) fn new(op: &net::Pool, input: &MapLayout, output: &MapLayout, blocks: usize) -> Self {
        let (rows, columns) =
            (pool_axis(op, input.height, output.height), pool_axis(op, input.width, output.width));
        let geometry = pairs_pooling::Geometry { input: *input, output: *output, rows, columns };
        let winners = if op.kind == PoolKind::Max { 2 * blocks * output.block_len() } else { 0 };
        PoolState { geometry, kind: op.kind, ties: op.ties, winners: vec![0; winners] }
    }

    pub(super) fn bytes(&self) -> usize {
        self.winners.len()
    }

    /// Whether it is computed on widened maps.
    pub(super) fn widens(&self) -> bool {
        self.kind == PoolKind::Average
    }

    /// The geometry on widened maps, whose splits count as blocks.
    fn wide(&self) -> Geometry {
        Geometry {
            rows: self.geometry.rows,
            columns: self.geometry.columns,
            depth: depth(&self.geometry.input),
        }
    }
}

impl Mixed {
    pub(super) fn norm_pool_forward(&mut self, i: usize, batch: &Batch) {
        let blocks = self.frame.blocks(batch);
        let [from, to] = [i, i + 1].map(|map| self.used(map, batch));
        let ([x], [y, x_wide, y_wide]) = self.frame.arena.split(
            [self.frame.maps[i]],
            [self.frame.maps[i + 1], self.wide[0].at_most(2 * from), self.wide[1].at_most(2 * to)],
        );
        let ctx = &mut self.frame.ctx;
        match &mut self.stages[i] {
            StageState::Lrn(op) => lrn::forward(ctx, op, &self.layouts[i], blocks, x, y),
            StageState::SpatialLrn(op) => spatial_lrn::forward(ctx, op, &self.layouts[i], blocks, x, y),
            StageState::Pool(state) if state.widens() => {
                widen_map(ctx, &x[..from], x_wide);
                pooling::average_forward(ctx, &state.wide(), x_wide, y_wide);
                round_map(ctx, y_wide, &mut y[..to]);
            }
            StageState::Pool(state) => {
                pairs_pooling::max_forward(ctx, &state.geometry, blocks, x, y, &mut state.winners);
            }
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }

    pub(super) fn norm_pool_backward(&mut self, i: usize, batch: &Batch) {
        let blocks = self.frame.blocks(batch);
        let [from, to] = [i, i + 1].map(|map| self.used(map, batch));
        let ([x, y, dy], [dx, x_wide, dy_wide, dx_wide]) = self.frame.arena.split(
            [self.frame.maps[i], self.frame.maps[i + 1], self.frame.gradients[i + 1]],
            [
                self.frame.gradients[i],
                self.wide[0].at_most(2 * from),
                self.wide[2].at_most(2 * to),
                self.wide[3].at_most(2 * from),
            ],
        );
        let masks = self.frame.plan.stages[i].masks_input;
        let ctx = &mut self.frame.ctx;
        match &self.stages[i] {
            StageState::Lrn(op) => lrn::backward(ctx, op, &self.layouts[i], blocks, x, dy, masks, dx),
            StageState::SpatialLrn(op) => {
                spatial_lrn::backward(ctx, op, &self.layouts[i], blocks, x, dy, masks, dx);
            }
            StageState::Pool(state) if state.widens() => {
                widen_map(ctx, &x[..from], x_wide);
                widen_map(ctx, &dy[..to], dy_wide);
                let relu = masks.then_some(&*x_wide);
                pooling::backward(ctx, &state.wide(), Share::Mean, dy_wide, relu, dx_wide);
                round_map(ctx, dx_wide, &mut dx[..from]);
            }
            StageState::Pool(state) => {
                let share = match state.ties {
                    Ties::First => pairs_pooling::Share::Winner(&state.winners),
                    Ties::All => pairs_pooling::Share::EveryMaximum { x, y },
                };
                let relu = masks.then_some(x);
                pairs_pooling::max_backward(ctx, &state.geometry, blocks, dy, share, relu, dx);
            }
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }
}

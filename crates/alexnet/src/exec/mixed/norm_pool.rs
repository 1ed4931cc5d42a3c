//! Normalization and pooling stages.

use super::{Mixed, StageState};
use crate::exec::constants::pool_axis;
use crate::exec::contract::Batch;
use crate::net::{self, PoolKind, Ties};
use alexnet_kernels::bf16::convert::{round_map, widen_map};
use alexnet_kernels::bf16::lrn_pool::{self, LrnPool};
use alexnet_kernels::bf16::pooling::{Record, Winners};
use alexnet_kernels::bf16::{MapLayout, PICTURES, lrn, pooling as pairs_pooling, spatial_lrn};
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::pooling::{self, Geometry, Share};

/// f32 values of one position of one split of a widened map.
pub(super) fn depth(map: &MapLayout) -> usize {
    2 * map.split_pairs() * PICTURES
}

/// The geometry of a pooling and what it does.
pub(super) struct PoolState {
    pub geometry: pairs_pooling::Geometry,
    kind: PoolKind,
    /// Which places of each window won; nothing for averages, and where no gradient is wanted.
    pub places: Vec<u16>,
    winners: Winners,
}

impl PoolState {
    /// `gradient`: whether that of its input is wanted.
    pub(super) fn new(
        op: &net::Pool,
        input: &MapLayout,
        output: &MapLayout,
        blocks: usize,
        gradient: bool,
    ) -> Self {
        let (rows, columns) =
            (pool_axis(op, input.height, output.height), pool_axis(op, input.width, output.width));
        let geometry = pairs_pooling::Geometry { input: *input, output: *output, rows, columns };
        let wins = gradient && op.kind == PoolKind::Max;
        let places = vec![0; if wins { 2 * blocks * output.block_len() } else { 0 }];
        let winners = match op.ties {
            Ties::First => Winners::First,
            Ties::All => Winners::All,
        };
        PoolState { geometry, kind: op.kind, places, winners }
    }

    pub(super) fn bytes(&self) -> usize {
        self.places.len() * size_of::<u16>()
    }

    /// Where the winners go, if a gradient is wanted.
    pub(super) fn record(&mut self) -> Option<Record<'_>> {
        let PoolState { places, winners, .. } = self;
        (!places.is_empty()).then_some(Record { places, winners: *winners })
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

/// A normalization and the pooling behind it.
pub(super) struct LrnPoolState {
    pub lrn: Lrn,
    pub pool: PoolState,
}

impl LrnPoolState {
    pub(super) fn op(&self) -> LrnPool {
        LrnPool { lrn: self.lrn, pool: self.pool.geometry }
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
        let after_relu = self.frame.plan.stages[i].masks_input;
        let (ctx, engine) = (&mut self.frame.ctx, self.engine);
        match &mut self.stages[i] {
            StageState::Lrn(op) => lrn::forward(ctx, engine, op, &self.layouts[i], blocks, x, y),
            StageState::SpatialLrn(op) => {
                spatial_lrn::forward(ctx, engine, op, &self.layouts[i], blocks, x, y)
            }
            StageState::Pool(state) if state.widens() => {
                widen_map(ctx, &x[..from], x_wide);
                pooling::average_forward(ctx, &state.wide(), x_wide, y_wide);
                round_map(ctx, y_wide, &mut y[..to]);
            }
            StageState::Pool(state) => {
                let geometry = state.geometry;
                pairs_pooling::max_forward(ctx, &geometry, blocks, x, y, after_relu, state.record());
            }
            StageState::LrnPool(state) => {
                let op = state.op();
                lrn_pool::forward(ctx, engine, &op, blocks, x, y, after_relu, state.pool.record());
            }
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }

    pub(super) fn norm_pool_backward(&mut self, i: usize, batch: &Batch) {
        let blocks = self.frame.blocks(batch);
        let [from, to] = [i, i + 1].map(|map| self.used(map, batch));
        let ([x, dy], [dx, x_wide, dy_wide, dx_wide]) = self.frame.arena.split(
            [self.frame.maps[i], self.frame.gradients[i + 1]],
            [
                self.frame.gradients[i],
                self.wide[0].at_most(2 * from),
                self.wide[2].at_most(2 * to),
                self.wide[3].at_most(2 * from),
            ],
        );
        let masks = self.frame.plan.stages[i].masks_input;
        let (ctx, engine) = (&mut self.frame.ctx, self.engine);
        match &self.stages[i] {
            StageState::Lrn(op) => lrn::backward(ctx, engine, op, &self.layouts[i], blocks, x, dy, masks, dx),
            StageState::SpatialLrn(op) => {
                spatial_lrn::backward(ctx, engine, op, &self.layouts[i], blocks, x, dy, masks, dx);
            }
            StageState::Pool(state) if state.widens() => {
                widen_map(ctx, &x[..from], x_wide);
                widen_map(ctx, &dy[..to], dy_wide);
                let relu = masks.then_some(&*x_wide);
                pooling::backward(ctx, &state.wide(), Share::Mean, dy_wide, relu, dx_wide);
                round_map(ctx, dx_wide, &mut dx[..from]);
            }
            StageState::Pool(state) => {
                pairs_pooling::max_backward(ctx, engine, &state.geometry, blocks, dy, &state.places, dx);
            }
            StageState::LrnPool(state) => {
                lrn_pool::backward(ctx, engine, &state.op(), blocks, x, dy, &state.pool.places, masks, dx);
            }
            _ => unreachable!("stage {i} normalizes or pools"),
        }
    }
}

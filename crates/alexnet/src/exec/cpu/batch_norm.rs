//! The batch normalization stage: statistics of the batch and the normalized maps; backward, the gradients and the update
//! of scale and shift. Running statistics move in the forward pass of training.

use super::{Cpu, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::{Form, Plan};
use crate::net;
use crate::ops::batch_norm::unbiased;
use alexnet_kernels::arena::{Layouter, Region};
use alexnet_kernels::batch_norm::{self, Input, Rows};

/// The constants of a stage, and what it keeps from the forward pass to the backward pass.
pub(super) struct State {
    rows: Rows,
    op: net::BatchNorm,
    /// One weight a picture, whole blocks.
    weights: Region,
    partials: Region,
    mean: Region,
    variance: Region,
    /// 1/√(v + ε)
    inverse: Region,
    /// γ/√(v + ε)
    factor: Region,
    dgamma: Region,
    dbeta: Region,
    /// The weight of all rows of the last batch.
    count: f64,
}

impl State {
    pub(super) fn new(plan: &Plan, i: usize, op: &net::BatchNorm, layouter: &mut Layouter) -> Self {
        let map = plan.maps[i];
        let rows = Rows { channels: map.shape.c, block: plan.block, positions: map.shape.h * map.shape.w };
        let mut channels = || layouter.reserve(map.shape.c);
        let [mean, variance, inverse, factor, dgamma, dbeta] = std::array::from_fn(|_| channels());
        let trains = plan.trains();
        State {
            rows,
            op: op.clone(),
            weights: layouter.reserve(plan.blocks() * plan.block),
            partials: layouter.reserve(if trains { rows.partials_len(plan.map_len(i)) } else { 0 }),
            mean,
            variance,
            inverse,
            factor,
            dgamma,
            dbeta,
            count: 0.0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let channels = 6 * self.mean.len();
        (channels + self.weights.len() + self.partials.len()) * size_of::<f32>()
    }
}

impl Cpu {
    /// Elements of map `i` that hold pictures of the batch: whole blocks, or rows.
    fn normalized(&self, i: usize, batch: &Batch) -> usize {
        let shape = self.plan.maps[i].shape;
        match self.plan.maps[i].form {
            Form::Flat => batch.count * shape.len(),
            _ => batch.count.div_ceil(self.plan.block) * self.plan.block * shape.len(),
        }
    }

    pub(super) fn batch_norm_forward(&mut self, i: usize, batch: &Batch, trains: bool) {
        let weight = self.weight_of(i);
        let [gamma, beta, running_mean, running_variance] =
            [0, 1, 2, 3].map(|t| self.tensors[weight + t].value);
        let used = self.normalized(i, batch);
        let StageState::BatchNorm(state) = &mut self.stages[i] else {
            unreachable!("stage {i} is a batch normalization")
        };
        let x_map = self.maps[i].first(if i == 0 { 0 } else { used });
        if trains {
            let weights = self.arena.get_mut(state.weights);
            weights[..batch.count].copy_from_slice(batch.weights);
            weights[batch.count..].fill(0.0);
            let ([x, weights], [partials, mean, variance]) =
                self.arena.split([x_map, state.weights], [state.partials, state.mean, state.variance]);
            let x = &Self::input_of(x, batch, i)[..used];
            state.count =
                batch_norm::statistics(&mut self.ctx, state.rows, x, weights, partials, mean, variance);
            let ([mean, variance], [running_mean, running_variance]) =
                self.arena.split([state.mean, state.variance], [running_mean, running_variance]);
            let (m, unbiased) = (state.op.momentum as f32, unbiased(state.count) as f32);
            for c in 0..mean.len() {
                running_mean[c] = (1.0 - m) * running_mean[c] + m * mean[c];
                running_variance[c] = (1.0 - m) * running_variance[c] + m * unbiased * variance[c];
            }
        }
        let (mean, variance) =
            if trains { (state.mean, state.variance) } else { (running_mean, running_variance) };
        let ([variance, gamma], [inverse, factor]) =
            self.arena.split([variance, gamma], [state.inverse, state.factor]);
        for c in 0..inverse.len() {
            inverse[c] = 1.0 / (variance[c] + state.op.eps as f32).sqrt();
            factor[c] = gamma[c] * inverse[c];
        }
        let ([x, mean, factor, beta], [y]) =
            self.arena.split([x_map, mean, state.factor, beta], [self.maps[i + 1].first(used)]);
        let x = &Self::input_of(x, batch, i)[..used];
        batch_norm::apply(&mut self.ctx, state.rows, x, mean, factor, beta, y);
    }

    /// dγ, dβ, dx and the update. Returns whether the new parameters are finite.
    pub(super) fn batch_norm_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let weight = self.weight_of(i);
        let used = self.normalized(i, batch);
        let stage = &self.plan.stages[i];
        let (moves, wants_input, relu) = (stage.moves, stage.input_gradient, stage.masks_input);
        let StageState::BatchNorm(state) = &self.stages[i] else {
            unreachable!("stage {i} is a batch normalization")
        };
        let x_map = self.maps[i].first(if i == 0 { 0 } else { used });
        let dy_map = self.gradients[i + 1].first(used);
        let ([x, dy, weights, mean, inverse], [partials, dgamma, dbeta]) = self.arena.split(
            [x_map, dy_map, state.weights, state.mean, state.inverse],
            [state.partials, state.dgamma, state.dbeta],
        );
        let x = &Self::input_of(x, batch, i)[..used];
        batch_norm::backward_weight(
            &mut self.ctx,
            state.rows,
            x,
            dy,
            weights,
            mean,
            inverse,
            partials,
            dgamma,
            dbeta,
        );
        if wants_input {
            let gamma = self.tensors[weight].value;
            let ([x, dy, weights, mean, inverse, gamma, dgamma, dbeta], [dx]) = self.arena.split(
                [x_map, dy_map, state.weights, state.mean, state.inverse, gamma, state.dgamma, state.dbeta],
                [self.gradients[i].first(used)],
            );
            let x = &Self::input_of(x, batch, i)[..used];
            let input = Input { mean, inverse, gamma, dgamma, dbeta, count: state.count };
            batch_norm::backward_input(&mut self.ctx, state.rows, x, dy, weights, input, relu, dx);
        }
        let gradients = [state.dgamma, state.dbeta];
        if !moves {
            return true;
        }
        let mut finite = true;
        for (t, gradient) in (weight..).zip(gradients) {
            finite &= self.update(t, gradient, settings);
        }
        finite
    }
}

//! The batch normalization stage: statistics of the batch and the normalized maps; backward, the gradients and the update
//! of scale and shift. Running statistics move in the forward pass of training; those of a frozen layer stay, and it is
//! normalized by them.

use super::{Cpu, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::parameters::Tensor;
use crate::exec::plan::Plan;
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
    /// The last pass in training was normalized by the running statistics.
    held: bool,
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
            held: false,
        }
    }
}

impl Cpu {
    /// `training` are the settings of a step of training; `None` computes as at test time.
    pub(super) fn batch_norm_forward(&mut self, i: usize, batch: &Batch, training: Option<&StepSettings>) {
        let tensors: [Tensor; 4] = self.frame.tensors_of(i);
        let held = training.is_some_and(|settings| settings.rates[tensors[2].index].lr == 0.0);
        let trains = training.is_some() && !held;
        let [gamma, beta, running_mean, running_variance] = tensors.map(|t| t.value);
        let used = self.used(i + 1, batch);
        let StageState::BatchNorm(state) = &mut self.stages[i] else {
            unreachable!("stage {i} is a batch normalization")
        };
        let x_map = self.frame.maps[i].first(if i == 0 { 0 } else { used });
        state.held = held;
        if training.is_some() {
            let weights = self.frame.arena.get_mut(state.weights);
            weights[..batch.count].copy_from_slice(batch.weights);
            weights[batch.count..].fill(0.0);
        }
        if trains {
            let ([x, weights], [partials, mean, variance]) =
                self.frame.arena.split([x_map, state.weights], [state.partials, state.mean, state.variance]);
            let x = &Self::input_of(x, batch, i)[..used];
            state.count =
                batch_norm::statistics(&mut self.frame.ctx, state.rows, x, weights, partials, mean, variance);
            let ([mean, variance], [running_mean, running_variance]) =
                self.frame.arena.split([state.mean, state.variance], [running_mean, running_variance]);
            let (m, unbiased) = (state.op.momentum as f32, unbiased(state.count) as f32);
            for c in 0..mean.len() {
                running_mean[c] = (1.0 - m) * running_mean[c] + m * mean[c];
                running_variance[c] = (1.0 - m) * running_variance[c] + m * unbiased * variance[c];
            }
        }
        let (mean, variance) =
            if trains { (state.mean, state.variance) } else { (running_mean, running_variance) };
        let ([variance, gamma], [inverse, factor]) =
            self.frame.arena.split([variance, gamma], [state.inverse, state.factor]);
        for c in 0..inverse.len() {
            inverse[c] = 1.0 / (variance[c] + state.op.eps as f32).sqrt();
            factor[c] = gamma[c] * inverse[c];
        }
        let ([x, mean, factor, beta], [y]) =
            self.frame.arena.split([x_map, mean, state.factor, beta], [self.frame.maps[i + 1].first(used)]);
        let x = &Self::input_of(x, batch, i)[..used];
        batch_norm::apply(&mut self.frame.ctx, state.rows, x, mean, factor, beta, y);
    }

    /// dγ, dβ, dx and the update. Returns whether the new parameters are finite.
    pub(super) fn batch_norm_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let [gamma, beta, running_mean, _] = self.frame.tensors_of(i);
        let used = self.used(i + 1, batch);
        let stage = &self.frame.plan.stages[i];
        let (wants_input, relu) = (stage.input_gradient, stage.masks_input);
        let StageState::BatchNorm(state) = &self.stages[i] else {
            unreachable!("stage {i} is a batch normalization")
        };
        let x_map = self.frame.maps[i].first(if i == 0 { 0 } else { used });
        let dy_map = self.frame.gradients[i + 1].first(used);
        let mean = if state.held { running_mean.value } else { state.mean };
        if state.held {
            // The statistics are constants, and scale and shift stay: nothing but the input has a gradient.
            for region in [state.dgamma, state.dbeta] {
                self.frame.arena.get_mut(region).fill(0.0);
            }
        } else {
            let ([x, dy, weights, mean, inverse], [partials, dgamma, dbeta]) = self.frame.arena.split(
                [x_map, dy_map, state.weights, mean, state.inverse],
                [state.partials, state.dgamma, state.dbeta],
            );
            let x = &Self::input_of(x, batch, i)[..used];
            batch_norm::backward_weight(
                &mut self.frame.ctx,
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
        }
        if wants_input {
            let ([x, dy, weights, mean, inverse, gamma, dgamma, dbeta], [dx]) = self.frame.arena.split(
                [x_map, dy_map, state.weights, mean, state.inverse, gamma.value, state.dgamma, state.dbeta],
                [self.frame.gradients[i].first(used)],
            );
            let x = &Self::input_of(x, batch, i)[..used];
            let count = if state.held { 1.0 } else { state.count };
            let input = Input { mean, inverse, gamma, dgamma, dbeta, count };
            batch_norm::backward_input(&mut self.frame.ctx, state.rows, x, dy, weights, input, relu, dx);
        }
        if state.held {
            return true;
        }
        let tensors = [Tensor { gradient: state.dgamma, ..gamma }, Tensor { gradient: state.dbeta, ..beta }];
        self.frame.update_all(i, tensors, settings)
    }
}

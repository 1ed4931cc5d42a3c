//! The linear stage: product, bias and ReLU; backward, input gradient, weight gradient and update in one pass over the
//! master weights, which are rounded on the way.

use super::{Mixed, StageState, update_of};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use alexnet_kernels::bf16::linear::{self, Backward, Output, Rounded, Weights, unzipped_len};
use alexnet_kernels::bf16::{convert, convert::flat};
use alexnet_kernels::sgd;

/// Sizes of a stage.
pub(super) struct State {
    inputs: usize,
    outputs: usize,
    relu: bool,
    /// Whether its outputs are the logits, which stay f32.
    logits: bool,
    /// The weights rounded once, where they do not move.
    rounded: Option<Rounded>,
}

impl State {
    pub(super) fn new(plan: &Plan, i: usize, outputs: usize, relu: bool, logits: bool) -> Self {
        let inputs = plan.maps[i].shape.len();
        let rounded = (!plan.stages[i].moves).then(|| Rounded::new(outputs, inputs));
        State { inputs, outputs, relu, logits, rounded }
    }

    pub(super) fn bytes(&self) -> usize {
        self.rounded.as_ref().map_or(0, Rounded::bytes)
    }
}

impl Mixed {
    /// Rounds the weights of stage `i`, if they do not move.
    pub(super) fn linear_pack(&mut self, i: usize) {
        let w = self.tensors[self.weight_of(i)].value;
        let StageState::Linear(state) = &mut self.stages[i] else { unreachable!("stage {i} is linear") };
        if let Some(rounded) = &mut state.rounded {
            rounded.set(&mut self.ctx, self.arena.get(w));
        }
    }

    /// y = relu(x wᵀ + b)
    pub(super) fn linear_forward(&mut self, i: usize, batch: &Batch) {
        let weight = self.weight_of(i);
        let [w, b] = [weight, weight + 1].map(|t| self.tensors[t].value);
        let pictures = self.pictures(batch);
        let StageState::Linear(state) = &self.stages[i] else { unreachable!("stage {i} is linear") };
        let y = if state.logits { self.logits } else { self.maps[i + 1] };
        let ([x, w, bias], [y]) = self.arena.split([self.maps[i], w, b], [y]);
        let weights = state.rounded.as_ref().map_or(Weights::Master(w), Weights::Rounded);
        let (pictures, y) =
            if state.logits { (batch.count, Output::Rows(y)) } else { (pictures, Output::Map(y)) };
        let relu = state.relu;
        linear::forward(&mut self.ctx, self.engine, state.inputs, pictures, x, weights, bias, relu, y);
    }

    /// dx, dw, db and the update. Returns whether the new weights are finite.
    pub(super) fn linear_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.plan.stages[i];
        let weight = self.weight_of(i);
        let (pictures, blocks) = (self.pictures(batch), self.blocks(batch));
        let StageState::Linear(state) = &self.stages[i] else { unreachable!("stage {i} is linear") };
        let [w, b] = [weight, weight + 1].map(|t| &self.tensors[t]);
        let mut rates = [settings.rates[weight], settings.rates[weight + 1]];
        if !stage.moves {
            rates.iter_mut().for_each(|r| r.lr = 0.0);
        }
        let dy_rows = self.dy_rows.first(unzipped_len(state.outputs, blocks));
        let ([dy], [dy_rows_to, db]) = self.arena.split([self.gradients[i + 1]], [dy_rows, b.gradient]);
        linear::unzip(&mut self.ctx, state.outputs, blocks, dy, dy_rows_to, db);
        let ([db], [bias, v]) = self.arena.split([b.gradient], [b.value, b.momentum]);
        let mut finite = sgd::update(&mut self.ctx, update_of(rates[1], settings), db, bias, v);

        let ([x], [paired]) = self.arena.split([self.maps[i]], [self.paired]);
        convert::pair_pictures(&mut self.ctx, self.engine, &flat(state.inputs), blocks, x, paired);
        let ([x, paired, dy, dy_rows], [dx, w, v]) = self.arena.split(
            [self.maps[i], self.paired, self.gradients[i + 1], dy_rows],
            [self.gradients[i], w.value, w.momentum],
        );
        let pass = Backward {
            dx: stage.input_gradient.then_some(dx),
            relu: stage.masks_input.then_some(x),
            w,
            v,
            update: update_of(rates[0], settings),
        };
        finite &= linear::backward(
            &mut self.ctx,
            self.engine,
            state.inputs,
            state.outputs,
            pictures,
            paired,
            dy,
            dy_rows,
            pass,
        );
        finite
    }
}

//! The linear stage: product, bias and ReLU; backward, input gradient, weight gradient and update in one pass over the
//! master weights, which are rounded on the way.

use super::{Mixed, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use alexnet_kernels::bf16::linear::{self, Backward, Output, Rounded, Weights, unzipped_len};
use alexnet_kernels::bf16::{MapLayout, convert, convert::flat};

/// Sizes of a stage.
pub(super) struct State {
    inputs: usize,
    outputs: usize,
    relu: bool,
    /// Whether its outputs are the logits, which stay f32.
    logits: bool,
    /// The weights rounded once, where they do not move.
    rounded: Option<Rounded>,
    /// The map that it reads as if it were flat.
    unflattened: Option<MapLayout>,
}

impl State {
    pub(super) fn new(
        plan: &Plan,
        i: usize,
        outputs: usize,
        relu: bool,
        logits: bool,
        unflattened: Option<MapLayout>,
    ) -> Self {
        let inputs = plan.maps[i].shape.len();
        let rounded = (!plan.stages[i].moves).then(|| Rounded::new(outputs, inputs));
        State { inputs, outputs, relu, logits, rounded, unflattened }
    }

    pub(super) fn bytes(&self) -> usize {
        self.rounded.as_ref().map_or(0, Rounded::bytes)
    }
}

impl Mixed {
    /// Rounds the weights of stage `i`, if they do not move.
    pub(super) fn linear_pack(&mut self, i: usize) {
        let [w] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Linear(state) = &mut self.stages[i] else { unreachable!("stage {i} is linear") };
        if let Some(rounded) = &mut state.rounded {
            rounded.set(&mut self.frame.ctx, self.frame.arena.get(w), state.unflattened.as_ref());
        }
    }

    /// y = relu(x wᵀ + b)
    pub(super) fn linear_forward(&mut self, i: usize, batch: &Batch) {
        let [w, b] = self.frame.tensors_of(i).map(|t| t.value);
        let pictures = self.pictures(batch);
        let StageState::Linear(state) = &self.stages[i] else { unreachable!("stage {i} is linear") };
        let y = if state.logits { self.logits } else { self.frame.maps[i + 1] };
        let ([x, w, bias], [y]) = self.frame.arena.split([self.frame.maps[i], w, b], [y]);
        let weights = state.rounded.as_ref().map_or(Weights::Master(w), Weights::Rounded);
        let (pictures, y) =
            if state.logits { (batch.count, Output::Rows(y)) } else { (pictures, Output::Map(y)) };
        let relu = state.relu;
        linear::forward(&mut self.frame.ctx, self.engine, state.inputs, pictures, x, weights, bias, relu, y);
    }

    /// dx, dw, db and the update. Returns whether the new weights are finite.
    pub(super) fn linear_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.frame.plan.stages[i];
        let [w, b] = self.frame.tensors_of(i);
        let (pictures, blocks) = (self.pictures(batch), self.frame.blocks(batch));
        let StageState::Linear(state) = &self.stages[i] else { unreachable!("stage {i} is linear") };
        let dy_rows = self.dy_rows.first(unzipped_len(state.outputs, blocks));
        let ([dy], [dy_rows_to, db]) =
            self.frame.arena.split([self.frame.gradients[i + 1]], [dy_rows, b.gradient]);
        linear::unzip(&mut self.frame.ctx, state.outputs, blocks, dy, dy_rows_to, db);

        let ([x], [paired]) = self.frame.arena.split([self.frame.maps[i]], [self.paired]);
        convert::pair_pictures(
            &mut self.frame.ctx,
            self.engine,
            &flat(state.inputs),
            [0, 0],
            blocks,
            x,
            paired,
        );
        let update = self.frame.rate_of(i, w, settings);
        let ([x, paired, dy, dy_rows], [dx, w, v]) = self.frame.arena.split(
            [self.frame.maps[i], self.paired, self.frame.gradients[i + 1], dy_rows],
            [self.frame.gradients[i], w.value, w.momentum],
        );
        let pass = Backward {
            dx: stage.input_gradient.then_some(dx),
            relu: stage.masks_input.then_some(x),
            w,
            v,
            update,
        };
        let finite = linear::backward(
            &mut self.frame.ctx,
            self.engine,
            state.inputs,
            state.outputs,
            pictures,
            paired,
            dy,
            dy_rows,
            pass,
        );
        self.frame.update(i, b, settings) && finite
    }
}

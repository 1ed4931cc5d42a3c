//! The linear stage: product, bias and ReLU; backward, input gradient, weight gradient and update in one pass over the
//! weights.

use super::{Cpu, StageState, update_of};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use alexnet_kernels::Isa;
use alexnet_kernels::arena::{Layouter, Region};
use alexnet_kernels::linear::{self, Backward, PackedPictures, Strips};

/// Sizes of a stage and its packed operands.
pub(super) struct State {
    inputs: usize,
    outputs: usize,
    relu: bool,
    packed: PackedPictures,
    strips: Strips,
    /// dyᵀ, (outputs, N)
    transposed: Region,
}

impl State {
    pub(super) fn new(
        isa: Isa,
        plan: &Plan,
        i: usize,
        outputs: usize,
        relu: bool,
        layouter: &mut Layouter,
    ) -> Self {
        let inputs = plan.maps[i].shape.len();
        State {
            inputs,
            outputs,
            relu,
            packed: PackedPictures::new(isa, plan.batch, inputs),
            strips: Strips::new(isa, inputs),
            transposed: layouter.reserve(if plan.trains() { outputs * plan.batch } else { 0 }),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.packed.bytes() + self.transposed.len() * size_of::<f32>()
    }

    pub(super) fn scratch_len(&self, batch: usize) -> usize {
        self.packed.scratch_len().max(self.strips.scratch_len(batch))
    }
}

impl Cpu {
    /// y = relu(x wᵀ + b)
    pub(super) fn linear_forward(&mut self, i: usize, batch: &Batch) {
        let weight = self.weight_of(i);
        let [w, b] = [weight, weight + 1].map(|t| self.tensors[t].value);
        let StageState::Linear(state) = &mut self.stages[i] else { unreachable!("stage {i} is linear") };
        let ([x, w, b], [y]) = self.arena.split([self.maps[i], w, b], [self.maps[i + 1]]);
        linear::forward(&mut self.ctx, batch.count, x, &mut state.packed, w, b, state.relu, y);
    }

    /// dx, dw, db and the update. Returns whether the new weights are finite.
    pub(super) fn linear_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.plan.stages[i];
        let weight = self.weight_of(i);
        let StageState::Linear(state) = &self.stages[i] else { unreachable!("stage {i} is linear") };
        let count = batch.count;
        let transposed = state.transposed.first(state.outputs * count);
        let ([dy], [dy_t]) = self.arena.split([self.gradients[i + 1]], [transposed]);
        linear::transpose(&mut self.ctx, count, &dy[..count * state.outputs], dy_t);

        let [w, b] = [weight, weight + 1].map(|t| &self.tensors[t]);
        let mut rates = [settings.rates[weight], settings.rates[weight + 1]];
        if !stage.moves {
            rates.iter_mut().for_each(|r| r.lr = 0.0);
        }
        let ([dy_t], [db]) = self.arena.split([transposed], [b.gradient]);
        linear::bias_gradient(dy_t, db);
        let bias_gradient = b.gradient;
        // With a rule that needs it, the whole weight gradient goes where the fused update has the momentum.
        let whole = self.plan.rule.needs_whole_gradients();
        let moved = if whole { w.gradient } else { w.momentum };
        let ([x, dy, dy_t], [dx, w, v]) = self
            .arena
            .split([self.maps[i], self.gradients[i + 1], transposed], [self.gradients[i], w.value, moved]);
        let x = &x[..count * state.inputs];
        let pass = Backward {
            dx: stage.input_gradient.then_some(dx),
            relu: stage.masks_input.then_some(x),
            w,
            v,
            update: update_of(rates[0], settings),
        };
        let backward = if whole { linear::backward_whole } else { linear::backward };
        let mut finite = backward(&mut self.ctx, &state.strips, count, x, dy, dy_t, pass);
        if stage.moves {
            finite &= self.update(weight + 1, bias_gradient, settings);
            if whole {
                finite &= self.update(weight, moved, settings);
            }
        }
        finite
    }
}

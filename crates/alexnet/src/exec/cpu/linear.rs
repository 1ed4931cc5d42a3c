//! The linear stage: product, bias and ReLU; backward, input gradient, weight gradient and update in one pass over the
//! weights.

use super::{Cpu, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use alexnet_kernels::Isa;
use alexnet_kernels::arena::{Layouter, Region};
use alexnet_kernels::bf16::few::{self, linear::Plain};
use alexnet_kernels::linear::{self, Backward, PackedPictures, Strips};

/// Up to this many pictures, lanes that are inputs beat lanes that are pictures (bench/records).
const FEW: usize = 4;

/// Sizes of a stage and its packed operands.
pub(super) struct State {
    inputs: usize,
    outputs: usize,
    relu: bool,
    /// Absent where the plan is for a few pictures at test time: their rows are read where they lie.
    packed: Option<PackedPictures>,
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
            packed: (plan.trains() || plan.batch > FEW).then(|| PackedPictures::new(isa, plan.batch, inputs)),
            strips: Strips::new(isa, inputs),
            transposed: layouter.reserve(if plan.trains() { outputs * plan.batch } else { 0 }),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.packed.as_ref().map_or(0, PackedPictures::bytes)
    }

    pub(super) fn scratch_len(&self, batch: usize) -> usize {
        let packed = self.packed.as_ref().map_or(0, PackedPictures::scratch_len);
        packed.max(self.strips.scratch_len(batch))
    }
}

impl Cpu {
    /// y = relu(x wᵀ + b)
    pub(super) fn linear_forward(&mut self, i: usize, batch: &Batch) {
        let [w, b] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Linear(state) = &mut self.stages[i] else { unreachable!("stage {i} is linear") };
        let ([x, w, b], [y]) = self.frame.arena.split([self.frame.maps[i], w, b], [self.frame.maps[i + 1]]);
        let ctx = &mut self.frame.ctx;
        match &mut state.packed {
            Some(packed) => linear::forward(ctx, batch.count, x, packed, w, b, state.relu, y),
            None => {
                let w = Plain::new(state.outputs, w);
                few::linear::forward(ctx, batch.count, x, &w, b, state.relu, few::linear::Output::Rows(y));
            }
        }
    }

    /// dx, dw, db and the update. Returns whether the new weights are finite.
    pub(super) fn linear_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.frame.plan.stages[i];
        let [w, b] = self.frame.tensors_of(i);
        let StageState::Linear(state) = &self.stages[i] else { unreachable!("stage {i} is linear") };
        let count = batch.count;
        let transposed = state.transposed.first(state.outputs * count);
        let ([dy], [dy_t]) = self.frame.arena.split([self.frame.gradients[i + 1]], [transposed]);
        linear::transpose(&mut self.frame.ctx, count, &dy[..count * state.outputs], dy_t);

        let ([dy_t], [db]) = self.frame.arena.split([transposed], [b.gradient]);
        linear::bias_gradient(dy_t, db);
        // With a rule that needs it, the whole weight gradient goes where the fused update has the momentum.
        let update = self.frame.rate_of(i, w, settings);
        let whole = self.frame.plan.rule.needs_whole_gradients();
        let moved = if whole { w.gradient } else { w.momentum };
        let ([x, dy, dy_t], [dx, w_value, v]) = self.frame.arena.split(
            [self.frame.maps[i], self.frame.gradients[i + 1], transposed],
            [self.frame.gradients[i], w.value, moved],
        );
        let x = &x[..count * state.inputs];
        let pass = Backward {
            dx: stage.input_gradient.then_some(dx),
            relu: stage.masks_input.then_some(x),
            w: w_value,
            v,
            update,
        };
        let backward = if whole { linear::backward_whole } else { linear::backward };
        let mut finite = backward(&mut self.frame.ctx, &state.strips, count, x, dy, dy_t, pass);
        finite &= self.frame.update(i, b, settings);
        if whole {
            finite &= self.frame.update(i, w, settings);
        }
        finite
    }
}

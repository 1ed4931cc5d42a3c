//! The convolution stage: convolution, bias and ReLU in one pass; its gradients; the separate update of its weights.

use super::{Cpu, StageState};
use crate::exec::constants::conv_axis;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::{Form, Plan};
use crate::exec::stopwatch::Pass;
use crate::net;
use alexnet_kernels::Isa;
use alexnet_kernels::conv::{self, Epilogue, Fold, Geometry, Method, Packed, WeightPlan};

/// The geometry of a stage and its packed weights.
pub(super) struct State {
    geometry: Geometry,
    relu: bool,
    method: Method,
    forward: Packed,
    /// For the input gradient, if that is needed.
    backward: Option<Packed>,
    /// If the weights move.
    weight_plan: Option<WeightPlan>,
}

impl State {
    pub(super) fn new(isa: Isa, plan: &Plan, i: usize, op: &net::Conv, relu: bool) -> Self {
        let (input, output) = (plan.maps[i].shape, plan.maps[i + 1].shape);
        let (fold, width) = match plan.maps[i].form {
            Form::Input => (plan.input.fold, plan.input.columns),
            _ => (1, input.w),
        };
        let rows = conv_axis(op, 1, input.h, output.h);
        let columns = conv_axis(op, fold, width, output.w);
        let geometry =
            Geometry { block: plan.block, c: input.c * fold, k: output.c, groups: op.groups, rows, columns };
        let (stage, method) = (&plan.stages[i], geometry.best_method());
        let fold = Fold { kernel: op.kernel, fold };
        State {
            geometry,
            relu,
            method,
            forward: Packed::for_forward(isa, &geometry, fold, method),
            backward: stage.input_gradient.then(|| Packed::for_backward(isa, &geometry, method)),
            weight_plan: stage.moves.then(|| WeightPlan::new(isa, &geometry, fold, method)),
        }
    }

    /// Whether Winograd's method computes it.
    pub(super) fn by_winograd(&self) -> bool {
        self.method == Method::Winograd
    }

    pub(super) fn bytes(&self) -> usize {
        self.forward.bytes()
            + self.backward.as_ref().map_or(0, Packed::bytes)
            + self.weight_plan.as_ref().map_or(0, WeightPlan::bytes)
    }

    pub(super) fn scratch_len(&self) -> usize {
        let weight = self.weight_plan.as_ref().map_or(0, |plan| plan.scratch_len(&self.geometry));
        let backward = self.backward.as_ref().map_or(0, Packed::scratch_len);
        self.forward.scratch_len().max(backward).max(weight)
    }
}

impl Cpu {
    /// Packs the weights of stage `i` for the next step.
    pub(super) fn conv_pack(&mut self, i: usize) {
        let [w] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let w = self.frame.arena.get(w);
        conv::pack_forward(&mut self.frame.ctx, &state.geometry, w, &mut state.forward);
        if let Some(backward) = &mut state.backward {
            conv::pack_backward(&mut self.frame.ctx, &state.geometry, w, backward);
        }
    }

    /// y = relu(x ∗ w + b)
    pub(super) fn conv_forward(&mut self, i: usize, batch: &Batch) {
        let [_, bias] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Conv(state) = &self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let ([x, bias], [y]) = self.frame.arena.split([self.frame.maps[i], bias], [self.frame.maps[i + 1]]);
        let x = Self::input_of(x, batch, i);
        let epilogue = if state.relu { Epilogue::BiasRelu } else { Epilogue::Bias };
        conv::forward(
            &mut self.frame.ctx,
            &state.geometry,
            batch.count,
            x,
            &state.forward,
            bias,
            epilogue,
            y,
        );
    }

    /// dx, then dw, db and their update. Returns whether the new weights are finite.
    pub(super) fn conv_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.frame.plan.stages[i];
        let tensors @ [w, b] = self.frame.tensors_of(i);
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let g = &state.geometry;
        if let Some(packed) = &state.backward {
            let ([x, dy], [dx]) = self
                .frame
                .arena
                .split([self.frame.maps[i], self.frame.gradients[i + 1]], [self.frame.gradients[i]]);
            let relu = stage.masks_input.then_some(x);
            conv::backward_input(&mut self.frame.ctx, g, batch.count, dy, packed, relu, dx);
            self.frame.watch.lap(i, Pass::InputGradient);
        }
        if !self.frame.any_moves(i, tensors, settings) {
            return true;
        }
        let Some(plan) = &mut state.weight_plan else { unreachable!("a stage that moves has a weight plan") };
        let ([x, dy], [dw, db]) = self
            .frame
            .arena
            .split([self.frame.maps[i], self.frame.gradients[i + 1]], [w.gradient, b.gradient]);
        let x = Self::input_of(x, batch, i);
        conv::backward_weight(&mut self.frame.ctx, g, plan, batch.count, x, dy, dw, db);
        self.frame.watch.lap(i, Pass::WeightGradient);
        let finite = self.frame.update_all(i, tensors, settings);
        self.conv_pack(i);
        finite
    }
}

//! The convolution stage: convolution, bias and ReLU in one pass; its gradients; the separate update of its weights.

use super::{Mixed, StageState, update_of};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use crate::exec::stopwatch::Pass;
use crate::net;
use crate::ops::update::limit_rms;
use alexnet_kernels::bf16::conv::{self, Epilogue, Fold, Geometry, Packed, WeightPlan};
use alexnet_kernels::bf16::engine::C_LEN;
use alexnet_kernels::bf16::{MapLayout, convert};
use alexnet_kernels::conv::Axis;
use alexnet_kernels::sgd;

/// The geometry of a stage and its packed weights.
pub(super) struct State {
    geometry: Geometry,
    fold: Fold,
    relu: bool,
    forward: Packed,
    /// For the input gradient, if that is needed.
    backward: Option<Packed>,
    /// If the weights move.
    weight_plan: Option<WeightPlan>,
}

impl State {
    pub(super) fn new(
        plan: &Plan,
        i: usize,
        op: &net::Conv,
        fold: usize,
        layouts: &[MapLayout],
        relu: bool,
    ) -> Self {
        let (input, output) = (layouts[i], layouts[i + 1]);
        let axis = |input, output| match fold {
            1 => Axis { input, output, kernel: op.kernel, stride: op.stride, pad: op.pad.before },
            fold => Axis { input, output, kernel: op.kernel.div_ceil(fold), stride: 1, pad: 0 },
        };
        let rows = axis(input.height, output.height);
        let columns = axis(input.width, output.width);
        let geometry = Geometry { input, output, groups: op.groups, rows, columns };
        let stage = &plan.stages[i];
        State {
            geometry,
            fold: Fold { kernel: op.kernel, fold },
            relu,
            forward: Packed::for_forward(&geometry),
            backward: stage.input_gradient.then(|| Packed::for_backward(&geometry)),
            weight_plan: stage.moves.then(|| WeightPlan::new(&geometry, plan.blocks())),
        }
    }

    pub(super) fn scratch_len(&self) -> usize {
        self.weight_plan.as_ref().map_or(0, |plan| plan.scratch_len(&self.geometry)).max(C_LEN)
    }

    pub(super) fn bytes(&self) -> usize {
        self.forward.bytes()
            + self.backward.as_ref().map_or(0, Packed::bytes)
            + self.weight_plan.as_ref().map_or(0, WeightPlan::bytes)
    }
}

impl Mixed {
    /// Packs the weights of stage `i` for the next step.
    pub(super) fn conv_pack(&mut self, i: usize) {
        let w = self.tensors[self.weight_of(i)].value;
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let w = self.arena.get(w);
        conv::pack_forward(&mut self.ctx, &state.geometry, state.fold, w, &mut state.forward);
        if let Some(backward) = &mut state.backward {
            conv::pack_backward(&mut self.ctx, &state.geometry, w, backward);
        }
    }

    /// y = relu(x ∗ w + b)
    pub(super) fn conv_forward(&mut self, i: usize, batch: &Batch) {
        let bias = self.tensors[self.weight_of(i) + 1].value;
        let pictures = self.pictures(batch);
        let StageState::Conv(state) = &self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let ([x, bias], [y]) = self.arena.split([self.maps[i], bias], [self.maps[i + 1]]);
        let epilogue = if state.relu { Epilogue::BiasRelu } else { Epilogue::Bias };
        let g = &state.geometry;
        conv::forward(&mut self.ctx, self.engine, g, pictures, x, &state.forward, bias, epilogue, y);
    }

    /// dx, then dw, db and their update. Returns whether the new weights are finite.
    pub(super) fn conv_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.plan.stages[i];
        let weight = self.weight_of(i);
        let (pictures, blocks) = (self.pictures(batch), self.blocks(batch));
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let g = &state.geometry;
        if let Some(packed) = &state.backward {
            let ([x, dy], [dx]) =
                self.arena.split([self.maps[i], self.gradients[i + 1]], [self.gradients[i]]);
            let relu = stage.masks_input.then_some(x);
            conv::backward_input(&mut self.ctx, self.engine, g, pictures, dy, packed, relu, dx);
            self.watch.lap(i, Pass::InputGradient);
        }
        let rates = [settings.rates[weight], settings.rates[weight + 1]];
        if !stage.moves || rates.iter().all(|r| r.lr == 0.0) {
            return true;
        }
        let Some(plan) = &mut state.weight_plan else { unreachable!("a stage that moves has a weight plan") };
        let [w, b] = [weight, weight + 1].map(|t| &self.tensors[t]);
        let ([x], [paired]) = self.arena.split([self.maps[i]], [self.paired]);
        convert::pair_pictures(&mut self.ctx, self.engine, &g.input, blocks, x, paired);
        let ([paired, dy], [dw, db]) =
            self.arena.split([self.paired, self.gradients[i + 1]], [w.gradient, b.gradient]);
        conv::backward_weight(&mut self.ctx, self.engine, g, state.fold, plan, pictures, paired, dy, dw, db);
        self.watch.lap(i, Pass::WeightGradient);
        let mut finite = true;
        for (tensor, rate) in [w, b].into_iter().zip(rates) {
            let ([g], [w, v]) = self.arena.split([tensor.gradient], [tensor.value, tensor.momentum]);
            finite &= sgd::update(&mut self.ctx, update_of(rate, settings), g, w, v);
        }
        if let Some(limit) = self.plan.rule.filter_rms
            && rates[0].lr != 0.0
        {
            let filter = w.value.len() / g.output.channels;
            let w = self.arena.get_mut(w.value);
            self.ctx.for_each_chunk(w, filter, |_, filter| limit_rms(limit, filter));
        }
        self.conv_pack(i);
        finite
    }
}

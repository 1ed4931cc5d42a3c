//! The convolution stage: convolution, bias and ReLU in one pass; its gradients; the separate update of its weights.

use super::threefold::Threefold;
use super::{Cpu, StageState};
use crate::exec::constants::conv_axis;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::{Form, Plan};
use crate::exec::stopwatch::Pass;
use crate::net;
use alexnet_kernels::Isa;
use alexnet_kernels::bf16::Engine;
use alexnet_kernels::conv::{self, Epilogue, Fold, Geometry, Method, Packed, WeightPlan};

/// The geometry of a stage and its packed weights.
pub(super) struct State {
    geometry: Geometry,
    relu: bool,
    method: Method,
    products: Products,
}

/// What computes them.
enum Products {
    Vectors(Box<Vectors>),
    Tiles(Box<Threefold>),
}

/// Weights packed for vectors.
struct Vectors {
    forward: Packed,
    /// For the input gradient, if that is needed.
    backward: Option<Packed>,
    /// If the weights move.
    weight_plan: Option<WeightPlan>,
}

impl State {
    pub(super) fn new(
        isa: Isa,
        tiles: Option<Engine>,
        plan: &Plan,
        i: usize,
        op: &net::Conv,
        relu: bool,
    ) -> Self {
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
        let products = if let Some(engine) = tiles.filter(|_| Threefold::takes(&geometry)) {
            let blocks = plan.batch.div_ceil(plan.block);
            Products::Tiles(Box::new(Threefold::new(engine, &geometry, fold, blocks, stage)))
        } else {
            Products::Vectors(Box::new(Vectors {
                forward: Packed::for_forward(isa, &geometry, fold, method),
                backward: stage.input_gradient.then(|| Packed::for_backward(isa, &geometry, method)),
                weight_plan: stage.moves.then(|| WeightPlan::new(isa, &geometry, fold, method)),
            }))
        };
        State { geometry, relu, method, products }
    }

    /// Whether Winograd's method computes it.
    pub(super) fn by_winograd(&self) -> bool {
        matches!(self.products, Products::Vectors(_)) && self.method == Method::Winograd
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.products {
            Products::Vectors(v) => {
                v.forward.bytes()
                    + v.backward.as_ref().map_or(0, Packed::bytes)
                    + v.weight_plan.as_ref().map_or(0, WeightPlan::bytes)
            }
            Products::Tiles(tiles) => tiles.bytes(),
        }
    }

    pub(super) fn scratch_len(&self) -> usize {
        match &self.products {
            Products::Vectors(v) => {
                let weight = v.weight_plan.as_ref().map_or(0, |plan| plan.scratch_len(&self.geometry));
                let backward = v.backward.as_ref().map_or(0, Packed::scratch_len);
                v.forward.scratch_len().max(backward).max(weight)
            }
            Products::Tiles(tiles) => tiles.scratch_len(),
        }
    }

    /// Elements of the rooms for maps in parts.
    pub(super) fn rooms(&self, plan: &Plan) -> [usize; 2] {
        match &self.products {
            Products::Vectors(_) => [0; 2],
            Products::Tiles(tiles) => tiles.rooms(plan.batch.div_ceil(plan.block)),
        }
    }
}

impl Cpu {
    /// Packs the weights of stage `i` for the next step.
    pub(super) fn conv_pack(&mut self, i: usize) {
        let [w] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let w = self.frame.arena.get(w);
        let ctx = &mut self.frame.ctx;
        match &mut state.products {
            Products::Vectors(v) => {
                conv::pack_forward(ctx, &state.geometry, w, &mut v.forward);
                if let Some(backward) = &mut v.backward {
                    conv::pack_backward(ctx, &state.geometry, w, backward);
                }
            }
            Products::Tiles(tiles) => tiles.pack(ctx, w),
        }
    }

    /// y = relu(x ∗ w + b)
    pub(super) fn conv_forward(&mut self, i: usize, batch: &Batch) {
        let [_, bias] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Conv(state) = &self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let ([x, bias], [y, parts]) =
            self.frame.arena.split([self.frame.maps[i], bias], [self.frame.maps[i + 1], self.rooms[0]]);
        let x = Self::input_of(x, batch, i);
        let epilogue = if state.relu { Epilogue::BiasRelu } else { Epilogue::Bias };
        let ctx = &mut self.frame.ctx;
        match &state.products {
            Products::Vectors(v) => {
                conv::forward(ctx, &state.geometry, batch.count, x, &v.forward, bias, epilogue, y);
            }
            Products::Tiles(tiles) => tiles.forward(ctx, batch.count, x, parts, bias, epilogue, y),
        }
    }

    /// dx, then dw, db and their update. Returns whether the new weights are finite.
    pub(super) fn conv_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.frame.plan.stages[i];
        let tensors @ [w, b] = self.frame.tensors_of(i);
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let g = &state.geometry;
        if stage.input_gradient {
            let ([x, dy], [dx, parts]) = self.frame.arena.split(
                [self.frame.maps[i], self.frame.gradients[i + 1]],
                [self.frame.gradients[i], self.rooms[0]],
            );
            let relu = stage.masks_input.then_some(x);
            let ctx = &mut self.frame.ctx;
            match &state.products {
                Products::Vectors(v) => {
                    let Some(packed) = &v.backward else { unreachable!("planned for its input gradient") };
                    conv::backward_input(ctx, g, batch.count, dy, packed, relu, dx);
                }
                Products::Tiles(tiles) => tiles.backward_input(ctx, batch.count, dy, parts, relu, dx),
            }
            self.frame.watch.lap(i, Pass::InputGradient);
        }
        if !self.frame.any_moves(i, tensors, settings) {
            return true;
        }
        let ([x, dy], [dw, db, x_parts, dy_parts]) = self.frame.arena.split(
            [self.frame.maps[i], self.frame.gradients[i + 1]],
            [w.gradient, b.gradient, self.rooms[0], self.rooms[1]],
        );
        let x = Self::input_of(x, batch, i);
        let ctx = &mut self.frame.ctx;
        match &mut state.products {
            Products::Vectors(v) => {
                let Some(plan) = &mut v.weight_plan else { unreachable!("planned for weights that move") };
                conv::backward_weight(ctx, g, plan, batch.count, x, dy, dw, db);
            }
            Products::Tiles(tiles) => {
                tiles.backward_weight(ctx, batch.count, x, dy, [x_parts, dy_parts], dw, db);
            }
        }
        self.frame.watch.lap(i, Pass::WeightGradient);
        let finite = self.frame.update_all(i, tensors, settings);
        self.conv_pack(i);
        finite
    }
}

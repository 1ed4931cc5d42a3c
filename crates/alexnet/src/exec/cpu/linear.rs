//! The linear stage: product, bias and ReLU; backward, input gradient, weight gradient and update in one pass over the
//! weights.

use super::{Cpu, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use alexnet_kernels::Isa;
use alexnet_kernels::arena::{Layouter, Region};
use alexnet_kernels::bf16::Engine;
use alexnet_kernels::bf16::few::{self, linear::Plain};
use alexnet_kernels::linear::{self, Backward, PackedPictures};
use alexnet_kernels::strips::Strips;
use alexnet_kernels::threefold::linear as threefold;

/// Up to this many pictures, lanes that are inputs beat lanes that are pictures (bench/records).
const FEW: usize = 4;

/// Sizes of a stage and its packed operands.
pub(super) struct State {
    inputs: usize,
    outputs: usize,
    relu: bool,
    products: Products,
    /// dyᵀ, (outputs, N)
    transposed: Region,
}

/// What computes them: tiles do it in high and low parts.
enum Products {
    Vectors {
        /// Absent where the plan is for a few pictures at test time: their rows are read where they lie.
        packed: Option<PackedPictures>,
        strips: linear::Strips,
    },
    /// With how the weights lie.
    Tiles(Engine, Strips),
}

impl State {
    pub(super) fn new(
        isa: Isa,
        tiles: Option<Engine>,
        plan: &Plan,
        i: usize,
        outputs: usize,
        relu: bool,
        layouter: &mut Layouter,
    ) -> Self {
        let inputs = plan.maps[i].shape.len();
        let many = plan.trains() || plan.batch > FEW;
        let products = if let Some(engine) = tiles.filter(|_| many) {
            Products::Tiles(engine, place(true, plan, outputs, inputs))
        } else {
            Products::Vectors {
                packed: many.then(|| PackedPictures::new(isa, plan.batch, inputs)),
                strips: linear::Strips::new(isa, inputs),
            }
        };
        State {
            inputs,
            outputs,
            relu,
            products,
            transposed: layouter.reserve(if plan.trains() { outputs * plan.batch } else { 0 }),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.products {
            Products::Vectors { packed, .. } => packed.as_ref().map_or(0, PackedPictures::bytes),
            Products::Tiles(..) => 0,
        }
    }

    pub(super) fn scratch_len(&self, batch: usize) -> usize {
        match &self.products {
            Products::Vectors { packed, strips } => {
                packed.as_ref().map_or(0, PackedPictures::scratch_len).max(strips.scratch_len(batch))
            }
            Products::Tiles(..) => threefold::scratch_len(batch),
        }
    }

    /// Elements of the room for x, or dy, in parts.
    pub(super) fn room(&self, plan: &Plan) -> usize {
        match &self.products {
            Products::Vectors { .. } => 0,
            Products::Tiles(..) => {
                let dy =
                    if plan.trains() { threefold::backward_parts_len(self.outputs, plan.batch) } else { 0 };
                threefold::forward_parts_len(self.inputs, plan.batch).max(dy)
            }
        }
    }
}

/// How the weights of a linear stage lie: in strips where they train on tiles.
pub(super) fn place(tiles: bool, plan: &Plan, outputs: usize, inputs: usize) -> Strips {
    if tiles && plan.trains() { threefold::strips(outputs, inputs) } else { Strips::whole(outputs, inputs) }
}

impl Cpu {
    /// y = relu(x wᵀ + b)
    pub(super) fn linear_forward(&mut self, i: usize, batch: &Batch) {
        let [w, b] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Linear(state) = &mut self.stages[i] else { unreachable!("stage {i} is linear") };
        let ([x, w, b], [y, parts]) =
            self.frame.arena.split([self.frame.maps[i], w, b], [self.frame.maps[i + 1], self.rooms[0]]);
        let ctx = &mut self.frame.ctx;
        match &mut state.products {
            Products::Tiles(engine, place) => {
                threefold::forward(ctx, *engine, *place, batch.count, x, parts, w, b, state.relu, y);
            }
            Products::Vectors { packed: Some(packed), .. } => {
                linear::forward(ctx, batch.count, x, packed, w, b, state.relu, y);
            }
            Products::Vectors { packed: None, .. } => {
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
        let ([x, dy, dy_t], [dx, w_value, v, parts]) = self.frame.arena.split(
            [self.frame.maps[i], self.frame.gradients[i + 1], transposed],
            [self.frame.gradients[i], w.value, moved, self.rooms[0]],
        );
        let x = &x[..count * state.inputs];
        let pass = Backward {
            dx: stage.input_gradient.then_some(dx),
            relu: stage.masks_input.then_some(x),
            w: w_value,
            v,
            update,
        };
        let ctx = &mut self.frame.ctx;
        let mut finite = match &state.products {
            Products::Tiles(engine, place) => {
                threefold::backward(ctx, *engine, *place, count, x, dy, dy_t, parts, pass, whole)
            }
            Products::Vectors { strips, .. } => {
                let backward = if whole { linear::backward_whole } else { linear::backward };
                backward(ctx, strips, count, x, dy, dy_t, pass)
            }
        };
        finite &= self.frame.update(i, b, settings);
        if whole {
            finite &= self.frame.update(i, w, settings);
        }
        finite
    }
}

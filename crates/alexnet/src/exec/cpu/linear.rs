//! The linear stage: product, bias and ReLU; backward, input gradient, weight gradient and update in one pass over the
//! weights.

use super::{Arithmetic, Cpu, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use alexnet_kernels::Isa;
use alexnet_kernels::arena::{Layouter, Region};
use alexnet_kernels::bf16::Engine;
use alexnet_kernels::linear::few::{self, Input, Output, Plain, Quantized, Weights, quantize};
use alexnet_kernels::linear::{self, Backward, Cut, PackedPictures};
use alexnet_kernels::strips::Strips;
use alexnet_kernels::threefold::linear as threefold;

/// Up to this many pictures, lanes that are inputs beat lanes that are pictures (bench/records).
const FEW: usize = 4;

/// Sizes of a stage and its packed operands.
pub(super) struct State {
    inputs: usize,
    outputs: usize,
    relu: bool,
    /// How the weights lie.
    place: Strips,
    products: Products,
    /// dyᵀ, (outputs, N), see [`State::transposed_row`].
    transposed: Region,
}

/// What computes them.
enum Products {
    Vectors {
        /// Absent where the plan is for a few pictures at test time: their rows are read where they lie.
        packed: Option<PackedPictures>,
        cut: Cut,
    },
    /// In high and low parts.
    Tiles(Engine),
    /// At test time, with weights in eight bits; and room for the inputs, quantized too.
    EightBits { weights: Quantized, inputs: Region },
}

impl State {
    pub(super) fn new(
        isa: Isa,
        arithmetic: Arithmetic,
        plan: &Plan,
        i: usize,
        outputs: usize,
        relu: bool,
        layouter: &mut Layouter,
    ) -> Self {
        let inputs = plan.maps[i].shape.len();
        let many = plan.trains() || plan.batch > FEW;
        let products = match arithmetic {
            Arithmetic::F32x3(engine) if many => Products::Tiles(engine),
            Arithmetic::F32x3(_) | Arithmetic::F32 => Products::Vectors {
                packed: many.then(|| PackedPictures::new(isa, plan.batch, inputs)),
                cut: Cut::new(isa, inputs),
            },
            Arithmetic::Int8 => {
                let weights = Quantized::new(outputs, inputs);
                let inputs = layouter.reserve(plan.batch * weights.row_len());
                Products::EightBits { weights, inputs }
            }
        };
        let place = place(arithmetic, plan, outputs, inputs);
        let mut state = State { inputs, outputs, relu, place, products, transposed: Region::default() };
        if plan.trains() {
            state.transposed = layouter.reserve(outputs * state.transposed_row(plan.batch));
        }
        state
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.products {
            Products::Vectors { packed, .. } => packed.as_ref().map_or(0, PackedPictures::bytes),
            Products::Tiles(_) => 0,
            Products::EightBits { weights, .. } => weights.bytes(),
        }
    }

    /// Bytes of one weight as the products read it.
    pub(super) fn weight_bytes(&self) -> usize {
        match self.products {
            Products::Vectors { .. } | Products::Tiles(_) => size_of::<f32>(),
            Products::EightBits { .. } => size_of::<i8>(),
        }
    }

    pub(super) fn scratch_len(&self, batch: usize) -> usize {
        match &self.products {
            Products::Vectors { packed, cut } => {
                packed.as_ref().map_or(0, PackedPictures::scratch_len).max(cut.scratch_len(batch))
            }
            Products::Tiles(_) => threefold::scratch_len(batch),
            Products::EightBits { .. } => 0,
        }
    }

    /// From a row of dyᵀ to the next.
    fn transposed_row(&self, count: usize) -> usize {
        match &self.products {
            Products::Vectors { .. } => linear::transposed_row(count),
            Products::Tiles(_) | Products::EightBits { .. } => count,
        }
    }

    /// Elements of the room for x, or dy, in parts.
    pub(super) fn room(&self, plan: &Plan) -> usize {
        match &self.products {
            Products::Vectors { .. } | Products::EightBits { .. } => 0,
            Products::Tiles(_) => {
                let dy =
                    if plan.trains() { threefold::backward_parts_len(self.outputs, plan.batch) } else { 0 };
                threefold::forward_parts_len(self.inputs, plan.batch).max(dy)
            }
        }
    }
}

/// How the weights of a linear stage lie: in strips where they train.
pub(super) fn place(arithmetic: Arithmetic, plan: &Plan, outputs: usize, inputs: usize) -> Strips {
    match arithmetic {
        _ if !plan.trains() => Strips::whole(outputs, inputs),
        Arithmetic::F32x3(_) => threefold::strips(outputs, inputs),
        Arithmetic::F32 | Arithmetic::Int8 => linear::strips(outputs, inputs),
    }
}

impl Cpu {
    /// Quantizes the weights of stage `i`, if they are held in eight bits.
    pub(super) fn linear_pack(&mut self, i: usize) {
        let [w] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Linear(state) = &mut self.stages[i] else { unreachable!("stage {i} is linear") };
        if let Products::EightBits { weights, .. } = &mut state.products {
            weights.set(&mut self.frame.ctx, self.frame.arena.get(w));
        }
    }

    /// y = relu(x wᵀ + b)
    pub(super) fn linear_forward(&mut self, i: usize, batch: &Batch) {
        let [w, b] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Linear(state) = &mut self.stages[i] else { unreachable!("stage {i} is linear") };
        let room = match state.products {
            Products::EightBits { inputs, .. } => inputs,
            _ => self.rooms[0],
        };
        let ([x, w, b], [y, room]) =
            self.frame.arena.split([self.frame.maps[i], w, b], [self.frame.maps[i + 1], room]);
        let ctx = &mut self.frame.ctx;
        match &mut state.products {
            Products::Tiles(engine) => {
                threefold::forward(ctx, *engine, state.place, batch.count, x, room, w, b, state.relu, y);
            }
            Products::Vectors { packed: Some(packed), .. } => {
                linear::forward(ctx, state.place, batch.count, x, packed, w, b, state.relu, y);
            }
            Products::Vectors { packed: None, .. } => {
                let w = Plain::new(state.outputs, w);
                few::forward(ctx, batch.count, x, &w, b, state.relu, Output::Rows(y));
            }
            Products::EightBits { weights, .. } => {
                quantize(ctx, batch.count, state.inputs, Input::Rows(x), room);
                few::forward(ctx, batch.count, room, weights, b, state.relu, Output::Rows(y));
            }
        }
    }

    /// dx, dw, db and the update. Returns whether the new weights are finite.
    pub(super) fn linear_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.frame.plan.stages[i];
        let [w, b] = self.frame.tensors_of(i);
        let StageState::Linear(state) = &self.stages[i] else { unreachable!("stage {i} is linear") };
        let count = batch.count;
        let row = state.transposed_row(count);
        let transposed = state.transposed.first(state.outputs * row);
        let ([dy], [dy_t]) = self.frame.arena.split([self.frame.gradients[i + 1]], [transposed]);
        linear::transpose(&mut self.frame.ctx, count, &dy[..count * state.outputs], row, dy_t);

        let ([dy_t], [db]) = self.frame.arena.split([transposed], [b.gradient]);
        linear::bias_gradient(dy_t, row, count, db);
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
            Products::Tiles(engine) => {
                threefold::backward(ctx, *engine, state.place, count, x, dy, dy_t, parts, pass, whole)
            }
            Products::Vectors { cut, .. } => {
                linear::backward(ctx, cut, state.place, count, x, dy_t, pass, whole)
            }
            Products::EightBits { .. } => unreachable!("weights in eight bits do not train"),
        };
        finite &= self.frame.update(i, b, settings);
        if whole {
            finite &= self.frame.update(i, w, settings);
        }
        finite
    }
}

//! A convolution whose products tiles compute in high and low parts: precision `f32x3`. A map is split before each pass, since the
//! forward pass and the gradients read it in different orders.

use crate::exec::plan::Stage;
use alexnet_kernels::Context;
use alexnet_kernels::bf16::Engine;
use alexnet_kernels::conv::{Epilogue, Fold, Geometry};
use alexnet_kernels::threefold::conv::{self, MOST_ROWS, Packed};
use alexnet_kernels::threefold::split;
use alexnet_kernels::threefold::weight::{self, WeightPlan};

/// Packed weights of a stage.
pub(super) struct Threefold {
    engine: Engine,
    block: usize,
    forward: Packed,
    /// For the input gradient, if that is needed.
    backward: Option<Packed>,
    /// If the weights move.
    weight_plan: Option<WeightPlan>,
}

impl Threefold {
    /// Whether tiles compute this geometry: not where windows are apart, as those of a first convolution are. Its few channels
    /// would leave tiles half empty, and Winograd's method takes half of its products away.
    pub(super) fn takes(g: &Geometry) -> bool {
        g.rows.kernel <= MOST_ROWS && Packed::fits_backward(g)
    }

    pub(super) fn new(engine: Engine, g: &Geometry, fold: Fold, blocks: usize, stage: &Stage) -> Threefold {
        Threefold {
            engine,
            block: g.block,
            forward: Packed::for_forward(g, fold),
            backward: stage.input_gradient.then(|| Packed::for_backward(g)),
            weight_plan: stage.moves.then(|| WeightPlan::new(g, fold, blocks)),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.forward.bytes()
            + self.backward.as_ref().map_or(0, Packed::bytes)
            + self.weight_plan.as_ref().map_or(0, WeightPlan::bytes)
    }

    pub(super) fn scratch_len(&self) -> usize {
        let rows = |packed: &Packed| packed.scratch_len();
        let weight = self.weight_plan.as_ref().map_or(0, WeightPlan::scratch_len);
        rows(&self.forward).max(self.backward.as_ref().map_or(0, rows)).max(weight)
    }

    /// Elements of the rooms for maps in parts: of either map, and of dy beside x.
    pub(super) fn rooms(&self, blocks: usize) -> [usize; 2] {
        let len = |packed: &Packed| packed.rows().len(blocks);
        let [x, dy] = self.weight_plan.as_ref().map_or([0; 2], |plan| plan.split_lens(blocks));
        [len(&self.forward).max(self.backward.as_ref().map_or(0, len)).max(x), dy]
    }

    pub(super) fn pack(&mut self, ctx: &mut Context, w: &[f32]) {
        conv::pack(ctx, w, &mut self.forward);
        if let Some(backward) = &mut self.backward {
            conv::pack(ctx, w, backward);
        }
    }

    pub(super) fn forward(
        &self,
        ctx: &mut Context,
        count: usize,
        x: &[f32],
        parts: &mut [f32],
        bias: &[f32],
        epilogue: Epilogue,
        y: &mut [f32],
    ) {
        let blocks = count.div_ceil(self.block);
        split(ctx, self.engine, self.forward.rows(), blocks, x, parts);
        conv::forward(ctx, self.engine, blocks, parts, &self.forward, bias, epilogue, y);
    }

    pub(super) fn backward_input(
        &self,
        ctx: &mut Context,
        count: usize,
        dy: &[f32],
        parts: &mut [f32],
        relu: Option<&[f32]>,
        dx: &mut [f32],
    ) {
        let Some(packed) = &self.backward else { unreachable!("planned for its input gradient") };
        let blocks = count.div_ceil(self.block);
        split(ctx, self.engine, packed.rows(), blocks, dy, parts);
        conv::backward_input(ctx, self.engine, blocks, parts, packed, relu, dx);
    }

    pub(super) fn backward_weight(
        &mut self,
        ctx: &mut Context,
        count: usize,
        x: &[f32],
        dy: &[f32],
        rooms: [&mut [f32]; 2],
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let Some(plan) = &mut self.weight_plan else { unreachable!("planned for weights that move") };
        weight::backward_weight(ctx, self.engine, plan, count, x, dy, rooms, dw, db);
    }
}

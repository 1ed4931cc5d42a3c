//! The convolution stage: convolution, bias, ReLU and max pooling in one pass; its gradients; the separate update of its
//! weights.

use super::norm_pool::PoolState;
use super::{Mixed, StageState};
use crate::exec::constants::conv_axis;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Plan;
use crate::exec::stopwatch::Pass;
use crate::net::{self, Shape};
use alexnet_kernels::bf16::conv::{self, Epilogue, Fold, Geometry, Method, Packed, Source, WeightPlan};
use alexnet_kernels::bf16::entry::Entry;
use alexnet_kernels::bf16::{Engine, MapLayout, TAIL, pooling};

/// The geometry of a stage and its packed weights.
pub(super) struct State {
    geometry: Geometry,
    fold: Fold,
    /// How pixels become map 0, if this stage makes it of them.
    entry: Option<Entry>,
    relu: bool,
    /// What is pooled in the same pass.
    pool: Option<PoolState>,
    method: Method,
    weight_method: Method,
    forward: Packed,
    /// For the input gradient, if that is needed.
    backward: Option<Packed>,
    /// If the weights move.
    weight_plan: Option<WeightPlan>,
}

impl State {
    /// Whether stage `i`, whose convolution yields a map of shape `output`, makes map 0 of pixels: at test time, when no
    /// gradient needs that map, and where it is computed directly.
    pub(super) fn enters(
        plan: &Plan,
        engine: Engine,
        i: usize,
        op: &net::Conv,
        entry: &Entry,
        layouts: &[MapLayout],
        output: Shape,
    ) -> bool {
        let geometry = geometry(i, op, entry.fold, layouts, output);
        i == 0
            && !plan.trains()
            && entry.map.splits == 1
            && geometry.best_methods(engine)[0] == Method::Direct
    }

    /// `output` is the shape of what the convolution yields, which perhaps a pooling follows.
    pub(super) fn new(
        plan: &Plan,
        engine: Engine,
        i: usize,
        op: &net::Conv,
        entry: &Entry,
        layouts: &[MapLayout],
        output: Shape,
        relu: bool,
        pool: Option<&net::Pool>,
    ) -> Self {
        let fold = if i == 0 { entry.fold } else { 1 };
        let geometry = geometry(i, op, fold, layouts, output);
        let enters = State::enters(plan, engine, i, op, entry, layouts, output);
        let (stage, [method, weight_method]) = (&plan.stages[i], geometry.best_methods(engine));
        State {
            geometry,
            fold: Fold { kernel: op.kernel, fold },
            entry: enters.then_some(*entry),
            relu,
            pool: pool.map(|op| {
                let gradient = stage.moves || stage.input_gradient;
                PoolState::new(op, &geometry.output, &layouts[i + 1], plan.blocks(), gradient)
            }),
            method,
            weight_method,
            forward: Packed::for_forward(&geometry, method),
            backward: stage.input_gradient.then(|| Packed::for_backward(&geometry, method)),
            weight_plan: stage.moves.then(|| WeightPlan::new(&geometry, plan.blocks(), weight_method)),
        }
    }

    pub(super) fn scratch_len(&self) -> usize {
        let weight = self.weight_plan.as_ref().map_or(0, |plan| plan.scratch_len(&self.geometry));
        let backward = self.backward.as_ref().map_or(0, |packed| packed.scratch_len(None, None));
        let pool = self.pool.as_ref().filter(|_| self.pools_at_once()).map(|pool| &pool.geometry);
        self.forward.scratch_len(self.entry.as_ref(), pool).max(backward).max(weight)
    }

    /// Whether what is computed is pooled before it is stored.
    fn pools_at_once(&self) -> bool {
        self.pool.is_some() && self.method == Method::Direct
    }

    /// Elements of the room that a map of `blocks` blocks or its gradient takes before it is pooled, if something needs it.
    pub(super) fn unpooled_len(&self, blocks: usize) -> usize {
        let Some(pool) = &self.pool else { return 0 };
        if pool.places.is_empty() && self.pools_at_once() {
            return 0;
        }
        blocks * self.geometry.output.block_len() + TAIL
    }

    /// Elements of the room in which `blocks` blocks of x are paired.
    pub(super) fn paired_len(&self, blocks: usize) -> usize {
        self.weight_plan.as_ref().map_or(0, |plan| plan.paired_len(&self.geometry, blocks))
    }

    /// Whether Winograd's method computes this pass.
    pub(super) fn by_winograd(&self, pass: Pass) -> bool {
        let method = if pass == Pass::WeightGradient { self.weight_method } else { self.method };
        method == Method::Winograd
    }

    pub(super) fn bytes(&self) -> usize {
        self.forward.bytes()
            + self.backward.as_ref().map_or(0, Packed::bytes)
            + self.weight_plan.as_ref().map_or(0, WeightPlan::bytes)
            + self.pool.as_ref().map_or(0, PoolState::bytes)
    }
}

/// Of stage `i`, whose convolution yields a map of shape `output`.
fn geometry(i: usize, op: &net::Conv, fold: usize, layouts: &[MapLayout], output: Shape) -> Geometry {
    let input = layouts[i];
    let output = MapLayout { height: output.h, width: output.w, ..layouts[i + 1] };
    let rows = conv_axis(op, fold, input.height, output.height);
    let columns = conv_axis(op, fold, input.width, output.width);
    Geometry { input, output, groups: op.groups, rows, columns }
}

impl Mixed {
    /// Packs the weights of stage `i` for the next step.
    pub(super) fn conv_pack(&mut self, i: usize) {
        let [w] = self.frame.tensors_of(i).map(|t| t.value);
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let w = self.frame.arena.get(w);
        conv::pack_forward(&mut self.frame.ctx, &state.geometry, state.fold, w, &mut state.forward);
        if let Some(backward) = &mut state.backward {
            conv::pack_backward(&mut self.frame.ctx, &state.geometry, w, backward);
        }
    }

    /// y = relu(x ∗ w + b), or the largest of it in each window.
    pub(super) fn conv_forward(&mut self, i: usize, batch: &Batch) {
        let [_, bias] = self.frame.tensors_of(i).map(|t| t.value);
        let pictures = self.pictures(batch);
        let blocks = self.frame.blocks(batch);
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let ([x, bias], [y, unpooled]) =
            self.frame.arena.split([self.frame.maps[i], bias], [self.frame.maps[i + 1], self.unpooled]);
        let epilogue = if state.relu { Epilogue::BiasRelu } else { Epilogue::Bias };
        let pools_at_once = state.pools_at_once();
        let State { geometry: g, entry, forward: w, pool, relu, .. } = &mut **state;
        let x = match entry {
            Some(entry) => Source::Pixels(entry, batch.input),
            None => Source::Map(x),
        };
        let (ctx, engine) = (&mut self.frame.ctx, self.engine);
        match pool {
            None => conv::forward(ctx, engine, g, pictures, x, w, bias, epilogue, y),
            Some(pool) => {
                let (geometry, record) = (pool.geometry, pool.record());
                if pools_at_once {
                    conv::forward_pooled(
                        ctx, engine, g, &geometry, pictures, x, w, bias, epilogue, y, record,
                    );
                } else {
                    conv::forward(ctx, engine, g, pictures, x, w, bias, epilogue, unpooled);
                    pooling::max_forward(ctx, &geometry, blocks, unpooled, y, *relu, record);
                }
            }
        }
    }

    /// The gradient before the pooling, dx, then dw, db and their update. Returns whether the new weights are finite.
    pub(super) fn conv_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        let stage = &self.frame.plan.stages[i];
        let tensors @ [w, b] = self.frame.tensors_of(i);
        let pictures = self.pictures(batch);
        let StageState::Conv(state) = &mut self.stages[i] else { unreachable!("stage {i} is a convolution") };
        let mut dy = self.frame.gradients[i + 1];
        if let Some(pool) = &state.pool {
            let blocks = self.frame.blocks(batch);
            let ([pooled], [unpooled]) = self.frame.arena.split([dy], [self.unpooled]);
            let ctx = &mut self.frame.ctx;
            pooling::max_backward(ctx, self.engine, &pool.geometry, blocks, pooled, &pool.places, unpooled);
            self.frame.watch.lap(i, Pass::Backward);
            dy = self.unpooled;
        }
        let g = &state.geometry;
        if let Some(packed) = &state.backward {
            let ([x, dy], [dx]) = self.frame.arena.split([self.frame.maps[i], dy], [self.frame.gradients[i]]);
            let relu = stage.masks_input.then_some(x);
            conv::backward_input(&mut self.frame.ctx, self.engine, g, pictures, dy, packed, relu, dx);
            self.frame.watch.lap(i, Pass::InputGradient);
        }
        if !self.frame.any_moves(i, tensors, settings) {
            return true;
        }
        let Some(plan) = &mut state.weight_plan else { unreachable!("a stage that moves has a weight plan") };
        let ([x, dy], [paired, dw, db]) =
            self.frame.arena.split([self.frame.maps[i], dy], [self.paired, w.gradient, b.gradient]);
        let (ctx, fold) = (&mut self.frame.ctx, state.fold);
        conv::backward_weight(ctx, self.engine, g, fold, plan, pictures, x, paired, dy, dw, db);
        self.frame.watch.lap(i, Pass::WeightGradient);
        let finite = self.frame.update_all(i, tensors, settings);
        self.conv_pack(i);
        finite
    }
}

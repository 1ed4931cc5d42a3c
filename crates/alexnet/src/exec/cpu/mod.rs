//! The fast executor for the CPU: follows the [`Plan`] stage by stage, one file a kind of stage, with the kernels of
//! `alexnet-kernels` for the best instructions that the machine has. f32 throughout.
//!
//! Where there are tiles, they can compute products in high and low parts (`threefold.rs`, `linear.rs`), as precision `f32x3`;
//! and at test time linear layers can have weights in eight bits, as precision `int8`. Everything else stays as it is.
//!
//! Convolution weights are packed twice after every update, for the forward pass and for the input gradient. All other
//! buffers are regions of one arena.

mod batch_norm;
mod conv;
mod elementwise;
mod linear;
mod norm_pool;
mod threefold;

use crate::error::Result;
use crate::exec::constants;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::frame::{Draft, Frame, Stages};
use crate::exec::plan::{Form, Kind, Plan};
use crate::exec::stopwatch::Pass;
use crate::net::{Network, Op, Pool};
use alexnet_kernels::Isa;
use alexnet_kernels::arena::Region;
use alexnet_kernels::bf16::Engine;

/// A network planned for this processor.
pub struct Cpu {
    frame: Frame,
    stages: Vec<StageState>,
    arithmetic: Arithmetic,
    /// Maps in parts, shared by all stages; empty without tiles.
    rooms: [Region; 2],
}

/// What products are computed in.
#[derive(Clone, Copy)]
enum Arithmetic {
    F32,
    /// High and low parts, on tiles.
    F32x3(Engine),
    /// f32, with linear layers' weights in eight bits. Does not train.
    Int8,
}

impl Arithmetic {
    fn tiles(self) -> Option<Engine> {
        match self {
            Arithmetic::F32x3(engine) => Some(engine),
            Arithmetic::F32 | Arithmetic::Int8 => None,
        }
    }
}

/// What a stage keeps besides its maps.
enum StageState {
    Conv(Box<conv::State>),
    Linear(Box<linear::State>),
    Lrn(alexnet_kernels::lrn::Lrn),
    SpatialLrn(alexnet_kernels::spatial_lrn::SpatialLrn, Region),
    BatchNorm(Box<batch_norm::State>),
    Pool(norm_pool::PoolState),
    LrnPool(alexnet_kernels::lrn::Lrn, norm_pool::PoolState),
    Plain,
}

impl Cpu {
    /// Plans `net` on `threads` threads with the instructions of `isa`. Parameters are zero.
    ///
    /// # Errors
    /// As [`Plan::new`]; if the memory that the plan needs is not there.
    pub fn new(net: &Network, plan: Plan, isa: Isa, threads: usize) -> Result<Cpu> {
        Cpu::with(net, plan, isa, Arithmetic::F32, threads)
    }

    /// As [`Cpu::new`], with the products of convolutions on the tiles of `engine`, in high and low parts.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn on_tiles(net: &Network, plan: Plan, engine: Engine, threads: usize) -> Result<Cpu> {
        Cpu::with(net, plan, engine.isa(), Arithmetic::F32x3(engine), threads)
    }

    /// As [`Cpu::new`], for inference, with the weights of linear layers in eight bits.
    ///
    /// # Errors
    /// As [`Cpu::new`]; if a linear layer has more inputs than sums of eight bits leave room for.
    pub fn with_eight_bits(net: &Network, plan: Plan, isa: Isa, threads: usize) -> Result<Cpu> {
        assert!(!plan.trains(), "weights in eight bits do not train");
        Cpu::with(net, plan, isa, Arithmetic::Int8, threads)
    }

    fn with(net: &Network, plan: Plan, isa: Isa, arithmetic: Arithmetic, threads: usize) -> Result<Cpu> {
        let mut rooms = [0; 2];
        let strips = |outputs, inputs| linear::place(arithmetic, &plan, outputs, inputs);
        // The input is the caller's.
        let mut draft =
            Draft::new(net, &plan, strips, |i| plan.map_len(i), |i| plan.maps[i].form != Form::Input)?;
        let mut stages = vec![];
        for (i, stage) in plan.stages.iter().enumerate() {
            let op = stage.layers.clone().next().map(|layer| &net.layers[layer].op);
            let (input, output) = (plan.maps[i].shape, plan.maps[i + 1].shape);
            let pool = |op: &Pool| {
                let output_len = plan.map_len(i + 1);
                norm_pool::PoolState::new(op, input, output, plan.block, output_len, stage.input_gradient)
            };
            stages.push(match (&stage.kind, op) {
                (Kind::Conv { relu, .. }, Some(Op::Conv(op))) => {
                    let state = conv::State::new(isa, arithmetic.tiles(), &plan, i, op, *relu);
                    for (room, len) in rooms.iter_mut().zip(state.rooms(&plan)) {
                        *room = len.max(*room);
                    }
                    draft.scratch(state.scratch_len());
                    StageState::Conv(Box::new(state))
                }
                (Kind::Linear { relu }, Some(Op::Linear(op))) => {
                    let layouter = &mut draft.layouter;
                    let state = linear::State::new(isa, arithmetic, &plan, i, op.outputs, *relu, layouter);
                    rooms[0] = state.room(&plan).max(rooms[0]);
                    draft.scratch(state.scratch_len(plan.batch));
                    StageState::Linear(Box::new(state))
                }
                (Kind::Lrn, Some(Op::Lrn(op))) => {
                    let lrn = constants::lrn(op, input.c);
                    draft.scratch(alexnet_kernels::lrn::scratch_len(&lrn));
                    StageState::Lrn(lrn)
                }
                (Kind::SpatialLrn, Some(Op::SpatialLrn(op))) => {
                    let terms =
                        draft.layouter.reserve(if stage.input_gradient { plan.map_len(i) } else { 0 });
                    StageState::SpatialLrn(
                        constants::spatial_lrn(op, input.h, input.w, plan.block * input.c),
                        terms,
                    )
                }
                (Kind::BatchNorm, Some(Op::BatchNorm(op))) => {
                    StageState::BatchNorm(Box::new(batch_norm::State::new(&plan, i, op, &mut draft.layouter)))
                }
                (Kind::Pool, Some(Op::Pool(op))) => StageState::Pool(pool(op)),
                (Kind::LrnPool, Some(Op::Lrn(op))) => {
                    let Op::Pool(after) = &net.layers[stage.layers.end - 1].op else {
                        unreachable!("the stage ends with a pooling")
                    };
                    let (lrn, pool) = (constants::lrn(op, input.c), pool(after));
                    draft.scratch(pool.after(lrn).scratch_len());
                    StageState::LrnPool(lrn, pool)
                }
                _ => StageState::Plain,
            });
        }
        let rooms = rooms.map(|len| draft.layouter.reserve(len));
        Ok(Cpu { frame: draft.build(net, plan, isa, threads)?, stages, arithmetic, rooms })
    }

    /// Elements of map `i` that the batch uses; whole blocks where it is blocked.
    fn used(&self, i: usize, batch: &Batch) -> usize {
        let plan = &self.frame.plan;
        let shape = plan.maps[i].shape;
        match plan.maps[i].form {
            Form::Flat => batch.count * shape.len(),
            Form::Blocked => self.frame.blocks(batch) * plan.block * shape.len(),
            Form::Input => plan.input.len(),
        }
    }

    /// The map that stage `i` reads: the caller's input for the first.
    fn input_of<'a>(arena_map: &'a [f32], batch: &Batch<'a>, i: usize) -> &'a [f32] {
        if i == 0 { batch.input.as_f32() } else { arena_map }
    }
}

impl Stages for Cpu {
    const VALUE_BYTES: usize = size_of::<f32>();

    fn weight_bytes(&self, i: usize) -> usize {
        match &self.stages[i] {
            StageState::Linear(state) => state.weight_bytes(),
            _ => Self::VALUE_BYTES,
        }
    }

    fn by_winograd(&self, i: usize, _pass: Pass) -> bool {
        matches!(&self.stages[i], StageState::Conv(state) if state.by_winograd())
    }

    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn frame_mut(&mut self) -> &mut Frame {
        &mut self.frame
    }

    fn arithmetic(&self) -> &'static str {
        match self.arithmetic {
            Arithmetic::F32 => "f32",
            Arithmetic::F32x3(_) => "f32x3",
            Arithmetic::Int8 => "int8",
        }
    }

    fn instructions(&self) -> &'static str {
        self.arithmetic.tiles().map_or(self.frame.ctx.isa().name(), Engine::name)
    }

    fn bytes_outside_arena(&self) -> usize {
        let bytes = self.stages.iter().map(|s| match s {
            StageState::Conv(state) => state.bytes(),
            StageState::Linear(state) => state.bytes(),
            StageState::Pool(state) | StageState::LrnPool(_, state) => state.bytes(),
            _ => 0,
        });
        bytes.sum()
    }

    fn pack(&mut self, i: usize) {
        match self.stages[i] {
            StageState::Conv(_) => self.conv_pack(i),
            StageState::Linear(_) => self.linear_pack(i),
            _ => {}
        }
    }

    /// The first stage reads the caller's pixels.
    fn enter(&mut self, _: &Batch) {}

    fn forward(&mut self, i: usize, batch: &Batch, masks: Option<&StepSettings>) {
        match self.frame.plan.stages[i].kind {
            Kind::Conv { .. } => self.conv_forward(i, batch),
            Kind::Linear { .. } => self.linear_forward(i, batch),
            Kind::Lrn | Kind::SpatialLrn | Kind::Pool | Kind::LrnPool => self.norm_pool_forward(i, batch),
            Kind::Activation => self.activation_forward(i, batch),
            Kind::Dropout => self.dropout_forward(i, batch, masks),
            Kind::BatchNorm => self.batch_norm_forward(i, batch, masks),
            Kind::Flatten => self.flatten_forward(i, batch),
        }
    }

    fn backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        match self.frame.plan.stages[i].kind {
            Kind::Conv { .. } => return self.conv_backward(i, batch, settings),
            Kind::Linear { .. } => return self.linear_backward(i, batch, settings),
            Kind::BatchNorm => return self.batch_norm_backward(i, batch, settings),
            Kind::Lrn | Kind::SpatialLrn | Kind::Pool | Kind::LrnPool => self.norm_pool_backward(i, batch),
            Kind::Activation => self.activation_backward(i, batch),
            Kind::Dropout => self.dropout_backward(i, batch, settings),
            Kind::Flatten => self.flatten_backward(i, batch),
        }
        true
    }

    fn is_finite(&self, i: usize, batch: &Batch) -> bool {
        let map = self.frame.maps[i].first(self.used(i, batch));
        self.frame.arena.get(map).iter().all(|x| x.is_finite())
    }

    /// The last map and its gradient, whose rows are in canonical order: logits are (N, classes) or one position.
    fn logits(&mut self, _: usize) -> (Region, Region) {
        let last = self.frame.maps.len() - 1;
        (self.frame.maps[last], self.frame.gradients[last])
    }

    /// The gradient of the logits is where the last stage looks for it.
    fn enter_backward(&mut self, _: &Batch) {}

    fn copy_last_map(&self, _: usize, output: &mut [f32]) {
        let Frame { maps, plan, arena, .. } = &self.frame;
        let last = maps.len() - 1;
        let values = arena.get(maps[last]);
        let (shape, block) = (plan.maps[last].shape, plan.block);
        if plan.maps[last].form == Form::Flat {
            output.copy_from_slice(&values[..output.len()]);
            return;
        }
        for (n, row) in output.chunks_exact_mut(shape.len()).enumerate() {
            for (e, to) in row.iter_mut().enumerate() {
                let (c, h, w) = (e / (shape.h * shape.w), e / shape.w % shape.h, e % shape.w);
                *to = values[elementwise::blocked(shape, block, n, c, h, w)];
            }
        }
    }
}

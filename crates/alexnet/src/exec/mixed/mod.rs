//! The executor for the CPU in mixed precision: activations, their gradients and the operands of products are bf16; sums,
//! master weights, momentum, biases, the loss and the arithmetic of norms are f32. It follows the same [`Plan`] as the
//! f32 executor, one file a kind of stage, with the kernels of [`alexnet_kernels::bf16`], whose layouts it shares.
//!
//! Logits and their gradient are f32 rows. Stages that have no kernel for pairs (normalization within a map, average
//! pooling, activations other than ReLU) widen their maps, run the f32 kernel and round the result.

mod conv;
mod elementwise;
mod layouts;
mod linear;
mod loss;
mod norm_pool;

use crate::error::{Error, Result};
use crate::exec::contract::{Batch, Executor, InputLayout, Params, PassTime, StepReport, StepSettings};
use crate::exec::cpu::{check_memory, checked, update_of};
use crate::exec::plan::{Kind, Plan};
use crate::exec::stopwatch::{Pass, Stopwatch};
use crate::net::{Network, Op};
use crate::ops::update::Rule;
use alexnet_kernels::Context;
use alexnet_kernels::arena::{Arena, Layouter, Region};
use alexnet_kernels::bf16::convert::{Entry, paired_len};
use alexnet_kernels::bf16::{Engine, MapLayout, TAIL, pairs};

/// A network planned for this processor, in mixed precision.
pub struct Mixed {
    net: Network,
    plan: Plan,
    engine: Engine,
    ctx: Context,
    arena: Arena,
    watch: Stopwatch,
    stages: Vec<StageState>,
    /// Names and shapes of the parameters; the data of these is not used.
    names: Params,
    tensors: Vec<TensorState>,
    /// How the pixels enter map 0.
    entry: Entry,
    /// How each map lies.
    layouts: Vec<MapLayout>,
    /// `maps[i]` is where map i lies; empty for logits, which are rows.
    maps: Vec<Region>,
    /// Gradients of the maps: those with even and with odd numbers take turns in two regions.
    gradients: Vec<Region>,
    winners: Vec<Vec<u8>>,
    /// A stage's input with pictures paired, for its weight gradient; shared by all.
    paired: Region,
    /// dy of a linear layer in rows of picture pairs; shared by all.
    dy_rows: Region,
    /// Maps as f32, for stages without a kernel for pairs: x, y, dy, dx.
    wide: [Region; 4],
    /// (N, classes)
    logits: Region,
    /// (N, classes)
    logits_gradient: Region,
    probabilities: Region,
}

/// Where a parameter tensor and its momentum lie.
struct TensorState {
    value: Region,
    /// Empty unless the plan trains.
    momentum: Region,
    /// The whole gradient, where the update is separate; shared by all tensors of a role.
    gradient: Region,
}

/// What a stage keeps besides its maps.
enum StageState {
    Conv(Box<conv::State>),
    Linear(Box<linear::State>),
    Lrn(alexnet_kernels::lrn::Lrn),
    SpatialLrn(alexnet_kernels::spatial_lrn::SpatialLrn, Region),
    Pool(norm_pool::PoolState),
    Plain,
}

/// Why `net` under this rule is not computed in mixed precision, if it is not.
pub fn unsupported(net: &Network, rule: &Rule) -> Option<String> {
    /// Rows of a window times splits: the runs of a product that the kernels plan for.
    const MOST_RUNS: usize = 64;
    if rule.needs_whole_gradients() {
        return Some(
            "this update rule needs whole gradients, which linear layers in bf16 do not store".into(),
        );
    }
    net.layers.iter().find_map(|layer| match &layer.op {
        Op::Conv(conv) if conv.groups * conv.kernel > MOST_RUNS => {
            Some(format!("layer {}: groups times kernel size is above {MOST_RUNS}", layer.name))
        }
        Op::BatchNorm(_) => {
            Some(format!("layer {}: batch normalization is computed in f32 only", layer.name))
        }
        _ => None,
    })
}

impl Mixed {
    /// Plans `net` on `threads` threads with `engine`. `plan` is one of [`Plan::mixed`]. Parameters are zero.
    ///
    /// # Errors
    /// As [`Plan::mixed`]; if the network has a layer that is not computed in mixed precision; if the memory that the
    /// plan needs is not there.
    pub fn new(net: &Network, plan: Plan, engine: Engine, threads: usize) -> Result<Mixed> {
        if let Some(why) = unsupported(net, &plan.rule) {
            return Err(Error::Config(format!("network {}: {why}; --precision f32 computes it", net.name)));
        }
        let mut ctx = Context::new(engine.isa(), threads);
        let mut layouter = Layouter::default();
        let names = Params::zeros(net)?;
        let trains = plan.trains();
        let blocks = plan.blocks();
        let is_conv = |layer: usize| matches!(net.layers[layer].op, Op::Conv(_));
        // Convolutions' gradients are whole tensors, consumed as soon as they are there: one region serves all.
        let largest = |weights: bool| {
            let tensors = names.0.iter().filter(|p| (p.shape.len() > 1) == weights);
            let lens = tensors.filter(|p| !weights || is_conv(p.layer)).map(|p| p.data.len());
            if trains { lens.max().unwrap_or(0) } else { 0 }
        };
        let (weight_gradient, bias_gradient) =
            (layouter.reserve(largest(true)), layouter.reserve(largest(false)));
        let tensors: Vec<TensorState> = names
            .0
            .iter()
            .map(|p| {
                let len = p.data.len();
                let gradient = match p.shape.len() {
                    _ if !trains => Region::default(),
                    1 => bias_gradient.first(len),
                    _ if is_conv(p.layer) => weight_gradient.first(len),
                    _ => Region::default(),
                };
                // An executor that stops early still holds all parameters, so that it can give them back.
                TensorState {
                    value: layouter.reserve(len),
                    momentum: layouter.reserve(if trains { len } else { 0 }),
                    gradient,
                }
            })
            .collect();
        let (entry, layouts) = layouts::of(net, &plan)?;
        let room = |i: usize| blocks * layouts[i].block_len() + TAIL;
        let rows_at_end =
            plan.ends_with_loss() && matches!(plan.stages.last().map(|s| &s.kind), Some(Kind::Linear { .. }));
        let last = layouts.len() - 1;
        let maps: Vec<Region> = (0..layouts.len())
            .map(|i| layouter.reserve(if i == last && rows_at_end { 0 } else { room(i) }))
            .collect();
        // The gradient of map i is needed if stage i computes it (or the loss, for the last map).
        let wanted = |i: usize| i > 0 && trains && plan.stages.get(i).is_none_or(|s| s.input_gradient);
        let turns = [0, 1].map(|odd| {
            let rooms = (1..layouts.len()).filter(|&i| i % 2 == odd && wanted(i)).map(room);
            layouter.reserve(rooms.max().unwrap_or(0))
        });
        let gradients = (0..layouts.len())
            .map(|i| if wanted(i) { turns[i % 2].first(room(i)) } else { Region::default() })
            .collect();
        let mut winners = vec![];
        let mut stages = vec![];
        let (mut paired, mut dy_rows, mut wide, mut scratch) = (0, 0, [0; 4], 64);
        for (i, stage) in plan.stages.iter().enumerate() {
            let op = stage.layers.clone().next().map(|layer| &net.layers[layer].op);
            let mut winner = vec![];
            let mut widens = false;
            stages.push(match (&stage.kind, op) {
                (Kind::Conv { relu }, Some(Op::Conv(op))) => {
                    let fold = if i == 0 { entry.fold } else { 1 };
                    let state = conv::State::new(&plan, i, op, fold, &layouts, *relu);
                    if stage.moves {
                        paired = paired.max(paired_len(&layouts[i], blocks));
                    }
                    scratch = scratch.max(state.scratch_len());
                    StageState::Conv(Box::new(state))
                }
                (Kind::Linear { relu }, Some(Op::Linear(op))) => {
                    let state = linear::State::new(&plan, i, op.outputs, *relu, i == last - 1 && rows_at_end);
                    if trains {
                        paired = paired.max(paired_len(&layouts[i], blocks));
                        dy_rows =
                            dy_rows.max(alexnet_kernels::bf16::linear::unzipped_len(op.outputs, blocks));
                    }
                    scratch = scratch.max(alexnet_kernels::bf16::linear::scratch_len(blocks));
                    StageState::Linear(Box::new(state))
                }
                (Kind::Lrn, Some(Op::Lrn(op))) => {
                    let lrn = crate::exec::cpu::lrn(op, layouts[i].channels);
                    scratch = scratch.max(alexnet_kernels::bf16::lrn::scratch_len(&lrn));
                    StageState::Lrn(lrn)
                }
                (Kind::SpatialLrn, Some(Op::SpatialLrn(op))) => {
                    widens = true;
                    let len = 2 * blocks * layouts[i].block_len();
                    let terms = layouter.reserve(if stage.input_gradient { len } else { 0 });
                    StageState::SpatialLrn(norm_pool::spatial_lrn(op, &layouts[i]), terms)
                }
                (Kind::Pool, Some(Op::Pool(op))) => {
                    let state = norm_pool::PoolState::new(op, &layouts[i], &layouts[i + 1]);
                    widens = state.widens();
                    winner = vec![0; if widens { 0 } else { 2 * blocks * layouts[i + 1].block_len() }];
                    StageState::Pool(state)
                }
                (Kind::Activation, Some(Op::Activation(f))) => {
                    widens = *f != crate::net::Activation::Relu;
                    StageState::Plain
                }
                _ => StageState::Plain,
            });
            if widens {
                let [from, to] = [i, i + 1].map(|map| 2 * blocks * layouts[map].block_len());
                let back = if stage.input_gradient { [to, from] } else { [0, 0] };
                for (wide, len) in wide.iter_mut().zip([from, to].into_iter().chain(back)) {
                    *wide = len.max(*wide);
                }
            }
            winners.push(winner);
        }
        let rows = if plan.ends_with_loss() { plan.batch * net.classes() } else { 0 };
        let (paired, dy_rows) = (layouter.reserve(paired), layouter.reserve(dy_rows));
        let wide = wide.map(|len| layouter.reserve(len));
        let (logits, probabilities) = (layouter.reserve(rows), layouter.reserve(rows));
        let logits_gradient = layouter.reserve(if trains { rows } else { 0 });
        check_memory(layouter.bytes())?;
        ctx.reserve_scratch(scratch);
        let arena = layouter.build();
        Ok(Mixed {
            net: net.clone(),
            engine,
            ctx,
            arena,
            watch: Stopwatch::new(&plan),
            stages,
            names,
            tensors,
            entry,
            layouts,
            maps,
            gradients,
            winners,
            paired,
            dy_rows,
            wide,
            logits,
            logits_gradient,
            probabilities,
            plan,
        })
    }

    /// The index of the weights of the layer that stage `i` begins with; its biases follow.
    fn weight_of(&self, i: usize) -> usize {
        let layer = self.plan.stages[i].layers.start;
        self.names.0.iter().position(|p| p.layer == layer).expect("this stage has parameters")
    }

    /// Pictures that kernels compute: in training whole blocks, so that every lane of a gradient is defined.
    fn pictures(&self, batch: &Batch) -> usize {
        if self.plan.trains() { batch.count.next_multiple_of(self.plan.block) } else { batch.count }
    }

    /// Blocks in which the batch has pictures.
    fn blocks(&self, batch: &Batch) -> usize {
        batch.count.div_ceil(self.plan.block)
    }

    fn forward(&mut self, batch: &Batch, masks: Option<&StepSettings>) {
        assert!(
            batch.count <= self.plan.batch && batch.input.len() == self.plan.input.len(),
            "the batch does not fit the plan"
        );
        self.watch.start();
        self.enter(batch);
        self.watch.lap(0, Pass::Input);
        for i in 0..self.stages.len() {
            match self.plan.stages[i].kind {
                Kind::Conv { .. } => self.conv_forward(i, batch),
                Kind::Linear { .. } => self.linear_forward(i, batch),
                Kind::Lrn | Kind::SpatialLrn | Kind::Pool => self.norm_pool_forward(i, batch),
                Kind::Activation => self.activation_forward(i, batch),
                Kind::Dropout => self.dropout_forward(i, batch, masks),
                Kind::BatchNorm => unreachable!("refused when the executor was made"),
                Kind::Flatten => self.flatten_forward(i, batch),
            }
            self.watch.lap(i, Pass::Forward);
        }
    }

    /// Backward through all stages that need it, last to first; each layer moves as soon as nothing needs its old
    /// weights. Returns the first layer, in this order, whose weights are no longer finite.
    fn backward_and_update(&mut self, batch: &Batch, settings: &StepSettings) -> Option<usize> {
        let mut nonfinite = None;
        for i in (0..self.stages.len()).rev() {
            let stage = &self.plan.stages[i];
            if !stage.moves && !stage.input_gradient {
                continue;
            }
            let (layer, kind) = (stage.layers.start, stage.kind);
            let finite = match kind {
                Kind::Conv { .. } => self.conv_backward(i, batch, settings),
                Kind::Linear { .. } => self.linear_backward(i, batch, settings),
                _ => {
                    match kind {
                        Kind::Activation => self.activation_backward(i, batch),
                        Kind::Dropout => self.dropout_backward(i, batch, settings),
                        Kind::Flatten => self.flatten_backward(i, batch),
                        _ => self.norm_pool_backward(i, batch),
                    }
                    true
                }
            };
            self.watch.lap(i, if matches!(kind, Kind::Conv { .. }) { Pass::Update } else { Pass::Backward });
            if !finite && nonfinite.is_none() {
                nonfinite = Some(layer);
            }
        }
        nonfinite
    }

    /// The first layer whose output for this batch is not finite.
    fn first_nonfinite_map(&self, batch: &Batch) -> Option<usize> {
        const EXPONENT: u32 = 0x7f80;
        let broken = |pair: &u32| pair & EXPONENT == EXPONENT || pair >> 16 & EXPONENT == EXPONENT;
        (0..self.plan.stages.len()).find_map(|i| {
            let map = self.maps[i + 1];
            let bad = if map.is_empty() {
                self.arena.get(self.logits).iter().any(|x| !x.is_finite())
            } else {
                let used = self.blocks(batch) * self.layouts[i + 1].block_len();
                pairs(self.arena.get(map.first(used))).iter().any(broken)
            };
            bad.then_some(self.plan.stages[i].layers.start.min(self.net.layers.len() - 1))
        })
    }
}

impl Executor for Mixed {
    fn input_layout(&self) -> InputLayout {
        self.plan.input.clone()
    }

    fn describe(&self) -> String {
        format!(
            "{}: batch {} in blocks of {}, {} on {} threads, {:.0} MiB\n{}",
            self.net.name,
            self.plan.batch,
            self.plan.block,
            self.kernel_name(),
            self.ctx.threads(),
            self.planned_bytes() as f64 / (1 << 20) as f64,
            self.plan.describe(&self.net)
        )
    }

    fn kernel_name(&self) -> String {
        format!("{} {}", self.engine.name(), self.precision())
    }

    fn precision(&self) -> &'static str {
        "bf16"
    }

    fn pass_times(&self) -> Vec<PassTime> {
        self.watch.times(&self.net, &self.plan, 2)
    }

    fn planned_bytes(&self) -> usize {
        let stages: usize = self
            .stages
            .iter()
            .map(|s| match s {
                StageState::Conv(state) => state.bytes(),
                StageState::Linear(state) => state.bytes(),
                _ => 0,
            })
            .sum();
        let winners: usize = self.winners.iter().map(Vec::len).sum();
        self.arena.bytes() + stages + winners + self.ctx.scratch_bytes()
    }

    fn set_params(&mut self, params: &Params) {
        for (tensor, param) in self.tensors.iter().zip(checked(params, &self.names, &self.net.name)) {
            self.arena.get_mut(tensor.value).copy_from_slice(param);
        }
        for i in 0..self.stages.len() {
            match self.stages[i] {
                StageState::Conv(_) => self.conv_pack(i),
                StageState::Linear(_) => self.linear_pack(i),
                _ => {}
            }
        }
    }

    fn params(&self) -> Params {
        let mut params = self.names.clone();
        for (param, tensor) in params.0.iter_mut().zip(&self.tensors) {
            param.data.copy_from_slice(self.arena.get(tensor.value));
        }
        params
    }

    fn set_momentum(&mut self, momentum: &Params) {
        for (tensor, param) in self.tensors.iter().zip(checked(momentum, &self.names, &self.net.name)) {
            if !tensor.momentum.is_empty() {
                self.arena.get_mut(tensor.momentum).copy_from_slice(param);
            }
        }
    }

    fn momentum(&self) -> Params {
        let mut momentum = self.names.clone();
        for (param, tensor) in momentum.0.iter_mut().zip(&self.tensors) {
            if !tensor.momentum.is_empty() {
                param.data.copy_from_slice(self.arena.get(tensor.momentum));
            }
        }
        momentum
    }

    fn train_step(&mut self, batch: Batch, settings: &StepSettings) -> StepReport {
        assert!(self.plan.trains(), "an executor compiled for inference does not train");
        assert_eq!(settings.rates.len(), self.tensors.len(), "one rate a parameter tensor");
        assert!(
            batch.labels.len() == batch.count && batch.weights.len() == batch.count,
            "labels and weights"
        );
        self.forward(&batch, Some(settings));
        let mut report = self.loss(&batch);
        self.watch.lap(self.stages.len(), Pass::Forward);
        let nonfinite = self.backward_and_update(&batch, settings);
        // A loss that is finite can hide an overflow, and the other way round: the maps are searched only then.
        report.nonfinite = if report.loss.is_finite() {
            nonfinite
        } else {
            self.first_nonfinite_map(&batch).or(nonfinite).or(Some(self.net.layers.len() - 1))
        };
        report
    }

    fn infer(&mut self, batch: Batch, output: &mut [f32]) {
        assert_eq!(output.len(), batch.count * self.output_len(), "the output is not (count, outputs)");
        self.forward(&batch, None);
        self.yield_output(batch.count, output);
    }

    fn output_len(&self) -> usize {
        self.plan.maps[self.plan.maps.len() - 1].shape.len()
    }
}

//! The fast executor for the CPU: follows the [`Plan`] stage by stage, one file a kind of stage, with the kernels of
//! `alexnet-kernels` for the best instructions that the machine has. f32 throughout.
//!
//! Parameters are kept in canonical layout; convolution weights are packed twice after every update, for the forward pass
//! and for the input gradient. All buffers are regions of one arena, laid out here.

mod batch_norm;
mod conv;
mod elementwise;
mod linear;
mod loss;
mod norm_pool;

pub(super) use norm_pool::lrn;

use crate::error::{Error, Result};
use crate::exec::contract::{Batch, Executor, InputLayout, Params, Rate, StepReport, StepSettings};
use crate::exec::plan::{Form, Kind, Plan};
use crate::net::{Network, Op};
use crate::ops::update::limit_rms;
use alexnet_kernels::arena::{Arena, Layouter, Region};
use alexnet_kernels::sgd::{self, Update};
use alexnet_kernels::{Context, Isa};

/// A network planned for this processor.
pub struct Cpu {
    net: Network,
    plan: Plan,
    ctx: Context,
    arena: Arena,
    stages: Vec<StageState>,
    /// Names and shapes of the parameters; the data of these is not used.
    names: Params,
    tensors: Vec<TensorState>,
    /// `maps[i]` is where map i lies; the input is the caller's.
    maps: Vec<Region>,
    /// Gradients of the maps: those with even and with odd numbers take turns in two regions.
    gradients: Vec<Region>,
    winners: Vec<Vec<u8>>,
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
    BatchNorm(Box<batch_norm::State>),
    Pool(norm_pool::PoolState),
    Plain,
}

impl Cpu {
    /// Plans `net` on `threads` threads with the instructions of `isa`. Parameters are zero.
    ///
    /// # Errors
    /// As [`Plan::new`]; if the memory that the plan needs is not there.
    pub fn new(net: &Network, plan: Plan, isa: Isa, threads: usize) -> Result<Cpu> {
        let mut ctx = Context::new(isa, threads);
        let mut layouter = Layouter::default();
        let names = Params::zeros(net)?;
        let trains = plan.trains();
        let layers_used = plan.stages.last().map_or(0, |s| s.layers.end);
        // Separate updates consume a whole gradient as soon as it is there: one region serves all. Linear layers need
        // one only if the rule asks for it; batch normalizations keep their own.
        let whole = plan.rule.needs_whole_gradients();
        let separate = |layer: usize| match net.layers[layer].op {
            Op::Linear(_) => whole,
            _ => true,
        };
        let largest = |weights: bool| {
            let role = |p: &&crate::exec::contract::Param| (p.shape.len() > 1) == weights;
            let lens =
                names.0.iter().filter(|p| !weights || separate(p.layer)).filter(role).map(|p| p.data.len());
            if trains { lens.max().unwrap_or(0) } else { 0 }
        };
        let (weight_gradient, bias_gradient) =
            (layouter.reserve(largest(true)), layouter.reserve(largest(false)));
        let tensors = names
            .0
            .iter()
            .map(|p| {
                let len = p.data.len();
                let gradient = match p.shape.len() {
                    1 => bias_gradient.first(if trains { len } else { 0 }),
                    _ if separate(p.layer) && trains => weight_gradient.first(len),
                    _ => Region::default(),
                };
                // An executor that stops early still holds all parameters, so that it can give them back.
                TensorState {
                    value: layouter.reserve(len),
                    momentum: layouter.reserve(if trains { len } else { 0 }),
                    gradient,
                }
            })
            .collect::<Vec<_>>();
        let maps: Vec<Region> = (0..plan.maps.len())
            .map(|i| layouter.reserve(if plan.maps[i].form == Form::Input { 0 } else { plan.map_len(i) }))
            .collect();
        // The gradient of map i is needed if stage i computes it (or the loss, for the last map).
        let wanted = |i: usize| trains && plan.stages.get(i).is_none_or(|s| s.input_gradient);
        let turn = |odd: usize| {
            let lens = (1..plan.maps.len()).filter(|&i| i % 2 == odd && wanted(i)).map(|i| plan.map_len(i));
            lens.max().unwrap_or(0)
        };
        let turns = [layouter.reserve(turn(0)), layouter.reserve(turn(1))];
        let gradients = (0..plan.maps.len())
            .map(|i| if i > 0 && wanted(i) { turns[i % 2].first(plan.map_len(i)) } else { Region::default() })
            .collect();
        let mut winners = vec![];
        let mut stages = vec![];
        let mut scratch = 64;
        for (i, stage) in plan.stages.iter().enumerate() {
            let op = stage.layers.clone().next().map(|layer| &net.layers[layer].op);
            let (input, output) = (plan.maps[i].shape, plan.maps[i + 1].shape);
            let mut winner = vec![];
            stages.push(match (&stage.kind, op) {
                (Kind::Conv { relu }, Some(Op::Conv(op))) => {
                    let state = conv::State::new(isa, &plan, i, op, *relu);
                    scratch = scratch.max(state.scratch_len());
                    StageState::Conv(Box::new(state))
                }
                (Kind::Linear { relu }, Some(Op::Linear(op))) => {
                    let state = linear::State::new(isa, &plan, i, op.outputs, *relu, &mut layouter);
                    scratch = scratch.max(state.scratch_len(plan.batch));
                    StageState::Linear(Box::new(state))
                }
                (Kind::Lrn, Some(Op::Lrn(op))) => {
                    let lrn = norm_pool::lrn(op, input.c);
                    scratch = scratch.max(alexnet_kernels::lrn::scratch_len(&lrn));
                    StageState::Lrn(lrn)
                }
                (Kind::SpatialLrn, Some(Op::SpatialLrn(op))) => {
                    let terms = layouter.reserve(if stage.input_gradient { plan.map_len(i) } else { 0 });
                    StageState::SpatialLrn(norm_pool::spatial_lrn(op, input, plan.block), terms)
                }
                (Kind::BatchNorm, Some(Op::BatchNorm(op))) => {
                    StageState::BatchNorm(Box::new(batch_norm::State::new(&plan, i, op, &mut layouter)))
                }
                (Kind::Pool, Some(Op::Pool(op))) => {
                    winner =
                        vec![0; if op.kind == crate::net::PoolKind::Max { plan.map_len(i + 1) } else { 0 }];
                    StageState::Pool(norm_pool::PoolState::new(op, input, output, plan.block))
                }
                _ => StageState::Plain,
            });
            winners.push(winner);
        }
        let probabilities =
            layouter.reserve(if layers_used == net.layers.len() { plan.batch * net.classes() } else { 0 });
        check_memory(layouter.bytes())?;
        ctx.reserve_scratch(scratch);
        let arena = layouter.build();
        Ok(Cpu {
            net: net.clone(),
            ctx,
            arena,
            stages,
            names,
            tensors,
            maps,
            gradients,
            winners,
            probabilities,
            plan,
        })
    }

    /// The index of the weights of the layer that stage `i` begins with; its biases follow.
    fn weight_of(&self, i: usize) -> usize {
        let layer = self.plan.stages[i].layers.start;
        self.names.0.iter().position(|p| p.layer == layer).expect("this stage has parameters")
    }

    fn forward(&mut self, batch: &Batch, masks: Option<&StepSettings>) {
        assert!(
            batch.count <= self.plan.batch && batch.input.len() == self.plan.input.len(),
            "the batch does not fit the plan"
        );
        for i in 0..self.stages.len() {
            match self.plan.stages[i].kind {
                Kind::Conv { .. } => self.conv_forward(i, batch),
                Kind::Linear { .. } => self.linear_forward(i, batch),
                Kind::Lrn | Kind::SpatialLrn | Kind::Pool => self.norm_pool_forward(i, batch),
                Kind::Activation => self.activation_forward(i, batch),
                Kind::Dropout => self.dropout_forward(i, batch, masks),
                Kind::BatchNorm => self.batch_norm_forward(i, batch, masks.is_some()),
                Kind::Flatten => self.flatten_forward(i, batch),
            }
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
            let layer = stage.layers.start;
            let finite = match stage.kind {
                Kind::Conv { .. } => self.conv_backward(i, batch, settings),
                Kind::Linear { .. } => self.linear_backward(i, batch, settings),
                Kind::BatchNorm => self.batch_norm_backward(i, batch, settings),
                _ => {
                    match stage.kind {
                        Kind::Activation => self.activation_backward(i, batch),
                        Kind::Dropout => self.dropout_backward(i, batch, settings),
                        Kind::Flatten => self.flatten_backward(i, batch),
                        _ => self.norm_pool_backward(i, batch),
                    }
                    true
                }
            };
            if !finite && nonfinite.is_none() {
                nonfinite = Some(layer);
            }
        }
        nonfinite
    }

    /// Moves tensor `t` by its whole gradient, as the rule says. Returns whether its values are finite.
    fn update(&mut self, t: usize, gradient: Region, settings: &StepSettings) -> bool {
        let rate = settings.rates[t];
        let ([g], [w, v]) = self.arena.split([gradient], [self.tensors[t].value, self.tensors[t].momentum]);
        let mut update = update_of(rate, settings);
        if let Some(lars) = self.plan.rule.lars
            && rate.lr != 0.0
        {
            let [weight, gradient] = [&*w, g].map(|a| sgd::norm_squared(&mut self.ctx, a).sqrt());
            update.lr = lars.rate(f64::from(rate.lr), f64::from(rate.decay), weight, gradient) as f32;
        }
        let finite = sgd::update(&mut self.ctx, update, g, w, v);
        if let (Some(limit), [filters, _, _, _]) = (self.plan.rule.filter_rms, &self.names.0[t].shape[..])
            && rate.lr != 0.0
        {
            let len = w.len() / filters;
            self.ctx.for_each_chunk(w, len, |_, filter| limit_rms(limit, filter));
        }
        finite
    }

    /// The map that stage `i` reads: the caller's input for the first.
    fn input_of<'a>(arena_map: &'a [f32], batch: &Batch<'a>, i: usize) -> &'a [f32] {
        if i == 0 { batch.input } else { arena_map }
    }

    /// The first layer whose output for this batch is not finite.
    fn first_nonfinite_map(&self, count: usize) -> Option<usize> {
        (0..self.plan.stages.len()).find_map(|i| {
            let stage = &self.plan.stages[i];
            let map = self.arena.get(self.maps[i + 1]);
            let bad = match self.plan.maps[i + 1].form {
                Form::Flat => map[..count * self.plan.maps[i + 1].shape.len()].iter().any(|x| !x.is_finite()),
                _ => map.iter().any(|x| !x.is_finite()),
            };
            bad.then_some(stage.layers.start.min(self.net.layers.len() - 1))
        })
    }
}

/// The update of one tensor.
pub(super) fn update_of(rate: Rate, settings: &StepSettings) -> Update {
    Update { lr: rate.lr, decay: rate.decay, momentum: settings.momentum }
}

/// Refuses a plan that is larger than the memory the system says is available.
pub(super) fn check_memory(bytes: usize) -> Result<()> {
    let Some(available) = available_memory_bytes() else { return Ok(()) };
    if bytes <= available {
        return Ok(());
    }
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    Err(Error::Device(format!(
        "this plan needs {:.2} GiB of memory and {:.2} GiB are available; a smaller --batch needs less",
        gib(bytes),
        gib(available)
    )))
}

/// What Linux says can be allocated without swapping.
fn available_memory_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib * 1024)
}

impl Executor for Cpu {
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
        format!("{} {}", self.ctx.isa().name(), self.precision())
    }

    fn precision(&self) -> &'static str {
        "f32"
    }

    fn planned_bytes(&self) -> usize {
        let arena: usize = self
            .tensors
            .iter()
            .flat_map(|t| [t.value.len(), t.momentum.len()])
            .chain(self.maps.iter().map(|m| m.len()))
            .sum();
        let turns = [0, 1].map(|odd| {
            let lens = self.gradients.iter().enumerate().filter(|(i, _)| i % 2 == odd).map(|(_, g)| g.len());
            lens.max().unwrap_or(0)
        });
        let largest = |f: fn(&TensorState) -> bool| {
            self.tensors.iter().filter(|t| f(t)).map(|t| t.gradient.len()).max().unwrap_or(0)
        };
        let stages: usize = self
            .stages
            .iter()
            .map(|s| match s {
                StageState::Conv(state) => state.bytes(),
                StageState::Linear(state) => state.bytes(),
                StageState::SpatialLrn(_, terms) => terms.len() * size_of::<f32>(),
                StageState::BatchNorm(state) => state.bytes(),
                _ => 0,
            })
            .sum();
        let winners: usize = self.winners.iter().map(Vec::len).sum();
        let elements = arena + turns[0] + turns[1] + largest(|_| true) + self.probabilities.len();
        elements * size_of::<f32>() + stages + winners + self.ctx.scratch_bytes()
    }

    fn set_params(&mut self, params: &Params) {
        for (tensor, param) in self.tensors.iter().zip(checked(params, &self.names, &self.net.name)) {
            self.arena.get_mut(tensor.value).copy_from_slice(param);
        }
        for i in 0..self.stages.len() {
            if matches!(self.stages[i], StageState::Conv(_)) {
                self.conv_pack(i);
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
        let nonfinite = self.backward_and_update(&batch, settings);
        // A loss that is finite can hide an overflow, and the other way round: the maps are searched only then.
        report.nonfinite = if report.loss.is_finite() {
            nonfinite
        } else {
            self.first_nonfinite_map(batch.count).or(nonfinite).or(Some(self.net.layers.len() - 1))
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

/// The values of `params`, whose names and shapes must be those of `names`.
pub(super) fn checked<'a>(
    params: &'a Params,
    names: &'a Params,
    net: &'a str,
) -> impl Iterator<Item = &'a [f32]> {
    let key = |p: &'a Params| p.0.iter().map(|p| (&p.name, &p.shape));
    assert!(key(params).eq(key(names)), "these are not the parameters of network {net}");
    params.0.iter().map(|p| p.data.as_slice())
}

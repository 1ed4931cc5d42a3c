//! What executors that follow a [`Plan`] have in common, whatever their arithmetic: what they hold ([`Frame`]), and the
//! order of a step. [`Stages`] is what each computes in its own way.

use crate::error::{Error, Result};
use crate::exec::contract::{Batch, Executor, InputLayout, Params, PassTime, StepReport, StepSettings};
use crate::exec::parameters::{Parameters, Tensor};
use crate::exec::plan::{Kind, Plan};
use crate::exec::stopwatch::{Pass, Stopwatch};
use crate::net::{Activation, Dropout, Network, Op};
use crate::ops::dropout::Mask;
use crate::ops::{loss, update::limit_rms};
use alexnet_kernels::arena::{Arena, Layouter, Region};
use alexnet_kernels::sgd::{self, Update};
use alexnet_kernels::strips::Strips;
use alexnet_kernels::threads::Threads;
use alexnet_kernels::{Context, Isa};

/// What is reserved while an executor is made, before anything is allocated.
pub(super) struct Draft {
    pub layouter: Layouter,
    parameters: Parameters,
    maps: Vec<Region>,
    gradients: Vec<Region>,
    /// Elements of scratch memory that each thread needs.
    scratch: usize,
}

impl Draft {
    /// Room for the parameters (`strips` as for [`Parameters::reserve`]), for the maps that are `held` (others lie
    /// elsewhere) and for the gradients of maps; `room` says how many elements a map takes.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn new(
        net: &Network,
        plan: &Plan,
        strips: impl Fn(usize, usize) -> Strips,
        room: impl Fn(usize) -> usize,
        held: impl Fn(usize) -> bool,
    ) -> Result<Draft> {
        let mut layouter = Layouter::default();
        let parameters = Parameters::reserve(net, plan, strips, &mut layouter)?;
        let count = plan.maps.len();
        let maps = (0..count).map(|i| layouter.reserve(if held(i) { room(i) } else { 0 })).collect();
        // The gradient of map i is needed if stage i computes it (or the loss, for the last map).
        let wanted = |i: usize| i > 0 && plan.trains() && plan.stages.get(i).is_none_or(|s| s.input_gradient);
        let turns = [0, 1].map(|odd| {
            let rooms = (0..count).filter(|&i| i % 2 == odd && wanted(i)).map(&room);
            layouter.reserve(rooms.max().unwrap_or(0))
        });
        let gradients = (0..count)
            .map(|i| if wanted(i) { turns[i % 2].first(room(i)) } else { Region::default() })
            .collect();
        Ok(Draft { layouter, parameters, maps, gradients, scratch: 64 })
    }

    /// Asks for so many elements of scratch memory a thread.
    pub fn scratch(&mut self, len: usize) {
        self.scratch = self.scratch.max(len);
    }

    /// Allocates everything.
    ///
    /// # Errors
    /// If the plan needs more memory than there is.
    pub fn build(mut self, net: &Network, plan: Plan, isa: Isa, threads: usize) -> Result<Frame> {
        let probabilities = if plan.trains() { plan.batch * net.classes() } else { 0 };
        let probabilities = self.layouter.reserve(probabilities);
        check_memory(self.layouter.bytes())?;
        let mut ctx = Context::new(isa, threads);
        ctx.reserve_scratch(self.scratch);
        Ok(Frame {
            net: net.clone(),
            ctx,
            arena: self.layouter.build(),
            watch: Stopwatch::new(&plan),
            parameters: self.parameters,
            maps: self.maps,
            gradients: self.gradients,
            probabilities,
            losses: vec![0.0; if plan.trains() { plan.batch } else { 0 }],
            plan,
        })
    }
}

/// What an executor holds besides the state of its stages.
pub(super) struct Frame {
    pub net: Network,
    pub plan: Plan,
    pub ctx: Context,
    pub arena: Arena,
    pub watch: Stopwatch,
    pub parameters: Parameters,
    /// `maps[i]` is where map i lies; empty if it lies elsewhere.
    pub maps: Vec<Region>,
    /// Gradients of the maps: those with even and with odd numbers take turns in two regions.
    pub gradients: Vec<Region>,
    /// (N, classes); empty unless the plan trains.
    probabilities: Region,
    /// (N); empty unless the plan trains.
    losses: Vec<f64>,
}

impl Frame {
    /// The parameters of the layer that stage `i` begins with: weights, biases, and what else it has.
    pub fn tensors_of<const T: usize>(&self, i: usize) -> [Tensor; T] {
        self.parameters.of_layer(self.plan.stages[i].layers.start)
    }

    /// Blocks in which the batch has pictures.
    pub fn blocks(&self, batch: &Batch) -> usize {
        batch.count.div_ceil(self.plan.block)
    }

    /// What the activation of stage `i` computes.
    pub fn activation_of(&self, i: usize) -> Activation {
        let Op::Activation(f) = self.net.layers[self.plan.stages[i].layers.start].op else {
            unreachable!("stage {i} is an activation")
        };
        f
    }

    /// The dropout of stage `i` and, while training, its mask, keyed by its place in the network.
    pub fn dropout_of(&self, i: usize, masks: Option<&StepSettings>) -> (Dropout, Option<Mask>) {
        let layer = self.plan.stages[i].layers.start;
        let Op::Dropout(op) = &self.net.layers[layer].op else { unreachable!("stage {i} is dropout") };
        (op.clone(), masks.map(|s| Mask::new(op.rate, s.seed, s.step, layer)))
    }

    /// How `tensor` of stage `i` moves in this step, which it does not if its stage does not.
    pub fn rate_of(&self, i: usize, tensor: Tensor, settings: &StepSettings) -> Update {
        let rate = settings.rates[tensor.index];
        let lr = if self.plan.stages[i].moves { rate.lr } else { 0.0 };
        Update { lr, decay: rate.decay, momentum: settings.momentum }
    }

    /// Moves `tensor` of stage `i` by its whole gradient, as the plan's rule says. Returns whether its values are finite.
    pub fn update(&mut self, i: usize, tensor: Tensor, settings: &StepSettings) -> bool {
        let mut update = self.rate_of(i, tensor, settings);
        if update.lr == 0.0 {
            return true;
        }
        let ([g], [w, v]) = self.arena.split([tensor.gradient], [tensor.value, tensor.momentum]);
        if let Some(lars) = self.plan.rule.lars {
            let [weight, gradient] = [&*w, g].map(|a| sgd::norm_squared(&mut self.ctx, a).sqrt());
            let rate = lars.rate(f64::from(update.lr), f64::from(update.decay), weight, gradient);
            update.lr = rate as f32;
        }
        let finite = sgd::update(&mut self.ctx, update, g, w, v);
        if let Some(limit) = self.plan.rule.filter_rms
            && tensor.filter_len > 0
        {
            self.ctx.for_each_chunk(w, tensor.filter_len, |_, filter| limit_rms(limit, filter));
        }
        finite
    }

    /// [`Frame::update`] of several tensors of stage `i`.
    pub fn update_all(&mut self, i: usize, tensors: [Tensor; 2], settings: &StepSettings) -> bool {
        // Every tensor moves, whatever became of the one before it.
        tensors.map(|tensor| self.update(i, tensor, settings)) == [true; 2]
    }

    /// Whether a step moves any of these tensors of stage `i`.
    pub fn any_moves(&self, i: usize, tensors: [Tensor; 2], settings: &StepSettings) -> bool {
        tensors.into_iter().any(|tensor| self.rate_of(i, tensor, settings).lr != 0.0)
    }

    /// The loss of the batch from its logits, and their gradient.
    fn loss(&mut self, batch: &Batch, logits: Region, gradient: Region) -> StepReport {
        let classes = self.net.classes();
        let len = batch.count * classes;
        let ([z], [p, dz]) =
            self.arena.split([logits.first(len)], [self.probabilities.first(len), gradient.first(len)]);
        // Two exponentials for every logit, one of them in f64: every thread takes pictures of its own.
        let (kind, z_of) = (self.net.loss, |n: usize| &z[n * classes..][..classes]);
        self.ctx.for_each_chunk(p, classes, |n, p| loss::probabilities(kind, classes, z_of(n), p));
        let losses = &mut self.losses[..batch.count];
        self.ctx.for_each_chunk(losses, 1, |n, to| {
            to[0] =
                if batch.weights[n] == 0.0 { 0.0 } else { loss::of_picture(kind, z_of(n), batch.labels[n]) };
        });
        loss::backward(classes, p, batch.labels, batch.weights, dz);
        StepReport {
            loss: loss::mean(|n| losses[n], batch.weights),
            top1_wrong: loss::top1_wrong(classes, z, batch.labels, batch.weights),
            weight: batch.weights.iter().map(|&w| f64::from(w)).sum(),
            nonfinite: None,
        }
    }
}

/// How an executor computes the stages of its plan. Everything else that [`Executor`] asks for follows.
pub(super) trait Stages: Send {
    /// Bytes of one value of a map.
    const VALUE_BYTES: usize;

    /// Bytes of one weight of stage `i` as it is read at test time.
    fn weight_bytes(&self, _i: usize) -> usize {
        Self::VALUE_BYTES
    }

    /// Whether this pass of stage `i` is a convolution that Winograd's method computes.
    fn by_winograd(&self, _i: usize, _pass: Pass) -> bool {
        false
    }

    /// What it holds.
    fn frame(&self) -> &Frame;

    /// What it holds, to change.
    fn frame_mut(&mut self) -> &mut Frame;

    /// The arithmetic of products.
    fn arithmetic(&self) -> &'static str;

    /// Name of the instructions that compute.
    fn instructions(&self) -> &'static str;

    /// Bytes held outside the arena: packed weights, winners of pooling.
    fn bytes_outside_arena(&self) -> usize;

    /// The parameters of stage `i`, if it has any, are new: makes of them what its kernels read.
    fn pack(&mut self, i: usize);

    /// Takes the pixels in, if the first stage does not read them where they are.
    fn enter(&mut self, batch: &Batch);

    /// Map i to map i + 1. `masks` are the settings of a step of training; `None` computes as at test time.
    fn forward(&mut self, i: usize, batch: &Batch, masks: Option<&StepSettings>);

    /// The gradient of map i + 1 to that of map i, if the plan wants it, and to the gradients of stage i's parameters,
    /// which move. Returns whether those that moved are finite.
    fn backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool;

    /// Whether the pictures of this batch are finite in map `i`.
    fn is_finite(&self, i: usize, batch: &Batch) -> bool;

    /// Where the logits of the last forward pass lie, (count, classes), and their gradient.
    fn logits(&mut self, count: usize) -> (Region, Region);

    /// The gradient of the logits is there: puts it where the last stage looks for it.
    fn enter_backward(&mut self, batch: &Batch);

    /// Copies the last map in canonical order, (count, C, H, W).
    fn copy_last_map(&self, count: usize, output: &mut [f32]);
}

/// All stages in order.
fn forward(executor: &mut impl Stages, batch: &Batch, masks: Option<&StepSettings>) {
    let frame = executor.frame_mut();
    assert!(
        batch.count <= frame.plan.batch && batch.input.len() == frame.plan.input.len(),
        "the batch does not fit the plan"
    );
    frame.watch.start();
    executor.enter(batch);
    for i in 0..executor.frame().plan.stages.len() {
        executor.forward(i, batch, masks);
        executor.frame_mut().watch.lap(i, Pass::Forward);
    }
}

/// All stages that need it, last to first; each layer moves as soon as nothing needs its old weights. Returns the first
/// layer, in this order, whose weights are no longer finite.
fn backward(executor: &mut impl Stages, batch: &Batch, settings: &StepSettings) -> Option<usize> {
    let mut nonfinite = None;
    for i in (0..executor.frame().plan.stages.len()).rev() {
        let stage = &executor.frame().plan.stages[i];
        if !stage.moves && !stage.input_gradient {
            continue;
        }
        let (layer, kind) = (stage.layers.start, stage.kind);
        let finite = executor.backward(i, batch, settings);
        let rest = if matches!(kind, Kind::Conv { .. }) { Pass::Update } else { Pass::Backward };
        executor.frame_mut().watch.lap(i, rest);
        if !finite && nonfinite.is_none() {
            nonfinite = Some(layer);
        }
    }
    nonfinite
}

/// The first layer whose output for this batch is not finite.
fn first_nonfinite_map(executor: &impl Stages, batch: &Batch) -> Option<usize> {
    let frame = executor.frame();
    let stage = (0..frame.plan.stages.len()).find(|&i| !executor.is_finite(i + 1, batch))?;
    Some(frame.plan.stages[stage].layers.start.min(frame.net.layers.len() - 1))
}

impl<S: Stages> Executor for S {
    fn input_layout(&self) -> InputLayout {
        self.frame().plan.input.clone()
    }

    fn describe(&self) -> String {
        let frame = self.frame();
        format!(
            "{}: batch {} in blocks of {}, {} on {} threads, {:.0} MiB\n{}",
            frame.net.name,
            frame.plan.batch,
            frame.plan.block,
            self.kernel_name(),
            frame.ctx.threads(),
            self.planned_bytes() as f64 / (1 << 20) as f64,
            frame.plan.describe(&frame.net)
        )
    }

    fn threads(&mut self) -> &mut Threads {
        self.frame_mut().ctx.threads_mut()
    }

    fn kernel_name(&self) -> String {
        format!("{} {}", self.instructions(), self.arithmetic())
    }

    fn precision(&self) -> &'static str {
        self.arithmetic()
    }

    fn value_bytes(&self) -> usize {
        S::VALUE_BYTES
    }

    fn pass_times(&self) -> Vec<PassTime> {
        let frame = self.frame();
        let weight_bytes = |i| self.weight_bytes(i);
        let by_winograd = |i, pass| self.by_winograd(i, pass);
        frame.watch.times(&frame.net, &frame.plan, S::VALUE_BYTES, weight_bytes, by_winograd)
    }

    fn planned_bytes(&self) -> usize {
        let frame = self.frame();
        frame.arena.bytes() + frame.ctx.scratch_bytes() + self.bytes_outside_arena()
    }

    fn set_params(&mut self, params: &Params) {
        let frame = self.frame_mut();
        frame.parameters.set(&mut frame.arena, params);
        for i in 0..self.frame().plan.stages.len() {
            self.pack(i);
        }
    }

    fn params(&self) -> Params {
        let frame = self.frame();
        frame.parameters.get(&frame.arena)
    }

    fn set_momentum(&mut self, momentum: &Params) {
        let frame = self.frame_mut();
        frame.parameters.set_momentum(&mut frame.arena, momentum);
    }

    fn momentum(&self) -> Params {
        let frame = self.frame();
        frame.parameters.momentum(&frame.arena)
    }

    fn train_step(&mut self, batch: Batch, settings: &StepSettings) -> StepReport {
        let frame = self.frame();
        assert!(frame.plan.trains(), "an executor compiled for inference does not train");
        assert_eq!(settings.rates.len(), frame.parameters.len(), "one rate a parameter tensor");
        assert!(
            batch.labels.len() == batch.count && batch.weights.len() == batch.count,
            "labels and weights"
        );
        forward(self, &batch, Some(settings));
        let (logits, gradient) = self.logits(batch.count);
        let mut report = self.frame_mut().loss(&batch, logits, gradient);
        self.enter_backward(&batch);
        let frame = self.frame_mut();
        frame.watch.lap(frame.plan.stages.len(), Pass::Forward);
        let nonfinite = backward(self, &batch, settings);
        // A loss that is finite can hide an overflow, and the other way round: the maps are searched only then.
        report.nonfinite = if report.loss.is_finite() {
            nonfinite
        } else {
            first_nonfinite_map(self, &batch).or(nonfinite).or(Some(self.frame().net.layers.len() - 1))
        };
        report
    }

    fn infer(&mut self, batch: Batch, output: &mut [f32]) {
        assert_eq!(output.len(), batch.count * self.output_len(), "the output is not (count, outputs)");
        forward(self, &batch, None);
        if !self.frame().plan.ends_with_loss() {
            self.copy_last_map(batch.count, output);
            return;
        }
        let (logits, _) = self.logits(batch.count);
        let Frame { net, arena, ctx, .. } = self.frame_mut();
        let (kind, classes, z) = (net.loss, net.classes(), arena.get(logits));
        ctx.for_each_chunk(output, classes, |n, p| {
            loss::probabilities(kind, classes, &z[n * classes..][..classes], p);
        });
    }

    fn output_len(&self) -> usize {
        let maps = &self.frame().plan.maps;
        maps[maps.len() - 1].shape.len()
    }
}

/// Refuses a plan that is larger than the memory the system says is available.
fn check_memory(bytes: usize) -> Result<()> {
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

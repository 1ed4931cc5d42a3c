//! The executor for a few pictures, in bf16 and forward only: what `predict` and a service want, where a batch of 32 would
//! leave most lanes empty. It follows the same [`Plan`] as the others with the kernels of
//! [`alexnet_kernels::bf16::few`], whose lanes are channels. Weights are rounded and packed once; a linear
//! layer's are read once for all pictures, and their bytes are most of the time that one picture takes: [`LinearWeights`]
//! says how many they are.

mod layouts;

use crate::error::Result;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::frame::{Draft, Frame, Stages};
use crate::exec::plan::{Kind, Plan};
use crate::exec::stopwatch::Pass;
use crate::exec::{constants, only_f32};
use crate::net::{self, Activation, Network, Op, PoolKind};
use alexnet_kernels::arena::Region;
use alexnet_kernels::bf16::conv::Fold;
use alexnet_kernels::bf16::few::convert::{self, Entry};
use alexnet_kernels::bf16::few::{PictureLayout, conv, lrn, pooling, spatial_lrn};
use alexnet_kernels::bf16::{Engine, pair, pairs, pairs_mut, widen};
use alexnet_kernels::linear::few::{self as linear, Input, Output, Quantized, Rounded, Weights};
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::spatial_lrn::SpatialLrn;
use alexnet_kernels::strips::Strips;
use layouts::Layout;

/// A network planned for a few pictures at test time.
pub struct Few {
    frame: Frame,
    engine: Engine,
    stages: Vec<StageState>,
    /// How the pixels enter map 0.
    entry: Entry,
    /// How each map lies.
    layouts: Vec<Layout>,
    linear: LinearWeights,
    /// The inputs of a linear layer with quantized weights.
    quantized: Region,
    /// (N, classes)
    logits: Region,
}

/// How the weights of linear layers are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearWeights {
    /// bf16
    Bf16,
    /// Eight bits, with a scale for each output.
    Int8,
}

/// What a stage keeps besides its maps.
enum StageState {
    Conv {
        packed: conv::Packed,
        fold: Fold,
        relu: bool,
    },
    Linear {
        rounded: Rounded,
        relu: bool,
    },
    QuantizedLinear {
        quantized: Quantized,
        relu: bool,
    },
    Lrn(Lrn),
    SpatialLrn(SpatialLrn),
    Pool(pooling::Geometry),
    Relu,
    /// Every value times this: dropout at test time.
    Scale(f32),
    Flatten,
}

impl StageState {
    /// The state of stage `i` of `plan`, whose maps lie as `layouts` say.
    fn new(
        net: &Network,
        plan: &Plan,
        i: usize,
        layouts: &[Layout],
        entry: &Entry,
        linear: LinearWeights,
    ) -> StageState {
        let stage = &plan.stages[i];
        let op = stage.layers.clone().next().map(|layer| &net.layers[layer].op);
        match (stage.kind, op) {
            (Kind::Conv { relu, .. }, Some(Op::Conv(op))) => {
                let fold = Fold { kernel: op.kernel, fold: if i == 0 { entry.fold } else { 1 } };
                let geometry = geometry(op, fold, layouts[i].map(), layouts[i + 1].map());
                StageState::Conv { packed: conv::Packed::new(&geometry), fold, relu }
            }
            (Kind::Linear { relu }, Some(Op::Linear(op))) => {
                let (outputs, inputs) = (op.outputs, layouts[i].features());
                match linear {
                    LinearWeights::Bf16 => {
                        StageState::Linear { rounded: Rounded::new(outputs, inputs), relu }
                    }
                    LinearWeights::Int8 => {
                        StageState::QuantizedLinear { quantized: Quantized::new(outputs, inputs), relu }
                    }
                }
            }
            (Kind::Lrn, Some(Op::Lrn(op))) => StageState::Lrn(constants::lrn(op, layouts[i].map().channels)),
            (Kind::SpatialLrn, Some(Op::SpatialLrn(op))) => {
                let map = layouts[i].map();
                StageState::SpatialLrn(constants::spatial_lrn(op, map.height, map.width, map.channels))
            }
            (Kind::Pool, Some(Op::Pool(op))) => {
                let (input, output) = (*layouts[i].map(), *layouts[i + 1].map());
                let (size, stride, average) = (op.size, op.stride, op.kind == PoolKind::Average);
                StageState::Pool(pooling::Geometry { input, output, size, stride, average })
            }
            (Kind::Dropout, Some(Op::Dropout(op))) => {
                StageState::Scale(if op.inverted { 1.0 } else { 1.0 - op.rate as f32 })
            }
            (Kind::Activation, _) => StageState::Relu,
            (Kind::Flatten, _) => StageState::Flatten,
            (kind, op) => unreachable!("{kind:?} of {op:?} was refused"),
        }
    }

    fn has_parameters(&self) -> bool {
        use StageState::{Conv, Linear, QuantizedLinear};
        matches!(self, Conv { .. } | Linear { .. } | QuantizedLinear { .. })
    }

    /// Elements of scratch that each thread needs.
    fn scratch_len(&self) -> usize {
        match self {
            StageState::Conv { .. } => conv::SCRATCH_LEN,
            StageState::Lrn(lrn) => lrn::scratch_len(lrn),
            _ => 0,
        }
    }

    /// Elements that the map it reads needs behind its last picture.
    fn overhang(&self) -> usize {
        match self {
            StageState::Conv { packed, .. } => packed.geometry().overhang(),
            _ => 0,
        }
    }

    /// Elements that the quantized inputs of a picture take.
    fn quantized_len(&self) -> usize {
        match self {
            StageState::QuantizedLinear { quantized, .. } => quantized.row_len(),
            _ => 0,
        }
    }
}

/// Why `net` under this plan, one of [`Plan::few`], is not computed by this executor, if it is not.
pub fn unsupported(net: &Network, plan: &Plan) -> Option<String> {
    planned(net, plan).err()
}

/// How pixels enter, and the layout of every map.
///
/// # Errors
/// Why the network is not computed.
fn planned(net: &Network, plan: &Plan) -> std::result::Result<(Entry, Vec<Layout>), String> {
    for layer in &net.layers {
        let what = match &layer.op {
            Op::Activation(f) if *f != Activation::Relu => "this activation",
            Op::BatchNorm(_) => "batch normalization",
            _ => continue,
        };
        return Err(format!("layer {}: {what} has no kernel for a few pictures", layer.name));
    }
    layouts::of(net, plan)
}

impl Few {
    /// Plans `net` on `threads` threads with `engine`, its linear layers' weights held as `linear` says. `plan` is one of
    /// [`Plan::few`]. Parameters are zero.
    ///
    /// # Errors
    /// As [`Plan::few`]; if [`unsupported`] says why; if the memory that the plan needs is not there.
    pub fn new(
        net: &Network,
        plan: Plan,
        engine: Engine,
        linear: LinearWeights,
        threads: usize,
    ) -> Result<Few> {
        assert!(!plan.trains(), "this executor does not train");
        let (entry, layouts) = planned(net, &plan).map_err(|why| only_f32(net, &why))?;
        let last = layouts.len() - 1;
        let rows_at_end = plan.ends_with_linear_logits();
        let batch = plan.batch;
        let stages: Vec<StageState> = (0..plan.stages.len())
            .map(|i| StageState::new(net, &plan, i, &layouts, &entry, linear))
            .collect();
        let overhang = |i: usize| stages.get(i).map_or(0, StageState::overhang);
        let room = |i: usize| batch * layouts[i].picture_len() + overhang(i);
        let mut draft = Draft::new(net, &plan, Strips::whole, room, |i| !(i == last && rows_at_end))?;
        draft.scratch(entry.scratch_len());
        stages.iter().for_each(|stage| draft.scratch(stage.scratch_len()));
        let quantized_len = stages.iter().map(StageState::quantized_len).max().unwrap_or(0);
        let logits = draft.layouter.reserve(if plan.ends_with_loss() { batch * net.classes() } else { 0 });
        let quantized = draft.layouter.reserve(batch * quantized_len);
        let frame = draft.build(net, plan, engine.isa(), threads)?;
        Ok(Few { frame, engine, stages, entry, layouts, linear, quantized, logits })
    }

    /// Copies map `i` of `count` pictures in canonical order.
    fn to_canonical(layout: &Layout, count: usize, map: &[f32], to: &mut [f32]) {
        match layout {
            Layout::Map(layout) => convert::to_canonical(layout, count, map, to),
            Layout::Flat(features) => convert::flat_to_rows(*features, count, map, to),
        }
    }
}

/// A convolution between two maps; one that is folded moves by one position of the folded map.
fn geometry(op: &net::Conv, fold: Fold, input: &PictureLayout, output: &PictureLayout) -> conv::Geometry {
    let (kernel, stride, pad) = match fold.fold {
        1 => (op.kernel, op.stride, op.pad.before),
        fold => (op.kernel.div_ceil(fold), 1, 0),
    };
    let (input, output, kernel, pad) = (*input, *output, [kernel; 2], [pad; 2]);
    conv::Geometry { input, output, groups: op.groups, kernel, stride, pad }
}

impl Stages for Few {
    const VALUE_BYTES: usize = size_of::<u16>();

    fn weight_bytes(&self, i: usize) -> usize {
        match self.stages[i] {
            StageState::QuantizedLinear { .. } => size_of::<i8>(),
            _ => Self::VALUE_BYTES,
        }
    }

    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn frame_mut(&mut self) -> &mut Frame {
        &mut self.frame
    }

    fn arithmetic(&self) -> &'static str {
        match self.linear {
            LinearWeights::Bf16 => "bf16",
            LinearWeights::Int8 => "int8",
        }
    }

    fn instructions(&self) -> &'static str {
        self.engine.name()
    }

    fn bytes_outside_arena(&self) -> usize {
        let bytes = self.stages.iter().map(|s| match s {
            StageState::Conv { packed, .. } => packed.bytes(),
            StageState::Linear { rounded, .. } => rounded.bytes(),
            StageState::QuantizedLinear { quantized, .. } => quantized.bytes(),
            _ => 0,
        });
        bytes.sum()
    }

    fn pack(&mut self, i: usize) {
        if self.stages[i].has_parameters() {
            let [w] = self.frame.tensors_of(i);
            let Frame { arena, ctx, .. } = &mut self.frame;
            match &mut self.stages[i] {
                StageState::Conv { packed, fold, .. } => packed.set(ctx, *fold, arena.get(w.value)),
                StageState::Linear { rounded, .. } => rounded.set(ctx, arena.get(w.value)),
                StageState::QuantizedLinear { quantized, .. } => quantized.set(ctx, arena.get(w.value)),
                _ => {}
            }
        }
    }

    fn enter(&mut self, batch: &Batch) {
        let Frame { maps, arena, ctx, watch, .. } = &mut self.frame;
        convert::enter(ctx, &self.entry, batch.count, batch.input.as_f32(), arena.get_mut(maps[0]));
        watch.lap(0, Pass::Input);
    }

    fn forward(&mut self, i: usize, batch: &Batch, _masks: Option<&StepSettings>) {
        let count = batch.count;
        let has_parameters = self.stages[i].has_parameters();
        let bias = if has_parameters { self.frame.tensors_of::<2>(i)[1].value } else { Region::default() };
        let Frame { maps, arena, ctx, .. } = &mut self.frame;
        let rows_at_end = maps[i + 1].is_empty();
        let to = if rows_at_end { self.logits } else { maps[i + 1] };
        let ([x, bias], [y, quantized_x]) = arena.split([maps[i], bias], [to, self.quantized]);
        let output = |y| if rows_at_end { Output::Rows(y) } else { Output::Flat(y) };
        match &self.stages[i] {
            StageState::Conv { packed, relu, .. } => {
                conv::forward(ctx, self.engine, count, x, packed, bias, *relu, y);
            }
            StageState::Linear { rounded, relu } => {
                linear::forward(ctx, count, x, rounded, bias, *relu, output(y));
            }
            StageState::QuantizedLinear { quantized, relu } => {
                linear::quantize(ctx, count, self.layouts[i].features(), Input::Flat(x), quantized_x);
                linear::forward(ctx, count, quantized_x, quantized, bias, *relu, output(y));
            }
            StageState::Lrn(op) => lrn::forward(ctx, op, self.layouts[i].map(), count, x, y),
            StageState::SpatialLrn(op) => spatial_lrn::forward(ctx, op, self.layouts[i].map(), count, x, y),
            StageState::Pool(geometry) => pooling::forward(ctx, geometry, count, x, y),
            StageState::Flatten => convert::flatten(ctx, self.layouts[i].map(), count, x, y),
            StageState::Relu => each_pair(count * self.layouts[i].picture_len(), x, y, |x| {
                // A NaN passes through.
                if x <= 0.0 { 0.0 } else { x }
            }),
            &StageState::Scale(scale) => {
                each_pair(count * self.layouts[i].picture_len(), x, y, |x| x * scale);
            }
        }
    }

    fn backward(&mut self, _i: usize, _batch: &Batch, _settings: &StepSettings) -> bool {
        unreachable!("plans for a few pictures do not train")
    }

    fn is_finite(&self, _i: usize, _batch: &Batch) -> bool {
        unreachable!("plans for a few pictures do not train")
    }

    fn logits(&mut self, count: usize) -> (Region, Region) {
        let last = self.layouts.len() - 1;
        let Frame { maps, arena, .. } = &mut self.frame;
        if !maps[last].is_empty() {
            let ([map], [rows]) = arena.split([maps[last]], [self.logits]);
            Few::to_canonical(&self.layouts[last], count, map, rows);
        }
        (self.logits, Region::default())
    }

    fn enter_backward(&mut self, _batch: &Batch) {
        unreachable!("plans for a few pictures do not train")
    }

    fn copy_last_map(&self, count: usize, output: &mut [f32]) {
        let last = self.layouts.len() - 1;
        let map = self.frame.arena.get(self.frame.maps[last]);
        Few::to_canonical(&self.layouts[last], count, map, output);
    }
}

/// y = f(x), value by value, for `len` pairs.
fn each_pair(len: usize, x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    for (y, &x) in pairs_mut(y)[..len].iter_mut().zip(pairs(x)) {
        *y = pair(f(widen(x as u16)), f(widen((x >> 16) as u16)));
    }
}

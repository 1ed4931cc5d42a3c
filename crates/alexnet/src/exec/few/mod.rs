//! The executor for a few pictures, in bf16 and forward only: what `predict` and a service want, where a batch of 32 would
//! leave most lanes empty. It follows the same [`Plan`] as the others with the kernels of
//! [`alexnet_kernels::bf16::few`], whose lanes are channels. Weights are rounded and packed once; a linear
//! layer's are read once for all pictures, and their bytes are most of the time that one picture takes: [`LinearWeights`]
//! says how many they are.

mod layouts;

use crate::error::{Error, Result};
use crate::exec::constants;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::frame::{Draft, Frame, Stages};
use crate::exec::plan::{Kind, Plan};
use crate::exec::stopwatch::Pass;
use crate::net::{self, Activation, Network, Op, PoolKind};
use alexnet_kernels::arena::Region;
use alexnet_kernels::bf16::conv::Fold;
use alexnet_kernels::bf16::few::convert::{self, Entry};
use alexnet_kernels::bf16::few::linear::{self, Output, Quantized, Rounded};
use alexnet_kernels::bf16::few::{PictureLayout, conv, lrn, pooling, spatial_lrn};
use alexnet_kernels::bf16::{Engine, pair, pairs, pairs_mut, widen};
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::spatial_lrn::SpatialLrn;
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
    Linear8 {
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
    fn has_parameters(&self) -> bool {
        matches!(self, StageState::Conv { .. } | StageState::Linear { .. } | StageState::Linear8 { .. })
    }
}

/// Why `net` is not computed by this executor, if it is not.
pub fn unsupported(net: &Network) -> Option<String> {
    net.layers.iter().find_map(|layer| {
        let what = match &layer.op {
            Op::Activation(f) if *f != Activation::Relu => "this activation",
            Op::BatchNorm(_) => "batch normalization",
            _ => return None,
        };
        Some(format!("layer {}: {what} has no kernel for a few pictures", layer.name))
    })
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
        if let Some(why) = unsupported(net) {
            return Err(Error::Config(format!("network {}: {why}", net.name)));
        }
        let (entry, layouts) = layouts::of(net, &plan)?;
        let last = layouts.len() - 1;
        let rows_at_end = plan.ends_with_linear_logits();
        let batch = plan.batch;
        let op = |i: usize| plan.stages[i].layers.clone().next().map(|layer| &net.layers[layer].op);
        let conv = |i: usize| match op(i) {
            Some(Op::Conv(op)) => {
                let fold = Fold { kernel: op.kernel, fold: if i == 0 { entry.fold } else { 1 } };
                Some((geometry(op, fold, layouts[i].map(), layouts[i + 1].map()), fold))
            }
            _ => None,
        };
        let overhang = |i: usize| if i < last { conv(i).map_or(0, |(g, _)| g.overhang()) } else { 0 };
        let room = |i: usize| batch * layouts[i].picture_len() + overhang(i);
        let mut draft = Draft::new(net, &plan, |row| row, room, |i| !(i == last && rows_at_end))?;
        let mut stages = vec![];
        let mut quantized_len = 0;
        for (i, stage) in plan.stages.iter().enumerate() {
            if let (Kind::Conv { relu }, Some((geometry, fold))) = (stage.kind, conv(i)) {
                stages.push(StageState::Conv { packed: conv::Packed::new(&geometry), fold, relu });
                continue;
            }
            stages.push(match (&stage.kind, op(i)) {
                (Kind::Linear { relu }, Some(Op::Linear(op))) => {
                    let (outputs, inputs, relu) = (op.outputs, plan.maps[i].shape.len(), *relu);
                    match linear {
                        LinearWeights::Bf16 => {
                            StageState::Linear { rounded: Rounded::new(outputs, inputs), relu }
                        }
                        LinearWeights::Int8 => {
                            quantized_len = quantized_len.max(linear::quantized_len(inputs));
                            StageState::Linear8 { quantized: Quantized::new(outputs, inputs), relu }
                        }
                    }
                }
                (Kind::Lrn, Some(Op::Lrn(op))) => {
                    let lrn = constants::lrn(op, layouts[i].map().channels);
                    draft.scratch(lrn::scratch_len(&lrn));
                    StageState::Lrn(lrn)
                }
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
            });
        }
        draft.scratch(conv::SCRATCH_LEN);
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
            StageState::Linear8 { .. } => size_of::<i8>(),
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
            StageState::Linear8 { quantized, .. } => quantized.bytes(),
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
                StageState::Linear8 { quantized, .. } => quantized.set(ctx, arena.get(w.value)),
                _ => {}
            }
        }
    }

    fn enter(&mut self, batch: &Batch) {
        let Frame { maps, arena, ctx, watch, .. } = &mut self.frame;
        convert::enter(ctx, &self.entry, batch.count, batch.input, arena.get_mut(maps[0]));
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
            StageState::Linear8 { quantized, relu } => {
                linear::quantize(ctx, count, self.layouts[i].features(), x, quantized_x);
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

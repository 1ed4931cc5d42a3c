//! From a network to stages: what is fused with what, in which layout every map lies, who needs which gradient. Fusion
//! is decided here and nowhere else; an executor only follows the plan, which can be printed.

use crate::error::{Error, Result};
use crate::exec::contract::{InputLayout, PixelType};
use crate::exec::splits;
use crate::net::{Activation, Network, Op, Pool, PoolKind, Shape, Traced};
use crate::ops::update::Rule;
use std::ops::Range;

/// Pictures in a block: every tile of the kernels finds its rows among them.
const BLOCK: usize = 32;

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward, backward and update.
    Train {
        /// The number of leading layers whose parameters do not move: they and all before them need no backward pass.
        frozen_below: usize,
    },
    /// Forward as at test time.
    Infer {
        /// The plan ends after the layer at this position and yields its activations; `None` runs the whole network and
        /// yields probabilities.
        last: Option<usize>,
    },
}

/// How a map lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As [`InputLayout`] says.
    Input,
    /// (blocks, H, W, block, C)
    Blocked,
    /// (N, C·H·W), rows in canonical order.
    Flat,
}

/// What lies between two stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// One picture.
    pub shape: Shape,
    /// Layout.
    pub form: Form,
}

/// A run of layers that is computed in one pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// What is computed.
    pub kind: Kind,
    /// The layers it covers; empty for a change of layout.
    pub layers: Range<usize>,
    /// Whether its parameters move.
    pub moves: bool,
    /// Whether the gradient of its input is needed.
    pub input_gradient: bool,
    /// Whether its input came out of a ReLU that the stage before applied: then the gradient that this stage computes
    /// is zero where its input is.
    pub masks_input: bool,
}

/// What a stage computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolution, bias and perhaps ReLU and max pooling.
    Conv {
        /// Whether a ReLU follows in the same pass.
        relu: bool,
        /// Whether what is computed is pooled in the same pass, and not stored.
        pool: bool,
    },
    /// Linear layer, bias and perhaps ReLU.
    Linear {
        /// Whether a ReLU follows in the same pass.
        relu: bool,
    },
    /// A function of each element that is not fused.
    Activation,
    /// Normalization across maps.
    Lrn,
    /// Normalization within a map.
    SpatialLrn,
    /// Pooling.
    Pool,
    /// Normalization across maps and the max pooling behind it.
    LrnPool,
    /// Dropout.
    Dropout,
    /// Batch normalization.
    BatchNorm,
    /// Blocked maps to flat rows.
    Flatten,
}

/// The stages of a network, the maps between them, and the layout of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// N, the largest number of pictures in a batch.
    pub batch: usize,
    /// Pictures in a block.
    pub block: usize,
    /// What it is for.
    pub mode: Mode,
    /// Where the loader writes.
    pub input: InputLayout,
    /// The stages in order.
    pub stages: Vec<Stage>,
    /// `maps[i]` is what stage i reads, `maps[i + 1]` what it writes.
    pub maps: Vec<Map>,
    /// Additions to the update rule. If it needs whole gradients, every update is separate.
    pub rule: Rule,
}

impl Plan {
    /// Plans `net` for batches of `batch` pictures, for the executor in f32. A max pooling and the normalization across maps before
    /// it are one stage.
    ///
    /// # Errors
    /// As [`Network::trace`]; if the batch is empty or the mode names a layer that the network does not have.
    pub fn new(net: &Network, batch: usize, mode: Mode) -> Result<Plan> {
        let block = BLOCK.min(batch);
        let fuses = |before: &Op, _, pool: &Pool| matches!(before, Op::Lrn(_)) && pool.kind == PoolKind::Max;
        Plan::in_blocks(net, batch, block, mode, input_layout(net, batch, block), fuses)
    }

    /// Plans `net` for the executor in mixed precision: blocks are whole, and the pixels come as they are, to be folded
    /// and rounded as they enter. A max pooling and the convolution or the normalization across maps before it are one stage.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn mixed(net: &Network, batch: usize, mode: Mode) -> Result<Plan> {
        let block = alexnet_kernels::bf16::PICTURES;
        // The kernels take whole pairs of channels, however the map is cut for groups around it; of normalizations windows of
        // five.
        let cuts = splits::all(net);
        let fuses = |before: &Op, channels: usize, pool: &Pool| {
            let whole = |parts: usize| channels.is_multiple_of(2 * parts);
            let fits = match before {
                Op::Conv(_) => true,
                Op::Lrn(lrn) => lrn.size == 5 && whole(lrn.towers),
                _ => false,
            };
            fits && whole(cuts) && pool.kind == PoolKind::Max
        };
        let input = InputLayout { values: PixelType::Bf16, ..InputLayout::nhwc(batch, net.input) };
        Plan::in_blocks(net, batch, block, mode, input, fuses)
    }

    /// Plans `net` for the executor of a few pictures at test time; `last` as in [`Mode::Infer`]. Pixels come as they are.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn few(net: &Network, batch: usize, last: Option<usize>) -> Result<Plan> {
        Plan::in_blocks(net, batch, 1, Mode::Infer { last }, InputLayout::nhwc(batch, net.input), never)
    }

    /// `fuses` says whether a layer that yields so many channels and the pooling behind it become one stage.
    fn in_blocks(
        net: &Network,
        batch: usize,
        block: usize,
        mode: Mode,
        input: InputLayout,
        fuses: impl Fn(&Op, usize, &Pool) -> bool,
    ) -> Result<Plan> {
        let traced = net.trace()?;
        if batch == 0 {
            return Err(Error::Config("a batch of 0 pictures cannot be planned; the smallest is 1".into()));
        }
        let end = match mode {
            Mode::Infer { last: Some(last) } if last >= traced.len() => {
                let (name, count) = (&net.name, traced.len());
                return Err(Error::Config(format!(
                    "network {name} has no layer {last}: it has {count} layers"
                )));
            }
            Mode::Infer { last: Some(last) } => last + 1,
            _ => traced.len(),
        };
        let frozen_below = match mode {
            Mode::Train { frozen_below } => frozen_below,
            Mode::Infer { .. } => usize::MAX,
        };
        let mut stages: Vec<Stage> = vec![];
        let mut maps = vec![Map { shape: net.input, form: Form::Input }];
        let mut after_relu = false;
        let mut i = 0;
        while i < end {
            let t = &traced[i];
            let is_inverted_dropout = matches!(&t.layer.op, Op::Dropout(dropout) if dropout.inverted);
            if is_inverted_dropout && matches!(mode, Mode::Infer { .. }) && !stages.is_empty() {
                // At test time it does nothing.
                i += 1;
                continue;
            }
            let form = if i == 0 { Form::Blocked } else { maps[maps.len() - 1].form };
            let op_at = |layer: usize| traced[..end].get(layer).map(|t| &t.layer.op);
            let relu_follows = op_at(i + 1) == Some(&Op::Activation(Activation::Relu));
            // Whether this layer and a pooling at that place are one stage.
            let pools_at = |layer: usize| matches!(op_at(layer), Some(Op::Pool(pool)) if fuses(&t.layer.op, t.output.c, pool));
            let mut covers = i..i + 1;
            let (kind, form) = match &t.layer.op {
                Op::Conv(_) => {
                    covers.end += usize::from(relu_follows);
                    let pool = pools_at(covers.end);
                    covers.end += usize::from(pool);
                    (Kind::Conv { relu: relu_follows, pool }, Form::Blocked)
                }
                Op::Linear(_) => {
                    covers.end += usize::from(relu_follows);
                    (Kind::Linear { relu: relu_follows }, Form::Flat)
                }
                Op::Activation(_) => (Kind::Activation, form),
                Op::Lrn(_) if pools_at(i + 1) => {
                    covers.end += 1;
                    (Kind::LrnPool, form)
                }
                Op::Lrn(_) => (Kind::Lrn, form),
                Op::SpatialLrn(_) => (Kind::SpatialLrn, form),
                Op::Pool(_) => (Kind::Pool, form),
                Op::Dropout(_) => (Kind::Dropout, form),
                Op::BatchNorm(_) => (Kind::BatchNorm, form),
            };
            let before = maps[maps.len() - 1];
            let flatten = match (&kind, before.form) {
                (Kind::Linear { .. }, Form::Flat) => false,
                (Kind::Linear { .. }, _) => true,
                // Rows (N, C) of a 1×1 map are blocks of one picture; only a linear layer yields them.
                (
                    Kind::Conv { .. } | Kind::Lrn | Kind::SpatialLrn | Kind::Pool | Kind::LrnPool,
                    Form::Flat,
                ) => {
                    return Err(Error::Config(format!(
                        "layer {}: {} after a linear layer is not supported by this executor",
                        t.layer.name,
                        t.layer.op.kind()
                    )));
                }
                // A row of maps of several positions is not a row of channels.
                (Kind::BatchNorm, Form::Flat) if t.input.h * t.input.w > 1 => {
                    return Err(Error::Config(format!(
                        "layer {}: batch normalization of maps after a dropout or linear layer is not supported by \
                         this executor",
                        t.layer.name
                    )));
                }
                // The counters of dropout count canonical elements, whose order is that of flat rows.
                (Kind::Dropout, Form::Flat) => false,
                (Kind::Dropout, _) => traced[i + 1..end].iter().all(|t| !needs_maps(t)),
                _ => false,
            };
            let needs_gradient = |layer: usize| {
                layer > 0 && layer >= frozen_below && has_params_below(&traced, frozen_below, layer)
            };
            if flatten {
                let input_gradient = needs_gradient(i);
                stages.push(Stage {
                    kind: Kind::Flatten,
                    layers: i..i,
                    moves: false,
                    input_gradient,
                    masks_input: after_relu,
                });
                maps.push(Map { shape: before.shape, form: Form::Flat });
                after_relu = false;
            }
            let form = if flatten { Form::Flat } else { form };
            let moves = i >= frozen_below && t.params() > 0;
            let input_gradient = needs_gradient(i);
            let ends_with_relu =
                matches!(kind, Kind::Conv { relu: true, pool: false } | Kind::Linear { relu: true });
            stages.push(Stage {
                kind,
                layers: covers.clone(),
                moves,
                input_gradient,
                masks_input: after_relu,
            });
            maps.push(Map { shape: traced[covers.end - 1].output, form });
            after_relu = ends_with_relu;
            i = covers.end;
        }
        Ok(Plan { batch, block, mode, input, stages, maps, rule: Rule::default() })
    }

    /// With additions to the update rule.
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Number of blocks of a full batch.
    pub fn blocks(&self) -> usize {
        self.batch.div_ceil(self.block)
    }

    /// Elements of a map for a full batch.
    pub fn map_len(&self, map: usize) -> usize {
        let Map { shape, form } = self.maps[map];
        match form {
            Form::Input => self.input.len(),
            Form::Blocked => self.blocks() * self.block * shape.len(),
            Form::Flat => self.batch * shape.len(),
        }
    }

    /// Whether the plan ends with the loss (or probabilities) of the whole network.
    pub fn ends_with_loss(&self) -> bool {
        matches!(self.mode, Mode::Train { .. } | Mode::Infer { last: None })
    }

    /// Whether the logits come out of a linear layer with nothing behind it, which can write them as rows.
    pub fn ends_with_linear_logits(&self) -> bool {
        self.ends_with_loss() && matches!(self.stages.last(), Some(Stage { kind: Kind::Linear { .. }, .. }))
    }

    /// Whether the plan trains.
    pub fn trains(&self) -> bool {
        matches!(self.mode, Mode::Train { .. })
    }

    /// The plan in words, a stage a line.
    pub fn describe(&self, net: &Network) -> String {
        let mut text = String::new();
        for (i, stage) in self.stages.iter().enumerate() {
            let names: Vec<&str> = net.layers[stage.layers.clone()].iter().map(|l| l.name.as_str()).collect();
            let name = if names.is_empty() { "(flatten)".into() } else { names.join("+") };
            let backward = match (self.trains(), stage.moves, stage.input_gradient) {
                (false, ..) => "",
                (_, true, true) => "forward, input gradient, weight gradient, update",
                (_, true, false) => "forward, weight gradient, update",
                (_, false, true) => "forward, input gradient",
                (_, false, false) => "forward only",
            };
            let (from, to) = (self.maps[i].shape, self.maps[i + 1].shape);
            text += &format!("  {name:<16} {:>12} -> {:<12} {backward}\n", from.to_string(), to.to_string());
        }
        text
    }
}

/// No layer is computed together with a pooling.
fn never(_before: &Op, _channels: usize, _pool: &Pool) -> bool {
    false
}

/// Layers that compute on maps and not on rows.
fn needs_maps(t: &Traced) -> bool {
    matches!(t.layer.op, Op::Conv(_) | Op::Lrn(_) | Op::SpatialLrn(_) | Op::Pool(_))
        || (matches!(t.layer.op, Op::BatchNorm(_)) && t.input.h * t.input.w > 1)
}

/// Whether a layer before `layer`, but not below the frozen ones, has parameters that want a gradient.
fn has_params_below(traced: &[Traced], frozen_below: usize, layer: usize) -> bool {
    traced[frozen_below.min(layer)..layer].iter().any(|t| t.params() > 0)
}

/// Folds the columns of a strided first convolution into channels: `stride` columns side by side make its kernel
/// ⌈S/stride⌉ folded columns of stride 1.
fn input_layout(net: &Network, batch: usize, block: usize) -> InputLayout {
    let shape = net.input;
    let mut layout = InputLayout { block, ..InputLayout::nhwc(batch, shape) };
    if let Some(Op::Conv(conv)) = net.layers.first().map(|l| &l.op) {
        // Folding pays where channels are few; groups would be torn apart by it.
        if conv.stride > 1 && conv.groups == 1 && shape.c * conv.stride <= 32 {
            let extent = shape.w + conv.pad.before + conv.pad.after;
            let windows = crate::net::windows(extent, conv.kernel, conv.stride, conv.rounding).unwrap_or(1);
            layout.fold = conv.stride;
            layout.pad = conv.pad.before;
            let read = windows - 1 + conv.kernel.div_ceil(conv.stride);
            layout.columns = read.max((shape.w + conv.pad.before).div_ceil(conv.stride));
        }
    }
    layout
}

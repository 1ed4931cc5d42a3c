//! A network is data: a list of layers. Open this file first.
//!
//! The same description is printed, counted, saved in checkpoints, read from TOML ([`crate::netfile`]) and compiled
//! into an executor's plan ([`crate::exec`]). Matching on [`Op`] is exhaustive everywhere; there is no registry.
//!
//! What follows from a description (the size of every map, parameters, multiply-adds) is in `net/trace.rs`.
//!
//! Letters: N batch, C/H/W channels and size of a layer's input, K filters, R×S kernel, P×Q output size, G groups.

mod shape;
mod trace;

pub use shape::{Pad, Shape};
pub use trace::{Traced, windows};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A network: the input, the layers in order, and the loss on the last layer's outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The name it is listed under.
    pub name: String,
    /// Where this form of the network was published, and what is special about it.
    pub source: String,
    /// One picture as the network receives it.
    pub input: Shape,
    /// The layers, first to last. The last is always [`Op::Linear`]: one output a class.
    pub layers: Vec<Layer>,
    /// What is minimized.
    pub loss: Loss,
}

/// One layer: a name, unique in its network, and what it computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// For example `conv1`; parameters are called `conv1.weight` and `conv1.bias`.
    pub name: String,
    /// What it computes.
    pub op: Op,
}

/// What a layer computes. The mathematics of each is in [`crate::ops`].
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Convolution with bias.
    Conv(Conv),
    /// A function of each element.
    Activation(Activation),
    /// Local response normalization across neighbouring maps.
    Lrn(Lrn),
    /// Local response normalization within a map, over n×n neighbouring positions.
    SpatialLrn(SpatialLrn),
    /// Max or average pooling.
    Pool(Pool),
    /// Fully connected, with bias. The input is flattened in C, H, W order.
    Linear(Linear),
    /// Dropout.
    Dropout(Dropout),
    /// Batch normalization, with a learned scale and shift for each channel.
    BatchNorm(BatchNorm),
}

/// How the last, incomplete window of a convolution or pooling is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// It is dropped (PyTorch; Caffe's convolution).
    #[default]
    Floor,
    /// It is kept: a convolution reads zeros beyond the edge, a pooling window is clipped (cuda-convnet).
    Ceil,
}

fn one() -> usize {
    1
}

/// A convolution: K filters of R×R (square) over C/G channels each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    /// K, the number of filters over all groups.
    pub filters: usize,
    /// R = S, pixels.
    pub kernel: usize,
    /// Step between windows, pixels.
    #[serde(default = "one")]
    pub stride: usize,
    /// Zeros around the input.
    #[serde(default)]
    pub pad: Pad,
    /// G: filters of group g see channels of group g only.
    #[serde(default = "one")]
    pub groups: usize,
    /// `Ceil` keeps a last window that overhangs the padded input; it reads zeros there.
    #[serde(default)]
    pub rounding: Rounding,
    /// How the weights start.
    #[serde(default)]
    pub weight: Init,
    /// How the biases start.
    #[serde(default)]
    pub bias: Init,
}

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// tanh(x)
    Tanh,
    /// 1 / (1 + exp(−x))
    Logistic,
    /// |tanh(x)|
    AbsTanh,
}

/// Local response normalization across maps: y_i = x_i · (k + a·Σ_j x_j²)^−β, j over `size` maps from
/// i − ⌊size/2⌋, clipped to the tower; a = alpha, or alpha / size (paper §3.3; cuda-convnet's parser divides).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lrn {
    /// n, the number of maps in the window.
    pub size: usize,
    /// The constant k.
    pub k: f64,
    /// α as written in the source.
    pub alpha: f64,
    /// Whether the source divides α by n.
    pub alpha_div_n: bool,
    /// The exponent β.
    pub beta: f64,
    /// The maps are split into this many towers; no window crosses a seam.
    #[serde(default = "one")]
    pub towers: usize,
}

impl Lrn {
    /// The factor that multiplies the sum of squares.
    pub fn effective_alpha(&self) -> f64 {
        if self.alpha_div_n { self.alpha / self.size as f64 } else { self.alpha }
    }
}

/// Local response normalization within a map: as [`Lrn`], the sum over `size`×`size` positions centred on the
/// element and clipped to the map; a = alpha, or alpha / size².
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpatialLrn {
    /// n: the window is n×n positions.
    pub size: usize,
    /// The constant k.
    pub k: f64,
    /// α as written in the source.
    pub alpha: f64,
    /// Whether the source divides α by n².
    pub alpha_div_n: bool,
    /// The exponent β.
    pub beta: f64,
}

impl SpatialLrn {
    /// The factor that multiplies the sum of squares.
    pub fn effective_alpha(&self) -> f64 {
        if self.alpha_div_n { self.alpha / (self.size * self.size) as f64 } else { self.alpha }
    }
}

/// What a pooling window yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolKind {
    /// The largest element.
    Max,
    /// The mean over the window clipped to the map.
    Average,
}

/// Which of several equal maxima receives the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ties {
    /// The first in row order (Caffe, PyTorch).
    #[default]
    First,
    /// Every one of them, in full (cuda-convnet).
    All,
}

/// Max or average pooling with square windows, overlapping when size > stride (paper §3.4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Max or average.
    pub kind: PoolKind,
    /// Window size, pixels.
    pub size: usize,
    /// Step between windows, pixels.
    pub stride: usize,
    /// `Ceil` keeps a last window that is clipped by the edge.
    #[serde(default)]
    pub rounding: Rounding,
    /// Who receives the gradient when maxima tie.
    #[serde(default)]
    pub ties: Ties,
}

/// A fully connected layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// The number of outputs.
    pub outputs: usize,
    /// How the weights start.
    #[serde(default)]
    pub weight: Init,
    /// How the biases start.
    #[serde(default)]
    pub bias: Init,
}

/// Dropout: each element is set to zero with probability `rate` while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropout {
    /// The probability of being dropped.
    pub rate: f64,
    /// False, as in 2012: kept elements pass unchanged, and at test time all are multiplied by 1 − rate.
    /// True (Caffe, PyTorch): kept elements are divided by 1 − rate, and at test time nothing happens.
    pub inverted: bool,
}

fn epsilon() -> f64 {
    1e-5
}

fn tenth() -> f64 {
    0.1
}

/// Batch normalization (Ioffe and Szegedy, arXiv 1502.03167): y = γ·(x − mean) / √(variance + `eps`) + β for each
/// channel; γ is the layer's weight and starts at 1, β its bias and starts at 0. Training takes mean and variance
/// over the batch and its positions; use takes running ones, which belong to the parameters but are not learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchNorm {
    /// Added to the variance (PyTorch and Caffe: 1e-5).
    #[serde(default = "epsilon")]
    pub eps: f64,
    /// m of running ← (1 − m)·running + m·batch after each step (PyTorch: 0.1).
    #[serde(default = "tenth")]
    pub momentum: f64,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Every element the same.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Gaussian(f64),
    /// Uniform in ±1/√fan_in, PyTorch's default for weights and for biases.
    #[default]
    FanIn,
}

/// What is minimized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Softmax over the classes, then cross-entropy.
    #[default]
    Softmax,
    /// One logistic unit a class, then the sum of their cross-entropies.
    Logistic,
}

impl Op {
    /// The word that TOML uses for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::Conv(_) => "conv",
            Op::Activation(Activation::Relu) => "relu",
            Op::Activation(Activation::Tanh) => "tanh",
            Op::Activation(Activation::Logistic) => "logistic",
            Op::Activation(Activation::AbsTanh) => "abs-tanh",
            Op::Lrn(_) => "lrn",
            Op::SpatialLrn(_) => "spatial-lrn",
            Op::Pool(_) => "pool",
            Op::Linear(_) => "linear",
            Op::Dropout(_) => "dropout",
            Op::BatchNorm(_) => "batch-norm",
        }
    }
}

impl Network {
    /// The number of classes: the last layer's outputs.
    pub fn classes(&self) -> usize {
        match self.layers.last() {
            Some(Layer { op: Op::Linear(l), .. }) => l.outputs,
            _ => 0,
        }
    }

    /// The same network for another number of classes.
    pub fn with_classes(mut self, classes: usize) -> Self {
        if let Some(Layer { op: Op::Linear(l), .. }) = self.layers.last_mut() {
            l.outputs = classes;
        }
        self
    }

    /// The same network with every width but the classes multiplied by `numerator / denominator`.
    ///
    /// # Errors
    /// If a width does not divide, or no longer divides by its groups or towers.
    pub fn with_width(mut self, numerator: usize, denominator: usize) -> Result<Self> {
        let last = self.layers.len().saturating_sub(1);
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let width = match &mut layer.op {
                Op::Conv(c) => &mut c.filters,
                Op::Linear(l) if i != last => &mut l.outputs,
                _ => continue,
            };
            if denominator == 0
                || !(*width * numerator).is_multiple_of(denominator)
                || *width * numerator == 0
            {
                return Err(Error::Config(format!(
                    "{}: {width} × {numerator}/{denominator} is not a width",
                    layer.name
                )));
            }
            *width = *width * numerator / denominator;
        }
        self.trace()?;
        Ok(self)
    }

    /// The position of the layer of this name.
    ///
    /// # Errors
    /// If there is none; the message has the nearest name.
    pub fn position(&self, name: &str) -> Result<usize> {
        self.layers.iter().position(|l| l.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.layers.iter().map(|l| l.name.as_str()).collect();
            let hint = match crate::error::nearest(name, names.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("it has {}", names.join(", ")),
            };
            Error::Config(format!("network {} has no layer {name}; {hint}", self.name))
        })
    }
}

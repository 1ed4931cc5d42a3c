//! A network is data: a list of layers. Open this file first.
//!
//! The same description is printed, counted, saved in checkpoints, read from TOML ([`crate::netfile`]) and compiled
//! into an executor's plan ([`crate::exec`]). Matching on [`Op`] is exhaustive everywhere; there is no registry.
//!
//! Letters: N batch, C/H/W channels and size of a layer's input, K filters, R×S kernel, P×Q output size, G groups.

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

/// Channels × height × width of one picture's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Channels (maps).
    pub c: usize,
    /// Height, pixels.
    pub h: usize,
    /// Width, pixels.
    pub w: usize,
}

impl Shape {
    /// A shape from its three sizes.
    pub const fn new(c: usize, h: usize, w: usize) -> Self {
        Shape { c, h, w }
    }

    /// Elements in one picture's activation.
    pub const fn len(&self) -> usize {
        self.c * self.h * self.w
    }

    /// True if there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}×{}×{}", self.c, self.h, self.w)
    }
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

/// Zeros around a map, the same for rows and columns. In TOML `pad = 2` or `pad = [0, 3]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PadForm", into = "PadForm")]
pub struct Pad {
    /// Above and left of the map, pixels.
    pub before: usize,
    /// Below and right of the map, pixels.
    pub after: usize,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum PadForm {
    Both(usize),
    Each([usize; 2]),
}

impl From<PadForm> for Pad {
    fn from(form: PadForm) -> Self {
        match form {
            PadForm::Both(p) => Pad { before: p, after: p },
            PadForm::Each([before, after]) => Pad { before, after },
        }
    }
}

impl From<Pad> for PadForm {
    fn from(p: Pad) -> Self {
        if p.before == p.after { PadForm::Both(p.before) } else { PadForm::Each([p.before, p.after]) }
    }
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

/// One layer with everything that follows from its place in the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Traced<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// What it reads, one picture.
    pub input: Shape,
    /// What it writes, one picture.
    pub output: Shape,
    /// Shape of its weights: (K, C/G, R, S), (outputs, inputs) or (C) of a batch normalization; empty without weights.
    pub weight: Vec<usize>,
    /// Multiply-adds for one picture, padding counted as work.
    pub macs: usize,
}

impl Traced<'_> {
    /// Number of weights.
    pub fn weights(&self) -> usize {
        if self.weight.is_empty() { 0 } else { self.weight.iter().product() }
    }

    /// Number of biases: one a filter, output or normalized channel.
    pub fn biases(&self) -> usize {
        self.weight.first().copied().unwrap_or(0)
    }

    /// Weights and biases. The running statistics of a batch normalization are not counted: they are not learned.
    pub fn params(&self) -> usize {
        self.weights() + self.biases()
    }

    /// Inputs of one output element: C/G·R·S, or the inputs of a linear layer.
    pub fn fan_in(&self) -> usize {
        self.weight.iter().skip(1).product()
    }
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

/// Output size of a window of `size` moved by `stride` over `extent` pixels (padding included), or `None` if not
/// even one window fits. With `Ceil`, a window starts only where it still covers a pixel of the extent.
pub fn windows(extent: usize, size: usize, stride: usize, rounding: Rounding) -> Option<usize> {
    if size == 0 || stride == 0 || extent == 0 {
        return None;
    }
    match rounding {
        Rounding::Floor => extent.checked_sub(size).map(|d| d / stride + 1),
        Rounding::Ceil => {
            let n = extent.saturating_sub(size).div_ceil(stride) + 1;
            Some(n.min((extent - 1) / stride + 1))
        }
    }
}

/// The largest size of any kind that a network may have. It keeps sums of sizes far from overflow.
const LARGEST: usize = 1 << 24;

/// The product of sizes, or `None` if a size or the product (2^48) is beyond what any machine could hold.
fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1usize, |product, &size| {
        if size > LARGEST { None } else { product.checked_mul(size).filter(|&p| p <= 1 << 48) }
    })
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

    /// Every layer with its shapes, parameters and multiply-adds.
    ///
    /// # Errors
    /// If the layers do not fit together; the message names the layer.
    pub fn trace(&self) -> Result<Vec<Traced<'_>>> {
        let fail = |layer: &Layer, why: String| Err(Error::Config(format!("layer {}: {why}", layer.name)));
        let Shape { c, h, w } = self.input;
        if product(&[c, h, w]).is_none_or(|elements| elements == 0) {
            return Err(Error::Config(format!(
                "network {}: the input {} is empty or too large",
                self.name, self.input
            )));
        }
        let mut shape = self.input;
        let mut traced = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            if self.layers[..i].iter().any(|l| l.name == layer.name) {
                return fail(layer, "the name is used twice".into());
            }
            let input = shape;
            let too_large = || fail(layer, "it is too large".into());
            let (output, weight, macs) = match &layer.op {
                Op::Conv(conv) => {
                    let g = conv.groups;
                    if g == 0
                        || !input.c.is_multiple_of(g)
                        || !conv.filters.is_multiple_of(g)
                        || conv.filters == 0
                    {
                        return fail(
                            layer,
                            format!(
                                "{} channels and {} filters do not divide into {g} groups",
                                input.c, conv.filters
                            ),
                        );
                    }
                    if conv.kernel > LARGEST {
                        return too_large();
                    }
                    if conv.pad.before >= conv.kernel.max(1) || conv.pad.after >= conv.kernel.max(1) {
                        return fail(
                            layer,
                            format!("padding must be smaller than the kernel ({})", conv.kernel),
                        );
                    }
                    let pad = conv.pad.before + conv.pad.after;
                    let size = |extent| windows(extent + pad, conv.kernel, conv.stride, conv.rounding);
                    let (Some(p), Some(q)) = (size(input.h), size(input.w)) else {
                        return fail(
                            layer,
                            format!(
                                "a {0}×{0} kernel with stride {1} does not fit on {input}",
                                conv.kernel, conv.stride
                            ),
                        );
                    };
                    let weight = vec![conv.filters, input.c / g, conv.kernel, conv.kernel];
                    let Some(macs) = product(&[conv.filters, input.c / g, conv.kernel, conv.kernel, p, q])
                    else {
                        return too_large();
                    };
                    (Shape::new(conv.filters, p, q), weight, macs)
                }
                Op::Pool(pool) => {
                    let size = |extent| windows(extent, pool.size, pool.stride, pool.rounding);
                    let (Some(p), Some(q)) = (size(input.h), size(input.w)) else {
                        return fail(
                            layer,
                            format!(
                                "a {0}×{0} window with stride {1} does not fit on {input}",
                                pool.size, pool.stride
                            ),
                        );
                    };
                    (Shape::new(input.c, p, q), vec![], 0)
                }
                Op::Linear(linear) => {
                    if linear.outputs == 0 {
                        return fail(layer, "it has no outputs".into());
                    }
                    let Some(macs) = product(&[linear.outputs, input.len()]) else { return too_large() };
                    (Shape::new(linear.outputs, 1, 1), vec![linear.outputs, input.len()], macs)
                }
                Op::Lrn(lrn) => {
                    if lrn.size == 0 || lrn.towers == 0 || !input.c.is_multiple_of(lrn.towers) {
                        return fail(
                            layer,
                            format!("{} maps do not divide into {} towers", input.c, lrn.towers),
                        );
                    }
                    if lrn.k.is_nan() || lrn.k <= 0.0 || lrn.alpha.is_nan() || lrn.alpha < 0.0 {
                        return fail(layer, "k must be positive and alpha not negative".into());
                    }
                    (input, vec![], 0)
                }
                Op::SpatialLrn(lrn) => {
                    if lrn.size == 0
                        || lrn.k.is_nan()
                        || lrn.k <= 0.0
                        || lrn.alpha.is_nan()
                        || lrn.alpha < 0.0
                    {
                        return fail(layer, "size and k must be positive, alpha not negative".into());
                    }
                    (input, vec![], 0)
                }
                Op::Dropout(dropout) => {
                    if !(0.0..1.0).contains(&dropout.rate) {
                        return fail(layer, format!("the rate {} is not in [0, 1)", dropout.rate));
                    }
                    (input, vec![], 0)
                }
                Op::BatchNorm(norm) => {
                    if !(norm.eps > 0.0 && norm.eps.is_finite() && (0.0..=1.0).contains(&norm.momentum)) {
                        return fail(layer, "eps must be positive and momentum between 0 and 1".into());
                    }
                    (input, vec![input.c], 0)
                }
                Op::Activation(_) => (input, vec![], 0),
            };
            traced.push(Traced { layer, input, output, weight, macs });
            shape = output;
        }
        match self.layers.last() {
            Some(Layer { op: Op::Linear(_), .. }) => Ok(traced),
            _ => Err(Error::Config(format!(
                "network {}: the last layer must be linear, with one output a class",
                self.name
            ))),
        }
    }

    /// Weights and biases of all layers.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn params(&self) -> Result<usize> {
        Ok(self.trace()?.iter().map(Traced::params).sum())
    }

    /// Multiply-adds of one picture's forward pass.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn macs(&self) -> Result<usize> {
        Ok(self.trace()?.iter().map(|t| t.macs).sum())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_counts_by_both_rules() {
        // The 2012 network's first layer: 224 pixels, 11×11, stride 4 (spec §1a).
        assert_eq!(windows(224, 11, 4, Rounding::Ceil), Some(55));
        assert_eq!(windows(224, 11, 4, Rounding::Floor), Some(54));
        for n in [55, 27, 13] {
            assert_eq!(windows(n, 3, 2, Rounding::Ceil), windows(n, 3, 2, Rounding::Floor));
        }
        assert_eq!(windows(55, 2, 2, Rounding::Ceil), Some(28));
        assert_eq!(windows(110, 3, 2, Rounding::Ceil), Some(55));
        assert_eq!(windows(5, 6, 1, Rounding::Floor), None);
        // The second window would start outside the map.
        assert_eq!(windows(3, 2, 4, Rounding::Ceil), Some(1));
        assert_eq!(windows(7, 3, 0, Rounding::Ceil), None);
    }
}

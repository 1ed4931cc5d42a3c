//! What every executor does, whatever the device. Outside an executor all tensors are canonical: f32, NCHW
//! activations, (K, C/G, R, S) and (outputs, inputs) weights. Layouts are the executor's own affair, except for
//! [`InputLayout`], which tells the loader where to write so that no copy stands between it and the first layer.

use crate::error::Result;
use crate::net::{Network, Op, Shape};
use alexnet_kernels::arena::{Buffer, Halves};
pub use alexnet_kernels::bf16::entry::Pixels;
use alexnet_kernels::bf16::round;
use alexnet_kernels::threads::Threads;

/// Where the loader writes pixel values for the first layer.
///
/// The buffer is (blocks, H, columns, block, fold·C): pictures in blocks of `block`, the pictures of a block
/// interleaved at every position, `fold` neighbouring columns side by side in the channel axis (so that a strided
/// first convolution reads whole runs). Elements that no pixel maps to (padding) are zero and stay zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputLayout {
    /// N, the largest number of pictures in a batch.
    pub batch: usize,
    /// One picture.
    pub shape: Shape,
    /// Pictures in a block; a block is a contiguous piece of the buffer.
    pub block: usize,
    /// Columns folded into the channel axis.
    pub fold: usize,
    /// Zero columns left of the picture.
    pub pad: usize,
    /// Folded columns in a row, padding included.
    pub columns: usize,
    /// How a value is best stored.
    pub values: PixelType,
}

/// How values of pixels are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PixelType {
    /// f32; every executor takes them.
    #[default]
    F32,
    /// Rounded to bf16; taken by an executor that asks for them, which would round them itself.
    Bf16,
}

impl PixelType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            PixelType::F32 => size_of::<f32>(),
            PixelType::Bf16 => size_of::<u16>(),
        }
    }
}

/// Pixels of a batch and their memory, in huge pages: executors read neighbouring rows of many pictures at once.
#[derive(Debug)]
pub enum PixelBuffer {
    /// f32
    F32(Buffer),
    /// Rounded to bf16, its bits.
    Bf16(Halves),
}

impl PixelBuffer {
    /// So many zeros.
    pub fn zeros(values: PixelType, len: usize) -> Self {
        match values {
            PixelType::F32 => PixelBuffer::F32(Buffer::zeros(len)),
            PixelType::Bf16 => PixelBuffer::Bf16(Halves::zeros(len)),
        }
    }

    /// These, rounded if need be.
    pub fn of(values: PixelType, pixels: &[f32]) -> Self {
        let mut buffer = PixelBuffer::zeros(values, pixels.len());
        match &mut buffer {
            PixelBuffer::F32(to) => to.copy_from_slice(pixels),
            PixelBuffer::Bf16(to) => {
                to.iter_mut().zip(pixels).for_each(|(bits, pixel)| *bits = round(*pixel));
            }
        }
        buffer
    }

    /// As an executor takes them.
    pub fn pixels(&self) -> Pixels<'_> {
        match self {
            PixelBuffer::F32(values) => Pixels::F32(values),
            PixelBuffer::Bf16(bits) => Pixels::Bf16(bits),
        }
    }
}

impl InputLayout {
    /// Bytes of the whole buffer.
    pub fn bytes(&self) -> usize {
        self.len() * self.values.bytes()
    }

    /// Plain (N, H, W, C).
    pub fn nhwc(batch: usize, shape: Shape) -> Self {
        InputLayout { batch, shape, block: 1, fold: 1, pad: 0, columns: shape.w, values: PixelType::F32 }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.batch.div_ceil(self.block)
    }

    /// Elements of one block.
    pub fn block_len(&self) -> usize {
        self.shape.h * self.row_len()
    }

    /// Elements of one row of one block.
    pub fn row_len(&self) -> usize {
        self.columns * self.block * self.fold * self.shape.c
    }

    /// Elements of the whole buffer.
    pub fn len(&self) -> usize {
        self.blocks() * self.block_len()
    }

    /// True if the buffer has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Offset within a row of a block of the first channel of column `x` of the block's picture `n`; the other
    /// channels follow.
    #[inline]
    pub fn offset_in_row(&self, n: usize, x: usize) -> usize {
        let x = x + self.pad;
        ((x / self.fold) * self.block + n) * self.fold * self.shape.c + (x % self.fold) * self.shape.c
    }

    /// Offset in the buffer of channel `c` at row `y`, column `x` of picture `n`.
    pub fn offset(&self, n: usize, c: usize, y: usize, x: usize) -> usize {
        (n / self.block) * self.block_len() + y * self.row_len() + self.offset_in_row(n % self.block, x) + c
    }
}

/// Weights, biases or statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A weight matrix or filter bank.
    Weight,
    /// A bias vector.
    Bias,
    /// A running mean or variance of a batch normalization: not learned, but moved by every training step.
    Statistic,
}

/// One parameter tensor in canonical layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// `<layer>.weight`, `<layer>.bias`, `<layer>.running_mean` or `<layer>.running_var`.
    pub name: String,
    /// Index of its layer in the network.
    pub layer: usize,
    /// What it is for.
    pub role: Role,
    /// (K, C/G, R, S), (outputs, inputs) or, of a vector, (K).
    pub shape: Vec<usize>,
    /// The elements, last axis fastest.
    pub data: Vec<f32>,
}

/// All parameters of a network: for each layer that has any, its weight, then its bias, and for a batch normalization
/// then its running mean and variance. The same structure holds momentum, which statistics have none of.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Params(pub Vec<Param>);

impl Params {
    /// All zero, in the network's shapes.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn zeros(net: &Network) -> Result<Self> {
        let mut params = Params::shapes(net)?;
        for param in &mut params.0 {
            param.data = vec![0.0; param.shape.iter().product()];
        }
        Ok(params)
    }

    /// Names, roles and shapes of a network's parameters, with no elements yet: for comparing with a file before memory
    /// is taken for what a network says of itself.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn shapes(net: &Network) -> Result<Self> {
        let mut params = Vec::new();
        for (layer, t) in net.trace()?.iter().enumerate().filter(|(_, t)| t.params() > 0) {
            let channels = || vec![t.biases()];
            let mut tensors =
                vec![(Role::Weight, "weight", t.weight.clone()), (Role::Bias, "bias", channels())];
            if matches!(t.layer.op, Op::BatchNorm(_)) {
                tensors.push((Role::Statistic, "running_mean", channels()));
                tensors.push((Role::Statistic, "running_var", channels()));
            }
            for (role, suffix, shape) in tensors {
                let name = format!("{}.{suffix}", t.layer.name);
                params.push(Param { name, layer, role, shape, data: vec![] });
            }
        }
        Ok(Params(params))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.0.iter().find(|p| p.name == name)
    }
}

/// A batch as an executor takes it.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Pixel values, in the executor's [`InputLayout`].
    pub input: Pixels<'a>,
    /// The number of pictures, at most the layout's `batch`.
    pub count: usize,
    /// One class a picture; empty when there is nothing to learn from.
    pub labels: &'a [u32],
    /// One weight a picture: 1, or 0 for a picture that could not be decoded. Means are over the weights' sum.
    pub weights: &'a [f32],
}

/// How fast one parameter tensor moves in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// ε. Zero freezes the tensor and its momentum.
    pub lr: f32,
    /// wd, the weight decay; the step subtracts wd·ε·w.
    pub decay: f32,
}

/// Everything about a training step that is not data.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings<'a> {
    /// Counts from 0 over the whole run; keys the dropout masks.
    pub step: u64,
    /// The run's seed; keys the dropout masks.
    pub seed: u64,
    /// μ of v ← μ·v − wd·ε·w − ε·ḡ.
    pub momentum: f32,
    /// One rate a parameter tensor, in the order of [`Params`]. Those of statistics have no size: where `lr` is 0 the layer is
    /// frozen, and normalizes by its statistics, which stay; else by the batch's, towards which they move.
    pub rates: &'a [Rate],
}

/// What a training step found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Mean loss, nats.
    pub loss: f64,
    /// Pictures (weights' sum) whose top class is not the label.
    pub top1_wrong: f64,
    /// The weights' sum.
    pub weight: f64,
    /// The first layer, in the order of computing, that produced a value that is not finite.
    pub nonfinite: Option<usize>,
}

/// What one pass of one stage took in the last step.
#[derive(Clone, Debug, PartialEq)]
pub struct PassTime {
    /// The stage's layers.
    pub stage: String,
    /// What was computed.
    pub pass: &'static str,
    /// How long it took.
    pub time: std::time::Duration,
    /// Floating-point operations of its products by their definition, padding counted as work; 0 where there is no product.
    pub flop: u64,
    /// Whether it was computed by Winograd's method, which needs fewer than these.
    pub winograd: bool,
    /// Bytes of the maps and parameters that it reads and writes, each once.
    pub bytes: u64,
}

/// Weights and momentum on one device, and the plan that trains or runs them.
pub trait Executor: Send {
    /// Where the loader writes.
    fn input_layout(&self) -> InputLayout;

    /// The plan in words: stages, kernels by name, bytes.
    fn describe(&self) -> String;

    /// The threads that compute, for other work between steps: the loader fills batches with them. Threads of its own would take
    /// the processor from these in the middle of a stage, at whose end all wait for the last.
    fn threads(&mut self) -> &mut Threads;

    /// Name of the instruction set or device that computes, for example `AVX-512 f32`.
    fn kernel_name(&self) -> String;

    /// The arithmetic of products: `f32`, `f32x3`, `bf16` or `int8` (`f64` in the reference).
    fn precision(&self) -> &'static str;

    /// Bytes of an element of a map, and of an operand of a convolution: 2 in bf16.
    fn value_bytes(&self) -> usize {
        size_of::<f32>()
    }

    /// Where the time of the last step went; nothing if the executor does not say.
    fn pass_times(&self) -> Vec<PassTime> {
        Vec::new()
    }

    /// Bytes that the plan holds: weights, momentum, activations, gradients.
    fn planned_bytes(&self) -> usize;

    /// The same and the pixels of a batch, which whoever fills it holds.
    fn bytes_with_batch(&self) -> usize {
        self.planned_bytes() + self.input_layout().bytes()
    }

    /// Replaces the parameters.
    fn set_params(&mut self, params: &Params);

    /// Copies the parameters out.
    fn params(&self) -> Params;

    /// Replaces the momentum.
    fn set_momentum(&mut self, momentum: &Params);

    /// Copies the momentum out.
    fn momentum(&self) -> Params;

    /// One step of training: forward, loss, backward, update. Allocates nothing.
    ///
    /// Panics if the executor was compiled for inference.
    fn train_step(&mut self, batch: Batch, settings: &StepSettings) -> StepReport;

    /// Runs the network at test time. `output` receives (count, outputs) values: probabilities, or the activations
    /// of the layer that the plan ends with, in C, H, W order.
    fn infer(&mut self, batch: Batch, output: &mut [f32]);

    /// Elements that [`Executor::infer`] writes for one picture.
    fn output_len(&self) -> usize;
}

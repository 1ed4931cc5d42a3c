//! From the layers that a Caffe or ONNX file lists to a [`Graph`]: a chain of this library's layers, or the reason why
//! it is none.

use super::foreign::{ForeignTensor, Graph, short};
use crate::net::{Activation, Conv, Init, Layer, Linear, Loss, Network, Op, Rounding, Shape, windows};

/// The most layers that a file may list.
pub(super) const MAX_LAYERS: usize = 1024;

/// A chain being built. Each layer's input must be what the layer before it made.
pub(super) struct Chain {
    layers: Vec<Layer>,
    tensors: Vec<(Option<usize>, Option<usize>)>,
    /// What the last layer made.
    shape: Shape,
    /// Its name in the file.
    blob: String,
}

impl Chain {
    /// A chain that begins with the file's input of this name.
    pub fn new(input: Shape, blob: String) -> Self {
        Chain { layers: vec![], tensors: vec![], shape: input, blob }
    }

    /// What the last layer made.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether `blob` is what the last layer made.
    pub fn ends_in(&self, blob: &str) -> bool {
        self.blob == blob
    }

    /// Goes on under another name, with nothing done.
    pub fn rename(&mut self, blob: String) {
        self.blob = blob;
    }

    /// The operation of the last layer.
    pub fn last(&self) -> Option<&Op> {
        self.layers.last().map(|layer| &layer.op)
    }

    /// Makes the last layer, a tanh, the absolute value of one.
    pub fn make_absolute(&mut self, blob: String) {
        if let Some(last) = self.layers.last_mut() {
            last.op = Op::Activation(Activation::AbsTanh);
        }
        self.blob = blob;
    }

    /// Gives the last layer its biases.
    pub fn set_bias(&mut self, tensor: usize) {
        if let Some(last) = self.tensors.last_mut() {
            last.1 = Some(tensor);
        }
    }

    /// Adds a layer that makes `blob`.
    pub fn push(
        &mut self,
        name: &str,
        op: Op,
        blob: String,
        tensors: (Option<usize>, Option<usize>),
    ) -> Result<(), String> {
        let Shape { c, h, w } = self.shape;
        let fail = |why: &str| Err(format!("layer {}: {why}", short(name)));
        let size = |pad: usize, extent, size, stride, rounding| {
            extent + pad < 1 << 24 && windows(extent + pad, size, stride, rounding).is_some()
        };
        self.shape = match &op {
            Op::Conv(conv) => {
                let pad = conv.pad.before + conv.pad.after;
                if pad >= 1 << 20 || !size(pad, h, conv.kernel, conv.stride, conv.rounding) {
                    return fail("its windows do not fit");
                }
                let count =
                    |extent| windows(extent + pad, conv.kernel, conv.stride, conv.rounding).unwrap_or(1);
                Shape::new(conv.filters, count(h), count(w))
            }
            Op::Pool(pool) => {
                if !size(0, h, pool.size, pool.stride, pool.rounding) {
                    return fail("its windows do not fit");
                }
                let count = |extent| windows(extent, pool.size, pool.stride, pool.rounding).unwrap_or(1);
                Shape::new(c, count(h), count(w))
            }
            Op::Linear(linear) => Shape::new(linear.outputs, 1, 1),
            _ => self.shape,
        };
        if self.layers.len() >= MAX_LAYERS {
            return Err(format!("more than {MAX_LAYERS} layers"));
        }
        self.layers.push(Layer { name: name.to_string(), op });
        self.tensors.push(tensors);
        self.blob = blob;
        Ok(())
    }

    /// The whole graph, if its layers fit together and end in a linear layer.
    pub fn finish(self, name: &str, input: Shape, tensors: &[ForeignTensor]) -> Result<Graph, String> {
        let net = Network {
            name: short(name),
            source: "a weight file".into(),
            input,
            layers: self.layers,
            loss: Loss::Softmax,
        };
        let trace = net.trace().map_err(|e| e.to_string())?;
        for (t, (weight, bias)) in trace.iter().zip(&self.tensors).filter(|(t, _)| t.params() > 0) {
            let layer = short(&t.layer.name);
            let weight = weight.ok_or_else(|| format!("layer {layer} has no weights in the file"))?;
            let bias = bias.ok_or_else(|| format!("layer {layer} has no biases in the file"))?;
            for (tensor, shape) in [(weight, t.weight.clone()), (bias, vec![t.biases()])] {
                if !same_shape(&tensors[tensor].shape, &shape) {
                    return Err(format!(
                        "layer {layer} needs a tensor of {}, and the file's has {}",
                        super::foreign::sizes(&shape),
                        super::foreign::sizes(&tensors[tensor].shape)
                    ));
                }
            }
        }
        let tensors = self.tensors;
        Ok(Graph { net, tensors })
    }
}

/// Whether two lists of sizes are the same but for ones in front, which Caffe's old files put there.
pub(super) fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let bare = |shape: &[usize]| shape.iter().copied().skip_while(|&size| size == 1).collect::<Vec<_>>();
    bare(a) == bare(b)
}

/// Whether two networks compute the same from the same weights: layer by layer, whatever the names and how they
/// started, and with sizes rounded by rules that come to the same. Inputs may differ in size.
pub fn same_computation(a: &Network, b: &Network) -> bool {
    let essential = |net: &Network| -> Option<Vec<(Op, Shape, Shape)>> {
        let trace = net.trace().ok()?;
        // Inverted dropout does nothing in use; the other kind is a factor.
        let kept = trace.iter().filter(|t| !matches!(&t.layer.op, Op::Dropout(d) if d.inverted));
        Some(kept.map(|t| (t.layer.op.clone(), t.input, t.output)).collect())
    };
    let (Some(a_ops), Some(b_ops)) = (essential(a), essential(b)) else { return false };
    let same_input = a.input == b.input;
    a_ops.len() == b_ops.len() && a_ops.iter().zip(&b_ops).all(|(x, y)| same_op(x, y, same_input))
}

fn same_op(a: &(Op, Shape, Shape), b: &(Op, Shape, Shape), same_input: bool) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    // Sizes that come out the same make rounding and padding behind the map the same.
    let same_sizes = same_input && a.1 == b.1 && a.2 == b.2;
    match (&a.0, &b.0) {
        (Op::Conv(x), Op::Conv(y)) => {
            let plain = |c: &Conv| (c.filters, c.kernel, c.stride, c.groups, c.pad.before);
            plain(x) == plain(y) && (same_sizes || (x.pad.after, x.rounding) == (y.pad.after, y.rounding))
        }
        (Op::Pool(x), Op::Pool(y)) => {
            (x.kind, x.size, x.stride) == (y.kind, y.size, y.stride)
                && (same_sizes || x.rounding == y.rounding)
        }
        (Op::Lrn(x), Op::Lrn(y)) => {
            (x.size, x.towers) == (y.size, y.towers)
                && near(x.k, y.k)
                && near(x.effective_alpha(), y.effective_alpha())
                && near(x.beta, y.beta)
        }
        (Op::SpatialLrn(x), Op::SpatialLrn(y)) => {
            x.size == y.size
                && near(x.k, y.k)
                && near(x.effective_alpha(), y.effective_alpha())
                && near(x.beta, y.beta)
        }
        (Op::BatchNorm(x), Op::BatchNorm(y)) => near(x.eps, y.eps),
        (Op::Dropout(x), Op::Dropout(y)) => near(x.rate, y.rate),
        (Op::Linear(x), Op::Linear(y)) => x.outputs == y.outputs && a.1.len() == b.1.len(),
        (Op::Activation(x), Op::Activation(y)) => x == y,
        _ => false,
    }
}

/// A linear layer that starts as nothing in particular.
pub(super) fn linear(outputs: usize) -> Op {
    Op::Linear(Linear { outputs, weight: Init::FanIn, bias: Init::FanIn })
}

/// max(x, 0).
pub(super) const RELU: Op = Op::Activation(Activation::Relu);

/// The rule by which a window count comes about, trying the usual one first.
pub(super) fn rounding_for(extent: usize, size: usize, stride: usize, count: usize) -> Option<Rounding> {
    [Rounding::Floor, Rounding::Ceil].into_iter().find(|&r| windows(extent, size, stride, r) == Some(count))
}

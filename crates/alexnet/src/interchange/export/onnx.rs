//! ONNX, operators of opset 13 (format version 7). Asymmetrical padding says what overhangs; normalization within towers
//! is Split, LRN, Concat; normalization within a map is made of AveragePool and arithmetic; dropout that is not
//! inverted is the factor that it has in use.

use super::{Source, behind, overhang, write_file, write_values};
use crate::error::{Error, Result};
use crate::interchange::wire::Message;
use crate::net::{Activation, Loss, Op, PoolKind, Shape};
use std::path::Path;

/// The version of the operators.
pub const OPSET: u64 = 13;
/// The version of the format.
const IR_VERSION: u64 = 7;
const FLOAT: u64 = 1;
const INT64: u64 = 7;

/// What the last node gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Probabilities: softmax, or a logistic unit a class.
    Probabilities,
    /// What goes into them.
    Logits,
}

/// A value of an attribute.
enum Attribute {
    Int(usize),
    Ints(Vec<usize>),
    Float(f64),
}

/// Nodes and small constants so far.
#[derive(Default)]
struct Graph {
    nodes: Vec<Message>,
    constants: Vec<Message>,
    /// The name of what the last node gives.
    last: String,
}

impl Graph {
    /// A node of one output, called `name`, that reads `inputs`.
    fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) {
        self.node_of(op, name, inputs, &[name], attributes);
        self.last = name.to_string();
    }

    fn node_of(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        let mut message = Message::default();
        for input in inputs {
            message = message.text(1, input);
        }
        for output in outputs {
            message = message.text(2, output);
        }
        message = message.text(3, name).text(4, op);
        for (key, value) in attributes {
            let attribute = Message::default().text(1, key);
            let attribute = match value {
                Attribute::Float(x) => attribute.float(2, *x as f32).int(20, 1),
                Attribute::Int(n) => attribute.int(3, *n as u64).int(20, 2),
                Attribute::Ints(list) => attribute.ints(8, list.iter().copied()).int(20, 7),
            };
            message = message.message(5, attribute);
        }
        self.nodes.push(message);
    }

    /// A constant of one number.
    fn scalar(&mut self, name: &str, value: f64) {
        let bytes = (value as f32).to_le_bytes();
        self.constants.push(Message::default().int(2, FLOAT).text(8, name).text(9, bytes));
    }

    /// A constant list of integers.
    fn integers(&mut self, name: &str, values: &[usize]) {
        let bytes: Vec<u8> = values.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
        let message = Message::default().int(1, values.len() as u64).int(2, INT64);
        self.constants.push(message.text(8, name).text(9, bytes));
    }
}

/// Writes the file.
///
/// # Errors
/// [`Error::Config`] with the layer and the reason if ONNX has no words for it; [`Error::Checkpoint`] if the file cannot
/// be written.
pub fn write(source: Source, path: &Path, output: Output) -> Result<()> {
    let net = source.net;
    let mut graph = Graph { last: "pixels".into(), ..Graph::default() };
    let mut flat = false;
    for t in net.trace()? {
        layer(&mut graph, &t.layer.name, &t.layer.op, t.input, t.output, &mut flat)?;
    }
    let name = match output {
        Output::Logits => {
            let last = graph.last.clone();
            graph.node("Identity", "logits", &[&last], &[]);
            "logits"
        }
        Output::Probabilities => {
            let last = graph.last.clone();
            match net.loss {
                Loss::Softmax => {
                    graph.node("Softmax", "probabilities", &[&last], &[("axis", Attribute::Int(1))]);
                }
                Loss::Logistic => graph.node("Sigmoid", "probabilities", &[&last], &[]),
            }
            "probabilities"
        }
    };
    let Shape { c, h, w } = net.input;
    let mut head = Message::default();
    for node in graph.nodes {
        head = head.message(1, node);
    }
    head = head.text(2, &net.name);
    for constant in graph.constants {
        head = head.message(5, constant);
    }
    let tail = Message::default()
        .text(10, "Pixels are (N, 3, H, W), red first, prepared as the metadata alexnet.preprocess says.")
        .message(11, tensor_type("pixels", &[c, h, w]))
        .message(12, tensor_type(name, &[net.classes()]));
    // The weights are written from where they lie; only their lengths are needed before.
    let (head, tail) = (head.into_bytes(), tail.into_bytes());
    let mut parts = Vec::new();
    for param in &source.params.0 {
        let values = source.values(&param.name)?;
        let bytes = 4 * values.len() as u64;
        let start = Message::default()
            .ints(1, param.shape.iter().copied())
            .int(2, FLOAT)
            .text(8, &param.name)
            .head(9, bytes)
            .into_bytes();
        let field = Message::default().head(5, start.len() as u64 + bytes).into_bytes();
        parts.push(([field, start].concat(), values));
    }
    let weights: u64 = parts.iter().map(|(start, values)| (start.len() + 4 * values.len()) as u64).sum();
    let length = head.len() as u64 + weights + tail.len() as u64;
    if length >= 1 << 31 {
        return Err(Error::Config("the network is larger than the 2 GiB that an ONNX file may have".into()));
    }
    let mut model = Message::default()
        .int(1, IR_VERSION)
        .text(2, "alexnet")
        .text(3, env!("CARGO_PKG_VERSION"))
        .message(8, Message::default().text(1, "").int(2, OPSET));
    for (key, value) in source.metadata() {
        model = model.message(14, Message::default().text(1, key).text(2, value));
    }
    let model = model.head(7, length).into_bytes();
    write_file(path, |out| {
        out.write_all(&model)?;
        out.write_all(&head)?;
        for (start, values) in &parts {
            out.write_all(start)?;
            write_values(out, values)?;
        }
        out.write_all(&tail)?;
        out.flush()
    })
}

/// A ValueInfoProto: f32 of (N, sizes…).
fn tensor_type(name: &str, sizes: &[usize]) -> Message {
    let mut shape = Message::default().message(1, Message::default().text(2, "N"));
    for &size in sizes {
        shape = shape.message(1, Message::default().int(1, size as u64));
    }
    let tensor = Message::default().int(1, FLOAT).message(2, shape);
    Message::default().text(1, name).message(2, Message::default().message(1, tensor))
}

fn layer(graph: &mut Graph, name: &str, op: &Op, input: Shape, output: Shape, flat: &mut bool) -> Result<()> {
    use Attribute::{Float, Int, Ints};
    let refuse = |why: &str| Err(Error::Config(format!("layer {name}: {why}; it has no form in ONNX")));
    let last = graph.last.clone();
    let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
    match op {
        Op::Conv(conv) => {
            let before = conv.pad.before;
            let (bottom, right) = (behind(conv, input.h, output.h), behind(conv, input.w, output.w));
            let attributes = [
                ("kernel_shape", Ints(vec![conv.kernel; 2])),
                ("strides", Ints(vec![conv.stride; 2])),
                ("pads", Ints(vec![before, before, bottom, right])),
                ("group", Int(conv.groups)),
            ];
            graph.node("Conv", name, &[&last, &weight, &bias], &attributes);
        }
        Op::Activation(Activation::Relu) => graph.node("Relu", name, &[&last], &[]),
        Op::Activation(Activation::Tanh) => graph.node("Tanh", name, &[&last], &[]),
        Op::Activation(Activation::Logistic) => graph.node("Sigmoid", name, &[&last], &[]),
        Op::Activation(Activation::AbsTanh) => {
            let tanh = format!("{name}.tanh");
            graph.node("Tanh", &tanh, &[&last], &[]);
            graph.node("Abs", name, &[&tanh], &[]);
        }
        Op::Lrn(lrn) => {
            if lrn.size.is_multiple_of(2) {
                return refuse("its window has an even number of maps, which lies on the other side there");
            }
            let attributes = || {
                [
                    ("size", Int(lrn.size)),
                    ("alpha", Float(lrn.effective_alpha() * lrn.size as f64)),
                    ("beta", Float(lrn.beta)),
                    ("bias", Float(lrn.k)),
                ]
            };
            if lrn.towers == 1 {
                graph.node("LRN", name, &[&last], &attributes());
                return Ok(());
            }
            let names = |part: &str| -> Vec<String> {
                (0..lrn.towers).map(|tower| format!("{name}.{part}{tower}")).collect()
            };
            let (ins, outs, sizes) = (names("in"), names("out"), format!("{name}.towers"));
            graph.integers(&sizes, &vec![input.c / lrn.towers; lrn.towers]);
            let (ins, outs): (Vec<&str>, Vec<&str>) =
                (ins.iter().map(String::as_str).collect(), outs.iter().map(String::as_str).collect());
            graph.node_of("Split", &format!("{name}.split"), &[&last, &sizes], &ins, &[("axis", Int(1))]);
            for (from, to) in ins.iter().zip(&outs) {
                graph.node("LRN", to, &[from], &attributes());
            }
            graph.node("Concat", name, &outs, &[("axis", Int(1))]);
        }
        Op::SpatialLrn(lrn) => {
            let n = lrn.size;
            let names = ["squares", "means", "scaled", "base", "power"].map(|part| format!("{name}.{part}"));
            let [squares, means, scaled, base, power] = names.each_ref().map(String::as_str);
            let [alpha, k, beta] = ["alpha", "k", "beta"].map(|part| format!("{name}.{part}"));
            // The mean counts the padding, so that it is the clipped sum over n².
            graph.scalar(&alpha, lrn.effective_alpha() * (n * n) as f64);
            graph.scalar(&k, lrn.k);
            graph.scalar(&beta, lrn.beta);
            let (before, after) = (n / 2, n - 1 - n / 2);
            graph.node("Mul", squares, &[&last, &last], &[]);
            let attributes = [
                ("kernel_shape", Ints(vec![n; 2])),
                ("strides", Ints(vec![1; 2])),
                ("pads", Ints(vec![before, before, after, after])),
                ("count_include_pad", Int(1)),
            ];
            graph.node("AveragePool", means, &[squares], &attributes);
            graph.node("Mul", scaled, &[means, &alpha], &[]);
            graph.node("Add", base, &[scaled, &k], &[]);
            graph.node("Pow", power, &[base, &beta], &[]);
            graph.node("Div", name, &[&last, power], &[]);
        }
        Op::Pool(pool) => {
            let (bottom, right) = (overhang(pool, input.h, output.h), overhang(pool, input.w, output.w));
            let mut attributes = vec![
                ("kernel_shape", Ints(vec![pool.size; 2])),
                ("strides", Ints(vec![pool.stride; 2])),
                ("pads", Ints(vec![0, 0, bottom, right])),
            ];
            let op = match pool.kind {
                PoolKind::Max => "MaxPool",
                PoolKind::Average => {
                    attributes.push(("count_include_pad", Int(0)));
                    "AveragePool"
                }
            };
            graph.node(op, name, &[&last], &attributes);
        }
        Op::Linear(_) => {
            let mut from = last;
            if !*flat {
                let name = format!("{name}.flat");
                graph.node("Flatten", &name, &[&from], &[("axis", Int(1))]);
                from = name;
                *flat = true;
            }
            graph.node("Gemm", name, &[&from, &weight, &bias], &[("transB", Int(1))]);
        }
        Op::BatchNorm(norm) => {
            let [mean, variance] = ["running_mean", "running_var"].map(|part| format!("{name}.{part}"));
            let inputs = [last.as_str(), &weight, &bias, &mean, &variance];
            graph.node("BatchNormalization", name, &inputs, &[("epsilon", Float(norm.eps))]);
        }
        Op::Dropout(dropout) if dropout.inverted => {}
        Op::Dropout(dropout) => {
            let factor = format!("{name}.factor");
            graph.scalar(&factor, 1.0 - dropout.rate);
            graph.node("Mul", name, &[&last, &factor], &[]);
        }
    }
    Ok(())
}

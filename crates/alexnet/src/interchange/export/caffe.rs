//! Caffe: a `.caffemodel` and its `.prototxt`. Blue first in the first convolution. Where the first convolution overhangs
//! its input, the input is larger by that much, and the caller puts zeros there (the prototxt says so).

use super::{Source, behind, overhang, write_file, write_values};
use crate::data::Mean;
use crate::error::{Error, Result};
use crate::interchange::import::{first_conv, swap_red_and_blue};
use crate::interchange::wire::Message;
use crate::net::{Activation, Loss, Network, Op, PoolKind, Rounding, Shape};
use std::path::Path;

/// A value in a layer's parameters: the field's number, its name, and the value in both spellings.
enum Field {
    Int(u64, &'static str, usize),
    Float(u64, &'static str, f64),
    /// An enumerated value: number and word.
    Word(u64, &'static str, u64, &'static str),
}

/// A layer of the file.
struct Layer {
    name: String,
    kind: &'static str,
    bottoms: Vec<String>,
    tops: Vec<String>,
    /// The parameters' message: number, name, fields.
    params: Option<(u64, &'static str, Vec<Field>)>,
    /// Index of the network's layer whose weights it has.
    weights: Option<usize>,
}

impl Layer {
    fn new(name: &str, kind: &'static str, bottom: &str, top: &str) -> Self {
        let (bottoms, tops) = (vec![bottom.to_string()], vec![top.to_string()]);
        Layer { name: name.to_string(), kind, bottoms, tops, params: None, weights: None }
    }

    fn with(mut self, number: u64, name: &'static str, fields: Vec<Field>) -> Self {
        self.params = Some((number, name, fields));
        self
    }

    fn message(&self) -> Message {
        let mut message = Message::default().text(1, &self.name).text(2, self.kind);
        for bottom in &self.bottoms {
            message = message.text(3, bottom);
        }
        for top in &self.tops {
            message = message.text(4, top);
        }
        if let Some((number, _, fields)) = &self.params {
            let params = fields.iter().fold(Message::default(), |params, field| match field {
                Field::Int(number, _, value) => params.int(*number, *value as u64),
                Field::Float(number, _, value) => params.float(*number, *value as f32),
                Field::Word(number, _, value, _) => params.int(*number, *value),
            });
            message = message.message(*number, params);
        }
        message
    }

    fn text(&self) -> String {
        let mut text = format!("layer {{\n  name: {:?}\n  type: {:?}\n", self.name, self.kind);
        for bottom in &self.bottoms {
            text += &format!("  bottom: {bottom:?}\n");
        }
        for top in &self.tops {
            text += &format!("  top: {top:?}\n");
        }
        if let Some((_, name, fields)) = &self.params {
            text += &format!("  {name} {{\n");
            for field in fields {
                text += &match field {
                    Field::Int(_, key, value) => format!("    {key}: {value}\n"),
                    Field::Float(_, key, value) => format!("    {key}: {value}\n"),
                    Field::Word(_, key, _, word) => format!("    {key}: {word}\n"),
                };
            }
            text += "  }\n";
        }
        text + "}\n"
    }
}

/// Writes the two files.
///
/// # Errors
/// [`Error::Config`] with the layer and the reason if Caffe has no words for it; [`Error::Checkpoint`] if a file cannot be
/// written.
pub fn write(source: Source, path: &Path, prototxt: &Path) -> Result<()> {
    let net = source.net;
    let (layers, input) = layers(net)?;
    let first = first_conv(net);
    let mut pieces: Vec<(Vec<u8>, std::borrow::Cow<[f32]>)> = Vec::new();
    let mut head = Message::default()
        .text(1, &net.name)
        .text(3, "data")
        .message(8, Message::default().ints(1, [1, input.c, input.h, input.w]))
        .into_bytes();
    for layer in &layers {
        let plain = layer.message().into_bytes();
        let Some(index) = layer.weights else {
            head.extend(Message::default().text(100, plain).into_bytes());
            continue;
        };
        // Blobs are written from where the weights lie; only their lengths are needed before.
        let mut blobs = Vec::new();
        for param in source.params.0.iter().filter(|p| p.layer == index) {
            let mut values = std::borrow::Cow::Borrowed(source.values(&param.name)?);
            if first == Some(index) && param.shape.len() == 4 {
                swap_red_and_blue(values.to_mut(), &param.shape)?;
            }
            let bytes = 4 * values.len() as u64;
            let shape = Message::default().ints(1, param.shape.iter().copied());
            let start = Message::default().message(7, shape).head(5, bytes).into_bytes();
            let field = Message::default().head(7, start.len() as u64 + bytes).into_bytes();
            blobs.push(([field, start].concat(), values));
        }
        let length = plain.len() + blobs.iter().map(|(start, v)| start.len() + 4 * v.len()).sum::<usize>();
        head.extend(Message::default().head(100, length as u64).into_bytes());
        head.extend(plain);
        for (start, values) in blobs {
            head.extend(start);
            pieces.push((std::mem::take(&mut head), values));
        }
    }
    write_file(path, |out| {
        for (start, values) in &pieces {
            out.write_all(start)?;
            write_values(out, values)?;
        }
        out.write_all(&head)?;
        out.flush()
    })?;
    let text = text(source, &layers, input);
    write_file(prototxt, |out| out.write_all(text.as_bytes()))
}

fn text(source: Source, layers: &[Layer], input: Shape) -> String {
    let net = source.net;
    let p = source.preprocess;
    let mut text = format!("# {}: {}\n# Pixels: blue, green, red planes", net.name, net.source);
    let bgr = |v: [f32; 3]| format!("{} {} {}", v[2], v[1], v[0]);
    match &p.mean {
        Mean::Channels(mean) => {
            text += &format!(
                "; (pixel · {} − mean) / deviation, mean {}, deviation {}.\n",
                p.scale,
                bgr(*mean),
                bgr(p.std)
            );
        }
        Mean::Picture(_) => {
            text += ", less the mean picture of the training set, which is not in this file.\n"
        }
    }
    if input != net.input {
        text += &format!(
            "# Crops are of {}×{} pixels; put zeros (after the mean is subtracted) right of them and below, up to {}×{}.\n",
            net.input.w, net.input.h, input.w, input.h
        );
    }
    text += &format!(
        "name: {:?}\nlayer {{\n  name: \"data\"\n  type: \"Input\"\n  top: \"data\"\n  input_param {{ shape: {{ dim: 1 dim: \
         {} dim: {} dim: {} }} }}\n}}\n",
        net.name, input.c, input.h, input.w
    );
    layers.iter().fold(text, |text, layer| text + &layer.text())
}

/// The layers, and the size of the input.
fn layers(net: &Network) -> Result<(Vec<Layer>, Shape)> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut input = net.input;
    let mut last = "data".to_string();
    for (index, t) in net.trace()?.iter().enumerate() {
        let name = t.layer.name.as_str();
        let refuse = |why: &str| Err(Error::Config(format!("layer {name}: {why}; it has no form in Caffe")));
        match &t.layer.op {
            Op::Conv(conv) => {
                let behind = behind(conv, t.input.h, t.output.h);
                let before = conv.pad.before;
                if behind != before {
                    if index > 0 || before > 0 || t.input.h != t.input.w {
                        return refuse("its padding is not the same on both sides");
                    }
                    input = Shape::new(input.c, input.h + behind, input.w + behind);
                }
                let fields = vec![
                    Field::Int(1, "num_output", conv.filters),
                    Field::Int(3, "pad", before),
                    Field::Int(4, "kernel_size", conv.kernel),
                    Field::Int(5, "group", conv.groups),
                    Field::Int(6, "stride", conv.stride),
                ];
                let layer =
                    Layer::new(name, "Convolution", &last, name).with(106, "convolution_param", fields);
                layers.push(Layer { weights: Some(index), ..layer });
            }
            Op::Linear(linear) => {
                let fields = vec![Field::Int(1, "num_output", linear.outputs)];
                let layer =
                    Layer::new(name, "InnerProduct", &last, name).with(117, "inner_product_param", fields);
                layers.push(Layer { weights: Some(index), ..layer });
            }
            Op::Activation(Activation::Relu) => layers.push(Layer::new(name, "ReLU", &last, name)),
            Op::Activation(Activation::Tanh) => layers.push(Layer::new(name, "TanH", &last, name)),
            Op::Activation(Activation::Logistic) => layers.push(Layer::new(name, "Sigmoid", &last, name)),
            Op::Activation(Activation::AbsTanh) => {
                let tanh = format!("{name}_tanh");
                layers.push(Layer::new(&tanh, "TanH", &last, &tanh));
                layers.push(Layer::new(name, "AbsVal", &tanh, name));
            }
            Op::Lrn(lrn) => {
                if lrn.size.is_multiple_of(2) {
                    return refuse("its window has an even number of maps");
                }
                let fields = || {
                    vec![
                        Field::Int(1, "local_size", lrn.size),
                        Field::Float(2, "alpha", lrn.effective_alpha() * lrn.size as f64),
                        Field::Float(3, "beta", lrn.beta),
                        Field::Float(5, "k", lrn.k),
                    ]
                };
                if lrn.towers == 1 {
                    layers.push(Layer::new(name, "LRN", &last, name).with(118, "lrn_param", fields()));
                } else {
                    let part = |word: &str, tower: usize| format!("{name}_{word}{tower}");
                    let names = |word| (0..lrn.towers).map(|tower| part(word, tower)).collect::<Vec<_>>();
                    let slice = Layer::new(&format!("{name}_split"), "Slice", &last, "");
                    let slice = slice.with(126, "slice_param", vec![Field::Int(3, "axis", 1)]);
                    layers.push(Layer { tops: names("in"), ..slice });
                    for tower in 0..lrn.towers {
                        let (from, to) = (part("in", tower), part("out", tower));
                        layers.push(Layer::new(&to, "LRN", &from, &to).with(118, "lrn_param", fields()));
                    }
                    let concat = Layer::new(name, "Concat", "", name);
                    let concat = concat.with(104, "concat_param", vec![Field::Int(2, "axis", 1)]);
                    layers.push(Layer { bottoms: names("out"), ..concat });
                }
            }
            Op::SpatialLrn(lrn) => {
                if lrn.k != 1.0 || lrn.size.is_multiple_of(2) {
                    return refuse("normalization within a map has k = 1 and odd windows there");
                }
                let fields = vec![
                    Field::Int(1, "local_size", lrn.size),
                    Field::Float(2, "alpha", lrn.effective_alpha() * (lrn.size * lrn.size) as f64),
                    Field::Float(3, "beta", lrn.beta),
                    Field::Word(4, "norm_region", 1, "WITHIN_CHANNEL"),
                ];
                layers.push(Layer::new(name, "LRN", &last, name).with(118, "lrn_param", fields));
            }
            Op::Pool(pool) => {
                let mut fields = vec![
                    match pool.kind {
                        PoolKind::Max => Field::Word(1, "pool", 0, "MAX"),
                        PoolKind::Average => Field::Word(1, "pool", 1, "AVE"),
                    },
                    Field::Int(2, "kernel_size", pool.size),
                    Field::Int(3, "stride", pool.stride),
                ];
                if pool.kind == PoolKind::Average && overhang(pool, t.input.h, t.output.h) > 0 {
                    return refuse("Caffe divides a clipped average by its whole window");
                }
                let up = t.input.h.saturating_sub(pool.size).div_ceil(pool.stride) + 1;
                if pool.rounding == Rounding::Floor && up != t.output.h {
                    fields.push(Field::Word(13, "round_mode", 1, "FLOOR"));
                }
                layers.push(Layer::new(name, "Pooling", &last, name).with(121, "pooling_param", fields));
            }
            Op::BatchNorm(_) => {
                return Err(Error::Config(format!(
                    "layer {name}: batch normalization is not written for Caffe; ONNX and safetensors hold it"
                )));
            }
            Op::Dropout(dropout) if dropout.inverted => {
                let fields = vec![Field::Float(1, "dropout_ratio", dropout.rate)];
                layers.push(Layer::new(name, "Dropout", &last, name).with(108, "dropout_param", fields));
            }
            Op::Dropout(dropout) => {
                let fields = vec![Field::Float(2, "scale", 1.0 - dropout.rate)];
                layers.push(Layer::new(name, "Power", &last, name).with(122, "power_param", fields));
            }
        }
        last = name.to_string();
    }
    let last_kind = match net.loss {
        Loss::Softmax => "Softmax",
        Loss::Logistic => "Sigmoid",
    };
    layers.push(Layer::new("prob", last_kind, &last, "prob"));
    Ok((layers, input))
}

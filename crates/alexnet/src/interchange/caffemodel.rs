//! Caffe's binary networks (`.caffemodel`), of both generations of its format: `layers` with numbered types and
//! `layer` with named ones; and its mean pictures (`.binaryproto`). Field numbers are those of `caffe.proto`.

use super::foreign::{
    ChannelOrder, Dtype, Foreign, ForeignTensor, Format, Graph, MAX_AXES, MAX_TENSORS, short,
};
use super::graph::{Chain, MAX_LAYERS, RELU, linear};
use super::wire::{Fields, Value};
use crate::net::{
    Activation, Conv, Dropout, Init, Lrn, Op, Pad, Pool, PoolKind, Rounding, Shape, SpatialLrn, Ties,
};
use std::borrow::Cow;

/// What a layer does, by either generation's name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Conv,
    InnerProduct,
    Lrn,
    Pool,
    Relu,
    Tanh,
    Sigmoid,
    AbsVal,
    Dropout,
    Power,
    /// Changes nothing that a trained network gives: flattening, splits.
    Nothing,
    /// Data, losses, accuracy: not a part of the computation.
    Outside,
    Softmax,
    Unknown,
}

impl Kind {
    fn of_number(number: i64) -> Self {
        match number {
            4 => Kind::Conv,
            14 => Kind::InnerProduct,
            15 => Kind::Lrn,
            17 => Kind::Pool,
            18 => Kind::Relu,
            23 => Kind::Tanh,
            19 => Kind::Sigmoid,
            35 => Kind::AbsVal,
            6 => Kind::Dropout,
            26 => Kind::Power,
            8 | 22 => Kind::Nothing,
            20 => Kind::Softmax,
            0 | 1 | 5 | 9 | 12 | 21 | 24 | 29 => Kind::Outside,
            _ => Kind::Unknown,
        }
    }

    fn of_name(name: &str) -> Self {
        match name {
            "Convolution" => Kind::Conv,
            "InnerProduct" => Kind::InnerProduct,
            "LRN" => Kind::Lrn,
            "Pooling" => Kind::Pool,
            "ReLU" => Kind::Relu,
            "TanH" => Kind::Tanh,
            "Sigmoid" => Kind::Sigmoid,
            "AbsVal" => Kind::AbsVal,
            "Dropout" => Kind::Dropout,
            "Power" => Kind::Power,
            "Flatten" | "Split" => Kind::Nothing,
            "Softmax" => Kind::Softmax,
            "Accuracy" | "Data" | "HDF5Data" | "ImageData" | "Input" | "MemoryData" | "SoftmaxWithLoss"
            | "WindowData" | "DummyData" => Kind::Outside,
            _ => Kind::Unknown,
        }
    }
}

/// A layer as the file has it.
struct Raw<'a> {
    name: String,
    kind: Kind,
    kind_words: String,
    bottom: Option<String>,
    top: Option<String>,
    /// The layer's own message of parameters, by what it belongs to.
    conv: &'a [u8],
    inner: &'a [u8],
    lrn: &'a [u8],
    pool: &'a [u8],
    dropout: &'a [u8],
    power: &'a [u8],
    blobs: Vec<usize>,
}

/// Reads a `.caffemodel`.
pub fn read(file: &[u8]) -> Result<Foreign<'_>, String> {
    let mut name = String::new();
    let mut input = InputSize::default();
    let (mut raw, mut tensors) = (Vec::new(), Vec::new());
    for field in Fields::of(file) {
        let (number, value) = field?;
        match number {
            1 => name = value.text()?,
            3 => input.blob = Some(value.text()?),
            4 => value.integers(&mut input.dims, 64)?,
            8 => {
                input.dims.clear();
                list(value.bytes()?, 1, &mut input.dims)?;
            }
            2 | 100 => {
                let layer = layer(value.bytes()?, number == 2, &mut tensors, &mut input)?;
                if raw.len() >= MAX_LAYERS {
                    return Err(format!("more than {MAX_LAYERS} layers"));
                }
                raw.push(layer);
            }
            // State, flags and what later versions may add.
            5..=7 => {}
            other => return Err(format!("a network has no field {other}: this is no Caffe model")),
        }
    }
    if tensors.is_empty() {
        return Err("it holds no weights".into());
    }
    let graph = graph(&name, &raw, &input, &tensors);
    let mut foreign = Foreign::new(Format::Caffemodel, tensors);
    foreign.graph = Some(graph);
    foreign.channels = Some(ChannelOrder::Bgr);
    if !name.is_empty() {
        foreign.about.push(("name".into(), short(&name)));
    }
    Ok(foreign)
}

/// What the file says about its input.
#[derive(Default)]
struct InputSize {
    blob: Option<String>,
    /// N, C, H, W.
    dims: Vec<i64>,
    crop: Option<usize>,
}

/// The integers of one field of a message.
fn list(message: &[u8], wanted: u64, into: &mut Vec<i64>) -> Result<(), String> {
    for field in Fields::of(message) {
        let (number, value) = field?;
        if number == wanted {
            value.integers(into, 64)?;
        }
    }
    Ok(())
}

fn layer<'a>(
    message: &'a [u8],
    first_generation: bool,
    tensors: &mut Vec<ForeignTensor<'a>>,
    input: &mut InputSize,
) -> Result<Raw<'a>, String> {
    let mut raw = Raw {
        name: String::new(),
        kind: Kind::Unknown,
        kind_words: "no type".into(),
        bottom: None,
        top: None,
        conv: &[],
        inner: &[],
        lrn: &[],
        pool: &[],
        dropout: &[],
        power: &[],
        blobs: vec![],
    };
    let mut blobs = Vec::new();
    for field in Fields::of(message) {
        let (number, value) = field?;
        // The second generation's numbers, into which the first's are translated.
        let number = match (first_generation, number) {
            (false, number) => number,
            (true, 1) => {
                return Err(
                    "it is of Caffe's oldest form, before 2014; Caffe's upgrade_net_proto_binary renews it"
                        .into(),
                );
            }
            (true, 2) => 3,
            (true, 3) => 4,
            (true, 4) => 1,
            (true, 5) => {
                let kind = value.integer()?;
                (raw.kind, raw.kind_words) = (Kind::of_number(kind), format!("type {kind}"));
                continue;
            }
            (true, 6) => 7,
            (true, 10) => 106,
            (true, 12) => 108,
            (true, 17) => 117,
            (true, 18) => 118,
            (true, 19) => 121,
            (true, 21) => 122,
            (true, 36) => 100,
            (true, _) => continue,
        };
        match number {
            1 => raw.name = value.text()?,
            2 => {
                raw.kind_words = value.text()?;
                raw.kind = Kind::of_name(&raw.kind_words);
            }
            3 if raw.bottom.is_none() => raw.bottom = Some(value.text()?),
            4 if raw.top.is_none() => raw.top = Some(value.text()?),
            7 => blobs.push(value.bytes()?),
            100 => {
                for field in Fields::of(value.bytes()?) {
                    if let (3, crop) = field? {
                        input.crop = Some(crop.size()?);
                    }
                }
            }
            106 => raw.conv = value.bytes()?,
            108 => raw.dropout = value.bytes()?,
            117 => raw.inner = value.bytes()?,
            118 => raw.lrn = value.bytes()?,
            121 => raw.pool = value.bytes()?,
            122 => raw.power = value.bytes()?,
            // The shapes of an input layer.
            143 => {
                for field in Fields::of(value.bytes()?) {
                    if let (1, shape) = field? {
                        input.dims.clear();
                        list(shape.bytes()?, 1, &mut input.dims)?;
                    }
                }
                input.blob = raw.top.clone();
            }
            _ => {}
        }
    }
    for (i, bytes) in blobs.into_iter().enumerate() {
        let role = match i {
            0 => "weight".to_string(),
            1 => "bias".to_string(),
            _ => i.to_string(),
        };
        if tensors.len() >= MAX_TENSORS {
            return Err(format!("more than {MAX_TENSORS} tensors"));
        }
        raw.blobs.push(tensors.len());
        tensors.push(blob(bytes, format!("{}.{role}", raw.name))?);
    }
    Ok(raw)
}

/// A blob: its sizes in either form, and its elements.
fn blob(message: &[u8], name: String) -> Result<ForeignTensor<'_>, String> {
    let mut four = [None; 4];
    let mut shape: Option<Vec<i64>> = None;
    let (mut singles, mut doubles): (Cow<[u8]>, Cow<[u8]>) = (Cow::Borrowed(&[]), Cow::Borrowed(&[]));
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            1..=4 => four[number as usize - 1] = Some(value.size()?),
            5 => value.elements(&mut singles)?,
            7 => {
                let mut sizes = Vec::new();
                for field in Fields::of(value.bytes()?) {
                    if let (1, value) = field? {
                        value.integers(&mut sizes, MAX_AXES)?;
                    }
                }
                shape = Some(sizes);
            }
            8 => value.elements(&mut doubles)?,
            _ => {}
        }
    }
    let shape = match shape {
        Some(sizes) => sizes
            .iter()
            .map(|&n| usize::try_from(n).map_err(|_| format!("tensor {}: a size of {n}", short(&name))))
            .collect::<Result<_, _>>()?,
        None => four.map(|size| size.unwrap_or(0)).to_vec(),
    };
    match doubles.is_empty() {
        true => ForeignTensor::new(name, shape, Dtype::F32, singles),
        false => ForeignTensor::new(name, shape, Dtype::F64, doubles),
    }
}

/// Numbers of a layer's message of parameters, by field; fields that stand twice keep the last.
struct Numbers<'a>(Vec<(u64, Value<'a>)>);

impl<'a> Numbers<'a> {
    fn of(message: &'a [u8]) -> Result<Self, String> {
        Fields::of(message).take(256).collect::<Result<_, _>>().map(Numbers)
    }

    fn get(&self, field: u64) -> Option<Value<'a>> {
        self.0.iter().rev().find(|(number, _)| *number == field).map(|&(_, value)| value)
    }

    fn size(&self, field: u64, default: usize) -> Result<usize, String> {
        match self.get(field) {
            None => Ok(default),
            // Sizes of windows are lists in the second generation, often packed.
            Some(Value::Bytes(bytes)) => {
                let mut list = Vec::new();
                Value::Bytes(bytes).integers(&mut list, 8)?;
                match list[..] {
                    [n] => Value::Varint(n as u64).size(),
                    [a, b] if a == b => Value::Varint(a as u64).size(),
                    _ => Err("windows that are not square".into()),
                }
            }
            Some(value) => value.size(),
        }
    }

    fn float(&self, field: u64, default: f32) -> Result<f64, String> {
        let value = self.get(field).map_or(Ok(default), Value::float)?;
        // Through the decimals that were typed: 1e-4 as f32 is not 1e-4 as f64.
        Ok(value.to_string().parse().unwrap_or(f64::from(value)))
    }

    /// A window's size, stride or padding: one number for both axes, or two that are equal.
    fn square(&self, both: u64, h: u64, w: u64, default: usize) -> Result<usize, String> {
        let whole = self.size(both, default)?;
        let (h, w) = (self.size(h, whole)?, self.size(w, whole)?);
        if h == w { Ok(h) } else { Err(format!("windows of {h}×{w}, which are not square")) }
    }
}

fn graph(name: &str, raw: &[Raw], size: &InputSize, tensors: &[ForeignTensor]) -> Result<Graph, String> {
    let Some(first) = raw.iter().find(|l| l.kind == Kind::Conv || l.kind == Kind::InnerProduct) else {
        return Err("it has no convolution".into());
    };
    let blob = size.blob.clone().or_else(|| first.bottom.clone()).unwrap_or_default();
    let square = |side: usize| Shape::new(3, side, side);
    let sizes = match (&size.dims[..], size.crop) {
        (&[_, c, h, w], _) => match [c, h, w].map(usize::try_from) {
            [Ok(c), Ok(h), Ok(w)] => vec![Shape::new(c, h, w)],
            _ => return Err("its input has negative sizes".into()),
        },
        (_, Some(crop)) => vec![square(crop)],
        // The file does not say; Caffe's own are of 227.
        _ => vec![square(227), square(224)],
    };
    let mut why = String::new();
    for input in sizes {
        match chain(raw, input, blob.clone()).and_then(|chain| chain.finish(name, input, tensors)) {
            Ok(graph) => return Ok(graph),
            Err(error) if why.is_empty() => why = error,
            Err(_) => {}
        }
    }
    Err(why)
}

fn chain(raw: &[Raw], input: Shape, blob: String) -> Result<Chain, String> {
    let mut chain = Chain::new(input, blob);
    for layer in raw {
        let fail = |why: String| format!("layer {}: {why}", short(&layer.name));
        let top = layer.top.clone().unwrap_or_default();
        match layer.kind {
            Kind::Outside | Kind::Softmax => continue,
            Kind::Unknown => return Err(fail(format!("{} is not known here", short(&layer.kind_words)))),
            _ if !layer.bottom.as_deref().is_some_and(|bottom| chain.ends_in(bottom)) => {
                return Err(fail("it does not read what the layer before it makes".into()));
            }
            Kind::Nothing => {
                chain.rename(top);
                continue;
            }
            Kind::AbsVal => {
                if chain.last() != Some(&Op::Activation(Activation::Tanh)) {
                    return Err(fail("an absolute value that does not follow a TanH".into()));
                }
                chain.make_absolute(top);
                continue;
            }
            _ => {}
        }
        let tensors = (layer.blobs.first().copied(), layer.blobs.get(1).copied());
        let op = operation(layer, chain.shape()).map_err(fail)?;
        chain.push(&layer.name, op, top, tensors)?;
    }
    Ok(chain)
}

fn operation(layer: &Raw, input: Shape) -> Result<Op, String> {
    Ok(match layer.kind {
        Kind::Conv => {
            let n = Numbers::of(layer.conv)?;
            if n.size(18, 1)? != 1 {
                return Err("dilated windows".into());
            }
            let pad = n.square(3, 9, 10, 0)?;
            Op::Conv(Conv {
                filters: n.size(1, 0)?,
                kernel: n.square(4, 11, 12, 0)?,
                stride: n.square(6, 13, 14, 1)?,
                pad: Pad { before: pad, after: pad },
                groups: n.size(5, 1)?,
                rounding: Rounding::Floor,
                weight: Init::FanIn,
                bias: Init::FanIn,
            })
        }
        Kind::InnerProduct => {
            let n = Numbers::of(layer.inner)?;
            if n.size(6, 0)? != 0 {
                return Err("transposed weights".into());
            }
            linear(n.size(1, 0)?)
        }
        Kind::Pool => {
            let n = Numbers::of(layer.pool)?;
            let kind = match n.size(1, 0)? {
                0 => PoolKind::Max,
                1 => PoolKind::Average,
                _ => return Err("pooling that is neither max nor average".into()),
            };
            if n.square(4, 9, 10, 0)? != 0 {
                return Err("pooling with padding".into());
            }
            let rounding = if n.size(13, 0)? == 0 { Rounding::Ceil } else { Rounding::Floor };
            let (size, stride) = match n.size(12, 0)? {
                0 => (n.square(2, 5, 6, 0)?, n.square(3, 7, 8, 1)?),
                _ if input.h == input.w => (input.h, 1),
                _ => return Err("pooling over a map that is not square".into()),
            };
            // Caffe divides the average of a clipped window by its whole area.
            let clipped =
                rounding == Rounding::Ceil && !input.h.saturating_sub(size).is_multiple_of(stride.max(1));
            if kind == PoolKind::Average && clipped {
                return Err("average pooling whose last window is clipped".into());
            }
            Op::Pool(Pool { kind, size, stride, rounding, ties: Ties::First })
        }
        Kind::Lrn => {
            let n = Numbers::of(layer.lrn)?;
            let (size, alpha, beta, k) =
                (n.size(1, 5)?, n.float(2, 1.0)?, n.float(3, 0.75)?, n.float(5, 1.0)?);
            match n.size(4, 0)? {
                0 => Op::Lrn(Lrn { size, k, alpha, alpha_div_n: true, beta, towers: 1 }),
                // Within a map, Caffe's k is always 1.
                _ => Op::SpatialLrn(SpatialLrn { size, k: 1.0, alpha, alpha_div_n: true, beta }),
            }
        }
        Kind::Dropout => {
            let rate = Numbers::of(layer.dropout)?.float(1, 0.5)?;
            Op::Dropout(Dropout { rate, inverted: true })
        }
        Kind::Power => {
            let n = Numbers::of(layer.power)?;
            let (power, scale, shift) = (n.float(1, 1.0)?, n.float(2, 1.0)?, n.float(3, 0.0)?);
            if power != 1.0 || shift != 0.0 || !(scale > 0.0 && scale <= 1.0) {
                return Err("a power that is no factor between 0 and 1".into());
            }
            // The factor that dropout has in use when it is not inverted.
            Op::Dropout(Dropout { rate: 1.0 - scale, inverted: false })
        }
        Kind::Relu => RELU,
        Kind::Tanh => Op::Activation(Activation::Tanh),
        Kind::Sigmoid => Op::Activation(Activation::Logistic),
        Kind::AbsVal | Kind::Nothing | Kind::Outside | Kind::Softmax | Kind::Unknown => {
            return Err("no operation".into());
        }
    })
}

/// Reads a mean picture (`.binaryproto`): blue, green and red planes of one size. The answer is (side, side, 3) with red
/// first, as [`crate::data::Mean::Picture`] has it, and the side.
pub fn read_mean(file: &[u8]) -> Result<(Vec<f32>, usize), String> {
    let tensor = blob(file, "mean".into())?;
    let shape: Vec<usize> = tensor.shape.iter().copied().skip_while(|&n| n == 1).collect();
    let [3, h, w] = shape[..] else {
        return Err(format!(
            "a mean of {} is no picture of three channels",
            super::foreign::sizes(&tensor.shape)
        ));
    };
    if h != w || h > 1024 {
        return Err(format!("a mean picture of {w}×{h} pixels; it must be a square of at most 1024"));
    }
    let planes = tensor.values().map_err(|e| e.to_string())?;
    let mut picture = Vec::with_capacity(planes.len());
    for at in 0..h * w {
        picture.extend([2, 1, 0].map(|plane| planes[plane * h * w + at]));
    }
    Ok((picture, h))
}

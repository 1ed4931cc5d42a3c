//! ONNX files of AlexNets: the initializers as tensors, the nodes as a chain of layers. Field numbers are those of
//! `onnx.proto`. Written by [`super::export::onnx`].

mod nodes;

use super::foreign::{ChannelOrder, Dtype, Foreign, ForeignTensor, Format, MAX_AXES, MAX_TENSORS, short};
use super::wire::Fields;
use crate::net::Shape;
use std::borrow::Cow;

/// Reads an ONNX file.
pub fn read(file: &[u8]) -> Result<Foreign<'_>, String> {
    let mut graph = None;
    let mut about = Vec::new();
    let mut own = [None, None, None];
    let mut producer = String::new();
    for field in Fields::of(file) {
        let (number, value) = field?;
        match number {
            1 => about.push(("ir_version".to_string(), value.integer()?.to_string())),
            2 => producer = value.text()?,
            3 => about.push(("producer_version".to_string(), short(&value.text()?))),
            4..=6 => {}
            7 => graph = Some(value.bytes()?),
            8 => {
                let mut version = 0;
                for field in Fields::of(value.bytes()?) {
                    match field? {
                        (1, domain) if !domain.bytes()?.is_empty() && domain.bytes()? != b"ai.onnx" => {
                            version = -1
                        }
                        (2, number) if version == 0 => version = number.integer()?,
                        _ => {}
                    }
                }
                if version > 0 {
                    about.push(("opset".to_string(), version.to_string()));
                }
            }
            14 => {
                let (mut key, mut text): (&[u8], &[u8]) = (&[], &[]);
                for field in Fields::of(value.bytes()?) {
                    match field? {
                        (1, value) => key = value.bytes()?,
                        (2, value) => text = value.bytes()?,
                        _ => {}
                    }
                }
                let keys = [&b"alexnet.network"[..], b"alexnet.preprocess", b"alexnet.classes"];
                if let Some(at) = keys.iter().position(|k| *k == key) {
                    if text.len() > 4 << 20 {
                        return Err(format!("{} bytes of metadata", text.len()));
                    }
                    own[at] = Some(String::from_utf8_lossy(text).into_owned());
                }
            }
            20 | 25 | 26 => {}
            other => return Err(format!("a model has no field {other}: this is no ONNX file")),
        }
        if about.len() > 64 {
            return Err("it says too much about itself".into());
        }
    }
    let graph = graph.ok_or("it holds no graph")?;
    let parts = parts(graph)?;
    if parts.tensors.is_empty() {
        return Err("its graph holds no weights".into());
    }
    // Caffe's networks, also when they have become ONNX, take blue first.
    let from_caffe = producer.to_ascii_lowercase().contains("caffe");
    if !producer.is_empty() {
        about.insert(0, ("producer".to_string(), short(&producer)));
    }
    let chain = nodes::chain(&parts);
    let mut foreign = Foreign::new(Format::Onnx, parts.tensors);
    // Tensors that stand transposed in the file are turned where the chain says so.
    foreign.graph = Some(match chain {
        Ok((graph, turned)) => {
            foreign.tensors.extend(turned);
            Ok(graph)
        }
        Err(why) => Err(why),
    });
    foreign.channels = Some(if from_caffe { ChannelOrder::Bgr } else { ChannelOrder::Rgb });
    foreign.about = about;
    [foreign.network, foreign.preprocess, foreign.classes] = own;
    Ok(foreign)
}

/// A graph's parts.
pub(super) struct Parts<'a> {
    pub name: String,
    pub nodes: Vec<Node<'a>>,
    pub tensors: Vec<ForeignTensor<'a>>,
    /// Inputs that are no initializers, with their sizes.
    pub inputs: Vec<(String, Option<Shape>)>,
}

/// A node of a graph.
pub(super) struct Node<'a> {
    pub name: String,
    pub op: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// Name and message of each attribute.
    pub attributes: Vec<(String, &'a [u8])>,
}

/// The most nodes of a graph; the longest of ours has 60.
const MAX_NODES: usize = 2048;
/// The most inputs, outputs or attributes of a node.
const MAX_ENDS: usize = 64;

fn parts(message: &[u8]) -> Result<Parts<'_>, String> {
    let mut parts = Parts { name: String::new(), nodes: vec![], tensors: vec![], inputs: vec![] };
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            1 => {
                let node = node(value.bytes()?)?;
                if parts.nodes.len() >= MAX_NODES {
                    return Err(format!("more than {MAX_NODES} nodes"));
                }
                // A constant with a tensor is an initializer in another place.
                match (node.op.as_str(), node.outputs.first(), node.attribute("value")) {
                    ("Constant", Some(output), Some(attribute)) => {
                        for field in Fields::of(attribute) {
                            if let (5, value) = field? {
                                add(&mut parts.tensors, tensor(value.bytes()?, Some(output))?)?;
                            }
                        }
                    }
                    _ => parts.nodes.push(node),
                }
            }
            2 => parts.name = value.text()?,
            5 => add(&mut parts.tensors, tensor(value.bytes()?, None)?)?,
            11 => {
                if parts.inputs.len() >= MAX_TENSORS {
                    return Err(format!("more than {MAX_TENSORS} inputs"));
                }
                parts.inputs.push(input(value.bytes()?)?);
            }
            _ => {}
        }
    }
    let Parts { tensors, inputs, .. } = &mut parts;
    let names: std::collections::BTreeSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    inputs.retain(|(name, _)| !names.contains(name.as_str()));
    if names.len() != tensors.len() {
        return Err("two of its tensors have one name".into());
    }
    Ok(parts)
}

fn add<'a>(tensors: &mut Vec<ForeignTensor<'a>>, tensor: Option<ForeignTensor<'a>>) -> Result<(), String> {
    if tensors.len() >= MAX_TENSORS {
        return Err(format!("more than {MAX_TENSORS} tensors"));
    }
    tensors.extend(tensor);
    Ok(())
}

impl<'a> Node<'a> {
    /// The message of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&'a [u8]> {
        self.attributes.iter().find(|(n, _)| n == name).map(|&(_, message)| message)
    }
}

fn node(message: &[u8]) -> Result<Node<'_>, String> {
    let mut node =
        Node { name: String::new(), op: String::new(), inputs: vec![], outputs: vec![], attributes: vec![] };
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            1 => node.inputs.push(value.text()?),
            2 => node.outputs.push(value.text()?),
            3 => node.name = value.text()?,
            4 => node.op = value.text()?,
            5 => {
                let message = value.bytes()?;
                let mut name = String::new();
                for field in Fields::of(message).take(8) {
                    if let (1, value) = field? {
                        name = value.text()?;
                        break;
                    }
                }
                node.attributes.push((name, message));
            }
            7 if !value.bytes()?.is_empty() && value.bytes()? != b"ai.onnx" => {
                return Err(format!(
                    "a node of the domain {}, which is not ONNX's own",
                    short(&value.text()?)
                ));
            }
            _ => {}
        }
        if node.inputs.len().max(node.outputs.len()).max(node.attributes.len()) > MAX_ENDS {
            return Err(format!("a node with more than {MAX_ENDS} inputs, outputs or attributes"));
        }
    }
    Ok(node)
}

/// A tensor; `None` for one of texts or the like, which no weights are.
fn tensor<'a>(message: &'a [u8], name: Option<&String>) -> Result<Option<ForeignTensor<'a>>, String> {
    let mut own_name = String::new();
    let mut dims = Vec::new();
    let mut kind = 0;
    let empty = || Cow::Borrowed(&[][..]);
    let (mut raw, mut typed): (Cow<[u8]>, Cow<[u8]>) = (empty(), empty());
    let mut integers: Vec<i64> = Vec::new();
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            1 => value.integers(&mut dims, MAX_AXES)?,
            2 => kind = value.integer()?,
            4 | 10 => value.elements(&mut typed)?,
            // Shapes of a reshape: few numbers. No weights are stored so.
            5 | 7 => value.integers(&mut integers, 1 << 16)?,
            8 => own_name = value.text()?,
            9 => raw = Cow::Borrowed(value.bytes()?),
            13 => {
                return Err(
                    "its weights are in another file, which is not opened; save the model as one file".into(),
                );
            }
            14 if value.integer()? != 0 => {
                return Err(
                    "its weights are in another file, which is not opened; save the model as one file".into(),
                );
            }
            _ => {}
        }
    }
    let name = name.cloned().unwrap_or(own_name);
    let dtype = match kind {
        1 => Dtype::F32,
        10 => Dtype::F16,
        11 => Dtype::F64,
        16 => Dtype::Bf16,
        2 | 3 | 9 => Dtype::Integer(1),
        4 | 5 => Dtype::Integer(2),
        6 | 12 => Dtype::Integer(4),
        7 | 13 => Dtype::Integer(8),
        _ => return Ok(None),
    };
    let shape: Vec<usize> = dims
        .iter()
        .map(|&n| usize::try_from(n).map_err(|_| format!("tensor {}: a size of {n}", short(&name))))
        .collect::<Result<_, _>>()?;
    let bytes = match (raw.is_empty(), dtype) {
        (false, _) => raw,
        (true, Dtype::F32 | Dtype::F64) => typed,
        (true, Dtype::Integer(8)) => integers.iter().flat_map(|n| n.to_le_bytes()).collect(),
        // Small types stand one to a number, whatever their size; they are no weights here.
        (true, _) => return Ok(None),
    };
    ForeignTensor::new(name, shape, dtype, bytes).map(Some)
}

fn input(message: &[u8]) -> Result<(String, Option<Shape>), String> {
    let mut name = String::new();
    let mut dims = Vec::new();
    for field in Fields::of(message) {
        match field? {
            (1, value) => name = value.text()?,
            // TypeProto.tensor_type.shape.dim.dim_value
            (2, value) => {
                for shape in inner(value.bytes()?, 1)?.into_iter().map(|tensor| inner(tensor, 2)) {
                    for dim in shape?.into_iter().map(|shape| inner(shape, 1)) {
                        for dim in dim? {
                            let mut size = None;
                            for field in Fields::of(dim) {
                                if let (1, value) = field? {
                                    size = Some(value.size()?);
                                }
                            }
                            if dims.len() >= MAX_AXES {
                                return Err(format!("an input of more than {MAX_AXES} axes"));
                            }
                            dims.push(size);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    let shape = match dims[..] {
        [_, Some(c), Some(h), Some(w)] => Some(Shape::new(c, h, w)),
        _ => None,
    };
    Ok((name, shape))
}

/// The messages that a message has under a field's number; a handful at most.
fn inner(message: &[u8], wanted: u64) -> Result<Vec<&[u8]>, String> {
    let mut found = Vec::new();
    for field in Fields::of(message) {
        let (number, value) = field?;
        if number == wanted {
            if found.len() >= MAX_AXES {
                return Err("a description of sizes that is not understood".into());
            }
            found.push(value.bytes()?);
        }
    }
    Ok(found)
}

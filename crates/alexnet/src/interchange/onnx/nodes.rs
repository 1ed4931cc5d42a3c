//! From an ONNX graph's nodes to a chain of this library's layers.

use super::super::foreign::{ForeignTensor, Graph, short};
use super::super::graph::{Chain, RELU, linear, rounding_for};
use super::super::wire::Fields;
use super::{Node, Parts};
use crate::net::{Activation, Conv, Dropout, Init, Lrn, Op, Pad, Pool, PoolKind, Rounding, Shape, Ties};

/// The numbers of an attribute: those of a list, or the one that stands alone.
fn integers(node: &Node, name: &str) -> Result<Vec<usize>, String> {
    let mut list = Vec::new();
    if let Some(message) = node.attribute(name) {
        for field in Fields::of(message) {
            if let (3 | 8, value) = field? {
                value.integers(&mut list, 8)?;
            }
        }
    }
    list.into_iter()
        .map(|n| {
            usize::try_from(n).ok().filter(|&n| n < 1 << 20).ok_or_else(|| format!("{} {n}", short(name)))
        })
        .collect()
}

fn integer(node: &Node, name: &str, default: usize) -> Result<usize, String> {
    Ok(integers(node, name)?.first().copied().unwrap_or(default))
}

fn float(node: &Node, name: &str, default: f32) -> Result<f64, String> {
    let mut number = default;
    if let Some(message) = node.attribute(name) {
        for field in Fields::of(message) {
            if let (2, value) = field? {
                number = value.float()?;
            }
        }
    }
    // Through the decimals that were typed: 1e-4 as f32 is not 1e-4 as f64.
    Ok(number.to_string().parse().unwrap_or(f64::from(number)))
}

fn text(node: &Node, name: &str) -> Result<String, String> {
    let mut text = String::new();
    if let Some(message) = node.attribute(name) {
        for field in Fields::of(message) {
            if let (4, value) = field? {
                text = value.text()?;
            }
        }
    }
    Ok(text)
}

/// One number for both axes.
fn square(node: &Node, name: &str, default: usize) -> Result<usize, String> {
    match integers(node, name)?[..] {
        [] => Ok(default),
        [a, b] if a == b => Ok(a),
        _ => Err(format!("{} that are not the same for rows and columns", short(name))),
    }
}

/// Zeros before and after, the same for rows and columns: `pads` lists top, left, bottom, right.
fn pads(node: &Node) -> Result<Pad, String> {
    match text(node, "auto_pad")?.as_str() {
        "" | "NOTSET" => {}
        "VALID" => return Ok(Pad::default()),
        other => return Err(format!("auto_pad {}", short(other))),
    }
    match integers(node, "pads")?[..] {
        [] => Ok(Pad::default()),
        [top, left, bottom, right] if top == left && bottom == right => {
            Ok(Pad { before: top, after: bottom })
        }
        _ => Err("pads that are not the same for rows and columns".into()),
    }
}

/// A chain, and the tensors that had to be turned for it; their numbers follow those of the graph's tensors.
type Turned<'a> = (Graph, Vec<ForeignTensor<'a>>);

/// The chain of layers that the graph is.
pub(super) fn chain<'a>(parts: &Parts<'a>) -> Result<Turned<'a>, String> {
    let [(blob, shape)] = &parts.inputs[..] else {
        return Err(format!("it has {} inputs, not one", parts.inputs.len()));
    };
    let input = shape.ok_or("the size of its input is not fixed")?;
    let mut chain = Chain::new(input, blob.clone());
    let mut all = parts.tensors.clone();
    for (at, node) in parts.nodes.iter().enumerate() {
        let name = if node.name.is_empty() { format!("{}{at}", node.op) } else { node.name.clone() };
        let fail = |why: String| format!("node {} ({}): {why}", short(&name), short(&node.op));
        let output = node.outputs.first().cloned().unwrap_or_default();
        // Sizes for a reshape are computed beside the chain.
        if matches!(node.op.as_str(), "Shape" | "Gather" | "Unsqueeze" | "Concat" | "Constant" | "Cast")
            && !node.inputs.first().is_some_and(|input| chain.ends_in(input) && node.op != "Shape")
        {
            continue;
        }
        let tensor = |place: usize, all: &[ForeignTensor]| {
            node.inputs.get(place).and_then(|input| all.iter().position(|t| &t.name == input))
        };
        // Biases that are added on their own.
        if node.op == "Add" {
            let place = usize::from(node.inputs.first().is_some_and(|input| chain.ends_in(input)));
            match (tensor(place, &all), chain.last(), node.inputs.get(1 - place)) {
                (Some(bias), Some(Op::Linear(_)), Some(input)) if chain.ends_in(input) => {
                    chain.set_bias(bias);
                    chain.rename(output);
                    continue;
                }
                _ => return Err(fail("an addition that is no bias".into())),
            }
        }
        if !node.inputs.first().is_some_and(|input| chain.ends_in(input)) {
            return Err(fail("it does not read what the node before it makes".into()));
        }
        let Some(op) = operation(node, &chain, &mut all).map_err(fail)? else {
            chain.rename(output);
            continue;
        };
        let tensors = match &op {
            Op::Conv(_) => (tensor(1, &all), tensor(2, &all)),
            // The weight of a matrix product that stands transposed has been turned and put last.
            Op::Linear(_) => match turned(node)? {
                true => (Some(all.len() - 1), tensor(2, &all)),
                false => (tensor(1, &all), tensor(2, &all)),
            },
            _ => (None, None),
        };
        chain.push(&name, op, output, tensors)?;
    }
    let graph = chain.finish(&parts.name, input, &all)?;
    Ok((graph, all.split_off(parts.tensors.len())))
}

/// Whether a matrix product's weights stand as (inputs, outputs).
fn turned(node: &Node) -> Result<bool, String> {
    Ok(node.op == "MatMul" || integer(node, "transB", 0)? == 0)
}

/// What a node computes; `None` if it changes nothing that matters.
fn operation<'a>(node: &Node, chain: &Chain, all: &mut Vec<ForeignTensor<'a>>) -> Result<Option<Op>, String> {
    let input = chain.shape();
    Ok(Some(match node.op.as_str() {
        "Conv" => {
            if integers(node, "dilations")?.iter().any(|&d| d != 1) {
                return Err("dilated windows".into());
            }
            let weight = node.inputs.get(1).and_then(|name| all.iter().find(|t| &t.name == name));
            let [filters, _, kernel, _] = weight.ok_or("its weights are not in the file")?.shape[..] else {
                return Err("weights that have not four axes".into());
            };
            Op::Conv(Conv {
                filters,
                kernel: square(node, "kernel_shape", kernel)?,
                stride: square(node, "strides", 1)?,
                pad: pads(node)?,
                groups: integer(node, "group", 1)?,
                rounding: Rounding::Floor,
                weight: Init::FanIn,
                bias: Init::FanIn,
            })
        }
        "Gemm" | "MatMul" => {
            if float(node, "alpha", 1.0)? != 1.0
                || float(node, "beta", 1.0)? != 1.0
                || integer(node, "transA", 0)? != 0
            {
                return Err("a product with factors".into());
            }
            let weight = node.inputs.get(1).and_then(|name| all.iter().find(|t| &t.name == name));
            let weight = weight.ok_or("its weights are not in the file")?;
            let [rows, columns] = weight.shape[..] else {
                return Err("weights that have not two axes".into());
            };
            if turned(node)? {
                let turned = weight.transposed()?;
                all.push(turned);
                linear(columns)
            } else {
                linear(rows)
            }
        }
        "MaxPool" | "AveragePool" => pool(node, input)?,
        "GlobalAveragePool" | "GlobalMaxPool" if input.h == 1 && input.w == 1 => return Ok(None),
        "LRN" => Op::Lrn(Lrn {
            size: integer(node, "size", 5)?,
            k: float(node, "bias", 1.0)?,
            alpha: float(node, "alpha", 1e-4)?,
            alpha_div_n: true,
            beta: float(node, "beta", 0.75)?,
            towers: 1,
        }),
        "Relu" => RELU,
        "Tanh" => Op::Activation(Activation::Tanh),
        "Sigmoid" => Op::Activation(Activation::Logistic),
        "Abs" if chain.last() == Some(&Op::Activation(Activation::Tanh)) => {
            return Err("an absolute value; name the network with --net".into());
        }
        "Dropout" => Op::Dropout(Dropout { rate: 0.5, inverted: true }),
        "Flatten" | "Reshape" | "Identity" | "Softmax" | "Squeeze" => return Ok(None),
        _ => return Err("it has no counterpart here".into()),
    }))
}

fn pool(node: &Node, input: Shape) -> Result<Op, String> {
    let kind = if node.op == "MaxPool" { PoolKind::Max } else { PoolKind::Average };
    let (size, stride) = (square(node, "kernel_shape", 0)?, square(node, "strides", 1)?);
    let pad = pads(node)?;
    if pad.before != 0 || integers(node, "dilations")?.iter().any(|&d| d != 1) {
        return Err("pooling with padding before the map, or dilated".into());
    }
    if stride == 0 || input.h != input.w {
        return Err("pooling over a map that is not square, or with no stride".into());
    }
    let covered = (input.h + pad.after).checked_sub(size).ok_or("windows larger than the map")?;
    let count =
        if integer(node, "ceil_mode", 0)? == 1 { covered.div_ceil(stride) } else { covered / stride } + 1;
    // Padding behind a map is what rounding up does here, as long as a window still covers something of the map.
    let rounding =
        rounding_for(input.h, size, stride, count).ok_or("more padding than rounding up explains")?;
    if kind == PoolKind::Average
        && (rounding == Rounding::Ceil || pad.after != 0)
        && integer(node, "count_include_pad", 0)? != 0
    {
        return Err("an average that counts the padding".into());
    }
    Ok(Op::Pool(Pool { kind, size, stride, rounding, ties: Ties::First }))
}

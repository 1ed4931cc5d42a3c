//! `alexnet nets`: the networks, and one of them layer by layer.

use crate::args::Nets;
use crate::failure::Outcome;
use crate::plan;
use crate::terminal::{bytes, count, print_line, table};
use alexnet::net::{Network, Op, Pad, Pool, PoolKind, Traced};
use alexnet::{Result, zoo};
use serde_json::{Value, json};

/// The batch that memory is given for: the paper's.
const BATCH: usize = 128;

/// Bytes of an f32.
const ELEMENT_BYTES: usize = 4;

pub fn run(args: Nets) -> Outcome {
    let text = match (&args.net, args.json) {
        (None, false) => list(&zoo::all())?,
        (None, true) => list_json(&zoo::all())?.to_string(),
        (Some(name), json) => {
            let net = plan::network(name, None)?;
            if json { describe_json(&net)?.to_string() } else { describe(&net)? }
        }
    };
    Ok(print_line(&text)?)
}

fn list(nets: &[Network]) -> Result<String> {
    let mut rows = vec![
        ["name", "input", "classes", "parameters", "multiply-adds", "source"].map(String::from).to_vec(),
    ];
    for net in nets {
        rows.push(vec![
            net.name.clone(),
            net.input.to_string(),
            count(net.classes()),
            count(net.params()?),
            count(net.macs()?),
            net.source.clone(),
        ]);
    }
    let right = [false, true, true, true, true, false];
    Ok(format!("{}\n\n`alexnet nets NAME` prints one layer by layer.", table(&rows, &right)))
}

fn list_json(nets: &[Network]) -> Result<Value> {
    let entry = |net: &Network| {
        Ok(json!({
            "name": net.name,
            "source": net.source,
            "input": [net.input.c, net.input.h, net.input.w],
            "classes": net.classes(),
            "parameters": net.params()?,
            "multiply_adds": net.macs()?,
        }))
    };
    Ok(json!({ "networks": nets.iter().map(entry).collect::<Result<Vec<_>>>()? }))
}

/// Kernel, stride and padding of a layer that has windows.
struct Window {
    kernel: usize,
    stride: usize,
    pad: Pad,
    /// Zero rows and columns that the last window reads beyond the padded input, or that a pooling window lacks.
    overhang: usize,
}

fn window(t: &Traced) -> Option<Window> {
    let beyond = |kernel: usize, stride: usize, pad: Pad| {
        let end = (t.output.h - 1) * stride + kernel;
        Window { kernel, stride, pad, overhang: end.saturating_sub(t.input.h + pad.before + pad.after) }
    };
    match &t.layer.op {
        Op::Conv(c) => Some(beyond(c.kernel, c.stride, c.pad)),
        Op::Pool(p) => Some(beyond(p.size, p.stride, Pad::default())),
        Op::Activation(_)
        | Op::Lrn(_)
        | Op::SpatialLrn(_)
        | Op::Linear(_)
        | Op::Dropout(_)
        | Op::BatchNorm(_) => None,
    }
}

impl Window {
    /// `11×11 / 4 / 0+3`: kernel, stride, padding and overhang.
    fn words(&self) -> String {
        let pad = match self.pad {
            Pad { before, after } if before == after => before.to_string(),
            Pad { before, after } => format!("{before},{after}"),
        };
        let overhang = if self.overhang > 0 { format!("+{}", self.overhang) } else { String::new() };
        format!("{0}×{0} / {1} / {pad}{overhang}", self.kernel, self.stride)
    }
}

fn groups(op: &Op) -> Option<usize> {
    match op {
        Op::Conv(c) => Some(c.groups),
        Op::Lrn(l) => Some(l.towers),
        _ => None,
    }
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Pool(Pool { kind: PoolKind::Max, .. }) => "max pool",
        Op::Pool(Pool { kind: PoolKind::Average, .. }) => "average pool",
        other => other.kind(),
    }
}

/// Bytes of one layer's outputs for a batch.
fn activation_bytes(t: &Traced) -> usize {
    t.output.len() * BATCH * ELEMENT_BYTES
}

/// Bytes that training needs at the least: weights, momentum and gradients, and every layer's activations.
struct Memory {
    weights: usize,
    activations: usize,
    input: usize,
}

impl Memory {
    fn of(net: &Network, trace: &[Traced]) -> Self {
        Memory {
            weights: trace.iter().map(|t| t.params() * ELEMENT_BYTES).sum(),
            activations: trace.iter().map(activation_bytes).sum(),
            input: net.input.len() * BATCH * ELEMENT_BYTES,
        }
    }
}

fn describe(net: &Network) -> Result<String> {
    let trace = net.trace()?;
    let head = ["layer", "type", "output", "kernel / stride / pad", "groups", "parameters", "multiply-adds"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows[0].push(format!("memory, batch {BATCH}"));
    let number = |n: usize| if n == 0 { String::new() } else { count(n) };
    let memory = Memory::of(net, &trace);
    let empty = String::new;
    rows.push(vec![
        "input".into(),
        empty(),
        net.input.to_string(),
        empty(),
        empty(),
        empty(),
        empty(),
        bytes(memory.input as u64),
    ]);
    for t in &trace {
        rows.push(vec![
            t.layer.name.clone(),
            kind(&t.layer.op).into(),
            t.output.to_string(),
            window(t).map_or_else(empty, |w| w.words()),
            groups(&t.layer.op).map_or_else(empty, |g| g.to_string()),
            number(t.params()),
            number(t.macs),
            bytes(activation_bytes(t) as u64),
        ]);
    }
    let (params, macs) = (trace.iter().map(Traced::params).sum(), trace.iter().map(|t| t.macs).sum());
    rows.push(vec![
        "total".into(),
        empty(),
        empty(),
        empty(),
        empty(),
        count(params),
        count(macs),
        bytes((memory.activations + memory.input) as u64),
    ]);
    let right = [false, false, true, false, true, true, true, true];
    Ok(format!(
        "{}: {}\n\n{}\n\nLoss: {}. Groups of a norm are its towers; n+m in pad is an overhang of m.\n\
         Weights {}, the same again for momentum. Memory counts every layer's outputs as f32; a plan that fuses layers \
         needs less.",
        net.name,
        net.source,
        table(&rows, &right),
        loss_words(net),
        bytes(memory.weights as u64),
    ))
}

fn loss_words(net: &Network) -> &'static str {
    match net.loss {
        alexnet::net::Loss::Softmax => "softmax cross-entropy",
        alexnet::net::Loss::Logistic => "independent logistic units",
    }
}

fn describe_json(net: &Network) -> Result<Value> {
    let trace = net.trace()?;
    let memory = Memory::of(net, &trace);
    let layers: Vec<Value> = trace
        .iter()
        .map(|t| {
            let w = window(t);
            json!({
                "name": t.layer.name,
                "type": t.layer.op.kind(),
                "output": [t.output.c, t.output.h, t.output.w],
                "kernel": w.as_ref().map(|w| w.kernel),
                "stride": w.as_ref().map(|w| w.stride),
                "pad": w.as_ref().map(|w| [w.pad.before, w.pad.after]),
                "groups": groups(&t.layer.op),
                "weight": t.weight,
                "parameters": t.params(),
                "multiply_adds": t.macs,
                "activation_bytes": activation_bytes(t),
            })
        })
        .collect();
    Ok(json!({
        "name": net.name,
        "source": net.source,
        "input": [net.input.c, net.input.h, net.input.w],
        "classes": net.classes(),
        "parameters": net.params()?,
        "multiply_adds": net.macs()?,
        "batch": BATCH,
        "weight_bytes": memory.weights,
        "activation_bytes": memory.activations + memory.input,
        "layers": layers,
        "toml": net.to_toml(),
    }))
}

//! Which network a file's tensors belong to, and which tensor belongs to which layer.
//!
//! The strongest evidence comes first: a network that this program wrote into the file; the layers that the file lists
//! (Caffe, ONNX); torchvision's names; any names or none, by shapes in order. Where several networks of the zoo fit, that
//! is said, and `--net` decides.

use super::foreign::{Foreign, Graph, sizes};
use super::graph::{same_computation, same_shape};
use crate::error::{Error, Result};
use crate::exec::contract::{Params, Role};
use crate::net::{Network, Op};
use crate::zoo;

/// torchvision's names of the layers with weights, first to last.
pub const TORCHVISION: [&str; 8] = [
    "features.0",
    "features.3",
    "features.6",
    "features.8",
    "features.10",
    "classifier.1",
    "classifier.4",
    "classifier.6",
];

/// A network found for a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Recognised {
    /// The network, for the file's number of classes.
    pub net: Network,
    /// How it was recognized, in words.
    pub how: String,
    /// For each parameter, in the order of [`Params::shapes`], the index of its tensor.
    pub tensors: Vec<usize>,
    /// Names of tensors that belong to no layer.
    pub unused: Vec<String>,
}

/// Finds the network, or checks that `forced` fits.
///
/// # Errors
/// [`Error::Checkpoint`] if none fits, with what was found, or [`Error::Config`] if several do, with their names.
pub fn recognise(foreign: &Foreign, forced: Option<&Network>) -> Result<Recognised> {
    if let Some(net) = forced {
        let (tensors, by) = assign(foreign, net).map_err(|why| {
            Error::Checkpoint(format!("the weights do not fit network {}: {why}", net.name))
        })?;
        return Ok(found(foreign, net.clone(), tensors, format!("as told; tensors by {by}")));
    }
    if let Some(text) = &foreign.network {
        let net = Network::from_toml(text, "the network in the file")
            .map_err(|e| Error::Checkpoint(e.to_string()))?;
        let (tensors, _) = assign(foreign, &net).map_err(|why| {
            Error::Checkpoint(format!("the weights do not fit the network in the file: {why}"))
        })?;
        return Ok(found(foreign, net, tensors, "this program wrote its network into the file".into()));
    }
    let beside = match &foreign.graph {
        Some(Ok(graph)) => return by_graph(foreign, graph),
        Some(Err(why)) => format!(" (the layers that the file lists cannot be taken as they are: {why})"),
        None => String::new(),
    };
    let bare: Vec<String> = foreign.tensors.iter().map(|t| bare_name(&t.name)).collect();
    let torchvision = TORCHVISION.iter().all(|name| bare.contains(&format!("{name}.weight")));
    let mut fitting = Vec::new();
    let mut nearest: Option<(usize, String)> = None;
    for name in zoo::names().filter(|&name| !torchvision || name == "torchvision") {
        for classes in class_counts(foreign) {
            let net = zoo::by_name(name, classes)?;
            match assign(foreign, &net) {
                Ok((tensors, by)) => fitting.push((net, tensors, by)),
                Err(why) => {
                    let fits = why.layers_that_fit;
                    if nearest.as_ref().is_none_or(|(most, _)| fits > *most) {
                        nearest = Some((fits, format!("nearest is {name}: {why}")));
                    }
                }
            }
        }
    }
    let named = |net: &Network| foreign.about.iter().any(|(key, value)| key == "name" && *value == net.name);
    if fitting.len() > 1 && fitting.iter().filter(|(net, _, _)| named(net)).count() == 1 {
        fitting.retain(|(net, _, _)| named(net));
    }
    match fitting.len() {
        1 => {
            let (net, tensors, by) = fitting.swap_remove(0);
            let how = if torchvision {
                "torchvision's names".into()
            } else {
                format!("the only one that fits, by {by}")
            };
            Ok(found(foreign, net, tensors, format!("{how}{beside}")))
        }
        0 => {
            let near = nearest.map_or_else(String::new, |(_, words)| format!("; {words}"));
            Err(Error::Checkpoint(format!(
                "no network of `alexnet nets` has these weights ({}){beside}{near}; describe the network in a file and \
                 name it with --net",
                summary(foreign)
            )))
        }
        _ => {
            let names: Vec<&str> = fitting.iter().map(|(net, _, _)| net.name.as_str()).collect();
            Err(Error::Config(format!(
                "the weights fit {}, which differ in what has no weights{beside}; say which one it is with --net",
                names.join(" and ")
            )))
        }
    }
}

fn found(foreign: &Foreign, net: Network, tensors: Vec<usize>, how: String) -> Recognised {
    let is_used = |at: usize| {
        tensors.iter().any(|&t| {
            t == at
                || foreign.tensors[t].name.strip_suffix(super::foreign::TURNED)
                    == Some(&foreign.tensors[at].name)
        })
    };
    let unused = (0..foreign.tensors.len())
        .filter(|&at| !is_used(at) && !foreign.tensors[at].is_turned())
        .map(|at| foreign.tensors[at].name.clone())
        .collect();
    Recognised { net, how, tensors, unused }
}

/// The zoo's network that computes what the file's layers compute, or those layers themselves.
fn by_graph(foreign: &Foreign, graph: &Graph) -> Result<Recognised> {
    let classes = graph.net.classes();
    let published = zoo::names().map(|name| zoo::by_name(name, classes));
    for net in published.collect::<Result<Vec<_>>>()? {
        let sized = Network { input: graph.net.input, ..net.clone() };
        if !same_computation(&graph.net, &net) && !same_computation(&graph.net, &sized) {
            continue;
        }
        // A network that this program wrote for Caffe has a larger input, whose margin is zeros.
        let named = foreign.about.iter().any(|(key, value)| key == "name" && *value == net.name);
        let (net, size) = match named || net.input == graph.net.input {
            true => (net, String::new()),
            false => (sized, format!(", with an input of {}", graph.net.input)),
        };
        if let Ok((tensors, _)) = assign(foreign, &net) {
            return Ok(found(foreign, net, tensors, format!("the layers that the file lists{size}")));
        }
    }
    let net = tidy(&graph.net);
    let (tensors, _) = assign(foreign, &net).map_err(|why| Error::Checkpoint(why.to_string()))?;
    Ok(found(
        foreign,
        net,
        tensors,
        "no published network; its layers are taken as the file lists them".into(),
    ))
}

/// The same layers under names of this library: conv1, relu1, pool1, … fc6.
fn tidy(net: &Network) -> Network {
    let mut net = net.clone();
    let mut with_weights = 0;
    let mut used = std::collections::BTreeSet::new();
    for layer in &mut net.layers {
        let kind = match &layer.op {
            Op::Conv(_) => "conv",
            Op::Linear(_) => "fc",
            Op::Pool(_) => "pool",
            Op::Lrn(_) | Op::SpatialLrn(_) => "norm",
            Op::Dropout(_) => "drop",
            Op::BatchNorm(_) => "bn",
            Op::Activation(_) => layer.op.kind(),
        };
        with_weights += usize::from(matches!(layer.op, Op::Conv(_) | Op::Linear(_)));
        layer.name = format!("{kind}{with_weights}");
        while !used.insert(layer.name.clone()) {
            layer.name.push('b');
        }
    }
    if net.name.trim().is_empty() {
        net.name = "imported".into();
    }
    net
}

/// Why tensors do not fit a network.
struct Misfit {
    why: String,
    /// Layers before the first that does not fit.
    layers_that_fit: usize,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

type Assigned = (Vec<usize>, &'static str);

/// The tensor of every parameter of `net`, and by what it was found.
fn assign(foreign: &Foreign, net: &Network) -> std::result::Result<Assigned, Misfit> {
    let misfit = |why: String| Misfit { why, layers_that_fit: 0 };
    let params = Params::shapes(net).map_err(|e| misfit(e.to_string()))?;
    let mut layers: Vec<usize> = params.0.iter().map(|p| p.layer).collect();
    layers.dedup();
    // Statistics are found by name alone.
    let pairs_will_do = params.0.iter().all(|p| p.role != Role::Statistic);
    let theirs =
        |p: usize| layers.iter().position(|&layer| layer == params.0[p].layer).map(|at| TORCHVISION[at]);
    let mut first = None;
    let own = names(foreign, &params, |p| net.layers.get(params.0[p].layer).map(|layer| layer.name.as_str()));
    let torchvision = (layers.len() == TORCHVISION.len()).then(|| names(foreign, &params, theirs)).flatten();
    let ways = [
        (own, "their names"),
        (by_listed_layers(foreign).filter(|_| pairs_will_do), "the layers that the file lists"),
        (torchvision, "torchvision's names"),
        (by_order(foreign).filter(|_| pairs_will_do), "their shapes, in order"),
    ];
    for (found, by) in ways.into_iter().filter_map(|(found, by)| Some((found?, by))) {
        match fit(foreign, &params, &found) {
            Ok(()) => return Ok((found, by)),
            Err(why) => drop(first.get_or_insert(why)),
        }
    }
    Err(first.unwrap_or_else(|| misfit("it has no such tensors".into())))
}

/// The tensor of each parameter, whose layer is called what `layer` says; `None` unless all are there.
fn names<'a>(
    foreign: &Foreign,
    params: &Params,
    layer: impl Fn(usize) -> Option<&'a str>,
) -> Option<Vec<usize>> {
    let bare: Vec<String> = foreign.tensors.iter().map(|t| bare_name(&t.name)).collect();
    let found = params.0.iter().enumerate().map(|(at, param)| {
        let suffix = param.name.rsplit('.').next()?;
        let name = format!("{}.{suffix}", layer(at)?);
        bare.iter().position(|b| *b == name)
    });
    found.collect()
}

/// A tensor's name without what wrappers put in front or in between.
fn bare_name(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').filter(|&part| part != "module").collect();
    while parts.len() > 2
        && matches!(parts[0], "model" | "state_dict" | "net" | "network" | "model_state_dict")
    {
        parts.remove(0);
    }
    parts.join(".")
}

fn by_listed_layers(foreign: &Foreign) -> Option<Vec<usize>> {
    match &foreign.graph {
        Some(Ok(graph)) => {
            let pairs = graph.tensors.iter().filter_map(|&(weight, bias)| weight.zip(bias));
            Some(pairs.flat_map(|(weight, bias)| [weight, bias]).collect())
        }
        _ => None,
    }
}

/// Weights are what has several axes, biases what has one, both in order: the file's, or for a format that sorts, by
/// name.
fn by_order(foreign: &Foreign) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..foreign.tensors.len()).collect();
    if foreign.format == super::foreign::Format::Safetensors {
        order.sort_by_cached_key(|&at| natural_key(&foreign.tensors[at].name));
    }
    let axes = |at: usize| foreign.tensors[at].shape.iter().skip_while(|&&n| n == 1).count();
    let weights: Vec<usize> = order.iter().copied().filter(|&at| axes(at) > 1).collect();
    let biases: Vec<usize> = order.iter().copied().filter(|&at| axes(at) == 1).collect();
    let pairs = weights.iter().zip(&biases).flat_map(|(&weight, &bias)| [weight, bias]);
    (weights.len() == biases.len() && !weights.is_empty()).then(|| pairs.collect())
}

/// Sorts `conv10` behind `conv2`.
fn natural_key(name: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (before, after) = rest.split_at(text);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        key.push((0, before.to_string()));
        key.push((number.parse().unwrap_or(u64::MAX), String::new()));
        rest = after;
    }
    key
}

/// Whether the tensors have the parameters' sizes.
fn fit(foreign: &Foreign, params: &Params, found: &[usize]) -> std::result::Result<(), Misfit> {
    for (at, (param, &tensor)) in params.0.iter().zip(found).enumerate() {
        let tensor = &foreign.tensors[tensor];
        if !same_shape(&tensor.shape, &param.shape) {
            let why = format!(
                "{} is {}, and its {} needs {}",
                super::foreign::short(&tensor.name),
                sizes(&tensor.shape),
                param.name,
                sizes(&param.shape)
            );
            return Err(Misfit { why, layers_that_fit: at / 2 });
        }
    }
    if params.0.len() != found.len() {
        let why = format!("{} tensors in the file, {} in the network", found.len(), params.0.len());
        return Err(Misfit { why, layers_that_fit: params.0.len().min(found.len()) / 2 });
    }
    Ok(())
}

/// Numbers of classes that the last layer may have: rows of matrices, and for Caffe's old form of blocks.
fn class_counts(foreign: &Foreign) -> Vec<usize> {
    let mut counts: Vec<usize> = foreign
        .tensors
        .iter()
        .map(|t| t.shape.iter().copied().skip_while(|&n| n == 1).collect::<Vec<_>>())
        .filter(|shape| shape.len() == 2 && shape[0] < 1 << 24)
        .map(|shape| shape[0])
        .collect();
    counts.sort_unstable();
    counts.dedup();
    counts.truncate(8);
    counts
}

/// The sizes of what could be weights.
fn summary(foreign: &Foreign) -> String {
    let shapes: Vec<String> =
        foreign.tensors.iter().filter(|t| t.shape.len() > 1).take(10).map(|t| sizes(&t.shape)).collect();
    match shapes.is_empty() {
        true => "none that have several axes".into(),
        false => shapes.join(", "),
    }
}

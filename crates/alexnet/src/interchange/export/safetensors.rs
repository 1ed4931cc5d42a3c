//! safetensors under torchvision's names for its network, which `load_state_dict` takes as they are, and under this
//! program's (`conv1.weight`, …, `fc8.bias`) for every other. The metadata hold network, preprocessing and class names,
//! and a checksum of each tensor.

use super::{Source, write_file};
use crate::error::Result;
use crate::interchange::graph::same_computation;
use crate::interchange::recognise::TORCHVISION;
use crate::net::{Layer, Network, Op};
use crate::train::tensor_file::{self, TensorRef};
use crate::zoo;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the file.
///
/// # Errors
/// [`crate::Error::Checkpoint`] if it cannot be written, [`crate::Error::Diverged`] if a value is not finite.
pub fn write(source: Source, path: &Path) -> Result<()> {
    let layers: Vec<usize> = source.params.0.iter().filter(|p| p.shape.len() > 1).map(|p| p.layer).collect();
    let torchvision = is_torchvision(source.net);
    let tensors: Vec<TensorRef> = source
        .params
        .0
        .iter()
        .map(|p| {
            let at = layers.iter().position(|&layer| layer == p.layer);
            let suffix = p.name.rsplit('.').next().unwrap_or_default();
            let name = match (torchvision, at.and_then(|at| TORCHVISION.get(at))) {
                (true, Some(theirs)) => format!("{theirs}.{suffix}"),
                _ => p.name.clone(),
            };
            TensorRef { name, shape: &p.shape, data: &p.data }
        })
        .collect();
    let mut metadata: BTreeMap<String, String> =
        source.metadata().into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    // The word by which transformers tells PyTorch's layout.
    metadata.insert("format".into(), "pt".into());
    let header = tensor_file::header(&tensors, &metadata)?;
    write_file(path, |mut out| tensor_file::write(&mut out, &header, &tensors))
}

/// Whether a network is torchvision's, whatever its widths: `torchvision.models.alexnet` with other widths has the same
/// names.
fn is_torchvision(net: &Network) -> bool {
    let width = |layer: &Layer| match &layer.op {
        Op::Conv(conv) => Some(conv.filters),
        Op::Linear(linear) => Some(linear.outputs),
        _ => None,
    };
    let mut widths = net.layers.iter().filter_map(width);
    let mut theirs = Network { input: net.input, ..zoo::torchvision(net.classes()) };
    for layer in &mut theirs.layers {
        let place = match &mut layer.op {
            Op::Conv(conv) => &mut conv.filters,
            Op::Linear(linear) => &mut linear.outputs,
            _ => continue,
        };
        let Some(width) = widths.next() else { return false };
        *place = width;
    }
    same_computation(net, &theirs)
}

//! Weights for elsewhere: safetensors ([`safetensors`]), ONNX ([`onnx`]), Caffe ([`caffe`]). What a format cannot say is
//! refused with the reason; nothing is left out silently.

pub mod caffe;
pub mod onnx;
pub mod safetensors;

use crate::data::Preprocess;
use crate::error::{Error, Result};
use crate::exec::contract::Params;
use crate::net::{Conv, Network, Pool, Rounding};
use crate::train::durable;
use std::io::Write;
use std::path::Path;

/// A model to be written.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The network.
    pub net: &'a Network,
    /// Its weights.
    pub params: &'a Params,
    /// How pictures are prepared for it.
    pub preprocess: &'a Preprocess,
    /// Class names.
    pub classes: &'a [String],
}

impl Source<'_> {
    /// Network, preprocessing and class names as text, which travel in the file's metadata where it has any.
    fn metadata(&self) -> [(&'static str, String); 3] {
        let json = |value: serde_json::Result<String>| value.expect("numbers and texts have a form in JSON");
        [
            ("alexnet.network", self.net.to_toml()),
            ("alexnet.preprocess", json(serde_json::to_string(self.preprocess))),
            ("alexnet.classes", json(serde_json::to_string(self.classes))),
        ]
    }

    /// The elements of a parameter.
    fn values(&self, name: &str) -> Result<&[f32]> {
        let found = self.params.get(name).map(|p| &p.data[..]);
        found.ok_or_else(|| Error::Checkpoint(format!("the model has no tensor {name}")))
    }
}

/// Zeros that a convolution reads behind its input: the padding, or what the last window overhangs.
fn behind(conv: &Conv, extent: usize, count: usize) -> usize {
    match conv.rounding {
        Rounding::Floor => conv.pad.after,
        Rounding::Ceil => ((count - 1) * conv.stride + conv.kernel)
            .saturating_sub(extent + conv.pad.before)
            .max(conv.pad.after),
    }
}

/// How far the last window of a pooling overhangs its input.
fn overhang(pool: &Pool, extent: usize, count: usize) -> usize {
    ((count - 1) * pool.stride + pool.size).saturating_sub(extent)
}

/// Writes a file durably: under another name, synced, renamed.
fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    durable::write(path, |out| write(out), |_| Ok(()))
        .map_err(|e| Error::Checkpoint(format!("{} cannot be written: {e}", path.display())))
}

/// Writes f32 values as little-endian bytes, piece by piece.
fn write_values(out: &mut dyn Write, values: &[f32]) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * values.len().min(65_536));
    for chunk in values.chunks(65_536) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

//! Activations of a layer as a file that Python reads with `safetensors.numpy.load_file`.
//!
//! | tensor | type, shape | |
//! |---|---|---|
//! | `features` | F32 (N, C, H, W), or (N, outputs) of a linear layer | the activations |
//! | `labels` | I64 (N) | class indices; −1 where the picture's folder is no class of the model; absent if none is |
//! | `paths` | U8 (bytes) | UTF-8, each ended by a zero byte |
//!
//! Metadata: `net`, `layer` (the last layer computed), `classes` (JSON).

use crate::error::{Error, Result};
use crate::net::{Network, Op};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The layer at which to stop for the activations called `name`: the layer itself, or the activation function
/// (ReLU or another) that directly follows a convolution or linear layer of that name. So `fc7` means the outputs of
/// `relu7`; `fc8` has none and means the values before the softmax.
///
/// # Errors
/// As [`Network::position`].
pub fn last_layer(net: &Network, name: &str) -> Result<usize> {
    let index = net.position(name)?;
    let follows = matches!(net.layers.get(index + 1).map(|l| &l.op), Some(Op::Activation(_)));
    let computes = matches!(net.layers[index].op, Op::Conv(_) | Op::Linear(_));
    Ok(if computes && follows { index + 1 } else { index })
}

/// Activations of one layer for some pictures.
#[derive(Debug)]
pub struct Features {
    shape: Vec<usize>,
    net: String,
    layer: String,
    classes: Vec<String>,
    values: Vec<f32>,
    labels: Vec<i64>,
    paths: Vec<PathBuf>,
}

impl Features {
    /// None yet, of layer `last` (see [`last_layer`]) of a network with these class names.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn new(net: &Network, last: usize, classes: &[String]) -> Result<Self> {
        let trace = net.trace()?;
        let layer = &trace[last];
        let s = layer.output;
        let flat = trace[..=last].iter().any(|t| matches!(t.layer.op, Op::Linear(_)));
        Ok(Features {
            shape: if flat { vec![s.len()] } else { vec![s.c, s.h, s.w] },
            net: net.name.clone(),
            layer: layer.layer.name.clone(),
            classes: classes.to_vec(),
            values: vec![],
            labels: vec![],
            paths: vec![],
        })
    }

    /// Adds a picture. Its class is known if a folder that it lies in has the name of a class.
    ///
    /// Panics if there are not as many values as the layer has elements.
    pub fn add(&mut self, path: &Path, values: &[f32]) {
        assert_eq!(values.len(), self.shape.iter().product::<usize>(), "one picture's activations");
        let folder = path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        let label = folder.and_then(|name| self.classes.iter().position(|c| *c == name));
        self.labels.push(label.map_or(-1, |l| l as i64));
        self.paths.push(path.to_path_buf());
        self.values.extend_from_slice(values);
    }

    /// Pictures added.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// True if no picture was added.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Elements of one picture, as (C, H, W) or (outputs).
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Writes the file; it appears when it is complete.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn save(&self, out: &Path) -> Result<()> {
        let fail = |why: String| Error::Config(format!("cannot write {}: {why}", out.display()));
        let values: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let labels: Vec<u8> = self.labels.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut paths = Vec::new();
        for path in &self.paths {
            paths.extend_from_slice(path.to_string_lossy().replace('\0', "\\x00").as_bytes());
            paths.push(0);
        }
        let shape: Vec<usize> = std::iter::once(self.len()).chain(self.shape.iter().copied()).collect();
        let view = |dtype, shape, data| TensorView::new(dtype, shape, data).map_err(|e| fail(e.to_string()));
        let mut tensors = vec![
            ("features", view(Dtype::F32, shape, &values)?),
            ("paths", view(Dtype::U8, vec![paths.len()], &paths)?),
        ];
        if self.labels.iter().any(|&l| l >= 0) {
            tensors.push(("labels", view(Dtype::I64, vec![self.labels.len()], &labels)?));
        }
        let metadata = HashMap::from([
            ("net".to_string(), self.net.clone()),
            ("layer".to_string(), self.layer.clone()),
            ("classes".to_string(), serde_json::to_string(&self.classes).map_err(|e| fail(e.to_string()))?),
        ]);
        safetensors::serialize_to_file(tensors, Some(metadata), out).map_err(|e| fail(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;
    use safetensors::SafeTensors;

    #[test]
    fn a_layer_s_name_means_after_its_relu() {
        let net = zoo::alexnet_2012_code(10);
        let named = |name: &str| net.layers[last_layer(&net, name).unwrap()].name.clone();
        assert_eq!(named("fc7"), "relu7");
        assert_eq!(named("conv2"), "relu2");
        // No function of its own follows directly.
        assert_eq!(named("conv1"), "conv1");
        assert_eq!(named("fc8"), "fc8");
        assert_eq!(named("pool1"), "pool1");
        assert!(last_layer(&net, "fc9").unwrap_err().to_string().contains("did you mean"));
    }

    #[test]
    fn the_file_holds_values_paths_and_labels() {
        let net = zoo::alexnet_mini(2);
        let last = last_layer(&net, "pool5").unwrap();
        let mut features = Features::new(&net, last, &["cat".into(), "dog".into()]).unwrap();
        assert_eq!(features.shape(), [64, 3, 3]);
        let row: Vec<f32> = (0..576).map(|i| i as f32).collect();
        features.add(Path::new("set/dog/1.jpg"), &row);
        features.add(Path::new("elsewhere/2.jpg"), &row);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("f.safetensors");
        features.save(&out).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("features").unwrap();
        assert_eq!((tensor.shape(), tensor.dtype()), (&[2, 64, 3, 3][..], Dtype::F32));
        assert_eq!(tensor.data()[4..8], 1f32.to_le_bytes());
        let labels: Vec<u8> = [1i64, -1].iter().flat_map(|l| l.to_le_bytes()).collect();
        assert_eq!(file.tensor("labels").unwrap().data(), labels);
        assert_eq!(file.tensor("paths").unwrap().data(), b"set/dog/1.jpg\0elsewhere/2.jpg\0");
        assert!(features.save(&folder.path().join("no/such/folder")).is_err());
    }
}

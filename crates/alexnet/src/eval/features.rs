//! Activations of a layer as a file that Python reads with `safetensors.numpy.load_file`.
//!
//! The file is that of [`super::rows`]; its rows are called `features` and are (C, H, W), or (outputs) of a linear
//! layer. The label of a picture is the class that a folder it lies in has the name of. Metadata: `net`, `layer` (the
//! last layer computed), `classes` (JSON).

use super::rows::RowFile;
use crate::error::Result;
use crate::net::{Network, Op};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

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

/// The layer whose activations stand for a picture unless another is named: fc7, as in the paper; in a network without
/// it, the last linear layer before the classes; without that, whatever the classes are computed from.
pub fn default_layer(net: &Network) -> &str {
    if let Some(fc7) = net.layers.iter().find(|layer| layer.name == "fc7") {
        return &fc7.name;
    }
    let computes = |op: &Op| matches!(op, Op::Conv(_) | Op::Linear(_));
    let output = net.layers.iter().rposition(|layer| computes(&layer.op)).unwrap_or(0);
    let before = &net.layers[..output];
    let hidden = before.iter().rfind(|layer| matches!(layer.op, Op::Linear(_))).or(before.last());
    &hidden.unwrap_or(&net.layers[output]).name
}

/// Activations of one layer on their way into a file.
#[derive(Debug)]
pub struct Features {
    rows: RowFile,
    /// Class name -> index.
    classes: HashMap<String, u32>,
}

impl Features {
    /// Begins the file `out` for layer `last` (see [`last_layer`]) of a network with these class names.
    ///
    /// # Errors
    /// As [`Network::trace`]; [`crate::Error::Config`] if the file cannot be created.
    pub fn create(out: &Path, net: &Network, last: usize, classes: &[String]) -> Result<Self> {
        let trace = net.trace()?;
        let layer = &trace[last];
        let s = layer.output;
        let flat = trace[..=last].iter().any(|t| matches!(t.layer.op, Op::Linear(_)));
        let shape = if flat { vec![s.len()] } else { vec![s.c, s.h, s.w] };
        let metadata = BTreeMap::from([
            ("net".to_string(), net.name.clone()),
            ("layer".to_string(), layer.layer.name.clone()),
            ("classes".to_string(), serde_json::json!(classes).to_string()),
        ]);
        Ok(Features {
            rows: RowFile::create(out, "features", &shape, metadata)?,
            classes: classes.iter().cloned().zip(0..).collect(),
        })
    }

    /// Adds a picture.
    ///
    /// Panics if there are not as many values as the layer has elements.
    ///
    /// # Errors
    /// [`crate::Error::Config`] if it cannot be written.
    pub fn add(&mut self, path: &Path, values: &[f32]) -> Result<()> {
        let label = folder_name(path).and_then(|name| self.classes.get(&name).copied());
        self.rows.push(&path.to_string_lossy(), label, values)
    }

    /// Pictures added.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if no picture was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Elements of one picture, as (C, H, W) or (outputs).
    pub fn shape(&self) -> &[usize] {
        self.rows.shape()
    }

    /// Completes the file, which appears now.
    ///
    /// # Errors
    /// [`crate::Error::Config`] if it cannot be written.
    pub fn finish(self) -> Result<()> {
        self.rows.finish()
    }
}

/// The name of the folder that a file lies in.
fn folder_name(path: &Path) -> Option<String> {
    path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;
    use safetensors::{Dtype, SafeTensors};

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
    fn without_fc7_the_last_hidden_layer_stands_for_the_picture() {
        assert_eq!(default_layer(&zoo::torchvision(10)), "fc7");
        let net = |layers: &str| {
            Network::from_toml(&format!("name = 'n'\ninput = [3, 8, 8]\nlayer = [{layers}]"), "test").unwrap()
        };
        let fc = |name: &str| format!("{{ name = '{name}', type = 'linear', outputs = 2 }},");
        let pool = "{ name = 'pool1', type = 'pool', kind = 'max', size = 2, stride = 2 },";
        assert_eq!(default_layer(&net(&[pool, &fc("a"), &fc("b")].concat())), "a");
        assert_eq!(default_layer(&net(&[pool, &fc("a")].concat())), "pool1");
        assert_eq!(default_layer(&net(&fc("a"))), "a");
    }

    #[test]
    fn the_file_holds_values_paths_and_labels() {
        let net = zoo::alexnet_mini(2);
        let last = last_layer(&net, "pool5").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("f.safetensors");
        let mut features = Features::create(&out, &net, last, &["cat".into(), "dog".into()]).unwrap();
        assert_eq!(features.shape(), [64, 3, 3]);
        let row: Vec<f32> = (0..576).map(|i| i as f32).collect();
        features.add(Path::new("set/dog/1.jpg"), &row).unwrap();
        features.add(Path::new("elsewhere/2.jpg"), &row).unwrap();
        features.finish().unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("features").unwrap();
        assert_eq!((tensor.shape(), tensor.dtype()), (&[2, 64, 3, 3][..], Dtype::F32));
        assert_eq!(tensor.data()[4..8], 1f32.to_le_bytes());
        let labels: Vec<u8> = [1i64, -1].iter().flat_map(|l| l.to_le_bytes()).collect();
        assert_eq!(file.tensor("labels").unwrap().data(), labels);
        assert_eq!(file.tensor("paths").unwrap().data(), b"set/dog/1.jpg\0elsewhere/2.jpg\0");
    }
}

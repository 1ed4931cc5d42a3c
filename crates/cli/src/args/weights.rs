//! `alexnet weights` and `alexnet pull` as typed.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `alexnet weights`.
#[derive(Debug, Subcommand)]
pub enum Weights {
    /// Say what a file is: format, network, tensors, preprocessing. Nothing in it is executed
    Info(WeightsInfo),
    /// Make a model of PyTorch (.pth), safetensors, Caffe (.caffemodel) or ONNX weights, for predict, eval, features, --from
    Import(WeightsImport),
    /// Write a model as safetensors (PyTorch), ONNX or Caffe
    Export(WeightsExport),
}

/// `alexnet weights info`.
#[derive(Debug, Args)]
pub struct WeightsInfo {
    /// A weight file of any known format, or a checkpoint or run folder
    pub file: PathBuf,
    /// The network to compare with: of `alexnet nets`, or a TOML file
    #[arg(long, value_name = "NAME|FILE")]
    pub net: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet weights import`.
#[derive(Debug, Args)]
pub struct WeightsImport {
    /// The weight file
    pub file: PathBuf,
    /// The model to write
    pub out: PathBuf,
    /// The network, where the file fits several: of `alexnet nets`, or a TOML file [default: recognized]
    #[arg(long, value_name = "NAME|FILE")]
    pub net: Option<String>,
    /// Class names, one a line, in the order of the outputs [default: the file's, or ImageNet's for 1000]
    #[arg(long, value_name = "FILE")]
    pub classes: Option<PathBuf>,
    /// How pictures are prepared: torchvision or caffe [default: the file's, or the network's own]
    #[arg(long, value_name = "NAME")]
    pub preprocess: Option<String>,
    /// What is subtracted: three numbers R,G,B in pixels of 0-255, or Caffe's mean picture
    #[arg(long, value_name = "R,G,B|FILE.binaryproto", allow_hyphen_values = true)]
    pub mean: Option<String>,
    /// Order of the first convolution's channels: rgb or bgr [default: the format's]
    #[arg(long, value_name = "ORDER")]
    pub channels: Option<String>,
}

/// `alexnet weights export`.
#[derive(Debug, Args)]
pub struct WeightsExport {
    /// A checkpoint or a run folder
    pub model: PathBuf,
    /// The file to write
    pub out: PathBuf,
    /// The format [default: by the file's ending]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
    /// ONNX: end before the softmax
    #[arg(long)]
    pub logits: bool,
}

/// What `weights export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// torchvision's names for its network, which load_state_dict takes; conv1.weight … fc8.bias for others
    Safetensors,
    /// Operators of opset 13, input `pixels`, output `probabilities` or `logits`
    Onnx,
    /// FILE.caffemodel and FILE.prototxt, blue channel first
    Caffe,
}

/// `alexnet pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// What to download; none: list what is known
    pub name: Option<String>,
    /// The file to write [default: in the cache folder]
    pub out: Option<PathBuf>,
    /// A table of other files: JSON, a list of name, url, bytes, sha256
    #[arg(long, value_name = "FILE", hide = true)]
    pub table: Option<PathBuf>,
}

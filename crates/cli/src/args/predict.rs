//! `alexnet predict` and `alexnet features` as typed.

use super::Compute;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `alexnet predict`.
#[derive(Debug, Args)]
pub struct Predict {
    /// A checkpoint or a run folder
    pub model: PathBuf,
    /// Pictures, or folders of pictures
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How many classes to name for each picture
    #[arg(long, value_name = "N", default_value = "5")]
    pub top: usize,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// 1: the centre; 10: corners and centre and their mirror images, probabilities averaged
    #[arg(long, value_name = "1|10", default_value = "1")]
    pub views: usize,
    /// Write five class numbers a line, counted from 1, as ILSVRC's organizers take them
    #[arg(long, value_name = "FILE")]
    pub submission: Option<PathBuf>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
}

/// What `predict` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One line a picture and rank
    Csv,
    /// One JSON object a picture
    Jsonl,
}

/// `alexnet features`.
#[derive(Debug, Args)]
pub struct Features {
    /// A checkpoint or a run folder
    pub model: PathBuf,
    /// Pictures, or folders of pictures
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The layer; a convolution's or linear layer's name means after the ReLU that directly follows it [default: fc7, or
    /// the last layer before the classes]
    #[arg(long, value_name = "NAME")]
    pub layer: Option<String>,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "features.safetensors")]
    pub out: PathBuf,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
}

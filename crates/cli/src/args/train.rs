//! `alexnet train` as typed.

use super::{Compute, Kept};
use clap::Args;
use std::path::PathBuf;

/// `alexnet train`.
#[derive(Debug, Args)]
pub struct Train {
    /// Folder with one folder of pictures a class, or with train/ and val/ folders of such, or pictures in another
    /// format (--format names them), or a pack; none: pictures are drawn
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub kept: Kept,
    /// A network of `alexnet nets`, or a TOML file [default: torchvision; alexnet-mini for drawn pictures]
    #[arg(long, value_name = "NAME|FILE")]
    pub net: Option<String>,
    /// A built-in recipe, or a TOML file [default: finetune; mini for drawn pictures]
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// Start from ImageNet's convolutions (net torchvision only), or from the layers of a checkpoint that fit
    #[arg(long, value_name = "imagenet|CHECKPOINT")]
    pub from: Option<String>,
    /// Where the run is kept [default: a new folder in runs/]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue the run in DIR, or the newest in runs/, from its newest valid checkpoint
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
    /// Passes over the training pictures; what a recipe does at an epoch moves with them [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u32>,
    /// Pictures a step [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Learning rate at the start [default: the recipe's]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// Decides the split, the first weights, the order, crops and dropout [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Train on N pictures of every class and validate on the rest (the Caltech protocol)
    #[arg(long, value_name = "N", conflicts_with = "split")]
    pub train_per_class: Option<usize>,
    /// Keep this fraction of every class for validation, chosen by the hash of each path: 0.5 halves a set, as for the
    /// 10,184 classes of 2009 [default: val/ if there is one, else the recipe's]
    #[arg(long, value_name = "FRACTION")]
    pub split: Option<f64>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

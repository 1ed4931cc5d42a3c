//! `alexnet eval` as typed.

use super::{Compute, Kept};
use clap::Args;
use std::path::PathBuf;

/// `alexnet eval`.
#[derive(Debug, Args)]
#[command(
    override_usage = "alexnet eval [OPTIONS] MODEL... DATA\n       alexnet eval [OPTIONS] PREDICTIONS..."
)]
pub struct Eval {
    /// Models (checkpoints or run folders) and, last, the folder of pictures: of a model's own data the part that it was
    /// not trained on, of others val/ or all. Of several models the probabilities are averaged. A file of
    /// --save-predictions stands for the model that made it; if there are only such files, no folder is needed
    #[arg(required = true, num_args = 1.., value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    #[command(flatten)]
    pub kept: Kept,
    /// 1: the centre; 10: corners and centre and their mirror images, probabilities averaged
    #[arg(long, value_name = "1|10", default_value = "1")]
    pub views: usize,
    /// How much each of several models counts; `fit` finds the weights on one half of the pictures and reports on the
    /// other
    #[arg(long, value_name = "equal|fit|W,W,...", default_value = "equal", allow_hyphen_values = true)]
    pub weights: String,
    /// Measure with this fraction of every class, chosen by the hash of each path, whatever the models were trained on
    #[arg(long, value_name = "FRACTION")]
    pub split: Option<f64>,
    /// Print a table of the classes, worst first
    #[arg(long)]
    pub per_class: bool,
    /// Print the K most confused pairs of classes with examples [default: 5 pairs without examples]
    #[arg(long, value_name = "K")]
    pub confusions: Option<usize>,
    /// Print the K pictures that are most confidently wrong
    #[arg(long, value_name = "K", default_value = "0", hide_default_value = true)]
    pub worst: usize,
    /// Write the probabilities to a safetensors file
    #[arg(long, value_name = "FILE")]
    pub save_predictions: Option<PathBuf>,
    /// Write five class numbers a line, counted from 1, as ILSVRC's organizers take them
    #[arg(long, value_name = "FILE")]
    pub submission: Option<PathBuf>,
    /// Exit with code 1 if the fraction of pictures that is right at the first guess is smaller than X
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub min_top1: Option<f64>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

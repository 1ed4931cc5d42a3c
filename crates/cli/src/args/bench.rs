//! `alexnet bench` as typed.

use super::Compute;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `alexnet bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Steps of training, on made-up pictures or a pack
    Train(BenchRun),
    /// Forward passes, on made-up pictures or a pack
    Infer(BenchRun),
    /// Every pass of every stage beside what the machine can do at best
    Kernels(BenchKernels),
}

/// `alexnet bench train` and `alexnet bench infer`.
#[derive(Debug, Args)]
pub struct BenchRun {
    /// A network of `alexnet nets`, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet-2012")]
    pub net: String,
    /// Pictures a step
    #[arg(long, value_name = "N", default_value = "128")]
    pub batch: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value = "10")]
    pub steps: usize,
    /// Also from this pack (`alexnet data pack`), through the loader, step by step in turns
    #[arg(long, value_name = "PACK")]
    pub data: Option<PathBuf>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// `alexnet bench kernels`.
#[derive(Debug, Args)]
pub struct BenchKernels {
    /// A network of `alexnet nets`, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet-2012")]
    pub net: String,
    /// Pictures a step
    #[arg(long, value_name = "N", default_value = "128")]
    pub batch: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value = "20")]
    pub steps: usize,
    /// Forward passes at test time instead of steps of training
    #[arg(long)]
    pub infer: bool,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

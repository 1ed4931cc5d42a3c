//! The command line as typed, one file a family of commands. What it means is decided in [`crate::plan`].

mod bench;
mod data;
mod eval;
mod predict;
mod train;
mod weights;

pub use bench::{Bench, BenchKernels, BenchRun};
pub use data::{Data, DataCheck, DataJoin, DataPack, DataStats, Form, Keep, Resize};
pub use eval::Eval;
pub use predict::{Features, Format, Predict};
pub use train::Train;
pub use weights::{ExportFormat, Pull, Weights, WeightsExport, WeightsImport, WeightsInfo};

use clap::{Args, Parser, Subcommand};

/// Train, test and use AlexNet.
#[derive(Debug, Parser)]
#[command(name = "alexnet", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 finished with a negative answer (`data check` found faults, `eval --min-top1`
was missed); 2 usage or configuration; 3 data unusable (`predict`, `features`: some pictures could
not be read, and the others are done); 4 checkpoint unusable; 5 training diverged; 6 device fault;
75 stopped by a signal after a durable checkpoint (run again with --resume);
130 stopped by a signal with nothing saved, or by a second Ctrl-C.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network on pictures (a folder for each class, or another format), or on drawn ones when none are given
    Train(Train),
    /// Measure a trained network's error rates on pictures
    Eval(Eval),
    /// Name the likeliest classes of pictures
    Predict(Predict),
    /// Write a layer's activations for pictures as a safetensors file
    Features(Features),
    /// List the networks, or print one layer by layer
    Nets(Nets),
    /// List the recipes, print one, or say where two differ
    Recipe(Recipe),
    /// Check, pack or describe a set of pictures
    #[command(subcommand)]
    Data(Data),
    /// Say what a weight file is, import one of another program, or export a model
    #[command(subcommand)]
    Weights(Weights),
    /// Download known public weights, checked by size and SHA-256; none: list them
    Pull(Pull),
    /// Measure speed
    #[command(subcommand)]
    Bench(Bench),
    /// Say what this machine has and what the program would use
    Doctor(Doctor),
}

/// How pictures are kept.
#[derive(Debug, Args)]
pub struct Kept {
    /// How the pictures are kept: folder, ilsvrc, webdataset, parquet, list, cifar or tiny-imagenet [default:
    /// recognised]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// How to compute, for every command that computes.
#[derive(Debug, Args)]
pub struct Compute {
    /// auto, f32, bf16, f32x3 (f32 with products in three of bf16, on tiles), or for inference int8 (bf16 or f32, with
    /// linear layers' weights in eight bits) [default: auto]
    #[arg(long, value_name = "P")]
    pub precision: Option<String>,
    /// auto or cpu
    #[arg(long, value_name = "D", default_value = "auto")]
    pub device: String,
    /// Threads [default: one for every core that this process may use]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `alexnet nets`.
#[derive(Debug, Args)]
pub struct Nets {
    /// The network, or a TOML file with one
    #[arg(value_name = "NAME")]
    pub net: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet recipe`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Recipe {
    /// The recipe, or a TOML file with one
    #[arg(value_name = "NAME|FILE")]
    pub name: Option<String>,
    /// Print JSON, every key written out
    #[arg(long)]
    pub json: bool,
    /// What else.
    #[command(subcommand)]
    pub command: Option<RecipeCommand>,
}

/// `alexnet recipe diff`.
#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Print every key on which two recipes differ, and every value of their networks
    Diff(RecipeDiff),
}

/// `alexnet recipe diff A B`.
#[derive(Debug, Args)]
pub struct RecipeDiff {
    /// A recipe, or a TOML file with one
    #[arg(value_name = "A")]
    pub a: String,
    /// Another
    #[arg(value_name = "B")]
    pub b: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn resume_takes_a_folder_or_none() {
        let train = |words: &[&str]| match Cli::try_parse_from(words).unwrap().command {
            Command::Train(train) => train,
            other => panic!("{other:?}"),
        };
        assert_eq!(train(&["alexnet", "train"]).resume, None);
        assert_eq!(train(&["alexnet", "train", "--resume"]).resume, Some(None));
        assert_eq!(train(&["alexnet", "train", "--resume", "runs/1"]).resume, Some(Some("runs/1".into())));
    }
}

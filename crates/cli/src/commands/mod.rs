//! One file a command.

use crate::args::Command;
use crate::failure::Outcome;

mod bench;
mod data;
mod doctor;
mod eval;
mod features;
mod nets;
mod predict;
mod pull;
mod recipe;
mod train;
mod weights;

/// Runs a command to its end.
///
/// # Errors
/// Whatever ends it early; see [`crate::failure::Failure`].
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Features(args) => features::run(&args),
        Command::Nets(args) => nets::run(args),
        Command::Recipe(args) => recipe::run(&args),
        Command::Data(args) => data::run(args),
        Command::Weights(args) => weights::run(args),
        Command::Pull(args) => pull::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
    }
}

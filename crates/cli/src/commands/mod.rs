//! One file a command.

use crate::args::Command;
use crate::failure::Outcome;

mod nets;

/// Runs a command to its end.
///
/// # Errors
/// Whatever ends it early; see [`crate::failure::Failure`].
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Nets(args) => nets::run(args),
        _ => Ok(()),
    }
}

//! The `alexnet` program: arguments as typed ([`args`]), what they mean ([`plan`]), one file a command
//! ([`commands`]). Answers go to standard output, errors to standard error as `error: …`; exit codes are in
//! [`failure`].

mod args;
mod commands;
mod download;
mod failure;
mod machine;
mod plan;
mod progress;
mod screen;
mod stop;
mod terminal;

use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are answers and go to standard output; anything else is wrong usage.
        Err(answer) if !answer.use_stderr() => {
            return match terminal::print_line(answer.render().to_string().trim_end()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => Failure::from(error).report(),
            };
        }
        Err(error) => {
            terminal::complain(error.render().to_string().trim_end());
            return ExitCode::from(2);
        }
    };
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

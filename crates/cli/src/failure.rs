//! Everything that ends a command early, and the exit code of each.

use std::process::ExitCode;

/// Why a command ended without doing everything.
#[derive(Debug)]
pub enum Failure {
    /// The library's error; its kind decides the exit code.
    Library(alexnet::Error),
    /// The reader of standard output went away, as `head` does. Nothing is wrong.
    ReaderGone,
    /// A signal ended work that leaves nothing behind: exit code 130.
    Stopped(String),
    /// The work was done and its answer, already printed, is no: exit code 1.
    Negative,
}

/// What commands return.
pub type Outcome = Result<(), Failure>;

impl From<alexnet::Error> for Failure {
    fn from(error: alexnet::Error) -> Self {
        Failure::Library(error)
    }
}

/// Errors of writing to standard output; other files' errors are given words where they arise.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::config(format!("cannot write to standard output: {error}")),
        }
    }
}

impl Failure {
    /// Wrong usage or configuration.
    pub fn config(message: impl Into<String>) -> Self {
        Failure::Library(alexnet::Error::Config(message.into()))
    }

    /// Prints the error, if there is one, and gives the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::ReaderGone => ExitCode::SUCCESS,
            Failure::Negative => ExitCode::from(1),
            Failure::Stopped(words) => {
                crate::terminal::complain(&format!("stopped: {words}"));
                ExitCode::from(crate::stop::STOPPED)
            }
            Failure::Library(error) => {
                let label = if let alexnet::Error::Interrupted(_) = error { "stopped" } else { "error" };
                crate::terminal::complain(&format!("{label}: {error}"));
                ExitCode::from(error.exit_code())
            }
        }
    }
}

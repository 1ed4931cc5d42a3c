//! Signals. The first asks the run to stop after the step that it is in, with a durable checkpoint; a second Ctrl-C
//! ends the program at once. Commands that save nothing until they are done end at the first.

use crate::failure::Failure;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code after a second Ctrl-C, and after the first signal where nothing is saved.
pub const STOPPED: u8 = 130;

/// A flag that becomes true at SIGINT, SIGTERM, SIGHUP or SIGUSR1.
///
/// # Errors
/// If the system refuses to report a signal.
pub fn on_signals() -> alexnet::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let register = || -> std::io::Result<()> {
        // Handlers run in the order of registration: this one sees whether an earlier signal set the flag.
        flag::register_conditional_shutdown(SIGINT, STOPPED.into(), Arc::clone(&stop))?;
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGUSR1] {
            flag::register(signal, Arc::clone(&stop))?;
        }
        Ok(())
    };
    register().map_err(|e| alexnet::Error::Device(format!("signals cannot be received: {e}")))?;
    Ok(stop)
}

/// The error that ends work in which nothing is saved until it is done, once a signal has asked for the end.
///
/// # Errors
/// [`alexnet::Error::Interrupted`] if so; [`unfinished`] gives it its exit code.
pub fn check(stop: &AtomicBool) -> alexnet::Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(alexnet::Error::Interrupted("by a signal; nothing was saved".into())),
        false => Ok(()),
    }
}

/// What [`check`] ended, as a failure of its own: no checkpoint was written.
pub fn unfinished(error: alexnet::Error) -> Failure {
    match error {
        alexnet::Error::Interrupted(words) => Failure::Stopped(words),
        other => other.into(),
    }
}

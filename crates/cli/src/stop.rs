//! Signals. The first asks the run to stop after the step that it is in, with a durable checkpoint; a second Ctrl-C
//! ends the program at once.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Exit code after a second Ctrl-C.
const SECOND_INTERRUPT: i32 = 130;

/// A flag that becomes true at SIGINT, SIGTERM, SIGHUP or SIGUSR1.
///
/// # Errors
/// If the system refuses to report a signal.
pub fn on_signals() -> alexnet::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let register = || -> std::io::Result<()> {
        // Handlers run in the order of registration: this one sees whether an earlier signal set the flag.
        flag::register_conditional_shutdown(SIGINT, SECOND_INTERRUPT, Arc::clone(&stop))?;
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGUSR1] {
            flag::register(signal, Arc::clone(&stop))?;
        }
        Ok(())
    };
    register().map_err(|e| alexnet::Error::Device(format!("signals cannot be received: {e}")))?;
    Ok(stop)
}

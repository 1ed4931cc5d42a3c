//! Progress of anything that may take longer than two seconds: a bar on a terminal, plain lines elsewhere. It is
//! written to standard error, so that standard output holds answers alone.

use crate::terminal::{can_draw, complain, count, duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Nothing is shown before this time has passed.
const QUIET: Duration = Duration::from_secs(2);
/// Time between plain lines.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The progress of one piece of work.
pub struct Progress {
    what: String,
    /// Units done before it began.
    before: usize,
    start: Instant,
    last_line: Option<Instant>,
    draw: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `what` is a word or two, for example `packing`.
    pub fn new(what: impl Into<String>) -> Self {
        Progress::after(what, 0)
    }

    /// As [`Progress::new`], for work of which `before` units were done earlier.
    pub fn after(what: impl Into<String>, before: usize) -> Self {
        Progress {
            what: what.into(),
            before,
            start: Instant::now(),
            last_line: None,
            draw: can_draw(),
            bar: None,
        }
    }

    /// `done` of `total` units are done; `note` says more (empty for nothing).
    pub fn update(&mut self, done: usize, total: usize, note: &str) {
        let now = Instant::now();
        let elapsed = now - self.start;
        if elapsed < QUIET {
            return;
        }
        if self.draw {
            let what = &self.what;
            let bar = self.bar.get_or_insert_with(|| new_bar(what));
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            let left = left_words(elapsed, done - self.before.min(done), total - self.before.min(total));
            bar.set_message(format!("{note}{left}").trim_start_matches(", ").to_string());
        } else if self.last_line.is_none_or(|last| now - last >= BETWEEN_LINES) {
            self.last_line = Some(now);
            let between = if note.is_empty() { "" } else { ", " };
            let left = left_words(elapsed, done - self.before.min(done), total - self.before.min(total));
            complain(&format!("{}: {} of {}{between}{note}{left}", self.what, count(done), count(total)));
        }
    }

    /// Says something else about the work, no more of which is done: on the bar only.
    pub fn note(&mut self, total: usize, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_message(note.to_string());
        }
    }

    /// Writes a line without disturbing the bar.
    pub fn line(&self, write: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn new_bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_string());
    bar
}

/// ", 3 min 10 s left", by proportion.
fn left_words(elapsed: Duration, done: usize, total: usize) -> String {
    if done == 0 || done >= total {
        return String::new();
    }
    let left = elapsed.as_secs_f64() * (total - done) as f64 / done as f64;
    format!(", {} left", duration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_by_proportion() {
        assert_eq!(left_words(Duration::from_secs(30), 1, 4), ", 1 min 30 s left");
        assert_eq!(left_words(Duration::from_secs(30), 0, 4), "");
        assert_eq!(left_words(Duration::from_secs(30), 4, 4), "");
    }
}

//! What a training run shows while it goes on.

use crate::machine;
use crate::plan::Compute;
use crate::progress::Progress;
use crate::terminal::{Words, bytes, complain, count, duration, percent, plural};
use alexnet::exec::Executor;
use alexnet::train::checkpoint::EpochMetrics;
use alexnet::train::observer::{EpochTiming, Observer, Started, StepInfo};
use std::time::Instant;

/// Steps before the first estimate of the whole time.
const ESTIMATE_AFTER: u64 = 20;
/// Weight of the newest step in the mean speed.
const SMOOTHING: f64 = 0.1;

/// Draws a run.
pub struct Screen {
    words: Words,
    compute: Compute,
    progress: Option<Progress>,
    started: Option<Started>,
    began: Instant,
    /// Pictures a second, smoothed.
    speed: Option<f64>,
    kernel: String,
    estimated: bool,
    /// The last words about training, shown again while validating.
    note: String,
}

impl Screen {
    /// Before the run begins.
    pub fn new(words: Words, compute: Compute) -> Self {
        let kernel = String::new();
        let (note, began) = (String::new(), Instant::now());
        Screen {
            words,
            compute,
            progress: None,
            started: None,
            began,
            speed: None,
            kernel,
            estimated: false,
            note,
        }
    }

    /// The kernel that computed last.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(mut progress) = self.progress.take() {
            progress.finish();
        }
    }

    /// A line beside the bar. A run does not end because nobody reads it.
    fn line(&self, text: &str) {
        let write = || self.words.line(text);
        let _ = match &self.progress {
            Some(progress) => progress.line(write),
            None => write(),
        };
    }
}

impl Observer for Screen {
    fn started(&mut self, started: &Started) {
        let steps = started.epochs * started.steps_per_epoch;
        let from = match started.position.step {
            0 => String::new(),
            step => format!(", of which {} are done", count(step as usize)),
        };
        self.line(&format!(
            "steps     {} ({} of {}){from}; a checkpoint takes {}",
            count(steps as usize),
            plural(started.epochs as usize, "epoch", "epochs"),
            started.steps_per_epoch,
            bytes(started.checkpoint_bytes)
        ));
        self.progress = Some(Progress::after("training", started.position.step as usize));
        self.started = Some(*started);
        self.began = Instant::now();
    }

    fn planned(&mut self, executor: &dyn Executor, frozen_below: usize) {
        self.kernel = executor.kernel_name();
        let available =
            machine::memory().1.map_or(String::new(), |free| format!(" of {} available", bytes(free)));
        self.line(&format!(
            "device    {}, kernels {}, {} threads",
            machine::processor().0,
            self.kernel,
            self.compute.threads
        ));
        self.line(&format!("memory    plan {}{available}", bytes(executor.bytes_with_batch() as u64)));
        if frozen_below > 0 {
            self.line(&format!("frozen    the first {frozen_below} layers have no backward pass"));
        }
    }

    fn step(&mut self, step: &StepInfo) {
        let Some(started) = self.started else { return };
        let speed = step.pictures as f64 / step.seconds.max(1e-9);
        self.speed = Some(self.speed.map_or(speed, |mean| mean + SMOOTHING * (speed - mean)));
        self.note = format!(
            "epoch {}/{}, loss {:.4}, error {}, {:.0} images/s",
            step.position.epoch + 1,
            started.epochs,
            step.epoch_loss,
            percent(step.epoch_top1_error),
            self.speed.unwrap_or(speed)
        );
        let total = started.epochs * started.steps_per_epoch;
        let done = step.position.step - started.position.step;
        if done == ESTIMATE_AFTER && !self.estimated && total > step.position.step {
            self.estimated = true;
            let left = self.began.elapsed().as_secs_f64() / done as f64 * (total - step.position.step) as f64;
            if left > 10.0 {
                self.line(&format!("time      about {} for the rest", duration(left)));
            }
        }
        if let Some(progress) = &mut self.progress {
            progress.update(step.position.step as usize, total as usize, &self.note);
        }
    }

    fn validating(&mut self, done: usize, all: usize) {
        let Some(started) = self.started else { return };
        if let Some(progress) = &mut self.progress {
            let total = (started.epochs * started.steps_per_epoch) as usize;
            progress.note(total, &format!("{}, validating {} of {}", self.note, count(done), count(all)));
        }
    }

    fn epoch(&mut self, metrics: &EpochMetrics, timing: &EpochTiming, best: bool) {
        let epochs = self.started.map_or(metrics.epoch, |s| s.epochs);
        let speed = timing.train_pictures as f64 / timing.train_seconds.max(1e-9);
        self.line(&format!(
            "epoch {:>3}/{epochs}  loss {:.4}  error {}  validation: error {}  top-5 {}  class accuracy {}  {speed:.0} \
             images/s  {}{}",
            metrics.epoch,
            metrics.train_loss,
            percent(metrics.train_top1_error),
            percent(metrics.val_top1_error),
            percent(metrics.val_top5_error),
            percent(metrics.val_mean_class_accuracy),
            duration(timing.train_seconds + timing.val_seconds),
            if best { "  best" } else { "" }
        ));
    }

    fn warning(&mut self, text: &str) {
        let text = format!("warning: {text}");
        match &self.progress {
            Some(progress) => {
                let _ = progress.line(|| {
                    complain(&text);
                    Ok(())
                });
            }
            None => complain(&text),
        }
    }
}

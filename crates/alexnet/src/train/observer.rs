//! What a run tells while it goes on. The program draws its screen from this; the library itself prints nothing.

use super::checkpoint::{EpochMetrics, Position};
use crate::exec::contract::Executor;
use std::path::Path;

/// The run as it begins, or goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Started {
    /// Pictures to learn from.
    pub train_pictures: usize,
    /// Pictures to measure with.
    pub val_pictures: usize,
    /// Steps in an epoch.
    pub steps_per_epoch: u64,
    /// Epochs in the run.
    pub epochs: u64,
    /// Where the run stands; not zero if it goes on from a checkpoint.
    pub position: Position,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
}

/// One step of training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepInfo {
    /// Where the run stands after it.
    pub position: Position,
    /// Its mean loss, nats.
    pub loss: f64,
    /// The epoch's mean loss so far, nats.
    pub epoch_loss: f64,
    /// The epoch's top-1 error so far, over the pictures as they were seen.
    pub epoch_top1_error: f64,
    /// Rate of weights, before the layers' multipliers.
    pub lr: f64,
    /// Pictures in it.
    pub pictures: usize,
    /// Seconds since the step before, loading included.
    pub seconds: f64,
}

/// One epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochTiming {
    /// Seconds of training steps in this process.
    pub train_seconds: f64,
    /// Pictures trained on in this process.
    pub train_pictures: u64,
    /// Seconds of validation.
    pub val_seconds: f64,
}

/// Receives what happens. Every method does nothing unless it is overridden.
pub trait Observer {
    /// The run begins or goes on.
    fn started(&mut self, _started: &Started) {}

    /// A plan was made: at the start, and whenever the recipe freezes or frees layers. The first `frozen_below` layers
    /// have no backward pass.
    fn planned(&mut self, _executor: &dyn Executor, _frozen_below: usize) {}

    /// A step was taken.
    fn step(&mut self, _step: &StepInfo) {}

    /// Validation goes on: pictures done, pictures in all.
    fn validating(&mut self, _done: usize, _all: usize) {}

    /// An epoch ended. `best` if no epoch before had as low a validation top-1 error.
    fn epoch(&mut self, _metrics: &EpochMetrics, _timing: &EpochTiming, _best: bool) {}

    /// A checkpoint was written, durably.
    fn saved(&mut self, _path: &Path) {}

    /// Something that does not end the run, but that the user should know.
    fn warning(&mut self, _text: &str) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

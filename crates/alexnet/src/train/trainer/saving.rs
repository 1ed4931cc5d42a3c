//! When the trainer writes checkpoints, and how it stops.

use super::Trainer;
use crate::error::{Error, Result};
use crate::train::checkpoint::Checkpoint;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A checkpoint in mid-epoch that cannot be written is tried again this often, at the next occasions, before the run
/// ends.
const SAVE_ATTEMPTS: u32 = 3;

impl Trainer<'_, '_> {
    /// Ends the run after a durable checkpoint if it was asked to stop. A finished run just ends.
    pub(super) fn stop_if_asked(&mut self, saved: bool) -> Result<()> {
        if !self.stop.load(Ordering::Relaxed) || self.state.position.epoch >= self.recipe.epochs {
            return Ok(());
        }
        if !saved {
            self.save()?;
        }
        let position = self.state.position;
        Err(Error::Interrupted(format!(
            "stopped in epoch {} after step {}; a checkpoint is in {}; go on with --resume {}",
            position.epoch + 1,
            position.step,
            self.run.store().path(position.step).display(),
            self.run.path().display()
        )))
    }

    /// In mid-epoch, when the time has come. The end of an epoch has a checkpoint of its own, after the validation.
    pub(super) fn save_if_due(&mut self) -> Result<()> {
        let position = self.state.position;
        let (when, step) = self.last_save;
        let due = when.elapsed() >= self.saving.every
            || self.saving.every_steps.is_some_and(|every| position.step - step >= every);
        if !due || position.batch == self.steps_per_epoch() {
            return Ok(());
        }
        self.save_or_warn()
    }

    pub(super) fn save_at_epoch_end(&mut self) -> Result<()> {
        // The last one is what the run is for.
        if self.state.position.epoch == self.recipe.epochs { self.save() } else { self.save_or_warn() }
    }

    /// A disk that is full for a while does not end the run; the old checkpoints are there.
    fn save_or_warn(&mut self) -> Result<()> {
        match self.save() {
            Err(Error::Checkpoint(why)) if self.failed_saves + 1 < SAVE_ATTEMPTS => {
                self.failed_saves += 1;
                self.last_save = (Instant::now(), self.state.position.step);
                self.warn(&format!(
                    "{why}; the run goes on ({} of {SAVE_ATTEMPTS} failures before it ends)",
                    self.failed_saves
                ));
                Ok(())
            }
            other => other,
        }
    }

    fn save(&mut self) -> Result<()> {
        let checkpoint = Checkpoint {
            state: self.state.clone(),
            params: self.executor().params(),
            momentum: self.executor().momentum(),
        };
        let path = self.run.store().save(&checkpoint)?;
        self.failed_saves = 0;
        self.last_save = (Instant::now(), self.state.position.step);
        self.observer.saved(&path);
        self.saved = Some(path);
        Ok(())
    }
}

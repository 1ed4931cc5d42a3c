//! Validation at the end of an epoch.

use super::Trainer;
use crate::data::Unreadable;
use crate::error::{Error, Result};
use crate::eval::metrics::Tally;
use crate::eval::views::{mean_outputs, of_number};
use std::sync::atomic::Ordering;

impl Trainer<'_, '_> {
    /// Error rates over the validation pictures.
    pub(super) fn validate(&mut self) -> Result<Tally> {
        let views = of_number(self.recipe.validation.views)?;
        let mut tally = Tally::new(self.net.classes());
        let mut done = 0;
        let executor = self.executor.as_deref_mut().expect("a run has an executor but while it plans again");
        let (observer, stop, pack) = (&mut self.observer, self.stop, &self.pack);
        let all = self.partition.val.len();
        let mut lost = vec![];
        let mut each = |picture: u32, probabilities: Option<&[f32]>| {
            match probabilities {
                Some(probabilities) => tally.add(probabilities, pack.label(picture as usize)),
                None if pack.is_readable(picture as usize) => lost.push(picture),
                None => {}
            }
            done += 1;
            observer.validating(done, all);
            match stop.load(Ordering::Relaxed) {
                true => Err(Error::Interrupted(String::new())),
                false => Ok(()),
            }
        };
        let result =
            mean_outputs(executor, &self.pack, &self.partition.val, &self.preprocess, views, &mut each);
        match result {
            Err(Error::Interrupted(_)) => {
                // All steps of the epoch are done: the resumed run begins with the validation.
                self.stop_if_asked(false)?;
                Err(Error::Interrupted("stopped".into()))
            }
            Err(e) => Err(e),
            Ok(()) => {
                let lost: Vec<Unreadable> = lost.into_iter().map(|i| self.damage_of(i)).collect();
                self.note_damaged(&lost)?;
                Ok(tally)
            }
        }
    }
}

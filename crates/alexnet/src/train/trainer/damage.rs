//! Pictures that could be decoded when they were packed and cannot be decoded again: the pack was damaged since.

use super::Trainer;
use crate::data::Unreadable;
use crate::data::pack::MAX_UNREADABLE;
use crate::error::{Error, Result};

/// Pictures that are named on the screen; all are in `bad_images.jsonl`.
const NAMED: usize = 5;

impl Trainer<'_, '_> {
    /// Names them, once each. They had no weight in the step.
    ///
    /// # Errors
    /// [`Error::Data`] if more than [`MAX_UNREADABLE`] of all pictures are lost by now.
    pub(super) fn note_damaged(&mut self, lost: &[Unreadable]) -> Result<()> {
        for bad in lost {
            if !self.damaged.insert(bad.path.clone()) {
                continue;
            }
            self.run.append_bad_image(bad, self.state.position.epoch + 1)?;
            let text = format!("{} cannot be decoded again and has no weight: {}", bad.path, bad.reason);
            match self.damaged.len() {
                n if n <= NAMED => self.warn(&text),
                _ => self.run.log(&format!("warning: {text}")),
            }
            let (all, bad) = (self.pack.len(), self.pack.unreadable().len() + self.damaged.len());
            if bad as f64 > MAX_UNREADABLE * all as f64 {
                return Err(Error::Data(format!(
                    "{bad} of {all} pictures cannot be decoded, more than {:.1} %, of which {} are damaged since they \
                     were packed (bad_images.jsonl names them); make the pack again, and go on with --resume {}",
                    100.0 * MAX_UNREADABLE,
                    self.damaged.len(),
                    self.run.path().display()
                )));
            }
        }
        Ok(())
    }

    /// What is wrong with a picture of the validation.
    pub(super) fn damage_of(&self, index: u32) -> Unreadable {
        let i = index as usize;
        let reason = self.pack.check_picture(i).err().unwrap_or_else(|| "it cannot be decoded again".into());
        Unreadable { index, path: self.pack.path(i).into(), reason }
    }
}

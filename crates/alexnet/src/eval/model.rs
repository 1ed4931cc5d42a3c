//! A trained network, opened for use.

use crate::data::{Keep, PackOptions, Preprocess};
use crate::error::{Error, Result};
use crate::exec::contract::Params;
use crate::exec::{self, Executor, Mode, Options};
use crate::net::Network;
use crate::train::checkpoint::{State, open_model};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A trained network with all that its use needs.
#[derive(Debug)]
pub struct Model {
    /// The network.
    pub net: Network,
    /// Its weights and biases.
    pub params: Params,
    /// Class names, in the order of the outputs.
    pub classes: Vec<String>,
    /// How pictures are prepared, as they were for its training.
    pub preprocess: Arc<Preprocess>,
    /// The checkpoint that it was read from.
    pub path: PathBuf,
    /// Newer checkpoints that could not be used, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
    /// The rest of the checkpoint: seed, epochs, data.
    pub state: State,
}

impl Model {
    /// Opens a checkpoint file, or the newest valid checkpoint of a run directory.
    ///
    /// # Errors
    /// [`crate::Error::Checkpoint`] with the path and what is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let found = open_model(path)?;
        let state = found.checkpoint.state;
        Ok(Model {
            net: state.network()?,
            params: found.checkpoint.params,
            classes: state.classes.clone(),
            preprocess: Arc::new(state.preprocess.clone()),
            path: found.path,
            skipped: found.skipped,
            state,
        })
    }

    /// Whether the network takes the pictures that the preprocessing gives, and has a name for every output.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file.
    pub fn check(&self) -> Result<()> {
        let fail = |why: String| Err(Error::Checkpoint(format!("{}: {why}", self.path.display())));
        if let Err(e) = self.preprocess.check() {
            return fail(e.to_string());
        }
        let (input, crop) = (self.net.input, self.preprocess.crop);
        if (input.c, input.h, input.w) != (3, crop, crop) {
            return fail(format!("its network takes {input}, and its preprocessing gives 3×{crop}×{crop}"));
        }
        match (self.classes.len(), self.net.classes()) {
            (names, outputs) if names != outputs => {
                fail(format!("{names} class names for {outputs} outputs"))
            }
            _ => Ok(()),
        }
    }

    /// How pictures must be stored to measure with them: as for its training, if it was trained here, so that its own
    /// pictures are known again; else the squares that fixed views are taken from.
    pub fn pack_options(&self) -> PackOptions {
        let options = self.preprocess.pack_options();
        match self.state.recipe() {
            Ok(recipe) => PackOptions { form: recipe.preprocess.form, ..options },
            Err(_) => PackOptions { keep: Keep::Square, ..options },
        }
    }

    /// An executor for inference, up to layer `last` or to the probabilities.
    ///
    /// # Errors
    /// As [`exec::compile`].
    pub fn executor(&self, options: Options, last: Option<usize>) -> Result<Box<dyn Executor>> {
        let mut executor = exec::compile(&self.net, &Options { mode: Mode::Infer { last }, ..options })?;
        executor.set_params(&self.params);
        Ok(executor)
    }
}

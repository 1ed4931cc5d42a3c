//! Checkpoints: everything that a run needs to go on as if nothing had happened, in one safetensors file. Weights are
//! under their canonical names, momentum under `momentum.<name>`, a mean picture under `preprocess.mean`, and the
//! state is JSON in the metadata.

use super::durable;
use super::recipe::Recipe;
use super::run_directory::SplitConfig;
use super::schedule::PlateauState;
use super::tensor_file::{self, Reader, TensorRef};
use crate::data::{ColourAxes, Mean, Preprocess};
use crate::error::{Error, Result};
use crate::exec::contract::Params;
use crate::net::Network;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The number of this form of checkpoint. A larger one comes from a newer program.
pub const FORMAT: u32 = 1;
const MOMENTUM: &str = "momentum.";
const MEAN_PICTURE: &str = "preprocess.mean";

/// Where a run stands: this many steps in all, and this many batches of this epoch (both counted from 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Batches done of the epoch that has begun.
    pub batch: u64,
}

/// Sums over the batches of the epoch that has begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochSums {
    /// Of each picture's loss, nats.
    pub loss: f64,
    /// Of pictures whose top class was wrong.
    pub top1_wrong: f64,
    /// Of pictures.
    pub weight: f64,
}

/// What one epoch gave. Fractions; no times, so that equal runs have equal records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// Counts from 1.
    pub epoch: u64,
    /// Steps done at its end.
    pub step: u64,
    /// Rate of weights in its last step, before the layers' multipliers.
    pub lr: f64,
    /// Mean loss over its training pictures as they were seen, nats.
    pub train_loss: f64,
    /// Top-1 error over its training pictures as they were seen.
    pub train_top1_error: f64,
    /// Mean loss over the validation pictures, nats.
    pub val_loss: f64,
    /// Top-1 error over the validation pictures.
    pub val_top1_error: f64,
    /// Top-5 error over the validation pictures.
    pub val_top5_error: f64,
    /// Mean over classes of the accuracy in each.
    pub val_mean_class_accuracy: f64,
}

/// Everything in a checkpoint that is not a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// The network, as [`Network::to_toml`] writes it.
    pub network: String,
    /// The recipe, as [`Recipe::to_toml`] writes it.
    pub recipe: String,
    /// Keys every random number of the run.
    pub seed: u64,
    /// Where the run stands.
    pub position: Position,
    /// The epoch that has begun.
    pub sums: EpochSums,
    /// What the schedule remembers.
    pub plateau: PlateauState,
    /// The epochs so far.
    pub history: Vec<EpochMetrics>,
    /// Length of the run's `metrics.jsonl` at this point; a resumed run cuts the file back to it.
    pub metrics_bytes: u64,
    /// Class names, in the order of the outputs.
    pub classes: Vec<String>,
    /// How pixels become the network's numbers. The values of a mean picture are in a tensor of their own.
    pub preprocess: Preprocess,
    /// The axes of the colour noise, if there is any.
    pub colour_axes: Option<ColourAxes>,
    /// [`crate::data::Pack::fingerprint`] of the pictures that the run learns from and is measured with.
    pub data_fingerprint: String,
    /// How they are split; the seed of [`SplitConfig::rule`] is the run's.
    pub split: SplitConfig,
    /// Where the weights come from, if they were imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

impl State {
    /// The state of a model that was made elsewhere: it has no recipe, no history and no data, and cannot be resumed.
    pub fn imported(net: &Network, classes: Vec<String>, preprocess: Preprocess, origin: &str) -> Self {
        State {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").into(),
            network: net.to_toml(),
            recipe: String::new(),
            seed: 0,
            position: Position::default(),
            sums: EpochSums::default(),
            plateau: PlateauState::default(),
            history: vec![],
            metrics_bytes: 0,
            classes,
            preprocess,
            colour_axes: None,
            data_fingerprint: String::new(),
            split: SplitConfig::Given,
            origin: Some(origin.into()),
        }
    }

    /// The epoch with the lowest validation top-1 error so far; the first of equals.
    pub fn best(&self) -> Option<&EpochMetrics> {
        self.history.iter().min_by(|a, b| a.val_top1_error.total_cmp(&b.val_top1_error))
    }

    /// The network.
    ///
    /// # Errors
    /// As [`Network::from_toml`].
    pub fn network(&self) -> Result<Network> {
        Network::from_toml(&self.network, "the checkpoint's network")
            .map_err(|e| Error::Checkpoint(e.to_string()))
    }

    /// The recipe.
    ///
    /// # Errors
    /// As [`Recipe::from_toml`].
    pub fn recipe(&self) -> Result<Recipe> {
        if let Some(origin) = &self.origin {
            return Err(Error::Checkpoint(format!(
                "the model was imported ({origin}) and has no recipe; train from it with --from"
            )));
        }
        Recipe::from_toml(&self.recipe, "the checkpoint's recipe")
            .map_err(|e| Error::Checkpoint(e.to_string()))
    }
}

/// A run at one point.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Everything that is not a tensor.
    pub state: State,
    /// Weights and biases.
    pub params: Params,
    /// v of the update rule; empty if only the weights were read.
    pub momentum: Params,
}

impl Checkpoint {
    /// Bytes of a checkpoint of these parameters, nearly.
    pub fn size_bytes(params: &Params, preprocess: &Preprocess) -> u64 {
        let mean = if let Mean::Picture(m) = &preprocess.mean { m.len() } else { 0 };
        let elements: usize = params.0.iter().map(|p| 2 * p.data.len()).sum();
        4 * (elements + mean) as u64 + 65_536
    }

    /// Replaces `path` by this checkpoint: durably, and read back before the old file goes.
    ///
    /// # Errors
    /// [`Error::Diverged`] if a value is not finite; [`Error::Checkpoint`] if it cannot be written, with the bytes
    /// needed and free. The old file is then untouched.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut state = self.state.clone();
        let mean = match &mut state.preprocess.mean {
            Mean::Picture(mean) => std::mem::take(mean),
            Mean::Channels(_) => vec![],
        };
        let mean_shape = [state.preprocess.side, state.preprocess.side, 3];
        let tensor = |prefix: &str, p: &'_ crate::exec::contract::Param| format!("{prefix}{}", p.name);
        let mut tensors = Vec::new();
        for (prefix, params) in [("", &self.params), (MOMENTUM, &self.momentum)] {
            tensors.extend(params.0.iter().map(|p| TensorRef {
                name: tensor(prefix, p),
                shape: &p.shape,
                data: &p.data,
            }));
        }
        if !mean.is_empty() {
            tensors.push(TensorRef { name: MEAN_PICTURE.into(), shape: &mean_shape, data: &mean });
        }
        // Numbers, text and lists of them: all have a form in JSON.
        let state = serde_json::to_string(&state).expect("the state has a form in JSON");
        let header = tensor_file::header(&tensors, &BTreeMap::from([("state".to_string(), state)]))?;
        let bytes = header.len() + tensors.iter().map(|t| 4 * t.data.len()).sum::<usize>();
        durable::write(
            path,
            |out| tensor_file::write(out, &header, &tensors),
            |written| Reader::open(written).and_then(|mut r| r.verify()).map_err(std::io::Error::other),
        )
        .map_err(|e| Error::Checkpoint(write_failed(path, bytes as u64, &e)))
    }

    /// Reads a checkpoint whole, and checks every byte of it.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the path and what is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_parts(path, true)
    }

    /// Reads a checkpoint for use, without the momentum.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_weights(path: &Path) -> Result<Self> {
        Self::read_parts(path, false)
    }

    fn read_parts(path: &Path, with_momentum: bool) -> Result<Self> {
        let fail = |why: String| Error::Checkpoint(format!("{}: {why}", path.display()));
        let mut reader = Reader::open(path)?;
        let mut state = read_state(reader.metadata("state")?).map_err(fail)?;
        let net = state.network().map_err(|e| fail(e.to_string()))?;
        let wanted = |name: &str| with_momentum || !name.starts_with(MOMENTUM);
        // The sizes are compared before anything is read: a network that lies about them gets no memory.
        let shapes = Params::shapes(&net).map_err(|e| fail(e.to_string()))?;
        for (name, shape) in reader.shapes().filter(|(name, _)| wanted(name)) {
            let own = name.strip_prefix(MOMENTUM).unwrap_or(name);
            if name != MEAN_PICTURE && shapes.get(own).is_none_or(|p| p.shape != shape) {
                return Err(fail(format!("tensor {name} does not belong to its network")));
            }
        }
        if with_momentum && reader.shapes().all(|(name, _)| !name.starts_with(MOMENTUM)) {
            return Err(fail(
                "holds a model without momentum, which cannot be resumed; train from it with --from".into(),
            ));
        }
        let mut tensors = reader.read(wanted)?;
        if let Some(at) = tensors.iter().position(|t| t.name == MEAN_PICTURE) {
            state.preprocess.mean = Mean::Picture(tensors.swap_remove(at).data);
        }
        let mut take = |prefix: &str| -> Result<Params> {
            let mut params = shapes.clone();
            for param in &mut params.0 {
                let found = tensors.iter().position(|t| t.name.strip_prefix(prefix) == Some(&param.name));
                let at =
                    found.ok_or_else(|| fail(format!("tensor {} or its momentum is missing", param.name)))?;
                param.data = tensors.swap_remove(at).data;
            }
            Ok(params)
        };
        let params = take("")?;
        let momentum = if with_momentum { take(MOMENTUM)? } else { Params::default() };
        state.preprocess.check().map_err(|e| fail(e.to_string()))?;
        if state.classes.len() != net.classes() {
            return Err(fail(format!("{} class names for {} outputs", state.classes.len(), net.classes())));
        }
        Ok(Checkpoint { state, params, momentum })
    }
}

fn read_state(text: &str) -> std::result::Result<State, String> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let wrong = |e: serde_json::Error| format!("its state is not understood: {e}");
    let Format { format } = serde_json::from_str(text).map_err(wrong)?;
    if format > FORMAT {
        return Err(format!("is of format {format}, from a newer program; this one reads up to {FORMAT}"));
    }
    serde_json::from_str(text).map_err(wrong)
}

fn write_failed(path: &Path, bytes: u64, error: &std::io::Error) -> String {
    let free = match path.parent().and_then(crate::data::disk::free_bytes) {
        Some(free) => format!(", {free} are free"),
        None => String::new(),
    };
    format!("{} cannot be written: {error} ({bytes} bytes needed{free})", path.display())
}

/// The folder of a run's checkpoints.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

/// What a search for the newest checkpoint gave.
#[derive(Debug)]
pub struct Found {
    /// The newest valid one.
    pub checkpoint: Checkpoint,
    /// Its file.
    pub path: PathBuf,
    /// Newer files that cannot be used, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

impl Store {
    /// The checkpoints in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Store { folder: folder.into() }
    }

    /// The file of the checkpoint after `step` steps.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:09}.safetensors"))
    }

    /// Refuses to start a run whose checkpoints would not fit: twice their size must be free.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the bytes needed and free.
    pub fn preflight(&self, checkpoint_bytes: u64) -> Result<()> {
        let needed = 2 * checkpoint_bytes;
        match crate::data::disk::free_bytes(&self.folder) {
            Some(free) if free < needed => Err(Error::Checkpoint(format!(
                "{}: {free} bytes are free, but checkpoints need {needed} (two of {checkpoint_bytes}); free some \
                 space or choose another place with --out",
                self.folder.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Steps and files, oldest first. Files with other names are not this store's.
    fn list(&self) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return vec![] };
        let parse = |path: PathBuf| {
            let step = path
                .file_name()?
                .to_str()?
                .strip_prefix("step-")?
                .strip_suffix(".safetensors")?
                .parse()
                .ok()?;
            Some((step, path))
        };
        let mut files: Vec<(u64, PathBuf)> = entries.flatten().filter_map(|e| parse(e.path())).collect();
        files.sort();
        files
    }

    /// True if there is no checkpoint, valid or not.
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// Writes a checkpoint, and only then removes older ones: the two last, and that of the best epoch, stay.
    /// Files of later steps go too; a resumed run passed over them because they were damaged.
    ///
    /// # Errors
    /// As [`Checkpoint::write`].
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let step = checkpoint.state.position.step;
        let path = self.path(step);
        checkpoint.write(&path)?;
        let files = self.list();
        let previous = files.iter().rev().find(|(s, _)| *s < step).map(|(s, _)| *s);
        let best = checkpoint.state.best().map(|b| b.step);
        for (s, file) in files {
            if ![Some(step), previous, best].contains(&Some(s)) {
                durable::fail_point("pruning");
                // A file that stays costs space, nothing else; the next save tries again.
                let _ = std::fs::remove_file(file);
            }
        }
        Ok(path)
    }

    /// The newest checkpoint that is valid, found by reading the files from the newest on.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if none is, with what is wrong with each.
    pub fn newest(&self) -> Result<Found> {
        self.newest_by(Checkpoint::read)
    }

    /// As [`Store::newest`], without the momentum.
    ///
    /// # Errors
    /// As [`Store::newest`].
    pub fn newest_weights(&self) -> Result<Found> {
        self.newest_by(Checkpoint::read_weights)
    }

    fn newest_by(&self, read: impl Fn(&Path) -> Result<Checkpoint>) -> Result<Found> {
        let mut skipped = Vec::new();
        for (_, path) in self.list().into_iter().rev() {
            match read(&path) {
                Ok(checkpoint) => return Ok(Found { checkpoint, path, skipped }),
                Err(e) => skipped.push((path, e.to_string())),
            }
        }
        let reasons: Vec<String> = skipped.iter().map(|(_, why)| why.clone()).collect();
        Err(Error::Checkpoint(match reasons.len() {
            0 => format!("{} holds no checkpoint", self.folder.display()),
            _ => format!("{} holds no usable checkpoint: {}", self.folder.display(), reasons.join("; ")),
        }))
    }
}

/// Opens a trained model for use: a checkpoint's file, or a run directory, whose newest valid checkpoint is taken.
///
/// # Errors
/// [`Error::Checkpoint`] with the path and what is wrong.
pub fn open_model(path: &Path) -> Result<Found> {
    if path.is_dir() {
        let inner = path.join("checkpoints");
        return Store::new(if inner.is_dir() { inner } else { path.to_path_buf() }).newest_weights();
    }
    let checkpoint = Checkpoint::read_weights(path)?;
    Ok(Found { checkpoint, path: path.to_path_buf(), skipped: vec![] })
}

#[cfg(test)]
mod tests;

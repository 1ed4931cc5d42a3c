//! The training loop: epochs of steps, validation after each, checkpoints in between.
//!
//! A step once begun is finished before anything is saved. Whatever ends a run (a signal, a kill, a loss of power),
//! the resumed one goes on from the newest checkpoint and ends in the same bytes as one that was never interrupted:
//! every random number is keyed by the seed and the position, and everything else is in [`State`].

use super::checkpoint::{Checkpoint, EpochMetrics, EpochSums, FORMAT, Position, State};
use super::health::LossWatch;
use super::observer::{EpochTiming, Observer, Started, StepInfo};
use super::rates::{base, frozen_below, rates};
use super::recipe::Recipe;
use super::run_directory::{RunDirectory, SplitConfig};
use super::schedule::{Moment, PlateauState};
use crate::data::{ColourAxes, Loader, LoaderConfig, Pack, Partition, Preprocess, Sample, split};
use crate::error::{Error, Result};
use crate::exec::contract::{Executor, Params, Rate, StepReport, StepSettings};
use crate::net::Network;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

mod damage;
mod saving;
mod validation;

/// Makes the executor: compiled for training in batches of the recipe, without a backward pass in the given number of
/// leading layers. Called again whenever the recipe freezes or frees layers.
pub type Compile<'a> = dyn FnMut(usize) -> Result<Box<dyn Executor>> + 'a;

/// Where a run begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// At the first step, with these weights.
    Fresh {
        /// Weights and biases; see [`super::start::weights`].
        params: Params,
        /// See [`Recipe::measure`].
        preprocess: Preprocess,
        /// See [`Recipe::measure`].
        colour_axes: Option<ColourAxes>,
    },
    /// Where a checkpoint left it.
    Resume(Box<Checkpoint>),
}

/// When a checkpoint is written, besides the end of each epoch.
#[derive(Clone, Copy, Debug)]
pub struct Saving {
    /// After this time since the last.
    pub every: Duration,
    /// After this many steps since the last.
    pub every_steps: Option<u64>,
}

impl Default for Saving {
    /// Every five minutes.
    fn default() -> Self {
        Saving { every: Duration::from_secs(300), every_steps: None }
    }
}

/// A training run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The network, as [`Recipe::apply`] gives it, for the classes of the pictures.
    pub net: Network,
    /// How to train it.
    pub recipe: Recipe,
    /// The pictures.
    pub pack: Arc<Pack>,
    /// How they are split.
    pub split: SplitConfig,
    /// Keys every random number of the run.
    pub seed: u64,
    /// When checkpoints are written.
    pub saving: Saving,
    /// Where the run begins.
    pub start: Start,
}

/// What a finished run gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The last epoch.
    pub last: EpochMetrics,
    /// The epoch with the lowest validation top-1 error.
    pub best: EpochMetrics,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// Pictures trained on each second, in this process; 0 if it took no step.
    pub images_per_s: f64,
    /// Pictures that could be decoded when they were packed and could not in the run; they had no weight.
    pub damaged: usize,
}

/// Trains. `stop` is looked at after every step: once it is true, a durable checkpoint is written and the run ends.
///
/// # Errors
/// [`Error::Interrupted`] after `stop`; [`Error::Diverged`] naming step, rate and layer if a value is not finite;
/// [`Error::Checkpoint`] if checkpoints cannot be written, or the one to resume from belongs to other pictures;
/// [`Error::Config`] and [`Error::Data`] if network, recipe and pictures do not fit together.
pub fn train(
    setup: Setup,
    run: &mut RunDirectory,
    compile: &mut Compile,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary> {
    let result = Trainer::new(setup, run, compile, observer, stop).and_then(|mut trainer| trainer.run());
    if let Err(error) = &result {
        run.log(&error.to_string());
    }
    result
}

/// A run in progress.
struct Trainer<'a, 'b> {
    net: Network,
    recipe: Recipe,
    pack: Arc<Pack>,
    partition: Partition,
    saving: Saving,
    run: &'a mut RunDirectory,
    compile: &'a mut Compile<'b>,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
    /// Everything that a checkpoint holds but the tensors, which the executor holds.
    state: State,
    preprocess: Arc<Preprocess>,
    /// `None` only while [`Trainer::replan`] makes another.
    executor: Option<Box<dyn Executor>>,
    /// Leading layers that the executor's plan has no backward pass for.
    frozen: usize,
    /// Names and layers of the parameters; their values here are not kept up.
    names: Params,
    last_save: (Instant, u64),
    saved: Option<PathBuf>,
    failed_saves: u32,
    watch: LossWatch,
    /// Seconds and pictures of steps in this process.
    trained: (f64, u64),
    /// Paths of pictures that cannot be decoded again.
    damaged: BTreeSet<String>,
}

impl<'a, 'b> Trainer<'a, 'b> {
    fn new(
        setup: Setup,
        run: &'a mut RunDirectory,
        compile: &'a mut Compile<'b>,
        observer: &'a mut dyn Observer,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let Setup { net, recipe, pack, split: split_config, seed, saving, start } = setup;
        recipe.check()?;
        let partition = split(&pack, &split_config.rule(seed))?;
        if net.classes() != pack.classes().len() {
            return Err(Error::Config(format!(
                "network {} has {} outputs and the pictures {} classes",
                net.name,
                net.classes(),
                pack.classes().len()
            )));
        }
        let (mut state, params, momentum, resumed) = match start {
            Start::Fresh { params, preprocess, colour_axes } => {
                let state = State {
                    format: FORMAT,
                    program: env!("CARGO_PKG_VERSION").into(),
                    network: net.to_toml(),
                    recipe: String::new(),
                    seed,
                    position: Position::default(),
                    sums: EpochSums::default(),
                    plateau: PlateauState::default(),
                    history: vec![],
                    metrics_bytes: 0,
                    classes: pack.classes().to_vec(),
                    preprocess,
                    colour_axes,
                    data_fingerprint: pack.fingerprint().into(),
                    split: split_config,
                    origin: None,
                };
                (state, params, Params::zeros(&net)?, false)
            }
            Start::Resume(checkpoint) => {
                let Checkpoint { state, params, momentum } = *checkpoint;
                check_same_run(&state, &net, &pack, split_config, seed)?;
                (state, params, momentum, true)
            }
        };
        state.recipe = recipe.to_toml();
        let damaged = run.write_bad_images(pack.unreadable())?;
        run.rewind_metrics(state.metrics_bytes, &state.history)?;
        let checkpoint_bytes = Checkpoint::size_bytes(&params, &state.preprocess);
        run.store().preflight(checkpoint_bytes)?;

        let steps_per_epoch = partition.train.len().div_ceil(recipe.batch) as u64;
        let position = state.position;
        let moment = Moment { step: position.step, steps_per_epoch, epochs: recipe.epochs };
        let frozen = frozen_below(&recipe, &net, moment);
        let mut executor = compile(frozen)?;
        executor.set_params(&params);
        executor.set_momentum(&momentum);
        let mut names = params;
        names.0.iter_mut().for_each(|p| p.data = vec![]);
        observer.started(&Started {
            train_pictures: partition.train.len(),
            val_pictures: partition.val.len(),
            steps_per_epoch,
            epochs: recipe.epochs,
            position,
            checkpoint_bytes,
        });
        observer.planned(executor.as_ref(), frozen);
        run.log(&format!(
            "{} at epoch {}, step {}: network {}, recipe {}, seed {seed}, {} training and {} validation pictures, {}",
            if resumed { "resumed" } else { "started" },
            position.epoch,
            position.step,
            net.name,
            recipe.name,
            partition.train.len(),
            partition.val.len(),
            executor.kernel_name()
        ));
        let saved = resumed.then(|| run.store().path(position.step));
        let preprocess = Arc::new(state.preprocess.clone());
        Ok(Trainer {
            net,
            recipe,
            pack,
            partition,
            saving,
            run,
            compile,
            observer,
            stop,
            preprocess,
            executor: Some(executor),
            frozen,
            names,
            last_save: (Instant::now(), position.step),
            saved,
            failed_saves: 0,
            watch: LossWatch::default(),
            trained: (0.0, 0),
            damaged,
            state,
        })
    }

    fn run(&mut self) -> Result<Summary> {
        while self.state.position.epoch < self.recipe.epochs {
            self.epoch()?;
        }
        let (Some(last), Some(best), Some(checkpoint)) =
            (self.state.history.last(), self.state.best(), self.saved.clone())
        else {
            return Err(Error::Config("a run of no epochs gives nothing".into()));
        };
        let (seconds, pictures) = self.trained;
        let images_per_s = if seconds > 0.0 { pictures as f64 / seconds } else { 0.0 };
        let damaged = self.damaged.len();
        Ok(Summary { last: last.clone(), best: best.clone(), checkpoint, images_per_s, damaged })
    }

    /// From wherever the epoch stands to its end: steps, validation, metrics, checkpoint.
    fn epoch(&mut self) -> Result<()> {
        self.pack.verify_unchanged()?;
        let before = self.trained;
        self.steps()?;
        let began = Instant::now();
        let tally = self.validate()?;
        let val_seconds = began.elapsed().as_secs_f64();

        let position = &mut self.state.position;
        let sums = self.state.sums;
        let weight = sums.weight.max(f64::MIN_POSITIVE);
        position.epoch += 1;
        position.batch = 0;
        self.state.sums = EpochSums::default();
        let last_step = self.moment(self.state.position.step.saturating_sub(1));
        let metrics = EpochMetrics {
            epoch: self.state.position.epoch,
            step: self.state.position.step,
            lr: base(&self.recipe, last_step, &self.state.plateau),
            train_loss: sums.loss / weight,
            train_top1_error: sums.top1_wrong / weight,
            val_loss: tally.mean_log_loss(),
            val_top1_error: tally.top1_error(),
            val_top5_error: tally.top5_error(),
            val_mean_class_accuracy: tally.mean_class_accuracy(),
        };
        let best = self.state.best().is_none_or(|b| metrics.val_top1_error < b.val_top1_error);
        let reduced = self.recipe.schedule.epoch_ended(metrics.val_top1_error, &mut self.state.plateau);
        self.state.metrics_bytes = self.run.append_metrics(&metrics)?;
        self.state.history.push(metrics.clone());
        let timing = EpochTiming {
            train_seconds: self.trained.0 - before.0,
            train_pictures: self.trained.1 - before.1,
            val_seconds,
        };
        self.run.append_timing(&serde_json::json!({
            "epoch": metrics.epoch,
            "train_seconds": timing.train_seconds,
            "train_pictures": timing.train_pictures,
            "val_seconds": timing.val_seconds,
        }));
        self.run.log(&format!(
            "epoch {}: loss {:.4}, validation top-1 error {:.4}, mean class accuracy {:.4}",
            metrics.epoch, metrics.train_loss, metrics.val_top1_error, metrics.val_mean_class_accuracy
        ));
        self.observer.epoch(&metrics, &timing, best);
        if reduced {
            self.run.log("the validation error has stopped falling: the learning rate is reduced");
        }
        self.save_at_epoch_end()?;
        self.stop_if_asked(true)
    }

    fn executor(&mut self) -> &mut dyn Executor {
        self.executor.as_deref_mut().expect("a run has an executor but while it plans again")
    }

    fn steps_per_epoch(&self) -> u64 {
        self.partition.train.len().div_ceil(self.recipe.batch) as u64
    }

    fn moment(&self, step: u64) -> Moment {
        Moment { step, steps_per_epoch: self.steps_per_epoch(), epochs: self.recipe.epochs }
    }

    fn loader(&mut self) -> Result<Loader> {
        let position = self.state.position;
        let config = LoaderConfig {
            pack: Arc::clone(&self.pack),
            layout: self.executor().input_layout(),
            preprocess: Arc::clone(&self.preprocess),
            augment: self.recipe.augment_at(position.epoch, self.state.colour_axes.as_ref()),
            seed: self.state.seed,
        };
        config.check()?;
        let order_of = if self.recipe.reshuffle { position.epoch } else { 0 };
        let samples = Sample::shuffled(&self.partition.train, self.state.seed, order_of);
        let mut loader = Loader::new(config);
        loader.begin(samples, position.epoch, position.batch as usize);
        Ok(loader)
    }

    /// The steps that the epoch still has.
    fn steps(&mut self) -> Result<()> {
        let steps = self.steps_per_epoch();
        let mut loader = self.loader()?;
        let mut layout = self.executor().input_layout();
        let mut clock = Instant::now();
        while self.state.position.batch < steps {
            let at = self.moment(self.state.position.step);
            if self.replan(at)? && self.executor().input_layout() != layout {
                layout = self.executor().input_layout();
                loader = self.loader()?;
            }
            let Some(loaded) = loader.next(self.executor().threads()) else {
                return Err(Error::Data("the loader ended before the epoch; the run can be resumed".into()));
            };
            let rates = rates(&self.recipe, &self.net, &self.names, at, &self.state.plateau);
            let settings = StepSettings {
                step: at.step,
                seed: self.state.seed,
                momentum: self.recipe.momentum as f32,
                rates: &rates,
            };
            // A batch of which no picture could be decoded teaches nothing.
            let weight: f32 = loaded.weights.iter().sum();
            let report = match weight > 0.0 {
                true => self.executor().train_step(loaded.as_batch(), &settings),
                false => StepReport::default(),
            };
            let pictures = loaded.samples.len();
            self.note_damaged(&loaded.damaged)?;
            self.check_finite(&report, &rates)?;
            self.count(&report);
            let seconds = clock.elapsed().as_secs_f64();
            clock = Instant::now();
            self.trained.0 += seconds;
            self.trained.1 += pictures as u64;
            let sums = self.state.sums;
            self.observer.step(&StepInfo {
                position: self.state.position,
                loss: report.loss,
                epoch_loss: sums.loss / sums.weight.max(1.0),
                epoch_top1_error: sums.top1_wrong / sums.weight.max(1.0),
                lr: base(&self.recipe, at, &self.state.plateau),
                pictures,
                seconds,
            });
            self.stop_if_asked(false)?;
            self.save_if_due()?;
        }
        Ok(())
    }

    /// Makes the plan again if other layers are frozen now. True if it did.
    fn replan(&mut self, at: Moment) -> Result<bool> {
        let frozen = frozen_below(&self.recipe, &self.net, at);
        if frozen == self.frozen {
            return Ok(false);
        }
        let (params, momentum) = (self.executor().params(), self.executor().momentum());
        // The old one goes first, so that its memory is free for the new one.
        self.executor = None;
        let mut executor = (self.compile)(frozen)?;
        executor.set_params(&params);
        executor.set_momentum(&momentum);
        self.observer.planned(executor.as_ref(), frozen);
        self.executor = Some(executor);
        self.frozen = frozen;
        self.run.log(&format!("planned again: the first {frozen} layers have no backward pass"));
        Ok(true)
    }

    fn check_finite(&self, report: &StepReport, rates: &[Rate]) -> Result<()> {
        if report.nonfinite.is_none() && report.loss.is_finite() {
            return Ok(());
        }
        let step = self.state.position.step;
        let place = match report.nonfinite.and_then(|i| self.net.layers.get(i)) {
            Some(layer) => format!("layer {}", layer.name),
            None => "the loss".into(),
        };
        let lr = rates.iter().map(|r| r.lr).fold(0.0, f32::max);
        let last = match &self.saved {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        };
        Err(Error::Diverged(format!(
            "training diverged at step {step}: {place} produced a value that is not finite; the learning rate was {lr}; \
             {last}. A smaller rate (--lr) usually helps"
        )))
    }

    /// Takes a step into the sums and the position.
    fn count(&mut self, report: &StepReport) {
        let sums = &mut self.state.sums;
        sums.loss += report.loss * report.weight;
        sums.top1_wrong += report.top1_wrong;
        sums.weight += report.weight;
        self.state.position.step += 1;
        self.state.position.batch += 1;
        if let Some(z) = self.watch.spike(report.loss) {
            self.warn(&format!(
                "step {}: the loss {:.3} is {z:.0} standard deviations above that of the last steps",
                self.state.position.step, report.loss
            ));
        }
    }

    fn warn(&mut self, text: &str) {
        self.run.log(&format!("warning: {text}"));
        self.observer.warning(text);
    }
}

/// Refuses to go on with another network, other pictures or another seed than the checkpoint's.
fn check_same_run(state: &State, net: &Network, pack: &Pack, split: SplitConfig, seed: u64) -> Result<()> {
    let difference = if state.data_fingerprint != pack.fingerprint() {
        "other pictures (a file was added, removed, renamed or changed)"
    } else if state.split != split {
        "another split"
    } else if state.seed != seed {
        "another seed"
    } else if state.network()? != *net {
        "another network"
    } else {
        return Ok(());
    };
    Err(Error::Checkpoint(format!(
        "the checkpoint belongs to a run with {difference}, so the run cannot go on as it was; a new run can start \
         from its weights: --from CHECKPOINT"
    )))
}

#[cfg(test)]
mod tests;

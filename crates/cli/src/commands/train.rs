//! `alexnet train`: trains a network; see [`crate::plan::train`] for what the arguments mean.

use crate::args::Train;
use crate::commands::recipe;
use crate::failure::Outcome;
use crate::machine;
use crate::plan::{self, train as plan_train};
use crate::screen::Screen;
use crate::stop;
use crate::terminal::{Words, bytes, count, percent, plural, print_line};
use alexnet::Result;
use alexnet::exec::{self, Mode};
use alexnet::interchange::Copied;
use alexnet::train::durable;
use alexnet::train::recipe::Recipe;
use alexnet::train::run_directory::{RunConfig, RunDirectory};
use alexnet::train::start;
use alexnet::train::trainer::{Saving, Setup, Start, Summary, train};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Runs `alexnet train`.
pub fn run(args: &Train) -> Outcome {
    match &args.resume {
        None => begin(args),
        Some(folder) => go_on(args, folder.as_deref()),
    }
}

/// A new run.
fn begin(args: &Train) -> Outcome {
    let asked = plan_train::request(args)?;
    let compute = plan_train::compute(&args.compute, &asked.precision)?;
    plan_train::check_out(args.out.as_deref(), asked.data.as_deref())?;
    let data = asked.data.as_deref();
    let (recipe, net, seed) = (&asked.recipe, &asked.recipe.net, asked.seed);
    start::check_source(recipe, &recipe.apply(plan::network(net, None)?)?)?;
    let material = plan_train::material(data, asked.format, recipe, net, seed, asked.split)?;
    let run = plan_train::run_folder(args.out.as_deref(), data)?;
    let config = RunConfig {
        data: data.map(plan_train::absolute),
        format: asked.format.map(|f| f.name().into()),
        split: material.split,
        seed: asked.seed,
        precision: asked.precision,
        differs: vec![],
        recipe: asked.recipe,
    };
    Session { args, compute, material, config, changes: asked.changes, run }.train(false)
}

/// A run that was stopped.
fn go_on(args: &Train, folder: Option<&Path>) -> Outcome {
    let (run, config, changes) = plan_train::resumed(args, folder)?;
    let compute = plan_train::compute(&args.compute, &config.precision)?;
    let data = config.data.as_deref().map(Path::new);
    let format = plan::format(config.format.as_deref())?;
    let net = plan_train::network_of(&run, &config.recipe);
    let material = plan_train::material(data, format, &config.recipe, &net, config.seed, Some(config.split))?;
    // A run that was killed before its first checkpoint begins again.
    let resume = !run.store().is_empty();
    Session { args, compute, material, config, changes, run }.train(resume)
}

/// Everything that a run needs.
struct Session<'a> {
    args: &'a Train,
    compute: plan::Compute,
    material: plan_train::Material,
    config: RunConfig,
    changes: Vec<String>,
    run: RunDirectory,
}

impl Session<'_> {
    fn train(mut self, resume: bool) -> Outcome {
        let words = Words::new(self.args.json);
        let stop = stop::on_signals()?;
        let (net, recipe) = (self.material.net.clone(), self.config.recipe.clone());
        let pack = Arc::clone(&self.material.pack);
        let threads = self.compute.threads;
        let mut copied = None;
        let start = if resume {
            let found = self.run.store().newest()?;
            for (path, why) in &found.skipped {
                words.line(&format!("warning: {} is not used: {why}", path.display()))?;
            }
            Start::Resume(Box::new(found.checkpoint))
        } else {
            let (params, report) = start::weights(&recipe, &net, self.config.seed)?;
            copied = report;
            let (preprocess, colour_axes) =
                recipe.measure(&net, &pack, &self.material.partition.train, threads)?;
            Start::Fresh { params, preprocess, colour_axes }
        };
        // A run that goes on has told the recipe's own differences before.
        let mut differs = if resume { vec![] } else { self.material.differs.clone() };
        differs.extend(std::mem::take(&mut self.changes));
        for difference in differs {
            if !self.config.differs.contains(&difference) {
                self.config.differs.push(difference);
            }
        }
        for difference in recipe.deviations.iter().chain(&self.config.differs) {
            self.run.log(&format!("differs: {difference}"));
        }
        write_network(&self.run, &net)?;
        self.run.write_config(&self.config)?;
        self.run.write_env(&environment(&self.compute, &words_of_command()))?;
        self.run.write_bad_images(pack.unreadable())?;

        let seed = self.config.seed;
        words.line(&network_words(&net)?)?;
        words.line(&recipe_words(&recipe))?;
        // What the recipe says of its source, then what this run does to the recipe.
        for difference in recipe.deviations.iter().chain(&self.config.differs) {
            words.line(&format!("  differs {difference}"))?;
        }
        if let Some(expected) = &recipe.expected {
            words.line(&format!("expected  {}", recipe::expected_words(expected)))?;
        }
        words.line(&start_words(resume, copied.as_ref(), seed))?;
        words.line(&format!("data      {}", plan::data_words(&pack)))?;
        words.line(&format!("stored    {}", plan::stored_words(pack.options())))?;
        for line in plan::unused_words(&pack, &self.material.skipped) {
            words.line(&line)?;
        }
        words.line(&format!(
            "split     {}",
            plan_train::split_words(self.material.split, &self.material.partition)
        ))?;
        words.line(&format!("results   {}", self.run.path().display()))?;

        let setup = Setup {
            net: net.clone(),
            recipe: recipe.clone(),
            pack: Arc::clone(&pack),
            split: self.material.split,
            seed,
            saving: Saving::default(),
            start,
        };
        let compute = self.compute;
        let mut compile = |frozen_below: usize| {
            let options = compute.options(recipe.batch, Mode::Train { frozen_below });
            exec::compile(&net, &exec::Options { rule: recipe.rule(), ..options })
        };
        let mut screen = Screen::new(words, compute);
        let began = Instant::now();
        let result = train(setup, &mut self.run, &mut compile, &mut screen, &stop);
        screen.finish();
        let summary = result?;
        let words = Words::new(self.args.json);
        words.line(&summary_words(&summary, began.elapsed().as_secs_f64()))?;
        if let Some(line) = lost_words(pack.unreadable().len(), summary.damaged) {
            words.line(&line)?;
        }
        words.line(&format!("use it: alexnet predict {} PICTURE...", self.run.path().display()))?;
        if self.args.json {
            let object = json!({
                "run": self.run.path().display().to_string(),
                "checkpoint": summary.checkpoint.display().to_string(),
                "net": net.name,
                "recipe": recipe.name,
                "differs": self.config.differs,
                "classes": pack.classes().len(),
                "train_pictures": self.material.partition.train.len(),
                "val_pictures": self.material.partition.val.len(),
                "unreadable": pack.unreadable().len(),
                "damaged": summary.damaged,
                "epochs": summary.last.epoch,
                "steps": summary.last.step,
                "train_loss": summary.last.train_loss,
                "train_top1_error": summary.last.train_top1_error,
                "val_loss": summary.last.val_loss,
                "val_top1_error": summary.last.val_top1_error,
                "val_top5_error": summary.last.val_top5_error,
                "val_mean_class_accuracy": summary.last.val_mean_class_accuracy,
                "best_epoch": summary.best.epoch,
                "best_val_top1_error": summary.best.val_top1_error,
                "images_per_s": summary.images_per_s,
                "seconds": began.elapsed().as_secs_f64(),
                "kernel": screen.kernel(),
                "threads": compute.threads,
                "peak_resident_bytes": machine::peak_resident_bytes(),
            });
            print_line(&object.to_string())?;
        }
        Ok(())
    }
}

fn write_network(run: &RunDirectory, net: &alexnet::Network) -> Result<()> {
    let path = run.path().join(plan_train::NETWORK);
    durable::write_bytes(&path, net.to_toml().as_bytes())
        .map_err(|e| alexnet::Error::Config(format!("{}: {e}", path.display())))
}

fn words_of_command() -> String {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// `env.json`.
fn environment(compute: &plan::Compute, command: &str) -> serde_json::Value {
    let (processor, sets) = machine::processor();
    json!({
        "program": env!("CARGO_PKG_VERSION"),
        "commit": env!("ALEXNET_COMMIT"),
        "command": command,
        "processor": processor,
        "instruction_sets": sets,
        "forced_isa": std::env::var("ALEXNET_ISA").ok(),
        "threads": compute.threads,
        "memory_bytes": machine::memory().0,
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
    })
}

fn network_words(net: &alexnet::Network) -> Result<String> {
    Ok(format!(
        "network   {} for {} classes: {} parameters, {} multiply-adds a picture, input {}",
        net.name,
        count(net.classes()),
        count(net.params()?),
        count(net.macs()?),
        net.input
    ))
}

fn recipe_words(recipe: &Recipe) -> String {
    let source = if recipe.source.is_empty() { String::new() } else { format!(" ({})", recipe.source) };
    format!(
        "recipe    {}{source}: {}, batch {}, lr {}, momentum {}, weight decay {}",
        recipe.name,
        plural(recipe.epochs as usize, "epoch", "epochs"),
        recipe.batch,
        recipe.lr,
        recipe.momentum,
        recipe.weight_decay
    )
}

fn start_words(resume: bool, copied: Option<&Copied>, seed: u64) -> String {
    match (resume, copied) {
        (true, _) => format!("start     where the run was stopped, seed {seed}"),
        (false, Some(copied)) => format!("start     {copied}; seed {seed}"),
        (false, None) => format!("start     fresh weights, seed {seed}"),
    }
}

/// A line about the pictures that had no part in the run.
fn lost_words(unreadable: usize, damaged: usize) -> Option<String> {
    let parts: Vec<String> = [(unreadable, "unreadable"), (damaged, "damaged since they were packed")]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{} {what}", count(n)))
        .collect();
    (!parts.is_empty())
        .then(|| format!("pictures without weight: {}; bad_images.jsonl names them", parts.join(", ")))
}

fn summary_words(summary: &Summary, seconds: f64) -> String {
    let last = &summary.last;
    let best = if summary.best.epoch == last.epoch {
        String::new()
    } else {
        format!("; best {} in epoch {}", percent(summary.best.val_top1_error), summary.best.epoch)
    };
    let size = std::fs::metadata(&summary.checkpoint).map_or(0, |m| m.len());
    format!(
        "done in {}: validation top-1 error {}, top-5 {}, mean class accuracy {}{best}; checkpoint {} ({})",
        crate::terminal::duration(seconds),
        percent(last.val_top1_error),
        percent(last.val_top5_error),
        percent(last.val_mean_class_accuracy),
        summary.checkpoint.display(),
        bytes(size),
    )
}

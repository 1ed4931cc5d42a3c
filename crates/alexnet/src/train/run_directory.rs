//! A run's folder: everything about one training run, complete and movable.
//!
//! | file | contents |
//! |---|---|
//! | `config.toml` | the run as it was resolved: data, split, seed, recipe |
//! | `env.json` | program, machine, kernels |
//! | `metrics.jsonl` | one line an epoch; equal runs have equal bytes |
//! | `timing.jsonl` | one line an epoch: seconds, pictures a second |
//! | `log.txt` | what was said, with the time |
//! | `bad_images.jsonl` | pictures that could not be decoded when they were packed; with `epoch`, those that were damaged since |
//! | `checkpoints/` | see [`super::checkpoint`] |
//! | `lock` | held while a process writes here |

use super::checkpoint::{EpochMetrics, Store};
use super::durable;
use super::recipe::Recipe;
use crate::data::{SplitRule, Unreadable};
use crate::error::{Error, Result};
use crate::toml_error::explain;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Pictures that have no part in the run.
const BAD_IMAGES: &str = "bad_images.jsonl";

/// `config.toml`: what a run was asked to do, with everything that was left open decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The folder or pack of pictures; absent for pictures that the program draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// How they are kept, where that was said; absent if it is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// How the pictures are split.
    pub split: SplitConfig,
    /// Keys every random number of the run.
    pub seed: u64,
    /// The number format that was asked for.
    pub precision: String,
    /// Where the run departs from the recipe of that name: flags, other pictures, another start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<String>,
    /// The recipe, with flags of the command line taken in.
    pub recipe: Recipe,
}

/// A [`SplitRule`] as TOML.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitConfig {
    /// As the folder says.
    Given,
    /// This part of each class is for validation.
    Fraction(f64),
    /// So many pictures of each class teach; the run's seed chooses them.
    TrainPerClass(usize),
}

impl SplitConfig {
    /// The rule, for a run of this seed.
    pub fn rule(self, seed: u64) -> SplitRule {
        match self {
            SplitConfig::Given => SplitRule::Given,
            SplitConfig::Fraction(fraction) => SplitRule::Fraction(fraction),
            SplitConfig::TrainPerClass(n) => SplitRule::TrainPerClass { n, seed },
        }
    }
}

/// A run directory that this process alone writes to.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Holds the lock until it is closed.
    _lock: File,
    metrics: File,
    timing: File,
    log: File,
}

impl RunDirectory {
    /// Makes a run directory; `path` must not exist, or be an empty folder.
    ///
    /// # Errors
    /// [`Error::Config`] if there is something already, or the folder cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|e| unusable(path, &e))?;
        let mut entries = std::fs::read_dir(path).map_err(|e| unusable(path, &e))?;
        if entries.next().is_some() {
            let hint = match Self::is_run(path) {
                true => "is a run already; continue it with --resume, or choose another folder with --out",
                false => "is not empty; choose another folder with --out",
            };
            return Err(Error::Config(format!("{} {hint}", path.display())));
        }
        Self::lock(path)
    }

    /// Makes the next of `parent/<name>-1`, `parent/<name>-2`, ...
    ///
    /// # Errors
    /// [`Error::Config`] if the folder cannot be made.
    pub fn create_next(parent: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(parent).map_err(|e| unusable(parent, &e))?;
        let number = |e: std::fs::DirEntry| -> Option<u64> {
            e.file_name().to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse().ok()
        };
        let entries = std::fs::read_dir(parent).map_err(|e| unusable(parent, &e))?;
        let mut next = entries.flatten().filter_map(number).max().unwrap_or(0).saturating_add(1);
        loop {
            let path = parent.join(format!("{name}-{next}"));
            // Of two processes that count at the same time, one gets the folder and the other goes on counting.
            match std::fs::create_dir(&path) {
                Ok(()) => return Self::lock(&path),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => next = next.saturating_add(1),
                Err(e) => return Err(unusable(&path, &e)),
            }
        }
    }

    /// Opens a run directory to go on with it.
    ///
    /// # Errors
    /// [`Error::Config`] if it is none, or another process holds it.
    pub fn open(path: &Path) -> Result<Self> {
        if !Self::is_run(path) {
            return Err(Error::Config(format!(
                "{} is not a run directory: it has no config.toml",
                path.display()
            )));
        }
        Self::lock(path)
    }

    /// Whether there is a run in this folder.
    pub fn is_run(path: &Path) -> bool {
        path.join("config.toml").is_file()
    }

    /// The run directory in `parent` that was written to last.
    ///
    /// # Errors
    /// [`Error::Config`] if there is none.
    pub fn newest(parent: &Path) -> Result<PathBuf> {
        let written = |run: &Path| -> Option<SystemTime> {
            let files = ["config.toml", "checkpoints", "log.txt"];
            files.iter().filter_map(|f| std::fs::metadata(run.join(f)).ok()?.modified().ok()).max()
        };
        let runs = std::fs::read_dir(parent).into_iter().flatten().flatten().map(|e| e.path());
        let runs = runs.filter(|p| Self::is_run(p)).filter_map(|p| Some((written(&p)?, p)));
        runs.max().map(|(_, path)| path).ok_or_else(|| {
            Error::Config(format!("there is no run in {}; name one: --resume DIR", parent.display()))
        })
    }

    fn lock(path: &Path) -> Result<Self> {
        let io = |e: std::io::Error| unusable(path, &e);
        let open = |name: &str| OpenOptions::new().create(true).append(true).read(true).open(path.join(name));
        let mut lock = open("lock").map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
                return Err(Error::Config(format!(
                    "{} is in use by {holder}; wait for it to end, or choose another folder with --out",
                    path.display()
                )));
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(io(e)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "process {}", std::process::id())).map_err(io)?;
        let checkpoints = path.join("checkpoints");
        match std::fs::create_dir(&checkpoints) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io(e)),
            _ => {}
        }
        durable::remove_leftovers(path);
        durable::remove_leftovers(&checkpoints);
        let (metrics, timing, log) = (open("metrics.jsonl"), open("timing.jsonl"), open("log.txt"));
        let path = path.to_path_buf();
        Ok(RunDirectory {
            metrics: metrics.map_err(io)?,
            timing: timing.map_err(io)?,
            log: log.map_err(io)?,
            path,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its checkpoints.
    pub fn store(&self) -> Store {
        Store::new(self.path.join("checkpoints"))
    }

    /// Writes `config.toml`, durably.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn write_config(&self, config: &RunConfig) -> Result<()> {
        // Text, numbers and tables of them: all have a form in TOML.
        let text = toml::to_string(config).expect("a run's configuration has a form in TOML");
        self.replace("config.toml", text.as_bytes())
    }

    /// Reads `config.toml`.
    ///
    /// # Errors
    /// [`Error::Config`] with file and line.
    pub fn read_config(&self) -> Result<RunConfig> {
        let path = self.path.join("config.toml");
        let text = std::fs::read_to_string(&path).map_err(|e| unusable(&path, &e))?;
        let config: RunConfig =
            toml::from_str(&text).map_err(|e| explain(&text, &path.display().to_string(), &e))?;
        config.recipe.check()?;
        Ok(config)
    }

    /// Writes `env.json`.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn write_env(&self, env: &serde_json::Value) -> Result<()> {
        self.replace("env.json", format!("{env:#}\n").as_bytes())
    }

    /// Writes `bad_images.jsonl`: these pictures, and those that a run which goes on found damaged before, whose paths it
    /// returns.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn write_bad_images(&self, bad: &[Unreadable]) -> Result<BTreeSet<String>> {
        let mut text: String = bad
            .iter()
            .map(|u| serde_json::json!({"path": u.path, "reason": u.reason}).to_string() + "\n")
            .collect();
        let mut damaged = BTreeSet::new();
        for line in std::fs::read_to_string(self.path.join(BAD_IMAGES)).unwrap_or_default().lines() {
            let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            if let (Some(path), true) = (value["path"].as_str(), value["epoch"].is_u64())
                && damaged.insert(path.to_string())
            {
                text += line;
                text.push('\n');
            }
        }
        self.replace(BAD_IMAGES, text.as_bytes())?;
        Ok(damaged)
    }

    /// Adds a picture that turned out to be damaged in this epoch (from 1).
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn append_bad_image(&self, bad: &Unreadable, epoch: u64) -> Result<()> {
        let line =
            serde_json::json!({"path": bad.path, "reason": bad.reason, "epoch": epoch}).to_string() + "\n";
        let path = self.path.join(BAD_IMAGES);
        let append =
            |path: &Path| OpenOptions::new().append(true).create(true).open(path)?.write_all(line.as_bytes());
        append(&path).map_err(|e| unusable(&path, &e))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        durable::write_bytes(&path, bytes).map_err(|e| unusable(&path, &e))
    }

    /// Adds an epoch to `metrics.jsonl`, durably, and returns the file's length.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it cannot be written.
    pub fn append_metrics(&mut self, metrics: &EpochMetrics) -> Result<u64> {
        // Numbers only.
        let line = serde_json::to_string(metrics).expect("metrics have a form in JSON") + "\n";
        let write = |file: &mut File| {
            file.write_all(line.as_bytes())?;
            file.sync_data()?;
            file.seek(SeekFrom::End(0))
        };
        write(&mut self.metrics)
            .map_err(|e| Error::Checkpoint(format!("{}: {e}", self.path.join("metrics.jsonl").display())))
    }

    /// Cuts `metrics.jsonl` back to `bytes`, the length that a checkpoint remembers, so that a resumed run ends in
    /// the same bytes as one that was never interrupted. A file that is shorter, because it was lost or is another,
    /// is written anew from the checkpoint's `history`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it cannot be written.
    pub fn rewind_metrics(&mut self, bytes: u64, history: &[EpochMetrics]) -> Result<()> {
        let fail = |e: std::io::Error| {
            Error::Checkpoint(format!("{}: {e}", self.path.join("metrics.jsonl").display()))
        };
        let length = self.metrics.metadata().map_err(fail)?.len();
        self.metrics.set_len(if length < bytes { 0 } else { bytes }).map_err(fail)?;
        if length < bytes {
            for metrics in history {
                self.append_metrics(metrics)?;
            }
        }
        Ok(())
    }

    /// Adds a line to `timing.jsonl`. Nothing depends on it, so a failure is passed over.
    pub fn append_timing(&mut self, line: &serde_json::Value) {
        let _ = writeln!(self.timing, "{line}");
    }

    /// Adds a line to `log.txt`, with the time. Nothing depends on it, so a failure is passed over.
    pub fn log(&mut self, text: &str) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let _ = writeln!(self.log, "{} {text}", utc(now));
    }
}

/// Seconds since 1970 as `2012-09-30T12:00:00Z`; days to date by the algorithm of the proleptic Gregorian calendar
/// in eras of 400 years.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that a leap day ends its year.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::Config(format!("{}: {error}; results go there: choose another place with --out", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::recipe::load;

    fn metrics(epoch: u64) -> EpochMetrics {
        EpochMetrics {
            epoch,
            step: 10 * epoch,
            lr: 0.01,
            train_loss: 1.0 / 3.0,
            train_top1_error: 0.5,
            val_loss: 0.25,
            val_top1_error: 0.5,
            val_top5_error: 0.0,
            val_mean_class_accuracy: 0.5,
        }
    }

    #[test]
    fn numbers_count_up_and_a_run_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let one = RunDirectory::create_next(&runs, "zfnet").unwrap();
        let two = RunDirectory::create_next(&runs, "zfnet").unwrap();
        assert!(one.path().ends_with("zfnet-1") && two.path().ends_with("zfnet-2"));
        std::fs::create_dir(runs.join("zfnet-9")).unwrap();
        assert!(RunDirectory::create_next(&runs, "zfnet").unwrap().path().ends_with("zfnet-10"));
        let error = RunDirectory::create(one.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("not empty"), "{error}");
        assert_eq!(RunDirectory::open(one.path()).unwrap_err().exit_code(), 2);
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(RunDirectory::create(&file).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_second_process_is_told_who_holds_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let run = RunDirectory::create(&path).unwrap();
        let config = RunConfig {
            data: Some("pictures".into()),
            format: None,
            split: SplitConfig::TrainPerClass(30),
            seed: 5,
            precision: "f32".into(),
            differs: vec!["a flag".into()],
            recipe: load("krizhevsky-2012").unwrap(),
        };
        run.write_config(&config).unwrap();
        assert_eq!(run.read_config().unwrap(), config);
        let error = RunDirectory::open(&path).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(run);
        RunDirectory::open(&path).unwrap();
        assert_eq!(RunDirectory::newest(dir.path()).unwrap(), path);
        assert!(RunDirectory::create(&path).unwrap_err().to_string().contains("--resume"));
        assert_eq!(config.split.rule(5), SplitRule::TrainPerClass { n: 30, seed: 5 });
    }

    #[test]
    fn metrics_are_cut_back_or_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let mut run = RunDirectory::create(&path).unwrap();
        let history: Vec<EpochMetrics> = (1..=3).map(metrics).collect();
        let lengths: Vec<u64> = history.iter().map(|m| run.append_metrics(m).unwrap()).collect();
        let file = path.join("metrics.jsonl");
        let whole = std::fs::read(&file).unwrap();
        run.rewind_metrics(lengths[1], &history[..2]).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), whole[..lengths[1] as usize]);
        assert_eq!(run.append_metrics(&history[2]).unwrap(), lengths[2]);
        assert_eq!(std::fs::read(&file).unwrap(), whole);
        std::fs::write(&file, b"{").unwrap();
        run.rewind_metrics(lengths[2], &history).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), whole);
    }

    #[test]
    fn dates_are_right() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_349_006_400, "2012-09-30T12:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }
}

//! What values a recipe may have, and where in its text a wrong one stands.

use super::{Crop, Recipe, Schedule, names};
use crate::data::{Keep, MeanAt};
use crate::error::Error;
use crate::toml_error::{at, explain, unknown};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

impl Recipe {
    /// The path of the first wrong key, and why it is wrong.
    pub(super) fn validate(&self) -> std::result::Result<(), (Vec<String>, String)> {
        let fail = |path: &str, why: String| Err((path.split('.').map(str::to_string).collect(), why));
        let within = |path: &str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                let name = path.rsplit('.').next().unwrap_or(path);
                fail(path, format!("{name} = {value} must be between {low} and {high}"))
            }
        };
        if self.epochs == 0 || self.epochs > 1_000_000 {
            return fail("epochs", format!("epochs = {} must be between 1 and 1000000", self.epochs));
        }
        if self.batch == 0 || self.batch > 65_536 {
            return fail("batch", format!("batch = {} must be between 1 and 65536", self.batch));
        }
        if self.lr.is_nan() || self.lr <= 0.0 || self.lr > 1e6 {
            return fail("lr", format!("lr = {} must be above 0", self.lr));
        }
        if let (Err(e), true) = (self.pack_options().check(), self.preprocess.side > 0) {
            return fail("preprocess.keep", e.to_string());
        }
        within("momentum", self.momentum, 0.0, 0.9999)?;
        within("weight_decay", self.weight_decay, 0.0, 1e3)?;
        within("warmup_epochs", self.warmup_epochs, 0.0, self.epochs as f64)?;
        within("warmup_from", self.warmup_from, 0.0, 1.0)?;
        if let Some(rate) = self.dropout {
            within("dropout", rate, 0.0, 0.99)?;
        }
        if let Some(limit) = self.filter_rms {
            within("filter_rms", limit, 1e-6, 1e6)?;
        }
        if let Some(lars) = &self.lars {
            within("lars.trust", lars.trust, 1e-9, 1e3)?;
        }
        if let Some(name) = self.follows.as_deref().filter(|name| names().all(|n| n != *name)) {
            let names: Vec<&str> = names().collect();
            return fail("follows", unknown("recipe", name, &names));
        }
        let schedules = [("schedule", Some(&self.schedule)), ("bias.schedule", self.bias.schedule.as_ref())];
        for (path, schedule) in schedules {
            if let Some(Err(e)) = schedule.map(Schedule::validate) {
                let message = e.to_string();
                let key = message.split(' ').next().unwrap_or_default();
                return fail(&format!("{path}.{key}"), message.clone());
            }
        }
        within("bias.lr", self.bias.lr, 0.0, 1e6)?;
        within("bias.decay", self.bias.decay, 0.0, 1e6)?;
        for (name, rates) in &self.layers {
            let bias = rates.bias_lr.unwrap_or(rates.lr);
            within(&format!("layers.{name}.lr"), rates.lr, 0.0, 1e6)?;
            within(&format!("layers.{name}.bias_lr"), bias, 0.0, 1e6)?;
            within(&format!("layers.{name}.decay"), rates.decay, 0.0, 1e6)?;
            let path = format!("layers.{name}.changes");
            for change in &rates.changes {
                let bias = change.bias_lr.unwrap_or(change.lr);
                for value in [change.lr, bias, change.from_epoch] {
                    within(&path, value, 0.0, 1e6)?;
                }
            }
            if !rates.changes.is_sorted_by_key(|c| c.from_epoch) {
                return fail(&path, "changes must be in the order of from_epoch".into());
            }
        }
        if !(8..=4096).contains(&self.preprocess.side) {
            return fail(
                "preprocess.side",
                format!("side = {} must be between 8 and 4096", self.preprocess.side),
            );
        }
        within("preprocess.divisor", self.preprocess.divisor, 1e-6, 1e6)?;
        for value in self.preprocess.std {
            within("preprocess.std", value, 1e-6, 1e6)?;
        }
        let augment = &self.augment;
        within("augment.colour_noise", augment.colour_noise, 0.0, 10.0)?;
        let [low, high] = augment.area;
        if !(0.01 <= low && low <= high && high <= 1.0) {
            return fail(
                "augment.area",
                format!("area = [{low}, {high}] must rise and lie between 0.01 and 1"),
            );
        }
        if self.preprocess.mean_at == MeanAt::View && augment.crop == Crop::RandomArea {
            return fail(
                "preprocess.mean_at",
                "mean_at = \"view\" goes with crops of the network's size, not with crop = \"random-area\""
                    .into(),
            );
        }
        if self.preprocess.mean_at == MeanAt::View && self.preprocess.keep != Keep::Square {
            return fail(
                "preprocess.mean_at",
                "mean_at = \"view\" goes with keep = \"square\": the mean picture is a square".into(),
            );
        }
        if augment.shared_by == 0 {
            return fail("augment.shared_by", "shared_by = 0 must be at least 1".into());
        }
        if ![1, 10].contains(&self.validation.views) {
            return fail("validation.views", format!("views = {} must be 1 or 10", self.validation.views));
        }
        within("validation.fraction", self.validation.fraction, 0.001, 0.9)
    }
}

/// The place of a key, by its path.
pub(super) fn span_of(text: &str, path: &[String]) -> Option<Range<usize>> {
    let root = DeTable::parse(text).ok()?;
    let mut table = root.get_ref();
    let mut found = None;
    for key in path {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == key.as_str()) else {
            break;
        };
        found = Some(name.span());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found
}

/// A deserializer's error with its place. Within a table that is read by its `kind`, serde knows the place of the
/// table only; the line of an unknown key is then looked up.
pub(super) fn refine(text: &str, origin: &str, error: &toml::de::Error) -> Error {
    let message = error.message();
    let typed = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    if let (Some(typed), Some(span)) = (typed, error.span())
        && text.get(span.clone()).is_some_and(|t| t.trim() != typed)
    {
        let after = |from: usize| {
            let rest = &text[from..];
            let lines = rest.split_inclusive('\n').scan(from, |at, line| {
                let start = *at;
                *at += line.len();
                Some((start, line))
            });
            lines.into_iter().find(|(_, line)| line.split('=').next().is_some_and(|key| key.trim() == typed))
        };
        if let Some((start, line)) = after(span.start) {
            let only: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
            return at(text, origin, Some(start..start + line.len()), &unknown("key", typed, &only));
        }
    }
    explain(text, origin, error)
}

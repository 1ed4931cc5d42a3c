//! Learning-rate schedules: a factor on the recipe's rate, a pure function of the position in the run. Only
//! [`Schedule::Plateau`] looks at what happened; what it remembers is in [`PlateauState`], which the checkpoint keeps.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a boundary in a schedule counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Passes over the training pictures.
    #[default]
    Epochs,
    /// Batches.
    Steps,
}

fn tenth() -> f64 {
    0.1
}

/// How the rate changes. In a recipe: `[schedule]` with `kind = "step"` and so on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The same rate throughout.
    #[default]
    Constant,
    /// × `factor` when the validation error has not fallen for `patience` epochs, at most `reductions` times
    /// (the paper, §5: divided by 10, three times, by hand).
    Plateau {
        /// Multiplies the rate.
        #[serde(default = "tenth")]
        factor: f64,
        /// Epochs without a new lowest error before a reduction.
        patience: u32,
        /// No more reductions than this.
        reductions: u32,
    },
    /// × `factor` every `every` epochs or steps (Caffe, torchvision).
    Step {
        /// Length of a piece.
        every: f64,
        /// Multiplies the rate.
        #[serde(default = "tenth")]
        factor: f64,
        /// What `every` counts.
        #[serde(default)]
        unit: Unit,
    },
    /// × `factor` at each boundary (run #145).
    MultiStep {
        /// Rising boundaries.
        at: Vec<f64>,
        /// Multiplies the rate.
        #[serde(default = "tenth")]
        factor: f64,
        /// What `at` counts.
        #[serde(default)]
        unit: Unit,
    },
    /// The run in `parts` equal parts, each ratio^(−1/(parts−1)) of the one before, so that the last is 1/ratio
    /// of the first: `dexp` of cuda-convnet2, ratio 250 in 4 parts for ImageNet.
    ExponentialByParts {
        /// First rate over last rate.
        ratio: f64,
        /// Number of parts, at least 2.
        parts: u32,
    },
    /// (1 − t)^power, t from 0 to 1 over the run, step by step (Caffe's `poly`).
    Polynomial {
        /// The exponent.
        power: f64,
        /// The factor is never below this.
        #[serde(default)]
        least: f64,
    },
    /// (1 + cos πt) / 2, t from 0 to 1 over the run, step by step (Loshchilov and Hutter, arXiv 1608.03983).
    Cosine,
}

/// A position in a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// Steps done.
    pub step: u64,
    /// Steps in an epoch.
    pub steps_per_epoch: u64,
    /// Epochs in the run.
    pub epochs: u64,
}

impl Moment {
    /// Epochs done, with the fraction.
    pub fn epoch(&self) -> f64 {
        self.step as f64 / self.steps_per_epoch.max(1) as f64
    }

    /// The part of the run that is done, 0 to 1.
    pub fn progress(&self) -> f64 {
        (self.step as f64 / (self.steps_per_epoch * self.epochs).max(1) as f64).min(1.0)
    }

    fn count(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Epochs => self.epoch(),
            Unit::Steps => self.step as f64,
        }
    }
}

/// What [`Schedule::Plateau`] remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlateauState {
    /// The lowest validation error so far.
    pub best: Option<f64>,
    /// Epochs since then, or since the last reduction.
    pub waited: u32,
    /// Reductions so far.
    pub reductions: u32,
}

impl Schedule {
    /// The factor on the recipe's rate at this moment.
    pub fn factor(&self, at: Moment, plateau: &PlateauState) -> f64 {
        match self {
            Schedule::Constant => 1.0,
            Schedule::Plateau { factor, .. } => factor.powi(plateau.reductions as i32),
            Schedule::Step { every, factor, unit } => factor.powi((at.count(*unit) / every).floor() as i32),
            Schedule::MultiStep { at: boundaries, factor, unit } => {
                let now = at.count(*unit);
                factor.powi(boundaries.iter().filter(|&&b| b <= now).count() as i32)
            }
            Schedule::ExponentialByParts { ratio, parts } => {
                let part = (at.progress() * f64::from(*parts)).floor().min(f64::from(*parts) - 1.0);
                ratio.powf(-part / (f64::from(*parts) - 1.0))
            }
            Schedule::Polynomial { power, least } => (1.0 - at.progress()).powf(*power).max(*least),
            Schedule::Cosine => (1.0 + (std::f64::consts::PI * at.progress()).cos()) / 2.0,
        }
    }

    /// Takes in the validation error of an epoch. True if the rate falls because of it.
    pub fn epoch_ended(&self, error: f64, state: &mut PlateauState) -> bool {
        let Schedule::Plateau { patience, reductions, .. } = self else { return false };
        if state.best.is_none_or(|best| error < best) {
            (state.best, state.waited) = (Some(error), 0);
            return false;
        }
        state.waited += 1;
        let reduce = state.waited >= *patience && state.reductions < *reductions;
        if reduce {
            state.waited = 0;
            state.reductions += 1;
        }
        reduce
    }

    /// The same course over a run `ratio` times as long: boundaries in epochs move, those in steps stay.
    pub fn stretched(mut self, ratio: f64) -> Self {
        match &mut self {
            Schedule::Step { every, unit: Unit::Epochs, .. } => *every *= ratio,
            Schedule::MultiStep { at, unit: Unit::Epochs, .. } => at.iter_mut().for_each(|b| *b *= ratio),
            Schedule::Plateau { patience, .. } => {
                *patience = (f64::from(*patience) * ratio).round().max(1.0) as u32;
            }
            // In steps, or in parts of the run.
            Schedule::Step { .. }
            | Schedule::MultiStep { .. }
            | Schedule::Constant
            | Schedule::ExponentialByParts { .. }
            | Schedule::Polynomial { .. }
            | Schedule::Cosine => {}
        }
        self
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        let factor_ok = |f: f64| f > 0.0 && f <= 1.0;
        let bad = |message: String| Err(Error::Config(message));
        match self {
            Schedule::Plateau { factor, .. }
            | Schedule::Step { factor, .. }
            | Schedule::MultiStep { factor, .. }
                if !factor_ok(*factor) =>
            {
                bad(format!("factor = {factor} must be above 0 and at most 1"))
            }
            Schedule::Plateau { patience: 0, .. } => bad("patience = 0 must be at least 1".into()),
            Schedule::Step { every, .. } if every.is_nan() || *every <= 0.0 => {
                bad(format!("every = {every} must be above 0"))
            }
            Schedule::MultiStep { at, .. } if !at.is_sorted() || at.iter().any(|b| !b.is_finite()) => {
                bad("at must hold rising numbers".into())
            }
            Schedule::ExponentialByParts { parts: 0 | 1, .. } => bad("parts must be at least 2".into()),
            Schedule::ExponentialByParts { ratio, .. } if !(1.0..=1e12).contains(ratio) => {
                bad(format!("ratio = {ratio} must be at least 1"))
            }
            Schedule::Polynomial { power, .. } if !(0.0..=100.0).contains(power) => {
                bad(format!("power = {power} must be between 0 and 100"))
            }
            Schedule::Polynomial { least, .. } if !(0.0..=1.0).contains(least) => {
                bad(format!("least = {least} must be between 0 and 1"))
            }
            _ => Ok(()),
        }
    }
}

/// The factor of a linear rise over the first `steps` steps, from `from` before the first to 1 at the last.
pub fn warm_up(steps: f64, from: f64, at: Moment) -> f64 {
    let risen = if steps <= 0.0 { 1.0 } else { ((at.step + 1) as f64 / steps).min(1.0) };
    from + (1.0 - from) * risen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(step: u64) -> Moment {
        Moment { step, steps_per_epoch: 10, epochs: 90 }
    }

    fn factor(schedule: &Schedule, step: u64) -> f64 {
        schedule.validate().unwrap();
        schedule.factor(moment(step), &PlateauState::default())
    }

    #[test]
    fn steps_fall_at_their_boundaries() {
        let step = Schedule::Step { every: 30.0, factor: 0.1, unit: Unit::Epochs };
        for (at, exponent) in [(0, 0), (299, 0), (300, 1), (599, 1), (600, 2), (899, 2)] {
            assert_eq!(factor(&step, at), 0.1f64.powi(exponent), "{at}");
        }
        let multi = Schedule::MultiStep { at: vec![25.0, 51.0, 79.0], factor: 0.1, unit: Unit::Epochs };
        for (at, exponent) in [(249, 0), (250, 1), (509, 1), (510, 2), (790, 3)] {
            assert_eq!(factor(&multi, at), 0.1f64.powi(exponent), "{at}");
        }
        let by_steps = Schedule::MultiStep { at: vec![7.0], factor: 0.5, unit: Unit::Steps };
        assert_eq!((factor(&by_steps, 6), factor(&by_steps, 7)), (1.0, 0.5));
    }

    #[test]
    fn four_parts_of_250_give_the_rates_of_2014() {
        let schedule = Schedule::ExponentialByParts { ratio: 250.0, parts: 4 };
        // .01, .001587, .000252, .00004 at 0, 25, 50, 75 % of the run.
        for (step, rate) in
            [(0, 0.01), (224, 0.01), (225, 0.001587), (450, 0.000252), (675, 0.00004), (900, 0.00004)]
        {
            let got = 0.01 * factor(&schedule, step);
            assert!((got / rate - 1.0).abs() < 1e-3, "step {step}: {got} {rate}");
        }
    }

    #[test]
    fn smooth_schedules_end_at_zero() {
        let polynomial = |least| Schedule::Polynomial { power: 2.0, least };
        assert_eq!((factor(&polynomial(0.0), 450), factor(&polynomial(0.0), 900)), (0.25, 0.0));
        // 0.02 to 5e-6.
        assert_eq!((factor(&polynomial(2.5e-4), 450), factor(&polynomial(2.5e-4), 899)), (0.25, 2.5e-4));
        assert!((factor(&Schedule::Cosine, 450) - 0.5).abs() < 1e-12);
        assert_eq!((factor(&Schedule::Cosine, 0), factor(&Schedule::Cosine, 900)), (1.0, 0.0));
    }

    #[test]
    fn a_plateau_is_waited_for_and_cut_a_limited_number_of_times() {
        let schedule = Schedule::Plateau { factor: 0.1, patience: 2, reductions: 2 };
        let mut state = PlateauState::default();
        let errors = [0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7];
        let cuts: Vec<bool> = errors.iter().map(|&e| schedule.epoch_ended(e, &mut state)).collect();
        assert_eq!(cuts, [false, false, false, true, false, false, true, false, false, false]);
        assert_eq!(schedule.factor(moment(0), &state), 0.1f64.powi(2));
    }

    #[test]
    fn warm_up_rises_linearly() {
        let rise = |step| warm_up(10.0, 0.0, moment(step));
        assert_eq!((warm_up(0.0, 0.0, moment(0)), rise(0), rise(4)), (1.0, 0.1, 0.5));
        assert_eq!((rise(9), rise(500)), (1.0, 1.0));
        // From 1 to 10 in 600 steps.
        let large = |step| 10.0 * warm_up(600.0, 0.1, moment(step));
        assert!((large(299) - 5.5).abs() < 1e-12 && (large(0) - 1.015).abs() < 1e-12);
        assert_eq!((large(599), large(600)), (10.0, 10.0));
    }

    #[test]
    fn impossible_numbers_are_refused() {
        for bad in [
            Schedule::Step { every: 0.0, factor: 0.1, unit: Unit::Epochs },
            Schedule::Step { every: 1.0, factor: 0.0, unit: Unit::Epochs },
            Schedule::Step { every: 1.0, factor: f64::NAN, unit: Unit::Epochs },
            Schedule::MultiStep { at: vec![3.0, 2.0], factor: 0.1, unit: Unit::Epochs },
            Schedule::ExponentialByParts { ratio: 250.0, parts: 1 },
            Schedule::Plateau { factor: 0.1, patience: 0, reductions: 3 },
            Schedule::Polynomial { power: -1.0, least: 0.0 },
            Schedule::Polynomial { power: 2.0, least: 2.0 },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}

//! The computing of `alexnet eval`: each network in turn over the pictures, and all of them as one.

use super::Answers;
use crate::machine;
use crate::plan::{
    Compute,
    eval::{Computed, Material, Request, Source},
};
use crate::progress::Progress;
use crate::stop;
use crate::terminal::{bytes, plural};
use alexnet::eval::ensemble::{self, Fitted, Weights, fit, to_sum_one};
use alexnet::eval::predictions::Table;
use alexnet::eval::{Tally, views};
use alexnet::exec::Mode;
use alexnet::{Error, Result};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Views in a batch.
const BATCH: usize = 128;

/// Receives the position of a picture among those in common, with its probabilities.
type Each<'a> = dyn FnMut(usize, &[f32]) -> Result<()> + 'a;

/// What was found beside the figures of all networks as one.
pub struct Figures {
    /// Of each network alone.
    pub members: Vec<Alone>,
    /// One a network, sum 1.
    pub weights: Vec<f64>,
    /// If weights were fitted.
    pub fitted: Option<FittedFigures>,
}

/// One network's own figures.
pub struct Alone {
    /// Over the pictures that count.
    pub tally: Tally,
    /// Pictures a second and the kernels; none if the answers were computed earlier.
    pub computed: Option<(f64, String)>,
}

/// How fitting went.
pub struct FittedFigures {
    /// Pictures that the weights were fitted on.
    pub pictures: usize,
    /// What was found on them.
    pub found: Fitted,
    /// Equal weights over the pictures that count.
    pub equal: Tally,
}

/// The work, with everything that it needs.
pub struct Work<'a> {
    request: &'a Request<'a>,
    material: &'a Material,
    compute: Compute,
    stop: &'a AtomicBool,
    /// The pictures that weights are fitted on; empty if none are.
    fit_on: Vec<u32>,
    /// Whether a picture counts in the figures: all do but those that weights are fitted on.
    counts: Vec<bool>,
}

impl<'a> Work<'a> {
    /// Decides which pictures count.
    ///
    /// # Errors
    /// [`Error::Data`] if there are too few for two halves.
    pub fn new(
        request: &'a Request<'a>,
        material: &'a Material,
        compute: Compute,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let mut counts = vec![true; material.len()];
        let mut fit_on = vec![];
        if request.weights == Weights::Fit {
            fit_on = ensemble::halves(&material.common.labels, |i| material.path(i as usize)).0;
            fit_on.iter().for_each(|&i| counts[i as usize] = false);
            if fit_on.is_empty() || fit_on.len() == material.len() {
                return Err(Error::Data(format!(
                    "--weights fit: {} cannot be halved",
                    plural(material.len(), "picture", "pictures")
                )));
            }
        }
        Ok(Work { request, material, compute, stop, fit_on, counts })
    }

    /// Computes what is not saved, weighs, and hands every picture that counts to `answers`.
    ///
    /// # Errors
    /// Of computing and writing; [`Error::Device`] if the probabilities do not fit in memory.
    pub fn measure(&self, answers: &mut Answers) -> Result<Figures> {
        if self.material.members.len() == 1 {
            // Nothing is kept but what is counted.
            let computed = self.member(0, &mut |i, row| answers.take(i, row))?;
            let members = vec![Alone { tally: answers.tally.clone(), computed }];
            return Ok(Figures { members, weights: vec![1.0], fitted: None });
        }
        self.check_memory()?;
        match self.given() {
            Some(weights) => self.measure_weighed(weights, answers),
            None => self.measure_fitted(answers),
        }
    }

    /// The weights, unless they are to be found.
    fn given(&self) -> Option<Vec<f64>> {
        match &self.request.weights {
            Weights::Equal => Some(to_sum_one(&vec![1.0; self.material.members.len()])),
            Weights::Given(given) => Some(to_sum_one(given)),
            Weights::Fit => None,
        }
    }

    /// Probabilities that are computed are added up at once, so that one table holds them all.
    fn measure_weighed(&self, weights: Vec<f64>, answers: &mut Answers) -> Result<Figures> {
        let classes = self.material.classes.len();
        let mut sum = vec![];
        let mut saved = vec![];
        let mut members = vec![];
        for (m, member) in self.material.members.iter().enumerate() {
            let weight = weights[m] as f32;
            let mut tally = Tally::new(classes);
            let mut total: &mut [f32] = &mut [];
            match &member.source {
                Source::Saved(predictions) => {
                    saved.push((Table::Saved(predictions, &self.material.common.rows[m]), weight));
                }
                Source::Model(_) => {
                    sum.resize(self.material.len() * classes, 0.0f32);
                    total = &mut sum;
                }
            }
            let computed = self.member(m, &mut |i, row| {
                tally.add(row, self.material.common.labels[i]);
                let own = total.get_mut(i * classes..(i + 1) * classes).unwrap_or_default();
                own.iter_mut().zip(row).for_each(|(s, p)| *s += weight * p);
                Ok(())
            })?;
            members.push(Alone { tally, computed });
        }
        let mut tables = saved;
        if !sum.is_empty() {
            tables.insert(0, (Table::Memory(sum), 1.0));
        }
        self.combine(&tables, &mut |i, row| answers.take(i, row))?;
        Ok(Figures { members, weights, fitted: None })
    }

    fn measure_fitted(&self, answers: &mut Answers) -> Result<Figures> {
        let (labels, classes) = (&self.material.common.labels, self.material.classes.len());
        let mut tables = vec![];
        let mut members = vec![];
        for (m, member) in self.material.members.iter().enumerate() {
            let mut tally = Tally::new(classes);
            let mut own = vec![];
            let keep = matches!(member.source, Source::Model(_));
            let computed = self.member(m, &mut |i, row| {
                if self.counts[i] {
                    tally.add(row, labels[i]);
                }
                if keep {
                    own.extend_from_slice(row);
                }
                Ok(())
            })?;
            members.push(Alone { tally, computed });
            tables.push(match &member.source {
                Source::Model(_) => Table::Memory(own),
                Source::Saved(predictions) => Table::Saved(predictions, &self.material.common.rows[m]),
            });
        }
        let mut progress = Progress::new("weighing");
        let mut told = |done, all| progress.update(done, all, "");
        let found = fit(&tables, labels, &self.fit_on, classes, self.compute.threads, &mut told);
        progress.finish();
        let weights = to_sum_one(&found.weights);
        let alike = 1.0 / tables.len() as f32;
        let mut tables: Vec<(Table, f32)> = tables.into_iter().map(|table| (table, alike)).collect();
        let mut equal = Tally::new(classes);
        self.combine(&tables, &mut |i, row| {
            equal.add(row, labels[i]);
            Ok(())
        })?;
        tables.iter_mut().zip(&weights).for_each(|((_, weight), &w)| *weight = w as f32);
        self.combine(&tables, &mut |i, row| answers.take(i, row))?;
        let fitted = Some(FittedFigures { pictures: self.fit_on.len(), found, equal });
        Ok(Figures { members, weights, fitted })
    }

    /// The weighted sum of the tables for every picture that counts.
    fn combine(&self, tables: &[(Table, f32)], each: &mut Each) -> Result<()> {
        let mut sum = vec![0.0f32; self.material.classes.len()];
        let mut scratch = vec![];
        let mut progress = Progress::new("averaging");
        for i in (0..self.material.len()).filter(|&i| self.counts[i]) {
            stop::check(self.stop)?;
            sum.fill(0.0);
            for (table, weight) in tables {
                table.add_row(i, *weight, &mut sum, &mut scratch);
            }
            each(i, &sum)?;
            progress.update(i + 1, self.material.len(), "");
        }
        Ok(())
    }

    /// One network's answers about all pictures, in order. Pictures a second and kernels, if they are computed now.
    fn member(&self, m: usize, each: &mut Each) -> Result<Option<(f64, String)>> {
        let n = self.material.members.len();
        let what = if n == 1 { "measuring".into() } else { format!("measuring {} of {n}", m + 1) };
        let mut progress = Progress::new(what);
        match &self.material.members[m].source {
            Source::Saved(predictions) => {
                let mut row = vec![0.0; self.material.classes.len()];
                for (i, &own) in self.material.common.rows[m].iter().enumerate() {
                    stop::check(self.stop)?;
                    predictions.read_row(own as usize, &mut row);
                    each(i, &row)?;
                    progress.update(i + 1, self.material.len(), "");
                }
                Ok(None)
            }
            Source::Model(computed) => self.compute(m, computed, &mut progress, each).map(Some),
        }
    }

    fn compute(
        &self,
        m: usize,
        computed: &Computed,
        progress: &mut Progress,
        each: &mut Each,
    ) -> Result<(f64, String)> {
        let pictures = &self.material.common.rows[m];
        let views = self.request.views;
        let batch = BATCH.min(pictures.len() * views.len());
        let mut executor = computed.with_weights(|model| {
            model.executor(self.compute.options(batch, Mode::Infer { last: None }), None)
        })?;
        let start = Instant::now();
        let mut done = 0;
        views::mean_outputs(
            executor.as_mut(),
            &computed.pack,
            pictures,
            &computed.model.preprocess,
            views,
            &mut |picture, answer| {
                stop::check(self.stop)?;
                let row = answer.ok_or_else(|| {
                    Error::Data(format!(
                        "{} could be read and now cannot",
                        computed.pack.path(picture as usize)
                    ))
                })?;
                each(done, row)?;
                done += 1;
                progress.update(done, pictures.len(), "");
                Ok(())
            },
        )?;
        computed.pack.verify_unchanged()?;
        Ok((done as f64 / start.elapsed().as_secs_f64(), executor.kernel_name()))
    }

    /// Refuses tables that are larger than the memory that is free.
    fn check_memory(&self) -> Result<()> {
        let computed = self.material.members.iter().filter(|m| matches!(m.source, Source::Model(_))).count();
        let tables = if self.request.weights == Weights::Fit { computed } else { computed.min(1) };
        let needed = (tables * self.material.len() * self.material.classes.len() * size_of::<f32>()) as u64;
        match machine::memory().1 {
            Some(free) if needed > free => Err(Error::Device(format!(
                "the probabilities of {} and {} take {}, and {} of memory are free; save those of each network with \
                 --save-predictions and give eval the files, which are read from the disk",
                plural(self.material.len(), "picture", "pictures"),
                plural(tables, "network", "networks"),
                bytes(needed),
                bytes(free)
            ))),
            _ => Ok(()),
        }
    }
}

//! `alexnet eval`: error rates of one network, or of several as one; see [`crate::plan::eval`] for what the arguments
//! mean.

mod measure;
mod report;

use crate::args::Eval;
use crate::failure::{Failure, Outcome};
use crate::plan::{self, eval::Material};
use crate::stop;
use crate::terminal::{Words, complain, print_line};
use alexnet::Result;
use alexnet::eval::mistakes::Mistakes;
use alexnet::eval::rows::RowFile;
use alexnet::eval::{Tally, predictions, submission};
use alexnet::train::durable;
use measure::Work;
use std::io::ErrorKind::BrokenPipe;
use std::path::Path;

/// Runs `alexnet eval`.
pub fn run(args: &Eval) -> Outcome {
    let words = Words::new(args.json);
    let request = plan::eval::request(args)?;
    let compute = plan::Compute::of(&args.compute)?;
    let material = plan::eval::material(&request)?;
    match report::introduction(&words, &material, request.views.len()) {
        // Nobody reads, but there are files to write.
        Err(e)
            if e.kind() == BrokenPipe && (args.save_predictions.is_some() || args.submission.is_some()) => {}
        said => said?,
    }
    let stop = stop::on_signals()?;
    let mut answers = Answers::new(args, &material, request.views.len())?;
    let work = Work::new(&request, &material, compute, &stop)?;
    let figures = work.measure(&mut answers).map_err(stop::unfinished)?;
    // Before anything is said: a reader that goes away does not cost the files.
    let saved = answers.write_files(args)?;
    report::figures(&words, &material, &figures, &answers.tally)?;
    report::details(&words, args, &material, &answers)?;
    saved.iter().try_for_each(|line| words.line(line))?;
    let accuracy = 1.0 - answers.tally.top1_error();
    let passed = request.min_top1.is_none_or(|x| accuracy >= x);
    if args.json {
        print_line(&report::json(args, &request, &material, &figures, &answers, passed).to_string())?;
    }
    match request.min_top1.filter(|_| !passed) {
        None => Ok(()),
        Some(x) => {
            complain(&format!("top-1 accuracy {accuracy:.4} is below --min-top1 {x}"));
            Err(Failure::Negative)
        }
    }
}

/// What becomes of the answer about each picture: it is counted, and kept in the files that are wanted.
pub struct Answers<'a> {
    material: &'a Material,
    tally: Tally,
    mistakes: Mistakes,
    saved: Option<RowFile>,
    submission: Option<Submission>,
}

impl<'a> Answers<'a> {
    fn new(args: &Eval, material: &'a Material, views: usize) -> Result<Self> {
        let saved = args.save_predictions.as_deref().map(|out| {
            let nets: Vec<&str> = material.members.iter().map(|m| m.net()).collect();
            let names: Vec<&str> = material.members.iter().map(|m| m.name.as_str()).collect();
            predictions::create(out, &nets.join(" + "), &names.join(" + "), views, &material.classes)
        });
        let mut submission = args.submission.as_ref().map(|_| Submission::default());
        if let Some(submission) = &mut submission {
            material.unreadable.iter().for_each(|path| submission.add(path, None));
        }
        Ok(Answers {
            material,
            tally: Tally::new(material.classes.len()),
            mistakes: Mistakes::new(args.worst),
            saved: saved.transpose()?,
            submission,
        })
    }

    /// Takes the probabilities of picture `i`.
    pub fn take(&mut self, i: usize, probabilities: &[f32]) -> Result<()> {
        let label = self.material.common.labels[i];
        self.tally.add(probabilities, label);
        self.mistakes.add(i as u32, probabilities, label);
        let path = self.material.path(i);
        if let Some(saved) = &mut self.saved {
            saved.push(path, Some(label), probabilities)?;
        }
        if let Some(submission) = &mut self.submission {
            // Lines have the data's own numbers: ILSVRC's are not the order of the networks' outputs.
            match &self.material.matching {
                None => submission.add(path, Some(probabilities)),
                Some(m) => {
                    let own: Vec<f32> =
                        m.outputs.iter().map(|&output| probabilities[output as usize]).collect();
                    submission.add(path, Some(&own));
                }
            }
        }
        Ok(())
    }

    /// Puts the files in their places; says so in words.
    fn write_files(&mut self, args: &Eval) -> Result<Vec<String>> {
        let mut words = vec![];
        if let (Some(saved), Some(out)) = (self.saved.take(), &args.save_predictions) {
            saved.finish()?;
            words.push(format!("saved     probabilities in {}", out.display()));
        }
        if let (Some(submission), Some(out)) = (self.submission.take(), &args.submission) {
            submission.write(out)?;
            words.push(format!("saved     five guesses a line in {}", out.display()));
        }
        Ok(words)
    }
}

/// The lines of `--submission`.
#[derive(Default)]
pub struct Submission {
    /// (path, guesses); no guesses for a picture that could not be decoded.
    pictures: Vec<(String, Option<Vec<u32>>)>,
}

impl Submission {
    /// Adds a picture; without probabilities if it could not be decoded.
    pub fn add(&mut self, path: &str, probabilities: Option<&[f32]>) {
        self.pictures.push((path.to_string(), probabilities.map(submission::guesses)));
    }

    /// Writes the lines in the order that ILSVRC's numbers give, else that of the paths.
    pub fn write(mut self, out: &Path) -> Result<()> {
        submission::sort(&mut self.pictures, |(path, _)| path);
        for (path, _) in self.pictures.iter().filter(|(_, guesses)| guesses.is_none()) {
            complain(&format!("warning: {path} cannot be read: its line in {} has no guess", out.display()));
        }
        let mut text = String::new();
        for (_, guesses) in &self.pictures {
            text.push_str(&submission::line(guesses.as_deref()));
            text.push('\n');
        }
        durable::write_bytes(out, text.as_bytes())
            .map_err(|e| alexnet::Error::Config(format!("cannot write {}: {e}", out.display())))
    }
}

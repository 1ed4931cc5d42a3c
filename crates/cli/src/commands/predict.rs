//! `alexnet predict`: the likeliest classes of pictures.

use super::eval::Submission;
use crate::args::{Format, Predict};
use crate::failure::Outcome;
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{plural, print_line};
use alexnet::eval::files;
use alexnet::eval::metrics::largest;
use alexnet::eval::model::Model;
use alexnet::{Error, Result};
use serde_json::json;
use std::path::Path;

/// Pictures in a batch: enough to keep the kernels busy, little memory.
const BATCH: usize = 32;

/// Runs `alexnet predict`.
pub fn run(args: &Predict) -> Outcome {
    plan::at_least_one("--top", args.top)?;
    let views = plan::views(args.views)?;
    if let Some(out) = &args.submission {
        plan::can_create("--submission", out)?;
        for folder in args.paths.iter().filter(|path| path.is_dir()) {
            plan::refuse_inside(out, folder).map_err(|e| Error::Config(format!("--submission: {e}")))?;
        }
    }
    let model = plan::open_model(&args.model)?;
    let paths = files::expand(&args.paths)?;
    let compute = plan::Compute::of(&args.compute)?;
    let mode = alexnet::exec::Mode::Infer { last: None };
    let batch = BATCH.min(paths.len() * views.len());
    let mut executor = model.executor(compute.options(batch, mode), None)?;
    let mut submission = args.submission.as_ref().map(|_| Submission::default());
    let mut printer =
        Printer { args, model: &model, csv: csv::Writer::from_writer(std::io::stdout()), lost: None };
    printer.head();
    let mut progress = Progress::new("predicting");
    let (mut done, mut unreadable) = (0, 0);
    let mut each = |path: &Path, answer: std::result::Result<&[f32], &str>| {
        done += 1;
        unreadable += usize::from(answer.is_err());
        if let Some(submission) = &mut submission {
            submission.add(&path.to_string_lossy(), answer.ok());
        }
        if printer.lost.is_none() {
            let _ = progress.line(|| {
                printer.picture(path, answer);
                Ok(())
            });
        }
        progress.update(done, paths.len(), "");
        // Any error ends the work, unless there is a file to write; the writing error itself is kept in the printer.
        if printer.lost.is_some() && submission.is_none() {
            Err(Error::Config("standard output is gone".into()))
        } else {
            Ok(())
        }
    };
    let preprocess = &model.preprocess;
    let result = files::outputs(executor.as_mut(), &paths, preprocess, views, compute.threads, &mut each);
    if submission.is_none()
        && let Some(lost) = printer.lost
    {
        return Err(lost.into());
    }
    result?;
    progress.finish();
    if unreadable < paths.len()
        && let (Some(submission), Some(out)) = (submission, &args.submission)
    {
        submission.write(out)?;
    }
    if let Some(lost) = printer.lost {
        return Err(lost.into());
    }
    Ok(check_all_read(unreadable, paths.len())?)
}

/// What remains to be said when the readable pictures are done: that others could not be read makes the command fail.
///
/// # Errors
/// [`Error::Data`] with their number.
pub fn check_all_read(unreadable: usize, total: usize) -> Result<()> {
    let pictures = plural(total, "picture", "pictures");
    match unreadable {
        0 => Ok(()),
        n if n == total => Err(Error::Data(format!("{pictures}: none of them can be read"))),
        n => Err(Error::Data(format!(
            "{n} of {pictures} could not be read; the answers about the others are complete"
        ))),
    }
}

struct Printer<'a> {
    args: &'a Predict,
    model: &'a Model,
    csv: csv::Writer<std::io::Stdout>,
    /// The first error of writing.
    lost: Option<std::io::Error>,
}

impl Printer<'_> {
    fn head(&mut self) {
        if self.args.format == Format::Csv {
            self.row(&["path", "rank", "class", "probability", "error"]);
        }
    }

    fn row(&mut self, fields: &[&str]) {
        let written = self.csv.write_record(fields).map_err(io_error).and_then(|()| self.csv.flush());
        self.note(written);
    }

    fn note(&mut self, written: std::io::Result<()>) {
        if let (Err(error), None) = (written, &self.lost) {
            self.lost = Some(error);
        }
    }

    fn picture(&mut self, path: &Path, answer: std::result::Result<&[f32], &str>) {
        let shown = path.display().to_string();
        let top = answer.map(|probabilities| largest(probabilities, self.args.top));
        match (self.args.format, top) {
            (Format::Table, Ok(top)) => {
                let lines = top
                    .iter()
                    .map(|&(class, p)| format!("\n  {:6.2} %  {}", 100.0 * p, self.model.classes[class]));
                let written = print_line(&(shown + &lines.collect::<String>()));
                self.note(written);
            }
            (Format::Table, Err(reason)) => {
                let written = print_line(&format!("{shown}\n  unreadable: {reason}"));
                self.note(written);
            }
            (Format::Csv, Ok(top)) => {
                for (rank, (class, p)) in top.iter().enumerate() {
                    let (rank, p) = ((rank + 1).to_string(), p.to_string());
                    self.row(&[&shown, &rank, &self.model.classes[*class], &p, ""]);
                }
            }
            (Format::Csv, Err(reason)) => self.row(&[&shown, "", "", "", reason]),
            (Format::Jsonl, Ok(top)) => {
                let top: Vec<_> = top
                    .iter()
                    .map(|&(class, p)| json!({ "class": self.model.classes[class], "index": class, "probability": p }))
                    .collect();
                let written = print_line(&json!({ "path": shown, "predictions": top }).to_string());
                self.note(written);
            }
            (Format::Jsonl, Err(reason)) => {
                let written = print_line(&json!({ "path": shown, "error": reason }).to_string());
                self.note(written);
            }
        }
    }
}

/// The error of writing itself: its kind tells a reader that went away from a disk that is full.
fn io_error(error: csv::Error) -> std::io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => std::io::Error::other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_cannot_be_read_is_an_error() {
        for unreadable in [2, 3] {
            assert_eq!(check_all_read(unreadable, 3).unwrap_err().exit_code(), 3);
        }
        assert!(check_all_read(0, 3).is_ok());
    }
}

//! `alexnet features`: a layer's activations as a file.

use super::predict::check_all_read;
use crate::args::Features;
use crate::failure::Outcome;
use crate::plan;
use crate::progress::Progress;
use crate::stop;
use crate::terminal::{complain, plural, print_line};
use alexnet::data::View;
use alexnet::eval::{features, files};
use alexnet::exec::Mode;
use std::path::Path;

/// Pictures in a batch.
const BATCH: usize = 32;

/// Runs `alexnet features`.
pub fn run(args: &Features) -> Outcome {
    let model = plan::open_model(&args.model)?;
    let last = match &args.layer {
        Some(name) => features::last_layer(&model.net, name)?,
        None => features::last_layer(&model.net, features::default_layer(&model.net))?,
    };
    let paths = files::expand(&args.paths)?;
    plan::can_create("--out", &args.out)?;
    for folder in args.paths.iter().filter(|path| path.is_dir()) {
        plan::refuse_inside(&args.out, folder)?;
    }
    let compute = plan::Compute::of(&args.compute)?;
    let options = compute.options(BATCH.min(paths.len()), Mode::Infer { last: Some(last) });
    let mut executor = model.executor(options, Some(last))?;
    let mut found = features::Features::create(&args.out, &model.net, last, &model.classes)?;
    let stop = stop::on_signals()?;
    let mut progress = Progress::new("computing");
    let mut done = 0;
    let mut each = |path: &Path, answer: Result<&[f32], &str>| {
        stop::check(&stop)?;
        match answer {
            Ok(values) => found.add(path, values)?,
            Err(reason) => {
                let line = format!("unreadable: {}: {reason}", path.display());
                let _ = progress.line(|| {
                    complain(&line);
                    Ok(())
                });
            }
        }
        done += 1;
        progress.update(done, paths.len(), "");
        Ok(())
    };
    let (preprocess, views) = (&model.preprocess, &[View::Centre]);
    files::outputs(executor.as_mut(), &paths, preprocess, views, compute.threads, &mut each)
        .map_err(stop::unfinished)?;
    progress.finish();
    let unreadable = paths.len() - found.len();
    if found.is_empty() {
        return Ok(check_all_read(unreadable, paths.len())?);
    }
    let shape: Vec<String> = found.shape().iter().map(usize::to_string).collect();
    let n = found.len();
    found.finish()?;
    print_line(&format!(
        "{}, layer {}, {} values each, in {}",
        plural(n, "picture", "pictures"),
        model.net.layers[last].name,
        shape.join("×"),
        args.out.display()
    ))?;
    Ok(check_all_read(unreadable, paths.len())?)
}

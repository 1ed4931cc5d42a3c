//! `alexnet features`: a layer's activations as a file.

use super::predict::all_unreadable;
use crate::args::Features;
use crate::failure::Outcome;
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{complain, plural, print_line};
use alexnet::eval::{features, files};
use alexnet::exec::Mode;

/// Pictures in a batch.
const BATCH: usize = 32;

/// Runs `alexnet features`.
pub fn run(args: &Features) -> Outcome {
    let model = plan::open_model(&args.model)?;
    let last = features::last_layer(&model.net, &args.layer)?;
    let paths = files::expand(&args.paths)?;
    plan::can_create(&args.out)?;
    let compute = plan::Compute::of(&args.compute)?;
    let options = compute.options(BATCH.min(paths.len()), Mode::Infer { last: Some(last) });
    let mut executor = model.executor(options, Some(last))?;
    let mut found = features::Features::new(&model.net, last, &model.classes)?;
    let mut progress = Progress::new("computing");
    let mut done = 0;
    files::outputs(executor.as_mut(), &paths, &model.preprocess, compute.threads, &mut |path, answer| {
        match answer {
            Ok(values) => found.add(path, values),
            Err(reason) => complain(&format!("unreadable: {}: {reason}", path.display())),
        }
        done += 1;
        progress.update(done, paths.len(), "");
        Ok(())
    })?;
    progress.finish();
    all_unreadable(
        paths.len() - found.len(),
        paths.len(),
        "none of them can be read, and no file was written",
    )?;
    found.save(&args.out)?;
    let shape: Vec<String> = found.shape().iter().map(usize::to_string).collect();
    print_line(&format!(
        "{}, layer {}, {} values each, in {}",
        plural(found.len(), "picture", "pictures"),
        model.net.layers[last].name,
        shape.join("×"),
        args.out.display()
    ))?;
    Ok(())
}

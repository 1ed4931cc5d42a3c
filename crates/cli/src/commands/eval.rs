//! `alexnet eval`: a trained network's error rates.

use crate::args::Eval;
use crate::failure::Outcome;
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{Words, count, percent, plural, print_line};
use alexnet::Error;
use alexnet::eval::views;
use alexnet::exec::Mode;
use serde_json::json;
use std::sync::Arc;

/// Pictures in a batch.
const BATCH: usize = 64;
/// How many of the most confused pairs are printed.
const CONFUSED: usize = 5;

/// Runs `alexnet eval`.
pub fn run(args: &Eval) -> Outcome {
    let words = Words::new(args.json);
    let views = views::of_number(args.views).map_err(|e| Error::Config(format!("--views: {e}")))?;
    let compute = plan::Compute::of(&args.compute)?;
    let model = plan::open_model(&args.model)?;
    let (pack, skipped) =
        plan::pictures(&args.data, plan::format(args.format.as_deref())?, &model.preprocess.pack_options())?;
    let (pictures, part) = plan::held_out(&model, &pack)?;
    let classes = plural(model.classes.len(), "class", "classes");
    words.line(&format!("model     {} for {classes}, {}", model.net.name, model.path.display()))?;
    words.line(&format!("data      {}", plan::data_words(&pack)))?;
    for line in plan::unused_words(&pack, &skipped) {
        words.line(&line)?;
    }
    words.line(&format!("measured  {part}; {}", plural(views.len(), "view", "views")))?;

    let mut executor = model.executor(compute.options(BATCH, Mode::Infer { last: None }), None)?;
    let pack = Arc::new(pack);
    let mut progress = Progress::new("measuring");
    let start = std::time::Instant::now();
    let tally = views::tally(
        executor.as_mut(),
        &pack,
        &pictures,
        &model.preprocess,
        views,
        compute.threads,
        &mut |done, total| progress.update(done, total, ""),
    )?;
    progress.finish();
    let seconds = start.elapsed().as_secs_f64();
    let images = tally.pictures();
    words.line(&format!(
        "top-1 error {}, top-5 error {}, mean class accuracy {}, loss {:.4} ({} pictures, {:.1} images/s)",
        percent(tally.top1_error()),
        percent(tally.top5_error()),
        percent(tally.mean_class_accuracy()),
        tally.mean_log_loss(),
        count(images as usize),
        images as f64 / seconds,
    ))?;
    for (label, predicted, n) in tally.most_confused(CONFUSED) {
        let name = |class: u32| &model.classes[class as usize];
        words.line(&format!("  {} taken for {}: {n}", name(label), name(predicted)))?;
    }
    if args.json {
        let object = json!({
            "model": model.path.display().to_string(),
            "net": model.net.name,
            "part": part,
            "images": images,
            "unreadable": pack.unreadable().len(),
            "classes": model.classes.len(),
            "views": views.len(),
            "top1_error": tally.top1_error(),
            "top5_error": tally.top5_error(),
            "mean_class_accuracy": tally.mean_class_accuracy(),
            "loss": tally.mean_log_loss(),
            "images_per_s": images as f64 / seconds,
            "kernel": executor.kernel_name(),
        });
        print_line(&object.to_string())?;
    }
    Ok(())
}

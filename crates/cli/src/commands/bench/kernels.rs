//! `alexnet bench kernels`: every pass of every stage beside what the machine can do at best. The reference loops run
//! between the steps, so that a machine that is slower for a while is slower for both.

use super::pictures::Pictures;
use super::{Steps, WARM_UP};
use crate::args::BenchKernels;
use crate::failure::{Failure, Outcome};
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{Words, bytes, print_line};
use alexnet::exec::{self, Mode};
use alexnet::train::init;
use alexnet_kernels::bf16::Engine;
use alexnet_kernels::{Context, limits};
use serde_json::json;
use std::time::Instant;

/// Elements of the arrays of the stream loop, 128 MiB each.
const STREAM: usize = 32 << 20;

/// Times of one pass, milliseconds, in the order of the steps.
struct Row {
    stage: String,
    pass: &'static str,
    flop: f64,
    winograd: bool,
    bytes: f64,
    times_ms: Vec<f64>,
}

/// Runs `alexnet bench kernels`.
pub fn run(args: &BenchKernels) -> Outcome {
    let words = Words::new(args.json);
    let net = plan::network(&args.net, None)?;
    plan::at_least_one("--batch", args.batch)?;
    plan::at_least_one("--steps", args.steps)?;
    let mode = if args.infer { Mode::Infer { last: None } } else { Mode::Train { frozen_below: 0 } };
    let compute = plan::Compute::of(&args.compute)?;
    let mut executor = exec::compile(&net, &compute.options(args.batch, mode))?;
    executor.set_params(&init::fresh(&net, 0)?);
    words.line(&format!(
        "{} of {}, batch {}, {}, {} threads, plan {}",
        if args.infer { "inference" } else { "training" },
        net.name,
        args.batch,
        executor.kernel_name(),
        compute.threads,
        bytes(executor.bytes_with_batch() as u64),
    ))?;

    let engine = Engine::best().map_err(alexnet::Error::Config)?;
    let mut ctx = Context::new(engine.isa(), compute.threads);
    let (x, mut y) = (vec![1.0f32; STREAM], vec![2.0f32; STREAM]);
    let mut pictures = Pictures::made_up(&executor.input_layout(), net.classes());
    let mut steps = Steps::new(&net, executor.as_ref(), !args.infer)?;
    let mut progress = Progress::new("measuring");
    let (mut rows, mut step_ms, mut tile, mut stream) = (Vec::<Row>::new(), vec![], vec![], vec![]);
    for step in 0..WARM_UP + args.steps {
        let start = Instant::now();
        steps.run(executor.as_mut(), &mut pictures, step);
        let elapsed = start.elapsed();
        // The reference loops follow every step: each is asked for as often as every pass.
        let rates = (
            match (executor.precision(), executor.value_bytes()) {
                // Three products for each.
                ("f32x3", _) => limits::bf16_flop_s(&mut ctx, engine) / 3.0,
                (_, 2) => limits::bf16_flop_s(&mut ctx, engine),
                _ => limits::f32_flop_s(&mut ctx),
            },
            limits::stream_bytes_s(&mut ctx, &x, &mut y),
        );
        if step >= WARM_UP {
            step_ms.push(elapsed.as_secs_f64() * 1e3);
            tile.push(rates.0);
            stream.push(rates.1);
            for (i, time) in executor.pass_times().into_iter().enumerate() {
                if rows.len() == i {
                    let (flop, bytes) = (time.flop as f64, time.bytes as f64);
                    let (stage, pass, winograd) = (time.stage, time.pass, time.winograd);
                    rows.push(Row { stage, pass, flop, winograd, bytes, times_ms: vec![] });
                }
                rows[i].times_ms.push(time.time.as_secs_f64() * 1e3);
            }
        }
        progress.update(step + 1, WARM_UP + args.steps, "");
    }
    progress.finish();

    let (tile, stream) = (quantile(&mut tile, 0.5), quantile(&mut stream, 0.5));
    let (step, fast_step) = (quantile(&mut step_ms, 0.5), quantile(&mut step_ms, 0.1));
    words.line(&format!(
        "reference loops, medians of {}: products in L1 {:.0} GFLOP/s, memory {:.1} GB/s",
        args.steps,
        tile / 1e9,
        stream / 1e9
    ))?;
    words.line(&format!(
        "{:<16} {:<15} {:>8} {:>8} {:>8} {:>7} {:>8} {:>6}",
        "stage", "pass", "ms", "10th %", "GFLOP/s", "GB/s", "of bound", "share"
    ))?;
    let mut objects = vec![];
    let (mut flop, mut bound_ms) = (0.0, 0.0);
    for row in &mut rows {
        let (ms, fast) = (quantile(&mut row.times_ms, 0.5), quantile(&mut row.times_ms, 0.1));
        // No pass can be faster than its products in L1, nor than its bytes through memory; by Winograd's method there are
        // fewer products than are counted.
        let bound = (row.flop / tile).max(row.bytes / stream) * 1e3;
        flop += row.flop;
        bound_ms += bound;
        let (gflop_s, gb_s) = (row.flop / ms / 1e6, row.bytes / ms / 1e6);
        let percent = |part: f64| format!("{:.0} %", part * 100.0);
        let mark = if row.winograd { "*" } else { "" };
        words.line(&format!(
            "{:<16} {:<15} {ms:>8.2} {fast:>8.2} {:>8} {:>7} {:>8} {:>6}",
            shortened(&row.stage),
            row.pass,
            if row.flop > 0.0 { format!("{gflop_s:.0}{mark}") } else { String::new() },
            if row.bytes > 0.0 { format!("{gb_s:.1}") } else { String::new() },
            if bound > 0.0 { percent(bound / ms) } else { String::new() },
            percent(ms / step),
        ))?;
        objects.push(json!({
            "stage": row.stage, "pass": row.pass, "ms": ms, "ms_10th_percentile": fast,
            "gflop_s": gflop_s, "winograd": row.winograd, "gb_s": gb_s, "of_bound": bound / ms, "share": ms / step,
        }));
    }
    if rows.iter().any(|row| row.winograd) {
        words.line(
            "* Winograd's method needs fewer products than the definition, by which they are counted",
        )?;
    }
    let img_s = args.batch as f64 * 1e3 / step;
    words.line(&format!(
        "a step: {step:.1} ms (10th percentile {fast_step:.1}), {img_s:.1} images/s, {:.0} GFLOP/s = {:.0} % of the \
         loop in L1; the sum of all bounds is {bound_ms:.1} ms",
        flop / step / 1e6,
        flop / step / 1e-3 / tile * 100.0,
    ))?;
    if args.json {
        let object = json!({
            "net": args.net,
            "mode": if args.infer { "infer" } else { "train" },
            "batch": args.batch,
            "precision": executor.precision(),
            "kernel": executor.kernel_name(),
            "threads": compute.threads,
            "steps": args.steps,
            "tile_gflop_s": tile / 1e9,
            "stream_gb_s": stream / 1e9,
            "ms": step,
            "ms_10th_percentile": fast_step,
            "img_s": img_s,
            "gflop_s": flop / step / 1e6,
            "bound_ms": bound_ms,
            "passes": objects,
        });
        print_line(&object.to_string()).map_err(Failure::from)?;
    }
    Ok(())
}

/// The value below which this part of the values lies; sorts them.
fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

/// A stage's name in the width of its column.
fn shortened(name: &str) -> &str {
    name.char_indices().nth(16).map_or(name, |(end, _)| &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_names() {
        let mut values = vec![5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.1, 0.5, 1.0].map(|part| quantile(&mut values, part)), [1.0, 1.0, 3.0, 5.0]);
        assert_eq!(shortened("conv1+relu1+norm1+pool1"), "conv1+relu1+norm");
        assert_eq!(shortened("fc6"), "fc6");
    }
}

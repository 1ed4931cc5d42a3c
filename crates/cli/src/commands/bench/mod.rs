//! `alexnet bench`: how long a step of training or a forward pass takes, on made-up pictures that cost nothing to
//! load; and where the time goes.

mod kernels;
mod pictures;

use crate::args::{Bench, BenchRun};
use crate::failure::{Failure, Outcome};
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{Words, bytes, print_line};
use crate::{args, machine};
use alexnet::exec::contract::{Params, Rate, StepSettings};
use alexnet::exec::{self, Executor, Mode};
use alexnet::net::Network;
use alexnet::train::init;
use pictures::Pictures;
use serde_json::json;
use std::time::Instant;

/// Steps before the clock starts: buffers are touched and threads awake after them.
const WARM_UP: usize = 2;

/// Runs `alexnet bench …`.
pub fn run(bench: Bench) -> Outcome {
    match bench {
        Bench::Train(args) => measure(&args, true),
        Bench::Infer(args) => measure(&args, false),
        Bench::Kernels(args) => kernels::run(&args),
    }
}

fn measure(args: &BenchRun, train: bool) -> Outcome {
    let words = Words::new(args.json);
    let net = plan::network(&args.net, None)?;
    plan::at_least_one("--batch", args.batch)?;
    plan::at_least_one("--steps", args.steps)?;
    let mode = if train { Mode::Train { frozen_below: 0 } } else { Mode::Infer { last: None } };
    let compute = plan::Compute::of(&args.compute)?;
    let mut executor = exec::compile(&net, &compute.options(args.batch, mode))?;
    executor.set_params(&init::fresh(&net, 0)?);
    words.line(&format!(
        "{} of {}, batch {}, {}, {} threads, plan {}",
        if train { "training" } else { "inference" },
        net.name,
        args.batch,
        executor.kernel_name(),
        compute.threads,
        bytes(executor.bytes_with_batch() as u64),
    ))?;

    let layout = executor.input_layout();
    let mut sources = vec![Pictures::made_up(&layout, net.classes())];
    if let Some(path) = &args.data {
        sources.push(Pictures::packed(path, &net, layout, train)?);
    }
    let mut steps = Steps::new(&net, executor.as_ref(), train)?;
    let times_ms = times(&mut steps, executor.as_mut(), &mut sources, args.steps);
    report(args, train, &compute, executor.as_ref(), &words, &times_ms)
}

/// Milliseconds of each step after those that warm up, for each source of pictures. Sources take turns, so that a machine
/// whose rate changes changes it for all; a step includes the filling of its batch.
fn times(
    steps: &mut Steps,
    executor: &mut dyn Executor,
    sources: &mut [Pictures],
    count: usize,
) -> Vec<Vec<f64>> {
    let mut progress = Progress::new("measuring");
    let mut times_ms = vec![Vec::with_capacity(count); sources.len()];
    for step in 0..WARM_UP + count {
        for (pictures, times_ms) in sources.iter_mut().zip(&mut times_ms) {
            let start = Instant::now();
            steps.run(executor, pictures, step);
            if step >= WARM_UP {
                times_ms.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        progress.update(step + 1, WARM_UP + count, "");
    }
    progress.finish();
    times_ms
}

/// In rising order.
fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// What steps need.
struct Steps {
    train: bool,
    rates: Vec<Rate>,
    output: Vec<f32>,
}

impl Steps {
    fn new(net: &Network, executor: &dyn Executor, train: bool) -> Result<Steps, Failure> {
        let rates = vec![Rate { lr: 0.01, decay: 5e-4 }; Params::zeros(net)?.0.len()];
        let output = vec![0.0; executor.input_layout().batch * executor.output_len()];
        Ok(Steps { train, rates, output })
    }

    /// One step of training, or one forward pass.
    fn run(&mut self, executor: &mut dyn Executor, pictures: &mut Pictures, step: usize) {
        let settings = StepSettings { step: step as u64, seed: 0, momentum: 0.9, rates: &self.rates };
        let (train, output) = (self.train, &mut self.output);
        pictures.next(executor, |executor, batch| {
            if train {
                executor.train_step(batch, &settings);
            } else {
                executor.infer(batch, output);
            }
        });
    }
}

/// A line of words and an object for programs. The times of made-up pictures come first, then those of a pack, if there is one.
fn report(
    args: &args::BenchRun,
    train: bool,
    compute: &plan::Compute,
    executor: &dyn Executor,
    words: &Words,
    times_ms: &[Vec<f64>],
) -> Outcome {
    let packed = times_ms.len() > 1;
    let (made_up_ms, last_ms) = (&times_ms[0], &times_ms[times_ms.len() - 1]);
    // Of neighbouring steps.
    let ratios = sorted(made_up_ms.iter().zip(last_ms).map(|(made_up, last)| made_up / last));
    let of_made_up = ratios[ratios.len() / 2];
    let times_ms = sorted(last_ms.iter().copied());
    let mean = times_ms.iter().sum::<f64>() / times_ms.len() as f64;
    let (least, median, most) = (times_ms[0], times_ms[times_ms.len() / 2], times_ms[times_ms.len() - 1]);
    let img_s = args.batch as f64 * 1e3 / median;
    let resident = machine::peak_resident_bytes();
    words.line(&format!(
        "{median:.2} ms a step (median of {}; least {least:.2}, mean {mean:.2}, most {most:.2}), {img_s:.1} images/s{}",
        times_ms.len(),
        resident.map_or(String::new(), |r| format!(", peak resident memory {}", bytes(r))),
    ))?;
    if packed {
        words.line(&format!(
            "pictures from the pack: {:.1} % of the rate on pictures already in memory (median of steps in turns)",
            of_made_up * 100.0,
        ))?;
    }
    if args.json {
        let object = json!({
            "net": args.net,
            "mode": if train { "train" } else { "infer" },
            "batch": args.batch,
            "precision": executor.precision(),
            "kernel": executor.kernel_name(),
            "threads": compute.threads,
            "steps": times_ms.len(),
            "ms": median,
            "ms_least": least,
            "ms_mean": mean,
            "ms_most": most,
            "img_s": img_s,
            "from_pack": packed,
            "of_made_up": of_made_up,
            "planned_bytes": executor.bytes_with_batch(),
            "peak_resident_bytes": resident,
        });
        print_line(&object.to_string()).map_err(Failure::from)?;
    }
    Ok(())
}

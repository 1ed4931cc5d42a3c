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
        bytes(planned_bytes(executor.as_ref()) as u64),
    ))?;

    let layout = executor.input_layout();
    let made_up = Pictures::made_up(&layout, net.classes());
    let mut steps = Steps::new(&net, executor.as_ref(), made_up, train)?;
    let made_up_ms = times(&mut steps, executor.as_mut(), args.steps)?;
    let packed_ms = match &args.data {
        None => None,
        Some(path) => {
            // Loading begins before the clock does, as in a run; each step then waits for its batch.
            steps.pictures = Pictures::packed(path, &net, layout, train, compute.threads)?;
            Some(times(&mut steps, executor.as_mut(), args.steps)?)
        }
    };
    report(args, train, &compute, executor.as_ref(), &words, made_up_ms, packed_ms)
}

/// What the executor holds, and the made-up pictures.
fn planned_bytes(executor: &dyn Executor) -> usize {
    executor.planned_bytes() + executor.input_layout().bytes()
}

/// Milliseconds of each step after those that warm up, in rising order.
fn times(steps: &mut Steps, executor: &mut dyn Executor, count: usize) -> Result<Vec<f64>, Failure> {
    let mut progress = Progress::new("measuring");
    let mut times_ms = Vec::with_capacity(count);
    for step in 0..WARM_UP + count {
        let start = Instant::now();
        steps.run(executor, step)?;
        if step >= WARM_UP {
            times_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        progress.update(step + 1, WARM_UP + count, "");
    }
    progress.finish();
    times_ms.sort_by(f64::total_cmp);
    Ok(times_ms)
}

/// What steps need.
struct Steps {
    train: bool,
    pictures: Pictures,
    rates: Vec<Rate>,
    output: Vec<f32>,
}

impl Steps {
    fn new(
        net: &Network,
        executor: &dyn Executor,
        pictures: Pictures,
        train: bool,
    ) -> Result<Steps, Failure> {
        let rates = vec![Rate { lr: 0.01, decay: 5e-4 }; Params::zeros(net)?.0.len()];
        let output = vec![0.0; executor.input_layout().batch * executor.output_len()];
        Ok(Steps { train, pictures, rates, output })
    }

    /// One step of training, or one forward pass.
    fn run(&mut self, executor: &mut dyn Executor, step: usize) -> Result<(), Failure> {
        let settings = StepSettings { step: step as u64, seed: 0, momentum: 0.9, rates: &self.rates };
        let (train, output) = (self.train, &mut self.output);
        self.pictures.next(|batch| {
            if train {
                executor.train_step(batch, &settings);
            } else {
                executor.infer(batch, output);
            }
        })
    }
}

/// A line of words and an object for programs. Times are in rising order.
fn report(
    args: &args::BenchRun,
    train: bool,
    compute: &plan::Compute,
    executor: &dyn Executor,
    words: &Words,
    made_up_ms: Vec<f64>,
    packed_ms: Option<Vec<f64>>,
) -> Outcome {
    let made_up = made_up_ms[made_up_ms.len() / 2];
    let packed = packed_ms.is_some();
    let times_ms = packed_ms.unwrap_or(made_up_ms);
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
            "pictures from the pack: {:.1} % of the rate on pictures already in memory ({made_up:.2} ms a step)",
            made_up / median * 100.0,
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
            "of_made_up": made_up / median,
            "planned_bytes": planned_bytes(executor),
            "peak_resident_bytes": resident,
        });
        print_line(&object.to_string()).map_err(Failure::from)?;
    }
    Ok(())
}

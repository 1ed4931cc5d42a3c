//! `alexnet bench`: how long a step of training or a forward pass takes, on made-up pictures that cost nothing to
//! load; and where the time goes.

mod kernels;

use crate::args::{Bench, BenchRun};
use crate::failure::{Failure, Outcome};
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{Words, bytes, print_line};
use crate::{args, machine};
use alexnet::exec::contract::{Batch, InputLayout, Params, Rate, StepSettings};
use alexnet::exec::{self, Executor, Mode};
use alexnet::net::Network;
use alexnet::rng::{Purpose, Stream};
use alexnet::train::init;
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
        bytes(executor.planned_bytes() as u64),
    ))?;

    let mut steps = Steps::new(&net, executor.as_ref(), args.batch, train)?;
    let mut progress = Progress::new("measuring");
    let mut times_ms = Vec::with_capacity(args.steps);
    for step in 0..WARM_UP + args.steps {
        let start = Instant::now();
        steps.run(executor.as_mut(), step);
        if step >= WARM_UP {
            times_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        progress.update(step + 1, WARM_UP + args.steps, "");
    }
    progress.finish();
    report(args, train, &compute, executor.as_ref(), &words, times_ms)
}

/// What steps on made-up pictures need.
struct Steps {
    train: bool,
    batch: usize,
    input: Vec<f32>,
    labels: Vec<u32>,
    weights: Vec<f32>,
    rates: Vec<Rate>,
    output: Vec<f32>,
}

impl Steps {
    fn new(net: &Network, executor: &dyn Executor, batch: usize, train: bool) -> Result<Steps, Failure> {
        let (input, labels) = made_up(&executor.input_layout(), net.classes());
        let tensors = Params::zeros(net)?.0.len();
        Ok(Steps {
            train,
            batch,
            input,
            labels,
            weights: vec![1.0; batch],
            rates: vec![Rate { lr: 0.01, decay: 5e-4 }; tensors],
            output: vec![0.0; batch * executor.output_len()],
        })
    }

    /// One step of training, or one forward pass.
    fn run(&mut self, executor: &mut dyn Executor, step: usize) {
        let (input, labels, weights) = (&self.input[..], &self.labels[..], &self.weights[..]);
        let batch = Batch { input, count: self.batch, labels, weights };
        if self.train {
            let settings = StepSettings { step: step as u64, seed: 0, momentum: 0.9, rates: &self.rates };
            executor.train_step(batch, &settings);
        } else {
            executor.infer(batch, &mut self.output);
        }
    }
}

fn report(
    args: &args::BenchRun,
    train: bool,
    compute: &plan::Compute,
    executor: &dyn Executor,
    words: &Words,
    mut times_ms: Vec<f64>,
) -> Outcome {
    let mean = times_ms.iter().sum::<f64>() / times_ms.len() as f64;
    times_ms.sort_by(f64::total_cmp);
    let (least, median, most) = (times_ms[0], times_ms[times_ms.len() / 2], times_ms[times_ms.len() - 1]);
    let img_s = args.batch as f64 * 1e3 / median;
    let resident = machine::peak_resident_bytes();
    words.line(&format!(
        "{median:.2} ms a step (median of {}; least {least:.2}, mean {mean:.2}, most {most:.2}), {img_s:.1} images/s{}",
        times_ms.len(),
        resident.map_or(String::new(), |r| format!(", peak resident memory {}", bytes(r))),
    ))?;
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
            "planned_bytes": executor.planned_bytes(),
            "peak_resident_bytes": resident,
        });
        print_line(&object.to_string()).map_err(Failure::from)?;
    }
    Ok(())
}

/// Pixels after the subtraction of a mean, uniform in ±128, and labels; zeros stay where no pixel maps to.
fn made_up(layout: &InputLayout, classes: usize) -> (Vec<f32>, Vec<u32>) {
    let mut input = vec![0.0; layout.len()];
    let pixels = Stream::new(0, Purpose::Synthetic, 0, 0);
    let mut index = 0;
    for n in 0..layout.batch {
        for y in 0..layout.shape.h {
            for x in 0..layout.shape.w {
                let start = layout.offset(n, 0, y, x);
                for value in &mut input[start..start + layout.shape.c] {
                    *value = (f64::from(pixels.at(index)) / 2f64.powi(24) - 128.0) as f32;
                    index += 1;
                }
            }
        }
    }
    let mut draw = Stream::new(0, Purpose::Synthetic, 1, 0);
    let labels = (0..layout.batch).map(|_| draw.below(classes) as u32).collect();
    (input, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alexnet::net::Shape;

    #[test]
    fn made_up_pictures_leave_padding_alone() {
        let layout =
            InputLayout { batch: 2, shape: Shape::new(3, 2, 3), block: 2, fold: 2, pad: 1, columns: 3 };
        let (input, labels) = made_up(&layout, 5);
        let pixels = input.iter().filter(|&&v| v != 0.0).count();
        assert_eq!((pixels, input.len()), (2 * 3 * 2 * 3, layout.len()));
        assert!(labels.iter().all(|&l| l < 5) && labels.len() == 2);
    }
}

//! What the tests of the executors share: networks, parameters, pictures, and a few steps of training.
#![allow(dead_code)] // each test file uses a part

use alexnet::Network;
use alexnet::exec::contract::{Batch, Executor, Params, Pixels, Rate, Role, StepSettings};
use alexnet::rng::{Purpose, Stream};
use alexnet::zoo;

/// Parameters that keep every layer's values near 1, so that every gradient matters.
pub fn params(net: &Network) -> Params {
    let mut params = Params::zeros(net).unwrap();
    for (i, p) in params.0.iter_mut().enumerate() {
        let fan_in: usize = p.shape.iter().skip(1).product();
        let deviation = if p.shape.len() > 1 { (2.0 / fan_in as f64).sqrt() } else { 0.1 };
        let mut s = Stream::new(7, Purpose::Synthetic, i as u64, 0);
        p.data.iter_mut().for_each(|x| *x = (s.normal() * deviation) as f32);
        // Scales and variances are near 1.
        if p.shape.len() == 1 && (p.role == Role::Weight || p.name.ends_with("running_var")) {
            p.data.iter_mut().for_each(|x| *x = 1.0 + x.abs());
        }
    }
    params
}

/// The same pictures in the layout of `executor`.
pub fn input(executor: &dyn Executor, net: &Network, count: usize, seed: u64) -> Vec<f32> {
    let layout = executor.input_layout();
    let mut buffer = vec![0.0; layout.len()];
    let mut s = Stream::new(seed, Purpose::Synthetic, 1000, 0);
    for n in 0..count {
        for c in 0..net.input.c {
            for y in 0..net.input.h {
                for x in 0..net.input.w {
                    buffer[layout.offset(n, c, y, x)] = s.normal() as f32;
                }
            }
        }
    }
    buffer
}

pub fn labels(net: &Network, count: usize) -> Vec<u32> {
    (0..count).map(|n| ((n * 7 + 3) % net.classes()) as u32).collect()
}

/// `steps` training steps; the losses.
pub fn train(
    executor: &mut dyn Executor,
    net: &Network,
    batch: usize,
    steps: u64,
    rates: &[Rate],
) -> Vec<f64> {
    (0..steps)
        .map(|step| {
            // The last batch of an epoch is short, and one picture could not be decoded.
            let count = if step == 1 { batch - 1 } else { batch };
            let input = input(executor, net, count, step);
            let mut weights = vec![1.0; count];
            weights[0] = if step == 1 { 0.0 } else { 1.0 };
            let batch =
                Batch { input: Pixels::F32(&input), count, labels: &labels(net, count), weights: &weights };
            let report = executor.train_step(batch, &StepSettings { step, seed: 11, momentum: 0.9, rates });
            assert_eq!(report.nonfinite, None);
            report.loss
        })
        .collect()
}

/// Relative distance of two tensors, by the norm of the second's difference from the start.
pub fn distance(got: &[f32], want: &[f32], start: &[f32]) -> f64 {
    let norm = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
    };
    norm(got, want) / norm(want, start).max(1e-12)
}

/// A network of the zoo, narrow and on small pictures: every order of layers, every kind of layer.
pub fn narrow(name: &str, side: usize) -> Network {
    let mut net = zoo::by_name(name, 10).unwrap().with_width(1, 16).unwrap();
    (net.input.h, net.input.w) = (side, side);
    net.trace().unwrap();
    net
}

/// Layers that no published network has, and orders that none has.
pub const ODD: &str = r#"
name = "odd"
input = [2, 17, 19]
loss = "logistic"
layer = [
  { name = "drop0", type = "dropout", rate = 0.25, inverted = true },
  { name = "c1", type = "conv", filters = 6, kernel = 3, stride = 2, pad = [1, 2], rounding = "ceil" },
  { name = "t1", type = "tanh" },
  { name = "s1", type = "spatial-lrn", size = 4, k = 1.5, alpha = 0.5, alpha_div_n = true, beta = 0.6 },
  { name = "p1", type = "pool", kind = "average", size = 3, stride = 2, rounding = "ceil" },
  { name = "b1", type = "batch-norm", eps = 1e-3 },
  { name = "c2", type = "conv", filters = 10, kernel = 4, stride = 3, pad = 2, groups = 2 },
  { name = "drop2", type = "dropout", rate = 0.5, inverted = false },
  { name = "a2", type = "abs-tanh" },
  { name = "n2", type = "lrn", size = 4, k = 2.0, alpha = 0.5, alpha_div_n = false, beta = 0.75 },
  { name = "f1", type = "linear", outputs = 21 },
  { name = "b2", type = "batch-norm", momentum = 0.3 },
  { name = "l1", type = "logistic" },
  { name = "f2", type = "linear", outputs = 5 },
]
"#;

/// 3×3 convolutions wide enough for Winograd's method, between groups and not, on maps of odd and even size; nothing in it
/// decides, so what is left of a difference is rounding.
pub const WIDE: &str = r#"
name = "wide"
input = [3, 39, 35]
layer = [
  { name = "c1", type = "conv", filters = 96, kernel = 11, stride = 4, pad = 2 },
  { name = "t1", type = "tanh" },
  { name = "c2", type = "conv", filters = 192, kernel = 3, pad = 1 },
  { name = "t2", type = "tanh" },
  { name = "c3", type = "conv", filters = 192, kernel = 3, pad = 1, groups = 2 },
  { name = "t3", type = "tanh" },
  { name = "c4", type = "conv", filters = 96, kernel = 3, pad = 1 },
  { name = "p4", type = "pool", kind = "average", size = 3, stride = 2 },
  { name = "f1", type = "linear", outputs = 10 },
]
"#;

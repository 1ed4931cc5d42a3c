//! What the tests of this module share: a network small enough to save a thousand times, and an executor whose
//! arithmetic is trivial but whose result depends on everything that a resumed run must bring back.

use crate::data::pack::NewPicture;
use crate::data::{Pack, PackOptions, Preprocess};
use crate::exec::contract::{Batch, Executor, InputLayout, Params, StepReport, StepSettings};
use crate::net::{Activation, Conv, Dropout, Init, Layer, Linear, Loss, Network, Op, Pad, Rounding, Shape};
use crate::rng::{Purpose, Stream};
use crate::train::checkpoint::{FORMAT, State};
use crate::train::recipe;

/// conv1 (4 filters, 3×3, stride 2) on 3×8×8, ReLU, fc1 (6), ReLU, dropout, fc2.
pub fn small_net(classes: usize) -> Network {
    let fan_in = (Init::FanIn, Init::FanIn);
    let linear = |outputs| Op::Linear(Linear { outputs, weight: fan_in.0, bias: fan_in.1 });
    let conv = Op::Conv(Conv {
        filters: 4,
        kernel: 3,
        stride: 2,
        pad: Pad::default(),
        groups: 1,
        rounding: Rounding::Floor,
        weight: fan_in.0,
        bias: fan_in.1,
    });
    let relu = Op::Activation(Activation::Relu);
    let layers = [
        ("conv1", conv),
        ("relu1", relu.clone()),
        ("fc1", linear(6)),
        ("relu2", relu),
        ("drop1", Op::Dropout(Dropout { rate: 0.5, inverted: true })),
        ("fc2", linear(classes)),
    ];
    Network {
        name: "small".into(),
        source: "tests".into(),
        input: Shape::new(3, 8, 8),
        layers: layers.into_iter().map(|(name, op)| Layer { name: name.into(), op }).collect(),
        loss: Loss::Softmax,
    }
}

/// The state of a run of `net` that has not begun.
pub fn state(net: &Network) -> State {
    State {
        format: FORMAT,
        program: "test".into(),
        network: net.to_toml(),
        recipe: recipe::load("mini").unwrap().to_toml(),
        seed: 7,
        position: Default::default(),
        sums: Default::default(),
        plateau: Default::default(),
        history: vec![],
        metrics_bytes: 0,
        classes: (0..net.classes()).map(|c| format!("class {c}")).collect(),
        preprocess: Preprocess::torchvision(),
        colour_axes: None,
        data_fingerprint: "0".into(),
    }
}

/// An executor that moves every parameter towards values read from the batch, by the rule of the paper. Its
/// "gradient" depends on the pixels, the labels, the seed and the step, so that a resumed run that differs in any
/// of them ends elsewhere.
pub struct MockExecutor {
    layout: InputLayout,
    classes: usize,
    params: Params,
    momentum: Params,
    /// A step from which the loss is not finite, blamed on layer 2.
    pub diverges_at: Option<u64>,
}

impl MockExecutor {
    /// For `net`, all zero.
    pub fn new(net: &Network, batch: usize) -> Self {
        let zeros = Params::zeros(net).unwrap();
        MockExecutor {
            layout: InputLayout::nhwc(batch, net.input),
            classes: net.classes(),
            params: zeros.clone(),
            momentum: zeros,
            diverges_at: None,
        }
    }

    /// A score of class `class` for a picture: some pixel times some weight, plus a bias.
    fn score(&self, picture: &[f32], class: usize) -> f32 {
        let last = &self.params.0[self.params.0.len() - 2..];
        let (w, b) = (&last[0], &last[1]);
        let inputs = w.shape[1];
        picture.iter().enumerate().map(|(i, x)| x * w.data[class * inputs + i % inputs]).sum::<f32>()
            + b.data[class]
    }

    fn probabilities(&self, picture: &[f32]) -> Vec<f32> {
        let scores: Vec<f32> = (0..self.classes).map(|c| self.score(picture, c)).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f32 = e.iter().sum();
        e.iter().map(|x| x / sum).collect()
    }
}

impl Executor for MockExecutor {
    fn input_layout(&self) -> InputLayout {
        self.layout.clone()
    }

    fn describe(&self) -> String {
        "mock".into()
    }

    fn kernel_name(&self) -> String {
        "mock f32".into()
    }

    fn planned_bytes(&self) -> usize {
        self.params.0.iter().map(|p| 8 * p.data.len()).sum()
    }

    fn set_params(&mut self, params: &Params) {
        self.params = params.clone();
    }

    fn params(&self) -> Params {
        self.params.clone()
    }

    fn set_momentum(&mut self, momentum: &Params) {
        self.momentum = momentum.clone();
    }

    fn momentum(&self) -> Params {
        self.momentum.clone()
    }

    fn train_step(&mut self, batch: Batch, settings: &StepSettings) -> StepReport {
        let pixels = self.layout.shape.len();
        let mut report =
            StepReport { weight: batch.weights.iter().map(|&w| f64::from(w)).sum(), ..Default::default() };
        for n in 0..batch.count {
            let p = self.probabilities(&batch.input[n * pixels..][..pixels]);
            let label = batch.labels[n] as usize;
            report.loss -= f64::from(p[label]).max(1e-30).ln() / report.weight;
            report.top1_wrong += f64::from(u8::from(p.iter().any(|&x| x > p[label])));
        }
        if self.diverges_at.is_some_and(|at| settings.step >= at) {
            report.loss = f64::NAN;
            report.nonfinite = Some(2);
            return report;
        }
        let mut noise = Stream::new(settings.seed, Purpose::Dropout, settings.step, 0);
        for (i, (p, v)) in self.params.0.iter_mut().zip(&mut self.momentum.0).enumerate() {
            let rate = settings.rates[i];
            if rate.lr == 0.0 {
                continue;
            }
            for (j, (w, v)) in p.data.iter_mut().zip(&mut v.data).enumerate() {
                let n = j % batch.count;
                let pixel = batch.input[n * pixels + j % pixels];
                let g =
                    0.1 * *w + 0.01 * pixel - 0.001 * batch.labels[n] as f32 + 0.01 * noise.uniform() as f32;
                *v = settings.momentum * *v - rate.decay * rate.lr * *w - rate.lr * g;
                *w += *v;
            }
        }
        report
    }

    fn infer(&mut self, batch: Batch, output: &mut [f32]) {
        let pixels = self.layout.shape.len();
        for n in 0..batch.count {
            let p = self.probabilities(&batch.input[n * pixels..][..pixels]);
            output[n * self.classes..][..self.classes].copy_from_slice(&p);
        }
    }

    fn output_len(&self) -> usize {
        self.classes
    }
}

/// `pictures` squares of random pixels, classes in turn.
pub fn noise_pack(pictures: usize, classes: u32, side: usize) -> Pack {
    let options = PackOptions { side, ..Default::default() };
    let names = (0..classes).map(|c| format!("class {c}")).collect();
    let picture = |i: usize| {
        let mut stream = Stream::new(5, Purpose::Synthetic, i as u64, 0);
        let pixels = (0..side * side * 3).map(|_| stream.next_u32() as u8).collect();
        NewPicture { path: format!("{i}.png"), label: i as u32 % classes, split: None, pixels: Ok(pixels) }
    };
    Pack::from_pictures(names, &options, (0..pictures).map(picture)).unwrap()
}

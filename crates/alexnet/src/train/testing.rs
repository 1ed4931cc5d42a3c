//! What the tests of this module share: a network small enough to save a thousand times, pictures of noise, and an
//! executor that can fail.

use crate::data::pack::NewPicture;
use crate::data::{Pack, PackOptions, Preprocess};
use crate::exec::contract::{Batch, Executor, InputLayout, Params, StepReport, StepSettings};
use crate::exec::reference::Reference;
use crate::net::{Activation, Conv, Dropout, Init, Layer, Linear, Loss, Network, Op, Pad, Rounding, Shape};
use crate::rng::{Purpose, Stream};
use crate::train::checkpoint::State;
use crate::train::recipe;
use crate::train::run_directory::SplitConfig;
use alexnet_kernels::threads::Threads;

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
    let classes = (0..net.classes()).map(|c| format!("class {c}")).collect();
    State {
        program: "test".into(),
        recipe: recipe::load("mini").unwrap().to_toml(),
        seed: 7,
        data_fingerprint: "0".into(),
        split: SplitConfig::TrainPerClass(3),
        origin: None,
        ..State::imported(net, classes, Preprocess::torchvision(), "")
    }
}

/// The reference executor with a fault at some step.
pub struct Faulty {
    /// What computes.
    pub inner: Reference<f32>,
    /// The step that this dies in, as a process would that is killed.
    pub dies_at: Option<u64>,
    /// The step whose loss is not finite, blamed on layer 2.
    pub diverges_at: Option<u64>,
}

impl Faulty {
    /// For `net`, without a fault yet.
    pub fn new(net: &Network, batch: usize) -> Self {
        Faulty { inner: Reference::new(net, batch, None).unwrap(), dies_at: None, diverges_at: None }
    }
}

impl Executor for Faulty {
    fn input_layout(&self) -> InputLayout {
        self.inner.input_layout()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn threads(&mut self) -> &mut Threads {
        self.inner.threads()
    }

    fn precision(&self) -> &'static str {
        self.inner.precision()
    }

    fn kernel_name(&self) -> String {
        self.inner.kernel_name()
    }

    fn planned_bytes(&self) -> usize {
        self.inner.planned_bytes()
    }

    fn set_params(&mut self, params: &Params) {
        self.inner.set_params(params);
    }

    fn params(&self) -> Params {
        Executor::params(&self.inner)
    }

    fn set_momentum(&mut self, momentum: &Params) {
        self.inner.set_momentum(momentum);
    }

    fn momentum(&self) -> Params {
        Executor::momentum(&self.inner)
    }

    fn train_step(&mut self, batch: Batch, settings: &StepSettings) -> StepReport {
        assert_ne!(Some(settings.step), self.dies_at, "killed");
        let report = self.inner.train_step(batch, settings);
        match self.diverges_at == Some(settings.step) {
            true => StepReport { loss: f64::NAN, nonfinite: Some(2), ..report },
            false => report,
        }
    }

    fn infer(&mut self, batch: Batch, output: &mut [f32]) {
        self.inner.infer(batch, output);
    }

    fn output_len(&self) -> usize {
        self.inner.output_len()
    }
}

/// `pictures` squares of random pixels, classes in turn; each class has a colour that the noise does not hide.
pub fn noise_pack(pictures: usize, classes: u32, side: usize) -> Pack {
    let options = PackOptions { side, ..Default::default() };
    let names = (0..classes).map(|c| format!("class {c}")).collect();
    let picture = |i: usize| {
        let mut stream = Stream::new(5, Purpose::Synthetic, i as u64, 0);
        let pixels = (0..side * side * 3)
            .map(|j| (stream.below(160) + if j % 3 == i % classes as usize { 90 } else { 0 }) as u8)
            .collect();
        NewPicture { path: format!("{i}.png"), label: i as u32 % classes, split: None, pixels: Ok(pixels) }
    };
    Pack::from_pictures(names, &options, (0..pictures).map(picture)).unwrap()
}

//! Where the time of a step goes: one figure for every pass of every stage, at the price of reading the clock.

use super::contract::PassTime;
use super::plan::{Form, Kind, Plan};
use crate::net::{Network, Op};
use std::time::{Duration, Instant};

/// A part of the work of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Pixels into the layout of the first stage.
    Input,
    /// y
    Forward,
    /// dx
    InputGradient,
    /// dw, db
    WeightGradient,
    /// w and v, and the weights packed for the next step.
    Update,
    /// Everything backward, where it is one pass.
    Backward,
}

impl Pass {
    /// All, in the order of a step.
    pub const ALL: [Pass; 6] =
        [Pass::Input, Pass::Forward, Pass::InputGradient, Pass::WeightGradient, Pass::Update, Pass::Backward];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Input => "input",
            Pass::Forward => "forward",
            Pass::InputGradient => "input gradient",
            Pass::WeightGradient => "weight gradient",
            Pass::Update => "update",
            Pass::Backward => "backward",
        }
    }
}

/// Times the passes of the last step.
#[derive(Debug)]
pub(super) struct Stopwatch {
    last: Instant,
    /// For every stage, and for the loss behind them.
    laps: Vec<[Duration; Pass::ALL.len()]>,
}

impl Stopwatch {
    /// For the stages of a plan.
    pub fn new(plan: &Plan) -> Self {
        Stopwatch { last: Instant::now(), laps: vec![Default::default(); plan.stages.len() + 1] }
    }

    /// A step begins.
    pub fn start(&mut self) {
        self.laps.fill(Default::default());
        self.last = Instant::now();
    }

    /// What was done since the last lap was this.
    pub fn lap(&mut self, stage: usize, pass: Pass) {
        let now = Instant::now();
        self.laps[stage][pass as usize] += now - self.last;
        self.last = now;
    }

    /// The passes that took time, with the arithmetic and the bytes that each needs at least. `weight_bytes` says how large
    /// a weight of a stage is at test time.
    pub fn times(
        &self,
        net: &Network,
        plan: &Plan,
        element_bytes: usize,
        weight_bytes: impl Fn(usize) -> usize,
        by_winograd: impl Fn(usize, Pass) -> bool,
    ) -> Vec<PassTime> {
        // A plan was made from the same trace.
        let Ok(traced) = net.trace() else { return Vec::new() };
        let map_bytes = |i: usize| {
            let element =
                if plan.maps[i].form == Form::Input { plan.input.values.bytes() } else { element_bytes };
            plan.map_len(i) * element
        };
        let mut times = Vec::new();
        for (i, laps) in self.laps.iter().enumerate() {
            for pass in Pass::ALL {
                let time = laps[pass as usize];
                if time.is_zero() {
                    continue;
                }
                let Some(stage) = plan.stages.get(i) else {
                    let stage = "loss".into();
                    times.push(PassTime {
                        stage,
                        pass: pass.name(),
                        time,
                        flop: 0,
                        winograd: false,
                        bytes: 0,
                    });
                    continue;
                };
                let layers = &net.layers[stage.layers.clone()];
                let names: Vec<&str> = layers.iter().map(|l| l.name.as_str()).collect();
                let name = if names.is_empty() { "(flatten)".into() } else { names.join("+") };
                let first = stage.layers.start;
                let is_linear = matches!(stage.kind, Kind::Linear { .. });
                let product = layers.first().is_some_and(|l| matches!(l.op, Op::Conv(_) | Op::Linear(_)));
                let flop = if product { 2 * traced[first].macs as u64 * plan.batch as u64 } else { 0 };
                let weight_bytes = if plan.trains() { size_of::<f32>() } else { weight_bytes(i) };
                let weights = if product { traced[first].params() * weight_bytes } else { 0 };
                let (x, y) = (map_bytes(i), map_bytes(i + 1));
                // What a convolution yields before it is pooled.
                let pools = matches!(stage.kind, Kind::Conv { pool: true, .. });
                let unpooled =
                    if pools { plan.batch * traced[first].output.len() * element_bytes } else { y };
                let dx = if stage.input_gradient { x } else { 0 };
                let (flop, bytes) = match pass {
                    // The pixels, and the map that they become.
                    Pass::Input => (0, x + x / plan.input.values.bytes() * element_bytes),
                    Pass::Forward => (flop, x + y + weights),
                    Pass::InputGradient => (flop, unpooled + dx + weights),
                    Pass::WeightGradient => (flop, x + unpooled + weights),
                    // Gradient, weight and momentum are read, the last two written.
                    Pass::Update => (0, 5 * weights),
                    // Both gradients and the update in one pass: weights and momentum are read and written.
                    Pass::Backward if is_linear => {
                        (flop * (1 + u64::from(stage.input_gradient)), x + y + dx + 4 * weights)
                    }
                    Pass::Backward if pools => (0, y + unpooled),
                    Pass::Backward => (0, x + y + dx),
                };
                let (stage, bytes, winograd) = (name, bytes as u64, flop > 0 && by_winograd(i, pass));
                times.push(PassTime { stage, pass: pass.name(), time, flop, winograd, bytes });
            }
        }
        times
    }
}

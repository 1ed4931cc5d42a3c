//! How a network is run. [`contract`] says what every executor does; [`mod@reference`] computes the ops one by one and
//! is the specification; [`plan`] decides what is fused; [`cpu`] is the fast executor in f32 (also on tiles), [`mixed`] the one in bf16,
//! and [`few`] that for a few pictures at test time. These three follow a plan in the same way (`frame.rs`) and keep
//! parameters in the same form (`parameters.rs`).

mod constants;
pub mod contract;
pub mod cpu;
pub mod few;
mod frame;
pub mod mixed;
mod parameters;
pub mod plan;
pub mod reference;
mod splits;
pub mod stopwatch;

pub use contract::Executor;
pub use plan::Mode;
use plan::Plan;

use crate::error::{Error, Result, nearest};
use crate::net::{Network, Op, Traced};
use crate::ops::update::Rule;
use alexnet_kernels::bf16::Engine;
use alexnet_kernels::linear::few::Quantized;
use few::LinearWeights;
use std::str::FromStr;

/// The arithmetic of products and activations; weights, sums, bias, loss and norms are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// The fastest that the machine has and this version computes.
    #[default]
    Auto,
    /// f32
    F32,
    /// bf16 storage and operands, f32 sums.
    Bf16,
    /// f32, but tiles multiply: operands are split into a high and a low part in bf16, and a product is three of theirs, off by
    /// at most 2⁻¹⁶. Storage, sums and everything else are f32. Needs AMX. A few pictures at test time are left to f32.
    F32x3,
    /// As bf16 where the processor multiplies it, else as f32, but linear layers multiply weights in eight bits, with a scale
    /// for each output. For inference.
    Int8,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The fastest that there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
}

/// The value among `values` that `text` names.
fn parse<T: Copy>(text: &str, values: &[(&'static str, T)]) -> Result<T> {
    let names = || values.iter().map(|v| v.0);
    values.iter().find(|v| v.0 == text).map(|v| v.1).ok_or_else(|| {
        let hint = nearest(text, names()).map_or(String::new(), |near| format!("; did you mean {near}?"));
        Error::Config(format!("{text} is none of {}{hint}", names().collect::<Vec<_>>().join(", ")))
    })
}

impl FromStr for Precision {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let values = [
            ("auto", Precision::Auto),
            ("f32", Precision::F32),
            ("f32x3", Precision::F32x3),
            ("bf16", Precision::Bf16),
            ("int8", Precision::Int8),
        ];
        parse(text, &values)
    }
}

impl FromStr for Device {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        parse(text, &[("auto", Device::Auto), ("cpu", Device::Cpu)])
    }
}

/// How to compile a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// N, the largest number of pictures in a batch.
    pub batch: usize,
    /// Training or inference.
    pub mode: Mode,
    /// The arithmetic.
    pub precision: Precision,
    /// Where to compute.
    pub device: Device,
    /// Threads that compute.
    pub threads: usize,
    /// Additions to the update rule.
    pub rule: Rule,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            batch: 128,
            mode: Mode::Train { frozen_below: 0 },
            precision: Precision::Auto,
            device: Device::Auto,
            threads: 1,
            rule: Rule::default(),
        }
    }
}

/// For so many pictures lanes that are channels beat lanes that are pictures, of which there are 16 or 32 (bench/records).
const FEW: [std::ops::RangeInclusive<usize>; 2] = [1..=14, 17..=23];

/// From so many pictures on tiles of 16 pictures beat vectors in f32's grade at test time (bench/records).
const MANY: usize = 24;

/// The best executor for these options. `ALEXNET_ISA` forces a tier of instructions.
///
/// # Errors
/// If the network, the batch or the mode cannot be planned; if the network cannot be computed in the precision asked for;
/// if there is not enough memory.
pub fn compile(net: &Network, options: &Options) -> Result<Box<dyn Executor>> {
    let engine = Engine::best().map_err(Error::Config)?;
    let Options { batch, mode, precision, threads, rule, .. } = *options;
    match precision {
        Precision::Int8 => {
            let Mode::Infer { last } = mode else {
                return Err(Error::Config("precision int8 is for inference; train in f32 or bf16".into()));
            };
            if let Some(wide) = too_wide_for_eight_bits(net)? {
                return Err(only_f32(
                    net,
                    &format!("layer {wide} has too many inputs for weights in eight bits"),
                ));
            }
            let few = Plan::few(net, batch, last)?;
            if engine.is_native() && few::unsupported(net, &few).is_none() {
                return Ok(Box::new(few::Few::new(net, few, engine, LinearWeights::Int8, threads)?));
            }
            let plan = Plan::new(net, batch, mode)?;
            return Ok(Box::new(cpu::Cpu::with_eight_bits(net, plan, engine.isa(), threads)?));
        }
        Precision::F32 => {}
        Precision::F32x3 if !engine.has_tiles() => {
            let why = "precision f32x3 needs a processor with AMX; --precision f32 is as exact";
            return Err(Error::Config(why.into()));
        }
        Precision::F32x3 => {}
        Precision::Auto if !engine.is_native() => {}
        Precision::Auto | Precision::Bf16 => {
            if let Mode::Infer { last } = mode
                && FEW.iter().any(|few| few.contains(&batch))
            {
                let plan = Plan::few(net, batch, last)?;
                if few::unsupported(net, &plan).is_none() {
                    return Ok(Box::new(few::Few::new(net, plan, engine, LinearWeights::Bf16, threads)?));
                }
            }
            let plan = Plan::mixed(net, batch, mode)?.with_rule(rule);
            if precision == Precision::Bf16 || mixed::unsupported(net, &plan).is_none() {
                return Ok(Box::new(mixed::Mixed::new(net, plan, engine, threads)?));
            }
        }
    }
    let plan = Plan::new(net, batch, mode)?.with_rule(rule);
    let many = matches!(mode, Mode::Train { .. }) || batch >= MANY;
    if precision != Precision::F32 && engine.has_tiles() && many {
        return Ok(Box::new(cpu::Cpu::on_tiles(net, plan, engine, threads)?));
    }
    Ok(Box::new(cpu::Cpu::new(net, plan, engine.isa(), threads)?))
}

/// A linear layer of `net` with more inputs than exact sums of eight-bit products leave room for.
///
/// # Errors
/// As [`Network::trace`].
fn too_wide_for_eight_bits(net: &Network) -> Result<Option<&str>> {
    let too_wide =
        |traced: &Traced| matches!(traced.layer.op, Op::Linear(_)) && !Quantized::takes(traced.input.len());
    Ok(net.trace()?.iter().find(|traced| too_wide(traced)).map(|traced| traced.layer.name.as_str()))
}

/// What a network is told that only the f32 executor computes.
fn only_f32(net: &Network, why: &str) -> Error {
    Error::Config(format!("network {}: {why}; --precision f32 computes it", net.name))
}

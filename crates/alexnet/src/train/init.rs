//! How a network starts: every parameter by its [`Init`], each tensor from a random stream of its own, so that the
//! start depends on the seed and the network alone.

use crate::error::Result;
use crate::exec::contract::{Params, Role};
use crate::net::{Init, Network, Op};
use crate::rng::{Purpose, Stream};

/// Fresh parameters for `net`. Tensor `i` (in the order of [`Params`]) is drawn from
/// `Stream(seed, Purpose::Init, i)`, elements in order.
///
/// # Errors
/// As [`Network::trace`].
pub fn fresh(net: &Network, seed: u64) -> Result<Params> {
    let traced = net.trace()?;
    let mut params = Params::zeros(net)?;
    for (index, param) in params.0.iter_mut().enumerate() {
        let layer = &traced[param.layer];
        let (weight, bias) = match &layer.layer.op {
            Op::Conv(conv) => (conv.weight, conv.bias),
            Op::Linear(linear) => (linear.weight, linear.bias),
            Op::BatchNorm(_) => (Init::Constant(1.0), Init::Constant(0.0)),
            // The other layers have no parameters.
            _ => continue,
        };
        let init = match param.role {
            Role::Weight => weight,
            Role::Bias => bias,
            // Before anything has been seen: mean 0, variance 1.
            Role::Statistic => Init::Constant(if param.name.ends_with("running_var") { 1.0 } else { 0.0 }),
        };
        let mut stream = Stream::new(seed, Purpose::Init, index as u64, 0);
        match init {
            Init::Constant(value) => param.data.fill(value as f32),
            Init::Gaussian(deviation) => {
                param.data.iter_mut().for_each(|x| *x = (deviation * stream.normal()) as f32);
            }
            Init::FanIn => {
                let bound = 1.0 / (layer.fan_in() as f64).sqrt();
                param.data.iter_mut().for_each(|x| *x = stream.range(-bound, bound) as f32);
            }
        }
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::small_net;

    fn deviation(values: &[f32]) -> f64 {
        (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    }

    #[test]
    fn each_rule_gives_its_distribution() {
        let mut net = small_net(500);
        for layer in &mut net.layers {
            match &mut layer.op {
                Op::Linear(l) if layer.name == "fc1" => {
                    (l.outputs, l.weight, l.bias) = (400, Init::Gaussian(0.01), Init::Constant(1.0));
                }
                Op::Linear(l) => (l.weight, l.bias) = (Init::FanIn, Init::FanIn),
                _ => {}
            }
        }
        let params = fresh(&net, 3).unwrap();
        let gaussian = &params.get("fc1.weight").unwrap().data;
        assert!((deviation(gaussian) / 0.01 - 1.0).abs() < 0.05, "{}", deviation(gaussian));
        assert!(params.get("fc1.bias").unwrap().data.iter().all(|&x| x == 1.0));
        // Uniform in ±b has deviation b / √3; fan-in is 400 for weights and for biases.
        let bound = 1.0 / 400f64.sqrt();
        for name in ["fc2.weight", "fc2.bias"] {
            let uniform = &params.get(name).unwrap().data;
            assert!(uniform.iter().all(|&x| f64::from(x).abs() <= bound * 1.000_001));
            assert!(
                (deviation(uniform) * 3f64.sqrt() / bound - 1.0).abs() < 0.1,
                "{name} {}",
                deviation(uniform)
            );
        }
    }

    #[test]
    fn the_seed_decides_and_tensors_differ() {
        let net = small_net(36);
        let a = fresh(&net, 1).unwrap();
        assert_eq!(a, fresh(&net, 1).unwrap());
        let b = fresh(&net, 2).unwrap();
        assert!(a.0.iter().zip(&b.0).all(|(a, b)| a.data != b.data));
        let (fc1, fc2) = (&a.get("fc1.weight").unwrap().data, &a.get("fc2.weight").unwrap().data);
        assert!(fc1.iter().zip(fc2).take(8).all(|(a, b)| a != b));
    }
}

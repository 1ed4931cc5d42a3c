//! The convolutions of torchvision's AlexNet trained on ImageNet (`AlexNet_Weights.IMAGENET1K_V1`), which ship with
//! the program in f16: a practical start for a classifier of a few hundred or thousand pictures. NOTICE holds their
//! license; `golden/imagenet_conv.py` made the file.
//!
//! They are of use only to a network that computes what torchvision's computes up to pool5, on pictures prepared as
//! torchvision prepares them; any other is refused, because its filters would receive what they never saw.

use super::Copied;
use crate::error::{Error, Result};
use crate::exec::contract::Params;
use crate::net::{Activation, Network, Op, PoolKind};
use safetensors::SafeTensors;

/// conv1 to conv5: weights and biases under canonical names, f16, safetensors.
static FILE: &[u8] = include_bytes!("../../assets/imagenet-conv.safetensors");

/// What torchvision's network computes up to pool5, layer by layer: `models/alexnet.py` of torchvision.
const FEATURES: [&str; 13] = [
    "conv 64 11×11 stride 4 pad 2,2",
    "relu",
    "max pool 3/2",
    "conv 192 5×5 stride 1 pad 2,2",
    "relu",
    "max pool 3/2",
    "conv 384 3×3 stride 1 pad 1,1",
    "relu",
    "conv 256 3×3 stride 1 pad 1,1",
    "relu",
    "conv 256 3×3 stride 1 pad 1,1",
    "relu",
    "max pool 3/2",
];

/// Copies conv1 to conv5 into `params`, the fresh parameters of `net`, and lists what was copied and what is fresh.
///
/// # Errors
/// [`Error::Config`] with the first difference if `net` does not compute the same up to pool5.
pub fn copy(net: &Network, params: &mut Params) -> Result<Copied> {
    if let Some(why) = refusal(net)? {
        return Err(Error::Config(format!(
            "--from imagenet belongs to net torchvision and does not fit net {}: {why}; use --net torchvision, or \
             train {} without --from",
            net.name, net.name
        )));
    }
    let file =
        SafeTensors::deserialize(FILE).map_err(|e| Error::Checkpoint(format!("built-in weights: {e}")))?;
    let mut report = Copied::default();
    let mut convolutions = 0;
    for (index, layer) in net.layers.iter().enumerate() {
        match layer.op {
            Op::Conv(_) => convolutions += 1,
            Op::Linear(_) => {
                report.fresh.push((layer.name.clone(), "fully connected layers are trained anew".into()));
                continue;
            }
            _ => continue,
        }
        for param in params.0.iter_mut().filter(|p| p.layer == index) {
            let role = if param.shape.len() > 1 { "weight" } else { "bias" };
            let tensor = file
                .tensor(&format!("conv{convolutions}.{role}"))
                .map_err(|e| Error::Checkpoint(format!("built-in weights: {e}")))?;
            if tensor.shape() != param.shape {
                return Err(Error::Checkpoint(format!("built-in weights: {} has another shape", param.name)));
            }
            for (value, bytes) in param.data.iter_mut().zip(tensor.data().as_chunks::<2>().0) {
                *value = half::f16::from_le_bytes(*bytes).to_f32();
            }
        }
        report.copied.push(layer.name.clone());
    }
    Ok(report)
}

/// The first difference between `net` and torchvision's up to pool5, in words, or `None` if there is none.
///
/// # Errors
/// As [`Network::trace`].
pub fn refusal(net: &Network) -> Result<Option<String>> {
    net.trace()?;
    if net.input.c != 3 {
        return Ok(Some(format!("its input has {} channels, not red, green and blue", net.input.c)));
    }
    let mut ours = net.layers.iter().filter(|l| !matches!(l.op, Op::Dropout(_)));
    for (i, expected) in FEATURES.iter().enumerate() {
        let Some(layer) = ours.next() else {
            return Ok(Some(format!("it ends after {i} layers, before torchvision's {expected}")));
        };
        let found = words(&layer.op);
        if found != *expected {
            return Ok(Some(format!("its {} is {found} where torchvision has {expected}", layer.name)));
        }
    }
    Ok(ours.find(|l| !matches!(l.op, Op::Linear(_) | Op::Activation(_))).map(|l| {
        format!(
            "its {} ({}) follows pool5, where torchvision has fully connected layers",
            l.name,
            l.op.kind()
        )
    }))
}

/// What a layer computes, in the words of [`FEATURES`].
fn words(op: &Op) -> String {
    match op {
        Op::Conv(c) => {
            let groups = if c.groups == 1 { String::new() } else { format!(" in {} groups", c.groups) };
            format!(
                "conv {} {1}×{1} stride {2} pad {3},{4}{groups}",
                c.filters, c.kernel, c.stride, c.pad.before, c.pad.after
            )
        }
        Op::Activation(Activation::Relu) => "relu".into(),
        Op::Pool(p) => {
            let kind = match p.kind {
                PoolKind::Max => "max",
                PoolKind::Average => "average",
            };
            format!("{kind} pool {}/{}", p.size, p.stride)
        }
        other => other.kind().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Conv, Init, Layer, Linear, Loss, Lrn, Pad, Pool, Rounding, Shape, Ties};

    fn layer(name: &str, op: Op) -> Layer {
        Layer { name: name.into(), op }
    }

    fn conv(filters: usize, kernel: usize, stride: usize, pad: usize) -> Op {
        let pad = Pad { before: pad, after: pad };
        let (groups, rounding, weight, bias) = (1, Rounding::Floor, Init::FanIn, Init::FanIn);
        Op::Conv(Conv { filters, kernel, stride, pad, groups, rounding, weight, bias })
    }

    fn pool() -> Op {
        Op::Pool(Pool {
            kind: PoolKind::Max,
            size: 3,
            stride: 2,
            rounding: Rounding::Floor,
            ties: Ties::First,
        })
    }

    fn torchvision_with(extra: Option<(usize, Layer)>) -> Network {
        let relu = Op::Activation(Activation::Relu);
        let mut layers = vec![
            layer("conv1", conv(64, 11, 4, 2)),
            layer("relu1", relu.clone()),
            layer("pool1", pool()),
            layer("conv2", conv(192, 5, 1, 2)),
            layer("relu2", relu.clone()),
            layer("pool2", pool()),
            layer("conv3", conv(384, 3, 1, 1)),
            layer("relu3", relu.clone()),
            layer("conv4", conv(256, 3, 1, 1)),
            layer("relu4", relu.clone()),
            layer("conv5", conv(256, 3, 1, 1)),
            layer("relu5", relu),
            layer("pool5", pool()),
            layer("fc8", Op::Linear(Linear { outputs: 7, weight: Init::FanIn, bias: Init::FanIn })),
        ];
        if let Some((at, extra)) = extra {
            layers.insert(at, extra);
        }
        let name = "variant".into();
        Network { name, source: String::new(), input: Shape::new(3, 224, 224), layers, loss: Loss::Softmax }
    }

    #[test]
    fn five_convolutions_are_copied_and_the_rest_listed() {
        let net = torchvision_with(None);
        let mut params = Params::zeros(&net).unwrap();
        let report = copy(&net, &mut params).unwrap();
        assert_eq!(report.copied, ["conv1", "conv2", "conv3", "conv4", "conv5"]);
        assert_eq!(report.fresh[0].0, "fc8");
        // Sums of the source file's f32 values, made by Python; f16 rounding errors are random in sign.
        for (name, sum, sum_of_squares) in SUMS {
            let data = &params.get(name).unwrap().data;
            let got = data.iter().map(|&x| f64::from(x)).sum::<f64>();
            let got_squares = data.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            assert!((got - sum).abs() < 1e-3 * sum_of_squares.sqrt(), "{name}: {got} {sum}");
            assert!(
                (got_squares / sum_of_squares - 1.0).abs() < 1e-4,
                "{name}: {got_squares} {sum_of_squares}"
            );
        }
        assert!(params.get("fc8.weight").unwrap().data.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn another_net_is_refused_with_the_reason() {
        let lrn = Op::Lrn(Lrn { size: 5, k: 2.0, alpha: 1e-4, alpha_div_n: true, beta: 0.75, towers: 1 });
        let net = torchvision_with(Some((2, layer("norm1", lrn))));
        let mut params = Params::zeros(&net).unwrap();
        let error = copy(&net, &mut params).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("its norm1 is lrn where torchvision has max pool 3/2"), "{error}");
        assert!(params.0.iter().all(|p| p.data.iter().all(|&x| x == 0.0)), "a refused net stays untouched");

        let mut grouped = torchvision_with(None);
        if let Op::Conv(c) = &mut grouped.layers[3].op {
            c.groups = 2;
        }
        assert!(refusal(&grouped).unwrap().unwrap().contains("in 2 groups"));
        let tail = torchvision_with(Some((13, layer("conv6", conv(16, 3, 1, 1)))));
        assert!(refusal(&tail).unwrap().unwrap().contains("conv6"));
    }

    /// Sum and sum of squares of each tensor of the f32 source.
    const SUMS: [(&str, f64, f64); 10] = [
        ("conv1.weight", -1.84268, 317.917283),
        ("conv1.bias", -24.7747, 48.1839704),
        ("conv2.weight", -969.511, 683.544775),
        ("conv2.bias", 0.401495, 5.95710989),
        ("conv3.weight", -1953.61, 820.192559),
        ("conv3.bias", 9.72253, 7.88329538),
        ("conv4.weight", -2725.45, 683.140856),
        ("conv4.bias", 18.5452, 23.1728263),
        ("conv5.weight", -2421.76, 420.376135),
        ("conv5.bias", 56.1274, 32.5130819),
    ];
}

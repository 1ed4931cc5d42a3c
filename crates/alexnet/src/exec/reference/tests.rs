use super::*;
use crate::exec::contract::{Batch, Executor, Pixels, Rate, Role, StepReport};
use crate::net::{
    Activation, BatchNorm, Conv, Dropout, Init, Layer, Linear, Loss, Lrn, Pad, Pool, PoolKind, Rounding,
    SpatialLrn, Ties,
};
use crate::ops::check;

/// Every operation once, in the shape of the 2012 network: two towers, an overhanging strided first layer,
/// overlapping clipped windows, norms of both kinds, dropout of both conventions.
fn tiny(loss: Loss) -> Network {
    let init = Init::FanIn;
    let conv = |filters, kernel, stride, pad, groups, rounding| {
        Op::Conv(Conv { filters, kernel, stride, pad, groups, rounding, weight: init, bias: init })
    };
    let pool =
        |kind, size| Op::Pool(Pool { kind, size, stride: 2, rounding: Rounding::Ceil, ties: Ties::First });
    let linear = |outputs| Op::Linear(Linear { outputs, weight: init, bias: init });
    let pad = |before, after| Pad { before, after };
    let layers = [
        ("conv1", conv(4, 5, 2, pad(0, 1), 1, Rounding::Ceil)),
        ("relu1", Op::Activation(Activation::Relu)),
        ("norm1", Op::Lrn(Lrn { size: 3, k: 2.0, alpha: 0.8, alpha_div_n: false, beta: 0.75, towers: 2 })),
        ("pool1", pool(PoolKind::Max, 3)),
        ("bnorm1", Op::BatchNorm(BatchNorm { eps: 1e-3, momentum: 0.1 })),
        ("conv2", conv(6, 3, 1, pad(1, 1), 2, Rounding::Floor)),
        ("abs2", Op::Activation(Activation::AbsTanh)),
        ("cnorm2", Op::SpatialLrn(SpatialLrn { size: 3, k: 1.0, alpha: 2.0, alpha_div_n: true, beta: 0.75 })),
        ("pool2", pool(PoolKind::Average, 2)),
        ("fc3", linear(6)),
        ("tanh3", Op::Activation(Activation::Tanh)),
        ("drop3", Op::Dropout(Dropout { rate: 0.5, inverted: false })),
        ("fc4", linear(7)),
        ("logistic4", Op::Activation(Activation::Logistic)),
        ("drop4", Op::Dropout(Dropout { rate: 0.3, inverted: true })),
        ("fc5", linear(3)),
    ];
    let layers = layers.into_iter().map(|(name, op)| Layer { name: name.into(), op }).collect();
    Network { name: "tiny".into(), source: "these tests".into(), input: Shape::new(3, 12, 13), layers, loss }
}

fn with_weights<T: Real>(net: &Network, batch: usize, last: Option<usize>) -> Reference<T> {
    let mut reference = Reference::new(net, batch, last).unwrap();
    for (t, tensor) in reference.params_mut().iter_mut().enumerate() {
        let values = check::uniform(t as u64, tensor.len());
        // Rounded to f32, so that executors in f32 and f64 start from the same weights.
        tensor.iter_mut().zip(values).for_each(|(w, v)| *w = T::of(f64::from(v as f32)));
    }
    for t in 0..reference.params.len() {
        if reference.names.0[t].name.ends_with("running_var") {
            reference.params[t].iter_mut().for_each(|v| *v = *v * *v + T::of(0.5));
        }
    }
    reference
}

/// Pictures in the layout of the contract.
fn pictures(net: &Network, batch: usize) -> Vec<f32> {
    check::uniform(1000, batch * net.input.len()).iter().map(|&x| x as f32).collect()
}

const LABELS: [u32; 3] = [2, 0, 1];
const WEIGHTS: [f32; 3] = [1.0, 0.0, 1.0];

fn step<T: Real>(reference: &mut Reference<T>, input: &[f32], step: u64, rate: Rate) -> StepReport {
    let rates = vec![rate; reference.params.len()];
    let batch = Batch { input: Pixels::F32(input), count: 3, labels: &LABELS, weights: &WEIGHTS };
    reference.train_step(batch, &StepSettings { step, seed: 5, momentum: 0.9, rates: &rates })
}

#[test]
fn the_gradient_of_the_whole_network() {
    for (loss, mode, held) in [
        (Loss::Softmax, Mode::Train { seed: 5, step: 0 }, false),
        (Loss::Logistic, Mode::Train { seed: 5, step: 1 }, false),
        (Loss::Softmax, Mode::Train { seed: 5, step: 2 }, true),
        (Loss::Softmax, Mode::Test, false),
    ] {
        let net = tiny(loss);
        let mut reference = with_weights::<f64>(&net, 3, None);
        let rate = Rate { lr: if held { 0.0 } else { 1.0 }, decay: 0.0 };
        reference.hold_statistics(&vec![rate; reference.params.len()]);
        let input = check::uniform(1000, 3 * net.input.len());
        reference.forward(&input, mode);
        reference.backward(&LABELS, &WEIGHTS, mode);
        for t in 0..reference.params.len() {
            if reference.names.0[t].role == Role::Statistic {
                continue;
            }
            let (values, gradient) = (reference.params[t].clone(), reference.param_gradients()[t].clone());
            assert!(check::dot(&gradient, &gradient) > 0.0, "{} has no gradient", reference.names.0[t].name);
            check::gradient(&reference.names.0[t].name.clone(), &values, &gradient, |w| {
                reference.params[t].copy_from_slice(w);
                reference.forward(&input, mode);
                reference.loss(&LABELS, &WEIGHTS)
            });
            reference.params[t] = values;
        }
    }
}

#[test]
fn a_frozen_normalization_is_used_as_at_test_time() {
    // Without dropout, whose masks differ between training and use.
    let mut net = tiny(Loss::Softmax);
    net.layers.retain(|layer| !matches!(layer.op, Op::Dropout(_)));
    let mut reference = with_weights::<f32>(&net, 3, None);
    let input = pictures(&net, 3);
    let before = reference.params();
    let mut rates: Vec<Rate> = vec![Rate { lr: 0.1, decay: 0.0 }; before.0.len()];
    for (rate, param) in rates.iter_mut().zip(&before.0) {
        rate.lr = if param.name.starts_with("bnorm1") { 0.0 } else { rate.lr };
    }
    let batch = Batch { input: Pixels::F32(&input), count: 3, labels: &LABELS, weights: &WEIGHTS };
    let mut p = vec![0.0; 3 * net.classes()];
    reference.infer(batch, &mut p);
    let expected: f64 =
        [0, 2].iter().map(|&n| -f64::from(p[n * 3 + LABELS[n] as usize]).ln()).sum::<f64>() / 2.0;
    let settings = StepSettings { step: 0, seed: 5, momentum: 0.9, rates: &rates };
    let report = reference.train_step(batch, &settings);
    assert!((report.loss - expected).abs() < 1e-5, "{} {expected}", report.loss);
    let after = reference.params();
    for (a, b) in before.0.iter().zip(&after.0) {
        assert_eq!(a.data == b.data, a.name.starts_with("bnorm1"), "{}", a.name);
    }
    // Free again, it takes the batch's statistics, and its own move.
    rates.iter_mut().for_each(|rate| rate.lr = 0.1);
    let settings = StepSettings { step: 1, seed: 5, momentum: 0.9, rates: &rates };
    reference.train_step(batch, &settings);
    let moved = reference.params();
    assert_ne!(
        moved.get("bnorm1.running_mean").unwrap().data,
        after.get("bnorm1.running_mean").unwrap().data
    );
}

#[test]
fn f32_and_f64_agree_behind_the_contract() {
    let net = tiny(Loss::Softmax);
    let (mut single, mut double) = (with_weights::<f32>(&net, 4, None), with_weights::<f64>(&net, 4, None));
    let input = pictures(&net, 4);
    for i in 0..5 {
        let rate = Rate { lr: 0.1, decay: 5e-4 };
        let (a, b) = (step(&mut single, &input, i, rate), step(&mut double, &input, i, rate));
        assert!((a.loss - b.loss).abs() < 1e-5, "{a:?} {b:?}");
        assert_eq!((a.top1_wrong, a.weight, a.nonfinite), (b.top1_wrong, 2.0, None));
    }
    for (a, b) in [(single.params(), double.params()), (single.momentum(), double.momentum())] {
        for (a, b) in a.0.iter().zip(&b.0) {
            let wide = |p: &[f32]| p.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let error = check::relative_error(&wide(&a.data), &wide(&b.data));
            assert!(error < 1e-4, "{}: {error:.1e}", a.name);
        }
    }
}

#[test]
fn training_lowers_the_loss_and_repeats_bit_for_bit() {
    let mut net = tiny(Loss::Softmax);
    // Without dropout so narrow a network learns its two pictures by heart.
    net.layers.retain(|layer| !matches!(layer.op, Op::Dropout(_)));
    let input = pictures(&net, 3);
    let run = || {
        let mut reference = with_weights::<f32>(&net, 3, None);
        let rate = Rate { lr: 0.2, decay: 0.0 };
        let losses: Vec<f64> = (0..100).map(|i| step(&mut reference, &input, i, rate).loss).collect();
        (losses, reference.params())
    };
    let (losses, params) = run();
    assert!(losses[99] < 0.1 * losses[0], "{losses:?}");
    assert!((losses, params) == run());
}

#[test]
fn the_update_by_hand() {
    let net = tiny(Loss::Softmax);
    let mut reference = with_weights::<f64>(&net, 3, None);
    let len = reference.params[0].len();
    reference.params[0] = vec![2.0; len];
    reference.momentum[0] = vec![0.5; len];
    reference.param_gradients[0] = vec![3.0; len];
    let mut rates = vec![Rate { lr: 0.0, decay: 1.0 }; reference.params.len()];
    rates[0] = Rate { lr: 0.25, decay: 0.125 };
    let before = (reference.params.clone(), reference.momentum.clone());
    reference.update(&StepSettings { step: 0, seed: 0, momentum: 0.5, rates: &rates });
    // v = 0.5·0.5 − 0.125·0.25·2 − 0.25·3, w = 2 + v
    assert_eq!((reference.momentum[0][0], reference.params[0][0]), (-0.5625, 1.4375));
    assert_eq!((&reference.params[1..], &reference.momentum[1..]), (&before.0[1..], &before.1[1..]));
}

#[test]
fn a_picture_of_weight_zero_and_the_rest_of_the_buffer_change_nothing() {
    let net = tiny(Loss::Softmax);
    let (mut a, mut b) = (with_weights::<f32>(&net, 4, None), with_weights::<f32>(&net, 4, None));
    let input = pictures(&net, 4);
    let mut other = input.clone();
    let len = net.input.len();
    other[len..2 * len].fill(0.25);
    other[3 * len..].fill(0.25);
    let rate = Rate { lr: 0.1, decay: 5e-4 };
    assert_eq!(step(&mut a, &input, 0, rate), step(&mut b, &other, 0, rate));
    assert_eq!(a.params(), b.params());
}

#[test]
fn inference_and_truncation() {
    let net = tiny(Loss::Softmax);
    let input = pictures(&net, 3);
    let batch = Batch { input: Pixels::F32(&input), count: 2, labels: &[], weights: &[] };
    let mut whole = with_weights::<f32>(&net, 3, None);
    let mut probabilities = vec![0.0; 2 * whole.output_len()];
    whole.infer(batch, &mut probabilities);
    for p in probabilities.chunks(3) {
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6 && p.iter().all(|p| *p > 0.0), "{p:?}");
    }
    for (last, traced) in net.trace().unwrap().iter().enumerate() {
        let mut part = with_weights::<f32>(&net, 3, Some(last));
        assert_eq!(part.output_len(), traced.output.len());
        let mut output = vec![0.0; 2 * part.output_len()];
        part.infer(batch, &mut output);
        assert_eq!(output, whole.activations()[last][..output.len()], "{}", traced.layer.name);
    }
}

#[test]
fn the_first_layer_that_is_not_finite_is_named() {
    let net = tiny(Loss::Softmax);
    let input = pictures(&net, 3);
    let rate = Rate { lr: 0.1, decay: 0.0 };
    for (layer, value) in [("conv2", f32::NAN), ("conv1", f32::NAN), ("fc5", f32::INFINITY)] {
        let mut reference = with_weights::<f32>(&net, 3, None);
        let mut params = reference.params();
        let at = net.position(layer).unwrap();
        params.0.iter_mut().find(|p| p.layer == at).unwrap().data.fill(value);
        reference.set_params(&params);
        assert_eq!(step(&mut reference, &input, 0, rate).nonfinite, Some(at), "{layer}");
    }
    // The forward pass is sound, the first updated layer is not.
    let mut reference = with_weights::<f32>(&net, 3, None);
    let report = step(&mut reference, &input, 0, Rate { lr: f32::INFINITY, decay: 0.0 });
    assert_eq!(report.nonfinite, Some(net.position("fc5").unwrap()));
}

#[test]
fn wrong_plans_are_refused() {
    let net = tiny(Loss::Softmax);
    let layers = net.layers.len();
    assert!(Reference::<f32>::new(&net, 1, Some(layers)).err().unwrap().to_string().contains("no layer 16"));
    assert!(Reference::<f32>::new(&net, 0, None).is_err());
    let mut broken = net.clone();
    broken.layers.pop();
    assert!(Reference::<f32>::new(&broken, 1, None).is_err());
}

#[test]
fn the_plan_is_told() {
    let reference = Reference::<f64>::new(&tiny(Loss::Softmax), 2, None).unwrap();
    let text = reference.describe();
    assert!(
        text.contains("reference f64") && text.contains("conv1    conv         3×12×13 -> 4×5×6"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 17);
    let elements = 2 * 3 * 12 * 13;
    assert!(reference.planned_bytes() > 8 * elements);
}

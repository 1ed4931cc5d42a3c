//! The CPU executor against the reference, stage orders of every network of the zoo at small width, on every
//! instruction set, and with products in high and low parts, which are held to the same bounds.

mod executors;

use alexnet::Network;
use alexnet::exec::contract::{Batch, Executor, Params, Pixels, Rate, Role};
use alexnet::exec::cpu::Cpu;
use alexnet::exec::plan::{Mode, Plan};
use alexnet::exec::reference::Reference;
use alexnet::net::{Activation, Op, PoolKind};
use alexnet::ops::update::{Lars, Policy, Rule};
use alexnet::zoo;
use alexnet_kernels::Isa;
use alexnet_kernels::bf16::Engine;
use executors::{ODD, WIDE, distance, input, narrow, params, train};

/// What multiplies.
#[derive(Clone, Copy, Debug)]
enum Products {
    Vectors(Isa),
    /// In high and low parts, on tiles or what stands in for them.
    Tiles(Engine),
}

impl Products {
    fn all() -> Vec<Products> {
        let vectors = Isa::all().into_iter().map(Products::Vectors);
        vectors.chain([Products::Tiles(Engine::all()[0])]).collect()
    }

    fn best() -> Products {
        Products::Vectors(Isa::all()[0])
    }

    /// How close losses come to the reference's; parameters' changes to a twentieth. Sixteen bits of an operand decide otherwise
    /// than 24 now and then, which element of a window is the largest or which is positive.
    fn close(self) -> f64 {
        match self {
            Products::Vectors(_) => 1e-4,
            Products::Tiles(_) => 5e-4,
        }
    }

    fn plan(self, net: &Network, plan: Plan, threads: usize) -> Cpu {
        match self {
            Products::Vectors(isa) => Cpu::new(net, plan, isa, threads),
            Products::Tiles(engine) => Cpu::on_tiles(net, plan, engine, threads),
        }
        .unwrap()
    }
}

fn compare(net: &Network, batch: usize, steps: u64, all: &[Products]) {
    compare_by(net, batch, steps, all, Rule::default(), 0.01);
}

fn compare_by(net: &Network, batch: usize, steps: u64, all: &[Products], rule: Rule, lr: f32) {
    compare_frozen(net, batch, steps, all, rule, lr, &[]);
}

fn compare_frozen(
    net: &Network,
    batch: usize,
    steps: u64,
    all: &[Products],
    rule: Rule,
    lr: f32,
    frozen: &[&str], // layers
) {
    let start = params(net);
    let rates: Vec<Rate> = start
        .0
        .iter()
        .map(|p| match p.shape.len() {
            _ if frozen.contains(&net.layers[p.layer].name.as_str()) => Rate { lr: 0.0, decay: 0.0 },
            1 => Rate { lr: 2.0 * lr, decay: 0.0 },
            _ => Rate { lr, decay: 5e-4 },
        })
        .collect();
    let mut reference = Reference::<f32>::new(net, batch, None).unwrap().with_rule(rule);
    reference.set_params(&start);
    let want_losses = train(&mut reference, net, batch, steps, &rates);
    let want = reference.params();
    let probe = input(&reference, net, batch, 99);
    let mut want_p = vec![0.0; batch * net.classes()];
    reference
        .infer(Batch { input: Pixels::F32(&probe), count: batch, labels: &[], weights: &[] }, &mut want_p);
    for &products in all {
        let plan = Plan::new(net, batch, Mode::Train { frozen_below: 0 }).unwrap().with_rule(rule);
        let mut cpu = products.plan(net, plan, 2);
        cpu.set_params(&start);
        let losses = train(&mut cpu, net, batch, steps, &rates);
        for (got, want) in losses.iter().zip(&want_losses) {
            assert!(
                (got - want).abs() <= products.close() * want.abs().max(1.0),
                "{} {products:?}: loss {got} {want}",
                net.name
            );
        }
        for ((got, want), start) in cpu.params().0.iter().zip(&want.0).zip(&start.0) {
            // A shift that a batch normalization takes away at once has no gradient but rounding errors.
            let next = net.layers.get(got.layer + 1).filter(|l| !frozen.contains(&l.name.as_str()));
            if got.role == Role::Bias && matches!(next.map(|l| &l.op), Some(Op::BatchNorm(_))) {
                let noise = 1e-4 * lr.max(0.1);
                assert!(got.data.iter().zip(&want.data).all(|(a, b)| (a - b).abs() < noise), "{}", got.name);
                continue;
            }
            if frozen.contains(&net.layers[got.layer].name.as_str()) {
                assert!(got.data == start.data, "{} {products:?} {} is frozen", net.name, got.name);
                continue;
            }
            let d = distance(&got.data, &want.data, &start.data);
            assert!(d < 20.0 * products.close(), "{} {products:?} {}: {d}", net.name, got.name);
        }
        // The same weights at test time, compiled for inference.
        let plan = Plan::new(net, batch, Mode::Infer { last: None }).unwrap();
        let mut cpu = products.plan(net, plan, 2);
        cpu.set_params(&want);
        let probe = input(&cpu, net, batch, 99);
        let mut p = vec![0.0; want_p.len()];
        cpu.infer(Batch { input: Pixels::F32(&probe), count: batch, labels: &[], weights: &[] }, &mut p);
        for (got, want) in p.iter().zip(&want_p) {
            assert!((got - want).abs() < 1e-4, "{} {products:?}: probability {got} {want}", net.name);
        }
    }
}

#[test]
fn every_network_of_the_zoo_trains_as_the_reference() {
    for name in zoo::names().filter(|&name| name != "alexnet-mini") {
        // The side keeps every overhang and clipped window that the full size has.
        compare(&narrow(name, if name == "zfnet" { 96 } else { 100 }), 3, 3, &Products::all());
    }
}

/// Large rates, which only the local ones make bearable, and a limit that every filter of `params` exceeds.
#[test]
fn additions_to_the_update_rule_are_those_of_the_reference() {
    let lars = |policy| Rule { lars: Some(Lars { trust: 0.01, policy }), filter_rms: None };
    let net = narrow("alexnet-bn", 100);
    compare_by(&net, 3, 3, &Products::all(), lars(Policy::Clip), 10.0);
    compare_by(&narrow("caffenet", 100), 3, 3, &[Products::best()], lars(Policy::Scale), 1.0);
    let limited = Rule { lars: None, filter_rms: Some(0.02) };
    let net = narrow("zfnet", 96);
    compare_by(&net, 3, 3, &Products::all(), limited, 0.01);
    let plan = Plan::new(&net, 3, Mode::Train { frozen_below: 0 }).unwrap().with_rule(limited);
    let mut cpu = Cpu::new(&net, plan, Isa::all()[0], 2).unwrap();
    let start = params(&net);
    cpu.set_params(&start);
    train(&mut cpu, &net, 3, 1, &vec![Rate { lr: 1e-4, decay: 0.0 }; start.0.len()]);
    for p in cpu.params().0.iter().filter(|p| p.shape.len() == 4) {
        for filter in p.data.chunks_exact(p.data.len() / p.shape[0]) {
            let rms = (filter.iter().map(|x| x * x).sum::<f32>() / filter.len() as f32).sqrt();
            assert!((rms / 0.02 - 1.0).abs() < 1e-4, "{}: {rms}", p.name);
        }
    }
}

#[test]
fn the_mini_network_with_batches_around_a_block() {
    let net = zoo::alexnet_mini(10);
    for batch in [2, 33] {
        compare(&net, batch, 2, &[Products::best()]);
    }
}

#[test]
fn a_network_of_unusual_layers_trains_as_the_reference() {
    compare(&Network::from_toml(ODD, "odd.toml").unwrap(), 5, 3, &Products::all());
}

#[test]
fn a_wide_network_trains_as_the_reference() {
    // Blocks of as many pictures as Winograd's method asks for, and one picture more.
    for batch in [16, 33] {
        compare(&Network::from_toml(WIDE, "wide").unwrap(), batch, 1, &Products::all());
    }
}

/// The orders of the 2012 network with nothing in it that decides: tanh in place of ReLU, mean in place of maximum. What is
/// left of the difference is rounding.
#[test]
fn smooth_networks_stay_close_in_parts() {
    for name in ["alexnet-2012", "alexnet-2012-code", "torchvision"] {
        let mut net = narrow(name, 100);
        for layer in &mut net.layers {
            match &mut layer.op {
                Op::Activation(f) => *f = Activation::Tanh,
                Op::Pool(pool) => pool.kind = PoolKind::Average,
                _ => {}
            }
        }
        let start = params(&net);
        let rates = vec![Rate { lr: 0.01, decay: 5e-4 }; start.0.len()];
        let trained = |executor: &mut dyn Executor| {
            executor.set_params(&start);
            train(executor, &net, 12, 5, &rates);
            executor.params()
        };
        let want = trained(&mut Reference::<f32>::new(&net, 12, None).unwrap());
        let plan = Plan::new(&net, 12, Mode::Train { frozen_below: 0 }).unwrap();
        let got = trained(&mut Products::Tiles(Engine::all()[0]).plan(&net, plan, 2));
        for ((got, want), start) in got.0.iter().zip(&want.0).zip(&start.0) {
            let d = distance(&got.data, &want.data, &start.data);
            assert!(d < 1e-4, "{name} {}: {d}", got.name);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let lars = Rule { lars: Some(Lars { trust: 0.001, policy: Policy::Clip }), filter_rms: Some(0.1) };
    for (name, rule) in [("alexnet-2012", Rule::default()), ("alexnet-bn", lars)] {
        threads_agree(&narrow(name, 100), rule);
    }
    threads_agree(&Network::from_toml(WIDE, "wide").unwrap(), Rule::default());
}

fn threads_agree(net: &Network, rule: Rule) {
    let start = params(net);
    let rates = vec![Rate { lr: 0.01, decay: 5e-4 }; start.0.len()];
    for products in [Products::best(), Products::Tiles(Engine::all()[0])] {
        let run = |threads| {
            let plan = Plan::new(net, 40, Mode::Train { frozen_below: 0 }).unwrap().with_rule(rule);
            let mut cpu = products.plan(net, plan, threads);
            cpu.set_params(&start);
            train(&mut cpu, net, 40, 3, &rates);
            (cpu.params(), cpu.momentum())
        };
        let one = run(1);
        for threads in [2, 3, 4, 8] {
            assert!(run(threads) == one, "{} {products:?}: {threads} threads", net.name);
        }
    }
}

#[test]
fn frozen_batch_normalizations_keep_their_statistics_and_normalize_by_them() {
    let odd = Network::from_toml(ODD, "odd").unwrap();
    for frozen in [&["b1"][..], &["b2"], &["c1", "b1", "b2"]] {
        compare_frozen(&odd, 5, 3, &Products::all(), Rule::default(), 0.01, frozen);
    }
    let net = narrow("alexnet-bn", 100);
    compare_frozen(&net, 3, 2, &[Products::best()], Rule::default(), 0.01, &["norm2", "norm5"]);
}

#[test]
fn frozen_layers_stay_and_the_rest_moves_as_if_they_had_no_rate() {
    let net = narrow("torchvision", 100);
    let start = params(&net);
    let boundary = net.position("fc6").unwrap();
    let rates: Vec<Rate> = start
        .0
        .iter()
        .map(|p| Rate { lr: if p.layer < boundary { 0.0 } else { 0.01 }, decay: 5e-4 })
        .collect();
    let run = |frozen_below| {
        let plan = Plan::new(&net, 4, Mode::Train { frozen_below }).unwrap();
        let mut cpu = Cpu::new(&net, plan, Isa::all()[0], 2).unwrap();
        cpu.set_params(&start);
        train(&mut cpu, &net, 4, 2, &rates);
        cpu.params()
    };
    let (all, frozen) = (run(0), run(boundary));
    assert!(all == frozen);
    for (before, after) in start.0.iter().zip(&frozen.0) {
        assert_eq!(before.data == after.data, before.layer < boundary, "{}", before.name);
    }
}

/// What an executor yields of `count` pictures.
fn infer(executor: &mut dyn Executor, net: &Network, start: &Params, count: usize) -> Vec<f32> {
    executor.set_params(start);
    let input = input(executor, net, count, 5);
    let mut out = vec![0.0; count * executor.output_len()];
    executor.infer(Batch { input: Pixels::F32(&input), count, labels: &[], weights: &[] }, &mut out);
    out
}

/// Weights of linear layers in eight bits lose up to half a step, a 127th of their output's largest. That largest is about three
/// deviations, so a product is off by 3/127/√12 or 0.7 % of its size, and after three layers by 1.2 %. What precedes them
/// is f32.
#[test]
fn activations_of_any_layer() {
    for name in ["alexnet-2012-code", "caffenet", "alexnet-bn"] {
        let net = narrow(name, 100);
        let start = params(&net);
        for last in 0..net.layers.len() {
            let plan = || Plan::new(&net, 2, Mode::Infer { last: Some(last) }).unwrap();
            let mut reference = Reference::<f32>::new(&net, 2, Some(last)).unwrap();
            let want = infer(&mut reference, &net, &start, 2);
            let isa = Isa::all()[0];
            let mut cpu = Cpu::new(&net, plan(), isa, 2).unwrap();
            let mut eight_bits = Cpu::with_eight_bits(&net, plan(), isa, 2).unwrap();
            let linear = net.layers[..=last].iter().any(|layer| matches!(layer.op, Op::Linear(_)));
            for (executor, bound) in [(&mut cpu, 1e-5), (&mut eight_bits, if linear { 2e-2 } else { 1e-5 })] {
                let d = distance(&infer(executor, &net, &start, 2), &want, &vec![0.0; want.len()]);
                assert!(d < bound, "{name} {} {}: {d}", executor.precision(), net.layers[last].name);
            }
        }
    }
}

#[test]
fn with_weights_in_eight_bits_a_picture_does_not_depend_on_its_neighbours_or_the_threads() {
    let net = narrow("torchvision", 100);
    let start = params(&net);
    for isa in Isa::all() {
        let run = |batch, threads| {
            let plan = Plan::new(&net, batch, Mode::Infer { last: None }).unwrap();
            let mut executor = Cpu::with_eight_bits(&net, plan, isa, threads).unwrap();
            infer(&mut executor, &net, &start, batch)
        };
        // A convolution of one picture sums in another order than one of several.
        for (few, many) in [((1, 1), (1, 8)), ((2, 1), (2, 3)), ((2, 1), (7, 2)), ((2, 1), (34, 4))] {
            let [few, many] = [few, many].map(|(batch, threads)| run(batch, threads));
            assert!(many.starts_with(&few), "{isa:?} {} pictures", many.len() / net.classes());
        }
    }
}

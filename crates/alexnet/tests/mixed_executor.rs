//! The executor in mixed precision against the reference in f32, for the layer orders of every network of the zoo at small
//! width, on every engine: AMX (emulated where the machine lacks it), AVX-512's dot products, widened operands.
//!
//! bf16 keeps 8 bits: wherever two values of a pooling window, or a value and a ReLU's zero, are that close, the gradient
//! goes another way than in f32. With random weights and three pictures that happens often enough to move conv1's gradient
//! by up to 0.37 of its norm, so the bound is a half here; a gradient that has nothing to do with the right one is off by
//! more than one. How close a network stays that is not chosen to be hard is
//! measured against PyTorch (golden_steps.rs), and how exact each stage is, kernel by kernel, in alexnet-kernels. Here the
//! orders of all networks are at stake, and that all engines make the same decisions.

#[path = "../../kernels/tests/engines/mod.rs"]
mod engines;
mod executors;

use alexnet::Network;
use alexnet::exec::contract::{Batch, Executor, Params, Pixels, Rate};
use alexnet::exec::few::{self, Few, LinearWeights};
use alexnet::exec::mixed::Mixed;
use alexnet::exec::plan::{Mode, Plan};
use alexnet::exec::reference::Reference;
use alexnet::exec::{self, Options, Precision};
use alexnet::net::{Activation, Op, PoolKind};
use alexnet::zoo;
use alexnet_kernels::bf16::Engine;
use engines::engines;
use executors::{distance, input, narrow, params, train};

fn rates(params: &Params) -> Vec<Rate> {
    let rate = |matrix| Rate { lr: if matrix { 0.01 } else { 0.02 }, decay: if matrix { 5e-4 } else { 0.0 } };
    params.0.iter().map(|p| rate(p.shape.len() > 1)).collect()
}

fn trained(net: &Network, batch: usize, steps: u64, engine: Engine, threads: usize) -> (Mixed, Vec<f64>) {
    let start = params(net);
    let plan = Plan::mixed(net, batch, Mode::Train { frozen_below: 0 }).unwrap();
    let mut mixed = Mixed::new(net, plan, engine, threads).unwrap();
    mixed.set_params(&start);
    let losses = train(&mut mixed, net, batch, steps, &rates(&start));
    (mixed, losses)
}

fn compare(net: &Network, batch: usize, engines: &[Engine]) {
    let start = params(net);
    let mut reference = Reference::<f32>::new(net, batch, None).unwrap();
    reference.set_params(&start);
    let want_losses = train(&mut reference, net, batch, 1, &rates(&start));
    let want = reference.params();
    let probe = input(&reference, net, batch, 99);
    let mut want_p = vec![0.0; batch * net.classes()];
    reference
        .infer(Batch { input: Pixels::F32(&probe), count: batch, labels: &[], weights: &[] }, &mut want_p);
    let mut first: Option<Params> = None;
    for &engine in engines {
        let what = format!("{} {}", net.name, engine.name());
        let (mixed, losses) = trained(net, batch, 1, engine, 2);
        assert!((losses[0] - want_losses[0]).abs() <= 0.02 * want_losses[0].max(1.0), "{what}: {losses:?}");
        let got = mixed.params();
        for ((got, want), start) in got.0.iter().zip(&want.0).zip(&start.0) {
            let d = distance(&got.data, &want.data, &start.data);
            assert!(d < 0.5, "{what} {}: {d}", got.name);
        }
        // Engines differ in the order of sums and in denormals only.
        if let Some(first) = &first {
            for ((got, want), start) in got.0.iter().zip(&first.0).zip(&start.0) {
                let d = distance(&got.data, &want.data, &start.data);
                assert!(d < 0.02, "{what} {}: {d} from the first engine", got.name);
            }
        }
        first.get_or_insert(got);
        let plan = Plan::mixed(net, batch, Mode::Infer { last: None }).unwrap();
        let mut mixed = Mixed::new(net, plan, engine, 2).unwrap();
        infer(&mut mixed, &want, net, batch, &want_p, &what);
        let plan = Plan::few(net, batch, None).unwrap();
        if few::unsupported(net, &plan).is_none() {
            let mut few = Few::new(net, plan, engine, LinearWeights::Bf16, 2).unwrap();
            infer(&mut few, &want, net, batch, &want_p, &format!("{what} few"));
        }
    }
}

fn infer(
    executor: &mut dyn Executor,
    params: &Params,
    net: &Network,
    batch: usize,
    want: &[f32],
    what: &str,
) {
    executor.set_params(params);
    let probe = input(executor, net, batch, 99);
    let mut p = vec![0.0; want.len()];
    executor.infer(Batch { input: Pixels::F32(&probe), count: batch, labels: &[], weights: &[] }, &mut p);
    for (got, want) in p.iter().zip(want) {
        assert!((got - want).abs() < 0.03, "{what}: probability {got} {want}");
    }
}

#[test]
fn every_network_of_the_zoo_trains_as_the_reference() {
    for name in zoo::names().filter(|&name| name != "alexnet-mini" && name != "alexnet-bn") {
        let mut engines = engines();
        if !["alexnet-2012", "alexnet-2012-code", "zfnet"].contains(&name) {
            // Emulation is slow.
            engines.retain(|engine| engine.name() != "amx");
        }
        // The side keeps every overhang and clipped window that the full size has.
        compare(&narrow(name, if name == "zfnet" { 96 } else { 100 }), 3, &engines);
    }
}

/// The orders of the 2012 network with nothing in it that decides: tanh in place of ReLU, mean in place of maximum. What is
/// left of the difference is rounding.
#[test]
fn smooth_networks_stay_within_two_hundredths() {
    let mut nets: Vec<Network> =
        ["alexnet-2012", "alexnet-2012-code", "torchvision"].iter().map(|name| narrow(name, 100)).collect();
    for layer in nets.iter_mut().flat_map(|net| &mut net.layers) {
        match &mut layer.op {
            Op::Activation(f) => *f = Activation::Tanh,
            Op::Pool(pool) => pool.kind = PoolKind::Average,
            _ => {}
        }
    }
    nets.push(Network::from_toml(executors::WIDE, "wide.toml").unwrap());
    for net in nets {
        let start = params(&net);
        let mut reference = Reference::<f32>::new(&net, 12, None).unwrap();
        reference.set_params(&start);
        train(&mut reference, &net, 12, 1, &rates(&start));
        for engine in engines() {
            let (mixed, _) = trained(&net, 12, 1, engine, 2);
            for ((got, want), start) in mixed.params().0.iter().zip(&reference.params().0).zip(&start.0) {
                let d = distance(&got.data, &want.data, &start.data);
                assert!(d < 0.02, "{} {} {}: {d}", net.name, engine.name(), got.name);
            }
        }
    }
}

#[test]
fn the_mini_network_with_batches_around_a_block() {
    let net = zoo::alexnet_mini(10);
    for batch in [2, 33] {
        compare(&net, batch, &engines()[..1]);
    }
}

#[test]
fn a_network_of_unusual_layers_trains_as_the_reference() {
    let net = executors::ODD.lines().filter(|l| !l.contains("batch-norm")).collect::<Vec<_>>().join("\n");
    compare(&Network::from_toml(&net, "odd.toml").unwrap(), 5, &engines());
}

#[test]
fn threads_do_not_change_a_bit() {
    let wide = Network::from_toml(executors::WIDE, "wide.toml").unwrap();
    for net in [narrow("alexnet-2012", 80), narrow("alexnet-2012-code", 80), wide] {
        for engine in engines() {
            let run = |threads| {
                let (mixed, losses) = trained(&net, 40, 2, engine, threads);
                (mixed.params(), mixed.momentum(), losses)
            };
            let one = run(1);
            // Emulation is slow, and the cut into units is the same for every engine.
            let others = if engine.name() == "amx" { &[3][..] } else { &[2, 3, 4, 8] };
            for &threads in others {
                assert!(run(threads) == one, "{} {} {threads} threads", engine.name(), net.name);
            }
        }
    }
}

#[test]
fn what_mixed_precision_does_not_compute_is_refused() {
    let net = narrow("alexnet-bn", 100);
    let plan = Plan::mixed(&net, 2, Mode::Train { frozen_below: 0 }).unwrap();
    let error = Mixed::new(&net, plan, engines()[0], 1).err().unwrap().to_string();
    assert!(error.contains("batch normalization") && error.contains("--precision f32"), "{error}");
    // The groups of the next convolution cut the map that a large window writes.
    let text = r#"
name = "cut"
input = [1, 16, 16]
layer = [
  { name = "c1", type = "conv", filters = 16, kernel = 11 },
  { name = "c2", type = "conv", filters = 16, kernel = 1, groups = 8 },
  { name = "f", type = "linear", outputs = 2 },
]
"#;
    let net = Network::from_toml(text, "cut.toml").unwrap();
    let plan = Plan::mixed(&net, 2, Mode::Train { frozen_below: 0 }).unwrap();
    let error = Mixed::new(&net, plan, engines()[0], 1).err().unwrap().to_string();
    assert!(error.contains("layer c1: 88 rows") && error.contains("--precision f32"), "{error}");
    falls_back(&net);
    let text = text.replace("kernel = 11", "kernel = 3").replace(
        r#"{ name = "c2", type = "conv", filters = 16, kernel = 1, groups = 8 }"#,
        r#"{ name = "p", type = "pool", kind = "max", size = 5, stride = 2 }"#,
    );
    let net = Network::from_toml(&text, "wide.toml").unwrap();
    let plan = Plan::mixed(&net, 2, Mode::Train { frozen_below: 0 }).unwrap();
    let error = Mixed::new(&net, plan, engines()[0], 1).err().unwrap().to_string();
    assert!(error.contains("layer p: max pooling over more than 16 places"), "{error}");
    falls_back(&net);
}

/// Training in the fastest precision is in f32, on tiles if there are any, where mixed precision is refused, and asking for bf16
/// says why.
fn falls_back(net: &Network) {
    let options = |precision| Options { batch: 2, precision, ..Options::default() };
    let f32 = if Engine::best().unwrap().has_tiles() { "f32x3" } else { "f32" };
    assert_eq!(exec::compile(net, &options(Precision::Auto)).unwrap().precision(), f32);
    assert!(exec::compile(net, &options(Precision::Bf16)).is_err());
}

/// A convolution and the max pooling behind it are one stage in bf16, unless the plan ends between them.
#[test]
fn a_convolution_and_its_pooling_are_one_stage() {
    let net = zoo::by_name("torchvision", 1000).unwrap();
    let fused = |plan: &Plan| plan.describe(&net).contains("conv1+relu1+pool1");
    let train = Mode::Train { frozen_below: 0 };
    assert!(fused(&Plan::mixed(&net, 128, train).unwrap()));
    assert!(fused(&Plan::mixed(&net, 128, Mode::Infer { last: None }).unwrap()));
    assert!(!fused(&Plan::new(&net, 128, train).unwrap()), "f32 has no such kernel");
    let relu1 = net.layers.iter().position(|l| l.name == "relu1").unwrap();
    let cut = Plan::mixed(&net, 128, Mode::Infer { last: Some(relu1) }).unwrap();
    assert!(!fused(&cut) && cut.describe(&net).contains("conv1+relu1 "), "{}", cut.describe(&net));
    let mut average = net.clone();
    average.layers.iter_mut().for_each(|layer| {
        if let Op::Pool(pool) = &mut layer.op {
            pool.kind = PoolKind::Average;
        }
    });
    assert!(!fused(&Plan::mixed(&average, 128, train).unwrap()));
}

/// A normalization and the max pooling behind it are one stage, wherever the kernel takes them and the plan does not end between
/// them.
#[test]
fn a_normalization_and_its_pooling_are_one_stage() {
    let net = zoo::by_name("alexnet-2012", 1000).unwrap();
    let stages =
        |plan: &Plan, net: &Network| plan.describe(net).lines().map(str::to_owned).collect::<Vec<_>>();
    let fused = |plan: &Plan, net: &Network| stages(plan, net).iter().any(|s| s.contains("norm1+pool1"));
    let train = Mode::Train { frozen_below: 0 };
    assert!(fused(&Plan::mixed(&net, 128, train).unwrap(), &net));
    assert!(fused(&Plan::mixed(&net, 128, Mode::Infer { last: None }).unwrap(), &net));
    assert!(fused(&Plan::new(&net, 128, train).unwrap(), &net));
    assert!(fused(&Plan::new(&net, 128, Mode::Infer { last: None }).unwrap(), &net));
    let norm1 = net.layers.iter().position(|l| l.name == "norm1").unwrap();
    for plan in [Plan::mixed, Plan::new] {
        let plan = plan(&net, 128, Mode::Infer { last: Some(norm1) }).unwrap();
        assert!(stages(&plan, &net).last().unwrap().contains("norm1 "), "{}", plan.describe(&net));
    }

    // In bf16 and in f32.
    let changed = |change: &dyn Fn(&mut Op)| {
        let mut net = net.clone();
        net.layers[norm1..norm1 + 2].iter_mut().for_each(|layer| change(&mut layer.op));
        [Plan::mixed, Plan::new].map(|plan| fused(&plan(&net, 128, train).unwrap(), &net))
    };
    let with_size = |size: usize| {
        changed(&|op| {
            if let Op::Lrn(lrn) = op {
                lrn.size = size;
            }
        })
    };
    assert_eq!((with_size(5), with_size(3)), ([true, true], [false, true]));
    let average = changed(&|op| {
        if let Op::Pool(pool) = op {
            pool.kind = PoolKind::Average;
        }
    });
    assert_eq!(average, [false, false]);
}

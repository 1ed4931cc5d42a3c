//! The executor for a few pictures against the reference, layer by layer. (Probabilities of every network, on every engine:
//! mixed_executor.rs; kernel by kernel: alexnet-kernels.)

mod executors;

use alexnet::Network;
use alexnet::exec::contract::{Batch, Executor, Pixels};
use alexnet::exec::few::{self, Few, LinearWeights};
use alexnet::exec::plan::Plan;
use alexnet::exec::reference::Reference;
use alexnet::exec::{self, Mode, Options, Precision};
use alexnet_kernels::bf16::Engine;
use executors::{distance, input, narrow, params};

/// bf16 keeps 8 bits, and rounding adds up from layer to layer. So do weights in eight bits.
const BOUND: f64 = 0.03;
/// 750,000 inputs: more than exact sums leave room for.
const WIDE_LINEAR: &str = r#"
name = "wide"
input = [3, 500, 500]
layer = [{ name = "fc", type = "linear", outputs = 10 }]
"#;

/// Both ways to hold the weights of linear layers.
const LINEAR: [LinearWeights; 2] = [LinearWeights::Bf16, LinearWeights::Int8];

#[test]
fn every_layer_yields_what_the_reference_does() {
    for name in ["alexnet-2012", "alexnet-2012-code", "caffenet", "torchvision", "zfnet"] {
        let net = narrow(name, 100);
        let start = params(&net);
        let engine = Engine::all()[0];
        for (last, linear) in (0..net.layers.len()).flat_map(|last| LINEAR.map(|linear| (last, linear))) {
            let mut reference = Reference::<f32>::new(&net, 3, Some(last)).unwrap();
            let mut few = Few::new(&net, Plan::few(&net, 3, Some(last)).unwrap(), engine, linear, 2).unwrap();
            let outputs = [&mut reference as &mut dyn Executor, &mut few].map(|executor| {
                executor.set_params(&start);
                let pixels = input(executor, &net, 3, 7);
                let mut output = vec![0.0; 3 * executor.output_len()];
                executor.infer(
                    Batch { input: Pixels::F32(&pixels), count: 3, labels: &[], weights: &[] },
                    &mut output,
                );
                output
            });
            let [want, got] = outputs;
            let off = distance(&got, &want, &vec![0.0; want.len()]);
            assert!(off < BOUND, "{name} {} {linear:?}: {off}", net.layers[last].name);
        }
    }
}

#[test]
fn a_picture_does_not_depend_on_its_neighbours_or_the_threads() {
    let net = narrow("alexnet-2012", 100);
    let start = params(&net);
    let run = |linear, batch: usize, threads: usize| {
        let plan = Plan::few(&net, batch, None).unwrap();
        let mut few = Few::new(&net, plan, Engine::all()[0], linear, threads).unwrap();
        few.set_params(&start);
        let pixels = input(&few, &net, batch, 7);
        let mut output = vec![0.0; batch * net.classes()];
        few.infer(
            Batch { input: Pixels::F32(&pixels), count: batch, labels: &[], weights: &[] },
            &mut output,
        );
        output.truncate(net.classes());
        output
    };
    for linear in LINEAR {
        let alone = run(linear, 1, 1);
        for (batch, threads) in [(1, 2), (1, 8), (2, 3), (7, 4)] {
            assert_eq!(run(linear, batch, threads), alone, "{batch} pictures on {threads} threads");
        }
    }
}

#[test]
fn what_has_no_kernel_for_a_few_pictures_is_said() {
    for (name, why) in [
        ("alexnet-bn", Some("batch normalization")),
        ("zfnet", None),
        ("alexnet-2012-code", None),
        ("alexnet-2012", None),
        ("torchvision", None),
    ] {
        let net = narrow(name, 100);
        let said = few::unsupported(&net, &Plan::few(&net, 1, None).unwrap());
        match why {
            None => assert_eq!(said, None, "{name}"),
            Some(why) => assert!(said.as_ref().is_some_and(|said| said.contains(why)), "{name}: {said:?}"),
        }
    }
}

#[test]
fn eight_bits_are_for_inference_at_any_batch() {
    let net = narrow("torchvision", 100);
    let options = |batch, mode| Options { batch, mode, precision: Precision::Int8, ..Options::default() };
    for batch in [1, 40] {
        let executor = exec::compile(&net, &options(batch, Mode::Infer { last: None })).unwrap();
        assert_eq!(executor.precision(), "int8");
    }
    let refused = exec::compile(&net, &options(8, Mode::Train { frozen_below: 0 })).err().unwrap();
    assert!(refused.to_string().contains("int8 is for inference"), "{refused}");
    // What bf16 has no kernel for is f32, but for those weights.
    let computed =
        exec::compile(&narrow("alexnet-bn", 100), &options(1, Mode::Infer { last: None })).unwrap();
    assert_eq!(computed.precision(), "int8");
    let wide = Network::from_toml(WIDE_LINEAR, "wide").unwrap();
    let refused = exec::compile(&wide, &options(1, Mode::Infer { last: None })).err().unwrap();
    assert!(refused.to_string().contains("layer fc has too many inputs"), "{refused}");
}

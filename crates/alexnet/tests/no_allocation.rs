//! A step allocates nothing: everything is planned beforehand.

use alexnet::exec::contract::{Batch, Params, Pixels, Rate, StepSettings};
use alexnet::exec::{self, Mode, Options, Precision};
use alexnet::ops::update::{Lars, Policy, Rule};
use alexnet::train::init;
use alexnet::zoo;
use alexnet_kernels::bf16::Engine;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_step_and_a_forward_pass_allocate_nothing() {
    for name in ["alexnet-mini", "alexnet-2012-code", "torchvision", "caffenet", "alexnet-bn"] {
        let mut net = zoo::by_name(name, 10).unwrap();
        if name != "alexnet-mini" {
            net = net.with_width(1, 16).unwrap();
        }
        // The last one is a batch for which bf16 has an executor of its own.
        let modes = [
            (Mode::Train { frozen_below: 0 }, 34),
            (Mode::Infer { last: None }, 34),
            (Mode::Infer { last: None }, 3),
        ];
        let tiles = Engine::best().is_ok_and(Engine::has_tiles);
        let precisions = [Precision::F32, Precision::Bf16, Precision::Int8, Precision::F32x3];
        for ((mode, count), precision) in modes.into_iter().flat_map(|m| precisions.map(|p| (m, p))) {
            if precision == Precision::F32x3 && !tiles {
                continue; // Refused.
            }
            if name == "alexnet-bn" && precision == Precision::Bf16 {
                continue; // Batch normalization is computed in f32 only.
            }
            if precision == Precision::Int8 && matches!(mode, Mode::Train { .. }) {
                continue; // Weights of eight bits do not train.
            }
            let lars = (name == "alexnet-bn").then_some(Lars { trust: 0.001, policy: Policy::Clip });
            let rule = Rule { lars, filter_rms: Some(0.1) };
            let options = Options { batch: count, mode, threads: 2, rule, precision, ..Options::default() };
            let mut executor = exec::compile(&net, &options).unwrap();
            executor.set_params(&init::fresh(&net, 0).unwrap());
            let input = vec![0.5; executor.input_layout().len()];
            let (labels, weights) = (vec![1; count], vec![1.0; count]);
            let rates = vec![Rate { lr: 0.001, decay: 5e-4 }; Params::zeros(&net).unwrap().0.len()];
            let mut output = vec![0.0; count * 10];
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for step in 0..2 {
                let batch = Batch { input: Pixels::F32(&input), count, labels: &labels, weights: &weights };
                if matches!(mode, Mode::Train { .. }) {
                    let settings = StepSettings { step, seed: 0, momentum: 0.9, rates: &rates };
                    executor.train_step(batch, &settings);
                } else {
                    executor.infer(batch, &mut output);
                }
            }
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(allocations, 0, "{name} {mode:?} {count} {precision:?}");
        }
    }
}

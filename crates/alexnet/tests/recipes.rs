//! Every built-in recipe, from its first to its last phase: in three epochs, at a sixteenth of its network's width, on a
//! dozen pictures; and at full width as far as planning goes.

use alexnet::data::pack::NewPicture;
use alexnet::data::{Pack, PackOptions, Split, split};
use alexnet::exec::contract::Executor;
use alexnet::exec::plan::Plan;
use alexnet::exec::{self, Mode, Options, Precision};
use alexnet::rng::{Purpose, Stream};
use alexnet::train::checkpoint::{Checkpoint, EpochMetrics};
use alexnet::train::observer::{EpochTiming, Observer};
use alexnet::train::recipe::{Recipe, load, names};
use alexnet::train::run_directory::{RunDirectory, SplitConfig};
use alexnet::train::start::weights;
use alexnet::train::trainer::{Saving, Setup, Start, train};
use alexnet::zoo;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const CLASSES: usize = 3;
const EPOCHS: u64 = 3;
const SEED: u64 = 5;

/// Four pictures of each class to learn from and one to validate with: noise of the class's colour.
fn pack(options: &PackOptions) -> Arc<Pack> {
    let picture = |i: usize| {
        let mut stream = Stream::new(SEED, Purpose::Synthetic, i as u64, 0);
        let mut noise = || (stream.next_u32() & 127) as u8;
        let colour = |j: usize| if j % 3 == i % CLASSES { 100 } else { 0 };
        let pixels = (0..options.side * options.side * 3).map(|j| noise() + colour(j)).collect();
        let split = if i < 4 * CLASSES { Split::Train } else { Split::Val };
        NewPicture {
            path: format!("{i}.png"),
            label: (i % CLASSES) as u32,
            split: Some(split),
            pixels: Ok(pixels),
        }
    };
    let classes = (0..CLASSES).map(|c| format!("class {c}")).collect();
    Arc::new(Pack::from_pictures(classes, options, (0..5 * CLASSES).map(picture)).unwrap())
}

/// What a run told.
#[derive(Default)]
struct Told {
    frozen: Vec<usize>,
    epochs: Vec<EpochMetrics>,
}

impl Observer for Told {
    fn planned(&mut self, _executor: &dyn Executor, frozen_below: usize) {
        self.frozen.push(frozen_below);
    }

    fn epoch(&mut self, metrics: &EpochMetrics, _timing: &EpochTiming, _best: bool) {
        self.epochs.push(metrics.clone());
    }
}

/// Runs a recipe to its end: three steps of four pictures an epoch.
fn run(recipe: Recipe, pack: Arc<Pack>) -> (Told, Checkpoint) {
    let whole = zoo::by_name(&recipe.net, CLASSES).unwrap();
    let net = recipe.apply(whole.with_width(1, 16).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut directory = RunDirectory::create(&folder.path().join("run")).unwrap();
    let learn = split(&pack, &SplitConfig::Given.rule(SEED)).unwrap().train;
    let (preprocess, colour_axes) = recipe.measure(&net, &pack, &learn, 2).unwrap();
    let params = weights(&recipe, &net, SEED).unwrap().0;
    let options = Options {
        batch: recipe.batch,
        precision: Precision::F32,
        threads: 2,
        rule: recipe.rule(),
        ..Options::default()
    };
    let setup = Setup {
        net: net.clone(),
        recipe,
        pack,
        split: SplitConfig::Given,
        seed: SEED,
        threads: 2,
        saving: Saving::default(),
        start: Start::Fresh { params, preprocess, colour_axes },
    };
    let mut told = Told::default();
    let mut compile =
        |frozen_below| exec::compile(&net, &Options { mode: Mode::Train { frozen_below }, ..options });
    train(setup, &mut directory, &mut compile, &mut told, &AtomicBool::new(false)).unwrap();
    (told, directory.store().newest().unwrap().checkpoint)
}

#[test]
fn every_recipe_runs_through_its_phases() {
    let mut packs: BTreeMap<usize, Arc<Pack>> = BTreeMap::new();
    for name in names() {
        let mut recipe = load(name).unwrap().with_epochs(EPOCHS);
        recipe.check().unwrap();
        (recipe.batch, recipe.from, recipe.hidden) = (4, None, None);
        if name == "large-batch" {
            recipe.warmup_steps = Some(2);
        }
        let options = recipe.pack_options();
        let pack = packs.entry(options.side).or_insert_with(|| pack(&options));
        let (told, checkpoint) = run(recipe, Arc::clone(pack));
        assert_eq!(told.epochs.len(), 3, "{name}");
        assert!(told.epochs.iter().all(|e| e.train_loss.is_finite() && e.val_loss.is_finite()), "{name}");
        let lr: Vec<f64> = told.epochs.iter().map(|e| e.lr).collect();
        match name {
            // Of 9 steps the 4th begins after 25 of 91 epochs, the 7th after 51, the 9th after 79, and 72: conv1 stops.
            "krizhevsky-2012-code" => {
                assert!((lr[1] / 1e-3 - 1.0).abs() < 1e-9 && (lr[2] / 1e-5 - 1.0).abs() < 1e-9, "{lr:?}");
                assert_eq!((lr[0], told.frozen.len()), (0.01, 2), "planned once more: {:?}", told.frozen);
                assert!(told.frozen[0] == 0 && told.frozen[1] > 0);
            }
            "finetune-conv6" => assert!(told.frozen.len() == 2 && told.frozen[1] > 0, "{:?}", told.frozen),
            "one-weird-trick-2014" | "torchvision" => assert!(lr[0] > lr[1] && lr[1] > lr[2], "{lr:?}"),
            "nvidia-poly-1k" => assert!((lr[2] * 81.0 / 0.02 - 1.0).abs() < 1e-9, "{lr:?}"),
            "zfnet" => {
                // Limited, and so only where a filter would have grown.
                let filters = checkpoint.params.0.iter().filter(|p| p.shape.len() == 4);
                for p in filters {
                    for filter in p.data.chunks_exact(p.data.len() / p.shape[0]) {
                        let square = filter.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                        assert!((square / filter.len() as f64).sqrt() < 0.1001, "{}", p.name);
                    }
                }
            }
            "large-batch" => {
                // The statistics that the network is used with are in the checkpoint, and have moved.
                let running = checkpoint.params.get("norm1.running_mean").unwrap();
                assert!(running.data.iter().any(|x| *x != 0.0));
            }
            _ => {}
        }
    }
}

#[test]
fn every_recipe_s_network_can_be_planned_at_full_width() {
    for name in names() {
        let recipe = load(name).unwrap();
        let net = recipe.apply(zoo::by_name(&recipe.net, 7).unwrap()).unwrap();
        for mode in [Mode::Train { frozen_below: 0 }, Mode::Infer { last: None }] {
            let plan = Plan::new(&net, 32, mode).unwrap().with_rule(recipe.rule());
            assert!(plan.describe(&net).contains("fc8"), "{name}");
        }
    }
}

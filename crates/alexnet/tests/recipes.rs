//! Every built-in recipe, from its first to its last phase: in three epochs, at a sixteenth of its network's width, on a
//! dozen pictures; and at full width as far as planning goes.

use alexnet::data::{Filter, Form, Keep, Pack, PackOptions, list, split};
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
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const CLASSES: usize = 3;
const EPOCHS: u64 = 3;
const SEED: u64 = 5;

/// Four pictures of each class to learn from and one to validate with: noise of the class's colour, taller than wide.
fn pictures(root: &Path) {
    const SIZE: (u32, u32) = (70, 90);
    for i in 0..5 * CLASSES {
        let mut stream = Stream::new(SEED, Purpose::Synthetic, i as u64, 0);
        let mut noise = || (stream.next_u32() & 127) as u8;
        let colour = |j: usize| if j % 3 == i % CLASSES { 100 } else { 0 };
        let pixels = (0..(SIZE.0 * SIZE.1 * 3) as usize).map(|j| noise() + colour(j)).collect();
        let folder =
            root.join(if i < 4 * CLASSES { "train" } else { "val" }).join(format!("class {}", i % CLASSES));
        std::fs::create_dir_all(&folder).unwrap();
        image::RgbImage::from_raw(SIZE.0, SIZE.1, pixels)
            .unwrap()
            .save(folder.join(format!("{i}.png")))
            .unwrap();
    }
}

/// The pack that a recipe asks for.
fn pack(root: &Path, options: &PackOptions) -> Arc<Pack> {
    let out = root.with_extension(format!(
        "{:?}-{:?}-{:?}-{}",
        options.keep, options.form, options.resize, options.side
    ));
    let listing = list(root, None, &mut |_, _| {}).unwrap();
    Arc::new(Pack::build(&listing, options, &out, &mut |_, _| {}).unwrap())
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
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("pictures");
    pictures(&root);
    let mut packs: Vec<Arc<Pack>> = vec![];
    for name in names() {
        let mut recipe = load(name).unwrap().with_epochs(EPOCHS);
        recipe.check().unwrap();
        (recipe.batch, recipe.from, recipe.hidden) = (4, None, None);
        if name == "large-batch" {
            recipe.warmup_steps = Some(2);
        }
        let options = recipe.pack_options();
        let known = packs.iter().position(|pack| *pack.options() == options);
        let known = known.unwrap_or_else(|| {
            packs.push(pack(&root, &options));
            packs.len() - 1
        });
        let (told, checkpoint) = run(recipe, Arc::clone(&packs[known]));
        // What training saw travels with the weights.
        let PackOptions { side, fit, exif, keep, resize, .. } = options;
        let own = &checkpoint.state.preprocess;
        assert_eq!(
            (own.side, own.fit, own.exif, own.keep, own.resize),
            (side, fit, exif, keep, resize),
            "{name}"
        );
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
fn pictures_are_kept_and_resized_as_the_sources_did() {
    let options = |name: &str| load(name).unwrap().pack_options();
    assert_eq!(options("torchvision").keep, Keep::Original);
    let tool = options("one-weird-trick-2014");
    assert_eq!((tool.keep, tool.form, tool.resize), (Keep::Square, Form::Jpeg, Filter::AreaCubic));
    for name in ["caffe-alexnet", "caffenet", "nvidia-poly-1k", "large-batch"] {
        assert_eq!((options(name).keep, options(name).resize), (Keep::Square, Filter::Linear), "{name}");
    }
    for name in ["krizhevsky-2012", "krizhevsky-2012-code", "zfnet", "finetune"] {
        assert_eq!((options(name).keep, options(name).resize), (Keep::Square, Filter::Bilinear), "{name}");
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

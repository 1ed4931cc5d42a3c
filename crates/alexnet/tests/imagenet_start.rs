//! ImageNet's convolutions on real pictures: a linear layer on pool5 learns classes that it has seen ten pictures of.
//! Wrong weights, channels or preprocessing do not stop a network from learning, but they show here: features of
//! random filters stay far behind. Needs `../shared/data/caltech101` beside the project; skipped without it.

use alexnet::data::{Pack, split};
use alexnet::exec::{Mode, Options, compile};
use alexnet::net::{Network, Op};
use alexnet::train::observer::Silent;
use alexnet::train::recipe::{self, Recipe};
use alexnet::train::run_directory::{RunDirectory, SplitConfig};
use alexnet::train::start::weights;
use alexnet::train::trainer::{Saving, Setup, Start, train};
use alexnet::zoo;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const CLASSES: [&str; 6] = ["accordion", "ceiling_fan", "chair", "cellphone", "crab", "dollar_bill"];
const PICTURES: usize = 20;

/// torchvision's network up to pool5, and the last layer on it.
fn linear_on_pool5(recipe: &Recipe) -> Network {
    let mut net = zoo::by_name("torchvision", CLASSES.len()).unwrap();
    let last = net.layers.pop().unwrap();
    let pool5 = net.layers.iter().rposition(|l| matches!(l.op, Op::Pool(_))).unwrap();
    net.layers.truncate(pool5 + 1);
    net.layers.push(last);
    recipe.apply(net).unwrap()
}

/// Mean per-class accuracy on the pictures that were not learned from.
fn accuracy(recipe: &Recipe, pack: &Arc<Pack>, folder: &Path) -> f64 {
    let net = linear_on_pool5(recipe);
    let split_config = SplitConfig::TrainPerClass(PICTURES / 2);
    let train_pictures = split(pack, &split_config.rule(1)).unwrap().train;
    let (preprocess, colour_axes) = recipe.measure(&net, pack, &train_pictures, 2).unwrap();
    let (params, _) = weights(recipe, &net, 1).unwrap();
    let mut run = RunDirectory::create(folder).unwrap();
    let setup = Setup {
        net: net.clone(),
        recipe: recipe.clone(),
        pack: Arc::clone(pack),
        split: split_config,
        seed: 1,
        saving: Saving::default(),
        start: Start::Fresh { params, preprocess, colour_axes },
    };
    let batch = recipe.batch;
    let mut plan = |frozen_below| {
        compile(
            &net,
            &Options { batch, mode: Mode::Train { frozen_below }, threads: 2, ..Default::default() },
        )
    };
    let summary = train(setup, &mut run, &mut plan, &mut Silent, &AtomicBool::new(false)).unwrap();
    summary.last.val_mean_class_accuracy
}

#[test]
fn features_of_imagenet_carry_over_to_other_pictures() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/caltech101");
    if !source.is_dir() {
        println!("skipped: {} is not there", source.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for class in CLASSES {
        let folder = dir.path().join("pictures").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        let mut files: Vec<_> =
            std::fs::read_dir(source.join(class)).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for file in &files[..PICTURES] {
            std::fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
        }
    }
    let mut recipe = recipe::load("finetune").unwrap();
    (recipe.epochs, recipe.batch, recipe.lr) = (3, 10, 0.0005);
    // The network has no hidden layer to narrow: the last layer reads pool5.
    recipe.hidden = None;
    let cache = dir.path().join("cache");
    let pack =
        Pack::for_folder(&dir.path().join("pictures"), &recipe.pack_options(), Some(&cache), &mut |_, _| {});
    let pack = Arc::new(pack.unwrap());
    let carried = accuracy(&recipe, &pack, &dir.path().join("imagenet"));
    recipe.from = None;
    let random = accuracy(&recipe, &pack, &dir.path().join("random"));
    println!(
        "mean per-class accuracy: {carried:.3} with ImageNet's convolutions, {random:.3} with random ones"
    );
    assert!(carried >= 0.7 && carried >= random + 0.3, "{carried} {random}");
}

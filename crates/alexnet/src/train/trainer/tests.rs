use super::*;
use crate::data::{Keep, PackOptions};
use crate::train::observer::Silent;
use crate::train::recipe::{LayerRates, RateChange, load};
use crate::train::schedule::Schedule;
use crate::train::start::weights;
use crate::train::testing::{Faulty, noise_pack, small_net};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;

/// 42 training pictures of three classes in batches of 8: six steps an epoch, the last of two pictures. Dropout,
/// random crops, mirrors, colour noise, a measured mean picture and a plateau: everything that a resumed run must
/// bring back.
fn setup(epochs: u64) -> Setup {
    let pack = Arc::new(noise_pack(60, 3, 10));
    let mut recipe = load("krizhevsky-2012").unwrap();
    (recipe.net, recipe.epochs, recipe.batch, recipe.lr) = ("small".into(), epochs, 8, 0.02);
    recipe.preprocess.side = 10;
    recipe.preprocess.divisor = 64.0;
    recipe.preprocess.mean =
        crate::train::recipe::MeanSpec::Measured(crate::train::recipe::MeasuredMean::Channels);
    recipe.schedule = Schedule::Plateau { factor: 0.5, patience: 1, reductions: 3 };
    let net = recipe.apply(small_net(3)).unwrap();
    let split_config = SplitConfig::TrainPerClass(14);
    let train = split(&pack, &split_config.rule(7)).unwrap().train;
    assert_eq!(train.len(), 42);
    let (preprocess, colour_axes) = recipe.measure(&net, &pack, &train, 1).unwrap();
    let params = weights(&recipe, &net, 7).unwrap().0;
    let start = Start::Fresh { params, preprocess, colour_axes };
    Setup { net, recipe, pack, split: split_config, seed: 7, saving: Saving::default(), start }
}

fn resumed(mut setup: Setup, run: &RunDirectory) -> Setup {
    let found = run.store().newest().unwrap();
    assert_eq!(found.checkpoint.state.recipe().unwrap(), setup.recipe);
    setup.start = Start::Resume(Box::new(found.checkpoint));
    setup
}

/// Asks the run to stop after a number of steps in this process, or in the validation of an epoch.
#[derive(Default)]
struct Stopper<'a> {
    stop: Option<&'a AtomicBool>,
    after_steps: Option<u64>,
    in_validation: bool,
    steps: u64,
    warnings: Vec<String>,
    frozen: Vec<usize>,
    saved: Vec<PathBuf>,
}

impl Observer for Stopper<'_> {
    fn step(&mut self, step: &StepInfo) {
        assert!(step.loss.is_finite() && step.epoch_top1_error <= 1.0);
        self.steps += 1;
        if Some(self.steps) == self.after_steps {
            self.stop.unwrap().store(true, Ordering::Relaxed);
        }
    }

    fn validating(&mut self, done: usize, _all: usize) {
        if self.in_validation && done == 3 {
            self.stop.unwrap().store(true, Ordering::Relaxed);
        }
    }

    fn planned(&mut self, _executor: &dyn Executor, frozen_below: usize) {
        self.frozen.push(frozen_below);
    }

    fn warning(&mut self, text: &str) {
        self.warnings.push(text.into());
    }

    fn saved(&mut self, path: &Path) {
        self.saved.push(path.into());
    }
}

fn go(
    setup: Setup,
    run: &mut RunDirectory,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary> {
    let (net, batch) = (setup.net.clone(), setup.recipe.batch);
    train(setup, run, &mut |_| Ok(Box::new(Faulty::new(&net, batch))), observer, stop)
}

/// The bytes that a run is for.
fn outcome(run: &RunDirectory) -> (Vec<u8>, Vec<u8>) {
    let checkpoint = std::fs::read(run.store().newest().unwrap().path).unwrap();
    (checkpoint, std::fs::read(run.path().join("metrics.jsonl")).unwrap())
}

fn directory(dir: &tempfile::TempDir, name: &str) -> RunDirectory {
    RunDirectory::create(&dir.path().join(name)).unwrap()
}

#[test]
fn a_network_learns_and_the_run_directory_has_it_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = directory(&dir, "run");
    let mut setup = setup(12);
    setup.recipe.schedule = Schedule::Constant;
    let summary = go(setup, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap();
    assert!(summary.last.val_top1_error < 0.2, "{summary:?}");
    assert!(summary.last.train_loss < 0.9 * 3f64.ln(), "{summary:?}");
    assert!(summary.best.val_top1_error <= summary.last.val_top1_error && summary.images_per_s > 0.0);
    let found = run.store().newest().unwrap();
    assert_eq!(found.path, summary.checkpoint);
    assert_eq!(found.checkpoint.state.history.len(), 12);
    assert_eq!(found.checkpoint.state.position, Position { step: 72, epoch: 12, batch: 0 });
    let metrics = std::fs::read_to_string(run.path().join("metrics.jsonl")).unwrap();
    let last: EpochMetrics = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!((metrics.lines().count(), last), (12, summary.last));
    for file in ["timing.jsonl", "log.txt", "bad_images.jsonl"] {
        assert!(run.path().join(file).is_file(), "{file}");
    }
}

#[test]
fn stopped_anywhere_and_resumed_equals_undisturbed() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = directory(&dir, "whole");
    go(setup(3), &mut whole, &mut Silent, &AtomicBool::new(false)).unwrap();
    let expected = outcome(&whole);
    // Six steps an epoch: the first, in the middle, the last step of an epoch, the first of the next, the last but one.
    for after in [1, 2, 5, 6, 7, 11, 12, 17] {
        let mut run = directory(&dir, &format!("stopped-{after}"));
        let stop = AtomicBool::new(false);
        let mut observer = Stopper { stop: Some(&stop), after_steps: Some(after), ..Default::default() };
        let error = go(setup(3), &mut run, &mut observer, &stop).unwrap_err();
        assert_eq!(error.exit_code(), 75, "{error}");
        assert_eq!(observer.steps, after, "no step after the signal");
        assert!(error.to_string().contains("--resume"), "{error}");
        let again = resumed(setup(3), &run);
        go(again, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap();
        assert_eq!(outcome(&run), expected, "stopped after {after} steps");
    }
}

#[test]
fn stopped_in_validation_and_after_every_step_equals_undisturbed() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = directory(&dir, "whole");
    go(setup(2), &mut whole, &mut Silent, &AtomicBool::new(false)).unwrap();
    let expected = outcome(&whole);

    let mut run = directory(&dir, "validation");
    let stop = AtomicBool::new(false);
    let mut observer = Stopper { stop: Some(&stop), in_validation: true, ..Default::default() };
    assert_eq!(go(setup(2), &mut run, &mut observer, &stop).unwrap_err().exit_code(), 75);
    let position = run.store().newest().unwrap().checkpoint.state.position;
    assert_eq!(position, Position { step: 6, epoch: 0, batch: 6 });
    let again = resumed(setup(2), &run);
    go(again, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap();
    assert_eq!(outcome(&run), expected);

    let mut run = directory(&dir, "every-step");
    let mut next = setup(2);
    loop {
        let stop = AtomicBool::new(false);
        let mut observer = Stopper { stop: Some(&stop), after_steps: Some(1), ..Default::default() };
        match go(next, &mut run, &mut observer, &stop) {
            Ok(_) => break,
            Err(e) => assert_eq!(e.exit_code(), 75, "{e}"),
        }
        next = resumed(setup(2), &run);
    }
    assert_eq!(outcome(&run), expected);
}

#[test]
fn killed_anywhere_and_resumed_equals_undisturbed() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = directory(&dir, "whole");
    go(setup(3), &mut whole, &mut Silent, &AtomicBool::new(false)).unwrap();
    let expected = outcome(&whole);
    for dies_at in [0, 1, 4, 6, 9, 13, 17] {
        let mut run = directory(&dir, &format!("killed-{dies_at}"));
        let mut first = setup(3);
        first.saving.every_steps = Some(2);
        let net = first.net.clone();
        let mut compile = |_: usize| -> Result<Box<dyn Executor>> {
            Ok(Box::new(Faulty { dies_at: Some(dies_at), ..Faulty::new(&net, 8) }))
        };
        let stop = AtomicBool::new(false);
        let died =
            catch_unwind(AssertUnwindSafe(|| train(first, &mut run, &mut compile, &mut Silent, &stop)));
        assert!(died.is_err(), "step {dies_at}");
        let mut again = setup(3);
        if dies_at >= 2 {
            again = resumed(again, &run);
            let Start::Resume(checkpoint) = &again.start else { panic!() };
            let lost = dies_at - checkpoint.state.position.step;
            assert!(lost < 2, "{lost} steps lost");
        } else {
            assert!(run.store().is_empty());
        }
        go(again, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap();
        assert_eq!(outcome(&run), expected, "killed in step {dies_at}");
    }
}

#[test]
fn a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = directory(&dir, "whole");
    go(setup(3), &mut whole, &mut Silent, &AtomicBool::new(false)).unwrap();
    let mut run = directory(&dir, "damaged");
    let stop = AtomicBool::new(false);
    let mut observer = Stopper { stop: Some(&stop), after_steps: Some(14), ..Default::default() };
    go(setup(3), &mut run, &mut observer, &stop).unwrap_err();
    let newest = run.store().path(14);
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&newest, bytes).unwrap();
    let again = resumed(setup(3), &run);
    let Start::Resume(checkpoint) = &again.start else { panic!() };
    assert_eq!(checkpoint.state.position.step, 12);
    go(again, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap();
    assert_eq!(outcome(&run), outcome(&whole));
}

#[test]
fn divergence_stops_within_the_step_and_names_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = directory(&dir, "run");
    let setup = setup(3);
    let net = setup.net.clone();
    let mut compile = |_: usize| -> Result<Box<dyn Executor>> {
        Ok(Box::new(Faulty { diverges_at: Some(8), ..Faulty::new(&net, 8) }))
    };
    let error = train(setup, &mut run, &mut compile, &mut Silent, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    let text = error.to_string();
    for part in ["step 8", "layer fc1", "0.02", "step-000000006.safetensors"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(run.store().newest().unwrap().checkpoint.state.position.step, 6);
    let log = std::fs::read_to_string(run.path().join("log.txt")).unwrap();
    assert!(log.contains("layer fc1"), "{log}");
}

#[test]
fn a_rate_far_too_large_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = directory(&dir, "run");
    let mut setup = setup(20);
    setup.recipe.lr = 1e6;
    let error = go(setup, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
}

#[test]
fn frozen_layers_stay_and_the_plan_is_made_again() {
    let change = |from_epoch, lr| RateChange { from_epoch, lr, bias_lr: None };
    let changes = vec![change(1.0, 0.0), change(1.5, 1.0)];
    let with_changes = || {
        let mut setup = setup(3);
        setup.recipe.layers.insert(
            "conv1".into(),
            LayerRates { lr: 1.0, bias_lr: None, decay: 1.0, changes: changes.clone() },
        );
        setup
    };
    let dir = tempfile::tempdir().unwrap();
    let mut whole = directory(&dir, "whole");
    let mut observer = Stopper::default();
    go(with_changes(), &mut whole, &mut observer, &AtomicBool::new(false)).unwrap();
    assert_eq!(observer.frozen, [0, 2, 0]);

    let mut run = directory(&dir, "stopped");
    let mut first = None;
    for after in [6, 2] {
        let stop = AtomicBool::new(false);
        let mut observer = Stopper { stop: Some(&stop), after_steps: Some(after), ..Default::default() };
        let next = if first.is_some() { resumed(with_changes(), &run) } else { with_changes() };
        go(next, &mut run, &mut observer, &stop).unwrap_err();
        let conv1 = run.store().newest().unwrap().checkpoint.params.get("conv1.weight").unwrap().data.clone();
        if let Some(before) = &first {
            assert_eq!(&conv1, before, "frozen from step 6 to 9");
        }
        first = Some(conv1);
    }
    let last = resumed(with_changes(), &run);
    go(last, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap();
    assert_eq!(outcome(&run), outcome(&whole));
    let end = run.store().newest().unwrap().checkpoint.params.get("conv1.weight").unwrap().data.clone();
    assert_ne!(Some(end), first, "free again from step 9 on");
}

#[test]
fn a_run_does_not_go_on_with_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = directory(&dir, "run");
    let stop = AtomicBool::new(false);
    let mut observer = Stopper { stop: Some(&stop), after_steps: Some(3), ..Default::default() };
    go(setup(2), &mut run, &mut observer, &stop).unwrap_err();
    for (change, word) in [
        ((|s: &mut Setup| s.pack = Arc::new(noise_pack(61, 3, 10))) as fn(&mut Setup), "pictures"),
        (|s| s.split = SplitConfig::TrainPerClass(13), "split"),
        (|s| s.seed = 8, "seed"),
    ] {
        let mut other = resumed(setup(2), &run);
        change(&mut other);
        let error = go(other, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_disk_that_cannot_be_written_warns_first_and_then_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = directory(&dir, "run");
    let mut setup = setup(3);
    setup.saving.every_steps = Some(1);
    // A file in the place of the folder fails for every user, the superuser included.
    let folder = run.path().join("checkpoints");
    std::fs::remove_dir(&folder).unwrap();
    std::fs::write(&folder, b"").unwrap();
    let mut observer = Stopper::default();
    let error = go(setup, &mut run, &mut observer, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert_eq!((observer.warnings.len(), observer.steps), (2, 3), "{:?}", observer.warnings);
    assert!(error.to_string().contains("cannot be written"), "{error}");
}

#[test]
fn a_fixed_order_is_the_same_in_every_epoch() {
    // With one picture a step and no variation, the losses of a frozen network are those of the pictures in order.
    struct Losses(Vec<f64>);
    impl Observer for Losses {
        fn step(&mut self, step: &StepInfo) {
            self.0.push(step.loss);
        }
    }
    let losses = |reshuffle: bool| {
        let mut setup = setup(2);
        setup.recipe.reshuffle = reshuffle;
        setup.recipe.dropout = Some(0.0);
        setup.net = setup.recipe.apply(setup.net).unwrap();
        (setup.recipe.batch, setup.recipe.lr) = (1, 1e-30);
        setup.recipe.augment.colour_noise = 0.0;
        setup.recipe.augment.crop = crate::train::recipe::Crop::Centre;
        setup.recipe.augment.mirror = false;
        let dir = tempfile::tempdir().unwrap();
        let mut observer = Losses(vec![]);
        go(setup, &mut directory(&dir, "run"), &mut observer, &AtomicBool::new(false)).unwrap();
        observer.0
    };
    let fixed = losses(false);
    assert_eq!(fixed[..42], fixed[42..]);
    let shuffled = losses(true);
    assert_ne!(shuffled[..42], shuffled[42..]);
    let sorted = |l: &[f64]| {
        let mut l = l.to_vec();
        l.sort_by(f64::total_cmp);
        l
    };
    assert_eq!(sorted(&shuffled[..42]), sorted(&shuffled[42..]));
}

#[test]
fn the_executor_that_users_get_resumes_bit_for_bit_on_another_number_of_threads() {
    use crate::exec::{Mode, Options, compile};
    let train_on = |threads: usize,
                    setup: Setup,
                    run: &mut RunDirectory,
                    observer: &mut dyn Observer,
                    stop: &AtomicBool| {
        let (net, batch) = (setup.net.clone(), setup.recipe.batch);
        let mut plan = |frozen_below| {
            compile(
                &net,
                &Options { batch, mode: Mode::Train { frozen_below }, threads, ..Default::default() },
            )
        };
        train(setup, run, &mut plan, observer, stop)
    };
    // conv1 rests for one epoch, so that plans with and without its backward pass both occur.
    let setup = || {
        let mut setup = setup(4);
        let change = |from_epoch, lr| RateChange { from_epoch, lr, bias_lr: None };
        let changes = vec![change(1.0, 0.0), change(2.0, 1.0)];
        setup
            .recipe
            .layers
            .insert("conv1".into(), LayerRates { lr: 1.0, bias_lr: None, decay: 1.0, changes });
        setup
    };
    let dir = tempfile::tempdir().unwrap();
    let mut whole = directory(&dir, "whole");
    train_on(2, setup(), &mut whole, &mut Silent, &AtomicBool::new(false)).unwrap();
    for after in [4, 8, 12, 15] {
        let mut run = directory(&dir, &format!("stopped-{after}"));
        let stop = AtomicBool::new(false);
        let mut observer = Stopper { stop: Some(&stop), after_steps: Some(after), ..Default::default() };
        assert_eq!(train_on(2, setup(), &mut run, &mut observer, &stop).unwrap_err().exit_code(), 75);
        let again = resumed(setup(), &run);
        train_on(1, again, &mut run, &mut Silent, &AtomicBool::new(false)).unwrap();
        assert_eq!(outcome(&run), outcome(&whole), "stopped after {after} steps");
    }
}

/// A pack of originals, and the same file with the bytes of some pictures overwritten.
fn originals(folder: &Path, damage: &[usize]) -> (Arc<Pack>, Arc<Pack>) {
    let root = folder.join("set");
    for i in 0..60u32 {
        let class = root.join(format!("class {}", i % 3));
        std::fs::create_dir_all(&class).unwrap();
        let pixel =
            |x: u32, y: u32, c: u32| if c == i % 3 { 200 } else { ((x * 31 + y * 17 + i * 7) % 90) as u8 };
        let picture = image::RgbImage::from_fn(12, 11, |x, y| image::Rgb([0, 1, 2].map(|c| pixel(x, y, c))));
        picture.save(class.join(format!("{i:02}.png"))).unwrap();
    }
    let options = PackOptions { side: 10, keep: Keep::Original, ..Default::default() };
    let (good, bad) = (folder.join("good"), folder.join("bad"));
    let listing = crate::data::list(&root, None, &mut |_, _| {}).unwrap();
    let pack = Pack::build(&listing, &options, &good, &mut |_, _| {}).unwrap();
    let mut bytes = std::fs::read(&good).unwrap();
    for &i in damage {
        let stored = pack.picture(i).unwrap();
        let at = bytes.windows(stored.len()).position(|w| w == stored).unwrap();
        bytes[at + 20..at + stored.len()].fill(0);
    }
    std::fs::write(&bad, bytes).unwrap();
    (Arc::new(pack), Arc::new(Pack::open(&bad).unwrap()))
}

#[test]
fn pictures_that_are_damaged_since_they_were_packed_are_named_and_have_no_weight() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(2);
    (setup.recipe.preprocess.keep, setup.recipe.epochs) = (Keep::Original, 2);
    // Opening looks at every other picture's bytes: at those of even numbers.
    let (good, _) = originals(dir.path(), &[]);
    let sides = split(&good, &setup.split.rule(setup.seed)).unwrap();
    let odd = |side: &[u32]| *side.iter().find(|i| *i % 2 == 1).unwrap() as usize;
    let lost = [odd(&sides.train), odd(&sides.val)];
    let (good, bad) = originals(dir.path(), &lost);
    let (preprocess, colour_axes) = setup.recipe.measure(&setup.net, &good, &sides.train, 1).unwrap();
    if let Start::Fresh { params, .. } = setup.start {
        setup.start = Start::Fresh { params, preprocess, colour_axes };
    }
    setup.pack = Arc::clone(&bad);
    let mut run = directory(&dir, "run");
    let mut told = Stopper::default();
    let stop = AtomicBool::new(false);
    let summary = go(setup.clone(), &mut run, &mut told, &stop).unwrap();
    assert_eq!(summary.damaged, 2);
    let named = |text: &str, i: usize| text.matches(bad.path(i)).count();
    for i in lost {
        assert_eq!(
            told.warnings.iter().filter(|w| w.starts_with(bad.path(i))).count(),
            1,
            "{:?}",
            told.warnings
        );
    }
    let text = std::fs::read_to_string(run.path().join("bad_images.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(lost.iter().all(|&i| named(&text, i) >= 1) && text.contains("\"epoch\":1"), "{text}");
    // A longer run goes on with them, and they are still named once.
    setup.recipe.epochs = 3;
    setup.start = Start::Resume(Box::new(run.store().newest().unwrap().checkpoint));
    let summary = go(setup.clone(), &mut run, &mut Silent, &stop).unwrap();
    assert_eq!(summary.damaged, 2);
    assert_eq!(std::fs::read_to_string(run.path().join("bad_images.jsonl")).unwrap(), text);
    // Too many: one in ten.
    let (_, bad) = originals(dir.path(), &[1, 3, 5, 7, 9, 11]);
    setup.pack = bad;
    (setup.recipe.epochs, setup.start) =
        (4, Start::Resume(Box::new(run.store().newest().unwrap().checkpoint)));
    let error = go(setup, &mut run, &mut Silent, &stop).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(error.to_string().contains("damaged since they were packed"), "{error}");
}

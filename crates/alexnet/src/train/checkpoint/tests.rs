use super::*;
use crate::rng::{Purpose, Stream};
use crate::train::init::fresh;
use crate::train::testing::{small_net, state};

/// A checkpoint after `step` steps whose tensors are all different.
fn sample(step: u64) -> Checkpoint {
    let net = small_net(3);
    let mut state = state(&net);
    state.position = Position { step, epoch: step / 10, batch: step % 10 };
    Checkpoint { state, params: fresh(&net, step).unwrap(), momentum: fresh(&net, step + 1000).unwrap() }
}

fn metrics(step: u64, val_top1_error: f64) -> EpochMetrics {
    EpochMetrics {
        epoch: step / 10,
        step,
        lr: 0.01,
        train_loss: 1.0 / 3.0,
        train_top1_error: 0.1,
        val_loss: 0.7,
        val_top1_error,
        val_top5_error: 0.0,
        val_mean_class_accuracy: 1.0 - val_top1_error,
    }
}

fn files(store: &Store) -> Vec<u64> {
    store.list().into_iter().map(|(step, _)| step).collect()
}

#[test]
fn everything_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.safetensors");
    let mut checkpoint = sample(17);
    checkpoint.state.history = vec![metrics(10, 0.1 + 0.2)];
    checkpoint.state.plateau = PlateauState { best: Some(0.1 + 0.2), waited: 3, reductions: 1 };
    checkpoint.write(&path).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
    let weights = Checkpoint::read_weights(&path).unwrap();
    assert_eq!((&weights.params, weights.momentum.0.len()), (&checkpoint.params, 0));

    checkpoint.state.preprocess = Preprocess::paper(4, 2, (0..48).map(|i| i as f32 / 7.0).collect());
    checkpoint.write(&path).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
    assert_eq!(open_model(&path).unwrap().checkpoint.state, checkpoint.state);
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes <= Checkpoint::size_bytes(&checkpoint.params, &checkpoint.state.preprocess), "{bytes}");
    let file = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.tensor("conv1.weight").unwrap().shape(), [4, 3, 3, 3]);
    assert_eq!(theirs.tensor("momentum.fc2.bias").unwrap().shape(), [3]);
}

#[test]
fn damage_is_noticed_and_the_previous_checkpoint_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let (old, new) = (sample(10), sample(20));
    store.save(&old).unwrap();
    let path = store.save(&new).unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(store.newest().unwrap().checkpoint, new);
    let mut stream = Stream::new(1, Purpose::Synthetic, 0, 0);
    // Every 197th length and both ends, and 300 single bits; the small file of `tensor_file` has them all.
    let cuts =
        (0..whole.len()).step_by(197).chain([1, 7, 8, 9, whole.len() - 1]).map(|len| whole[..len].to_vec());
    let flips = (0..300).map(|_| {
        let mut bad = whole.clone();
        let bit = stream.below(8 * bad.len());
        bad[bit / 8] ^= 1 << (bit % 8);
        bad
    });
    for bad in cuts.chain(flips) {
        std::fs::write(&path, &bad).unwrap();
        let found = store.newest().unwrap();
        assert_eq!(found.checkpoint.state.position.step, 10);
        assert_eq!(found.skipped[0].0, path);
        assert!(found.skipped[0].1.contains("step-000000020"), "{}", found.skipped[0].1);
    }
    // Going on from the old one removes the damaged file once a later or equal good one exists.
    store.save(&sample(15)).unwrap();
    assert_eq!(files(&store), [10, 15]);
}

#[test]
fn the_last_two_and_the_best_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    std::fs::write(dir.path().join("my notes.safetensors"), b"mine").unwrap();
    let errors = [0.5, 0.3, 0.4, 0.3, 0.6, 0.2, 0.7];
    let mut history = Vec::new();
    let mut kept = Vec::new();
    for (i, error) in errors.into_iter().enumerate() {
        let step = 10 * (i as u64 + 1);
        history.push(metrics(step, error));
        let mut checkpoint = sample(step);
        checkpoint.state.history = history.clone();
        store.save(&checkpoint).unwrap();
        kept.push(files(&store));
    }
    assert_eq!(kept[3], [20, 30, 40]);
    assert_eq!(kept[4], [20, 40, 50]);
    assert_eq!(kept[6], [60, 70]);
    assert_eq!(std::fs::read(dir.path().join("my notes.safetensors")).unwrap(), b"mine");
}

#[test]
fn a_newer_format_and_a_foreign_file_are_refused_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.safetensors");
    let mut checkpoint = sample(1);
    checkpoint.state.format = FORMAT + 1;
    checkpoint.write(&path).unwrap();
    let error = Checkpoint::read(&path).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("newer program"), "{error}");
    std::fs::write(&path, b"<html>").unwrap();
    assert!(Checkpoint::read(&path).unwrap_err().to_string().contains("c.safetensors"));
    assert!(Checkpoint::read(dir.path()).unwrap_err().to_string().contains("is not a file"));
    assert!(open_model(&dir.path().join("none")).is_err());
    let empty = Store::new(dir.path().join("checkpoints")).newest().unwrap_err();
    assert!(empty.to_string().contains("no checkpoint"), "{empty}");
}

#[test]
fn values_that_are_not_finite_are_never_saved() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    store.save(&sample(10)).unwrap();
    let mut bad = sample(20);
    bad.momentum.0[2].data[1] = f32::NAN;
    let error = store.save(&bad).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("momentum.fc1.weight"), "{error}");
    assert_eq!(files(&store), [10]);
}

#[test]
fn a_disk_without_room_is_noticed_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    store.preflight(1000).unwrap();
    let error = store.preflight(u64::MAX / 4).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("--out"), "{error}");
}

/// Runs only as the child of the two tests below, with a folder from the environment.
#[test]
fn child_saves_step_20() {
    let Some(folder) = std::env::var_os("ALEXNET_TEST_STORE") else { return };
    if let Some(limit) = std::env::var("ALEXNET_TEST_FILE_LIMIT").ok().and_then(|v| v.parse().ok()) {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: plain calls on values that live across them; the process is this test's own child.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
    }
    match Store::new(folder).save(&sample(20)) {
        Ok(_) => std::process::exit(0),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(i32::from(e.exit_code()));
        }
    }
}

fn child(folder: &Path, variables: &[(&str, &str)]) -> std::process::Output {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "train::checkpoint::tests::child_saves_step_20", "--nocapture"])
        .env("ALEXNET_TEST_STORE", folder)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn a_death_anywhere_in_the_save_leaves_a_good_checkpoint() {
    for (point, newest) in [
        ("before-write", 10),
        ("half-written", 10),
        ("after-write", 10),
        ("after-fsync", 10),
        ("after-rename", 20),
        ("after-folder-fsync", 20),
        ("pruning", 20),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        for step in [1, 5, 10] {
            sample(step).write(&store.path(step)).unwrap();
        }
        assert_eq!(child(dir.path(), &[("ALEXNET_FAIL_POINT", point)]).status.code(), Some(99), "{point}");
        let found = store.newest().unwrap();
        assert_eq!(found.checkpoint, sample(newest), "{point}");
        assert!(found.skipped.is_empty(), "{point}: a temporary file is not taken for a checkpoint");
        // The next process goes on and cleans up.
        assert_eq!(child(dir.path(), &[]).status.code(), Some(0), "{point}");
        assert_eq!(files(&store), [10, 20], "{point}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "{point}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_old_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    sample(10).write(&store.path(10)).unwrap();
    let before = std::fs::read(store.path(10)).unwrap();
    for limit in ["0", "1000", "6000"] {
        let output = child(dir.path(), &[("ALEXNET_TEST_FILE_LIMIT", limit)]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{limit}: {text}");
        assert!(text.contains("bytes needed") && text.contains("are free"), "{text}");
        assert_eq!(std::fs::read(store.path(10)).unwrap(), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_is_gone_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("checkpoints"));
    let error = store.save(&sample(1)).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(
        error.to_string().contains("checkpoints/step-000000001.safetensors cannot be written"),
        "{error}"
    );
}

//! From a folder of pictures to a network, its error rates, its predictions; stopping, going on, and what is refused.

mod common;

use common::{Run, alexnet, finish, pictures, recipe, run, snapshot};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A folder with pictures, a recipe, and a place for results.
struct Place {
    folder: TempDir,
    recipe: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pictures(&folder.path().join("set"), 12);
        let recipe = recipe(folder.path());
        Place { folder, recipe }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    fn train(&self, out: &str, more: &[&str]) -> Run {
        let (set, out) = (self.text("set"), self.text(out));
        let mut words = vec!["train", &set, "--recipe", &self.recipe, "--out", &out];
        words.extend(more);
        run(&words)
    }
}

/// A run on whole files or JPEGs, its own pictures known again when it is measured, and drawn pictures, which have no more
/// than their square.
#[test]
fn a_recipe_says_how_pictures_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    pictures(&set, 12);
    let first = recipe(folder.path());
    let text = |p: &Path| p.to_str().unwrap().to_string();
    for (i, (keys, stored)) in [
        ("keep = 'original'\n", "the files as they are (resized as they are used: antialiased bilinear)"),
        (
            "keep = 'whole'\nresize = 'area-cubic'\n",
            "whole pictures, shorter side 20 pixels (area when shrinking",
        ),
        ("form = 'jpeg'\nresize = 'linear'\nfit = 'warp'\n", "squeezed to 20×20 pixels, as JPEG (linear"),
    ]
    .into_iter()
    .enumerate()
    {
        let own = text(&folder.path().join(format!("recipe{i}.toml")));
        let toml = std::fs::read_to_string(&first).unwrap();
        let toml = toml.replace("[preprocess]\n", &format!("[preprocess]\n{keys}"));
        std::fs::write(&own, toml + "[augment]\ncrop = 'random-area'\narea = [0.5, 1.0]\n").unwrap();
        let out = text(&folder.path().join(format!("run{i}")));
        let trained =
            run(&["train", &text(&set), "--recipe", &own, "--out", &out, "--epochs", "2", "--json"]);
        assert_eq!(trained.code, 0, "{}", trained.stderr);
        assert!(trained.stderr.contains(&format!("stored    {stored}")), "{}", trained.stderr);
        let eval = run(&["eval", &out, &text(&set), "--json"]);
        assert_eq!(eval.code, 0, "{}", eval.stderr);
        assert_eq!(eval.json()["images"], trained.json()["val_pictures"], "{keys}: {}", eval.stderr);
        assert_eq!(eval.json()["top1_error"], trained.json()["val_top1_error"], "{keys}");
        let predicted = run(&["predict", &out, &text(&set.join("red/000.png"))]);
        assert_eq!(predicted.code, 0, "{}", predicted.stderr);
    }
    // Weights of no use are refused before any picture is decoded.
    let other = folder.path().join("other.toml");
    let net = std::fs::read_to_string(folder.path().join("tiny.toml")).unwrap();
    std::fs::write(&other, net.replace("conv1", "first").replace("fc7", "second").replace("fc8", "third"))
        .unwrap();
    let (run0, note) = (text(&folder.path().join("run0")), text(&folder.path().join("note.txt")));
    std::fs::write(&note, "nothing").unwrap();
    for (from, net, part) in [
        (&run0, text(&other), "in the checkpoint"),
        (&note, text(&folder.path().join("tiny.toml")), "note.txt"),
    ] {
        let cache = folder.path().join("cache");
        let mut command = alexnet();
        command.args(["train", &text(&set), "--recipe", &first, "--net", &net, "--from", from]);
        command.args(["--out", &text(&folder.path().join("never"))]).env("XDG_CACHE_HOME", &cache);
        let refused = finish(&mut command);
        assert_eq!(refused.code, 4, "{}", refused.stderr);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
        assert!(!cache.exists(), "{from}: pictures were packed first");
    }
    let drawn = text(&folder.path().join("drawn"));
    let original = text(&folder.path().join("recipe0.toml"));
    let run = run(&["train", "--recipe", &original, "--out", &drawn, "--epochs", "1", "--json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("preprocess.keep = \"square\", not \"original\""), "{}", run.stderr);
}

#[test]
fn a_run_says_and_keeps_where_it_departs_from_its_recipe() {
    let place = Place::new();
    let text = std::fs::read_to_string(&place.recipe).unwrap();
    let published = format!("follows = 'mini'\n{text}\n[data]\nset = 'the set'\nclasses = 1000\n");
    std::fs::write(&place.recipe, published).unwrap();
    let trained = place.train("run", &["--json", "--epochs", "2", "--batch", "6"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let read = |name: &str| std::fs::read_to_string(place.path("run").join(name)).unwrap();
    let (config, log) = (read("config.toml"), read("log.txt"));
    let json = trained.json();
    for difference in
        ["epochs = 2, not 6", "batch = 6, not 8", "3 classes, not the 1000 of the set", "recipe mini"]
    {
        let line =
            trained.stderr.lines().find(|l| l.trim_start().starts_with("differs") && l.contains(difference));
        assert!(line.is_some(), "{difference}: {}", trained.stderr);
        assert!(config.contains(difference) && log.contains(difference), "{difference}: {config} {log}");
        assert!(json["differs"].as_array().unwrap().iter().any(|d| d.as_str().unwrap().contains(difference)));
    }
    // What the run goes on with differs still, and once.
    let again = run(&["train", "--resume", &place.text("run"), "--epochs", "3"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let config = read("config.toml");
    assert_eq!(config.matches("3 classes, not").count(), 1, "{config}");
    assert!(config.contains("epochs = 3, not 2"), "{config}");
}

#[test]
fn a_folder_becomes_a_classifier() {
    let place = Place::new();
    let before = snapshot(&place.path("set"));
    let trained = place.train("run", &["--json", "--seed", "3"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let json = trained.json();
    assert_eq!((json["epochs"].as_u64(), json["classes"].as_u64()), (Some(6), Some(3)));
    assert!(json["val_top1_error"].as_f64().unwrap() < 0.2, "{json}");
    for key in ["run", "train_loss", "val_top5_error", "val_mean_class_accuracy", "images_per_s"] {
        assert!(!json[key].is_null(), "{key}: {json}");
    }
    // The first screen went to standard error, and says what matters.
    for part in
        ["tiny for 3 classes", "recipe    test", "3 classes, 36 pictures", "smallest", "kernels", "results"]
    {
        assert!(trained.stderr.contains(part), "{part}: {}", trained.stderr);
    }
    for file in ["config.toml", "network.toml", "env.json", "metrics.jsonl", "log.txt", "bad_images.jsonl"] {
        assert!(place.path("run").join(file).is_file(), "{file}");
    }

    let (model, set) = (place.text("run"), place.text("set"));
    let held = run(&["eval", &model, &set, "--json"]);
    assert_eq!(held.code, 0, "{}", held.stderr);
    // The pictures that it was validated with, as the last epoch found them.
    assert_eq!(held.json()["images"], json["val_pictures"]);
    assert_eq!(held.json()["top1_error"], json["val_top1_error"]);
    assert!(held.json()["part"].as_str().unwrap().contains("not trained on"));
    let ten = run(&["eval", &model, &set, "--views", "10", "--json"]);
    assert_eq!(ten.json()["views"], 10);

    // Other pictures of the same classes: all of them count.
    pictures(&place.path("other"), 2);
    let other = run(&["eval", &model, &place.text("other"), "--json"]).json();
    assert_eq!(other["images"], 6);

    predictions(&place, &model);
    features(&place, &model);
    assert_eq!(snapshot(&place.path("set")), before, "the data folder was changed");
}

fn predictions(place: &Place, model: &str) {
    let set = place.text("set");
    let red = place.text("set/red/001.jpg");
    let note = place.text("note.jpg");
    std::fs::write(&note, "<html><body>404 not found</body></html>").unwrap();

    let table = run(&["predict", model, &red, &note, "--top", "2"]);
    assert_eq!(table.code, 3, "{}", table.stderr);
    assert!(table.stdout.contains("%  red") && table.stdout.contains("unreadable"), "{}", table.stdout);
    assert!(table.stderr.contains("1 of 2 pictures could not be read"), "{}", table.stderr);

    let lines = run(&["predict", model, &set, "--format", "jsonl"]);
    let objects: Vec<serde_json::Value> =
        lines.stdout.lines().map(|l| serde_json::from_str(l).expect("a JSON object a line")).collect();
    assert_eq!(objects.len(), 36);
    let right = objects.iter().filter(|o| {
        let top = o["predictions"][0]["class"].as_str().unwrap();
        o["path"].as_str().unwrap().contains(&format!("/{top}/"))
    });
    assert!(right.count() >= 32);
    let sum: f64 = (0..3).map(|i| objects[0]["predictions"][i]["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-4, "{sum}");

    let rows = run(&["predict", model, &red, &note, "--format", "csv", "--top", "1"]);
    let mut reader = csv::Reader::from_reader(rows.stdout.as_bytes());
    assert_eq!(reader.headers().unwrap(), vec!["path", "rank", "class", "probability", "error"]);
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!((records.len(), &records[0][2], &records[1][2]), (2, "red", ""));
    assert!(records[1][4].contains("HTML") || records[1][4].contains("picture"), "{:?}", records[1]);

    for format in ["table", "csv", "jsonl"] {
        let mut command = alexnet();
        command.args(["predict", model, &set, "--format", format]).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{format}");
    }

    let none = run(&["predict", model, &note]);
    assert_eq!(none.code, 3, "{}", none.stderr);
    let missing = run(&["predict", model, &place.text("set/red/00l.jpg")]);
    assert_eq!(missing.code, 3);
    assert!(missing.stderr.contains("did you mean"), "{}", missing.stderr);
}

fn features(place: &Place, model: &str) {
    let out = place.text("features.safetensors");
    let made = run(&["features", model, &place.text("set"), "--out", &out]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(made.stdout.contains("layer relu7, 16 values each"), "{}", made.stdout);
    let bytes = std::fs::read(&out).unwrap();
    // safetensors: eight bytes of length, then a JSON header.
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["features"]["shape"], serde_json::json!([36, 16]));
    assert_eq!(header["labels"]["shape"], serde_json::json!([36]));
    assert_eq!(header["__metadata__"]["layer"], "relu7");

    let wrong = run(&["features", model, &place.text("set"), "--layer", "fc77", "--out", &out]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("did you mean fc7?"), "{}", wrong.stderr);
    // A picture that cannot be read: the others are written, and the command fails.
    let part = run(&["features", model, &place.text("set/red"), &place.text("note.jpg"), "--out", &out]);
    assert_eq!(part.code, 3, "{}", part.stderr);
    assert!(part.stderr.contains("1 of 13 pictures could not be read"), "{}", part.stderr);
    assert!(part.stdout.contains("12 pictures, layer relu7"), "{}", part.stdout);
    let nowhere =
        run(&["features", model, &place.text("set"), "--out", &place.text("no/such/f.safetensors")]);
    assert_eq!(nowhere.code, 2, "{}", nowhere.stderr);
}

#[test]
fn a_given_split_is_used_and_train_per_class_counts() {
    let place = Place::new();
    pictures(&place.path("split/train"), 6);
    pictures(&place.path("split/val"), 3);
    let words = |out: &str| ["--recipe".to_string(), place.recipe.clone(), "--out".into(), place.text(out)];
    let mut given =
        vec!["train".to_string(), place.text("split"), "--epochs".into(), "1".into(), "--json".into()];
    given.extend(words("given"));
    let json = run(&given).json();
    assert_eq!((json["train_pictures"].as_u64(), json["val_pictures"].as_u64()), (Some(18), Some(9)));
    let caltech = place.train("caltech", &["--train-per-class", "5", "--epochs", "1", "--json"]).json();
    assert_eq!((caltech["train_pictures"].as_u64(), caltech["val_pictures"].as_u64()), (Some(15), Some(21)));
    let held = run(&["eval", &place.text("caltech"), &place.text("set"), "--json"]).json();
    assert_eq!((held["images"].as_u64(), &held["top1_error"]), (Some(21), &caltech["val_top1_error"]));
}

#[test]
fn what_cannot_be_run_is_refused() {
    let place = Place::new();
    assert_eq!(place.train("run", &["--epochs", "1"]).code, 0);
    let set = place.text("set");
    let net = place.text("norm.toml");
    let tiny = std::fs::read_to_string(place.path("tiny.toml")).unwrap();
    let norm = "{ name = 'norm1', type = 'lrn', size = 5, k = 2.0, alpha = 1e-4, alpha_div_n = true, beta = 0.75 },\n";
    std::fs::write(&net, tiny.replace("{ name = 'pool1'", &format!("{norm}{{ name = 'pool1'"))).unwrap();
    let (model, out) = (place.text("run"), place.text("out"));
    for (words, code, expected) in [
        (
            vec!["train", &set, "--recipe", &place.recipe, "--out", &model],
            2,
            vec!["is a run already", "--resume"],
        ),
        (vec!["train", &set, "--recipe", &place.recipe, "--out", &set], 2, vec!["data folder", "--out"]),
        (
            vec!["train", &set, "--net", &net, "--from", "imagenet", "--out", &out],
            2,
            vec!["imagenet", "torchvision"],
        ),
        (vec!["train", "--resume", &set], 2, vec!["not a run directory"]),
        (vec!["train", "--resume", &model, "--batch", "4"], 2, vec!["--batch", "--resume"]),
        (
            vec!["train", &set, "--from", &set, "--recipe", &place.recipe, "--out", &out],
            4,
            vec!["checkpoint"],
        ),
        (vec!["eval", &set, &set], 4, vec!["checkpoint"]),
        (vec!["eval", "no/such/model", &set], 4, vec!["no/such/model"]),
        (vec!["eval", &model, "no/such/data"], 3, vec!["no/such/data"]),
        (vec!["predict", &place.recipe, &set], 4, vec!["recipe.toml"]),
    ] {
        let run = run(&words);
        assert_eq!(run.code, code, "{words:?}: {}", run.stderr);
        // What was done until then may have been told before.
        assert!(run.stderr.lines().any(|line| line.starts_with("error: ")), "{words:?}: {}", run.stderr);
        assert!(expected.iter().all(|part| run.stderr.contains(part)), "{words:?}: {}", run.stderr);
    }

    // The default place for results would be in the data folder.
    let inside = finish(alexnet().current_dir(&set).args(["train", ".", "--recipe", &place.recipe]));
    assert_eq!(inside.code, 2, "{}", inside.stderr);
    assert!(inside.stderr.contains("data folder"), "{}", inside.stderr);
    assert!(!place.path("set/runs").exists());

    // Other classes than the model's.
    std::fs::rename(place.path("set/red"), place.path("set/rot")).unwrap();
    let other = run(&["eval", &model, &set]);
    assert_eq!(other.code, 3);
    assert!(other.stderr.contains("only the data has rot; only the model has red"), "{}", other.stderr);
}

#[test]
fn a_rate_that_is_too_high_diverges() {
    let place = Place::new();
    let run = place.train("run", &["--lr", "1e5", "--epochs", "50"]);
    assert_eq!(run.code, 5, "{}", run.stderr);
    for part in ["error: training diverged at step", "--lr"] {
        assert!(run.stderr.contains(part), "{}", run.stderr);
    }
}

#[cfg(unix)]
fn signal(child: &std::process::Child, name: &str) {
    let sent =
        std::process::Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits until the run has written its first checkpoint, at the end of its first epoch.
fn wait_for_steps(run: &Path) {
    let start = Instant::now();
    let log = run.join("log.txt");
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("epoch 2:")) {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// SIGTERM: a durable checkpoint, exit code 75; `--resume` ends in the bytes of a run that was never stopped.
/// SIGKILL: the same, without the exit code.
#[cfg(unix)]
#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let place = Place::new();
    let epochs = "60";
    assert_eq!(place.train("whole", &["--epochs", epochs]).code, 0);
    for (out, name, code) in [("term", "TERM", Some(75)), ("int", "INT", Some(75)), ("kill", "KILL", None)] {
        let mut command = alexnet();
        command.args(["train", &place.text("set"), "--recipe", &place.recipe, "--epochs", epochs]);
        let child = command.arg("--out").arg(place.path(out)).stdout(std::process::Stdio::null());
        let mut child = child.stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_for_steps(&place.path(out));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), code, "{name}");
        let resumed = run(&["train", "--resume", &place.text(out)]);
        assert_eq!(resumed.code, 0, "{}", resumed.stderr);
        assert!(resumed.stdout.contains("where the run was stopped"), "{}", resumed.stdout);
        let last = |run: &str| {
            let mut files: Vec<_> = std::fs::read_dir(place.path(run).join("checkpoints"))
                .unwrap()
                .flatten()
                .map(|e| e.path())
                .collect();
            files.sort();
            std::fs::read(files.last().unwrap()).unwrap()
        };
        assert!(last(out) == last("whole"), "{name}: the last checkpoints differ");
        let metrics = |run: &str| std::fs::read(place.path(run).join("metrics.jsonl")).unwrap();
        assert_eq!(metrics(out), metrics("whole"), "{name}");
    }
}

/// Twenty times killed at a random moment (while starting, in a step, in the middle of a save) and resumed: the end is
/// that of a run that was never disturbed, byte for byte.
#[cfg(unix)]
#[test]
fn twenty_kills_change_nothing() {
    let place = Place::new();
    let epochs = "150";
    let begun = Instant::now();
    assert_eq!(place.train("whole", &["--epochs", epochs]).code, 0);
    let whole = begun.elapsed();
    let spawn = |args: &[&str]| {
        let mut command = alexnet();
        command.args(args).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let mut child = spawn(&[
        "train",
        &place.text("set"),
        "--recipe",
        &place.recipe,
        "--epochs",
        epochs,
        "--out",
        &place.text("kill"),
    ]);
    wait_for_steps(&place.path("kill"));
    // A fixed sequence of waits, up to an eighth of the whole run each.
    let mut random = 2012u64;
    for _ in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(whole.mul_f64((random >> 40) as f64 / (1u64 << 24) as f64 / 8.0));
        child.kill().unwrap();
        child.wait().unwrap();
        child = spawn(&["train", "--resume", &place.text("kill")]);
    }
    child.wait().unwrap();
    let resumed = run(&["train", "--resume", &place.text("kill")]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    let last = |run: &str| {
        let folder = std::fs::read_dir(place.path(run).join("checkpoints")).unwrap();
        let file = folder.flatten().map(|e| e.path()).max().unwrap();
        std::fs::read(file).unwrap()
    };
    assert!(last("kill") == last("whole"), "the last checkpoints differ");
    let metrics = |run: &str| std::fs::read(place.path(run).join("metrics.jsonl")).unwrap();
    assert!(metrics("kill") == metrics("whole"), "the metrics differ");
}

/// Files above 4 KiB cannot be written: the run ends with an error that names the file, not with a signal.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let place = Place::new();
    assert_eq!(place.train("packed", &["--epochs", "1"]).code, 0);
    let program = env!("CARGO_BIN_EXE_alexnet");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"", program, "train"]);
    shell.args([&place.text("set"), "--recipe", &place.recipe, "--out", &place.text("full")]);
    let run = finish(shell.env("XDG_CACHE_HOME", common::cache()));
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(run.stderr.contains("step-") && run.stderr.contains("cannot be written"), "{}", run.stderr);
}

#[cfg(unix)]
#[test]
fn results_that_cannot_be_written_are_named() {
    let place = Place::new();
    std::fs::write(place.path("file"), "").unwrap();
    let run = place.train("file/run", &[]);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("file/run") && run.stderr.contains("--out"), "{}", run.stderr);
}

#[test]
fn two_runs_cannot_share_a_folder() {
    let place = Place::new();
    let mut command = alexnet();
    command.args(["train", &place.text("set"), "--recipe", &place.recipe, "--epochs", "100000"]);
    let child = command.arg("--out").arg(place.path("run")).stdout(std::process::Stdio::null());
    let mut child = child.stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for_steps(&place.path("run"));
    let second = run(&["train", "--resume", &place.text("run")]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(second.code, 2, "{}", second.stderr);
    assert!(second.stderr.contains(&format!("process {}", child.id())), "{}", second.stderr);
}

//! `alexnet eval`: networks alone and together, weights, halves, tables, files; and what is refused.

mod common;

use common::{Run, alexnet, finish, pictures, recipe, run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;

/// Pictures of each class.
const PICTURES: u32 = 12;

/// A folder with pictures and two networks, barely trained, that take pictures of different sizes.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        pictures(&place.path("set"), PICTURES);
        let first = recipe(place.folder.path());
        let text = std::fs::read_to_string(&first).unwrap();
        let second = place.text("second.toml");
        // A rate at which nothing is learnt: its mistakes are what the tests need.
        let other = text.replace("side = 20", "side = 24").replace("lr = 0.05", "lr = 0.0001");
        std::fs::write(&second, other.replace("epochs = 6", "epochs = 1")).unwrap();
        assert_eq!(place.train("a", &first, &["--epochs", "2"]).code, 0);
        let b = place.train("b", &second, &["--seed", "5"]);
        assert_eq!(b.code, 0, "{}", b.stderr);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    fn train(&self, out: &str, recipe: &str, more: &[&str]) -> Run {
        let (set, out) = (self.text("set"), self.text(out));
        run(&[&["train", &set, "--recipe", recipe, "--out", &out], more].concat())
    }

    /// `alexnet eval` over names in the folder; words that begin with `-`, and what follows `=`, are taken as they are.
    fn eval(&self, words: &str) -> Run {
        let mut all = vec!["eval".to_string()];
        for word in words.split(' ') {
            match word.split_once('=') {
                Some((flag, value))
                    if value.contains('.') && !value.starts_with(|c: char| c.is_ascii_digit()) =>
                {
                    all.extend([flag.to_string(), self.text(value)]);
                }
                Some((flag, value)) => all.extend([flag.to_string(), value.to_string()]),
                None if word.starts_with('-') => all.push(word.into()),
                None => all.push(self.text(word)),
            }
        }
        run(&all)
    }

    fn good(&self, words: &str) -> Run {
        let run = self.eval(words);
        assert_eq!(run.code, 0, "{words}: {}", run.stderr);
        run
    }
}

/// Probabilities, labels and paths of a file of predictions, read by hand.
struct Saved {
    rows: Vec<Vec<f32>>,
    labels: Vec<i64>,
    paths: Vec<String>,
    metadata: Value,
}

fn saved(path: &Path) -> Saved {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = |name: &str| {
        let at = |i: usize| 8 + length + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        &bytes[at(0)..at(1)]
    };
    let width = header["probabilities"]["shape"][1].as_u64().unwrap() as usize;
    let values: Vec<f32> =
        data("probabilities").chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Saved {
        rows: values.chunks(width).map(<[f32]>::to_vec).collect(),
        labels: data("labels").chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
        paths: String::from_utf8(data("paths").to_vec())
            .unwrap()
            .split_terminator('\0')
            .map(String::from)
            .collect(),
        metadata: header["__metadata__"].clone(),
    }
}

fn close(a: &Value, b: f64) -> bool {
    (a.as_f64().unwrap() - b).abs() < 1e-6
}

fn top1_error(rows: &[Vec<f32>], labels: &[i64]) -> f64 {
    let wrong = rows.iter().zip(labels).filter(|(row, label)| {
        let own = row[**label as usize];
        row.iter().any(|&p| p > own)
    });
    wrong.count() as f64 / rows.len() as f64
}

#[test]
fn several_networks_are_averaged() {
    let place = Place::new();
    let a = place.good("a set --json --save-predictions=a.st").json();
    let b = place.good("b set --json --save-predictions=b.st").json();
    let both = place.good("a b set --json --views=1 --save-predictions=both.st");
    let json = both.json();
    // Every network's own figures are those that it has alone.
    for (member, alone) in [(&json["members"][0], &a), (&json["members"][1], &b)] {
        for key in ["top1_error", "top5_error", "mean_class_accuracy", "loss", "images", "model", "net"] {
            assert_eq!(member[key], alone[key], "{key}");
        }
    }
    let (sa, sb, mean) =
        (saved(&place.path("a.st")), saved(&place.path("b.st")), saved(&place.path("both.st")));
    assert_eq!(sa.rows.len() as u64, a["images"].as_u64().unwrap());
    assert_eq!((&sa.paths, &sa.labels), (&sb.paths, &sb.labels));
    assert_eq!((&sa.paths, &sa.labels), (&mean.paths, &mean.labels));
    assert!(sa.paths[0].starts_with("blue/") && sa.labels[0] == 0);
    assert_eq!(sa.metadata["net"], "tiny");
    for ((ra, rb), rm) in sa.rows.iter().zip(&sb.rows).zip(&mean.rows) {
        for ((pa, pb), pm) in ra.iter().zip(rb).zip(rm) {
            assert!(((pa + pb) / 2.0 - pm).abs() < 1e-6);
        }
    }
    assert!(close(&json["top1_error"], top1_error(&mean.rows, &mean.labels)), "{json}");
    assert!(
        a["top1_error"].as_f64() < b["top1_error"].as_f64(),
        "the tests need a better and a worse network"
    );

    // Saved answers stand for their networks, alone, together, and beside a network that computes.
    let rates = |run: &Run| ["top1_error", "top5_error", "loss", "images"].map(|k| run.json()[k].clone());
    assert_eq!(rates(&place.good("a.st --json")), rates(&place.good("a set --json")));
    for words in ["a.st b.st --json", "a.st b set --json"] {
        let (found, expected) = (rates(&place.good(words)), rates(&both));
        assert_eq!((&found[0], &found[3]), (&expected[0], &expected[3]), "{words}");
        assert!(close(&found[2], expected[2].as_f64().unwrap()), "{words}");
    }

    // Weights count by their proportions.
    let weighed = place.good("a.st b.st --weights=3,1 --json --save-predictions=w.st").json();
    assert_eq!(
        (&weighed["members"][0]["weight"], &weighed["members"][1]["weight"]),
        (&0.75.into(), &0.25.into())
    );
    let w = saved(&place.path("w.st"));
    assert!((w.rows[0][0] - (0.75 * sa.rows[0][0] + 0.25 * sb.rows[0][0])).abs() < 1e-6);
    let one = place.good("a b set --weights=1,0 --json").json();
    assert!(close(&one["top1_error"], a["top1_error"].as_f64().unwrap()));

    let table = place.good("a b set").stdout;
    let row =
        |name: &str| table.lines().find(|l| l.trim_start_matches('…').contains(name)).unwrap_or_default();
    assert!(row("weight").contains("top-5 err") && row("average").contains('%'), "{table}");
    assert!(row("/a ").contains("0.500"), "{table}");
    other_classes_are_refused(&place);
}

fn other_classes_are_refused(place: &Place) {
    let text = std::fs::read_to_string(place.path("recipe.toml")).unwrap();
    std::fs::write(place.path("short.toml"), text.replace("epochs = 6", "epochs = 1")).unwrap();
    std::fs::rename(place.path("set/red"), place.path("set/rot")).unwrap();
    assert_eq!(place.train("c", &place.text("short.toml"), &[]).code, 0);
    assert_eq!(place.good("c set --save-predictions=c.st").code, 0);
    for words in ["a c set", "a.st c.st"] {
        let refused = place.eval(words);
        assert_eq!(refused.code, 3, "{words}: {}", refused.stderr);
        assert!(refused.stderr.contains("red") && refused.stderr.contains("rot"), "{}", refused.stderr);
    }
    // Before any picture is decoded: a wrong second network, classes that the data do not have.
    std::fs::write(place.path("note.txt"), "nothing").unwrap();
    for (words, code, part) in [
        (["a", "c"], 3, "cannot be averaged"),
        (["a", "note.txt"], 4, "note.txt"),
        (["a", "a"], 3, "only the data has rot; only the model has red"),
    ] {
        let cache = place.path("cache");
        let mut command = alexnet();
        command.arg("eval").args(words.map(|w| place.text(w))).arg(place.text("set"));
        let refused = finish(command.env("XDG_CACHE_HOME", &cache));
        assert_eq!(refused.code, code, "{words:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(part), "{words:?}: {}", refused.stderr);
        assert!(!cache.exists(), "{words:?}: pictures were packed first");
    }
}

#[test]
fn weights_are_fitted_on_one_half_and_judged_on_the_other() {
    let place = Place::new();
    // A file of answers that are always wrong: it gets no say, or as good as none.
    place.good("a set --split=0.5 --save-predictions=a.st");
    place.good("b set --split=0.5 --save-predictions=b.st");
    let all = saved(&place.path("a.st")).rows.len() as u64;
    let fit = place.good("a.st b.st --weights=fit --json --save-predictions=fit.st");
    let json = fit.json();
    let (fitted, judged) = (json["fit"]["images"].as_u64().unwrap(), json["images"].as_u64().unwrap());
    assert_eq!(fitted + judged, all);
    assert!(fitted >= 3 && judged >= 3, "{json}");
    assert_eq!(saved(&place.path("fit.st")).rows.len() as u64, judged);
    let weights: Vec<f64> =
        json["fit"]["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
    assert!(weights.iter().all(|w| (20.0 * w - (20.0 * w).round()).abs() < 1e-9 && (0.0..=1.0).contains(w)));
    assert!(json["equal"]["top1_error"].is_number() && json["members"][1]["loss"].is_number());
    // The same from networks as from their saved answers, and the same again.
    let again = place.good("a b set --split=0.5 --weights=fit --json").json();
    assert_eq!((&again["fit"]["weights"], &again["images"]), (&json["fit"]["weights"], &json["images"]));
    let words = place.good("a.st b.st --weights=fit").stdout;
    assert!(words.contains("average, fitted weights") && words.contains("fitted    on"), "{words}");
    assert!(words.lines().filter(|l| !l.contains("saved in")).all(|l| l.chars().count() <= 100), "{words}");
}

#[test]
fn tables_lists_and_the_submission() {
    let place = Place::new();
    let words = "b set --split=0.5 --per-class --confusions=2 --worst=3 --submission=five.txt --save-predictions=b.st";
    let text = place.good(words);
    assert!(
        text.stdout.contains("warning: ") && text.stdout.contains("was split otherwise"),
        "{}",
        text.stdout
    );
    let json = place.good(&format!("{words} --json")).json();
    let b = saved(&place.path("b.st"));
    let wrong = top1_error(&b.rows, &b.labels);
    assert!(wrong > 0.2, "the test needs mistakes: {wrong}");

    let classes = json["per_class"].as_array().unwrap();
    assert_eq!(classes.len(), 3);
    let images: u64 = classes.iter().map(|c| c["images"].as_u64().unwrap()).sum();
    assert_eq!(images as usize, b.rows.len());
    for class in classes {
        assert!(
            text.stdout.lines().any(|l| l.starts_with(class["class"].as_str().unwrap())),
            "{}",
            text.stdout
        );
    }

    let pairs = json["confusions"].as_array().unwrap();
    assert!(!pairs.is_empty() && pairs.len() <= 2);
    for pair in pairs {
        let example = pair["examples"][0].as_str().unwrap();
        assert!(example.starts_with(pair["class"].as_str().unwrap()), "{pair}");
        assert!(place.path("set").join(example).is_file());
        assert!(text.stdout.contains(example));
    }

    let worst = json["worst"].as_array().unwrap();
    assert_eq!(worst.len(), 3);
    let mut last = f64::INFINITY;
    for picture in worst {
        let at = b.paths.iter().position(|p| p == picture["path"].as_str().unwrap()).unwrap();
        let own = b.rows[at][b.labels[at] as usize];
        assert!(close(&picture["loss"], -f64::from(own).ln()) && -f64::from(own).ln() <= last, "{picture}");
        last = -f64::from(own).ln();
    }

    let lines = std::fs::read_to_string(place.path("five.txt")).unwrap();
    let mut order: Vec<usize> = (0..b.paths.len()).collect();
    order.sort_by_key(|&i| &b.paths[i]);
    assert_eq!(lines.lines().count(), order.len());
    for (line, i) in lines.lines().zip(order) {
        let ids: Vec<usize> = line.split(' ').map(|id| id.parse().unwrap()).collect();
        let mut by_probability: Vec<usize> = (0..3).collect();
        by_probability.sort_by(|&x, &y| b.rows[i][y].total_cmp(&b.rows[i][x]));
        assert_eq!(ids, by_probability.iter().map(|c| c + 1).collect::<Vec<_>>(), "{}", b.paths[i]);
    }

    // As many lines from `predict`, a picture that cannot be read among them.
    std::fs::write(place.path("note.jpg"), "<html>").unwrap();
    let (model, set, note, out) =
        (place.text("b"), place.text("set/red"), place.text("note.jpg"), place.text("predicted.txt"));
    let predicted = run(&["predict", &model, &set, &note, "--submission", &out, "--views", "10"]);
    assert_eq!(predicted.code, 3, "{}", predicted.stderr);
    let lines = std::fs::read_to_string(&out).unwrap();
    assert_eq!(lines.lines().count(), PICTURES as usize + 1);
    assert_eq!(lines.lines().filter(|l| *l == "0 0 0 0 0").count(), 1);
    assert!(predicted.stderr.contains("note.jpg"), "{}", predicted.stderr);
}

#[test]
fn a_missed_accuracy_is_exit_code_1() {
    let place = Place::new();
    assert_eq!(place.eval("b set --min-top1=0").code, 0);
    let missed = place.eval("b set --min-top1=1 --json");
    assert_eq!(missed.code, 1, "{}", missed.stderr);
    assert!(missed.stderr.contains("below --min-top1 1"), "{}", missed.stderr);
    assert_eq!(missed.json()["passed"], false);
}

#[test]
fn a_set_is_halved_alike_in_train_and_eval() {
    let place = Place::new();
    let text = place.text("recipe.toml");
    let trained = place.train("half", &text, &["--split", "0.5", "--epochs", "1", "--json"]);
    let json = trained.json();
    let (train, val) = (json["train_pictures"].as_u64().unwrap(), json["val_pictures"].as_u64().unwrap());
    assert_eq!(train + val, u64::from(3 * PICTURES));
    assert!((9..=27).contains(&val), "{val}");
    assert!(trained.stderr.contains("50 % of each class"), "{}", trained.stderr);
    let own = place.good("half set --json").json();
    assert_eq!((&own["images"], &own["top1_error"]), (&json["val_pictures"], &json["val_top1_error"]));
    // Asked for by name, it is the same half, and there is nothing to warn of.
    let named = place.good("half set --split=0.5 --json").json();
    assert_eq!((&named["images"], &named["top1_error"]), (&own["images"], &own["top1_error"]));
    assert_eq!(named["warnings"].as_array().unwrap().len(), 0);
    // Networks that were split otherwise are measured with what neither has seen.
    let mixed = place.good("half a set --json").json();
    let (a, both) = (place.good("a set --json").json(), mixed["images"].as_u64().unwrap());
    assert!(both <= val && both <= a["images"].as_u64().unwrap(), "{mixed}");
    let fewer = format!("{}", mixed["part"]);
    assert!(both == val || fewer.contains("no network was trained on"), "{fewer}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = Place::new();
    place.good("a set --save-predictions=a.st");
    let bytes = std::fs::read(place.path("a.st")).unwrap();
    std::fs::write(place.path("cut.st"), &bytes[..bytes.len() - 9]).unwrap();
    for (words, code, expected) in [
        ("a", 2, &["eval RUN DATA"][..]),
        ("a set --weights=0.5,0.5", 2, &["2 numbers for 1 network"]),
        ("a set --weights=fit", 2, &["at least two"]),
        ("a b set --weights=fitt", 2, &["--weights", "fitt", "0.2,0.3,0.5"]),
        ("a b set --weights=-1,2", 2, &["--weights", "-1"]),
        ("a set --min-top1=60", 2, &["--min-top1 60", "0.6"]),
        ("a set --split=1.5", 2, &["--split", "between 0 and 1"]),
        ("a.st --split=0.5", 2, &["--split", "saved predictions"]),
        ("a set --views=3", 2, &["--views"]),
        ("a.st --save-predictions=a.st", 2, &["--save-predictions", "replace"]),
        ("a set --save-predictions=set/x.st", 2, &["data folder"]),
        ("a set --submission=no/such.txt", 2, &["--submission", "no folder"]),
        ("a cut.st set", 3, &["cut.st", "damaged"]),
        ("cut.st", 3, &["cut.st", "damaged"]),
        ("set a note.txt", 4, &["checkpoint"]),
    ] {
        let refused = place.eval(words);
        assert_eq!(refused.code, code, "{words}: {}", refused.stderr);
        // What was done until then may have been told before.
        assert!(
            refused.stderr.lines().any(|line| line.starts_with("error: ")),
            "{words}: {}",
            refused.stderr
        );
        assert!(expected.iter().all(|part| refused.stderr.contains(part)), "{words}: {}", refused.stderr);
    }
    assert_eq!(std::fs::read(place.path("a.st")).unwrap(), bytes);
}

/// Standard output that is full, or that nobody reads; files that cannot be written. No panic, no half file.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_named() {
    let place = Place::new();
    let (model, set) = (place.text("a"), place.text("set"));
    let commands = [
        vec!["eval", &model, &set],
        vec!["eval", &model, &set, "--json"],
        vec!["predict", &model, &set],
        vec!["predict", &model, &set, "--format", "csv"],
        vec!["predict", &model, &set, "--format", "jsonl"],
    ];
    for words in &commands {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = alexnet().args(words).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(
            stderr.contains("error: cannot write to standard output: No space left"),
            "{words:?}: {stderr}"
        );

        let mut child = alexnet().args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {stderr}");
        assert!(!stderr.contains("error: "), "{words:?}: {stderr}");
    }
    // Nobody reads, and the file is there all the same.
    for words in [["eval", &model, &set], ["predict", &model, &set]] {
        let five = place.path(&format!("{}.txt", words[0]));
        let mut command = alexnet();
        command.args(words).arg("--submission").arg(&five).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{words:?}");
        assert!(five.is_file(), "{words:?}");
    }

    // A device is not replaced by a file.
    for words in [
        ["features", &model, &set, "--out", "/dev/full"],
        ["eval", &model, &set, "--save-predictions", "/dev/full"],
        ["eval", &model, &set, "--submission", "/dev/full"],
        ["predict", &model, &set, "--submission", "/dev/full"],
    ] {
        let refused = run(&words);
        assert_eq!(refused.code, 2, "{words:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("/dev/full is not an ordinary file"), "{}", refused.stderr);
    }
    assert!(!std::fs::metadata("/dev/full").unwrap().is_file());

    // Files may not grow: an old file stays as it was, and nothing lies beside it.
    let out = place.path("out");
    std::fs::create_dir(&out).unwrap();
    let file = out.join("f.safetensors");
    std::fs::write(&file, "old").unwrap();
    let file = file.to_str().unwrap();
    for words in [
        vec!["features", &model, &set, "--out", file],
        vec!["eval", &model, &set, "--save-predictions", file],
        vec!["eval", &model, &set, "--submission", file],
    ] {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_alexnet")]);
        let run = finish(shell.args(&words).env("XDG_CACHE_HOME", common::cache()));
        assert_eq!(run.code, 2, "{words:?}: {}", run.stderr);
        assert!(
            run.stderr.contains("cannot write") && run.stderr.contains("f.safetensors"),
            "{}",
            run.stderr
        );
        assert_eq!(std::fs::read_to_string(file).unwrap(), "old");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    }
}

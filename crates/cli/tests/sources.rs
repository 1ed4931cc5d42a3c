//! Every format of data, from the files as they are downloaded to a trained network and its error rate.

mod common;
#[path = "../../alexnet/tests/common/sources.rs"]
mod sources;

use common::{recipe, run, snapshot};
use std::path::Path;

/// Trains on a source, checks what was learnt and said, and measures again with `eval`.
fn train_and_eval(
    make: impl Fn(&Path) -> std::path::PathBuf,
    format: &str,
    pictures: usize,
    val: usize,
    classes: [&str; 3],
) {
    let folder = tempfile::tempdir().unwrap();
    let set = make(&folder.path().join("set"));
    let before = snapshot(&folder.path().join("set"));
    let [set, out] = [set, folder.path().join("run")].map(|p| p.to_str().unwrap().to_string());
    let recipe = recipe(folder.path());
    let trained = run(&["train", &set, "--recipe", &recipe, "--out", &out, "--epochs", "20", "--json"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let json = trained.json();
    assert_eq!(json["classes"].as_u64(), Some(3), "{json}");
    assert!(json["val_top1_error"].as_f64().unwrap() < 0.2, "{json}");
    for part in
        [&format!("source    {format}: "), "(recognised)", &format!("{pictures} pictures"), "0 unreadable"]
    {
        assert!(trained.stderr.contains(part), "{part}: {}", trained.stderr);
    }
    // The same again, as --format says; of its own data, the part that was kept.
    let eval = run(&["eval", &out, &set, "--format", format, "--json"]);
    assert_eq!(eval.code, 0, "{}", eval.stderr);
    assert_eq!(eval.json()["images"].as_u64(), Some(val as u64), "{}", eval.stdout);
    assert_eq!(eval.json()["top1_error"], json["val_top1_error"]);
    assert!(eval.stderr.contains("(as --format says)"), "{}", eval.stderr);
    let stats = run(&["data", "stats", &set, "--json"]);
    let mut names: Vec<String> = stats.json()["classes"].as_object().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, classes, "{}", stats.stdout);
    let check = run(&["data", "check", &set]);
    assert_eq!(check.code, 0, "{}{}", check.stdout, check.stderr);
    assert_eq!(snapshot(&folder.path().join("set")), before, "the source was written to");
}

const NAMES: [&str; 3] = ["blue", "green", "red"];
const SYNSETS: [&str; 3] =
    ["n00000010 green thing", "n00000020 red thing", "n00000030 blue thing, azure thing"];

#[test]
fn ilsvrc_2012_as_downloaded() {
    let make = |set: &Path| {
        sources::ilsvrc2012(set, 12, 9);
        set.to_path_buf()
    };
    train_and_eval(make, "ilsvrc", 45, 9, SYNSETS);
}

#[test]
fn ilsvrc_2010_as_downloaded() {
    let make = |set: &Path| {
        sources::ilsvrc2010(set, 12, 9);
        set.to_path_buf()
    };
    train_and_eval(make, "ilsvrc", 45, 9, SYNSETS);
}

#[test]
fn webdataset_shards() {
    let make = |set: &Path| {
        sources::webdataset(set, 12, 9);
        set.to_path_buf()
    };
    train_and_eval(make, "webdataset", 45, 9, NAMES);
}

#[test]
fn parquet_of_hugging_face() {
    let make = |set: &Path| {
        sources::parquet(set);
        set.to_path_buf()
    };
    train_and_eval(make, "parquet", 24, 6, NAMES);
}

#[test]
fn a_list_of_paths_and_labels() {
    train_and_eval(|set| sources::list(set, 12, 9), "list", 45, 9, NAMES);
}

#[test]
fn cifar_10_and_100() {
    let make = |set: &Path| {
        sources::cifar10(set, 7, 9);
        set.to_path_buf()
    };
    train_and_eval(make, "cifar", 44, 9, NAMES);
    let make = |set: &Path| {
        sources::cifar100(set, 36, 9);
        set.to_path_buf()
    };
    train_and_eval(make, "cifar", 45, 9, NAMES);
}

#[test]
fn tiny_imagenet_as_downloaded() {
    let make = |set: &Path| {
        sources::tiny_imagenet(set, 12, 9);
        set.to_path_buf()
    };
    train_and_eval(make, "tiny-imagenet", 45, 9, SYNSETS);
}

#[test]
fn one_archive_alone_is_measured_with() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    sources::ilsvrc2010(&set, 12, 9);
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let (out, recipe) = (text(&folder.path().join("run")), recipe(folder.path()));
    let trained =
        run(&["train", &text(&set), "--recipe", &recipe, "--out", &out, "--epochs", "20", "--json"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let test = text(&set.join("ILSVRC2010_images_test.tar"));
    let eval = run(&["eval", &out, &test, "--json"]);
    assert_eq!(eval.code, 0, "{}", eval.stderr);
    assert_eq!(eval.json()["images"].as_u64(), Some(9), "{}", eval.stdout);
    assert!(eval.json()["top1_error"].as_f64().unwrap() < 0.2, "{}", eval.stdout);
}

#[test]
fn classes_are_matched_whatever_their_order_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    // Folders of synsets, in the order that every published network's outputs have; ILSVRC's own ids have another.
    for (class, (wnid, _)) in sources::SYNSETS.iter().enumerate() {
        for i in 0..12 {
            sources::write(folder.path().join(format!("folders/{wnid}/{i:02}.jpg")), sources::jpeg(class, i));
        }
    }
    sources::ilsvrc2012(&folder.path().join("set"), 12, 9);
    let (recipe, model, set, five) = (recipe(folder.path()), text("run"), text("set"), text("five.txt"));
    let trained = run(&["train", &text("folders"), "--recipe", &recipe, "--out", &model, "--epochs", "20"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let eval = run(&["eval", &model, &set, "--json", "--submission", &five]);
    assert_eq!(eval.code, 0, "{}", eval.stderr);
    let json = eval.json();
    assert!(json["images"] == 9 && json["top1_error"].as_f64().unwrap() < 0.2, "{json}");
    for part in [
        "matched to outputs of the model: 3 by synset",
        "n00000030 blue thing, azure thing is 1 in the data, 3 in",
    ] {
        assert!(json["classes_matched"].as_str().unwrap().contains(part), "{json}");
        assert!(eval.stderr.contains(part), "{}", eval.stderr);
    }
    // Guesses are ILSVRC's ids, not outputs.
    let lines = std::fs::read_to_string(&five).unwrap();
    let first = |line: &str| line.split(' ').next().unwrap().parse::<usize>().unwrap();
    let right = lines.lines().enumerate().filter(|(i, line)| first(line) == sources::truth(*i) + 1).count();
    assert_eq!(right, 9 - (9.0 * json["top1_error"].as_f64().unwrap()).round() as usize, "{lines}");
    // The same weights with other names for their outputs, or none.
    let weights = text("weights.safetensors");
    assert_eq!(run(&["weights", "export", &model, &weights]).code, 0);
    for (names, code, part) in [
        (
            "Green_thing\nred thing\nazure thing, blue thing\n",
            3,
            "only the data has n00000030 blue thing, azure thing",
        ),
        ("Green_thing\nred thing\nblue thing\n", 0, "2 by words, 1 by first word"),
        (
            "class 0\nclass 1\nclass 2\n",
            0,
            "no names; they are taken for the classes of the data in the order of their synsets",
        ),
    ] {
        sources::write(folder.path().join("names.txt"), names);
        let named = text("named.safetensors");
        let net = text("tiny.toml");
        let words = ["weights", "import", &weights, &named, "--net", &net, "--classes", &text("names.txt")];
        let _ = std::fs::remove_file(&named);
        let imported = run(&words);
        assert_eq!(imported.code, 0, "{}", imported.stderr);
        let eval = run(&["eval", &named, &set, "--json"]);
        assert_eq!(eval.code, code, "{names}: {}", eval.stderr);
        assert!(eval.stderr.contains(part), "{names}: {}", eval.stderr);
        if code == 0 {
            assert_eq!(eval.json()["top1_error"], json["top1_error"], "{names}");
        }
    }
}

#[test]
fn a_format_with_a_typo_gets_the_nearest_name() {
    for words in [&["train"][..], &["data", "check"], &["data", "pack"], &["data", "stats"]] {
        let typed = [words, &["somewhere", "--format", "webdatset"]].concat();
        let refused = run(&typed);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains("--format: no format is called webdatset"), "{}", refused.stderr);
        assert!(refused.stderr.contains("did you mean webdataset?"), "{}", refused.stderr);
    }
}

#[test]
fn a_run_remembers_the_format_that_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let list = sources::list(&folder.path().join("other"), 12, 9);
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let renamed = folder.path().join("other/pictures.data");
    std::fs::rename(list, &renamed).unwrap();
    let (out, recipe) = (text(&folder.path().join("run")), recipe(folder.path()));
    let words = ["train", &text(&renamed), "--recipe", &recipe, "--out", &out, "--epochs", "1"];
    let unknown = run(&words);
    assert_eq!(unknown.code, 3, "{}", unknown.stderr);
    let trained = run(&[&words[..], &["--format", "list"]].concat());
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let resumed = run(&["train", "--resume", &out, "--epochs", "2", "--json"]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert_eq!(resumed.json()["epochs"].as_u64(), Some(2), "{}", resumed.stdout);
}

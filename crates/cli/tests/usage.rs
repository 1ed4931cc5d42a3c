//! The command line itself: usage, names, the networks' tables, output that nobody reads.

mod common;

use common::{alexnet, run};
use std::process::{Command, Stdio};

#[test]
fn every_command_has_help() {
    for words in [
        &["--help"][..],
        &["train", "--help"],
        &["eval", "--help"],
        &["predict", "--help"],
        &["features", "--help"],
        &["nets", "--help"],
        &["data", "check", "--help"],
        &["data", "pack", "--help"],
        &["data", "join", "--help"],
        &["data", "stats", "--help"],
        &["bench", "train", "--help"],
        &["bench", "infer", "--help"],
        &["doctor", "--help"],
    ] {
        let run = run(words);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{words:?}");
        assert!(run.stdout.contains("Usage: alexnet"), "{words:?}: {}", run.stdout);
    }
    assert!(run(&["--help"]).stdout.contains("75 stopped by a signal"));
    assert!(run(&["--version"]).stdout.starts_with("alexnet "));
}

/// What is typed, and the words that the message must have. All are usage errors: exit code 2.
#[test]
fn wrong_usage_is_named_and_the_nearest_right_word_given() {
    let folder = tempfile::tempdir().unwrap();
    let net = folder.path().join("net.toml");
    std::fs::write(
        &net,
        "name = 'n'\ninput = [3, 8, 8]\nlayer = [\n  { name = 'f', type = 'linear', outptus = 3 },\n]\n",
    )
    .unwrap();
    let net = net.to_str().unwrap();
    for (words, expected) in [
        (&["trian"][..], &["trian", "train"][..]),
        (&["train", "--epoch", "3"], &["--epoch", "--epochs"]),
        (&["train", "--epochs", "three"], &["--epochs", "three"]),
        (&["train", "--epochs", "0"], &["epochs"]),
        (&["train", "--batch", "0"], &["batch"]),
        (&["train", "--lr", "-1"], &["lr"]),
        (&["train", "--net", "alexnet-minni"], &["alexnet-minni", "did you mean alexnet-mini?"]),
        (&["train", "--recipe", "mnii"], &["mnii"]),
        (&["train", "--recipe", "fintune"], &["fintune", "finetune"]),
        (&["train", "--precision", "f23"], &["--precision", "f23", "f32"]),
        (&["train", "--device", "cuda"], &["--device", "cuda", "cpu"]),
        (&["train", "--threads", "0"], &["--threads"]),
        (&["train", "--net", net], &["net.toml:4:", "did you mean `outputs`?"]),
        (&["nets", "cafenet"], &["cafenet", "did you mean caffenet?"]),
        (&["nets", net], &["net.toml:4:", "did you mean `outputs`?"]),
        (&["nets", "no/such.toml"], &["no/such.toml"]),
        (&["bench", "train", "--net", "zfnett"], &["did you mean zfnet?"]),
        (&["bench", "infer", "--steps", "0"], &["--steps"]),
        (&["eval", "model", "data", "--views", "7"], &["--views", "1", "10"]),
        (&["predict", "model"], &["PATH"]),
        (&["predict", "model", "x.jpg", "--format", "xml"], &["xml", "jsonl"]),
    ] {
        let run = run(words);
        assert_eq!(run.code, 2, "{words:?}: {}", run.stderr);
        assert!(run.stderr.starts_with("error: "), "{words:?}: {}", run.stderr);
        assert!(expected.iter().all(|part| run.stderr.contains(part)), "{words:?}: {}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{words:?}: {}", run.stderr);
    }
}

#[test]
fn the_networks_and_their_totals() {
    let list = run(&["nets"]).stdout;
    for (name, parameters) in [
        ("alexnet-2012 ", "60,965,224"),
        ("alexnet-2012-half", "59,798,312"),
        ("alexnet-2014", "61,100,840"),
        ("torchvision", "61,100,840"),
        ("zfnet", "62,357,608"),
    ] {
        let line = list.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {list}"));
        assert!(line.contains(parameters), "{line}");
    }
    let json: serde_json::Value = serde_json::from_str(&run(&["nets", "--json"]).stdout).unwrap();
    let of =
        |name: &str| json["networks"].as_array().unwrap().iter().find(|n| n["name"] == name).unwrap().clone();
    assert_eq!(of("alexnet-2012")["multiply_adds"], 724_406_816);
    assert_eq!(of("alexnet-2012-half")["multiply_adds"], 391_514_384);
    assert_eq!(of("zfnet")["multiply_adds"], 1_168_032_896);

    let table = run(&["nets", "alexnet-2012"]).stdout;
    let conv2 = table.lines().find(|l| l.starts_with("conv2")).unwrap();
    for part in ["256×27×27", "5×5 / 1 / 2", " 2 ", "307,456", "223,948,800", "91.1 MiB"] {
        assert!(conv2.contains(part), "{conv2}");
    }
    assert!(table.lines().find(|l| l.starts_with("conv1")).unwrap().contains("11×11 / 4 / 0+3"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&run(&["nets", "caffenet", "--json"]).stdout).unwrap();
    assert_eq!(json["parameters"], 60_965_224);
    assert_eq!(json["layers"].as_array().unwrap().len(), 22);
}

#[test]
fn recipes_are_listed_printed_and_compared() {
    let list = run(&["recipe"]).stdout;
    for name in ["krizhevsky-2012-code", "one-weird-trick-2014", "zfnet", "large-batch", "finetune-conv6"] {
        assert!(list.lines().any(|l| l.starts_with(name)), "{name}: {list}");
    }
    let text = run(&["recipe", "krizhevsky-2012-code"]).stdout;
    assert!(
        text.contains("at = [25.0, 51.0, 79.0]") && text.contains("# "),
        "as written, with comments: {text}"
    );
    let json: serde_json::Value = serde_json::from_str(&run(&["recipe", "zfnet", "--json"]).stdout).unwrap();
    assert_eq!(json["filter_rms"], 0.1);
    let all: serde_json::Value = serde_json::from_str(&run(&["recipe", "--json"]).stdout).unwrap();
    assert_eq!(all["recipes"].as_array().unwrap().len(), 15);

    let diff = run(&["recipe", "diff", "krizhevsky-2012", "krizhevsky-2012-code"]).stdout;
    let line = diff.lines().find(|l| l.starts_with("augment.shared_by")).unwrap();
    assert!(line.split_whitespace().eq(["augment.shared_by", "1", "32"]), "{line}");
    assert!(diff.contains("layers of krizhevsky-2012-code: conv1 norm1 pool1 relu1"), "{diff}");
    let diff = run(&["recipe", "diff", "caffenet", "caffe-alexnet", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&diff).unwrap();
    let found = json["differences"].as_array().unwrap();
    assert!(
        found.iter().any(|d| d["key"] == "network.ones_bias" && d["a"] == "1.0" && d["b"] == "0.1"),
        "{json}"
    );
    assert!(run(&["recipe", "diff", "mini", "mini"]).stdout.contains("are the same"));
    for (words, hint) in [
        (&["recipe", "zfnett"][..], "did you mean `zfnet`?"),
        (&["recipe", "diff", "mini", "caffenett"], "did you mean `caffenet`?"),
        (&["recipe", "diff", "mini"], "<B>"),
        (&["recipe", "no/such.toml"], "no/such.toml"),
    ] {
        let wrong = run(words);
        assert_eq!(wrong.code, 2, "{words:?}");
        assert!(wrong.stderr.contains(hint), "{words:?}: {}", wrong.stderr);
    }
}

#[test]
fn doctor_says_what_the_machine_has() {
    let text = run(&["doctor"]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    for part in ["kernel", "threads", "memory", "GPU", "not used by this version"] {
        assert!(text.stdout.contains(part), "{}", text.stdout);
    }
    let json: serde_json::Value = serde_json::from_str(&run(&["doctor", "--json"]).stdout).unwrap();
    assert!(json["threads"].as_u64().unwrap() >= 1);
}

#[test]
fn bench_prints_an_object() {
    for mode in ["train", "infer"] {
        let run = run(&["bench", mode, "--net", "alexnet-mini", "--batch", "2", "--steps", "1", "--json"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let json: serde_json::Value = serde_json::from_str(run.stdout.trim()).unwrap();
        assert_eq!((json["net"].as_str(), json["batch"].as_u64()), (Some("alexnet-mini"), Some(2)));
        assert!(json["ms"].as_f64().unwrap() > 0.0 && json["img_s"].as_f64().unwrap() > 0.0);
        assert!(json["kernel"].is_string() && json["precision"].is_string());
    }
}

/// `alexnet nets | head -1`, at its extreme: nobody reads at all.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = alexnet().arg("nets").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = alexnet().arg("nets").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: cannot write to standard output"));
}

#[test]
fn an_empty_environment_is_enough() {
    let output = Command::new(env!("CARGO_BIN_EXE_alexnet")).arg("nets").env_clear().output().unwrap();
    assert!(output.status.success());
}

//! `alexnet bench`: what it prints is what happens.

mod common;

use common::run;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A step of the full-size network takes the memory that the plan says, and a tenth more at most.
/// These tests measure: two at once would take each other's cores.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn peak_memory_is_that_of_the_plan() {
    let _alone = alone();
    for precision in ["f32", "bf16"] {
        let words = [
            "bench",
            "train",
            "--net",
            "torchvision",
            "--batch",
            "64",
            "--steps",
            "1",
            "--json",
            "--precision",
        ];
        let run = run(&[&words[..], &[precision]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let bytes = |key: &str| run.json()[key].as_f64().unwrap();
        if run.json()["peak_resident_bytes"].is_null() {
            println!("skipped: this system does not tell a process its peak memory");
            return;
        }
        let ratio = bytes("peak_resident_bytes") / bytes("planned_bytes");
        assert!((0.8..=1.1).contains(&ratio), "{precision}: {ratio} of the plan\n{}", run.stderr);
    }
}

#[test]
fn every_pass_is_timed_beside_the_reference_loops() {
    let _alone = alone();
    let words = ["bench", "kernels", "--net", "alexnet-mini", "--batch", "32", "--steps", "9", "--json"];
    for more in [
        &[][..],
        &["--infer"],
        &["--precision", "f32"],
        &["--precision", "bf16", "--threads", "1"],
        &["--precision", "f32x3"],
    ] {
        let run = run(&[&words[..], more].concat());
        if more.contains(&"f32x3") && run.stderr.contains("needs a processor with AMX") {
            println!("skipped: f32x3 on a processor without AMX");
            continue;
        }
        assert_eq!(run.code, 0, "{}", run.stderr);
        let report = run.json();
        let passes = report["passes"].as_array().unwrap();
        let named = |pass: &str| passes.iter().filter(|p| p["pass"] == pass).count();
        assert!(named("forward") >= 8, "{report}");
        assert_eq!(named("weight gradient") > 0, !more.contains(&"--infer"), "{report}");
        let sum: f64 = passes.iter().map(|p| p["ms"].as_f64().unwrap()).sum();
        let step = report["ms"].as_f64().unwrap();
        assert!(sum > 0.5 * step && sum < 1.5 * step, "passes {sum} ms, step {step} ms");
        assert!(
            report["tile_gflop_s"].as_f64().unwrap() > 0.1 && report["stream_gb_s"].as_f64().unwrap() > 0.1
        );
    }
}

#[test]
fn pictures_from_a_pack_go_through_the_loader() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (folder, pack) = (dir.path().join("pictures"), dir.path().join("pictures.pack"));
    common::pictures(&folder, 8);
    let (folder, pack) = (folder.to_str().unwrap(), pack.to_str().unwrap());
    let made = run(&["data", "pack", folder, pack, "--side", "72"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let bench = ["bench", "train", "--net", "alexnet-mini", "--steps", "3", "--data", pack, "--json"];
    let loaded = run(&[&bench[..], &["--batch", "8"]].concat());
    assert_eq!(loaded.code, 0, "{}", loaded.stderr);
    assert_eq!(loaded.json()["from_pack"], true);
    assert!(loaded.json()["of_made_up"].as_f64().unwrap() > 0.0);
    let few = run(&[&bench[..], &["--batch", "64"]].concat());
    assert_eq!(few.code, 2, "{}", few.stderr);
    assert!(few.stderr.contains("the pack has 24 pictures, a batch 64"), "{}", few.stderr);
}

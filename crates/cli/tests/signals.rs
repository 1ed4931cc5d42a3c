//! What signals do beside ending a run with a checkpoint (see `train.rs`): a second Ctrl-C, and the end of work that
//! saves nothing until it is done.
#![cfg(unix)]

mod common;

use common::{alexnet, pictures, recipe, run};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
}

/// The exit code, which must come soon.
fn code_within(child: &mut Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    panic!("it still runs after {limit:?}");
}

/// A recipe whose single step takes many seconds with portable kernels.
fn slow_recipe(folder: &Path) -> String {
    let net = folder.join("slow.toml");
    std::fs::write(
        &net,
        "name = 'slow'\nsource = 'a test'\ninput = [3, 64, 64]\nlayer = [\n\
         { name = 'conv1', type = 'conv', filters = 256, kernel = 3, pad = 1 },\n\
         { name = 'relu1', type = 'relu' },\n\
         { name = 'conv2', type = 'conv', filters = 256, kernel = 5, pad = 2 },\n\
         { name = 'relu2', type = 'relu' },\n\
         { name = 'pool2', type = 'pool', kind = 'max', size = 3, stride = 2 },\n\
         { name = 'fc3', type = 'linear', outputs = 3 },\n]\n",
    )
    .unwrap();
    let quick = std::fs::read_to_string(recipe(folder)).unwrap();
    let net_line = quick.lines().find(|l| l.starts_with("net = ")).unwrap();
    let slow = quick.replace(net_line, &format!("net = {:?}", net.to_str().unwrap()));
    let path = folder.join("slow-recipe.toml");
    std::fs::write(&path, slow.replace("side = 20", "side = 72").replace("batch = 8", "batch = 27")).unwrap();
    path.to_str().unwrap().to_string()
}

/// The first Ctrl-C waits for the step to end; the second does not.
#[test]
fn a_second_interrupt_ends_a_run_at_once() {
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("set"), 12);
    let recipe = slow_recipe(folder.path());
    let out = folder.path().join("run");
    let mut command = alexnet();
    command.env("ALEXNET_ISA", "portable").args(["train", "--recipe", &recipe, "--out"]).arg(&out);
    let mut child =
        command.arg(folder.path().join("set")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // The plan of memory is the last that is said before the first step.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("memory")), "it ended before its first step");
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(child.try_wait().unwrap(), None, "the first waits for the end of the step");
    interrupt(&child);
    assert_eq!(code_within(&mut child, Duration::from_secs(2)), Some(130));
    // Nothing was saved, and nothing is broken: the folder is a run that can be begun again.
    assert_eq!(std::fs::read_dir(out.join("checkpoints")).map_or(0, Iterator::count), 0);
    assert!(out.join("config.toml").is_file());
}

/// Activations are in their place when they are complete, or not at all.
#[test]
fn an_interrupted_file_is_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    pictures(&set, 12);
    let recipe = recipe(folder.path());
    let model = folder.path().join("model");
    let (set, model) = (set.to_str().unwrap(), model.to_str().unwrap());
    assert_eq!(run(&["train", set, "--recipe", &recipe, "--out", model, "--epochs", "1"]).code, 0);
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    // The same picture many times, so that there is time to interrupt.
    let many = vec![format!("{set}/red/000.png"); 20_000];
    let mut command = alexnet();
    command.args(["features", model, "--out"]).arg(out.join("f.safetensors")).args(&many);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = || std::fs::read_dir(&out).unwrap().count() > 0;
    let start = Instant::now();
    while !begun() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
    interrupt(&child);
    assert_eq!(code_within(&mut child, Duration::from_secs(10)), Some(130));
    assert!(!begun(), "something is left in {}", out.display());
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert!(stderr.contains("stopped: by a signal; nothing was saved"), "{stderr}");
}

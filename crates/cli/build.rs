//! Tells the program which commit it was built from, for `env.json` of its runs.

use std::process::Command;

fn main() {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).output().ok().filter(|o| o.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_string())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=ALEXNET_COMMIT={commit}");
    // The log of HEAD changes with every commit; without a repository there is nothing to follow.
    match git(&["rev-parse", "--absolute-git-dir"]) {
        Some(folder) => println!("cargo:rerun-if-changed={folder}/logs/HEAD"),
        None => println!("cargo:rerun-if-changed=build.rs"),
    }
}

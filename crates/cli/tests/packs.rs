//! `data pack` and `data join`: forms, parts, and what is refused.

mod common;

use common::{pictures, run};

#[test]
fn parts_of_a_set_are_put_together_to_the_same_bytes() {
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("set");
    pictures(&root, 5);
    let path = |name: &str| work.path().join(name).display().to_string();
    let set = path("set");
    let pack = |more: &[&str]| {
        let run = run(&[&["data", "pack", set.as_str()], more, &["--side", "16"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        run
    };
    let (whole, one, two, joined) = (path("whole"), path("one"), path("two"), path("joined"));
    let run_whole = pack(&[&whole, "--keep", "whole", "--form", "jpeg", "--resize", "area-cubic"]);
    assert!(
        run_whole.stdout.contains("whole pictures, shorter side 16 pixels, as JPEG"),
        "{}",
        run_whole.stdout
    );
    assert!(run_whole.stderr.contains("the pictures of the pack take about"), "{}", run_whole.stderr);
    for (file, shard) in [(&one, "1/2"), (&two, "2/2")] {
        let part =
            pack(&[file, "--keep", "whole", "--form", "jpeg", "--resize", "area-cubic", "--shard", shard]);
        assert!(part.stdout.contains(&format!("part {shard}")), "{}", part.stdout);
    }
    let join = run(&["data", "join", &joined, &two, &one]);
    assert_eq!(join.code, 0, "{}", join.stderr);
    assert!(std::fs::read(&joined).unwrap() == std::fs::read(&whole).unwrap());
    for (words, code, expected) in [
        (&["data", "join", &path("x"), &one][..], 3, "part 2/2 is missing"),
        (&["data", "stats", &one], 3, "data join"),
        (&["data", "pack", &set, "--shard", "1/2"], 2, "name the file"),
        (&["data", "pack", &set, &path("x"), "--shard", "3/2"], 2, "--shard"),
        (&["data", "pack", &set, "--keep", "original", "--form", "jpeg"], 2, "originals"),
        (&["data", "pack", &set, "--side", "0"], 2, "--side"),
        (&["data", "pack", &set, "--keep", "hole"], 2, "whole"),
        (&["data", "pack", &set, &path("x"), "--side", "120000"], 2, "--large"),
    ] {
        let run = run(words);
        assert_eq!(run.code, code, "{words:?}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{words:?}: {}", run.stderr);
        assert!(!work.path().join("x").exists());
    }
}

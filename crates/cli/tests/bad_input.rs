//! Folders as people have them: wrong levels, odd files, damaged pictures. Each is a clear error or a named, counted
//! skip, and nothing in the folder changes.

mod common;

use common::{pictures, recipe, run, snapshot};
use image::{DynamicImage, ImageBuffer, ImageFormat, Luma};
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is in the folder, and the words that the message must have. All are unusable data: exit code 3.
#[test]
fn folders_that_cannot_be_used_say_what_was_meant() {
    type Make = fn(&Path);
    let cases: [(&str, Make, &[&str]); 8] = [
        ("missing", |_| {}, &["no such folder"]),
        ("empty", |root| std::fs::create_dir_all(root).unwrap(), &["is empty"]),
        (
            "one-class",
            |root| {
                pictures(root, 2);
                std::fs::remove_dir_all(root.join("red")).unwrap();
                std::fs::remove_dir_all(root.join("blue")).unwrap();
            },
            &["one class"],
        ),
        (
            "flat",
            |root| {
                pictures(root, 2);
                for i in 0..2 {
                    let name = if i == 0 { "000.png" } else { "001.jpg" };
                    std::fs::rename(root.join("red").join(name), root.join(name)).unwrap();
                }
                for class in common::CLASSES {
                    std::fs::remove_dir_all(root.join(class)).unwrap();
                }
            },
            &["no class folders", "one folder for each class"],
        ),
        (
            "too-high",
            |root| {
                pictures(&root.join("inner"), 2);
            },
            &["inner", "was probably meant"],
        ),
        ("only-train", |root| pictures(&root.join("train"), 2), &["train", "no class"]),
        (
            "train-and-val-as-classes",
            |root| {
                for side in ["train", "val"] {
                    pictures(&root.join(side), 2);
                    for class in common::CLASSES {
                        for name in ["000.png", "001.jpg"] {
                            let file = root.join(side).join(class).join(name);
                            std::fs::rename(file, root.join(side).join(format!("{class}-{name}"))).unwrap();
                        }
                        std::fs::remove_dir_all(root.join(side).join(class)).unwrap();
                    }
                }
            },
            &["one folder for each class"],
        ),
        ("file", |root| std::fs::write(root, "x").unwrap(), &["file"]),
    ];
    for (name, make, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(name);
        make(&root);
        let before = snapshot(folder.path());
        let out = folder.path().join("run");
        for words in [
            vec!["train", text(&root), "--out", text(&out)],
            vec!["data", "check", text(&root)],
            vec!["data", "stats", text(&root)],
        ] {
            let run = run(&words);
            assert_eq!(run.code, 3, "{words:?}: {}{}", run.stdout, run.stderr);
            let words_only_of_folders = name != "file" || words[0] == "data" && words[1] == "check";
            if words_only_of_folders {
                assert!(expected.iter().all(|part| run.stderr.contains(part)), "{words:?}: {}", run.stderr);
            }
            assert!(run.stderr.starts_with("error: ") && !run.stderr.contains("panicked"), "{}", run.stderr);
        }
        assert!(!out.exists(), "{name}: a folder for results was made for nothing");
        assert_eq!(snapshot(folder.path()), before, "{name}");
    }
}

#[test]
fn an_empty_class_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("set"), 3);
    std::fs::create_dir(folder.path().join("set/yellow")).unwrap();
    let run = run(&["data", "stats", text(&folder.path().join("set"))]);
    assert!(run.stdout.contains("yellow") || run.stderr.contains("yellow"), "{}{}", run.stdout, run.stderr);
}

/// Pictures that are unusual but good, and files that only look like pictures.
#[test]
fn odd_pictures_are_read_and_bad_ones_named() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    pictures(&set, 40);
    let at = |name: &str| set.join("red").join(name);
    let good = common::picture(2, 0);
    let bytes = |format: ImageFormat| {
        let mut bytes = std::io::Cursor::new(vec![]);
        good.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let (png, jpeg) = (bytes(ImageFormat::Png), bytes(ImageFormat::Jpeg));
    // Good, though odd: a PNG named .JPEG, gray, 16 bits, transparency, no extension that fits.
    std::fs::write(at("png-inside.JPEG"), &png).unwrap();
    DynamicImage::from(good.clone()).to_luma8().save(at("gray.png")).unwrap();
    ImageBuffer::<Luma<u16>, _>::from_pixel(20, 20, Luma([40_000])).save(at("deep.png")).unwrap();
    DynamicImage::from(good.clone()).to_rgba8().save(at("alpha.png")).unwrap();
    // Bad: cut, a web page, empty, and a picture that claims to be 60,000 pixels wide and high.
    std::fs::write(at("cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    std::fs::write(at("page.jpg"), "<!DOCTYPE html><html><body>Not found</body></html>").unwrap();
    std::fs::write(at("empty.jpg"), "").unwrap();
    let mut bomb = png;
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    std::fs::write(at("bomb.png"), &bomb).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&set, at("loop")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(at("pipe.jpg")).status();
        assert!(made.is_ok_and(|status| status.success()));
    }
    let before = snapshot(&set);

    let check = run(&["data", "check", text(&set)]);
    assert_eq!(check.code, 1, "{}{}", check.stdout, check.stderr);
    for bad in ["cut.jpg", "page.jpg", "empty.jpg", "bomb.png"] {
        let named = check.stdout.lines().any(|l| l.starts_with("unreadable: ") && l.contains(bad));
        assert!(named, "{bad}: {}", check.stdout);
    }
    for good in ["png-inside.JPEG", "gray.png", "deep.png", "alpha.png"] {
        assert!(!check.stdout.contains(good), "{good}: {}", check.stdout);
    }
    #[cfg(unix)]
    assert!(check.stdout.contains("pipe.jpg"), "{}", check.stdout);
    let json = run(&["data", "check", text(&set), "--json"]).json();
    assert_eq!(json["classes"], 3);
    assert!(json["unreadable"].as_array().unwrap().len() >= 4);

    // Few enough: training goes on, and says which were left out.
    let out = folder.path().join("run");
    let words = [
        "train",
        text(&set),
        "--recipe",
        &recipe(folder.path()),
        "--epochs",
        "1",
        "--out",
        text(&out),
        "--json",
    ];
    let trained = run(&words);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    assert!(trained.json()["unreadable"].as_u64().unwrap() >= 4);
    let named = std::fs::read_to_string(out.join("bad_images.jsonl")).unwrap();
    assert!(named.contains("red/page.jpg") && named.lines().count() >= 4, "{named}");
    assert_eq!(snapshot(&set), before, "the data folder was changed");

    // A pack never lands in the data folder.
    let inside = run(&["data", "pack", text(&set), text(&set.join("pack"))]);
    assert_eq!(inside.code, 2, "{}", inside.stderr);
    let pack = folder.path().join("pack");
    let packed = run(&["data", "pack", text(&set), text(&pack)]);
    assert_eq!(packed.code, 0, "{}", packed.stderr);
    let stats = run(&["data", "stats", text(&pack), "--json"]);
    assert_eq!(stats.json()["side"], 256);
    assert_eq!(snapshot(&set), before, "the data folder was changed");
}

/// Above one picture in twenty, the run does not begin.
#[test]
fn too_many_bad_pictures_stop_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    pictures(&set, 4);
    for i in 0..3 {
        std::fs::write(set.join("red").join(format!("bad-{i}.jpg")), "not a picture").unwrap();
    }
    let out = folder.path().join("run");
    let run = run(&["train", text(&set), "--recipe", &recipe(folder.path()), "--out", text(&out)]);
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(run.stderr.contains("bad-0.jpg") && run.stderr.contains("3 of 15"), "{}", run.stderr);
}

#[test]
fn damaged_models_are_refused_and_older_ones_taken() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    pictures(&set, 8);
    let out = folder.path().join("run");
    let trained = run(&["train", text(&set), "--recipe", &recipe(folder.path()), "--out", text(&out)]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let mut files: Vec<_> =
        std::fs::read_dir(out.join("checkpoints")).unwrap().flatten().map(|e| e.path()).collect();
    files.sort();
    let newest = files.last().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    for damaged in [&bytes[..bytes.len() / 3], &[], &flipped[..]] {
        std::fs::write(newest, damaged).unwrap();
        let direct = run(&["eval", text(newest), text(&set)]);
        assert_eq!(direct.code, 4, "{}", direct.stderr);
        assert!(direct.stderr.contains("step-"), "{}", direct.stderr);
        let older = run(&["eval", text(&out), text(&set)]);
        assert_eq!(older.code, 0, "{}", older.stderr);
        assert!(
            older.stderr.contains("warning: ") && older.stderr.contains("is not used"),
            "{}",
            older.stderr
        );
    }
}

/// The checksum of PNG chunks (ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}

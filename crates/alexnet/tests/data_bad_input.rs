//! Wrong folders and damaged pictures: each a clear error or a named, counted skip; the user's files untouched.
#![cfg(unix)]

use alexnet::Error;
use alexnet::data::{Pack, PackOptions, SplitRule, check_unreadable, list_folder, split};
use image::{DynamicImage, ImageFormat, RgbImage};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

fn scene() -> DynamicImage {
    let pixel = |x: u32, y: u32| image::Rgb([(x * 5) as u8, (y * 7) as u8, ((x * y) % 200) as u8]);
    DynamicImage::ImageRgb8(RgbImage::from_fn(40, 30, pixel))
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn jpeg() -> Vec<u8> {
    encoded(&scene(), ImageFormat::Jpeg)
}

fn write(path: PathBuf, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A folder with `pictures` good pictures in each of `classes`.
fn folder(classes: &[&str], pictures: usize) -> TempDir {
    let root = tempdir().unwrap();
    for class in classes {
        for i in 0..pictures {
            write(root.path().join(class).join(format!("{i}.jpg")), &jpeg());
        }
    }
    root
}

fn refusal(root: &Path) -> String {
    let error = list_folder(root).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    error.to_string()
}

#[test]
fn a_wrong_path_names_a_near_one() {
    let root = folder(&["photos/a", "photos/b"], 1);
    let text = refusal(&root.path().join("photo"));
    assert!(
        text.contains("no such folder") && text.contains("did you mean") && text.contains("photos?"),
        "{text}"
    );
    let text = refusal(&root.path().join("photo/a"));
    assert!(text.contains("photos/a?"), "{text}");
    let text = refusal(Path::new("/entirely/elsewhere"));
    assert!(!text.contains("did you mean"), "{text}");
}

#[test]
fn a_file_is_not_a_folder() {
    let root = folder(&["a"], 1);
    let text = refusal(&root.path().join("a/0.jpg"));
    assert!(text.contains("is a file"), "{text}");
    write(root.path().join("set.tar.gz"), b"x");
    assert!(refusal(&root.path().join("set.tar.gz")).contains("unpack"));
}

#[test]
fn the_wrong_level_names_the_right_one() {
    // One too low: a class folder.
    let root = folder(&["set/cat", "set/dog"], 2);
    let text = refusal(&root.path().join("set/cat"));
    assert!(text.contains("no class folders") && text.contains("set was probably meant"), "{text}");
    // One too high: the folder around the set.
    let text = refusal(root.path());
    assert!(text.contains("set was probably meant"), "{text}");
    // train/ and val/ without class folders are not two classes.
    let text = refusal(folder(&["train", "val"], 2).path());
    assert!(text.contains("one folder for each class"), "{text}");
    // Half a split.
    let text = refusal(folder(&["train/cat", "train/dog"], 2).path());
    assert!(text.contains("train was probably meant"), "{text}");
    // The set itself is fine.
    assert_eq!(list_folder(&root.path().join("set")).unwrap().classes, ["cat", "dog"]);
}

#[test]
fn too_few_classes_and_empty_folders_are_named() {
    let nothing = tempdir().unwrap();
    assert!(refusal(nothing.path()).contains("is empty"));
    let one = folder(&["cat"], 3);
    let text = refusal(one.path());
    assert!(text.contains("one class only, cat"), "{text}");
    fs::create_dir(one.path().join("dog")).unwrap();
    let text = refusal(one.path());
    assert!(text.contains("one class only, cat") && text.contains("dog"), "{text}");
    // With two classes left, an empty one is reported and nothing more.
    write(one.path().join("horse/1.jpg"), &jpeg());
    let listing = list_folder(one.path()).unwrap();
    assert_eq!(listing.classes, ["cat", "horse"]);
    assert_eq!(listing.skipped[0].path, Path::new("dog"));
    assert!(listing.skipped[0].reason.contains("empty class folder"));
    // Folders, but no pictures anywhere.
    let hollow = tempdir().unwrap();
    for name in ["a", "b"] {
        write(hollow.path().join(name).join("notes.txt"), b"nothing to see");
    }
    let text = refusal(hollow.path());
    assert!(text.contains("no pictures") && text.contains("a, b"), "{text}");
}

#[test]
fn train_and_validation_folders_are_a_split() {
    let root = folder(&["train/cat", "train/dog", "val/cat", "val/dog", "val/emu"], 2);
    let listing = list_folder(root.path()).unwrap();
    assert_eq!(listing.classes, ["cat", "dog"]);
    assert_eq!(listing.skipped[0].reason, "a class without training pictures");
    let cache = tempdir().unwrap();
    let options = PackOptions { side: 16, ..Default::default() };
    let pack = Pack::for_folder(root.path(), &options, Some(cache.path()), &mut |_, _| {}).unwrap();
    assert!(pack.has_given_split());
    let sides = split(&pack, &SplitRule::Given).unwrap();
    let names = |side: &[u32]| side.iter().map(|&i| pack.path(i as usize).to_string()).collect::<Vec<_>>();
    assert_eq!(
        names(&sides.train),
        ["train/cat/0.jpg", "train/cat/1.jpg", "train/dog/0.jpg", "train/dog/1.jpg"]
    );
    assert_eq!(names(&sides.val), ["val/cat/0.jpg", "val/cat/1.jpg", "val/dog/0.jpg", "val/dog/1.jpg"]);
}

/// Everything about the files below a folder that a program could change.
fn state(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let about = fs::symlink_metadata(&path).unwrap();
            let bytes = if about.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if about.is_dir() {
                todo.push(path.clone());
            }
            all.insert(path, (about.ino(), about.mtime(), about.mtime_nsec(), about.mode(), bytes));
        }
    }
    all
}

/// A class of good pictures in every form and one of bad ones.
fn corpus() -> TempDir {
    let root = tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| write(root.path().join(name), bytes);
    let s = scene();
    let png = |p: &DynamicImage| encoded(p, ImageFormat::Png);
    put("good/plain.jpg", &jpeg());
    put("good/gray.jpg", &encoded(&DynamicImage::ImageLuma8(s.to_luma8()), ImageFormat::Jpeg));
    put("good/really-png.JPEG", &png(&s));
    put("good/16-bit.png", &png(&DynamicImage::ImageRgb16(s.to_rgb16())));
    put("good/16-bit-gray.png", &png(&DynamicImage::ImageLuma16(s.to_luma16())));
    put("good/alpha.png", &png(&DynamicImage::ImageRgba8(s.to_rgba8())));
    put("good/palette.gif", &encoded(&DynamicImage::ImageRgba8(s.to_rgba8()), ImageFormat::Gif));
    put("good/bitmap.bmp", &encoded(&s, ImageFormat::Bmp));
    put("good/really-tiff.jpg", &encoded(&s, ImageFormat::Tiff));
    put("good/really-webp.jpg", &encoded(&s, ImageFormat::WebP));
    put("good/no-extension", &jpeg());
    put("good/trailing.jpg", &[&jpeg()[..], b"245 more bytes"].concat());
    put("good/no-end-marker.jpg", &jpeg()[..jpeg().len() - 2]);
    put("good/deeper/one.jpg", &jpeg());
    write(root.path().join("good").join(OsStr::from_bytes(b"caf\xe9.jpg")), &jpeg());
    put("bad/0-good.jpg", &jpeg());
    for percent in [10, 50, 99] {
        put(&format!("bad/cut-{percent}.jpg"), &jpeg()[..jpeg().len() * percent / 100]);
    }
    put("bad/cut.png", &png(&s)[..png(&s).len() / 2]);
    put("bad/page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>");
    put("bad/empty.jpg", b"");
    put("bad/phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic");
    put("bad/noise.jpg", &[0x5A; 500]);
    root
}

#[test]
fn damaged_pictures_are_named_and_the_rest_is_used() {
    let root = corpus();
    let before = state(root.path());
    let cache = tempdir().unwrap();
    let options = PackOptions { side: 24, ..Default::default() };
    let mut told = Vec::new();
    let pack =
        Pack::for_folder(root.path(), &options, Some(cache.path()), &mut |done, of| told.push((done, of)))
            .unwrap();
    assert_eq!(told.last(), Some(&(24, 24)));
    let reasons: BTreeMap<&str, &str> =
        pack.unreadable().iter().map(|u| (u.path.as_str(), u.reason.as_str())).collect();
    for (path, word) in [
        ("bad/cut-10.jpg", "truncated"),
        ("bad/cut-50.jpg", "truncated"),
        ("bad/cut-99.jpg", "truncated"),
        ("bad/cut.png", "truncated"),
        ("bad/page.jpg", "HTML"),
        ("bad/empty.jpg", "empty"),
        ("bad/phone.heic", "HEIC"),
        ("bad/noise.jpg", "not a picture"),
    ] {
        assert!(reasons.get(path).is_some_and(|r| r.contains(word)), "{path}: {reasons:?}");
    }
    assert_eq!(reasons.len(), 8, "{reasons:?}");
    assert!((0..pack.len()).any(|i| pack.path(i) == "good/caf\\xE9.jpg"));
    // Every form shows the same scene: gray ones in gray, lossy ones nearly.
    let find =
        |name: &str| (0..pack.len()).find(|&i| pack.path(i) == name).and_then(|i| pack.picture(i)).unwrap();
    let plain = find("good/really-png.JPEG");
    for i in (0..pack.len()).filter(|&i| pack.path(i).starts_with("good/") && !pack.path(i).contains("gray"))
    {
        let mean =
            pack.picture(i).unwrap().iter().zip(plain).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>()
                / plain.len() as f64;
        assert!(mean < 10.0, "{}: {mean}", pack.path(i));
    }
    for gray in ["good/gray.jpg", "good/16-bit-gray.png"] {
        assert!(find(gray).chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]), "{gray}");
    }
    let text = check_unreadable(&pack, 0.05).unwrap_err();
    assert!(matches!(text, Error::Data(_)));
    assert!(text.to_string().contains("8 of 24") && text.to_string().contains("5.0 %"), "{text}");
    check_unreadable(&pack, 0.5).unwrap();
    assert_eq!(state(root.path()), before, "the user's files were touched");
}

#[test]
fn odd_things_in_folders_are_passed_over_without_waiting() {
    let around = folder(&["set/a", "set/b"], 2);
    let root = around.path().join("set");
    let a = root.join("a");
    write(a.join(".DS_Store"), b"x");
    write(a.join(".hidden/no.jpg"), &jpeg());
    write(root.join(".ipynb_checkpoints/no.jpg"), &jpeg());
    write(a.join("Thumbs.db"), b"x");
    write(a.join("notes.txt"), b"remember");
    write(root.join("loose.jpg"), &jpeg());
    symlink("..", a.join("circle")).unwrap();
    symlink("../..", a.join("wider")).unwrap();
    symlink("loop", a.join("loop")).unwrap();
    symlink("nowhere", a.join("gone.jpg")).unwrap();
    symlink("/dev/zero", a.join("endless.jpg")).unwrap();
    symlink("../b/0.jpg", a.join("linked.jpg")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(a.join("pipe.jpg")).status().unwrap().success());
    let listing = list_folder(&root).unwrap();
    let names: Vec<_> = listing.entries.iter().map(|e| e.path.to_str().unwrap()).collect();
    assert_eq!(names, ["a/0.jpg", "a/1.jpg", "a/linked.jpg", "b/0.jpg", "b/1.jpg"]);
    let reasons: BTreeMap<_, _> =
        listing.skipped.iter().map(|s| (s.path.to_str().unwrap(), s.reason.as_str())).collect();
    for (path, word) in [
        ("a/circle", "circle"),
        ("a/wider", "circle"),
        ("a/loop", "symbolic link"),
        ("a/gone.jpg", "to nothing"),
        ("a/endless.jpg", "a device"),
        ("a/pipe.jpg", "FIFO"),
        ("a/notes.txt", "not a picture"),
        ("loose.jpg", "not in a class folder"),
    ] {
        assert!(reasons.get(path).is_some_and(|r| r.contains(word)), "{path}: {reasons:?}");
    }
    assert_eq!(reasons.len(), 8, "{reasons:?}");
    // Should a FIFO turn up where a picture was listed, it is not waited for either.
    let refused = alexnet::data::decode::decode_file(&a.join("pipe.jpg"), Default::default()).unwrap_err();
    assert!(refused.contains("FIFO"), "{refused}");
}

#[test]
fn a_pack_is_made_again_when_and_only_when_something_changed() {
    let root = folder(&["a", "b"], 3);
    let cache = tempdir().unwrap();
    let options = PackOptions { side: 16, ..Default::default() };
    let decoded = |options: &PackOptions| {
        let mut decoded = 0;
        let pack = Pack::for_folder(root.path(), options, Some(cache.path()), &mut |done, _| decoded = done)
            .unwrap();
        (decoded, pack)
    };
    let (n, first) = decoded(&options);
    assert_eq!(n, 6);
    first.verify_unchanged().unwrap();
    let (n, same) = decoded(&options);
    assert_eq!((n, same.fingerprint()), (0, first.fingerprint()));
    assert_eq!(decoded(&PackOptions { side: 8, ..options.clone() }).0, 6);
    write(root.path().join("a/new.jpg"), &jpeg());
    let (n, more) = decoded(&options);
    assert_eq!((n, more.len()), (7, 7));
    assert_ne!(more.fingerprint(), first.fingerprint());
    fs::write(root.path().join("a/new.jpg"), encoded(&scene().rotate90(), ImageFormat::Png)).unwrap();
    assert_eq!(decoded(&options).0, 7);
    fs::remove_file(root.path().join("b/1.jpg")).unwrap();
    assert_eq!(decoded(&options).1.len(), 6);
    // The old one was replaced, not changed: who has it open keeps it.
    first.verify().unwrap();
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 2, "one pack for each set of options");
}

#[test]
fn damaged_packs_are_refused() {
    let root = folder(&["a", "b"], 2);
    let work = tempdir().unwrap();
    let file = work.path().join("set.safetensors");
    let options = PackOptions { side: 8, ..Default::default() };
    let pack = Pack::build(&list_folder(root.path()).unwrap(), &options, &file, &mut |_, _| {}).unwrap();
    let bytes = fs::read(&file).unwrap();
    let copy = work.path().join("copy.safetensors");
    for length in (0..bytes.len()).step_by(37).chain([bytes.len() - 1]) {
        fs::write(&copy, &bytes[..length]).unwrap();
        assert_eq!(Pack::open(&copy).unwrap_err().exit_code(), 3, "cut at {length}");
    }
    // Every byte after the header counts; the header is padded with spaces, in which nothing is kept.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in header..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&copy, &damaged).unwrap();
        assert!(Pack::open(&copy).is_err(), "byte {at} of {} changed", bytes.len());
    }
    fs::write(&copy, &bytes).unwrap();
    let open = Pack::open(&copy).unwrap();
    assert_eq!(open.fingerprint(), pack.fingerprint());
    // Changed while in use: noticed at the next look.
    fs::OpenOptions::new().append(true).open(&copy).unwrap().set_len(bytes.len() as u64 + 1).unwrap();
    assert!(open.verify_unchanged().unwrap_err().to_string().contains("changed"));
    // Saved from memory, the same bytes.
    pack.save(&copy).unwrap();
    assert_eq!(fs::read(&copy).unwrap(), bytes);
}

#[test]
fn a_pack_that_cannot_be_written_says_why() {
    let root = folder(&["a", "b"], 1);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    let options = PackOptions { side: 8, ..Default::default() };
    // More than any disk holds: refused before anything is written.
    let huge = PackOptions { side: 1 << 26, ..Default::default() };
    let error = Pack::build(&listing, &huge, &work.path().join("p"), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("needs") && error.contains("free"), "{error}");
    // A folder that cannot be written to: here, because it is a file.
    write(work.path().join("file"), b"x");
    let cache = work.path().join("file/cache");
    let error =
        Pack::for_folder(root.path(), &options, Some(&cache), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("cache folder"), "{error}");
    // Never into the user's folder.
    let inside = root.path().join("cache");
    let error = Pack::for_folder(root.path(), &options, Some(&inside), &mut |_, _| {}).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(!inside.exists(), "a folder was made in the data folder");
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1, "something was left behind");
}

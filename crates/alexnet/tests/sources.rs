//! What each format lists, to the picture, and what is refused and with which words.

#[path = "common/sources.rs"]
mod make;

use alexnet::data::source::{Format, Listing, Reader, list};
use alexnet::data::{Split, decode::Exif};
use std::path::Path;

fn listed(path: &Path) -> Listing {
    list(path, None, &mut |_, _| {}).unwrap()
}

/// Name, class and side of every picture, sorted.
fn names(listing: &Listing) -> Vec<(String, u32, Option<Split>)> {
    let mut all: Vec<_> = listing.entries.iter().map(|e| (e.name(), e.class, e.split)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Every picture shows the colour of its class.
fn check_pictures(listing: &Listing, class_of_name: impl Fn(&str) -> usize) {
    let reader = Reader::new(listing);
    for entry in &listing.entries {
        let picture = reader.picture(entry, Exif::Ignore).unwrap();
        let expected = class_of_name(&listing.classes[entry.class as usize]);
        let mean = |c: usize| picture.pixels.iter().skip(c).step_by(3).map(|&p| u32::from(p)).sum::<u32>();
        let strongest = (0..3).max_by_key(|&c| mean(c)).unwrap();
        assert_eq!(strongest, 2 - expected, "{}", entry.name());
    }
}

fn by_word(name: &str) -> usize {
    ["blue", "green", "red"].iter().position(|w| name.contains(w)).unwrap()
}

/// The error of listing, which must be one of the data and have all of these words in it.
fn refused(path: &Path, words: &[&str]) {
    let error = match list(path, None, &mut |_, _| {}) {
        Ok(listing) => panic!("{} was listed: {listing:?}", path.display()),
        Err(error) => error,
    };
    assert_eq!(error.exit_code(), 3, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn ilsvrc_is_in_the_order_of_the_devkit() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make::ilsvrc2012(root, 2, 4);
    let listing = listed(root);
    assert_eq!(listing.format, Format::Ilsvrc);
    let expected: Vec<String> = make::SYNSETS.iter().map(|(w, words)| format!("{w} {words}")).collect();
    assert_eq!(listing.classes, expected);
    let (t, v) = (Some(Split::Train), Some(Split::Val));
    let expected = [
        ("train/n00000010/n00000010_0.JPEG", 1, t),
        ("train/n00000010/n00000010_7.JPEG", 1, t),
        ("train/n00000020/n00000020_0.JPEG", 2, t),
        ("train/n00000020/n00000020_7.JPEG", 2, t),
        ("train/n00000030/n00000030_0.JPEG", 0, t),
        ("train/n00000030/n00000030_7.JPEG", 0, t),
        ("val/ILSVRC2012_val_00000001.JPEG", 1, v),
        ("val/ILSVRC2012_val_00000002.JPEG", 0, v),
        ("val/ILSVRC2012_val_00000003.JPEG", 2, v),
        ("val/ILSVRC2012_val_00000004.JPEG", 1, v),
    ];
    assert_eq!(names(&listing), expected.map(|(n, c, s)| (n.to_string(), c, s)));
    check_pictures(&listing, by_word);
    assert!(listing.skipped.is_empty(), "{:?}", listing.skipped);
    // One archive alone is no split.
    let alone = listed(&root.join("ILSVRC2012_img_val.tar"));
    assert_eq!((alone.entries.len(), alone.entries[0].split), (4, None));
    assert_eq!(alone.classes, listing.classes);
}

#[test]
fn ilsvrc_2010_has_test_pictures_and_patches() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make::ilsvrc2010(root, 2, 4);
    // A damaged picture of each part, and its replacement.
    let mut train = make::train_tar(2);
    let at = train.windows(3).position(|w| w == [0xFF, 0xD8, 0xFF]).unwrap();
    train[at] = 0;
    make::write(root.join("ILSVRC2010_images_train.tar"), &train);
    let first = listed(root).entries.into_iter().find(|e| e.name().contains("n00000010_0")).unwrap();
    assert!(Reader::new(&listed(root)).picture(&first, Exif::Ignore).is_err());
    let patch = make::tar([("patch_images/train/n00000010_0.JPEG", make::jpeg(1, 0))]);
    make::write(root.join("patch_images.tar"), patch);
    let listing = listed(root);
    assert_eq!(listing.entries.len(), 10);
    check_pictures(&listing, by_word);
    let test = listed(&root.join("ILSVRC2010_images_test.tar"));
    assert_eq!(test.entries.len(), 4);
    check_pictures(&test, by_word);
}

#[test]
fn ilsvrc_says_which_file_is_missing() {
    for missing in ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"] {
        let folder = tempfile::tempdir().unwrap();
        make::ilsvrc2012(folder.path(), 1, 1);
        std::fs::remove_file(folder.path().join(missing)).unwrap();
        refused(folder.path(), &[&format!("{missing} is missing"), "as downloaded"]);
        // A file that was renamed a little is found.
        make::write(folder.path().join(missing.replace("2012_", "2012-")), "x");
        refused(folder.path(), &["is there, is it meant?"]);
    }
    let folder = tempfile::tempdir().unwrap();
    make::ilsvrc2010(folder.path(), 1, 1);
    std::fs::remove_file(folder.path().join("ILSVRC2010_test_ground_truth.txt")).unwrap();
    refused(
        &folder.path().join("ILSVRC2010_images_test.tar"),
        &["ILSVRC2010_test_ground_truth.txt is missing"],
    );
    let nothing = tempfile::tempdir().unwrap();
    let error = list(nothing.path(), Some(Format::Ilsvrc), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar"), "{error}");
}

#[test]
fn ilsvrc_names_a_wrong_archive() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let put = |name: &str, bytes: Vec<u8>| {
        make::ilsvrc2012(root, 2, 4);
        make::write(root.join(name), bytes);
    };
    let (train, val, kit) =
        ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz");
    put(train, make::flat_tar("ILSVRC2012_val_", 4));
    refused(
        root,
        &[train, "not the archive that was expected", "n00000030.tar", "ILSVRC2012_val_00000004.JPEG"],
    );
    put(val, make::train_tar(2));
    refused(root, &[val, "ILSVRC2012_val_00000001.JPEG", "n00000010.tar"]);
    put(val, make::flat_tar("val/ILSVRC2010_val_", 4));
    refused(root, &[val, "not the archive that was expected"]);
    put(val, make::flat_tar("ILSVRC2012_val_", 3));
    refused(root, &[val, "3 pictures", "ground truth has 4 lines"]);
    put(val, make::flat_tar("ILSVRC2012_val_", 5));
    refused(root, &[val, "ground truth has 4 lines for 5 pictures"]);
    put(
        val,
        make::tar([("ILSVRC2012_val_00000001.JPEG", vec![1]), ("a/ILSVRC2012_val_00000001.JPEG", vec![1])]),
    );
    refused(root, &["occurs twice"]);
    // Archives that are not complete.
    let whole = make::train_tar(2);
    for cut in [whole.len() - 1024, whole.len() / 2, 700, 512, 100] {
        put(train, whole[..cut].to_vec());
        refused(root, &[train, "cut short", "download it again"]);
    }
    put(train, b"<!doctype html><p>Please log in".repeat(40).to_vec());
    refused(root, &[train, "not a tar"]);
    put(train, make::tar([("n00000010.tar", make::tar([("x.JPEG", make::jpeg(0, 0))]))]));
    refused(root, &[train, "2 of 3 synsets are missing", "n00000030.tar"]);
    let inner = make::tar([("n00000010_1.JPEG", make::jpeg(0, 0))]);
    let synsets = make::SYNSETS.map(|(wnid, _)| (format!("{wnid}.tar"), inner[..inner.len() - 600].to_vec()));
    put(train, make::tar(synsets));
    refused(root, &[train, "in it n00000030.tar", "cut short"]);
    // Development kits.
    put(kit, make::gzip(&make::tar([("ILSVRC2012_devkit_t3/data/meta_det.mat", vec![1])])));
    refused(root, &[kit, "no data/meta.mat"]);
    make::ilsvrc2012(root, 2, 4);
    let good = std::fs::read(root.join(kit)).unwrap();
    put(kit, good[..good.len() - 9].to_vec());
    refused(root, &[kit, "not a complete gzip file"]);
    let kit_of = |meta: &[u8], truth: &str| {
        make::devkit(meta, "ILSVRC2012_devkit_t12", "ILSVRC2012_validation_ground_truth.txt", truth)
    };
    let meta = make::fixture("meta-2012.mat");
    put(kit, kit_of(&meta, "1\n4\n2\n1\n"));
    refused(root, &["validation_ground_truth.txt", "line 2", "\"4\" is not an id from 1 to 3"]);
    put(kit, kit_of(&meta, "1\n2\n"));
    refused(root, &[val, "ground truth has 2 lines"]);
    put(kit, kit_of(&make::fixture("meta-2010.mat"), "1\n2\n3\n1\n"));
    refused(root, &["meta.mat", "no field `ILSVRC2012_ID`"]);
    put(kit, kit_of(b"MATLAB 7.3 MAT-file", "1\n"));
    refused(root, &["meta.mat", "shorter than its header"]);
    put(kit, make::gzip(&vec![0; 40 << 20]));
    refused(root, &[kit, "unpacks to more than"]);
    let test = root.join("ILSVRC2012_img_test.tar");
    put("ILSVRC2012_img_test.tar", make::flat_tar("ILSVRC2012_test_", 4));
    put(kit, good);
    refused(&test, &["were never published"]);
}

#[test]
fn webdataset_labels_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make::webdataset(root, 3, 3);
    let listing = listed(root);
    assert_eq!((listing.format, listing.classes.len(), listing.entries.len()), (Format::WebDataset, 3, 12));
    assert_eq!(names(&listing)[0], ("set-train-0000/some/000000.jpg".into(), 0, Some(Split::Train)));
    check_pictures(&listing, by_word);
    // Numbers, with and without a file of names; and one shard alone.
    let sample = |i: usize| {
        [(format!("{i}.jpg"), make::jpeg(i % 3, i)), (format!("{i}.cls"), vec![b'0' + i as u8 % 3])]
    };
    let numbers = tempfile::tempdir().unwrap();
    let shard = numbers.path().join("0.tar");
    make::write(&shard, make::tar((0..6).flat_map(sample)));
    assert_eq!(listed(&shard).classes, ["0", "1", "2"]);
    make::write(numbers.path().join("classnames.txt"), "blue\ngreen\nred\n");
    let named = listed(numbers.path());
    assert_eq!(named.classes, ["blue", "green", "red"]);
    check_pictures(&named, by_word);
    make::write(numbers.path().join("classnames.txt"), "blue\ngreen\n");
    refused(numbers.path(), &["label 2 among 2 classes"]);
    // What is incomplete is passed over by name.
    let odd = tempfile::tempdir().unwrap();
    let members = (0..6).flat_map(sample).chain([
        ("a.jpg".to_string(), make::jpeg(0, 0)),
        ("b.cls".to_string(), b"1".to_vec()),
        ("c.jpg".to_string(), make::jpeg(0, 0)),
        ("c.json".to_string(), b"{\"label\": [1]}".to_vec()),
        ("d.jpg".to_string(), make::jpeg(0, 0)),
        ("d.cls".to_string(), vec![b'1'; 5000]),
    ]);
    make::write(odd.path().join("x.tar"), make::tar(members));
    let listing = listed(odd.path());
    let skipped: Vec<String> =
        listing.skipped.iter().map(|s| format!("{}: {}", s.path.display(), s.reason)).collect();
    assert_eq!(listing.entries.len(), 6);
    for (line, expected) in skipped.iter().zip([
        "x.tar/a.jpg: a picture without a label",
        "x.tar/b.cls: a label without a picture",
        "x.tar/c.jpg: the label in its .json is neither",
        "x.tar/d.jpg: its label file has 5000 bytes",
    ]) {
        assert!(line.starts_with(expected), "{skipped:?}");
    }
    make::write(odd.path().join("x.tar"), make::tar([("a.jpg", make::jpeg(0, 0))]));
    refused(odd.path(), &["no pictures with labels", "a.jpg"]);
}

#[test]
fn parquet_rows_are_pictures() {
    let folder = tempfile::tempdir().unwrap();
    make::parquet(folder.path());
    let listing = listed(folder.path());
    assert_eq!((listing.format, listing.entries.len()), (Format::Parquet, 24));
    assert_eq!(listing.classes, ["blue", "green", "red"]);
    check_pictures(&listing, by_word);
    let sides = |side| listing.entries.iter().filter(|e| e.split == Some(side)).count();
    assert_eq!((sides(Split::Train), sides(Split::Val)), (18, 6));
    let shard = folder.path().join("data/train-00000-of-00001.parquet");
    assert_eq!(listed(&shard).entries.len(), 18);
    // Damaged files.
    let whole = make::fixture("train.parquet");
    make::write(&shard, &whole[..whole.len() - 5]);
    refused(&shard, &["does not end with PAR1"]);
    make::write(&shard, &whole[whole.len() - 2500..]);
    refused(&shard, &["damaged"]);
    make::write(&shard, b"PAR1");
    refused(&shard, &["too short"]);
}

#[test]
fn lists_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for i in 0..4 {
        make::write(root.join(format!("a b/{i}.jpg")), make::jpeg(i % 3, i));
    }
    let forms = [
        ("with.csv", "path,label\na b/0.jpg,blue\n\"a b/1.jpg\",green\na b/2.jpg,red\n"),
        ("without.csv", "a b/0.jpg,blue\na b/1.jpg,green\n\na b/2.jpg,red\n"),
        ("semicolons.csv", "Label;File\nblue;a b/0.jpg\ngreen;a b/1.jpg\nred;a b/2.jpg\n"),
        ("tabs.tsv", "a b/0.jpg\tblue\na b/1.jpg\tgreen\r\na b/2.jpg\tred\n"),
        ("caffe.txt", "a b/0.jpg blue\na b/1.jpg green\n./a b/2.jpg red\n"),
        ("marked.txt", "\u{feff}a b/0.jpg\tblue\na b/1.jpg\tgreen\na b/2.jpg\tred"),
    ];
    for (name, text) in forms {
        make::write(root.join(name), text);
        let listing = listed(&root.join(name));
        assert_eq!(
            (listing.entries.len(), &listing.classes[..]),
            (3, &["blue", "green", "red"].map(String::from)[..]),
            "{name}"
        );
        check_pictures(&listing, by_word);
    }
    let absolute = format!("{0}/a b/0.jpg 0\n{0}/a b/1.jpg 1\n", root.display());
    make::write(root.join("absolute.txt"), absolute);
    assert_eq!(listed(&root.join("absolute.txt")).classes, ["0", "1"]);
    make::write(root.join("again.csv"), "a b/0.jpg,x\na b/1.jpg,y\na b/0.jpg,x\n");
    assert_eq!(listed(&root.join("again.csv")).skipped[0].reason, "line 3 names it again");

    let wrong = [
        ("a b/0.jpg,x\na b/9.jpg,y\n", &["line 2: a b/9.jpg (no such file)", "relative to"][..]),
        ("a b/0.jpg,x\na b,y\n", &["line 2", "a folder, not a file"]),
        ("a b/0.jpg,x\na b/0.jpg,y\n", &["line 2", "another label than in line 1"]),
        ("a b/0.jpg,x\na b/1.jpg\n", &["line 2: no label"]),
        ("a b/0.jpg,x\n,y\n", &["line 2: no path"]),
        ("path,colour\na b/0.jpg,x\n", &["no column for the label", "path, colour"]),
        ("a b/0.jpg,x,7\n", &["3 columns and no names"]),
        ("path,label,split\na b/0.jpg,x,trian\n", &["line 2", "\"trian\" is no side"]),
        ("a b/0.jpg,5\na b/1.jpg,4000000000\n", &["label 4000000000", "at most 99999"]),
        ("a b/0.jpg,x\na b/1.jpg,x\n", &["one class only, x"]),
        ("path,label\n", &["without pictures"]),
        ("\n\n", &["an empty list"]),
        ("a\n", &["a path and a label"]),
    ];
    for (text, words) in wrong {
        make::write(root.join("wrong.csv"), text);
        refused(&root.join("wrong.csv"), words);
    }
    make::write(root.join("wrong.csv"), b"a b/0.jpg,\xFF\xFE\n");
    refused(&root.join("wrong.csv"), &["not UTF-8 text at byte 10"]);
}

#[test]
fn cifar_records_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make::cifar10(root, 3, 3);
    let listing = listed(root);
    assert_eq!((listing.format, listing.entries.len()), (Format::Cifar, 18));
    assert_eq!(names(&listing)[0], ("data_batch_1/00000".into(), 0, Some(Split::Train)));
    check_pictures(&listing, by_word);
    let inner = root.join("cifar-10-batches-bin");
    // Pixels to the byte.
    let picture = Reader::new(&listing).picture(&listing.entries[4], Exif::Ignore).unwrap();
    assert_eq!(picture.pixels, make::picture(1, 4, 32, 32).into_raw());
    let other = tempfile::tempdir().unwrap();
    make::cifar100(other.path(), 6, 3);
    check_pictures(&listed(other.path()), by_word);

    let batch = inner.join("data_batch_3.bin");
    let whole = std::fs::read(&batch).unwrap();
    make::write(&batch, &whole[..whole.len() - 1]);
    refused(root, &["data_batch_3.bin", "9218 bytes", "records of 3073 bytes"]);
    make::write(&batch, b"");
    refused(root, &["data_batch_3.bin", "0 bytes"]);
    let mut wrong = whole.clone();
    wrong[3073] = 3;
    make::write(&batch, wrong);
    refused(root, &["data_batch_3.bin", "record 1 has the label 3 among 3 classes"]);
    std::fs::remove_file(&batch).unwrap();
    refused(root, &["data_batch_3.bin of CIFAR-10 is missing"]);
    let python = tempfile::tempdir().unwrap();
    make::write(python.path().join("cifar-10-batches-py/data_batch_1"), "x");
    let error = list(python.path(), Some(Format::Cifar), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("Python version, download the binary one"), "{error}");
}

#[test]
fn tiny_imagenet_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make::tiny_imagenet(root, 2, 3);
    let listing = listed(root);
    assert_eq!((listing.format, listing.entries.len()), (Format::TinyImagenet, 9));
    assert_eq!(listing.classes[0], "n00000010 green thing");
    check_pictures(&listing, by_word);
    assert_eq!(listing.skipped.len(), 1, "{:?}", listing.skipped);
    let annotations = root.join("val/val_annotations.txt");
    let good = std::fs::read_to_string(&annotations).unwrap();
    make::write(&annotations, good.replacen("n00000010", "n99999999", 1));
    refused(root, &["val_annotations.txt", "line 2", "\"n99999999\" is not in wnids.txt"]);
    make::write(&annotations, good.replacen("val_2.JPEG", "val_7.JPEG", 1));
    refused(root, &["not in val/images: val_7.JPEG"]);
    make::write(&annotations, "val_0.JPEG n00000010\n");
    refused(root, &["line 1", "a tab"]);
    std::fs::remove_file(&annotations).unwrap();
    refused(root, &["val/val_annotations.txt is missing"]);
    make::write(&annotations, &good);
    std::fs::remove_dir_all(root.join("train/n00000020")).unwrap();
    refused(root, &["1 of 3 classes have no pictures", "train/n00000020"]);
}

#[test]
fn an_archive_that_changes_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    make::ilsvrc2012(folder.path(), 1, 1);
    let listing = listed(folder.path());
    let path = folder.path().join("ILSVRC2012_img_train.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend([0; 512]);
    make::write(&path, bytes);
    let entry = listing.entries.iter().find(|e| e.split == Some(Split::Train)).unwrap();
    let error = Reader::new(&listing).picture(entry, Exif::Ignore).unwrap_err();
    assert!(error.contains("changed since it was listed"), "{error}");
}

#[test]
fn formats_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make::write(root.join("a/1.jpg"), make::jpeg(0, 0));
    make::write(root.join("b/1.jpg"), make::jpeg(1, 0));
    assert_eq!(listed(root).format, Format::Folder);
    // A stray archive in a class folder changes nothing.
    make::write(root.join("a/backup.tar"), "x");
    assert_eq!(listed(root).format, Format::Folder);
    for format in Format::ALL {
        assert_eq!(format.name().parse::<Format>().unwrap(), format);
    }
    assert!("parket".parse::<Format>().unwrap_err().to_string().contains("did you mean parquet?"));
    refused(&root.join("no.tar"), &["no such"]);
}

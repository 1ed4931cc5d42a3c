//! Small sets of generated pictures in every format that is read: three classes, told apart by their colour.
#![allow(dead_code)] // each test file uses a part

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The synsets of the fixtures meta-2012.mat and meta-2010.mat in the order of their ids, with their words.
pub const SYNSETS: [(&str, &str); 3] =
    [("n00000030", "blue thing, azure thing"), ("n00000010", "green thing"), ("n00000020", "red thing")];

/// The fixture of this name; `golden/sources.py` makes them.
pub fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../alexnet/tests/fixtures");
    std::fs::read(folder.join(name)).unwrap()
}

/// One picture of a class.
pub fn picture(class: usize, i: usize, w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        let noise = (x * 7 + y * 13 + i as u32 * 31) % 50;
        let mut pixel = [noise as u8; 3];
        pixel[2 - class] = (180 + noise) as u8;
        Rgb(pixel)
    })
}

/// The same as a JPEG file.
pub fn jpeg(class: usize, i: usize) -> Vec<u8> {
    let picture = picture(class, i, 24, 20);
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90)
        .write_image(&picture, 24, 20, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

/// A tar of these members.
pub fn tar<N: AsRef<str>>(members: impl IntoIterator<Item = (N, Vec<u8>)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name.as_ref(), &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The archive of training pictures: a tar of one tar a synset.
pub fn train_tar(n: usize) -> Vec<u8> {
    // As they were made: in the order of the names, not of the ids.
    let mut order: Vec<usize> = (0..3).collect();
    order.sort_by_key(|&c| SYNSETS[c].0);
    tar(order.into_iter().map(|class| {
        let wnid = SYNSETS[class].0;
        let inner = tar((0..n).map(|i| (format!("{wnid}_{}.JPEG", 7 * i), jpeg(class, i))));
        (format!("{wnid}.tar"), inner)
    }))
}

/// The class of validation or test picture `i` (from 0).
pub fn truth(i: usize) -> usize {
    (2 * i + 1) % 3
}

pub fn truth_text(n: usize) -> String {
    (0..n).map(|i| format!("{}\n", truth(i) + 1)).collect()
}

/// Pictures with numbers: `PREFIX00000001.JPEG` and so on.
pub fn flat_tar(prefix: &str, n: usize) -> Vec<u8> {
    // In another order than that of the numbers.
    tar((0..n).rev().map(|i| (format!("{prefix}{:08}.JPEG", i + 1), jpeg(truth(i), 100 + i))))
}

/// A development kit with a meta.mat and a ground truth.
pub fn devkit(meta: &[u8], folder: &str, truth_name: &str, truth: &str) -> Vec<u8> {
    gzip(&tar([
        (format!("{folder}/readme.txt"), b"what it is".to_vec()),
        (format!("{folder}/data/meta.mat"), meta.to_vec()),
        (format!("{folder}/data/{truth_name}"), truth.as_bytes().to_vec()),
    ]))
}

/// ILSVRC-2012 as downloaded, `n` training pictures a class and as many for validation as `val` says.
pub fn ilsvrc2012(folder: &Path, n: usize, val: usize) {
    write(folder.join("ILSVRC2012_img_train.tar"), train_tar(n));
    write(folder.join("ILSVRC2012_img_val.tar"), flat_tar("ILSVRC2012_val_", val));
    let kit = devkit(
        &fixture("meta-2012.mat"),
        "ILSVRC2012_devkit_t12",
        "ILSVRC2012_validation_ground_truth.txt",
        &truth_text(val),
    );
    write(folder.join("ILSVRC2012_devkit_t12.tar.gz"), kit);
}

/// ILSVRC-2010 as downloaded, with test pictures and their classes.
pub fn ilsvrc2010(folder: &Path, n: usize, val: usize) {
    write(folder.join("ILSVRC2010_images_train.tar"), train_tar(n));
    write(folder.join("ILSVRC2010_images_val.tar"), flat_tar("val/ILSVRC2010_val_", val));
    write(folder.join("ILSVRC2010_images_test.tar"), flat_tar("test/ILSVRC2010_test_", val));
    write(folder.join("ILSVRC2010_test_ground_truth.txt"), truth_text(val));
    let kit = devkit(
        &fixture("meta-2010.mat"),
        "devkit-1.0",
        "ILSVRC2010_validation_ground_truth.txt",
        &truth_text(val),
    );
    write(folder.join("ILSVRC2010_devkit-1.0.tar.gz"), kit);
}

/// WebDataset shards; labels as names in `.cls` for training, in `.json` for validation.
pub fn webdataset(folder: &Path, n: usize, val: usize) {
    const NAMES: [&str; 3] = ["blue", "green", "red"];
    for shard in 0..2 {
        let samples = (0..3 * n).filter(|i| i % 2 == shard).flat_map(|i| {
            let (class, key) = (i % 3, format!("./some/{i:06}"));
            [(format!("{key}.jpg"), jpeg(class, i)), (format!("{key}.cls"), NAMES[class].as_bytes().to_vec())]
        });
        write(folder.join(format!("set-train-{shard:04}.tar")), tar(samples));
    }
    let samples = (0..val).flat_map(|i| {
        let (class, key) = (i % 3, format!("{i:06}"));
        let json = format!("{{\"label\": {:?}, \"width\": 24}}", NAMES[class]);
        [(format!("{key}.json"), json.into_bytes()), (format!("{key}.jpg"), jpeg(class, 100 + i))]
    });
    write(folder.join("set-val-0000.tar"), tar(samples));
}

/// Hugging Face's layout.
pub fn parquet(folder: &Path) {
    write(folder.join("data/train-00000-of-00001.parquet"), fixture("train.parquet"));
    write(folder.join("data/validation-00000-of-00001.parquet"), fixture("validation.parquet"));
    write(folder.join("README.md"), "---\nlicense: mit\n---\n");
}

/// A list with a header, pictures in folders that say nothing; gives the list's path.
pub fn list(folder: &Path, n: usize, val: usize) -> PathBuf {
    let mut text = "filename,width,label,split\n".to_string();
    for i in 0..3 * n + val {
        let (class, name) = (i % 3, format!("all, in one/{i:04}.jpg"));
        write(folder.join(&name), jpeg(class, i));
        let split = if i < 3 * n { "train" } else { "val" };
        text += &format!("\"{name}\",24,{},{split}\n", ["blue", "green", "red"][class]);
    }
    let path = folder.join("pictures.csv");
    write(&path, text);
    path
}

/// Records of CIFAR's binary files: `labels` before each picture.
pub fn cifar_records(n: usize, first: usize, labels: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in first..first + n {
        let picture = picture(i % 3, i, 32, 32);
        bytes.extend(labels(i % 3));
        for channel in 0..3 {
            bytes.extend(picture.pixels().map(|p| p[channel]));
        }
    }
    bytes
}

/// CIFAR-10, binary version, of three classes.
pub fn cifar10(folder: &Path, n: usize, val: usize) {
    let folder = folder.join("cifar-10-batches-bin");
    for batch in 0..5 {
        let records = cifar_records(n, batch * n, |class| vec![class as u8]);
        write(folder.join(format!("data_batch_{}.bin", batch + 1)), records);
    }
    write(folder.join("test_batch.bin"), cifar_records(val, 100, |class| vec![class as u8]));
    write(folder.join("batches.meta.txt"), "blue\ngreen\nred\n\n");
    write(folder.join("readme.html"), "<html></html>");
}

/// CIFAR-100, binary version, of three fine classes.
pub fn cifar100(folder: &Path, n: usize, val: usize) {
    write(folder.join("train.bin"), cifar_records(n, 0, |class| vec![1 - class as u8 / 2, class as u8]));
    write(folder.join("test.bin"), cifar_records(val, 100, |class| vec![0, class as u8]));
    write(folder.join("fine_label_names.txt"), "blue\ngreen\nred\n");
    write(folder.join("coarse_label_names.txt"), "cold\nwarm\n");
}

/// Tiny-ImageNet as downloaded, of three classes.
pub fn tiny_imagenet(folder: &Path, n: usize, val: usize) {
    let mut words = "n00000001\tentity\n".to_string();
    let mut ids = String::new();
    for (class, (wnid, word)) in SYNSETS.iter().enumerate() {
        words += &format!("{wnid}\t{word}\n");
        ids += &format!("{wnid}\n");
        for i in 0..n {
            write(folder.join(format!("train/{wnid}/images/{wnid}_{i}.JPEG")), jpeg(class, i));
        }
        write(folder.join(format!("train/{wnid}/{wnid}_boxes.txt")), "x_0.JPEG\t0\t0\t63\t63\n");
    }
    let mut annotations = String::new();
    for i in 0..val {
        write(folder.join(format!("val/images/val_{i}.JPEG")), jpeg(i % 3, 100 + i));
        annotations += &format!("val_{i}.JPEG\t{}\t0\t32\t44\t62\n", SYNSETS[i % 3].0);
    }
    write(folder.join("val/val_annotations.txt"), annotations);
    write(folder.join("test/images/test_0.JPEG"), jpeg(0, 0));
    write(folder.join("wnids.txt"), ids);
    write(folder.join("words.txt"), words);
}

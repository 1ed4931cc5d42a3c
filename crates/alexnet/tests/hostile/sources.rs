//! The formats of data: archives, lists, records, MATLAB's and Parquet's files. Each mutant is put in the place where
//! the format has it, the source is listed, and what is listed is read.

use crate::harness::{Reached, Scratch, Target, refused};
use crate::make;
use alexnet::data::source::{Format, Reader, list};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::io::Write;
use std::path::Path;

/// Lists a source and reads what it lists, as bytes: decoding pictures is another parser.
pub fn read(path: &Path, format: Format, stages: &[&str], stage_of: impl Fn(&str) -> usize) -> Reached {
    match list(path, Some(format), &mut |_, _| {}) {
        Err(error) => {
            let error = error.to_string();
            Reached::refused(stage_of(&error), error)
        }
        Ok(listing) => {
            let reader = Reader::new(&listing);
            for entry in &listing.entries {
                // A picture may be refused; the set is not.
                let _ = reader.read(entry);
            }
            Reached::end(stages)
        }
    }
}

fn tokens(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}

/// A picture of a few dozen bytes.
pub fn small() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(2, 2, image::Rgb([200, 30, 30]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

#[test]
fn mutated_lists() {
    const STAGES: [&str; 3] = ["not a list", "a list, refused", "accepted"];
    let place = Scratch::new("list.csv");
    let base = place.put(b"").parent().unwrap().to_path_buf();
    for name in ["a.png", "b.png", "c d.png"] {
        make::write(base.join(name), small());
    }
    Target {
        name: "list of paths and labels",
        seeds: vec![
            b"path,label,split\na.png,cat,train\n\"c d.png\",dog,val\nb.png,dog,train\n".to_vec(),
            b"a.png,0\nb.png,1\n\nc d.png,2\n".to_vec(),
            b"./a.png;0\r\nb.png;1\r\n".to_vec(),
        ],
        tokens: tokens(&["\"", "\"\"", "a.png", "../", "/dev/zero", "label", ";", "\t", "99999", "\u{feff}"]),
        text: true,
        repair: &|_| (),
        stages: &STAGES,
        deep: (1, 0.4),
        parse: &|bytes| {
            read(place.put(bytes), Format::List, &STAGES, |e| {
                let outside = ["expected in each line", "columns", "no column", "UTF-8", "an empty list"];
                usize::from(!outside.iter().any(|w| e.contains(w)))
            })
        },
    }
    .run();
}

#[test]
fn mutated_cifar_records() {
    const STAGES: [&str; 3] = ["wrong size", "a wrong label", "accepted"];
    let place = Scratch::new("train.bin");
    let base = place.put(b"").parent().unwrap().to_path_buf();
    make::cifar100(&base, 1, 1);
    let record = make::cifar_records(1, 1, |class| vec![0, class as u8]);
    Target {
        name: "CIFAR records",
        seeds: vec![record],
        tokens: vec![],
        text: false,
        // To whole records again.
        repair: &|bytes| bytes.resize(bytes.len().div_ceil(3074).clamp(1, 3) * 3074, 1),
        stages: &STAGES,
        deep: (1, 0.8),
        parse: &|bytes| {
            place.put(bytes);
            read(&base, Format::Cifar, &STAGES, |e| usize::from(e.contains("has the label")))
        },
    }
    .run();
}

#[test]
fn mutated_validation_annotations() {
    const STAGES: [&str; 3] = ["a wrong line", "pictures that are not there", "accepted"];
    let place = Scratch::new("val_annotations.txt");
    let base = place.put(b"").parent().unwrap().to_path_buf();
    make::tiny_imagenet(&base, 1, 3);
    let good = std::fs::read(base.join("val/val_annotations.txt")).unwrap();
    Target {
        name: "Tiny-ImageNet's annotations",
        seeds: vec![good],
        tokens: tokens(&["n00000010", "val_0.JPEG", "\t", "\t\t", "\n", "../"]),
        text: true,
        repair: &|_| (),
        stages: &STAGES,
        deep: (1, 0.15),
        parse: &|bytes| {
            make::write(base.join("val/val_annotations.txt"), bytes);
            read(&base, Format::TinyImagenet, &STAGES, |e| usize::from(e.contains("not in val/images")))
        },
    }
    .run();
}

/// The variable of a MATLAB file that is not compressed, compressed.
fn compressed(meta: &[u8]) -> Vec<u8> {
    let (header, body) = meta.split_at(meta.len().min(128));
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(body).unwrap();
    let packed = encoder.finish().unwrap();
    [header, &15u32.to_le_bytes(), &(packed.len() as u32).to_le_bytes(), &packed].concat()
}

#[test]
fn mutated_development_kits() {
    const STAGES: [&str; 4] = ["not MATLAB's", "damaged", "wrong synsets", "accepted"];
    let place = Scratch::new("ILSVRC2010_devkit-1.0.tar.gz");
    let base = place.put(b"").parent().unwrap().to_path_buf();
    make::ilsvrc2010(&base, 1, 2);
    // One class fewer or more is another kit, and a good one.
    let stage_of = |e: &str| match e {
        e if e.contains("not a MATLAB 5 file") || e.contains("MATLAB 7.3") => 0,
        e if ["synset", "is not an id from", "ground truth has"].iter().any(|w| e.contains(w)) => 2,
        _ => 1,
    };
    let kit = |meta: &[u8]| {
        let name = "ILSVRC2010_validation_ground_truth.txt";
        let tar = make::tar([
            ("devkit-1.0/data/meta.mat", meta.to_vec()),
            (&format!("devkit-1.0/data/{name}"), make::truth_text(2).into_bytes()),
        ]);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    // The second variable alone, so that it can stand compressed.
    let whole = make::fixture("meta-2010.mat");
    let first = 8 + u32::from_le_bytes(whole[132..136].try_into().unwrap()) as usize;
    let synsets = [&whole[..128], &whole[128 + first..]].concat();
    Target {
        name: "meta.mat",
        seeds: vec![whole, synsets],
        tokens: tokens(&[
            "ILSVRC2010_ID",
            "WNID",
            "synsets",
            "num_children",
            "\u{e}\0\0\0",
            "\u{1}\0\u{4}\0",
        ]),
        text: false,
        repair: &|_| (),
        stages: &STAGES,
        deep: (2, 0.15),
        parse: &|bytes| {
            // Half of them compressed anew: what the packing guards is reached all the same.
            let packed = bytes.len() % 2 == 1 && bytes.len() > 128;
            make::write(place.put(b""), kit(&if packed { compressed(bytes) } else { bytes.to_vec() }));
            read(&base, Format::Ilsvrc, &STAGES, stage_of)
        },
    }
    .run();
}

#[test]
fn mutated_parquet_files() {
    const STAGES: [&str; 4] = ["no Parquet", "damaged", "wrong labels", "accepted"];
    let place = Scratch::new("x.parquet");
    let stage_of = |e: &str| match e {
        e if e.contains("not a Parquet file") => 0,
        e if e.contains("label") || e.contains("class") => 2,
        _ => 1,
    };
    Target {
        name: "Parquet files",
        seeds: vec![make::fixture("plain.parquet"), make::fixture("validation.parquet")],
        tokens: tokens(&["PAR1", "image", "label", "bytes", "huggingface", "{\"info\":", "\u{15}\u{6}"]),
        text: false,
        // The end mark, and a length of the metadata that fits, in which the format keeps its door.
        repair: &|bytes| {
            if bytes.len() > 700 {
                let at = bytes.len() - 4;
                bytes[at..].copy_from_slice(b"PAR1");
            }
        },
        stages: &STAGES,
        deep: (1, 0.8),
        parse: &|bytes| read(place.put(bytes), Format::Parquet, &STAGES, stage_of),
    }
    .run();
}

#[test]
fn pages_that_lie_are_refused() {
    const STAGES: [&str; 2] = ["refused", "accepted"];
    let place = Scratch::new("x.parquet");
    let plain = make::fixture("plain.parquet");
    // The first page header: type (a dictionary page), then the unpacked and the stored size, as zigzag varints.
    assert_eq!(plain[4..6], [0x15, 0x04], "field 1: type 2");
    assert_eq!(plain[6], 0x15, "field 2: the unpacked size");
    let mut lie = plain.clone();
    // 2 GiB - 1 takes five bytes where the true size took one: the bytes that are lost are those of the page.
    lie.splice(7..8, [0xFE, 0xFF, 0xFF, 0xFF, 0x0F]);
    lie.drain(40..44);
    refused("a page of 2 GiB", &lie, &["damaged: a page of", "unpacked 2147483647"], |bytes| {
        read(place.put(bytes), Format::Parquet, &STAGES, |_| 0)
    });
}

//! Decoding and resizing against Pillow's, torchvision's and OpenCV's results, colour statistics against NumPy's (`golden/pictures.py` and `golden/packs.py`
//! made the fixtures).

use alexnet::data::decode::{Exif, Picture, decode, decode_file};
use alexnet::data::pack::NewPicture;
use alexnet::data::resize::{Filter, Fit, Frame, Framing, Squarer};
use alexnet::data::{Pack, PackOptions, Stats};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Largest and mean difference.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let sum: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    (a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap(), sum as f64 / a.len() as f64)
}

#[test]
fn cmyk_and_ycck_are_decoded_as_pillow_does() {
    let golden = std::fs::read(fixture("decoded.bin")).unwrap();
    for (name, expected) in ["cmyk.jpg", "ycck.jpg"].into_iter().zip(golden.chunks_exact(24 * 40 * 3)) {
        let picture = decode_file(&fixture(name), Exif::Apply).unwrap();
        assert_eq!((picture.width, picture.height), (40, 24));
        let (most, mean) = difference(&picture.pixels, expected);
        assert!(most <= 3 && mean <= 0.6, "{name}: {most} {mean}");
    }
}

#[test]
fn every_orientation_shows_the_same_picture() {
    let upright = decode_file(&fixture("orient-1.jpg"), Exif::Ignore).unwrap();
    assert_eq!((upright.width, upright.height), (32, 16));
    for mark in 1..=8 {
        let path = fixture(&format!("orient-{mark}.jpg"));
        let shown = decode_file(&path, Exif::Apply).unwrap();
        assert_eq!((shown.width, shown.height), (32, 16), "orientation {mark}");
        let (most, _) = difference(&shown.pixels, &upright.pixels);
        assert!(most <= 4, "orientation {mark}: {most}");
        let stored = decode_file(&path, Exif::Ignore).unwrap();
        assert_eq!((stored.width, stored.height), if mark >= 5 { (16, 32) } else { (32, 16) });
        assert!(mark == 1 || mark >= 5 || difference(&stored.pixels, &upright.pixels).0 > 50);
    }
}

#[test]
fn resizing_is_pillows_antialiased_bilinear() {
    let scene: Picture = decode_file(&fixture("resize-in.png"), Exif::Apply).unwrap();
    let golden = std::fs::read(fixture("resize-out.bin")).unwrap();
    let (shrunk, rest) = golden.split_at(63 * 40 * 3);
    let (small, enlarged) = rest.split_at(16 * 16 * 3);
    let mut squarer = Squarer::default();
    let framing = |side, fit| Framing { side, fit, resize: Filter::Bilinear };
    // 97×61 at side 40 is 63×40, of which the square begins at column 12 (11.5, rounded to even).
    let square: Vec<u8> =
        (0..40).flat_map(|y| shrunk[(y * 63 + 12) * 3..][..40 * 3].iter().copied()).collect();
    for (name, got, want) in [
        ("shorter side 40", squarer.square(&scene, framing(40, Fit::CentralSquare)), &square[..]),
        ("warped to 16", squarer.square(&scene, framing(16, Fit::Warp)), small),
        ("warped to 130", squarer.square(&scene, framing(130, Fit::Warp)), enlarged),
    ] {
        let (most, mean) = difference(&got, want);
        assert!(most <= 1 && mean < 0.25, "{name}: {most} {mean}");
    }
}

#[test]
fn every_kind_of_file_shows_what_pillow_shows() {
    let golden = std::fs::read(fixture("kinds.bin")).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(fixture("kinds")).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let mut rest = &golden[..];
    for path in names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let picture = decode_file(&path, Exif::Apply).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (expected, after) = rest.split_at(picture.width * picture.height * 3);
        rest = after;
        let (most, mean) = difference(&picture.pixels, expected);
        // Decoders of JPEG may round differently. Chroma that is halved both ways is interpolated by the same triangle, but
        // rounded in between: up to 3 levels at sharp coloured edges, and 4 in one place of the last row.
        let limit = match name.as_str() {
            n if n.contains("-420") => (4, 0.5),
            "ycck.jpg" | "cmyk.jpg" => (3, 0.6),
            n if n.ends_with(".jpg") => (2, 0.5),
            _ => (0, 0.0),
        };
        assert!(most <= limit.0 && mean <= limit.1, "{name}: {most} {mean}");
    }
    assert!(rest.is_empty());
}

#[test]
fn kinds_of_jpeg_that_are_not_decoded_are_named() {
    let good = std::fs::read(fixture("kinds/baseline-444.jpg")).unwrap();
    let frame = (2..).find(|&i| good[i..i + 2] == [0xFF, 0xC0]).unwrap();
    for (at, value, word) in [(1, 0xC9, "arithmetic"), (1, 0xCA, "arithmetic"), (4, 12, "12 bits a sample")] {
        let mut bytes = good.clone();
        bytes[frame + at] = value;
        let why = decode(&bytes, Exif::Apply).unwrap_err();
        assert!(why.contains(word) && why.contains("convert"), "{why}");
    }
}

#[test]
fn every_rule_of_resizing_is_that_of_its_tool() {
    let scene = decode_file(&fixture("resize-in.png"), Exif::Apply).unwrap();
    let golden = std::fs::read(fixture("framed.bin")).unwrap();
    let mut squarer = Squarer::default();
    let mut square = |side, resize| squarer.square(&scene, Framing { side, fit: Fit::CentralSquare, resize });
    let mut results = vec![
        ("torchvision, bilinear", square(40, Filter::Bilinear)),
        ("torchvision, bicubic", square(40, Filter::Cubic)),
    ];
    let of_2014 = [40, 75].map(|side| square(side, Filter::AreaCubic));
    let mut warped = |side, resize| squarer.square(&scene, Framing { side, fit: Fit::Warp, resize });
    results.push(("Pillow, bicubic", warped(30, Filter::Cubic)));
    let whole = Frame::whole(&scene.pixels[..], scene.width, scene.height);
    for (left, top, width, height) in [(31, 9, 50, 40), (70, 40, 15, 11)] {
        let part = Frame { left, top, width, height, ..whole.clone() };
        results.push(("resized_crop", squarer.resized(&part, 28, 28, Filter::Bilinear)));
    }
    let [shrunk, enlarged] = of_2014;
    results.push(("2014, shrinking", shrunk));
    results.push(("2014, enlarging", enlarged));
    results.push(("OpenCV's area", squarer.resized(&whole, 33, 20, Filter::Area)));
    for (w, h) in [(33, 20), (130, 70)] {
        results.push(("OpenCV's linear", squarer.resized(&whole, w, h, Filter::Linear)));
    }
    let mut rest = &golden[..];
    for (name, got) in results {
        let (expected, after) = rest.split_at(got.len());
        rest = after;
        let (most, mean) = difference(&got, expected);
        assert!(most <= 1 && mean < 0.25, "{name}: {most} {mean}");
    }
    assert!(rest.is_empty());
}

#[test]
fn statistics_are_numpys() {
    let (n, side) = (9, 16);
    let pixel = |i: usize, k: usize| ((i * i + 31 * i * k + 77 * k + i / 7) % 251) as u8;
    let pictures = (0..n).map(|k| NewPicture {
        path: k.to_string(),
        label: 0,
        split: None,
        pixels: Ok((0..side * side * 3).map(|i| pixel(i, k)).collect()),
    });
    let options = PackOptions { side, ..Default::default() };
    let pack = Pack::from_pictures(vec!["all".into()], &options, pictures).unwrap();
    let every: Vec<u32> = (0..n as u32).collect();
    let stats = Stats::compute(&pack, &every, 2).unwrap();
    let text = include_str!("../../../golden/statistics.json");
    let golden: serde_json::Value = serde_json::from_str(text).unwrap();
    let close = |name: &str, got: Vec<f64>| {
        let mut want = Vec::new();
        flatten(&golden[name], &mut want);
        assert_eq!(want.len(), got.len(), "{name}");
        let scale = want.iter().fold(0f64, |a, b| a.max(b.abs()));
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() <= 1e-6 * w.abs().max(1e-3 * scale), "{name}: {g} {w}");
        }
    };
    close("mean_picture", stats.mean_picture.iter().map(|&v| f64::from(v)).collect());
    close("channel_mean", stats.channel_mean.to_vec());
    close("channel_std", stats.channel_std.to_vec());
    close("covariance", stats.covariance.as_flattened().to_vec());
    close("sigma", stats.axes.sigma.iter().map(|&v| f64::from(v)).collect());
    close("axes", stats.axes.axes.as_flattened().iter().map(|&v| f64::from(v)).collect());
}

fn flatten(value: &serde_json::Value, into: &mut Vec<f64>) {
    match value {
        serde_json::Value::Array(values) => values.iter().for_each(|v| flatten(v, into)),
        other => into.push(other.as_f64().unwrap()),
    }
}

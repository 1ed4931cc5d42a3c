//! Decoding and resizing against Pillow's results (`golden/pictures.py` made the fixtures).

use alexnet::data::decode::{Exif, Picture, decode_file};
use alexnet::data::resize::{Fit, Squarer};
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
    // 97×61 at side 40 is 63×40, of which the square begins at column 12 (11.5, rounded to even).
    let square: Vec<u8> =
        (0..40).flat_map(|y| shrunk[(y * 63 + 12) * 3..][..40 * 3].iter().copied()).collect();
    for (name, got, want) in [
        ("shorter side 40", squarer.square(&scene, 40, Fit::CentralSquare), &square[..]),
        ("warped to 16", squarer.square(&scene, 16, Fit::Warp), small),
        ("warped to 130", squarer.square(&scene, 130, Fit::Warp), enlarged),
    ] {
        let (most, mean) = difference(&got, want);
        assert!(most <= 1 && mean < 0.25, "{name}: {most} {mean}");
    }
}

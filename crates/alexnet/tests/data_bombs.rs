//! Files that announce more than they hold are refused at once, without taking memory. Alone in its program, so
//! that the memory measured is its own.

use alexnet::data::decode::{Exif, decode_file};
use std::time::{Duration, Instant};

fn png_header(width: u32, height: u32, bits: u8, colour: u8) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([bits, colour, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    png.extend(13u32.to_be_bytes());
    png.extend(&chunk);
    png.extend(crc32(&chunk).to_be_bytes());
    // A few megabytes of data, as a well compressed bomb has.
    let data = [&b"IDAT"[..], &[0x78, 0x9C], &vec![0; 4 << 20]].concat();
    png.extend((data.len() as u32 - 4).to_be_bytes());
    png.extend(&data);
    png.extend(crc32(&data).to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &b in bytes {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// A small JPEG whose frame header claims another size.
fn jpeg_claiming(width: u16, height: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new(&mut out);
    image::ImageEncoder::write_image(encoder, &[90; 16 * 16 * 3], 16, 16, image::ExtendedColorType::Rgb8)
        .unwrap();
    let frame = out.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    out[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    out[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    out
}

/// The most memory that this process has had, bytes; 0 where the system does not say.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB").to_string();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn bombs_are_refused_at_once_and_without_memory() {
    let folder = tempfile::tempdir().unwrap();
    let gif = [&b"GIF89a"[..], &[0xFF; 4], &[0xF0, 0, 0], &[0; 100]].concat();
    let many_scans = {
        let jpeg = jpeg_claiming(16, 16);
        let scan = jpeg.windows(2).position(|w| w == [0xFF, 0xDA]).unwrap();
        let (head, tail) = jpeg.split_at(scan);
        let mut long = head.to_vec();
        for _ in 0..1000 {
            long.extend(&tail[..tail.len() - 2]);
        }
        long.extend([0xFF, 0xD9]);
        long
    };
    for (name, bytes, reason) in [
        ("big.png", png_header(60_000, 60_000, 8, 2), "60000×60000"),
        ("deep.png", png_header(9_000, 9_000, 16, 6), "512 MiB"),
        ("big.jpg", jpeg_claiming(65_535, 65_535), "65535×65535"),
        ("big.gif", gif, "65535×65535"),
        ("scans.jpg", many_scans, "scans"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let (before, begin) = (peak_bytes(), Instant::now());
        let refusal = decode_file(&path, Exif::Apply).unwrap_err();
        let (took, grew) = (begin.elapsed(), peak_bytes() - before);
        assert!(refusal.contains(reason), "{name}: {refusal}");
        assert!(took < Duration::from_millis(100), "{name}: {took:?}");
        assert!(grew < 64 << 20, "{name}: {grew} bytes");
    }
}

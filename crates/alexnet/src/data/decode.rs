//! From a file to RGB pixels. The content decides what a file is, never its name; whatever cannot be decoded is
//! refused with a reason that fits in a line.

use super::jpeg;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// Most pixels of a picture: 100 million.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Most memory that decoding one picture may ask for.
pub const MAX_DECODER_BYTES: u64 = 512 << 20;
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// Pictures of more pixels are decoded one at a time where there is a [`Gate`].
pub const LARGE_PIXELS: u64 = 16_000_000;
/// Read first: enough to know the format and, for the formats that compress a thousandfold, the size in pixels.
const HEAD_BYTES: usize = 4096;

/// What to do with the orientation that a camera wrote into the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exif {
    /// Turn the picture as a viewer would.
    #[default]
    Apply,
    /// Take the pixels as stored, as the papers' tools did.
    Ignore,
}

/// A decoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// RGB, rows from the top: (height, width, 3).
    pub pixels: Vec<u8>,
}

/// Lets the pictures of more than [`LARGE_PIXELS`] through one at a time, so that the memory of many decoding threads
/// is that of as many ordinary pictures and a single large one.
#[derive(Debug, Default)]
pub struct Gate(Mutex<()>);

/// Held by a large picture until it has been made small.
pub type Turn<'a> = Option<MutexGuard<'a, ()>>;

impl Gate {
    /// Waits for its turn if the picture is large.
    fn enter(&self, pixels: u64) -> Turn<'_> {
        (pixels > LARGE_PIXELS).then(|| self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// Decodes a file. Never waits: what is not a regular file is refused unopened.
///
/// # Errors
/// The reason, without the path.
pub fn decode_file(path: &Path, exif: Exif) -> Result<Picture, String> {
    decode(&read_file(path)?, exif)
}

/// The bytes of a picture file, if it is a regular file of sensible size and does not announce too many pixels.
///
/// # Errors
/// The reason, without the path.
pub fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    read_file_with(path, &mut |bytes| Vec::with_capacity(bytes))
}

/// As [`read_file`], in memory for so many bytes that `memory` gives.
pub(super) fn read_file_with(path: &Path, memory: &mut Memory) -> Result<Vec<u8>, String> {
    let about = std::fs::metadata(path).map_err(|e| io_reason(&e))?;
    check_regular(&about)?;
    let mut file = open_without_waiting(path).map_err(|e| io_reason(&e))?;
    // The name may have changed its meaning since; the open file cannot.
    let about = file.metadata().map_err(|e| io_reason(&e))?;
    check_regular(&about)?;
    read_bounded(&mut file, about.len(), memory)
}

/// Gives a buffer with room for so many bytes, with anything in it.
pub(super) type Memory<'a> = dyn FnMut(usize) -> Vec<u8> + 'a;

/// The `length` bytes of a picture file that lies anywhere, if that is a sensible size and it does not announce too
/// many pixels. Fewer if there are no more.
pub(super) fn read_bounded(
    from: &mut impl Read,
    length: u64,
    memory: &mut Memory,
) -> Result<Vec<u8>, String> {
    if length == 0 {
        return Err("empty file".into());
    }
    if length > MAX_FILE_BYTES {
        return Err(format!("a file of {length} bytes; at most {MAX_FILE_BYTES} are read"));
    }
    let length = length as usize;
    let mut head = [0; HEAD_BYTES];
    let head_len = fill(from, &mut head[..length.min(HEAD_BYTES)])?;
    let head = &head[..head_len];
    let format = sniff(head)?;
    if let Some((w, h)) = announced_size(format, head) {
        check_size(w, h)?;
    }
    let mut bytes = memory(length);
    bytes.resize(length, 0);
    bytes[..head_len].copy_from_slice(head);
    let rest = fill(from, &mut bytes[head_len..])?;
    bytes.truncate(head_len + rest);
    Ok(bytes)
}

/// Reads until the buffer is full or there is no more; how many bytes.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, String> {
    let mut done = 0;
    while done < buffer.len() {
        match from.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io_reason(&e)),
        }
    }
    Ok(done)
}

/// Decodes the bytes of a file. Gray is repeated in three channels, 16 bits are rounded to 8, palettes and CMYK are
/// converted, transparency is dropped (as Pillow's `convert("RGB")` does); of an animation the first picture is
/// taken.
///
/// # Errors
/// The reason.
pub fn decode(bytes: &[u8], exif: Exif) -> Result<Picture, String> {
    decode_gated(bytes, exif, &Gate::default()).map(|(picture, _)| picture)
}

/// As [`decode`], waiting at the gate if the picture is large; keep the turn as long as the picture.
///
/// # Errors
/// The reason.
pub fn decode_gated<'a>(bytes: &[u8], exif: Exif, gate: &'a Gate) -> Result<(Picture, Turn<'a>), String> {
    decode_with(bytes, exif, gate, &mut |bytes| Vec::with_capacity(bytes))
}

/// As [`decode_gated`], the pixels in memory that `memory` gives, if they come as they are wanted.
pub(super) fn decode_with<'a>(
    bytes: &[u8],
    exif: Exif,
    gate: &'a Gate,
    memory: &mut Memory,
) -> Result<(Picture, Turn<'a>), String> {
    let format = sniff(bytes)?;
    // The decoders are not expected to panic; if one does, one picture is lost and not the run.
    let decoded = std::panic::AssertUnwindSafe(|| match format {
        ImageFormat::Jpeg => decode_jpeg(bytes, exif, gate, memory),
        _ => decode_as(bytes, format, exif, gate),
    });
    std::panic::catch_unwind(decoded)
        .unwrap_or_else(|_| Err(format!("the {} decoder failed on it", name(format))))
}

/// Width and height as a viewer would show them, from the head of a file.
///
/// # Errors
/// The reason.
pub fn size_px(bytes: &[u8], exif: Exif) -> Result<(usize, usize), String> {
    let (mut decoder, _) = open(bytes, sniff(bytes)?)?;
    let (w, h) = decoder.dimensions();
    let turned = exif == Exif::Apply
        && decoder.orientation().is_ok_and(|o| {
            use image::metadata::Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
            matches!(o, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
        });
    let (w, h) = if turned { (h, w) } else { (w, h) };
    Ok((w as usize, h as usize))
}

fn decode_jpeg<'a>(
    bytes: &[u8],
    exif: Exif,
    gate: &'a Gate,
    memory: &mut Memory,
) -> Result<(Picture, Turn<'a>), String> {
    let complete = match jpeg::walk(bytes)? {
        jpeg::Walk::Complete => None,
        jpeg::Walk::NoEnd => Some(jpeg::with_false_end(bytes, 0x00)),
    };
    let head = jpeg::Head::read(complete.as_deref().unwrap_or(bytes))?;
    let (w, h) = head.size_px();
    check_size(w, h)?;
    let turn = gate.enter(u64::from(w) * u64::from(h));
    let orientation = match exif {
        Exif::Apply => head.orientation(),
        Exif::Ignore => Orientation::NoTransforms,
    };
    let mut pixels = memory(w as usize * h as usize * 3);
    head.decode(&mut pixels)?;
    if complete.is_some() {
        let mut other = Vec::new();
        jpeg::Head::read(&jpeg::with_false_end(bytes, 0x6D))?.decode(&mut other)?;
        if pixels != other {
            return Err("truncated: the picture's data ends too early".into());
        }
    }
    let rgb = RgbImage::from_raw(w, h, pixels).ok_or("fewer pixels than its head announces")?;
    Ok((upright(DynamicImage::ImageRgb8(rgb), orientation), turn))
}

/// A picture turned as its orientation asks.
fn upright(mut picture: DynamicImage, orientation: Orientation) -> Picture {
    picture.apply_orientation(orientation);
    let rgb = picture.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Picture { width, height, pixels: rgb.into_raw() }
}

/// A decoder that has read the picture's head and found it within the limits, and its number of pixels.
fn open<'a>(bytes: &'a [u8], format: ImageFormat) -> Result<(impl ImageDecoder + 'a, u64), String> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| image_reason(&e, format))?;
    let (w, h) = decoder.dimensions();
    check_size(w, h)?;
    if decoder.total_bytes() > MAX_DECODER_BYTES {
        return Err(format!("decoding it would take more than {} MiB", MAX_DECODER_BYTES >> 20));
    }
    Ok((decoder, u64::from(w) * u64::from(h)))
}

fn decode_as<'a>(
    bytes: &[u8],
    format: ImageFormat,
    exif: Exif,
    gate: &'a Gate,
) -> Result<(Picture, Turn<'a>), String> {
    let (mut decoder, pixels) = open(bytes, format)?;
    let turn = gate.enter(pixels);
    let orientation = match exif {
        // A damaged EXIF block does not spoil the picture.
        Exif::Apply => decoder.orientation().unwrap_or(Orientation::NoTransforms),
        Exif::Ignore => Orientation::NoTransforms,
    };
    let picture = DynamicImage::from_decoder(decoder).map_err(|e| image_reason(&e, format))?;
    Ok((upright(picture, orientation), turn))
}

fn check_size(w: u32, h: u32) -> Result<(), String> {
    if w == 0 || h == 0 {
        return Err(format!("a picture of {w}×{h} pixels"));
    }
    let pixels = u64::from(w) * u64::from(h);
    if pixels > MAX_PIXELS {
        return Err(format!("{w}×{h} pixels; at most {} million are decoded", MAX_PIXELS / 1_000_000));
    }
    Ok(())
}

/// The size in the header of the formats in which few bytes may announce many pixels.
fn announced_size(format: ImageFormat, head: &[u8]) -> Option<(u32, u32)> {
    let be = |at: usize| head.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().expect("four bytes")));
    let le16 = |at: usize| head.get(at..at + 2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])));
    match format {
        ImageFormat::Png => Some((be(16)?, be(20)?)),
        ImageFormat::Gif => Some((le16(6)?, le16(8)?)),
        _ => None,
    }
}

/// What the first bytes of a file say it is.
///
/// # Errors
/// Why this is no picture that can be decoded, naming what it seems to be.
pub fn sniff(head: &[u8]) -> Result<ImageFormat, String> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    if head.is_empty() {
        return Err("empty file".into());
    }
    match image::guess_format(head) {
        Ok(format @ (Jpeg | Png | Gif | Bmp | WebP | Tiff)) => return Ok(format),
        Ok(format) => return Err(format!("{} is not supported; convert it to JPEG or PNG", name(format))),
        Err(_) => {}
    }
    if head.len() > 12 && &head[4..8] == b"ftyp" {
        let brand = String::from_utf8_lossy(&head[8..12]);
        return Err(match &head[8..12] {
            b"heic" | b"heix" | b"mif1" | b"msf1" | b"hevc" => {
                "HEIC is not supported; convert it to JPEG or PNG".into()
            }
            _ => format!("not a picture but a video or similar (brand {brand:?})"),
        });
    }
    let text = String::from_utf8_lossy(&head[..head.len().min(256)]).trim_start().to_ascii_lowercase();
    for (start, what) in [
        ("<!doctype html", "an HTML page"),
        ("<html", "an HTML page"),
        ("<head", "an HTML page"),
        ("<svg", "an SVG drawing"),
        ("<?xml", "an XML file"),
        ("%pdf", "a PDF document"),
        ("pk\u{3}\u{4}", "a ZIP archive"),
        ("version https://git-lfs", "a Git LFS pointer; fetch the real file"),
    ] {
        if text.starts_with(start) {
            return Err(format!("not a picture but {what}"));
        }
    }
    let start: String = head.iter().take(8).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    Err(format!("not a picture in a known format (begins with {start})"))
}

fn name(format: ImageFormat) -> &'static str {
    format.extensions_str().first().copied().unwrap_or("picture")
}

/// Whether this is a regular file; devices, pipes and folders are refused, naming what they are.
pub(crate) fn check_regular(about: &Metadata) -> Result<(), String> {
    if about.is_file() {
        return Ok(());
    }
    if about.is_dir() {
        return Err("a folder, not a file".into());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = about.file_type();
        for (yes, what) in [
            (kind.is_fifo(), "a FIFO"),
            (kind.is_socket(), "a socket"),
            (kind.is_char_device(), "a device"),
            (kind.is_block_device(), "a device"),
        ] {
            if yes {
                return Err(format!("{what}, not a file"));
            }
        }
    }
    Err("not a regular file".into())
}

fn open_without_waiting(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        // Should the name have become a FIFO in between, opening it must not wait for a writer.
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK);
    }
    options.open(path)
}

/// An input/output error in plain words.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

fn image_reason(error: &image::ImageError, format: ImageFormat) -> String {
    match error {
        image::ImageError::Limits(_) => {
            format!("decoding it would take more than {} MiB", MAX_DECODER_BYTES >> 20)
        }
        image::ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!("truncated {} file", name(format))
        }
        other => {
            let text = other.to_string().replace(['\n', '\r'], " ");
            if text.to_ascii_lowercase().contains("unexpected end") {
                format!("truncated {} file", name(format))
            } else {
                text
            }
        }
    }
}

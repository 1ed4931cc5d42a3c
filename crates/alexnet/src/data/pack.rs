//! Decoded pictures, all of one size, ready to be cropped: in one memory-mapped file, or in memory.
//!
//! The file has the layout of safetensors, so that Python opens it with `safetensors.numpy.load_file`:
//!
//! | tensor | type, shape | |
//! |---|---|---|
//! | `hashes` | U64 (N) | xxh3-64 of each picture's pixels |
//! | `labels` | U32 (N) | class indices |
//! | `pictures` | U8 (N, side, side, 3) | RGB; zero where a picture could not be decoded |
//! | `splits` | U8 (N) | 0 none, 1 train, 2 validation |
//! | `paths` | U8 (bytes) | UTF-8, each ended by a zero byte |
//! | `unreadable` | U8 (bytes) | JSON: index, path and reason of each picture that could not be decoded |
//!
//! Metadata: `format`, `classes` (JSON), `options` (JSON), `source` (what it was made from: names, sizes and times
//! of the files), `fingerprint` (of everything above).

use super::decode::Exif;
use super::disk::human_bytes;
use super::map::map_file;
use super::resize::Fit;
use super::split::Split;
use crate::error::{Error, Result};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The value of the metadata key `format`; another layout has another number.
pub(super) const FORMAT: &str = "alexnet-pack-1";
/// The largest part of a set that may be unreadable before a run refuses to start.
pub const MAX_UNREADABLE: f64 = 0.05;
/// Pictures whose hash is checked whenever a pack is opened; [`Pack::verify`] checks all.
const CHECKED_AT_OPEN: usize = 32;

/// How pictures are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackOptions {
    /// Side of the stored square, pixels.
    pub side: usize,
    /// How a picture becomes a square.
    pub fit: Fit,
    /// What to do with a camera's orientation mark.
    pub exif: Exif,
}

impl Default for PackOptions {
    /// 256×256, central square, orientation applied.
    fn default() -> Self {
        PackOptions { side: 256, fit: Fit::default(), exif: Exif::default() }
    }
}

/// A picture that could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Its index in the pack.
    pub index: u32,
    /// Relative to the data folder.
    pub path: String,
    /// Why, in a line.
    pub reason: String,
}

/// A picture on its way into a pack.
#[derive(Clone, Debug)]
pub struct NewPicture {
    /// Where it comes from.
    pub path: String,
    /// Index of its class.
    pub label: u32,
    /// Its side of the split, if the source says.
    pub split: Option<Split>,
    /// RGB of side×side pixels, or why there are none.
    pub pixels: std::result::Result<Vec<u8>, String>,
}

/// Everything in a pack but the pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    pub classes: Vec<String>,
    pub labels: Vec<u32>,
    pub splits: Vec<Option<Split>>,
    pub hashes: Vec<u64>,
    /// Each ended by a zero byte.
    pub paths: String,
    pub unreadable: Vec<Unreadable>,
}

impl Index {
    pub fn push(&mut self, path: &str, label: u32, split: Option<Split>) {
        self.labels.push(label);
        self.splits.push(split);
        self.hashes.push(0);
        // A zero byte cannot occur in a file name; elsewhere it would end the path early.
        self.paths.push_str(&path.replace('\0', "\\x00"));
        self.paths.push('\0');
    }

    /// Which pictures of which classes, to the pixel.
    pub fn fingerprint(&self, options: &PackOptions) -> String {
        let mut hash = Xxh3::new();
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(FORMAT.as_bytes());
        part(&json(options));
        part(&json(&self.classes));
        part(&le_bytes_u32(&self.labels));
        part(&self.split_bytes());
        part(&le_bytes_u64(&self.hashes));
        part(self.paths.as_bytes());
        part(&json(&self.unreadable));
        format!("{:032x}", hash.digest128())
    }

    pub fn split_bytes(&self) -> Vec<u8> {
        let code = |s: &Option<Split>| match s {
            None => 0,
            Some(Split::Train) => 1,
            Some(Split::Val) => 2,
        };
        self.splits.iter().map(code).collect()
    }
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers become JSON")
}

pub(super) fn le_bytes_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(super) fn le_bytes_u64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[derive(Debug)]
enum Pixels {
    Owned(Vec<u8>),
    /// The map, where the pixels begin in it, and the file to ask whether it changed.
    Mapped {
        map: memmap2::Mmap,
        start: usize,
        file: File,
        length: u64,
        modified: Option<SystemTime>,
    },
}

/// N pictures of side×side RGB pixels with their classes.
#[derive(Debug)]
pub struct Pack {
    options: PackOptions,
    index: Index,
    /// Where each path begins in `index.paths`, and the end.
    path_starts: Vec<usize>,
    readable: Vec<bool>,
    fingerprint: String,
    source: String,
    path: Option<PathBuf>,
    pixels: Pixels,
}

impl Pack {
    /// A pack in memory.
    ///
    /// # Errors
    /// [`Error::Data`] if a label is no class or a picture has not side×side×3 bytes.
    pub fn from_pictures(
        classes: Vec<String>,
        options: &PackOptions,
        pictures: impl IntoIterator<Item = NewPicture>,
    ) -> Result<Pack> {
        let stride = picture_len(options.side);
        let mut index = Index { classes, ..Default::default() };
        let mut pixels = Vec::new();
        for picture in pictures {
            let i = index.labels.len();
            index.push(&picture.path, picture.label, picture.split);
            match picture.pixels {
                Ok(p) if p.len() == stride => {
                    index.hashes[i] = xxh3_64(&p);
                    pixels.extend_from_slice(&p);
                }
                Ok(p) => {
                    return Err(Error::Data(format!("{}: {} bytes, not {stride}", picture.path, p.len())));
                }
                Err(reason) => {
                    index.unreadable.push(Unreadable { index: i as u32, path: picture.path, reason });
                    pixels.resize(pixels.len() + stride, 0);
                }
            }
        }
        Pack::assemble(options.clone(), index, String::new(), None, Pixels::Owned(pixels))
            .map_err(|why| Error::Data(format!("pictures in memory: {why}")))
    }

    /// Opens a pack file. Its structure, length and fingerprint are checked, and the pixels of some pictures.
    ///
    /// # Errors
    /// [`Error::Data`] if it is missing, damaged, or not a pack.
    pub fn open(path: &Path) -> Result<Pack> {
        let fail = |why: String| {
            Error::Data(format!(
                "{}: {why}; make the pack again (alexnet data pack FOLDER FILE)",
                path.display()
            ))
        };
        let about = std::fs::metadata(path).map_err(|e| fail(super::decode::io_reason(&e)))?;
        super::decode::check_regular(&about).map_err(fail)?;
        let file = File::open(path).map_err(|e| fail(super::decode::io_reason(&e)))?;
        let about = file.metadata().map_err(|e| fail(e.to_string()))?;
        let map = map_file(&file).map_err(|e| fail(e.to_string()))?;
        let (options, index, source, start) = parse(&map).map_err(fail)?;
        let pixels =
            Pixels::Mapped { map, start, file, length: about.len(), modified: about.modified().ok() };
        let stored = source.1;
        let pack =
            Pack::assemble(options, index, source.0, Some(path.to_path_buf()), pixels).map_err(fail)?;
        if pack.fingerprint != stored {
            return Err(fail("damaged: its contents do not match its fingerprint".into()));
        }
        let step = pack.len().div_ceil(CHECKED_AT_OPEN).max(1);
        for i in (0..pack.len()).step_by(step) {
            pack.check_picture(i).map_err(fail)?;
        }
        Ok(pack)
    }

    fn assemble(
        options: PackOptions,
        index: Index,
        source: String,
        path: Option<PathBuf>,
        pixels: Pixels,
    ) -> std::result::Result<Pack, String> {
        let n = index.labels.len();
        if let Some(bad) = index.labels.iter().find(|&&l| l as usize >= index.classes.len()) {
            return Err(format!("a picture of class {bad} among {} classes", index.classes.len()));
        }
        let mut path_starts = vec![0];
        path_starts.extend(index.paths.bytes().enumerate().filter(|&(_, b)| b == 0).map(|(i, _)| i + 1));
        if path_starts.len() != n + 1 || path_starts[n] != index.paths.len() {
            return Err(format!("{} paths for {n} pictures", path_starts.len() - 1));
        }
        let mut readable = vec![true; n];
        for bad in &index.unreadable {
            *readable.get_mut(bad.index as usize).ok_or("an unreadable picture beyond the end")? = false;
        }
        let fingerprint = index.fingerprint(&options);
        Ok(Pack { options, index, path_starts, readable, fingerprint, source, path, pixels })
    }

    /// Number of pictures, the unreadable ones included.
    pub fn len(&self) -> usize {
        self.index.labels.len()
    }

    /// True if it holds no pictures.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class names, in the order of the labels.
    pub fn classes(&self) -> &[String] {
        &self.index.classes
    }

    /// The class of picture `i`.
    pub fn label(&self, i: usize) -> u32 {
        self.index.labels[i]
    }

    /// The path of picture `i` relative to the data folder; bytes that are not UTF-8 are written `\xNN`.
    pub fn path(&self, i: usize) -> &str {
        &self.index.paths[self.path_starts[i]..self.path_starts[i + 1] - 1]
    }

    /// The side that the data folder puts picture `i` on, if it has `train/` and `val/`.
    pub fn split_of(&self, i: usize) -> Option<Split> {
        self.index.splits[i]
    }

    /// Whether the data folder itself says how it is split.
    pub fn has_given_split(&self) -> bool {
        !self.is_empty() && self.index.splits.iter().all(Option::is_some)
    }

    /// Side of the stored squares, pixels.
    pub fn side(&self) -> usize {
        self.options.side
    }

    /// How the pictures were stored.
    pub fn options(&self) -> &PackOptions {
        &self.options
    }

    /// The pixels of picture `i`, (side, side, 3), RGB; `None` if it could not be decoded.
    #[inline]
    pub fn picture(&self, i: usize) -> Option<&[u8]> {
        self.readable[i].then(|| self.slot(i))
    }

    fn slot(&self, i: usize) -> &[u8] {
        let stride = picture_len(self.options.side);
        match &self.pixels {
            Pixels::Owned(p) => &p[i * stride..(i + 1) * stride],
            Pixels::Mapped { map, start, .. } => &map[start + i * stride..start + (i + 1) * stride],
        }
    }

    /// The pictures that could not be decoded, in order.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.index.unreadable
    }

    /// 32 hexadecimal digits that stand for the classes, paths, labels and pixels.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Stands for the names, sizes and times of the files that it was made from.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Pictures of each class, in the order of the labels.
    pub fn class_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.classes().len()];
        for &label in &self.index.labels {
            sizes[label as usize] += 1;
        }
        sizes
    }

    /// Asks the file system whether the mapped file is as it was when it was opened: two numbers, no reading.
    ///
    /// # Errors
    /// [`Error::Data`] if its length or its time changed.
    pub fn verify_unchanged(&self) -> Result<()> {
        let Pixels::Mapped { file, length, modified, .. } = &self.pixels else { return Ok(()) };
        let about = file.metadata().ok();
        if about.is_some_and(|a| a.len() == *length && a.modified().ok() == *modified) {
            return Ok(());
        }
        Err(Error::Data(format!(
            "{} was changed while it was in use; make the pack again and resume",
            self.file().unwrap_or(Path::new("the pack")).display()
        )))
    }

    /// Compares the pixels of every picture with their hashes.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first picture that differs.
    pub fn verify(&self) -> Result<()> {
        for i in 0..self.len() {
            self.check_picture(i).map_err(|why| {
                Error::Data(format!("{}: {why}", self.file().unwrap_or(Path::new("the pack")).display()))
            })?;
        }
        Ok(())
    }

    fn check_picture(&self, i: usize) -> std::result::Result<(), String> {
        let good = match self.picture(i) {
            Some(pixels) => xxh3_64(pixels) == self.index.hashes[i],
            None => self.index.hashes[i] == 0,
        };
        if good {
            Ok(())
        } else {
            Err(format!("damaged: the pixels of {} are not as they were", self.path(i)))
        }
    }
}

/// Bytes of a stored picture.
pub(super) fn picture_len(side: usize) -> usize {
    side * side * 3
}

/// Refuses a set of which more than `limit` (a fraction, usually [`MAX_UNREADABLE`]) could not be decoded.
///
/// # Errors
/// [`Error::Data`] with the number, the limit and the first names.
pub fn check_unreadable(pack: &Pack, limit: f64) -> Result<()> {
    let bad = pack.unreadable();
    if bad.len() as f64 <= limit * pack.len() as f64 {
        return Ok(());
    }
    let names: Vec<String> = bad.iter().take(3).map(|u| format!("{} ({})", u.path, u.reason)).collect();
    Err(Error::Data(format!(
        "{} of {} pictures cannot be decoded, more than {:.1} %: {}{}; mend or remove them",
        bad.len(),
        pack.len(),
        limit * 100.0,
        names.join("; "),
        if bad.len() > 3 { "; ..." } else { "" }
    )))
}

type Parsed = (PackOptions, Index, (String, String), usize);

/// Reads everything but the pixels from the bytes of a file.
fn parse(bytes: &[u8]) -> std::result::Result<Parsed, String> {
    let not_a_pack = |e: safetensors::SafeTensorError| match e {
        safetensors::SafeTensorError::MetadataIncompleteBuffer => {
            format!("cut short: {} is not all of it", human_bytes(bytes.len() as u64))
        }
        e => format!("not a pack ({e})"),
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_a_pack)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(not_a_pack)?;
    let empty = std::collections::HashMap::new();
    let metadata = header.metadata().as_ref().unwrap_or(&empty);
    let text =
        |key: &str| metadata.get(key).cloned().ok_or(format!("not a pack (no `{key}` in its metadata)"));
    let format = text("format")?;
    if format != FORMAT {
        return Err(format!("of format {format}; this program reads {FORMAT}"));
    }
    let bad_json = |e: serde_json::Error| format!("damaged metadata ({e})");
    let options: PackOptions = serde_json::from_str(&text("options")?).map_err(bad_json)?;
    let classes: Vec<String> = serde_json::from_str(&text("classes")?).map_err(bad_json)?;
    let tensor = |name: &str| tensors.tensor(name).map_err(|_| format!("no tensor `{name}`"));
    let labels: Vec<u32> = tensor("labels")?
        .data()
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect();
    let n = labels.len();
    let hashes: Vec<u64> = tensor("hashes")?
        .data()
        .chunks_exact(8)
        .map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
        .collect();
    let side_of = |&b: &u8| match b {
        0 => Ok(None),
        1 => Ok(Some(Split::Train)),
        2 => Ok(Some(Split::Val)),
        b => Err(format!("a split of {b}")),
    };
    let splits = tensor("splits")?.data().iter().map(side_of).collect::<std::result::Result<Vec<_>, _>>()?;
    let paths = String::from_utf8(tensor("paths")?.data().to_vec()).map_err(|e| e.to_string())?;
    let unreadable = serde_json::from_slice(tensor("unreadable")?.data()).map_err(bad_json)?;
    let pictures = tensor("pictures")?;
    if pictures.shape() != [n, options.side, options.side, 3]
        || pictures.dtype() != safetensors::Dtype::U8
        || options.side == 0
        || hashes.len() != n
        || splits.len() != n
    {
        return Err("its tensors do not fit together".into());
    }
    // Both slices lie in `bytes`.
    let start = pictures.data().as_ptr() as usize - bytes.as_ptr() as usize;
    let index = Index { classes, labels, splits, hashes, paths, unreadable };
    Ok((options, index, (text("source")?, text("fingerprint")?), start))
}

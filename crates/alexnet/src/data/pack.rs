//! Pictures ready to be loaded: in one memory-mapped file, or in memory.
//!
//! How much of each picture is kept ([`Keep`]) and in which form ([`Form`]) is the user's or the recipe's choice. The
//! file has the layout of safetensors, so that Python opens it with `safetensors.numpy.load_file`:
//!
//! | tensor | type, shape | |
//! |---|---|---|
//! | `hashes` | U64 (N) | xxh3-64 of what is stored of each picture |
//! | `offsets` | U64 (N + 1) | where each picture begins in `pictures`; not with raw squares |
//! | `sums` | U64 (side, side, 3) | sums over the squares of the training pictures (all, where the source has no split) |
//! | `moments` | U64 (7) | how many pictures these are; sums of RR, RG, RB, GG, GB, BB over their pixels |
//! | `labels` | U32 (N) | class indices |
//! | `sizes` | U32 (N, 2) | width and height in pixels; not with raw squares |
//! | `splits` | U8 (N) | 0 none, 1 train, 2 validation |
//! | `paths` | U8 (bytes) | UTF-8, each ended by a zero byte |
//! | `pictures` | U8 (N, side, side, 3), else (bytes) | RGB, zero where a picture could not be decoded; else one picture after the other |
//! | `unreadable` | U8 (bytes) | JSON: index, path and reason of each picture that could not be decoded |
//!
//! Metadata: `format`, `classes` (JSON), `options` (JSON), `source` (what it was made from: names, sizes and times
//! of the files), `fingerprint` (of classes, labels, paths and pictures), `statistics` (hash of sums and moments), and
//! `shard` if it is one part of several.

use super::decode::{Exif, Gate, decode_with};
use super::map::map_file;
use super::pack_format::{Index, Parsed, parse};
pub use super::pack_options::{Form, Keep, PackOptions, Shard};
use super::resize::{Frame, Squarer};
use super::split::Split;
use super::stats::Sums;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use xxhash_rust::xxh3::xxh3_64;

/// The largest part of a set that may be unreadable before a run refuses to start.
pub const MAX_UNREADABLE: f64 = 0.05;
/// Pictures whose hash is checked whenever a pack is opened; [`Pack::verify`] checks all.
const CHECKED_AT_OPEN: usize = 32;

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

/// N pictures with their classes.
#[derive(Debug)]
pub struct Pack {
    options: PackOptions,
    index: Index,
    /// Where each path begins in `index.paths`, and the end.
    path_starts: Vec<usize>,
    readable: Vec<bool>,
    fingerprint: String,
    source: String,
    shard: Option<Shard>,
    path: Option<PathBuf>,
    pixels: Pixels,
    gate: Gate,
}

impl Pack {
    /// A pack of raw squares in memory.
    ///
    /// # Errors
    /// [`Error::Config`] if `options` ask for anything but raw squares; [`Error::Data`] if a label is no class or a
    /// picture has not side×side×3 bytes.
    pub fn from_pictures(
        classes: Vec<String>,
        options: &PackOptions,
        pictures: impl IntoIterator<Item = NewPicture>,
    ) -> Result<Pack> {
        options.check()?;
        if !options.is_raw_squares() {
            return Err(Error::Config("a pack in memory holds raw squares".into()));
        }
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
        let parsed = Parsed {
            options: options.clone(),
            fingerprint: index.fingerprint(options),
            index,
            source: String::new(),
            shard: None,
            start: 0,
        };
        Pack::assemble(parsed, None, Pixels::Owned(pixels))
            .map_err(|why| Error::Data(format!("pictures in memory: {why}")))
    }

    /// Opens a pack file. Its structure, length and fingerprint are checked, and the bytes of some pictures.
    ///
    /// # Errors
    /// [`Error::Data`] if it is missing, damaged, not a pack, or one part of several.
    pub fn open(path: &Path) -> Result<Pack> {
        let pack = Pack::open_part(path)?;
        match pack.shard {
            None => Ok(pack),
            Some(shard) => Err(Error::Data(format!(
                "{} is part {shard} of a pack; put the parts together first (alexnet data join FILE PART PART ...)",
                path.display()
            ))),
        }
    }

    /// As [`Pack::open`], for one part of several too.
    ///
    /// # Errors
    /// [`Error::Data`] if it is missing, damaged, or not a pack.
    pub fn open_part(path: &Path) -> Result<Pack> {
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
        let parsed = parse(&map).map_err(fail)?;
        let start = parsed.start;
        let pixels =
            Pixels::Mapped { map, start, file, length: about.len(), modified: about.modified().ok() };
        if parsed.index.fingerprint(&parsed.options) != parsed.fingerprint {
            return Err(fail("damaged: its contents do not match its fingerprint".into()));
        }
        let pack = Pack::assemble(parsed, Some(path.to_path_buf()), pixels).map_err(fail)?;
        let step = pack.len().div_ceil(CHECKED_AT_OPEN).max(1);
        for i in (0..pack.len()).step_by(step) {
            pack.check_picture(i).map_err(fail)?;
        }
        Ok(pack)
    }

    fn assemble(parsed: Parsed, path: Option<PathBuf>, pixels: Pixels) -> std::result::Result<Pack, String> {
        let Parsed { options, index, source, shard, fingerprint, .. } = parsed;
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
        let gate = Gate::default();
        Ok(Pack { options, index, path_starts, readable, fingerprint, source, shard, path, pixels, gate })
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

    /// Side of the squares, pixels; see [`PackOptions::side`].
    pub fn side(&self) -> usize {
        self.options.side
    }

    /// How the pictures were stored.
    pub fn options(&self) -> &PackOptions {
        &self.options
    }

    /// Whether picture `i` could be decoded.
    pub fn is_readable(&self, i: usize) -> bool {
        self.readable[i]
    }

    /// Picture `i` as it is stored, without a copy: of raw squares the pixels, (side, side, 3), RGB; of whole ones (height,
    /// width, 3); else the bytes of a file. `None` if it could not be decoded.
    #[inline]
    pub fn picture(&self, i: usize) -> Option<&[u8]> {
        self.readable[i].then(|| self.stored_bytes(i))
    }

    /// What the file holds of picture `i`, readable or not.
    pub(super) fn stored_bytes(&self, i: usize) -> &[u8] {
        let Range { start: begin, end } = self.range(i);
        match &self.pixels {
            Pixels::Owned(p) => &p[begin..end],
            Pixels::Mapped { map, start, .. } => &map[start + begin..start + end],
        }
    }

    /// Where picture `i` lies among the pictures.
    fn range(&self, i: usize) -> Range<usize> {
        match &self.index.offsets[..] {
            [] => i * picture_len(self.options.side)..(i + 1) * picture_len(self.options.side),
            offsets => offsets[i] as usize..offsets[i + 1] as usize,
        }
    }

    /// Has the system read picture `i`, if the pack lies in a file and the system can: whoever needs it soon does not wait.
    pub(super) fn ask_for(&self, i: usize) {
        #[cfg(unix)]
        if let Pixels::Mapped { map, start, .. } = &self.pixels {
            let range = self.range(i);
            // Only advice: whether it is taken changes no result.
            let _ = map.advise_range(memmap2::Advice::WillNeed, start + range.start, range.len());
        }
    }

    /// Width and height of picture `i` as it is stored, pixels; 0 if it could not be decoded.
    pub fn size_px(&self, i: usize) -> (usize, usize) {
        match self.index.sizes.get(i) {
            Some(&[w, h]) => (w as usize, h as usize),
            None if self.readable[i] => (self.side(), self.side()),
            None => (0, 0),
        }
    }

    /// The pixels of picture `i`, as much of it as is asked for (at most what the pack keeps): borrowed where they are
    /// stored raw, else decoded, and resized if they are originals. `None` if it could not be decoded when the pack
    /// was made.
    ///
    /// # Errors
    /// Path and reason if the stored file cannot be decoded: then the pack is damaged.
    ///
    /// Panics if `keep` is more than the pack keeps.
    pub fn frame(
        &self,
        i: usize,
        keep: Keep,
        squarer: &mut Squarer,
    ) -> Option<std::result::Result<Frame<'_>, String>> {
        assert!(
            keep <= self.options.keep,
            "{keep:?} pictures from a pack that keeps {:?}",
            self.options.keep
        );
        let stored = self.picture(i)?;
        let (width, height) = self.size_px(i);
        let PackOptions { side, exif, .. } = self.options;
        let whole = match (self.options.keep, self.options.form) {
            (Keep::Square | Keep::Whole, Form::Raw) => Frame::whole(stored, width, height),
            (kept, _) => {
                let exif = if kept == Keep::Original { exif } else { Exif::Ignore };
                let decoded = decode_with(stored, exif, &self.gate, &mut |bytes| squarer.take(bytes));
                let (picture, _turn) = match decoded {
                    Ok((p, turn)) if (p.width, p.height) == (width, height) => (p, turn),
                    Ok((p, _)) => {
                        let why = format!("{}×{} pixels instead of {width}×{height}", p.width, p.height);
                        return Some(Err(self.damaged(i, &why)));
                    }
                    Err(why) => return Some(Err(self.damaged(i, &why))),
                };
                let framing = self.options.framing();
                let (pixels, width, height) = match (kept, keep) {
                    (Keep::Original, Keep::Square) => (squarer.square(&picture, framing), side, side),
                    (Keep::Original, Keep::Whole) => squarer.whole(&picture, framing),
                    _ => return Some(Ok(self.cut(Frame::of(picture), keep))),
                };
                squarer.give(picture.pixels);
                Frame::whole(pixels, width, height)
            }
        };
        Some(Ok(self.cut(whole, keep)))
    }

    /// As much of a whole picture as is asked for.
    fn cut<'a>(&self, whole: Frame<'a>, keep: Keep) -> Frame<'a> {
        let PackOptions { side, resize, .. } = self.options;
        if keep == Keep::Square { whole.central_square(side, resize) } else { whole }
    }

    fn damaged(&self, i: usize, why: &str) -> String {
        let file = self.place();
        format!("{file}: {} cannot be decoded again ({why}); make the pack again", self.path(i))
    }

    /// The sums over the pictures `indices`, if they were made with the pack.
    pub(super) fn stored_sums(&self, indices: &[u32]) -> Option<&Sums> {
        let sums = self.index.sums.as_ref()?;
        let mut wanted: Vec<u32> = indices.iter().copied().filter(|&i| self.readable[i as usize]).collect();
        wanted.sort_unstable();
        let counted = (0..self.len()).filter(|&i| self.readable[i] && self.index.counts(i));
        counted.map(|i| i as u32).eq(wanted).then_some(sums)
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

    /// Which part of several it is, if it is one.
    pub fn shard(&self) -> Option<Shard> {
        self.shard
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
            self.place()
        )))
    }

    /// Compares what is stored of every picture with its hash.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first picture that differs.
    pub fn verify(&self) -> Result<()> {
        for i in 0..self.len() {
            self.check_picture(i).map_err(|why| self.named(&why))?;
        }
        Ok(())
    }

    /// The file, or a word for a pack that has none.
    pub(super) fn place(&self) -> std::path::Display<'_> {
        self.file().unwrap_or(Path::new("the pack")).display()
    }

    pub(super) fn named(&self, why: &str) -> Error {
        Error::Data(format!("{}: {why}", self.place()))
    }

    /// Compares what is stored of picture `i` with its hash.
    pub(crate) fn check_picture(&self, i: usize) -> std::result::Result<(), String> {
        let good = match self.picture(i) {
            Some(pixels) => xxh3_64(pixels) == self.index.hashes[i],
            None => self.index.hashes[i] == 0 && self.stored_bytes(i).iter().all(|&b| b == 0),
        };
        if good { Ok(()) } else { Err(format!("damaged: {} is not as it was stored", self.path(i))) }
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

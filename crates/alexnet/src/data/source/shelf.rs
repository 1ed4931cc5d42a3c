//! A listing in the making.

use super::labels::Labels;
use super::reader::open_regular;
use super::{Container, Entry, Format, Listing, Skipped, harmless, modified_ns, printable};
use crate::data::decode::io_reason;
use crate::data::split::Split;
use crate::error::{Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Things that are passed over are named up to this many; more are counted.
const MAX_SKIPPED: usize = 10_000;
/// Largest text or label file that is read whole.
pub const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A file of many pictures, and the side that its name says it is on.
pub type Shard = (PathBuf, Option<Split>);

/// Collects what a source holds.
pub struct Shelf {
    /// Relative paths start here.
    pub base: PathBuf,
    /// The files that hold many pictures.
    pub files: Vec<Container>,
    /// The pictures.
    pub entries: Vec<Entry>,
    skipped: Vec<Skipped>,
    uncounted: usize,
}

impl Shelf {
    /// Empty, for a source in this folder.
    pub fn new(base: &Path) -> Shelf {
        Shelf { base: base.into(), files: vec![], entries: vec![], skipped: vec![], uncounted: 0 }
    }

    /// Opens a file of pictures and notes its size and time; its index and itself.
    pub fn open(&mut self, path: &Path) -> Result<(u32, File)> {
        let (file, container) = open_container(&self.base, path)?;
        self.files.push(container);
        Ok((self.files.len() as u32 - 1, file))
    }

    /// Notes something that is not used.
    pub fn skip(&mut self, path: impl AsRef<Path>, reason: impl Into<String>) {
        if self.skipped.len() < MAX_SKIPPED {
            let path = harmless(&printable(path.as_ref().as_os_str())).into();
            self.skipped.push(Skipped { path, reason: harmless(&reason.into()) });
        } else {
            self.uncounted += 1;
        }
    }

    /// For a source of files with this extension, or of one file; and the files, with the side that each is on.
    pub fn of_shards(root: &Path, extension: &str) -> Result<(Shelf, Vec<Shard>)> {
        let (base, only) = base_of(root);
        let mut shelf = Shelf::new(&base);
        if let Some(name) = only {
            return Ok((shelf, vec![(name, None)]));
        }
        let found = shards(&base, extension);
        if found.is_empty() {
            return Err(Error::Data(format!("{}: no {extension} files in it", root.display())));
        }
        let shards = sides(&mut shelf, found);
        Ok((shelf, shards))
    }

    /// Turns the provisional numbers of labels into classes, `known` ones if the source names them; then [`Shelf::finish`].
    pub fn finish_labelled(
        mut self,
        format: Format,
        root: &Path,
        labels: Labels,
        known: Option<Vec<String>>,
    ) -> Result<Listing> {
        let fail = |why: String| Error::Data(format!("{}: {why}", root.display()));
        let (classes, ids) = labels.classes(known).map_err(fail)?;
        self.entries.iter_mut().for_each(|e| e.class = ids[e.class as usize]);
        self.finish(format, root, classes)
    }

    /// Complete. Refuses a set of fewer than two classes, or without pictures.
    pub fn finish(mut self, format: Format, root: &Path, classes: Vec<String>) -> Result<Listing> {
        if self.uncounted > 0 {
            let reason = format!("{} more things that are not used", self.uncounted);
            self.skipped.push(Skipped { path: "...".into(), reason });
        }
        if self.entries.is_empty() {
            let why = self.skipped.first().map_or(String::new(), |s| {
                format!(
                    "; not used: {} ({}){}",
                    s.path.display(),
                    s.reason,
                    if self.skipped.len() > 1 { ", ..." } else { "" }
                )
            });
            return Err(Error::Data(format!("{} holds no pictures with labels{why}", root.display())));
        }
        if classes.len() < 2 {
            return Err(Error::Data(format!(
                "{} holds pictures of one class only, {}; at least two are needed",
                root.display(),
                classes.first().map_or("", String::as_str)
            )));
        }
        // Two sides are given only if both are there.
        let has = |side| self.entries.iter().any(|e| e.split == Some(side));
        if !(has(Split::Train) && has(Split::Val)) {
            self.entries.iter_mut().for_each(|e| e.split = None);
        }
        self.entries.shrink_to_fit();
        Ok(Listing {
            format,
            root: root.into(),
            base: self.base,
            classes,
            entries: self.entries,
            files: self.files,
            skipped: self.skipped,
        })
    }
}

/// Opens a file of pictures, with its size and time.
fn open_container(base: &Path, path: &Path) -> Result<(File, Container)> {
    let full = base.join(path);
    let fail = |why: String| Error::Data(format!("{}: {why}", full.display()));
    let file = open_regular(&full).map_err(fail)?;
    let about = file.metadata().map_err(|e| fail(io_reason(&e)))?;
    Ok((file, Container { path: path.into(), bytes: about.len(), modified_ns: modified_ns(&about) }))
}

/// The folder of a source, and its name within it if it is a file.
pub fn base_of(root: &Path) -> (PathBuf, Option<PathBuf>) {
    match (root.is_dir(), root.parent(), root.file_name()) {
        (false, Some(parent), Some(name)) if parent.as_os_str().is_empty() => (".".into(), Some(name.into())),
        (false, Some(parent), Some(name)) => (parent.into(), Some(name.into())),
        _ => (root.into(), None),
    }
}

/// The bytes of a small file.
pub fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let fail = |why: String| Error::Data(format!("{}: {why}", path.display()));
    let file = open_regular(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| fail(io_reason(&e)))?;
    if bytes.len() as u64 > limit {
        return Err(fail(format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

/// The text of a small file; a mark of UTF-8 at its beginning is dropped.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_small(path, limit)?;
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").map(<[u8]>::to_vec).unwrap_or(bytes);
    String::from_utf8(bytes).map_err(|e| {
        Error::Data(format!("{}: not UTF-8 text at byte {}", path.display(), e.utf8_error().valid_up_to()))
    })
}

/// The words by which names of shards and folders say which side they are on.
const TRAIN_WORDS: [&str; 2] = ["train", "training"];
const VAL_WORDS: [&str; 4] = ["val", "valid", "validation", "dev"];
const TEST_WORDS: [&str; 2] = ["test", "testing"];

/// Sorts shards into sides by their names. Of validation and test shards the test shards stay aside, as do shards
/// that name no side where others do.
fn sides(shelf: &mut Shelf, shards: Vec<PathBuf>) -> Vec<Shard> {
    let names = |path: &Path, words: &[&str]| {
        let text = path.to_string_lossy().to_ascii_lowercase();
        text.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| words.contains(&part))
    };
    let any = |words: &[&str]| shards.iter().any(|s| names(s, words));
    let (train, val, test) = (any(&TRAIN_WORDS), any(&VAL_WORDS), any(&TEST_WORDS));
    let mut used = Vec::new();
    for shard in shards {
        if !(train && (val || test)) {
            // One side alone is no split; of validation and test, both are measured.
            used.push((shard, None));
        } else if names(&shard, &TRAIN_WORDS) {
            used.push((shard, Some(Split::Train)));
        } else if names(&shard, if val { &VAL_WORDS } else { &TEST_WORDS }) {
            used.push((shard, Some(Split::Val)));
        } else if names(&shard, &TEST_WORDS) {
            shelf.skip(&shard, "a test part beside a validation part; give it itself to measure with it");
        } else {
            shelf.skip(&shard, "its name says neither train nor validation");
        }
    }
    used
}

/// Files with an extension in a folder, in its `data/` and in folders named after the sides, sorted by bytes.
pub fn shards(base: &Path, extension: &str) -> Vec<PathBuf> {
    let is_side =
        |name: &str| name == "data" || [&TRAIN_WORDS[..], &VAL_WORDS, &TEST_WORDS].concat().contains(&name);
    let mut found = Vec::new();
    let mut look = |folder: &Path, deeper: &mut Vec<PathBuf>| {
        for entry in std::fs::read_dir(base.join(folder)).into_iter().flatten().flatten() {
            let name = PathBuf::from(entry.file_name());
            let path = folder.join(&name);
            let Some(text) = name.to_str().map(str::to_ascii_lowercase) else { continue };
            if text.starts_with('.') {
                continue;
            }
            let is_dir = std::fs::metadata(base.join(&path)).is_ok_and(|m| m.is_dir());
            if is_dir && is_side(&text) {
                deeper.push(path);
            } else if !is_dir && text.ends_with(extension) {
                found.push(path);
            }
        }
    };
    let mut deeper = Vec::new();
    look(Path::new(""), &mut deeper);
    for folder in deeper {
        look(&folder, &mut Vec::new());
    }
    found.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    found
}

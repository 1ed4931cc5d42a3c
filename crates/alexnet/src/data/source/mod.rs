//! What a set of pictures holds: classes, pictures and where their bytes lie, and whatever was passed over and why.
//!
//! A source is read in place and never unpacked. [`list`] recognises its format and finds every picture without
//! decoding any; a [`Reader`] fetches one picture at a time. One file a format; `tar_index` walks the archives, `shelf`
//! collects what a format finds.

mod cifar;
mod devkit;
mod folder;
mod ilsvrc;
mod labels;

mod matlab;
mod pages;
mod parquet;
mod reader;
mod shelf;
mod tar_index;
mod text_list;
mod tiny_imagenet;
mod webdataset;

pub use folder::list_folder;
pub use reader::{Contents, Reader};

use super::split::Split;
use crate::error::{Error, Result, nearest};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::UNIX_EPOCH;

/// How a set of pictures is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One folder of picture files for each class, with or without `train/` and `val/` above them.
    Folder,
    /// The archives of ILSVRC-2012 or ILSVRC-2010 and their development kit, as downloaded.
    Ilsvrc,
    /// Tars with `KEY.jpg` and `KEY.cls` or `KEY.json`.
    WebDataset,
    /// Hugging Face's Parquet files: a column of picture files and one of labels.
    Parquet,
    /// A text with a path and a label in each line.
    List,
    /// The binary files of CIFAR-10 or CIFAR-100.
    Cifar,
    /// Tiny-ImageNet as downloaded.
    TinyImagenet,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 7] = [
        Format::Folder,
        Format::Ilsvrc,
        Format::WebDataset,
        Format::Parquet,
        Format::List,
        Format::Cifar,
        Format::TinyImagenet,
    ];

    /// The word for it in `--format`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Folder => "folder",
            Format::Ilsvrc => "ilsvrc",
            Format::WebDataset => "webdataset",
            Format::Parquet => "parquet",
            Format::List => "list",
            Format::Cifar => "cifar",
            Format::TinyImagenet => "tiny-imagenet",
        }
    }

    /// What it is, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            Format::Folder => "a folder for each class",
            Format::Ilsvrc => "archives of ILSVRC as downloaded",
            Format::WebDataset => "WebDataset tars",
            Format::Parquet => "Parquet files with pictures and labels",
            Format::List => "a list of paths and labels",
            Format::Cifar => "binary files of CIFAR",
            Format::TinyImagenet => "Tiny-ImageNet as downloaded",
        }
    }

    /// The format of a folder or file, by the names of the files in it. A folder that holds nothing known is taken for
    /// a folder of class folders; a file of no known name is no source.
    pub fn of(path: &Path) -> Option<Format> {
        if path.is_file() {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or("").to_ascii_lowercase();
            let extension = name.rsplit('.').next().unwrap_or("");
            return match extension {
                "tar" if ilsvrc::is_archive(path.file_name()?.to_str()?) => Some(Format::Ilsvrc),
                "tar" => Some(Format::WebDataset),
                "parquet" => Some(Format::Parquet),
                "csv" | "tsv" | "txt" => Some(Format::List),
                _ => None,
            };
        }
        if ilsvrc::recognise(path) {
            Some(Format::Ilsvrc)
        } else if cifar::recognise(path) {
            Some(Format::Cifar)
        } else if tiny_imagenet::recognise(path) {
            Some(Format::TinyImagenet)
        } else if !shelf::shards(path, ".parquet").is_empty() {
            Some(Format::Parquet)
        } else if !shelf::shards(path, ".tar").is_empty() {
            Some(Format::WebDataset)
        } else {
            Some(Format::Folder)
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name(), self.description())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(typed: &str) -> Result<Format> {
        Format::ALL.into_iter().find(|f| f.name() == typed).ok_or_else(|| {
            let names = Format::ALL.map(Format::name);
            let near = nearest(typed, names).map(|n| format!("; did you mean {n}?")).unwrap_or_default();
            Error::Config(format!("no format is called {typed}{near} (there are {})", names.join(", ")))
        })
    }
}

/// Where a picture's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file of its own: [`Entry::path`].
    File {
        /// Size of the file.
        bytes: u64,
        /// When it was last written, nanoseconds since 1970; 0 if the system does not say.
        modified_ns: i64,
    },
    /// A picture file within another file: a member of an archive, also of an archive in an archive.
    Part {
        /// Index into [`Listing::files`].
        file: u32,
        /// Where it begins.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// A row of a Parquet file.
    Row {
        /// Index into [`Listing::files`].
        file: u32,
        /// The row group.
        group: u32,
        /// The row within its group.
        row: u32,
    },
    /// The pixels of one of CIFAR's pictures: planes of 32×32 bytes, red, green, blue.
    Planes {
        /// Index into [`Listing::files`].
        file: u32,
        /// Where they begin.
        offset: u64,
    },
}

/// One picture, or what is taken for one until it is decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: the path relative to [`Listing::base`], within archives continued with the member's name. The
    /// split by hash depends on it alone.
    pub path: PathBuf,
    /// Index into [`Listing::classes`].
    pub class: u32,
    /// Its side, where the source says.
    pub split: Option<Split>,
    /// Where its bytes are.
    pub place: Place,
}

impl Entry {
    /// The path as text: parts joined by `/`, bytes that are not UTF-8 as `\xNN`.
    pub fn name(&self) -> String {
        let parts = self.path.components().filter(|c| !matches!(c, std::path::Component::RootDir));
        let text = parts.map(|c| printable(c.as_os_str())).collect::<Vec<_>>().join("/");
        if self.path.has_root() { format!("/{text}") } else { text }
    }
}

/// A file that holds many pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Relative to [`Listing::base`].
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// When it was last written, nanoseconds since 1970; 0 if the system does not say.
    pub modified_ns: i64,
}

/// Something in the source that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Relative to [`Listing::base`].
    pub path: PathBuf,
    /// Why, in a few words.
    pub reason: String,
}

/// What a source holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// How it is kept.
    pub format: Format,
    /// The folder or file, as given.
    pub root: PathBuf,
    /// The folder that paths are relative to: the root, or the folder that it lies in.
    pub base: PathBuf,
    /// Class names, in the order of the labels.
    pub classes: Vec<String>,
    /// The pictures, in an order that depends on nothing but the source: of folders and lists by the bytes of the
    /// path, of archives as they lie there.
    pub entries: Vec<Entry>,
    /// The files that hold more than one picture.
    pub files: Vec<Container>,
    /// What is not used, in the order in which it was met.
    pub skipped: Vec<Skipped>,
}

impl Listing {
    /// Everything that a pack of this set depends on, part by part: names, classes, sides, and the sizes and times of
    /// the files. Equal parts mean that nothing needs to be decoded again.
    pub fn key_parts(&self, part: &mut dyn FnMut(&[u8])) {
        part(self.format.name().as_bytes());
        let number = |n: usize| (n as u64).to_le_bytes();
        part(&number(self.classes.len()));
        self.classes.iter().for_each(|c| part(c.as_bytes()));
        part(&number(self.files.len()));
        for file in &self.files {
            part(file.path.as_os_str().as_encoded_bytes());
            part(&file.bytes.to_le_bytes());
            part(&file.modified_ns.to_le_bytes());
        }
        for entry in &self.entries {
            part(entry.path.as_os_str().as_encoded_bytes());
            part(&entry.class.to_le_bytes());
            part(&[entry.split.map_or(0, |s| s as u8 + 1)]);
            match entry.place {
                Place::File { bytes, modified_ns } => {
                    part(&bytes.to_le_bytes());
                    part(&modified_ns.to_le_bytes());
                }
                Place::Part { file, offset, bytes } => {
                    part(&file.to_le_bytes());
                    part(&offset.to_le_bytes());
                    part(&bytes.to_le_bytes());
                }
                Place::Row { file, group, row } => {
                    [file, group, row].iter().for_each(|n| part(&n.to_le_bytes()));
                }
                Place::Planes { file, offset } => {
                    part(&file.to_le_bytes());
                    part(&offset.to_le_bytes());
                }
            }
        }
    }
}

/// Told how many parts of a source (archives, files) have been looked through, and how many there are.
pub type Tell<'a> = &'a mut dyn FnMut(usize, usize);

/// Files with these extensions are taken for pictures without a look inside; others are sniffed.
const PICTURE_EXTENSIONS: [&str; 13] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp", "tif", "tiff", "heic", "heif", "avif"];

/// Lists the pictures of a folder or file, in the given format or in the one that is recognised.
///
/// # Errors
/// [`Error::Data`] saying what is missing or wrong, by the name of the file that was expected.
pub fn list(path: &Path, format: Option<Format>, tell: Tell) -> Result<Listing> {
    match format.or_else(|| Format::of(path)).unwrap_or(Format::Folder) {
        Format::Folder => list_folder(path),
        Format::Ilsvrc => ilsvrc::list(path, tell),
        Format::WebDataset => webdataset::list(path, tell),
        Format::Parquet => parquet::list(path, tell),
        Format::List => text_list::list(path),
        Format::Cifar => cifar::list(path),
        Format::TinyImagenet => tiny_imagenet::list(path),
    }
}

/// When a file was last written, nanoseconds since 1970; 0 if the system does not say.
fn modified_ns(about: &Metadata) -> i64 {
    about.modified().map_or(0, |t| match t.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i64,
        Err(before) => -(before.duration().as_nanos() as i64),
    })
}

/// A name as text; bytes that are not UTF-8 as `\xNN`, so that different names stay different.
pub(super) fn printable(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

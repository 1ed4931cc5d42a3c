//! Fetching one picture of a listing at a time, from any thread.

use super::super::decode::{Exif, Picture, check_regular, decode, io_reason, read_bounded, read_file};
use super::{Entry, Listing, Place, modified_ns};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Archives that are kept open at a time: a set may have more shards than a process may open files.
const OPEN_FILES: usize = 32;

/// What a source stores of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A picture file: JPEG, PNG, ...
    Encoded(Vec<u8>),
    /// Pixels, stored as such.
    Pixels(Picture),
}

impl Contents {
    /// The pixels.
    ///
    /// # Errors
    /// Why they cannot be decoded.
    pub fn decode(self, exif: Exif) -> Result<Picture, String> {
        match self {
            Contents::Encoded(bytes) => decode(&bytes, exif),
            Contents::Pixels(picture) => Ok(picture),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Contents::Encoded(bytes) => bytes.len(),
            Contents::Pixels(picture) => picture.pixels.len(),
        }
    }
}

/// Reads the pictures of a listing. Shared by threads; holds at most a few files open.
#[derive(Debug)]
pub struct Reader<'a> {
    listing: &'a Listing,
    /// By index into the listing's files, the most recently used last.
    open: Mutex<VecDeque<(u32, Arc<File>)>>,
}

impl<'a> Reader<'a> {
    /// Opens nothing yet.
    pub fn new(listing: &'a Listing) -> Reader<'a> {
        Reader { listing, open: Mutex::default() }
    }

    /// What the source stores of a picture.
    ///
    /// # Errors
    /// Why there is nothing, in a line, without the name of the picture.
    pub fn read(&self, entry: &Entry) -> Result<Contents, String> {
        match entry.place {
            Place::File { .. } => read_file(&self.listing.base.join(&entry.path)).map(Contents::Encoded),
            Place::Part { file, offset, bytes } => {
                let mut part = Section { file: self.file(file)?, offset };
                read_bounded(&mut part, bytes).map(Contents::Encoded)
            }
        }
    }

    /// The pixels of a picture.
    ///
    /// # Errors
    /// Why there are none, in a line.
    pub fn picture(&self, entry: &Entry, exif: Exif) -> Result<Picture, String> {
        self.read(entry)?.decode(exif)
    }

    /// A file of the listing, as it was when it was listed.
    fn file(&self, index: u32) -> Result<Arc<File>, String> {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(at) = open.iter().position(|(i, _)| *i == index) {
            let found = open.remove(at).expect("a position found");
            let file = found.1.clone();
            open.push_back(found);
            return Ok(file);
        }
        let container = self.listing.files.get(index as usize).ok_or("in a file that is not listed")?;
        let path = self.listing.base.join(&container.path);
        let named = |why: String| format!("{}: {why}", container.path.display());
        let file = open_regular(&path).map_err(named)?;
        let about = file.metadata().map_err(|e| named(io_reason(&e)))?;
        if about.len() != container.bytes || modified_ns(&about) != container.modified_ns {
            return Err(named("was changed since it was listed".into()));
        }
        let file = Arc::new(file);
        if open.len() >= OPEN_FILES {
            open.pop_front();
        }
        open.push_back((index, file.clone()));
        Ok(file)
    }
}

/// Opens a file, if it is a regular one; never waits.
pub(super) fn open_regular(path: &Path) -> Result<File, String> {
    let about = std::fs::metadata(path).map_err(|e| io_reason(&e))?;
    check_regular(&about)?;
    File::open(path).map_err(|e| io_reason(&e))
}

/// A file read from an offset on, whatever other threads read of it.
pub(super) struct Section {
    pub file: Arc<File>,
    pub offset: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = read_at(&self.file, buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

//! Fetching one picture of a listing at a time, from any thread.

use super::super::decode::{
    Exif, Memory, Picture, check_regular, decode, io_reason, read_bounded, read_file_with,
};
use super::parquet::{self, Group};
use super::{Entry, Listing, Place, cifar, modified_ns};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Archives that are kept open at a time: a set may have more shards than a process may open files.
const OPEN_FILES: usize = 32;
/// Row groups that are kept in memory at a time: the one that is read, and the next.
const OPEN_GROUPS: usize = 2;

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

/// File and row group.
type GroupKey = (u32, u32);

/// Reads the pictures of a listing. Shared by threads; holds at most a few files open.
#[derive(Debug)]
pub struct Reader<'a> {
    listing: &'a Listing,
    /// By index into the listing's files, the most recently used last.
    open: Mutex<VecDeque<(u32, Arc<File>)>>,
    /// By file and row group, the most recently used last.
    groups: Mutex<VecDeque<(GroupKey, Arc<Group>)>>,
}

impl<'a> Reader<'a> {
    /// Opens nothing yet.
    pub fn new(listing: &'a Listing) -> Reader<'a> {
        Reader { listing, open: Mutex::default(), groups: Mutex::default() }
    }

    /// What the source stores of a picture.
    ///
    /// # Errors
    /// Why there is nothing, in a line, without the name of the picture.
    pub fn read(&self, entry: &Entry) -> Result<Contents, String> {
        self.read_with(entry, &mut |bytes| Vec::with_capacity(bytes))
    }

    /// As [`Reader::read`], in memory that `memory` gives.
    pub(in super::super) fn read_with(&self, entry: &Entry, memory: &mut Memory) -> Result<Contents, String> {
        match entry.place {
            Place::File { .. } => {
                read_file_with(&self.listing.base.join(&entry.path), memory).map(Contents::Encoded)
            }
            Place::Part { file, offset, bytes } => {
                let end = offset.checked_add(bytes).ok_or("beyond the end of its archive")?;
                let mut part = Section { file: self.file(file)?, offset, end };
                read_bounded(&mut part, bytes, memory).map(Contents::Encoded)
            }
            Place::Row { file, group, row } => {
                let group = self.group(file, group)?;
                let bytes =
                    group.get(row as usize).and_then(Option::as_ref).ok_or("no picture in its row")?;
                read_bounded(&mut bytes.data(), bytes.len() as u64, memory).map(Contents::Encoded)
            }
            Place::Planes { file, offset } => {
                cifar::picture(&*self.file(file)?, offset).map(Contents::Pixels)
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

    /// The pictures of a row group. Threads that want the same one wait for the one that reads it.
    fn group(&self, file: u32, group: u32) -> Result<Arc<Group>, String> {
        let handle = self.file(file)?;
        let mut groups = self.groups.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, found)) = groups.iter().find(|(key, _)| *key == (file, group)) {
            return Ok(found.clone());
        }
        let read = Arc::new(parquet::read_group(handle, self.listing.files[file as usize].bytes, group)?);
        if groups.len() >= OPEN_GROUPS {
            groups.pop_front();
        }
        groups.push_back(((file, group), read.clone()));
        Ok(read)
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

/// A part of a file, read from one end to the other, whatever other threads read of the file.
pub(super) struct Section<R: ReadAt + ?Sized> {
    pub file: Arc<R>,
    pub offset: u64,
    pub end: u64,
}

impl<R: ReadAt + ?Sized> Read for Section<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(usize::try_from(self.end - self.offset).unwrap_or(usize::MAX));
        self.file.fill_at(&mut buffer[..n], self.offset).map_err(std::io::Error::other)?;
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

/// Something with bytes at offsets: a file, or a buffer.
pub(super) trait ReadAt {
    /// Fills the buffer, or says that there are not so many bytes.
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), String>;
}

impl ReadAt for File {
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        let mut done = 0;
        while done < buffer.len() {
            match read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => return Err("shorter than it was".into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io_reason(&e)),
            }
        }
        Ok(())
    }
}

impl ReadAt for [u8] {
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(part.ok_or("it ends too early")?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        self[..].fill_at(buffer, offset)
    }
}

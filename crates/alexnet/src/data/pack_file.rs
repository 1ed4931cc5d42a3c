//! Writing a pack file so that neither a kill nor a power cut loses more than the last piece.
//!
//! Pictures are appended, in the order of the index, to a file beside the one that is to be: `.NAME.partial`. Beside
//! it a journal, `.NAME.journal`, gets a record for each piece of so many pictures, and only when the bytes of the
//! piece are on the disk: what a complete record says is there. Whoever builds the same pack again finds the journal,
//! cuts the file to where the last record ends, and goes on. Tables and header are written at the end, then the file
//! is synced and renamed. Pictures and records depend on the sources alone, so that the bytes are those of a build that
//! was never interrupted. Who writes holds a lock on the journal.

use super::disk::{free_bytes, human_bytes};
use super::pack::{PackOptions, Shard, Unreadable, picture_len};
use super::pack_format::{Index, header, json, le_bytes_u32, le_bytes_u64, place, places, u32s, u64s};
use super::source::printable;
use super::stats::Sums;
use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// What is known of a picture when it has been appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub hash: u64,
    pub bytes: u32,
    pub width: u32,
    pub height: u32,
}

/// A piece of the pack: consecutive pictures, on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub pictures: Vec<Stored>,
    pub unreadable: Vec<Unreadable>,
    pub sums: Sums,
}

impl Piece {
    pub fn new(side: usize) -> Self {
        Piece { pictures: Vec::new(), unreadable: Vec::new(), sums: Sums::new(side) }
    }

    /// Number of pictures, four numbers for each, moments, positions (which fit in 32 bits for so few pictures),
    /// unreadable ones as JSON.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.pictures.len() as u64).to_le_bytes().to_vec();
        for p in &self.pictures {
            bytes.extend(p.hash.to_le_bytes());
            bytes.extend(le_bytes_u32(&[p.bytes, p.width, p.height]));
        }
        bytes.extend(le_bytes_u64(&self.sums.moments()));
        bytes.extend(self.sums.position.iter().flat_map(|&s| (s as u32).to_le_bytes()));
        bytes.extend(json(&self.unreadable));
        bytes
    }

    /// The other way round, if it can be.
    fn from_bytes(bytes: &[u8], side: usize) -> Option<Piece> {
        let (count, rest) = bytes.split_at_checked(8)?;
        let count = usize::try_from(u64s(count)[0]).ok()?;
        let (pictures, rest) = rest.split_at_checked(count.checked_mul(20)?)?;
        let (moments, rest) = rest.split_at_checked(8 * Sums::MOMENTS)?;
        let (position, rest) = rest.split_at_checked(picture_len(side) * 4)?;
        let stored = |p: &[u8]| {
            let numbers = u32s(&p[8..]);
            Stored { hash: u64s(p)[0], bytes: numbers[0], width: numbers[1], height: numbers[2] }
        };
        let position = u32s(position).into_iter().map(u64::from).collect();
        Some(Piece {
            pictures: pictures.chunks_exact(20).map(stored).collect(),
            sums: Sums::from_parts(position, &u64s(moments)),
            unreadable: serde_json::from_slice(rest).ok()?,
        })
    }
}

/// The record of what is durable.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

/// Largest record that is believed: a piece's sums at a side of 4,096 take 200 MB.
const MAX_RECORD_BYTES: u64 = 1 << 30;

impl Journal {
    /// Opens or begins the journal, and holds it against other processes.
    fn lock(path: &Path) -> std::io::Result<Journal> {
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let why =
                        "another process is making this pack; wait until it is done, then run this again";
                    return Err(std::io::Error::new(ErrorKind::ResourceBusy, why));
                }
                Err(TryLockError::Error(e)) => return Err(e),
            }
            // Another process may have finished, and removed the file, between opening and locking it.
            let (held, named) = (file.metadata()?, std::fs::metadata(path));
            if named.is_ok_and(|named| same_file(&held, &named)) {
                return Ok(Journal { file, path: path.into() });
            }
        }
    }

    /// The pieces that are recorded for `key`, up to the first record that is not whole; the file is cut there. Nothing
    /// is left if the journal belongs to another pack.
    fn replay(&mut self, key: &[u8], side: usize) -> std::io::Result<Vec<Piece>> {
        self.file.seek(SeekFrom::Start(0))?;
        let length = self.file.metadata()?.len();
        let mut reader = BufReader::new(&self.file);
        let mut good = 0;
        let mut record = || -> std::io::Result<Option<Vec<u8>>> {
            let mut head = [0; 16];
            if good + 16 > length {
                return Ok(None);
            }
            reader.read_exact(&mut head)?;
            let [bytes, hash] = [u64s(&head)[0], u64s(&head)[1]];
            if bytes > MAX_RECORD_BYTES || good + 16 + bytes > length {
                return Ok(None);
            }
            let mut payload = vec![0; bytes as usize];
            reader.read_exact(&mut payload)?;
            if xxh3_64(&payload) != hash {
                return Ok(None);
            }
            good += 16 + bytes;
            Ok(Some(payload))
        };
        let mut pieces = Vec::new();
        if record()?.as_deref() == Some(key) {
            while let Some(piece) = record()?.and_then(|bytes| Piece::from_bytes(&bytes, side)) {
                pieces.push(piece);
            }
        } else {
            good = 0;
        }
        self.file.set_len(good)?;
        self.file.seek(SeekFrom::Start(good))?;
        if good == 0 {
            self.append(key)?;
        }
        Ok(pieces)
    }

    fn restart(&mut self, key: &[u8]) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.append(key)
    }

    fn append(&mut self, payload: &[u8]) -> std::io::Result<()> {
        let mut record = le_bytes_u64(&[payload.len() as u64, xxh3_64(payload)]);
        record.extend_from_slice(payload);
        self.file.write_all(&record)?;
        self.file.sync_data()
    }

    /// Makes all that has been appended to `pictures` so far durable, then says so.
    pub fn record(&mut self, pictures: &File, piece: &Piece) -> std::io::Result<()> {
        pictures.sync_data()?;
        self.append(&piece.to_bytes())
    }
}

#[cfg(unix)]
fn same_file(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &std::fs::Metadata, _: &std::fs::Metadata) -> bool {
    true
}

/// A pack file on its way.
pub(super) struct Writer {
    file: File,
    partial: PathBuf,
    out: PathBuf,
    options: PackOptions,
    /// Where the tensors begin.
    data_start: u64,
    /// Bytes of pictures so far.
    pictures_bytes: u64,
    needed: u64,
}

impl Writer {
    /// Begins the file `out`, or goes on with it: the pieces that are there already. `index` has all but what is known
    /// only when the pictures are; `pictures_bytes` is what they will take, as far as is known. `key` stands for
    /// everything that the bytes depend on.
    ///
    /// # Errors
    /// [`Error::Data`] if it cannot be written, there is no room, or another process is writing it.
    pub fn begin(
        out: &Path,
        options: &PackOptions,
        index: &Index,
        pictures_bytes: u64,
        key: &[u8],
    ) -> Result<(Writer, Journal, Vec<Piece>)> {
        let n = index.labels.len();
        let places = places(n, options, index.paths.len(), pictures_bytes, 0);
        // The digits of hashes, offsets and of the unreadable pictures' list are not known yet: leave room for them.
        let room = header(options, index, &"0".repeat(32), None, &"0".repeat(32), &places).len() as u64 + 256;
        let data_start = (8 + room).next_multiple_of(4096);
        let needed = places.last().map_or(0, |p| p.end).saturating_add(data_start);
        let (folder, name) = folder_and_name(out);
        let partial = folder.join(format!(".{name}.partial"));
        let there = std::fs::metadata(&partial).map_or(0, |m| m.len());
        if let Some(free) = free_bytes(&folder)
            && free < needed.saturating_sub(there)
        {
            return Err(Error::Data(format!(
                "{}: the pack needs {} and {} are free there; make room or name another place",
                out.display(),
                human_bytes(needed),
                human_bytes(free)
            )));
        }
        let fail = |e: std::io::Error| cannot_write(out, &e, Some(needed));
        let mut journal = Journal::lock(&folder.join(format!(".{name}.journal"))).map_err(fail)?;
        let mut pieces = journal.replay(key, options.side).map_err(fail)?;
        let file = File::options().write(true).create(true).truncate(false).open(&partial).map_err(fail)?;
        let mut writer = Writer {
            file,
            partial,
            out: out.into(),
            options: options.clone(),
            data_start,
            pictures_bytes: pieces.iter().flat_map(|p| &p.pictures).map(|p| u64::from(p.bytes)).sum(),
            needed,
        };
        let recorded: usize = pieces.iter().map(|p| p.pictures.len()).sum();
        let length = writer.file.metadata().map_err(fail)?.len();
        if recorded > n || length < writer.append_at(index) {
            // Not what the journal promises; somebody else's doing.
            pieces.clear();
            writer.pictures_bytes = 0;
            journal.restart(key).map_err(fail)?;
        }
        let at = writer.append_at(index);
        writer.file.set_len(at).map_err(fail)?;
        writer.file.seek(SeekFrom::Start(at)).map_err(fail)?;
        Ok((writer, journal, pieces))
    }

    fn append_at(&self, index: &Index) -> u64 {
        let places = places(index.labels.len(), &self.options, index.paths.len(), 0, 0);
        self.data_start + place(&places, "pictures").start + self.pictures_bytes
    }

    /// Another handle of the file, for syncing it beside writing.
    pub fn handle(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| self.cannot_write(&e))
    }

    /// Appends the bytes of the next picture.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| self.cannot_write(&e))?;
        self.pictures_bytes += bytes.len() as u64;
        Ok(())
    }

    pub fn cannot_write(&self, error: &std::io::Error) -> Error {
        cannot_write(&self.out, error, Some(self.needed))
    }

    /// Writes what belongs to the pictures and gives the file its name, durably.
    pub fn finish(
        mut self,
        index: &Index,
        source: &str,
        shard: Option<Shard>,
        journal: Journal,
    ) -> Result<()> {
        self.write_tables(index, source, shard).map_err(|e| self.cannot_write(&e))?;
        let _ = std::fs::remove_file(&journal.path);
        // The new name is durable when its folder is.
        if let Ok(folder) = File::open(folder_and_name(&self.out).0) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    fn write_tables(&mut self, index: &Index, source: &str, shard: Option<Shard>) -> std::io::Result<()> {
        let n = index.labels.len();
        let unreadable = json(&index.unreadable);
        let places =
            places(n, &self.options, index.paths.len(), self.pictures_bytes, unreadable.len() as u64);
        let fingerprint = index.fingerprint(&self.options);
        let mut head = header(&self.options, index, source, shard, &fingerprint, &places);
        let room = (self.data_start - 8) as usize;
        assert!(head.len() <= room, "a header of {} bytes in {room}", head.len());
        head.resize(room, b' ');
        self.write_at(0, &(room as u64).to_le_bytes())?;
        self.write_at(8, &head)?;
        let sums = index.sums.as_ref().expect("sums are made with the pictures");
        let tables: [(&str, Vec<u8>); 9] = [
            ("hashes", le_bytes_u64(&index.hashes)),
            ("offsets", le_bytes_u64(&index.offsets)),
            ("sums", le_bytes_u64(&sums.position)),
            ("moments", le_bytes_u64(&sums.moments())),
            ("labels", le_bytes_u32(&index.labels)),
            ("sizes", le_bytes_u32(index.sizes.as_flattened())),
            ("splits", index.split_bytes()),
            ("paths", index.paths.as_bytes().to_vec()),
            ("unreadable", unreadable),
        ];
        for (name, bytes) in tables {
            if let Some(p) = places.iter().find(|p| p.name == name) {
                assert_eq!(bytes.len() as u64, p.end - p.start, "`{name}`");
                self.write_at(self.data_start + p.start, &bytes)?;
            }
        }
        self.file.sync_all()?;
        std::fs::rename(&self.partial, &self.out)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(bytes)
    }

    /// Gives up: nothing that was done is worth keeping.
    pub fn discard(self, journal: Journal) {
        let _ = std::fs::remove_file(&self.partial);
        let _ = std::fs::remove_file(&journal.path);
    }
}

fn folder_and_name(out: &Path) -> (PathBuf, String) {
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (folder.into(), out.file_name().map_or("pack".into(), printable))
}

/// The error of a file that cannot be written, with the bytes needed and free if it is a matter of space.
pub(super) fn cannot_write(path: &Path, error: &std::io::Error, needed: Option<u64>) -> Error {
    use ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, ResourceBusy, StorageFull};
    let folder = path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("."));
    let sizes = match (needed, free_bytes(folder)) {
        (Some(needed), Some(free)) => {
            format!(" (the pack needs {}, {} are free)", human_bytes(needed), human_bytes(free))
        }
        _ => String::new(),
    };
    let (why, what_to_do) = match error.kind() {
        ResourceBusy => return Error::Data(format!("cannot write {}: {error}", path.display())),
        StorageFull | QuotaExceeded => (
            format!("no space left{sizes}"),
            "make room and run this again (it goes on where it stopped), or name another cache folder",
        ),
        PermissionDenied | ReadOnlyFilesystem => {
            (super::decode::io_reason(error), "name a cache folder that can be written to")
        }
        _ => (format!("{error}{sizes}"), "check the folder or name another cache folder"),
    };
    Error::Data(format!("cannot write {}: {why}; {what_to_do}", path.display()))
}

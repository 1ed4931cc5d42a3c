//! Making packs: every picture of a folder decoded once, on all cores, straight into the file.

use super::disk::{free_bytes, human_bytes};
use super::pack::{
    FORMAT, Index, Pack, PackOptions, Unreadable, json, le_bytes_u32, le_bytes_u64, picture_len,
};
use super::resize::Squarer;
use super::source::{Contents, Entry, Listing, Reader, list_folder, printable};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json as value};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Files larger than this are decoded one at a time, so that memory stays bounded on machines with many cores.
const LARGE_FILE_BYTES: usize = 8 << 20;

/// Where packs of folders are kept unless told otherwise: `$XDG_CACHE_HOME/alexnet`, else `~/.cache/alexnet`, else
/// a folder for temporary files.
pub fn default_cache_dir() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    from("XDG_CACHE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("alexnet"))
        .unwrap_or_else(|| std::env::temp_dir().join("alexnet-cache"))
}

impl Pack {
    /// The pack of a folder of class folders: the one made before if nothing changed since (names, sizes, times of
    /// the files, options), else a new one in `cache_dir` ([`default_cache_dir`] if `None`). `progress` is told
    /// (pictures done, pictures in all).
    ///
    /// # Errors
    /// As [`list_folder`] and [`Pack::build`]; [`Error::Config`] if the cache folder lies in the data folder.
    pub fn for_folder(
        root: &Path,
        options: &PackOptions,
        cache_dir: Option<&Path>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Pack> {
        Pack::for_listing(&list_folder(root)?, options, cache_dir, progress)
    }

    /// As [`Pack::for_folder`], for a folder that is already listed.
    ///
    /// # Errors
    /// As [`Pack::for_folder`].
    pub fn for_listing(
        listing: &Listing,
        options: &PackOptions,
        cache_dir: Option<&Path>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Pack> {
        let cache = cache_dir.map_or_else(default_cache_dir, Path::to_path_buf);
        let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (root, base) = (canonical(&listing.root), canonical(&listing.base));
        // Before it is made: the part of its path that exists decides.
        let existing = cache.ancestors().find_map(|p| p.canonicalize().ok());
        if cache_dir.is_some() && existing.is_some_and(|c| c.starts_with(&base)) {
            return Err(Error::Config(format!(
                "the cache folder {} lies in the data folder, which is never written to; name another",
                cache.display()
            )));
        }
        std::fs::create_dir_all(&cache).map_err(|e| cannot_write(&cache, &e, None))?;
        // One file for a folder and its options: a newer pack takes the older one's place.
        let mut key = Xxh3::new();
        key.update(root.as_os_str().as_encoded_bytes());
        key.update(&json(options));
        let name = root.file_name().map_or("pictures".into(), printable);
        let file = cache.join(format!("{name}-{}-{:016x}.safetensors", options.side, key.digest()));
        if let Ok(pack) = Pack::open(&file)
            && pack.source() == source_key(listing, options)
        {
            return Ok(pack);
        }
        Pack::build(listing, options, &file, progress)
    }

    /// Decodes and resizes the pictures of a listing into the file `out`, which appears when it is complete.
    /// Pictures that cannot be decoded are named in [`Pack::unreadable`].
    ///
    /// # Errors
    /// [`Error::Config`] if `options.side` is 0; [`Error::Data`] if `out` cannot be written, with the bytes needed
    /// and free if it is a matter of space.
    pub fn build(
        listing: &Listing,
        options: &PackOptions,
        out: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Pack> {
        let mut index = Index { classes: listing.classes.clone(), ..Default::default() };
        for entry in &listing.entries {
            index.push(&entry.name(), entry.class, entry.split);
        }
        let writer = Writer::create(out, options, &index)?;
        let total = listing.entries.len();
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let large = Mutex::new(());
        let reader = Reader::new(listing);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(total.max(1));
        let result = std::thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            for _ in 0..threads {
                let (send, writer, next, stop, large, reader) =
                    (send.clone(), &writer, &next, &stop, &large, &reader);
                scope.spawn(move || {
                    let mut squarer = Squarer::default();
                    while !stop.load(Ordering::Relaxed) {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(entry) = listing.entries.get(i) else { break };
                        let square = load_square(reader, entry, options, &mut squarer, large);
                        let outcome = square.map(|pixels| (xxh3_64(&pixels), writer.put(i, &pixels)));
                        if send.send((i, outcome)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            progress(0, total);
            for (done, (i, outcome)) in receive.iter().enumerate() {
                match outcome {
                    Ok((hash, Ok(()))) => index.hashes[i] = hash,
                    Ok((_, Err(e))) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err(cannot_write(out, &e, Some(writer.total_bytes)));
                    }
                    Err(reason) => {
                        let path = listing.entries[i].name();
                        index.unreadable.push(Unreadable { index: i as u32, path, reason });
                    }
                }
                progress(done + 1, total);
            }
            Ok(())
        });
        result?;
        index.unreadable.sort_by_key(|u| u.index);
        writer.finish(options, &index, &source_key(listing, options))?;
        Pack::open(out)
    }

    /// Writes the pack to a file.
    ///
    /// # Errors
    /// [`Error::Data`] if `out` cannot be written.
    pub fn save(&self, out: &Path) -> Result<()> {
        let writer = Writer::create(out, self.options(), self.index())?;
        for i in 0..self.len() {
            if let Some(pixels) = self.picture(i) {
                writer.put(i, pixels).map_err(|e| cannot_write(out, &e, Some(writer.total_bytes)))?;
            }
        }
        writer.finish(self.options(), self.index(), self.source())
    }
}

/// Reads, decodes and squares one picture.
fn load_square(
    reader: &Reader,
    entry: &Entry,
    options: &PackOptions,
    squarer: &mut Squarer,
    large: &Mutex<()>,
) -> std::result::Result<Vec<u8>, String> {
    let contents: Contents = reader.read(entry)?;
    let _alone =
        (contents.bytes() > LARGE_FILE_BYTES).then(|| large.lock().unwrap_or_else(|e| e.into_inner()));
    let picture = contents.decode(options.exif)?;
    Ok(squarer.square(&picture, options.side, options.fit))
}

/// Stands for the files that a pack is made from; equal keys mean that nothing needs to be decoded again.
fn source_key(listing: &Listing, options: &PackOptions) -> String {
    let mut hash = Xxh3::new();
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(&json(options));
    listing.key_parts(&mut part);
    format!("{:032x}", hash.digest128())
}

/// A pack file that is being written under another name beside its own; removed again unless it is finished.
struct Writer {
    file: Mutex<File>,
    temporary: PathBuf,
    out: PathBuf,
    /// Where the tensors begin.
    data_start: u64,
    n: usize,
    side: usize,
    /// What the whole file will take, the list of unreadable pictures aside.
    total_bytes: u64,
    finished: bool,
}

impl Writer {
    fn create(out: &Path, options: &PackOptions, index: &Index) -> Result<Writer> {
        if options.side == 0 {
            return Err(Error::Config("stored pictures of 0 pixels: the side must be at least 1".into()));
        }
        // The list of unreadable pictures and the digests are not known yet: leave room for their digits.
        let provisional = header(options, index, "", "", u64::from(u32::MAX));
        let header_bytes = (8 + provisional.len() as u64 + 128).next_multiple_of(4096) - 8;
        let n = index.labels.len();
        let [_, _, pictures, splits, paths, _] = ranges(n, options.side, index.paths.len() as u64, 0);
        let total_bytes = 8 + header_bytes + paths.1;
        debug_assert!(pictures.1 <= splits.1);
        let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Some(free) = free_bytes(folder)
            && free < total_bytes
        {
            return Err(Error::Data(format!(
                "{}: the pack needs {} and {} are free there; make room or name another cache folder",
                out.display(),
                human_bytes(total_bytes),
                human_bytes(free)
            )));
        }
        let name = out.file_name().map_or("pack".into(), printable);
        let temporary = folder.join(format!(".{name}.{}.partial", std::process::id()));
        // A leaving of a killed run with the same process number; nobody else writes this name.
        let _ = std::fs::remove_file(&temporary);
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| cannot_write(out, &e, Some(total_bytes)))?;
        let data_start = 8 + header_bytes;
        let side = options.side;
        Ok(Writer {
            file: Mutex::new(file),
            temporary,
            out: out.into(),
            data_start,
            n,
            side,
            total_bytes,
            finished: false,
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    /// Writes the pixels of picture `i`.
    fn put(&self, i: usize, pixels: &[u8]) -> std::io::Result<()> {
        let first = self.data_start + ranges(self.n, self.side, 0, 0)[2].0;
        self.write_at(first + (i * picture_len(self.side)) as u64, pixels)
    }

    /// Writes what belongs to the pixels and gives the file its name, durably.
    fn finish(mut self, options: &PackOptions, index: &Index, source: &str) -> Result<()> {
        let unreadable = json(&index.unreadable);
        let ranges = ranges(self.n, self.side, index.paths.len() as u64, unreadable.len() as u64);
        let mut head = header(options, index, source, &index.fingerprint(options), unreadable.len() as u64);
        let room = (self.data_start - 8) as usize;
        assert!(head.len() <= room, "a header of {} bytes in {room}", head.len());
        head.resize(room, b' ');
        let write = || {
            self.write_at(0, &(room as u64).to_le_bytes())?;
            self.write_at(8, &head)?;
            let parts: [(usize, &[u8]); 5] = [
                (0, &le_bytes_u64(&index.hashes)),
                (1, &le_bytes_u32(&index.labels)),
                (3, &index.split_bytes()),
                (4, index.paths.as_bytes()),
                (5, &unreadable),
            ];
            for (which, bytes) in parts {
                self.write_at(self.data_start + ranges[which].0, bytes)?;
            }
            let file = self.file.lock().unwrap_or_else(|e| e.into_inner());
            // Pictures at the end that could not be decoded were never written.
            file.set_len(self.data_start + ranges[5].1)?;
            file.sync_all()?;
            std::fs::rename(&self.temporary, &self.out)
        };
        write().map_err(|e| cannot_write(&self.out, &e, Some(self.total_bytes)))?;
        self.finished = true;
        // The new name is durable when its folder is.
        if let Some(folder) = self.out.parent()
            && let Ok(folder) = File::open(folder)
        {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Where each tensor lies in the data: hashes, labels, pictures, splits, paths, unreadable.
fn ranges(n: usize, side: usize, path_bytes: u64, unreadable_bytes: u64) -> [(u64, u64); 6] {
    let n = n as u64;
    let mut at = 0;
    [8 * n, 4 * n, n * picture_len(side) as u64, n, path_bytes, unreadable_bytes].map(|bytes| {
        let start = at;
        at += bytes;
        (start, at)
    })
}

fn header(
    options: &PackOptions,
    index: &Index,
    source: &str,
    fingerprint: &str,
    unreadable_bytes: u64,
) -> Vec<u8> {
    let n = index.labels.len();
    let path_bytes = index.paths.len() as u64;
    let ranges = ranges(n, options.side, path_bytes, unreadable_bytes);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("JSON is UTF-8");
    let mut head = Map::new();
    head.insert(
        "__metadata__".into(),
        value!({
            "format": FORMAT,
            "classes": text(json(&index.classes)),
            "options": text(json(options)),
            "source": source,
            "fingerprint": fingerprint,
        }),
    );
    let side = options.side;
    let tensors: [(&str, &str, Value); 6] = [
        ("hashes", "U64", value!([n])),
        ("labels", "U32", value!([n])),
        ("pictures", "U8", value!([n, side, side, 3])),
        ("splits", "U8", value!([n])),
        ("paths", "U8", value!([path_bytes])),
        ("unreadable", "U8", value!([unreadable_bytes])),
    ];
    for ((name, dtype, shape), (start, end)) in tensors.into_iter().zip(ranges) {
        head.insert(name.into(), value!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    json(&head)
}

fn cannot_write(path: &Path, error: &std::io::Error, needed: Option<u64>) -> Error {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let folder = path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("."));
    let sizes = match (needed, free_bytes(folder)) {
        (Some(needed), Some(free)) => {
            format!(" (the pack needs {}, {} are free)", human_bytes(needed), human_bytes(free))
        }
        _ => String::new(),
    };
    let (why, what_to_do) = match error.kind() {
        StorageFull | QuotaExceeded => {
            (format!("no space left{sizes}"), "make room or name another cache folder")
        }
        PermissionDenied | ReadOnlyFilesystem => {
            (super::decode::io_reason(error), "name a cache folder that can be written to")
        }
        _ => (format!("{error}{sizes}"), "check the folder or name another cache folder"),
    };
    Error::Data(format!("cannot write {}: {why}; {what_to_do}", path.display()))
}

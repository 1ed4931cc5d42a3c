//! Making packs: every picture of a source decoded once, on all cores, appended to the file in the order of the
//! listing.
//!
//! **Memory** does not grow with the set but for its index (about a hundred bytes a picture). In flight are at most four
//! pictures a thread, and files of at most 256 MiB together (or a single larger one); decoded pictures of
//! more than 16 million pixels are let through one at a time ([`Gate`]). Buffers are used again, at most 16 MiB of them a
//! thread ([`super::spare`]).
//!
//! **The bytes** of a pack depend on the listing, the files and the options alone: pictures are appended in order
//! whichever thread makes them, all statistics are integers, and a build that was killed goes on after the last piece
//! that is on the disk ([`super::pack_file`]).

mod assembly;
mod maker;

use super::decode::{Exif, Gate, size_px};
use super::disk::{free_bytes, human_bytes};
use super::pack::{Form, Keep, Pack, PackOptions, Shard, picture_len};
use super::pack_file::{Writer, cannot_write};
use super::pack_format::{Index, json};
use super::source::{Contents, Entry, Listing, Place, Reader, list_folder, printable};
use super::stats::Stats;
use crate::error::{Error, Result};
use assembly::Assembly;
use maker::Maker;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use xxhash_rust::xxh3::Xxh3;

/// A pack of more bytes than this is made only when that was asked for.
pub const LARGE_BYTES: u64 = 100_000_000_000;
/// Pictures whose size is looked up to estimate what whole pictures take.
const SAMPLED: usize = 64;
/// Raw bytes over those of a JPEG of quality 95 with halved chroma: about 28 KB for 256² of a photograph.
const RAW_OVER_JPEG: u64 = 7;

/// How a pack is made; nothing here changes what is in it, but for the shard.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Threads that decode; 0 for one a core.
    pub threads: usize,
    /// Only this part of the set.
    pub shard: Option<Shard>,
    /// Whether it may take more than [`LARGE_BYTES`].
    pub large: bool,
    /// Pictures between two points from which a killed build goes on; at least 1.
    pub piece: usize,
}

impl Default for BuildOptions {
    /// All cores, the whole set, at most [`LARGE_BYTES`], pieces of 1,024.
    fn default() -> Self {
        BuildOptions { threads: 0, shard: None, large: false, piece: 1024 }
    }
}

/// What a pack will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Of its pictures.
    pub bytes: u64,
    /// Whether that is known and not guessed from a few pictures.
    pub exact: bool,
}

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
    /// (pictures done, pictures in all), the first time those that an interrupted build had done.
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

    /// As [`Pack::for_folder`], for a source that is already listed.
    ///
    /// # Errors
    /// As [`Pack::for_folder`].
    pub fn for_listing(
        listing: &Listing,
        options: &PackOptions,
        cache_dir: Option<&Path>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Pack> {
        Pack::for_listing_with(listing, options, &BuildOptions::default(), cache_dir, progress)
    }

    /// As [`Pack::for_listing`], made in a certain way if it is made. It is always the whole set.
    ///
    /// # Errors
    /// As [`Pack::for_folder`].
    pub fn for_listing_with(
        listing: &Listing,
        options: &PackOptions,
        build: &BuildOptions,
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
        // One file for a source and its options: a newer pack takes the older one's place.
        let mut key = Xxh3::new();
        key.update(root.as_os_str().as_encoded_bytes());
        key.update(&json(options));
        let name = root.file_name().map_or("pictures".into(), printable);
        let file = cache.join(format!("{name}-{}-{:016x}.safetensors", options.side, key.digest()));
        // One of an older format does not open, and is made again.
        if let Ok(pack) = Pack::open(&file)
            && pack.source() == source_key(listing, options)
        {
            return Ok(pack);
        }
        Pack::build_with(listing, options, &BuildOptions { shard: None, ..build.clone() }, &file, progress)
    }

    /// Decodes and resizes the pictures of a listing into the file `out`, which appears when it is complete, with the
    /// default [`BuildOptions`].
    ///
    /// # Errors
    /// As [`Pack::build_with`].
    pub fn build(
        listing: &Listing,
        options: &PackOptions,
        out: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Pack> {
        Pack::build_with(listing, options, &BuildOptions::default(), out, progress)
    }

    /// Decodes and resizes the pictures of a listing, or of one part of it, into the file `out`, which appears when it
    /// is complete. Pictures that cannot be decoded are named in [`Pack::unreadable`].
    /// Whatever stops it, the same call goes on where it stopped.
    ///
    /// # Errors
    /// [`Error::Config`] for options that contradict each other, and for a pack of more than [`LARGE_BYTES`] unless
    /// that was asked for; [`Error::Data`] if `out` cannot be written, with the bytes needed and free if it is a matter
    /// of space.
    pub fn build_with(
        listing: &Listing,
        options: &PackOptions,
        build: &BuildOptions,
        out: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Pack> {
        options.check()?;
        let total = listing.entries.len();
        let range = build.shard.map_or(0..total, |shard| shard.range(total));
        let entries = &listing.entries[range];
        let mut index = Index { classes: listing.classes.clone(), ..Default::default() };
        for entry in entries {
            index.push(&entry.name(), entry.class, entry.split);
        }
        let estimate = estimate(listing, entries, options);
        if estimate.bytes > LARGE_BYTES && !build.large {
            return Err(too_large(out, options, entries.len(), estimate.bytes));
        }
        let source = source_key(listing, options);
        let key = json(&(&source, build.shard.map(|s| s.to_string()), index.fingerprint(options)));
        let (writer, journal, pieces) = Writer::begin(out, options, &index, estimate.bytes, &key)?;
        let (reader, gate, written) = (Reader::new(listing), Gate::default(), Mutex::default());
        let maker = Maker { reader, entries, options, gate, written };
        let mut assembly = Assembly::new(index, options, &pieces);
        let (made, writer, journal) = assembly.make(&maker, build, writer, journal, progress);
        match made {
            Ok(()) => writer.finish(&assembly.index, &source, build.shard, journal)?,
            Err(error) => {
                if assembly.recorded == 0 {
                    writer.discard(journal);
                }
                return Err(error);
            }
        }
        Pack::open_part(out)
    }

    /// What the pictures of a listing (of a part of it) will take.
    ///
    /// # Errors
    /// [`Error::Config`] for options that contradict each other.
    pub fn estimate(listing: &Listing, options: &PackOptions, shard: Option<Shard>) -> Result<Estimate> {
        options.check()?;
        let total = listing.entries.len();
        Ok(estimate(listing, &listing.entries[shard.map_or(0..total, |s| s.range(total))], options))
    }

    /// Writes the pack to a file.
    ///
    /// # Errors
    /// [`Error::Data`] if `out` cannot be written.
    pub fn save(&self, out: &Path) -> Result<()> {
        let mut index = self.index().clone();
        if index.sums.is_none() {
            let counted: Vec<u32> = (0..self.len() as u32).filter(|&i| index.counts(i as usize)).collect();
            index.sums = Some(Stats::sums(self, &counted, 1)?);
        }
        let bytes = (0..self.len()).map(|i| self.stored_bytes(i).len() as u64).sum();
        let (mut writer, journal, _) = Writer::begin(out, self.options(), &index, bytes, &unique_key())?;
        for i in 0..self.len() {
            if let Err(error) = writer.append(self.stored_bytes(i)) {
                writer.discard(journal);
                return Err(error);
            }
        }
        writer.finish(&index, self.source(), self.shard(), journal)
    }
}

/// A key that no journal has: what is copied is begun anew.
pub(super) fn unique_key() -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("copy {} {now}", std::process::id()).into_bytes()
}

fn estimate(listing: &Listing, entries: &[Entry], options: &PackOptions) -> Estimate {
    let n = entries.len() as u64;
    let square =
        n.saturating_mul((picture_len(1) as u64).saturating_mul((options.side as u64).saturating_pow(2)));
    let raw = match options.keep {
        Keep::Original => {
            let bytes = entries.iter().map(file_bytes).fold(0, u64::saturating_add);
            return Estimate { bytes, exact: true };
        }
        Keep::Square if options.form == Form::Raw => return Estimate { bytes: square, exact: true },
        Keep::Square => square,
        Keep::Whole => {
            let reader = Reader::new(listing);
            let aspect = |entry: &Entry| {
                let (w, h) = match reader.read(entry).ok()? {
                    Contents::Encoded(bytes) => size_px(&bytes, Exif::Ignore).ok()?,
                    Contents::Pixels(p) => (p.width, p.height),
                };
                Some(w.max(h) as f64 / w.min(h) as f64)
            };
            let aspects: Vec<f64> = entries.iter().take(SAMPLED).filter_map(aspect).collect();
            let mean = aspects.iter().sum::<f64>() / aspects.len().max(1) as f64;
            (square as f64 * mean.max(1.0)) as u64
        }
    };
    let over = if options.form == Form::Jpeg { RAW_OVER_JPEG } else { 1 };
    Estimate { bytes: raw / over, exact: false }
}

/// Bytes that an entry's file holds; of rows of tables, which do not say, a photograph's.
fn file_bytes(entry: &Entry) -> u64 {
    match entry.place {
        Place::File { bytes, .. } | Place::Part { bytes, .. } => bytes,
        Place::Row { .. } => 110 << 10,
        Place::Planes { .. } => 3072,
    }
}

fn too_large(out: &Path, options: &PackOptions, n: usize, bytes: u64) -> Error {
    let free = free_bytes(out.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new(".")));
    let free = free.map_or(String::new(), |free| format!("; {} are free there", human_bytes(free)));
    let smaller = match (options.keep, options.form) {
        (Keep::Square | Keep::Whole, Form::Raw) => {
            format!(", or --form jpeg, which takes about {}", human_bytes(bytes / RAW_OVER_JPEG))
        }
        _ => String::new(),
    };
    Error::Config(format!(
        "{}: the pack of {n} pictures needs {}{free}; say --large to `alexnet data pack` if that is meant{smaller}",
        out.display(),
        human_bytes(bytes),
    ))
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

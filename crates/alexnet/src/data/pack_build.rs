//! Making packs: every picture of a source decoded once, on all cores, appended to the file in the order of the
//! listing.
//!
//! **Memory** does not grow with the set but for its index (about a hundred bytes a picture). In flight are at most four
//! pictures a thread, and files of at most [`IN_FLIGHT_BYTES`] together (or a single larger one); decoded pictures of
//! more than 16 million pixels are let through one at a time ([`Gate`]). Buffers are used again, at most 16 MiB of them a
//! thread ([`super::spare`]).
//!
//! **The bytes** of a pack depend on the listing, the files and the options alone: pictures are appended in order
//! whichever thread makes them, all statistics are integers, and a build that was killed goes on after the last piece
//! that is on the disk ([`super::pack_file`]).

use super::decode::{Exif, Gate, Picture, decode_with, size_px};
use super::disk::{free_bytes, human_bytes};
use super::in_order::InOrder;
use super::pack::{Form, Keep, Pack, PackOptions, Shard, Unreadable, picture_len};
use super::pack_file::{Journal, Piece, Stored, Writer, cannot_write};
use super::pack_format::{Index, json};
use super::resize::{Frame, Squarer};
use super::source::{Contents, Entry, Listing, Place, Reader, list_folder, printable};
use super::stats::{Stats, Sums};
use crate::error::{Error, Result};
use image::ImageEncoder;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Files that are read and not yet written, together.
const IN_FLIGHT_BYTES: u64 = 256 << 20;
/// Pictures in flight for each thread.
const IN_FLIGHT_A_THREAD: usize = 4;
/// A pack of more bytes than this is made only when that was asked for.
pub const LARGE_BYTES: u64 = 100_000_000_000;
/// Pictures whose size is looked up to estimate what whole pictures take.
const SAMPLED: usize = 64;
/// Quality of stored JPEGs, as OpenCV's default and the tool of 2014.
const JPEG_QUALITY: u8 = 95;
/// Raw bytes over those of a JPEG of that quality with halved chroma: about 28 KB for 256² of a photograph.
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

/// A picture as it will be stored, and its square for the statistics where that is not what is stored.
struct Made {
    stored: Vec<u8>,
    width: usize,
    height: usize,
    square: Option<Vec<u8>>,
}

/// What makes pictures, shared by the threads.
struct Maker<'a> {
    reader: Reader<'a>,
    entries: &'a [Entry],
    options: &'a PackOptions,
    gate: Gate,
    /// Memory of pictures that have been written.
    written: Mutex<Vec<Vec<u8>>>,
}

impl Maker<'_> {
    /// Reads, decodes, resizes and encodes picture `i`.
    fn make(&self, i: usize, squarer: &mut Squarer) -> std::result::Result<Made, String> {
        let (framing, options) = (self.options.framing(), self.options);
        // All of it, so that it cannot pile up.
        let written = std::mem::take(&mut *self.written.lock().unwrap_or_else(|e| e.into_inner()));
        written.into_iter().for_each(|memory| squarer.give(memory));
        let contents = self.reader.read_with(&self.entries[i], &mut |bytes| squarer.take(bytes))?;
        let (file, picture, _turn) = match contents {
            Contents::Encoded(bytes) => {
                let memory = &mut |bytes| squarer.take(bytes);
                let (picture, turn) = decode_with(&bytes, options.exif, &self.gate, memory)?;
                (Some(bytes), picture, turn)
            }
            Contents::Pixels(picture) => (None, picture, None),
        };
        let made = match options.keep {
            Keep::Square => {
                let pixels = squarer.square(&picture, framing);
                self.encode(pixels, options.side, options.side, squarer)?
            }
            Keep::Whole => {
                let (pixels, width, height) = squarer.whole(&picture, framing);
                self.encode(pixels, width, height, squarer)?
            }
            Keep::Original => {
                let square = Some(squarer.square(&picture, framing));
                let (width, height) = (picture.width, picture.height);
                let stored = match file {
                    Some(file) => file,
                    None => png(&picture)?,
                };
                squarer.give(picture.pixels);
                return Ok(Made { stored, width, height, square });
            }
        };
        squarer.give(picture.pixels);
        file.into_iter().for_each(|bytes| squarer.give(bytes));
        Ok(made)
    }

    /// Pixels, (height, width, 3), in the form that they are stored in.
    fn encode(
        &self,
        pixels: Vec<u8>,
        width: usize,
        height: usize,
        squarer: &mut Squarer,
    ) -> std::result::Result<Made, String> {
        let options = self.options;
        let square = |pixels: &[u8]| {
            let whole = Frame::whole(pixels, width, height);
            (width != height).then(|| whole.central_square(options.side, options.resize).to_pixels())
        };
        if options.form == Form::Raw {
            return Ok(Made { square: square(&pixels), stored: pixels, width, height });
        }
        let stored = jpeg(&pixels, width, height)?;
        // The statistics are those of the pictures as they will be seen.
        squarer.give(pixels);
        let memory = &mut |bytes| squarer.take(bytes);
        let seen = decode_with(&stored, Exif::Ignore, &Gate::default(), memory)?.0.pixels;
        Ok(Made { square: Some(square(&seen).unwrap_or(seen)), stored, width, height })
    }
}

fn jpeg(pixels: &[u8], width: usize, height: usize) -> std::result::Result<Vec<u8>, String> {
    let side =
        |v: usize| u16::try_from(v).map_err(|_| format!("a side of {v} pixels is too long for a JPEG"));
    let mut bytes = Vec::with_capacity(pixels.len() / RAW_OVER_JPEG as usize);
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, JPEG_QUALITY);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    let encoded = encoder.encode(pixels, side(width)?, side(height)?, jpeg_encoder::ColorType::Rgb);
    encoded.map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn png(picture: &Picture) -> std::result::Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (w, h) = (picture.width as u32, picture.height as u32);
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    let encoded = encoder.write_image(&picture.pixels, w, h, image::ExtendedColorType::Rgb8);
    encoded.map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The index as it grows, and the piece under construction.
struct Assembly {
    index: Index,
    options: PackOptions,
    /// Pictures so far.
    done: usize,
    /// Pieces that were recorded.
    recorded: usize,
    piece: Piece,
    total: Sums,
}

impl Assembly {
    /// Begins with the pieces that are there already.
    fn new(mut index: Index, options: &PackOptions, pieces: &[Piece]) -> Self {
        if !options.is_raw_squares() {
            index.offsets.push(0);
        }
        let mut assembly = Assembly {
            index,
            options: options.clone(),
            done: 0,
            recorded: pieces.len(),
            piece: Piece::new(options.side),
            total: Sums::new(options.side),
        };
        for piece in pieces {
            piece.pictures.iter().for_each(|p| assembly.note(*p));
            assembly.index.unreadable.extend(piece.unreadable.iter().cloned());
            assembly.total.merge(&piece.sums);
        }
        assembly
    }

    /// Takes a picture into the index.
    fn note(&mut self, p: Stored) {
        self.index.hashes[self.done] = p.hash;
        if let Some(&end) = self.index.offsets.last() {
            self.index.offsets.push(end + u64::from(p.bytes));
            self.index.sizes.push([p.width, p.height]);
        }
        self.done += 1;
    }

    /// Makes the pictures that are not there yet.
    fn make(
        &mut self,
        maker: &Maker,
        build: &BuildOptions,
        mut writer: Writer,
        journal: Journal,
        progress: &mut dyn FnMut(usize, usize),
    ) -> (Result<()>, Writer, Journal) {
        let total = maker.entries.len();
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if build.threads == 0 { cores() } else { build.threads }.clamp(1, total.max(1));
        let line = InOrder::new(self.done..total, threads * IN_FLIGHT_A_THREAD, IN_FLIGHT_BYTES);
        let handle = match writer.handle() {
            Ok(handle) => handle,
            Err(e) => return (Err(e), writer, journal),
        };
        progress(self.done, total);
        let (result, journal) = std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| work(maker, &line));
            }
            // Syncing takes its time: another thread does it while this one writes on.
            let (records, to_record) = sync_channel(1);
            let recorder = scope.spawn(move || record(journal, &handle, &to_record));
            let mut result = Ok(());
            while let Some(made) = line.next() {
                result = self.take(made, maker, &mut writer);
                let full = self.piece.pictures.len() >= build.piece.max(1) && self.done < total;
                if result.is_ok() && full {
                    self.piece.sums.settle();
                    let piece = std::mem::replace(&mut self.piece, Piece::new(self.options.side));
                    self.total.merge(&piece.sums);
                    self.recorded += 1;
                    // Fails if the recorder met an error, which it will tell.
                    result =
                        records.send(piece).map_err(|_| Error::Data("the journal was not written".into()));
                }
                if result.is_err() {
                    line.stop();
                    break;
                }
                progress(self.done, total);
            }
            drop(records);
            let (recorded, journal) = recorder.join().expect("recording does not panic");
            let recorded = recorded.map_err(|e| writer.cannot_write(&e));
            (recorded.and(result), journal)
        });
        self.piece.sums.settle();
        self.total.merge(&self.piece.sums);
        self.index.sums = Some(self.total.clone());
        (result, writer, journal)
    }

    /// Appends a picture.
    fn take(
        &mut self,
        made: std::result::Result<Made, String>,
        maker: &Maker,
        writer: &mut Writer,
    ) -> Result<()> {
        let i = self.done;
        let stored = match made {
            Ok(Made { stored, width, height, square }) => {
                writer.append(&stored)?;
                if self.index.counts(i) {
                    let side = self.options.side;
                    let square = square.as_deref().unwrap_or(&stored);
                    self.piece.sums.add(&Frame::whole(square, side, side));
                }
                let (hash, bytes) = (xxh3_64(&stored), stored.len() as u32);
                let mut written = maker.written.lock().unwrap_or_else(|e| e.into_inner());
                written.push(stored);
                written.extend(square);
                // Files and pictures are below 2³².
                Stored { hash, bytes, width: width as u32, height: height as u32 }
            }
            Err(reason) => {
                let path = maker.entries[i].name();
                let unreadable = Unreadable { index: i as u32, path, reason };
                self.piece.unreadable.push(unreadable.clone());
                self.index.unreadable.push(unreadable);
                if self.options.is_raw_squares() {
                    let zeros = vec![0; picture_len(self.options.side)];
                    writer.append(&zeros)?;
                    Stored { bytes: zeros.len() as u32, ..Default::default() }
                } else {
                    Stored::default()
                }
            }
        };
        self.piece.pictures.push(stored);
        self.note(stored);
        Ok(())
    }
}

/// One thread's part: pictures from the line until there are no more.
fn work(maker: &Maker, line: &InOrder<std::result::Result<Made, String>>) {
    let _watch = line.watch();
    let mut squarer = Squarer::default();
    let weight = |i: usize| file_bytes(&maker.entries[i]);
    while let Some(i) = line.take(weight) {
        line.put(i, maker.make(i, &mut squarer), weight(i));
    }
}

/// Makes pieces durable, until there are no more.
fn record(
    mut journal: Journal,
    pictures: &std::fs::File,
    pieces: &Receiver<Piece>,
) -> (std::io::Result<()>, Journal) {
    for piece in pieces {
        if let Err(e) = journal.record(pictures, &piece) {
            return (Err(e), journal);
        }
    }
    (Ok(()), journal)
}

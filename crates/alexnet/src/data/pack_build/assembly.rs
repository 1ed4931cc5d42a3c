//! All pictures: made on all cores, appended in the order of the listing, recorded piece by piece.

use super::maker::{Made, Maker};
use super::{BuildOptions, file_bytes};
use crate::data::in_order::InOrder;
use crate::data::pack::{PackOptions, Unreadable, picture_len};
use crate::data::pack_file::{Journal, Piece, Stored, Writer};
use crate::data::pack_format::Index;
use crate::data::resize::{Frame, Squarer};
use crate::data::stats::Sums;
use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, sync_channel};
use xxhash_rust::xxh3::xxh3_64;

/// Files that are read and not yet written, together.
const IN_FLIGHT_BYTES: u64 = 256 << 20;
/// Pictures in flight for each thread.
const IN_FLIGHT_A_THREAD: usize = 4;

/// The index as it grows, and the piece under construction.
pub(super) struct Assembly {
    pub index: Index,
    options: PackOptions,
    /// Pictures so far.
    done: usize,
    /// Pieces that were recorded.
    pub recorded: usize,
    piece: Piece,
    total: Sums,
}

impl Assembly {
    /// Begins with the pieces that are there already.
    pub fn new(mut index: Index, options: &PackOptions, pieces: &[Piece]) -> Self {
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
    pub fn make(
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

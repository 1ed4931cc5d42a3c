//! Batches of numbers from stored pictures, filled between steps by the threads that compute: the pictures of the next
//! batches are asked for meanwhile, so that they are in memory by then. What is in a batch depends on the seed, the epoch
//! and the samples, never on the number of threads or on what was loaded before.

use super::augment::{Augment, Key, View};
use super::pack::{Keep, Pack, PackOptions, Unreadable};
use super::paint::{Painter, Prepared, Scratch, Value};
use super::preprocess::Preprocess;
use super::resize::{Frame, Squarer};
use crate::error::{Error, Result};
use crate::exec::contract::{Batch, InputLayout, PixelBuffer};
use crate::rng::{Purpose, Stream};
use alexnet_kernels::threads::Threads;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A view of a picture that is to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Index into the pack.
    pub picture: u32,
    /// Which part of it.
    pub view: View,
}

impl Sample {
    /// Training views of the pictures in the order of this epoch: a function of (seed, epoch).
    pub fn shuffled(pictures: &[u32], seed: u64, epoch: u64) -> Vec<Sample> {
        let mut order = pictures.to_vec();
        Stream::new(seed, Purpose::Shuffle, epoch, 0).shuffle(&mut order);
        Sample::of(&order, &[View::Train])
    }

    /// The views of each picture, one picture after the other.
    pub fn of(pictures: &[u32], views: &[View]) -> Vec<Sample> {
        pictures.iter().flat_map(|&picture| views.iter().map(move |&view| Sample { picture, view })).collect()
    }
}

/// Everything that a loader needs.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// The pictures.
    pub pack: Arc<Pack>,
    /// Where the first layer wants its numbers.
    pub layout: InputLayout,
    /// From pixels to numbers.
    pub preprocess: Arc<Preprocess>,
    /// What is varied in views for training.
    pub augment: Augment,
    /// The run's seed.
    pub seed: u64,
}

impl LoaderConfig {
    /// # Errors
    /// [`Error::Config`] if the stored pictures, the preparation and the network's input do not fit together.
    pub fn check(&self) -> Result<()> {
        self.preprocess.check()?;
        let (pack, crop, shape) = (&self.pack, self.preprocess.crop, self.layout.shape);
        // Fixed views are those of the square. How pictures came to be stored is a matter of who chose the pack.
        let varied = self.augment.area.is_some() || self.augment.random_crop;
        let keep = if varied { self.preprocess.keep } else { Keep::Square };
        let wanted = PackOptions { keep, side: self.preprocess.side, ..pack.options().clone() };
        pack.options().serves(&wanted).map_err(|why| {
            Error::Config(format!("the pack does not fit the preprocessing: {why}; pack the pictures again"))
        })?;
        if (shape.c, shape.h, shape.w) != (3, crop, crop) {
            return Err(Error::Config(format!(
                "the network takes {}×{}×{}, the preprocessing gives 3×{crop}×{crop}; set its crop to the network's \
                 input",
                shape.c, shape.h, shape.w
            )));
        }
        Ok(())
    }
}

/// A batch, filled.
#[derive(Debug)]
pub struct LoadedBatch {
    /// In the loader's [`InputLayout`]; zero in padding, unused places and unreadable pictures.
    pub input: PixelBuffer,
    /// One class a sample.
    pub labels: Vec<u32>,
    /// 1, or 0 for a picture that could not be decoded.
    pub weights: Vec<f32>,
    /// Pictures that could be decoded when they were packed and cannot now: the pack is damaged. Their weight is 0 too. One
    /// is there once for each of its views.
    pub damaged: Vec<Unreadable>,
    /// What is in it; may be fewer than the layout's batch.
    pub samples: Vec<Sample>,
}

impl LoadedBatch {
    /// As an executor takes it.
    pub fn as_batch(&self) -> Batch<'_> {
        let LoadedBatch { input, samples, labels, weights, .. } = self;
        Batch { input: input.pixels(), count: samples.len(), labels, weights }
    }
}

/// Batches whose pictures are asked for before they are needed.
const ASKED_AHEAD: usize = 2;

/// Fills one batch after the other, with whatever threads it is lent.
#[derive(Debug)]
pub struct Loader {
    config: LoaderConfig,
    painter: Painter,
    samples: Vec<Sample>,
    epoch: u64,
    /// The number of the next batch.
    next: usize,
    filled: LoadedBatch,
    /// One a thread; no two threads want the same.
    tools: Vec<Mutex<Tools>>,
}

impl Loader {
    /// Allocates the memory of a batch.
    ///
    /// Panics if [`LoaderConfig::check`] fails; call it first where the parts come from a user.
    pub fn new(config: LoaderConfig) -> Loader {
        if let Err(e) = config.check() {
            panic!("{e}");
        }
        let filled = LoadedBatch {
            input: PixelBuffer::zeros(config.layout.values, config.layout.len()),
            labels: vec![],
            weights: vec![],
            damaged: vec![],
            samples: vec![],
        };
        let painter = Painter::new(&config.preprocess, &config.augment);
        Loader { config, painter, samples: vec![], epoch: 0, next: 0, filled, tools: vec![] }
    }

    /// Begins with these samples, in this order, from batch `first_batch` on; what is left of an earlier list is
    /// dropped.
    pub fn begin(&mut self, samples: Vec<Sample>, epoch: u64, first_batch: usize) {
        (self.samples, self.epoch, self.next) = (samples, epoch, first_batch);
        (first_batch..first_batch + ASKED_AHEAD).for_each(|batch| self.ask_for(batch));
    }

    /// The next batch, filled by these threads, or `None` after the last.
    pub fn next(&mut self, threads: &mut Threads) -> Option<&LoadedBatch> {
        if self.remaining() == 0 {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.ask_for(number + ASKED_AHEAD);
        self.tools.resize_with(self.tools.len().max(threads.count()), Default::default);
        let Loader { config, painter, epoch, filled, tools, .. } = self;
        let batch = config.layout.batch;
        let place = Place { epoch: *epoch, first: (number * batch) as u64 };
        filled.samples.clear();
        filled.samples.extend(self.samples.chunks(batch).nth(number).unwrap_or_default());
        let samples = &filled.samples;
        let filling = Filling { config, painter, samples, place, tools };
        let lost = match &mut filled.input {
            PixelBuffer::F32(values) => filling.fill(threads, values),
            PixelBuffer::Bf16(bits) => filling.fill(threads, bits),
        };
        let pack = &config.pack;
        filled.labels = samples.iter().map(|s| pack.label(s.picture as usize)).collect();
        filled.weights = samples.iter().map(|s| f32::from(pack.is_readable(s.picture as usize))).collect();
        lost.iter().for_each(|(n, _)| filled.weights[*n] = 0.0);
        filled.damaged = lost.into_iter().map(|(n, why)| unreadable(pack, samples[n], why)).collect();
        Some(&self.filled)
    }

    /// Batches that [`Loader::next`] will still give.
    pub fn remaining(&self) -> usize {
        self.samples.len().div_ceil(self.config.layout.batch).saturating_sub(self.next)
    }

    /// Has the system read the pictures of a batch, if there is such a batch.
    fn ask_for(&self, batch: usize) {
        let samples = self.samples.chunks(self.config.layout.batch).nth(batch).unwrap_or_default();
        for views in samples.chunk_by(|a, b| a.picture == b.picture) {
            self.config.pack.ask_for(views[0].picture as usize);
        }
    }
}

fn unreadable(pack: &Pack, sample: Sample, reason: String) -> Unreadable {
    Unreadable { index: sample.picture, path: pack.path(sample.picture as usize).into(), reason }
}

/// The place of a sample in its batch, and why it has no pixels though it had when it was packed.
type Lost = (usize, String);

/// Where a batch stands in a run.
#[derive(Clone, Copy)]
struct Place {
    epoch: u64,
    /// The position in the epoch of its first sample.
    first: u64,
}

/// What a thread keeps from batch to batch.
#[derive(Debug, Default)]
struct Tools {
    scratch: Scratch,
    squarer: Squarer,
}

impl Tools {
    /// Keeps the memory of pixels that were decoded or resized.
    fn reuse(&mut self, frame: Frame) {
        if let std::borrow::Cow::Owned(pixels) = frame.pixels {
            self.squarer.give(pixels);
        }
    }
}

/// Views of one stored picture that follow each other in a batch, the first at place `first`.
struct Shown<'a> {
    first: usize,
    samples: &'a [Sample],
    /// As many, once they are drawn: none if there is no picture.
    views: Vec<Option<Prepared<'a>>>,
    /// Why there is none, if there was when it was packed.
    lost: Option<String>,
}

/// Some rows of a block of pictures, which are one piece of the buffer.
struct Rows<'a, T> {
    block: usize,
    first: usize,
    values: &'a mut [T],
}

/// Rows of pictures that a thread writes at a time: as many as one picture has in most networks.
const ROWS_AT_A_TIME: usize = 256;

/// A batch that is being filled.
struct Filling<'a> {
    config: &'a LoaderConfig,
    painter: &'a Painter,
    samples: &'a [Sample],
    place: Place,
    tools: &'a [Mutex<Tools>],
}

impl Filling<'_> {
    /// First all views are drawn, then all rows written; neither hangs on which thread does what.
    fn fill<T: Value>(&self, threads: &mut Threads, input: &mut [T]) -> Vec<Lost> {
        let layout = &self.config.layout;
        let same = |a: &Sample, b: &Sample| {
            a.picture == b.picture && self.painter.needs(a.view) == self.painter.needs(b.view)
        };
        let mut first = 0;
        let mut shown: Vec<Shown> = self
            .samples
            .chunk_by(same)
            .map(|samples| {
                let shown = Shown { first, samples, views: vec![], lost: None };
                first += samples.len();
                shown
            })
            .collect();
        threads.for_each(&mut shown, |shown, thread| self.draw(shown, &mut self.tools_of(thread)));
        let lost = shown
            .iter()
            .flat_map(|s| {
                let places = s.first..s.first + s.samples.len();
                places.filter_map(|n| Some((n, s.lost.clone()?)))
            })
            .collect();

        let views: Vec<Option<Prepared>> = shown.into_iter().flat_map(|s| s.views).collect();
        let rows = (ROWS_AT_A_TIME / layout.block).max(1);
        let mut pieces: Vec<Rows<T>> = Vec::new();
        for (block, values) in input.chunks_exact_mut(layout.block_len()).enumerate() {
            let of_block = values.chunks_mut(rows * layout.row_len()).enumerate();
            pieces.extend(of_block.map(|(i, values)| Rows { block, first: i * rows, values }));
        }
        threads.for_each(&mut pieces, |piece, thread| {
            let start = (piece.block * layout.block).min(views.len());
            let end = (start + layout.block).min(views.len());
            let views = &views[start..end];
            // The buffer holds an earlier batch where this one has no picture.
            if views.len() < layout.block || views.iter().any(Option::is_none) {
                piece.values.fill(T::default());
            }
            let scratch = &mut self.tools_of(thread).scratch;
            self.painter.write_rows(views, layout, piece.first, piece.values, scratch);
        });
        for (i, view) in views.into_iter().flatten().enumerate() {
            self.tools_of(i % threads.count()).reuse(view.into_frame());
        }
        lost
    }

    fn tools_of(&self, thread: usize) -> MutexGuard<'_, Tools> {
        // After a panic, which ends the run, nobody looks at what it left.
        self.tools[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws all views of a picture. Pixels stay where they are stored if they are stored as they are seen.
    fn draw<'a>(&'a self, shown: &mut Shown<'a>, tools: &mut Tools) {
        let (picture, needed) = (shown.samples[0].picture, self.painter.needs(shown.samples[0].view));
        let frame = match self.config.pack.frame(picture as usize, needed, &mut tools.squarer) {
            Some(Ok(frame)) => frame,
            gone => {
                shown.views.resize_with(shown.samples.len(), || None);
                shown.lost = gone.and_then(|frame| frame.err());
                return;
            }
        };
        for (i, sample) in shown.samples.iter().enumerate() {
            let position = self.place.first + (shown.first + i) as u64;
            let key = Key { seed: self.config.seed, epoch: self.place.epoch, picture, position };
            shown.views.push(Some(self.painter.prepare(&frame, sample.view, key, &mut tools.squarer)));
        }
        tools.reuse(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::NewPicture;
    use crate::exec::contract::PixelType;
    use crate::net::Shape;

    const BAD: u32 = 5;

    fn config(block: usize) -> LoaderConfig {
        let (side, crop) = (12, 8);
        let mut random = Stream::new(1, Purpose::Synthetic, 0, 0);
        let pictures = (0..23).map(|i| NewPicture {
            path: format!("{i}"),
            label: i % 3,
            split: None,
            pixels: if i == BAD {
                Err("cut".into())
            } else {
                Ok((0..side * side * 3).map(|_| random.below(256) as u8).collect())
            },
        });
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        let options = PackOptions { side, ..Default::default() };
        let pack = Arc::new(Pack::from_pictures(classes, &options, pictures).unwrap());
        let shape = Shape { c: 3, h: crop, w: crop };
        let layout = InputLayout { block, fold: 4, pad: 2, columns: 4, ..InputLayout::nhwc(8, shape) };
        let preprocess = Arc::new(Preprocess { side, crop, ..Preprocess::torchvision() });
        LoaderConfig { pack, layout, preprocess, augment: Augment::default(), seed: 9 }
    }

    type Plain = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<Sample>);

    fn drain(loader: &mut Loader, threads: usize) -> Vec<Plain> {
        let mut all = Vec::new();
        let mut threads = Threads::new(threads);
        while let Some(b) = loader.next(&mut threads) {
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let input = match &b.input {
                PixelBuffer::F32(values) => bits(values),
                PixelBuffer::Bf16(halves) => halves.iter().map(|&half| u32::from(half)).collect(),
            };
            all.push((input, b.labels.clone(), bits(&b.weights), b.samples.clone()));
        }
        all
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let pictures: Vec<u32> = (0..23).collect();
        for block in [1, 3, 8] {
            let run = |threads| {
                let mut loader = Loader::new(config(block));
                (0..3u64)
                    .map(|epoch| {
                        loader.begin(Sample::shuffled(&pictures, 9, epoch), epoch, 0);
                        drain(&mut loader, threads)
                    })
                    .collect::<Vec<_>>()
            };
            let one = run(1);
            assert_eq!(one[0].len(), 3);
            assert_ne!(one[0], one[1]);
            for threads in [0, 2, 3, 7] {
                assert_eq!(run(threads), one, "{threads} threads, blocks of {block}");
            }
        }
    }

    #[test]
    fn rounded_pixels_are_the_rounding_of_pixels() {
        // An odd number of values in a row, and pictures that are not there.
        for (block, fold) in [(1, 1usize), (3, 4), (8, 1)] {
            let run = |values| {
                let mut config = config(block);
                let pad = fold / 2;
                let columns = (9 + pad).div_ceil(fold);
                let shape = Shape { c: 3, h: 9, w: 9 };
                config.layout =
                    InputLayout { block, fold, pad, columns, values, ..InputLayout::nhwc(8, shape) };
                config.preprocess = Arc::new(Preprocess { crop: 9, ..(*config.preprocess).clone() });
                let mut loader = Loader::new(config);
                loader.begin(Sample::shuffled(&(0..23).collect::<Vec<_>>(), 9, 0), 0, 0);
                drain(&mut loader, 2)
            };
            let (whole, rounded) = (run(PixelType::F32), run(PixelType::Bf16));
            assert_eq!(rounded.len(), 3);
            for (whole, rounded) in whole.iter().zip(&rounded) {
                let of_whole = |bits: &u32| u32::from(alexnet_kernels::bf16::round(f32::from_bits(*bits)));
                assert_eq!(whole.0.iter().map(of_whole).collect::<Vec<_>>(), rounded.0, "blocks of {block}");
                assert_eq!(whole.1, rounded.1);
            }
        }
    }

    #[test]
    fn beginning_in_the_middle_is_the_rest_of_the_whole() {
        let samples = Sample::shuffled(&(0..23).collect::<Vec<_>>(), 9, 4);
        let mut loader = Loader::new(config(3));
        loader.begin(samples.clone(), 4, 0);
        let whole = drain(&mut loader, 1);
        for first in 0..4 {
            loader.begin(samples.clone(), 4, first);
            assert_eq!(loader.remaining(), 3 - first);
            assert_eq!(drain(&mut loader, 2), whole[first..]);
        }
        // Begun, left, and begun again.
        loader.begin(samples.clone(), 4, 0);
        loader.next(&mut Threads::new(1)).unwrap();
        loader.begin(samples, 4, 1);
        assert_eq!(drain(&mut loader, 2), whole[1..]);
    }

    #[test]
    fn nothing_of_an_earlier_batch_is_left() {
        // After full batches, a short one: places without a picture, and padding, are zero.
        let mut loader = Loader::new(config(3));
        loader.begin(Sample::of(&(6..23).collect::<Vec<_>>(), &[View::Centre]), 0, 0);
        drain(&mut loader, 1);
        loader.begin(Sample::of(&[0, BAD], &[View::Centre]), 0, 0);
        let batch = loader.next(&mut Threads::new(1)).unwrap();
        assert_eq!(batch.weights, [1.0, 0.0]);
        assert_eq!(batch.labels, [0, BAD % 3]);
        let layout = &config(3).layout;
        let mut pixel = vec![false; layout.len()];
        for i in 0..8 * 8 * 3 {
            pixel[layout.offset(0, i % 3, i / 24, i / 3 % 8)] = true;
        }
        let input = batch.input.pixels().as_f32();
        assert!(input.iter().zip(&pixel).all(|(&v, &p)| (v != 0.0) == p));
        assert_eq!(batch.as_batch().count, 2);
    }

    #[test]
    fn an_empty_list_gives_no_batch() {
        let mut loader = Loader::new(config(3));
        assert!(loader.next(&mut Threads::new(2)).is_none());
        loader.begin(Vec::new(), 0, 0);
        assert!(loader.next(&mut Threads::new(2)).is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut c = config(1);
        c.layout.shape = Shape { c: 3, h: 9, w: 9 };
        assert!(c.check().unwrap_err().to_string().contains("3×8×8"));
        let mut c = config(1);
        c.preprocess = Arc::new(Preprocess { side: 13, crop: 8, ..Preprocess::torchvision() });
        assert!(c.check().unwrap_err().to_string().contains("12 pixels"));
    }
}

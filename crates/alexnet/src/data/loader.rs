//! Batches of numbers from stored pictures, made beside the computing. What is in a batch depends on the seed, the
//! epoch and the samples, never on the number of threads or on what was loaded before.

use super::augment::{Augment, Key, View};
use super::pack::{Keep, Pack, PackOptions, Unreadable};
use super::paint::{Painter, Prepared, Scratch, Value};
use super::preprocess::Preprocess;
use super::resize::{Frame, Squarer};
use crate::error::{Error, Result};
use crate::exec::contract::{Batch, InputLayout, PixelBuffer, PixelType};
use crate::rng::{Purpose, Stream};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

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
    /// Threads that fill one batch; at least one is used.
    pub threads: usize,
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

/// A batch, filled. Its memory goes back to the loader when it is dropped.
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
    home: Sender<PixelBuffer>,
}

impl LoadedBatch {
    /// As an executor takes it.
    pub fn as_batch(&self) -> Batch<'_> {
        let LoadedBatch { input, samples, labels, weights, .. } = self;
        Batch { input: input.pixels(), count: samples.len(), labels, weights }
    }
}

impl Drop for LoadedBatch {
    fn drop(&mut self) {
        // The loader may be gone already.
        let empty = PixelBuffer::zeros(PixelType::F32, 0);
        let _ = self.home.send(std::mem::replace(&mut self.input, empty));
    }
}

struct Job {
    samples: Vec<Sample>,
    epoch: u64,
    first_batch: usize,
    out: SyncSender<LoadedBatch>,
}

/// Fills batches in threads of its own: one ahead waits, the next is being filled.
#[derive(Debug)]
pub struct Loader {
    jobs: Option<Sender<Job>>,
    batches: Option<Receiver<LoadedBatch>>,
    left: usize,
    batch: usize,
    worker: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts the threads.
    ///
    /// Panics if [`LoaderConfig::check`] fails; call it first where the parts come from a user.
    pub fn new(config: LoaderConfig) -> Loader {
        if let Err(e) = config.check() {
            panic!("{e}");
        }
        let batch = config.layout.batch;
        let (jobs, todo) = channel::<Job>();
        let worker = std::thread::spawn(move || work(&config, &todo));
        Loader { jobs: Some(jobs), batches: None, left: 0, batch, worker: Some(worker) }
    }

    /// Begins with these samples, in this order, from batch `first_batch` on; what is left of an earlier list is
    /// dropped. The first batches are filled at once.
    pub fn begin(&mut self, samples: Vec<Sample>, epoch: u64, first_batch: usize) {
        self.left = samples.len().div_ceil(self.batch).saturating_sub(first_batch);
        // Dropping the old receiver ends the old job.
        let (out, batches) = sync_channel(1);
        self.batches = Some(batches);
        if let Some(jobs) = &self.jobs {
            // Fails only if the worker panicked, which `next` reports.
            let _ = jobs.send(Job { samples, epoch, first_batch, out });
        }
    }

    /// The next batch, or `None` after the last. Waits if it is not filled yet.
    ///
    /// Panics if a loading thread did.
    #[allow(clippy::should_implement_trait)] // batches are lent out one after the other, not collected
    pub fn next(&mut self) -> Option<LoadedBatch> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        match self.batches.as_ref().map(Receiver::recv) {
            Some(Ok(batch)) => Some(batch),
            _ => {
                self.left = 0;
                self.stop();
                None
            }
        }
    }

    /// Batches that [`Loader::next`] will still give.
    pub fn remaining(&self) -> usize {
        self.left
    }

    fn stop(&mut self) {
        self.batches = None;
        self.jobs = None;
        if let Some(worker) = self.worker.take()
            && let Err(panic) = worker.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop();
    }
}

fn work(config: &LoaderConfig, todo: &Receiver<Job>) {
    let painter = Painter::new(&config.preprocess, &config.augment);
    let (home, returned) = channel();
    for job in todo {
        let batch = config.layout.batch;
        for (i, samples) in job.samples.chunks(batch).enumerate().skip(job.first_batch) {
            // Three are in flight at most, unless the user holds on to them.
            let (values, len) = (config.layout.values, config.layout.len());
            let mut input = returned.try_recv().unwrap_or_else(|_| PixelBuffer::zeros(values, len));
            let first = (i * batch) as u64;
            let mut lost = match &mut input {
                PixelBuffer::F32(values) => fill(config, &painter, samples, job.epoch, first, values),
                PixelBuffer::Bf16(bits) => fill(config, &painter, samples, job.epoch, first, bits),
            };
            // Threads come to blocks in any order.
            lost.sort();
            let shown = |(n, s): (usize, &Sample)| {
                config.pack.is_readable(s.picture as usize) && !lost.iter().any(|(l, _)| *l == n)
            };
            let loaded = LoadedBatch {
                labels: samples.iter().map(|s| config.pack.label(s.picture as usize)).collect(),
                weights: samples.iter().enumerate().map(|s| f32::from(u8::from(shown(s)))).collect(),
                damaged: lost.into_iter().map(|(n, why)| unreadable(config, samples[n], why)).collect(),
                samples: samples.to_vec(),
                input,
                home: home.clone(),
            };
            if job.out.send(loaded).is_err() {
                break;
            }
        }
    }
}

fn unreadable(config: &LoaderConfig, sample: Sample, reason: String) -> Unreadable {
    let path = config.pack.path(sample.picture as usize).into();
    Unreadable { index: sample.picture, path, reason }
}

/// The place of a sample in its batch, and why it has no pixels though it had when it was packed.
type Lost = (usize, String);

/// Fills a batch; the unit of work is a block, which is one piece of the buffer and hangs on nothing but its samples.
fn fill<T: Value>(
    config: &LoaderConfig,
    painter: &Painter,
    samples: &[Sample],
    epoch: u64,
    first: u64,
    input: &mut [T],
) -> Vec<Lost> {
    let layout = &config.layout;
    let blocks = input.chunks_exact_mut(layout.block_len()).enumerate();
    let work = |b: usize, block: &mut [T], tools: &mut Tools| {
        let start = (b * layout.block).min(samples.len());
        let end = ((b + 1) * layout.block).min(samples.len());
        fill_block(config, painter, &samples[start..end], epoch, (first, start), block, tools)
    };
    if config.threads <= 1 {
        let mut tools = Tools::default();
        return blocks.flat_map(|(b, block)| work(b, block, &mut tools)).collect();
    }
    let blocks = Mutex::new(blocks);
    let all_lost = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..config.threads.min(layout.blocks()) {
            scope.spawn(|| {
                let mut tools = Tools::default();
                loop {
                    let next = blocks.lock().expect("taking a block does not panic").next();
                    let Some((b, block)) = next else { break };
                    let lost = work(b, block, &mut tools);
                    if !lost.is_empty() {
                        all_lost.lock().expect("adding to a list does not panic").extend(lost);
                    }
                }
            });
        }
    });
    all_lost.into_inner().expect("adding to a list does not panic")
}

/// What a thread keeps from block to block.
#[derive(Default)]
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

/// What a block has of a sample before its views are drawn.
enum Shown<'a> {
    Nothing,
    /// A view of the frame of this number.
    Of(usize),
    /// A view of an original, which is too large to be kept until all are there.
    Drawn(Box<Prepared<'a>>),
}

/// Fills a block with the samples that begin at place `start` of the batch and `first + start` of the epoch.
fn fill_block<T: Value>(
    config: &LoaderConfig,
    painter: &Painter,
    samples: &[Sample],
    epoch: u64,
    (first, start): (u64, usize),
    block: &mut [T],
    tools: &mut Tools,
) -> Vec<Lost> {
    let layout = &config.layout;
    let key = |n: usize| Key {
        seed: config.seed,
        epoch,
        picture: samples[n].picture,
        position: first + (start + n) as u64,
    };
    let mut lost = Vec::new();
    let mut frames: Vec<((u32, Keep), Frame)> = Vec::new();
    let mut shown = Vec::with_capacity(samples.len());
    for (n, sample) in samples.iter().enumerate() {
        let keep = painter.needs(sample.view);
        // Several views of a picture come one after the other.
        if frames.last().is_some_and(|(of, _)| *of == (sample.picture, keep)) {
            shown.push(Shown::Of(frames.len() - 1));
            continue;
        }
        shown.push(match config.pack.frame(sample.picture as usize, keep, &mut tools.squarer) {
            Some(Ok(frame)) if keep == Keep::Original => {
                let view = painter.prepare(&frame, sample.view, key(n), &mut tools.squarer).into_owned();
                tools.reuse(frame);
                Shown::Drawn(Box::new(view))
            }
            Some(Ok(frame)) => {
                frames.push(((sample.picture, keep), frame));
                Shown::Of(frames.len() - 1)
            }
            Some(Err(why)) => {
                lost.push((start + n, why));
                Shown::Nothing
            }
            None => Shown::Nothing,
        });
    }
    let views: Vec<Option<Prepared>> = shown
        .into_iter()
        .enumerate()
        .map(|(n, shown)| match shown {
            Shown::Nothing => None,
            Shown::Of(i) => Some(painter.prepare(&frames[i].1, samples[n].view, key(n), &mut tools.squarer)),
            Shown::Drawn(view) => Some(*view),
        })
        .collect();
    // The buffer may hold an earlier batch where this one has no picture.
    if samples.len() < layout.block || views.iter().any(Option::is_none) {
        block.fill(T::default());
    }
    painter.write_block(&views, layout, block, &mut tools.scratch);
    views.into_iter().flatten().for_each(|view| tools.reuse(view.into_frame()));
    frames.into_iter().for_each(|(_, frame)| tools.reuse(frame));
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::NewPicture;
    use crate::net::Shape;

    const BAD: u32 = 5;

    fn config(threads: usize, block: usize) -> LoaderConfig {
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
        LoaderConfig { pack, layout, preprocess, augment: Augment::default(), seed: 9, threads }
    }

    type Plain = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<Sample>);

    fn drain(loader: &mut Loader) -> Vec<Plain> {
        let mut all = Vec::new();
        while let Some(b) = loader.next() {
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
                let mut loader = Loader::new(config(threads, block));
                (0..3u64)
                    .map(|epoch| {
                        loader.begin(Sample::shuffled(&pictures, 9, epoch), epoch, 0);
                        drain(&mut loader)
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
                let mut config = config(2, block);
                let pad = fold / 2;
                let columns = (9 + pad).div_ceil(fold);
                let shape = Shape { c: 3, h: 9, w: 9 };
                config.layout =
                    InputLayout { block, fold, pad, columns, values, ..InputLayout::nhwc(8, shape) };
                config.preprocess = Arc::new(Preprocess { crop: 9, ..(*config.preprocess).clone() });
                let mut loader = Loader::new(config);
                loader.begin(Sample::shuffled(&(0..23).collect::<Vec<_>>(), 9, 0), 0, 0);
                drain(&mut loader)
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
        let mut loader = Loader::new(config(2, 3));
        loader.begin(samples.clone(), 4, 0);
        let whole = drain(&mut loader);
        for first in 0..4 {
            loader.begin(samples.clone(), 4, first);
            assert_eq!(loader.remaining(), 3 - first);
            assert_eq!(drain(&mut loader), whole[first..]);
        }
        // Begun, left, and begun again.
        loader.begin(samples.clone(), 4, 0);
        drop(loader.next());
        loader.begin(samples, 4, 1);
        assert_eq!(drain(&mut loader), whole[1..]);
    }

    #[test]
    fn nothing_of_an_earlier_batch_is_left() {
        // After full batches, a short one: places without a picture, and padding, are zero.
        let mut loader = Loader::new(config(1, 3));
        loader.begin(Sample::of(&(6..23).collect::<Vec<_>>(), &[View::Centre]), 0, 0);
        drain(&mut loader);
        loader.begin(Sample::of(&[0, BAD], &[View::Centre]), 0, 0);
        let batch = loader.next().unwrap();
        assert_eq!(batch.weights, [1.0, 0.0]);
        assert_eq!(batch.labels, [0, BAD % 3]);
        let layout = &config(1, 3).layout;
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
        let mut loader = Loader::new(config(2, 3));
        assert!(loader.next().is_none());
        loader.begin(Vec::new(), 0, 0);
        assert!(loader.next().is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut c = config(1, 1);
        c.layout.shape = Shape { c: 3, h: 9, w: 9 };
        assert!(c.check().unwrap_err().to_string().contains("3×8×8"));
        let mut c = config(1, 1);
        c.preprocess = Arc::new(Preprocess { side: 13, crop: 8, ..Preprocess::torchvision() });
        assert!(c.check().unwrap_err().to_string().contains("12 pixels"));
    }
}

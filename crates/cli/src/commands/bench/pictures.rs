//! Where the pictures of a bench come from: made up once and kept in memory, or from a pack, through the loader that
//! training uses.

use crate::failure::Failure;
use alexnet::data::{Augment, Loader, LoaderConfig, Pack, Preprocess, Sample, View};
use alexnet::exec::Executor;
use alexnet::exec::contract::{Batch, InputLayout, PixelBuffer};
use alexnet::net::Network;
use alexnet::rng::{Purpose, Stream};
use std::path::Path;
use std::sync::Arc;

/// A source of batches.
pub enum Pictures {
    /// The same batch again and again.
    MadeUp {
        /// In the executor's layout.
        input: PixelBuffer,
        /// One class a picture.
        labels: Vec<u32>,
        /// All 1.
        weights: Vec<f32>,
    },
    /// Batches of a pack, epoch after epoch; the short one at an epoch's end is passed over.
    Packed(Box<Packed>),
}

/// A pack and its loader.
pub struct Packed {
    loader: Loader,
    /// Pictures of whole batches.
    whole: usize,
    pictures: usize,
    train: bool,
    epoch: u64,
}

impl Pictures {
    /// Pixels after the subtraction of a mean, uniform in ±128, and labels.
    pub fn made_up(layout: &InputLayout, classes: usize) -> Pictures {
        let (input, labels) = made_up(layout, classes);
        let input = PixelBuffer::of(layout.values, &input);
        Pictures::MadeUp { input, labels, weights: vec![1.0; layout.batch] }
    }

    /// The pictures of a pack, cropped to the network's input: at random and mirrored for training.
    ///
    /// # Errors
    /// Of opening the pack; if it has fewer pictures than a batch, more classes than the network, or does not fit it.
    pub fn packed(path: &Path, net: &Network, layout: InputLayout, train: bool) -> Result<Pictures, Failure> {
        let pack = Arc::new(Pack::open(path)?);
        let batch = layout.batch;
        let config = |why: String| Failure::from(alexnet::Error::Config(why));
        if pack.len() < batch {
            return Err(config(format!("--data: the pack has {} pictures, a batch {batch}", pack.len())));
        }
        if pack.classes().len() > net.classes() {
            let (pack, net) = (pack.classes().len(), net.classes());
            return Err(config(format!("--data: the pack has {pack} classes, the network {net}")));
        }
        let options = pack.options();
        let preprocess = Preprocess {
            side: options.side,
            fit: options.fit,
            keep: options.keep,
            resize: options.resize,
            crop: net.input.h,
            ..Preprocess::torchvision()
        };
        let augment = if train { Augment::default() } else { Augment::none() };
        let pictures = pack.len();
        let loader = LoaderConfig { pack, layout, preprocess: Arc::new(preprocess), augment, seed: 0 };
        loader.check()?;
        let whole = pictures / batch * batch;
        let packed = Packed { loader: Loader::new(loader), whole, pictures, train, epoch: 0 };
        Ok(Pictures::Packed(Box::new(packed)))
    }

    /// Hands the next batch, which the executor's threads fill, to `work`.
    pub fn next(&mut self, executor: &mut dyn Executor, work: impl FnOnce(&mut dyn Executor, Batch)) {
        match self {
            Pictures::MadeUp { input, labels, weights } => {
                work(executor, Batch { input: input.pixels(), count: labels.len(), labels, weights });
            }
            Pictures::Packed(packed) => {
                if packed.loader.remaining() == 0 {
                    packed.begin();
                }
                let loaded = packed.loader.next(executor.threads()).expect("an epoch has a batch");
                work(executor, loaded.as_batch());
            }
        }
    }
}

impl Packed {
    /// The next epoch.
    fn begin(&mut self) {
        let all: Vec<u32> = (0..self.pictures as u32).collect();
        let mut samples = match self.train {
            true => Sample::shuffled(&all, 0, self.epoch),
            false => Sample::of(&all, &[View::Centre]),
        };
        samples.truncate(self.whole);
        self.loader.begin(samples, self.epoch, 0);
        self.epoch += 1;
    }
}

/// Pixels after the subtraction of a mean, uniform in ±128, and labels; zeros stay where no pixel maps to.
fn made_up(layout: &InputLayout, classes: usize) -> (Vec<f32>, Vec<u32>) {
    let mut input = vec![0.0; layout.len()];
    let pixels = Stream::new(0, Purpose::Synthetic, 0, 0);
    let mut index = 0;
    for n in 0..layout.batch {
        for y in 0..layout.shape.h {
            for x in 0..layout.shape.w {
                let start = layout.offset(n, 0, y, x);
                for value in &mut input[start..start + layout.shape.c] {
                    *value = (f64::from(pixels.at(index)) / 2f64.powi(24) - 128.0) as f32;
                    index += 1;
                }
            }
        }
    }
    let mut draw = Stream::new(0, Purpose::Synthetic, 1, 0);
    let labels = (0..layout.batch).map(|_| draw.below(classes) as u32).collect();
    (input, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alexnet::net::Shape;

    #[test]
    fn made_up_pictures_leave_padding_alone() {
        let layout = InputLayout {
            block: 2,
            fold: 2,
            pad: 1,
            columns: 3,
            ..InputLayout::nhwc(2, Shape::new(3, 2, 3))
        };
        let (input, labels) = made_up(&layout, 5);
        let pixels = input.iter().filter(|&&v| v != 0.0).count();
        assert_eq!((pixels, input.len()), (2 * 3 * 2 * 3, layout.len()));
        assert!(labels.iter().all(|&l| l < 5) && labels.len() == 2);
    }
}

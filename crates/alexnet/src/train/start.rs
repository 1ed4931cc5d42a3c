//! What a run needs before its first step: weights by the recipe's `from`, and the numbers that the recipe leaves to
//! be measured on the training pictures.

use super::checkpoint::open_model;
use super::init;
use super::recipe::{AxesSpec, Crop, MeanSpec, MeasuredMean, Preprocessing, Recipe};
use crate::data::{Augment, ColourAxes, Mean, Pack, PackOptions, Preprocess, Stats};
use crate::error::{Error, Result};
use crate::exec::contract::Params;
use crate::interchange::{Copied, imagenet, warm_start};
use crate::net::Network;
use std::path::Path;

/// The word in `from` for the convolutions that ship with the program.
pub const IMAGENET: &str = "imagenet";

/// Weights for `net` as the recipe starts: fresh, or copied where the recipe's `from` has them (and then with the
/// lists of what was copied).
///
/// # Errors
/// [`Error::Config`] if ImageNet's convolutions do not belong to `net`; [`Error::Checkpoint`] if the checkpoint
/// cannot be read or has nothing in common with `net`.
pub fn weights(recipe: &Recipe, net: &Network, seed: u64) -> Result<(Params, Option<Copied>)> {
    let mut params = init::fresh(net, seed)?;
    let copied = match recipe.from.as_deref() {
        None => None,
        Some(IMAGENET) => Some(imagenet::copy(net, &mut params)?),
        Some(path) => {
            let source = open_model(Path::new(path))?.checkpoint;
            Some(warm_start::copy(&source.state.network()?, &source.params, net, &mut params)?)
        }
    };
    Ok((params, copied))
}

/// Whether the recipe's `from` can be read and has something for `net`, whatever number of classes that is for: what would
/// only be found after all pictures are packed.
///
/// # Errors
/// As [`weights`].
pub fn check_source(recipe: &Recipe, net: &Network) -> Result<()> {
    let Some(path) = recipe.from.as_deref().filter(|from| *from != IMAGENET) else { return Ok(()) };
    let source = open_model(Path::new(path))?.checkpoint.state.network()?;
    warm_start::compare(&source, &net.clone().with_classes(source.classes())).map(|_| ())
}

impl Recipe {
    /// Takes over the scale, mean and deviation that ImageNet's convolutions were trained with, if the recipe starts from
    /// them; how a picture becomes a square stays the recipe's choice.
    /// True if that changed the recipe.
    pub fn bring_preprocessing(&mut self) -> bool {
        if self.from.as_deref() != Some(IMAGENET) {
            return false;
        }
        let theirs = Preprocess::torchvision();
        let Mean::Channels(mean) = theirs.mean else { return false };
        // Through the decimals that the source states, so that a recipe with the same numbers is the same recipe.
        let exact = |x: [f32; 3]| x.map(|v| v.to_string().parse().unwrap_or(f64::from(v)));
        let brought = Preprocessing {
            side: theirs.side,
            fit: self.preprocess.fit,
            exif: self.preprocess.exif,
            keep: self.preprocess.keep,
            form: self.preprocess.form,
            resize: self.preprocess.resize,
            divisor: 255.0,
            mean_at: self.preprocess.mean_at,
            mean: MeanSpec::Fixed(exact(mean)),
            std: exact(theirs.std),
        };
        let changed = brought != self.preprocess;
        self.preprocess = brought;
        changed
    }

    /// How the pictures must be stored for this recipe.
    pub fn pack_options(&self) -> PackOptions {
        let Preprocessing { side, fit, exif, keep, form, resize, .. } = self.preprocess;
        PackOptions { side, fit, exif, keep, form, resize }
    }

    /// The recipe's preprocessing for `net`, and the axes of the colour noise if the recipe has any; what is to be
    /// measured is measured on the pictures `train` of `pack`.
    ///
    /// # Errors
    /// [`Error::Config`] if the network's input is not a square of three channels that fits in the stored pictures;
    /// [`Error::Data`] if there is no readable picture to measure.
    pub fn measure(
        &self,
        net: &Network,
        pack: &Pack,
        train: &[u32],
        threads: usize,
    ) -> Result<(Preprocess, Option<ColourAxes>)> {
        let Preprocessing { side, fit, exif, keep, resize, divisor, ref mean, mean_at, std, .. } =
            self.preprocess;
        if net.input.c != 3 || net.input.h != net.input.w {
            return Err(Error::Config(format!(
                "network {}: pictures are 3×n×n, its input is {}",
                net.name, net.input
            )));
        }
        if net.input.h > side {
            return Err(Error::Config(format!(
                "network {} takes {1}×{1} pixels of pictures stored at {side}×{side}; set side in [preprocess] to at \
                 least {1}",
                net.name, net.input.h
            )));
        }
        let noise = self.augment.colour_noise > 0.0;
        let wants_axes = noise && self.augment.colour_axes == AxesSpec::Measured;
        let stats = match mean {
            MeanSpec::Fixed(_) if !wants_axes => None,
            _ => Some(Stats::compute(pack, train, threads)?),
        };
        let mean = match (mean, &stats) {
            (MeanSpec::Measured(MeasuredMean::Picture), Some(s)) => Mean::Picture(s.mean_picture.clone()),
            (MeanSpec::Measured(MeasuredMean::Channels), Some(s)) => {
                Mean::Channels(s.channel_mean.map(|m| (m / divisor) as f32))
            }
            (MeanSpec::Fixed(m), _) => Mean::Channels(m.map(|m| m as f32)),
            (MeanSpec::Measured(_), None) => unreachable!("a measured mean has been measured above"),
        };
        let scale = (1.0 / divisor) as f32;
        let std = std.map(|s| s as f32);
        let crop = net.input.h;
        let preprocess = Preprocess { side, fit, exif, keep, resize, crop, scale, mean, mean_at, std };
        preprocess.check()?;
        let axes = match self.augment.colour_axes {
            _ if !noise => None,
            AxesSpec::Imagenet => Some(ColourAxes::imagenet()),
            AxesSpec::Measured => stats.map(|s| s.axes),
        };
        Ok((preprocess, axes))
    }

    /// How pictures vary in this epoch (from 0).
    pub fn augment_at(&self, epoch: u64, axes: Option<&ColourAxes>) -> Augment {
        let a = &self.augment;
        let noisy = a.colour_noise_until.is_none_or(|until| epoch < until);
        Augment {
            random_crop: a.crop == Crop::Random,
            corners: a.crop == Crop::Corners,
            mirror: a.mirror,
            colour_noise: if noisy { a.colour_noise as f32 } else { 0.0 },
            colour: axes.cloned(),
            shared_by: a.shared_by,
            area: (a.crop == Crop::RandomArea).then_some(a.area),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Fit;
    use crate::train::recipe::load;
    use crate::train::testing::{noise_pack, small_net};
    use crate::zoo;

    #[test]
    fn imagenet_brings_its_preprocessing() {
        let mut recipe = load("finetune").unwrap();
        assert!(!recipe.bring_preprocessing(), "the built-in recipe has it written out");
        recipe.preprocess = Preprocessing::default();
        recipe.preprocess.fit = Fit::Warp;
        assert!(recipe.bring_preprocessing());
        assert_eq!(
            recipe.preprocess,
            load("finetune").unwrap().preprocess,
            "whole pictures stay whole pictures"
        );
        recipe.preprocess.fit = Fit::CentralSquare;
        assert!(!recipe.bring_preprocessing());
        assert_eq!(recipe.preprocess.fit, Fit::CentralSquare, "and central squares central squares");
        let net = small_net(3);
        let pack = noise_pack(4, 2, 256);
        let torchvision = zoo::by_name("torchvision", 2).unwrap();
        let (got, axes) = recipe.measure(&torchvision, &pack, &[0, 1], 1).unwrap();
        assert_eq!((got, axes), (Preprocess::torchvision(), None));
        assert_eq!(weights(&recipe, &net, 1).unwrap_err().exit_code(), 2);
        let mut fresh = load("scratch-small").unwrap();
        let before = fresh.clone();
        assert!(!fresh.bring_preprocessing());
        assert_eq!(fresh, before);
    }

    #[test]
    fn what_is_measured_is_measured_on_the_training_pictures() {
        let pack = noise_pack(6, 2, 8);
        let net = small_net(2);
        let mut recipe = load("krizhevsky-2012").unwrap();
        recipe.preprocess.side = 8;
        let stats = Stats::compute(&pack, &[0, 2], 1).unwrap();
        let (paper, axes) = recipe.measure(&net, &pack, &[0, 2], 2).unwrap();
        assert_eq!(paper.mean, Mean::Picture(stats.mean_picture));
        assert_eq!(axes, Some(stats.axes));
        recipe.preprocess.mean = MeanSpec::Measured(MeasuredMean::Channels);
        recipe.preprocess.divisor = 255.0;
        recipe.augment.colour_axes = AxesSpec::Imagenet;
        let (channels, axes) = recipe.measure(&net, &pack, &[0, 2], 2).unwrap();
        assert_eq!(channels.mean, Mean::Channels(stats.channel_mean.map(|m| (m / 255.0) as f32)));
        assert_eq!(axes, Some(ColourAxes::imagenet()));
        recipe.preprocess.side = 4;
        let error = recipe.measure(&net, &pack, &[0], 1).unwrap_err().to_string();
        assert!(error.contains("8×8 pixels"), "{error}");
    }

    #[test]
    fn colour_noise_ends_when_the_recipe_says() {
        let mut recipe = load("krizhevsky-2012").unwrap();
        recipe.augment.colour_noise_until = Some(67);
        assert_eq!(recipe.augment_at(66, None).colour_noise, 0.1);
        assert_eq!(recipe.augment_at(67, None).colour_noise, 0.0);
        recipe.augment.crop = Crop::RandomArea;
        assert_eq!(recipe.augment_at(0, None).area, Some(recipe.augment.area));
    }
}

//! From stored pixels to the numbers that a network sees. Travels with every checkpoint, so that a picture is
//! prepared for use as it was for learning.

use super::decode::Exif;
use super::pack::{Form, Keep, PackOptions};
use super::resize::{Filter, Fit};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// x = (pixel · scale − mean) / std, with pixels in 0–255.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Side of the stored square, pixels.
    pub side: usize,
    /// How a picture becomes a square.
    pub fit: Fit,
    /// What to do with a camera's orientation mark.
    pub exif: Exif,
    /// How much of each picture crops are taken from in training: the square, the whole picture, or the original.
    /// Fixed views are always those of the square.
    #[serde(default)]
    pub keep: Keep,
    /// How pictures are resized.
    #[serde(default)]
    pub resize: Filter,
    /// Side of the crop that the network sees, pixels.
    pub crop: usize,
    /// Multiplies the pixels: 1 for the paper's networks, 1/255 for torchvision's.
    pub scale: f32,
    /// What is subtracted.
    pub mean: Mean,
    /// Which part of a mean picture is subtracted.
    #[serde(default)]
    pub mean_at: MeanAt,
    /// What the channels are divided by, after scale and mean.
    pub std: [f32; 3],
}

/// Which part of a mean picture is subtracted from a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeanAt {
    /// Its central crop, wherever the view is taken (the code of 2012).
    #[default]
    Centre,
    /// The part that the view is taken from, mirrored with it (Caffe).
    View,
}

/// What is subtracted from a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mean {
    /// One value a channel (R, G, B), in the units of scaled pixels.
    Channels([f32; 3]),
    /// The mean of the training pictures, (side, side, 3), in the units of unscaled pixels; [`MeanAt`] says which part
    /// of it is subtracted.
    Picture(Vec<f32>),
}

impl Preprocess {
    /// torchvision's preparation for ImageNet: shorter side 256, crop 224, pixels scaled to 0–1.
    pub fn torchvision() -> Self {
        Preprocess {
            side: 256,
            fit: Fit::CentralSquare,
            exif: Exif::Apply,
            keep: Keep::Square,
            resize: Filter::Bilinear,
            crop: 224,
            scale: 1.0 / 255.0,
            mean: Mean::Channels([0.485, 0.456, 0.406]),
            mean_at: MeanAt::Centre,
            std: [0.229, 0.224, 0.225],
        }
    }

    /// The paper's preparation with the mean picture of the training set, (side, side, 3).
    pub fn paper(side: usize, crop: usize, mean: Vec<f32>) -> Self {
        Preprocess {
            side,
            fit: Fit::CentralSquare,
            exif: Exif::Apply,
            keep: Keep::Square,
            resize: Filter::Bilinear,
            crop,
            scale: 1.0,
            mean: Mean::Picture(mean),
            mean_at: MeanAt::Centre,
            std: [1.0; 3],
        }
    }

    /// How the pictures must be stored at least; raw.
    pub fn pack_options(&self) -> PackOptions {
        let Preprocess { side, fit, exif, keep, resize, .. } = *self;
        PackOptions { side, fit, exif, keep, form: Form::Raw, resize }
    }

    /// # Errors
    /// [`Error::Config`] if the crop does not fit in the square, the mean picture has another size, or a value is
    /// not finite or divides by zero.
    pub fn check(&self) -> Result<()> {
        let fail = |why: String| Err(Error::Config(format!("preprocessing: {why}")));
        if let Err(e) = self.pack_options().check() {
            return fail(e.to_string());
        }
        if self.crop == 0 || self.crop > self.side {
            return fail(format!("a crop of {} pixels from squares of {}", self.crop, self.side));
        }
        let mean = match &self.mean {
            Mean::Channels(m) => &m[..],
            Mean::Picture(m) if m.len() != self.side * self.side * 3 => {
                return fail(format!(
                    "a mean picture of {} values for squares of {} pixels",
                    m.len(),
                    self.side
                ));
            }
            Mean::Picture(m) => m,
        };
        if !self.scale.is_finite()
            || self.scale == 0.0
            || self.std.iter().any(|s| !s.is_finite() || *s == 0.0)
        {
            return fail(format!("scale {} and std {:?} must be finite and not 0", self.scale, self.std));
        }
        if mean.iter().any(|m| !m.is_finite()) {
            return fail("a mean that is not finite".into());
        }
        Ok(())
    }

    /// Factor and offset of each channel: x = factor · pixel + offset, less factor · mean picture if there is one.
    pub(super) fn affine(&self) -> ([f32; 3], [f32; 3]) {
        let factor = self.std.map(|s| self.scale / s);
        let offset = match &self.mean {
            Mean::Channels(m) => std::array::from_fn(|c| -m[c] / self.std[c]),
            Mean::Picture(_) => [0.0; 3],
        };
        (factor, offset)
    }

    /// The mean picture times the factor, (side, side, 3); empty with channel means.
    pub(super) fn scaled_mean(&self) -> Vec<f32> {
        let Mean::Picture(mean) = &self.mean else { return Vec::new() };
        let (factor, _) = self.affine();
        mean.chunks_exact(3).flat_map(|p| [p[0] * factor[0], p[1] * factor[1], p[2] * factor[2]]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let good = Preprocess::torchvision();
        good.check().unwrap();
        for (change, word) in [
            ((|p: &mut Preprocess| p.crop = 300) as fn(&mut Preprocess), "crop"),
            (|p| p.mean = Mean::Picture(vec![0.0; 5]), "mean picture"),
            (|p| p.std[1] = 0.0, "std"),
            (|p| p.mean = Mean::Channels([f32::NAN; 3]), "not finite"),
        ] {
            let mut p = good.clone();
            change(&mut p);
            assert!(p.check().unwrap_err().to_string().contains(word));
        }
    }

    #[test]
    fn survives_json() {
        for p in [Preprocess::torchvision(), Preprocess::paper(2, 1, vec![0.1; 12])] {
            let text = serde_json::to_string(&p).unwrap();
            assert_eq!(serde_json::from_str::<Preprocess>(&text).unwrap(), p);
            // Of a checkpoint that was written before pictures could be kept in other ways.
            let older = text.replace("\"keep\":\"square\",\"resize\":\"bilinear\",", "");
            assert_ne!(older, text);
            assert_eq!(serde_json::from_str::<Preprocess>(&older).unwrap(), p);
        }
    }

    #[test]
    fn the_mean_is_scaled_as_the_pixels_are() {
        let mut p = Preprocess::paper(1, 1, vec![10.0, 20.0, 30.0]);
        (p.scale, p.std) = (0.5, [1.0, 2.0, 4.0]);
        assert_eq!(p.scaled_mean(), [5.0, 5.0, 3.75]);
    }
}

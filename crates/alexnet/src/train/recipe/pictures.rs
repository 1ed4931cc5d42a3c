//! What a recipe says about pictures: how they are stored and become numbers, and how they vary.

use super::{one, yes};
use crate::data::{Exif, Filter, Fit, Form, Keep, MeanAt};
use serde::{Deserialize, Serialize};

/// What is subtracted from pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MeanSpec {
    /// These numbers, red, green and blue, after the division by `divisor`.
    Fixed([f64; 3]),
    /// A word.
    Measured(MeasuredMean),
}

/// A mean measured on the training pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeasuredMean {
    /// One number a channel.
    Channels,
    /// One number a pixel and channel (the paper, §2).
    Picture,
}

/// `[preprocess]`: how pixels become the network's numbers: x = (pixel / divisor − mean) / std.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Side of the stored square pictures, pixels.
    #[serde(default = "side")]
    pub side: usize,
    /// How a picture becomes a square.
    #[serde(default)]
    pub fit: Fit,
    /// What to do with a camera's orientation mark.
    #[serde(default)]
    pub exif: Exif,
    /// How much of each picture is stored: `square`; `whole`, for crops of random size out of the whole picture with its
    /// shorter side at `side`; `original`, the files as they are, from which such crops are taken as torchvision does.
    #[serde(default)]
    pub keep: Keep,
    /// `raw`, or `jpeg`: a seventh of the bytes, decoded while training.
    #[serde(default)]
    pub form: Form,
    /// `bilinear` (antialiased, as Pillow and torchvision), `cubic` (likewise), `area`, `area-cubic` (the tool of 2014:
    /// OpenCV's area when shrinking, its cubic when enlarging), or `linear` (Caffe's: OpenCV's linear, not antialiased).
    #[serde(default)]
    pub resize: Filter,
    /// What pixels 0-255 are divided by first.
    #[serde(default = "one")]
    pub divisor: f64,
    /// What is subtracted.
    #[serde(default = "measured_channels")]
    pub mean: MeanSpec,
    /// Which part of a mean picture is subtracted from a view.
    #[serde(default)]
    pub mean_at: MeanAt,
    /// What is divided by, red, green and blue.
    #[serde(default = "ones")]
    pub std: [f64; 3],
}

impl Default for Preprocessing {
    fn default() -> Self {
        Preprocessing {
            side: side(),
            fit: Fit::default(),
            exif: Exif::default(),
            keep: Keep::default(),
            form: Form::default(),
            resize: Filter::default(),
            divisor: 1.0,
            mean: measured_channels(),
            mean_at: MeanAt::default(),
            std: ones(),
        }
    }
}

/// Where a training view is taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// The centre, always.
    Centre,
    /// Anywhere, at the network's size (the paper, §4.1).
    #[default]
    Random,
    /// One of the four corners or the centre (Zeiler and Fergus, arXiv 1311.2901, §3).
    Corners,
    /// A random part of the picture, of random size and aspect 3/4 to 4/3, resized to the network's input (Szegedy et al.,
    /// arXiv 1409.4842, §6; torchvision's `RandomResizedCrop`).
    RandomArea,
}

/// Whose colours the noise follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AxesSpec {
    /// The training pictures', measured before the run.
    #[default]
    Measured,
    /// Those of ImageNet's training pictures.
    Imagenet,
}

/// `[augment]`: how pictures vary from epoch to epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Where a view is taken from.
    #[serde(default)]
    pub crop: Crop,
    /// The part of the picture's area that a `random-area` view has, least and most.
    #[serde(default = "area")]
    pub area: [f64; 2],
    /// Whether half of the views are mirrored left to right.
    #[serde(default = "yes")]
    pub mirror: bool,
    /// Standard deviation c of the colour noise along the axes of the colours' covariance (the paper, §4.1);
    /// 0 for none.
    #[serde(default)]
    pub colour_noise: f64,
    /// Whose colours' axes the noise moves along.
    #[serde(default)]
    pub colour_axes: AxesSpec,
    /// Epochs after which the colour noise is switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour_noise_until: Option<u64>,
    /// Consecutive pictures that share one draw of place and mirror: 32 in the code of 2012.
    #[serde(default = "one_each")]
    pub shared_by: usize,
}

impl Default for Augmentation {
    fn default() -> Self {
        let crop = Crop::default();
        Augmentation {
            crop,
            area: area(),
            colour_axes: AxesSpec::default(),
            shared_by: one_each(),
            mirror: true,
            colour_noise: 0.0,
            colour_noise_until: None,
        }
    }
}

fn ones() -> [f64; 3] {
    [1.0; 3]
}

fn side() -> usize {
    256
}

fn area() -> [f64; 2] {
    [0.08, 1.0]
}

fn one_each() -> usize {
    1
}

fn measured_channels() -> MeanSpec {
    MeanSpec::Measured(MeasuredMean::Channels)
}

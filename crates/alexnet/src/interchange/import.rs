//! A model of this program from a weight file, with the preprocessing that belongs to the weights.

use super::foreign::{ChannelOrder, Foreign};
use super::recognise::{Recognised, recognise};
use crate::data::{Exif, Filter, Fit, Keep, Mean, MeanAt, Preprocess};
use crate::error::{Error, Result};
use crate::exec::contract::{Params, Role};
use crate::net::{Network, Op};
use crate::train::checkpoint::{Checkpoint, State};
use crate::zoo::IMAGENET_CLASSES;

/// The 1000 classes of ILSVRC-2012 in the order of every published network's outputs: synset and names, a line each.
static IMAGENET: &str = include_str!("../../assets/imagenet-classes.txt");

/// What the user says about a file.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The network; found by [`recognise`] if it is not given.
    pub net: Option<Network>,
    /// Class names, one an output.
    pub classes: Option<Vec<String>>,
    /// The order of the first convolution's channels; the format's if it is not given.
    pub channels: Option<ChannelOrder>,
    /// How pictures are prepared; the network's own if it is not given.
    pub preprocess: Option<Preprocess>,
    /// What is subtracted, in place of the preprocessing's.
    pub mean: Option<Mean>,
}

/// A model that was made of a weight file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The network.
    pub net: Network,
    /// Its weights, in this program's order.
    pub params: Params,
    /// How pictures are prepared for it.
    pub preprocess: Preprocess,
    /// Class names.
    pub classes: Vec<String>,
    /// What was decided and why, a line each.
    pub notes: Vec<String>,
}

/// The class names of ILSVRC-2012: synset and names.
pub fn imagenet_classes() -> Vec<String> {
    IMAGENET.lines().map(String::from).collect()
}

/// Makes a model of a file's weights.
///
/// # Errors
/// [`Error::Checkpoint`] if they fit no network, or hold values that are not finite; [`Error::Config`] if `settings` do
/// not fit, or several networks do.
pub fn import(foreign: &Foreign, settings: &Settings) -> Result<Imported> {
    let Recognised { net, how, tensors, unused } = recognise(foreign, settings.net.as_ref())?;
    let mut notes = vec![format!("network {} for {} classes: {how}", net.name, net.classes())];
    if !unused.is_empty() {
        notes.push(format!("not used: {}", unused.join(", ")));
    }
    let channels = settings.channels.or(foreign.channels).unwrap_or(ChannelOrder::Rgb);
    let mut params = Params::shapes(&net)?;
    let first = params.0.first().map_or(0, |p| p.layer);
    for (param, at) in params.0.iter_mut().zip(tensors) {
        param.data = foreign.tensors[at].values()?;
        if param.layer == first && param.role == Role::Weight && channels == ChannelOrder::Bgr {
            swap_red_and_blue(&mut param.data, &param.shape)?;
            notes.push("channel order: blue, green, red in the file; turned to red, green, blue".into());
        }
    }
    let mut preprocess = match (&settings.preprocess, &foreign.preprocess) {
        (Some(told), _) => told.clone(),
        (None, Some(text)) => serde_json::from_str(text).map_err(|e| {
            Error::Checkpoint(format!("the preprocessing in the file is not understood: {e}"))
        })?,
        (None, None) => {
            let (usual, source) = usual_preprocessing(&net);
            notes.push(format!("preprocessing: {source}"));
            usual
        }
    };
    if let Some(mean) = &settings.mean {
        if let Mean::Picture(values) = mean {
            preprocess.side = (values.len() / 3).isqrt();
        }
        preprocess.mean = mean.clone();
        notes.push("mean: as told".into());
    }
    preprocess.crop = net.input.h;
    preprocess.check()?;
    let classes = class_names(foreign, settings, net.classes(), &mut notes)?;
    Ok(Imported { net, params, preprocess, classes, notes })
}

/// Exchanges the first and the last of three channels of a convolution's weights, (K, 3, R, S).
pub(super) fn swap_red_and_blue(data: &mut [f32], shape: &[usize]) -> Result<()> {
    let &[_, 3, r, s] = shape else {
        return Err(Error::Checkpoint(
            "its channels cannot be turned from blue, green, red: the first layer is no convolution over three".into(),
        ));
    };
    for filter in data.chunks_exact_mut(3 * r * s) {
        let (blue, rest) = filter.split_at_mut(r * s);
        blue.swap_with_slice(&mut rest[r * s..]);
    }
    Ok(())
}

/// How pictures are prepared for a published network, and where that stands.
pub fn usual_preprocessing(net: &Network) -> (Preprocess, &'static str) {
    let caffe = matches!(net.name.as_str(), "caffe-alexnet" | "caffenet");
    let plain = |side, fit, mean| Preprocess {
        side,
        fit,
        exif: Exif::Apply,
        keep: Keep::Square,
        resize: Filter::Bilinear,
        crop: net.input.h,
        scale: 1.0,
        mean: Mean::Channels(mean),
        // A mean picture of Caffe's is subtracted where the view is taken.
        mean_at: if caffe { MeanAt::View } else { MeanAt::Centre },
        std: [1.0; 3],
    };
    let side = 256.max(net.input.h);
    match net.name.as_str() {
        "torchvision" => {
            (Preprocess::torchvision(), "torchvision's (scaled to 0-1, mean and deviation of ImageNet)")
        }
        "caffe-alexnet" | "caffenet" => (
            // ilsvrc_2012_mean.npy, averaged over the picture.
            plain(side, Fit::Warp, [122.6789, 116.6688, 104.0069]),
            "Caffe's (squeezed to 256×256, the channel means of ImageNet); a mean picture can be given with --mean",
        ),
        _ => (
            // The averages of cuda-convnet2's mean picture (make-data/input_meta).
            plain(side, Fit::CentralSquare, [127.30, 119.72, 104.91]),
            "assumed, for the file does not say: the central square, the channel means of ImageNet's mean picture of \
             2014; a mean picture can be given with --mean",
        ),
    }
}

fn class_names(
    foreign: &Foreign,
    settings: &Settings,
    count: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<String>> {
    if let Some(told) = &settings.classes {
        if told.len() != count {
            return Err(Error::Config(format!("{} class names for {count} outputs", told.len())));
        }
        return Ok(told.clone());
    }
    if let Some(text) = &foreign.classes
        && let Ok(names) = serde_json::from_str::<Vec<String>>(text)
        && names.len() == count
    {
        return Ok(names);
    }
    if count == IMAGENET_CLASSES {
        notes.push("classes: the 1000 of ILSVRC-2012, in the order of their synsets".into());
        return Ok(imagenet_classes());
    }
    notes.push("classes: the file has no names; numbered (name them with --classes)".into());
    Ok((0..count).map(|class| format!("class {class}")).collect())
}

impl Imported {
    /// The checkpoint to be written: weights without momentum, so that it serves everything but resuming.
    pub fn checkpoint(self, origin: &str) -> Checkpoint {
        let state = State::imported(&self.net, self.classes, self.preprocess, origin);
        Checkpoint { state, params: self.params, momentum: Params::default() }
    }
}

/// The first convolution's layer, if the network begins with one over three channels.
pub(super) fn first_conv(net: &Network) -> Option<usize> {
    let at = net.layers.iter().position(|l| matches!(l.op, Op::Conv(_) | Op::Linear(_)))?;
    (matches!(net.layers[at].op, Op::Conv(_)) && net.input.c == 3).then_some(at)
}

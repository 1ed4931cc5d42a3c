//! Recipes: everything about a training run that is not the pictures, as TOML. The built-in ones are the files in
//! `recipes/`; a published recipe names its source, its result, and where it differs from the source.

use super::schedule::Schedule;
use crate::error::{Error, Result};
use crate::net::{Layer, Network, Op};
use crate::ops::update::{Lars, Rule};
use crate::toml_error::{at, unknown};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod check;
mod choices;
pub mod difference;
mod pictures;

use check::{refine, span_of};
pub use choices::Choices;
pub use pictures::{Augmentation, AxesSpec, Crop, MeanSpec, MeasuredMean, Preprocessing};

/// A built-in recipe's name and text.
macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../recipes/", $name, ".toml")))),*]
    };
}

/// The text of a built-in recipe, comments included.
pub fn text(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(n, _)| *n == name).map(|&(_, text)| text)
}

/// Names and texts of the built-in recipes, in the order of the list that the program prints.
const BUILT_IN: [(&str, &str); 15] = built_in![
    "finetune",
    "scratch-small",
    "mini",
    "krizhevsky-2012",
    "krizhevsky-2012-code",
    "one-weird-trick-2014",
    "caffe-alexnet",
    "caffenet",
    "torchvision",
    "zfnet",
    "nvidia-poly-1k",
    "large-batch",
    "pretrain-conv6-2009",
    "pretrain-conv6-2011",
    "finetune-conv6",
];

/// How to train: network, epochs, rates, augmentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The name that it is listed under.
    pub name: String,
    /// What it is for, in a sentence.
    pub summary: String,
    /// Where it was published.
    #[serde(default)]
    pub source: String,
    /// Where it differs from its source, one sentence each.
    #[serde(default)]
    pub deviations: Vec<String>,
    /// A network of the zoo, or a path to a TOML file.
    pub net: String,
    /// Where weights come from: `imagenet`, or a checkpoint's path. Fresh if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The recipe whose result the source starts from. A checkpoint of it is named with `--from`; without one the run
    /// says that it starts from fresh weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<String>,
    /// Passes over the training pictures.
    pub epochs: u64,
    /// Pictures in a step.
    pub batch: usize,
    /// ε, the learning rate of weights, before schedule and multipliers.
    pub lr: f64,
    /// μ.
    pub momentum: f64,
    /// wd, the weight decay of weights, before multipliers.
    pub weight_decay: f64,
    /// Epochs over which the rate rises linearly at the start.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Steps in place of `warmup_epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// The part of the rate that the rise begins from.
    #[serde(default)]
    pub warmup_from: f64,
    /// Whether each epoch has an order of its own; false cycles through one shuffled order, as in 2012.
    #[serde(default = "yes")]
    pub reshuffle: bool,
    /// The rate of every dropout layer, in place of the network's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Widths of the hidden fully connected layers, in place of the network's own: a layer without a width is left
    /// out, with the activation and dropout that follow it. Few pictures want a small head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Vec<usize>>,
    /// A convolution's filter whose root mean square exceeds this after a step is rescaled to it (Zeiler and Fergus).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter_rms: Option<f64>,
    /// Rates that follow each tensor's norms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lars: Option<Lars>,
    /// What the source trains on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Intended>,
    /// The result that the source reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
    /// How the rate changes over the run.
    #[serde(default)]
    pub schedule: Schedule,
    /// Biases, where they differ from weights.
    #[serde(default)]
    pub bias: Bias,
    /// Layers that learn at rates of their own, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerRates>,
    /// Points of the network on which the sources differ, where the recipe names them.
    #[serde(default, skip_serializing_if = "Choices::is_empty")]
    pub network: Choices,
    /// How pixels become the network's numbers.
    #[serde(default)]
    pub preprocess: Preprocessing,
    /// How pictures vary from epoch to epoch.
    #[serde(default)]
    pub augment: Augmentation,
    /// How progress is measured.
    #[serde(default)]
    pub validation: Validation,
}

/// The pictures that a recipe was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intended {
    /// Their name.
    pub set: String,
    /// Their classes.
    pub classes: usize,
    /// Training pictures, where the source says how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<usize>,
}

/// A published result, fractions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// What the figures were measured on, with how many views.
    pub on: String,
    /// Top-1 error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_error: Option<f64>,
    /// Top-5 error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top5_error: Option<f64>,
    /// Mean over classes of the accuracy in each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_class_accuracy: Option<f64>,
    /// Where the figures are from.
    pub source: String,
}

/// Multipliers for biases, on top of the recipe's rate and decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bias {
    /// Times the rate of weights.
    #[serde(default = "one")]
    pub lr: f64,
    /// Times the decay of weights.
    #[serde(default = "one")]
    pub decay: f64,
    /// A schedule of their own, in place of that of weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

impl Default for Bias {
    fn default() -> Self {
        Bias { lr: 1.0, decay: 1.0, schedule: None }
    }
}

/// Multipliers for one layer. `lr = 0` freezes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRates {
    /// Times the rate, for weights and biases.
    #[serde(default = "one")]
    pub lr: f64,
    /// Times the rate of biases, in place of `lr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias_lr: Option<f64>,
    /// Times the decay.
    #[serde(default = "one")]
    pub decay: f64,
    /// Later values; the last that has begun holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<RateChange>,
}

/// New multipliers from some moment on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateChange {
    /// Epochs done when it begins; a fraction is allowed.
    pub from_epoch: f64,
    /// Times the rate, for weights and biases.
    pub lr: f64,
    /// Times the rate of biases, in place of `lr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias_lr: Option<f64>,
}

/// `[validation]`: how progress is measured, after each epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Views a picture: 1 (the centre) or 10 (the paper, §4.1).
    #[serde(default = "one_view")]
    pub views: usize,
    /// The part of the pictures that is kept for it where the data come without a split.
    #[serde(default = "tenth")]
    pub fraction: f64,
}

impl Default for Validation {
    fn default() -> Self {
        Validation { views: 1, fraction: tenth() }
    }
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn tenth() -> f64 {
    0.1
}

fn one_view() -> usize {
    1
}

/// The names of the built-in recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|&(name, _)| name)
}

/// A built-in recipe by its name, or a recipe from a TOML file: anything with a `/`, `\` or `.toml` is a path.
///
/// # Errors
/// [`Error::Config`] with the nearest name, or with file and line.
pub fn load(name_or_path: &str) -> Result<Recipe> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
        return Recipe::from_toml(text, &format!("recipes/{name}.toml"));
    }
    if name_or_path.contains(['/', '\\']) || name_or_path.ends_with(".toml") {
        let text = std::fs::read_to_string(name_or_path)
            .map_err(|e| Error::Config(format!("recipe {name_or_path} cannot be read: {e}")))?;
        return Recipe::from_toml(&text, name_or_path);
    }
    let names: Vec<&str> = names().collect();
    Err(Error::Config(format!(
        "{}; a recipe of your own is named by its path",
        unknown("recipe", name_or_path, &names)
    )))
}

impl Recipe {
    /// Reads a recipe. `origin` is where the text came from, for messages.
    ///
    /// # Errors
    /// [`Error::Config`] with `origin`, the line, and for an unknown key the nearest valid one.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let recipe: Recipe = toml::from_str(text).map_err(|e| refine(text, origin, &e))?;
        recipe.validate().map_err(|(path, why)| at(text, origin, span_of(text, &path), &why))?;
        Ok(recipe)
    }

    /// The recipe as TOML, every value written out.
    pub fn to_toml(&self) -> String {
        // Strings, numbers, arrays and tables with text keys: all have a form in TOML.
        toml::to_string(self).expect("a recipe has a form in TOML")
    }

    /// Checks the values; for recipes that were changed after reading (flags on the command line).
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn check(&self) -> Result<()> {
        self.validate().map_err(|(path, why)| Error::Config(format!("{}: {why}", path.join("."))))
    }

    /// The network as this recipe trains it: with its dropout rate and its hidden layers.
    ///
    /// # Errors
    /// [`Error::Config`] if `hidden` has more widths than the network has hidden layers; if `[layers]` names a layer that the network does not have, or one without parameters.
    pub fn apply(&self, mut net: Network) -> Result<Network> {
        if let Some(rate) = self.dropout {
            for layer in &mut net.layers {
                if let Op::Dropout(dropout) = &mut layer.op {
                    dropout.rate = rate;
                }
            }
        }
        if let Some(widths) = &self.hidden {
            net = self.with_hidden(net, widths)?;
        }
        self.network.apply(&mut net);
        for name in self.layers.keys() {
            let why = |e: Error| Error::Config(format!("recipe {}, [layers.{name}]: {e}", self.name));
            let index = net.position(name).map_err(why)?;
            if !matches!(net.layers[index].op, Op::Conv(_) | Op::Linear(_) | Op::BatchNorm(_)) {
                let kind = net.layers[index].op.kind();
                return Err(why(Error::Config(format!("{name} ({kind}) has no parameters"))));
            }
        }
        Ok(net)
    }
}

impl Recipe {
    /// What the recipe adds to the update rule.
    pub fn rule(&self) -> Rule {
        Rule { lars: self.lars, filter_rms: self.filter_rms.map(|limit| limit as f32) }
    }

    /// The same course in another number of epochs: everything that happens at an epoch happens at the same part of the
    /// run.
    pub fn with_epochs(mut self, epochs: u64) -> Self {
        let ratio = epochs as f64 / self.epochs.max(1) as f64;
        self.epochs = epochs;
        self.warmup_epochs *= ratio;
        self.schedule = self.schedule.stretched(ratio);
        self.bias.schedule = self.bias.schedule.map(|schedule| schedule.stretched(ratio));
        for change in self.layers.values_mut().flat_map(|layer| &mut layer.changes) {
            change.from_epoch *= ratio;
        }
        let until = &mut self.augment.colour_noise_until;
        *until = until.map(|epoch| (epoch as f64 * ratio).round() as u64);
        self
    }

    /// `net` with these hidden fully connected layers; itself if it has them already.
    fn with_hidden(&self, mut net: Network, widths: &[usize]) -> Result<Network> {
        let linear = |layer: &Layer| matches!(layer.op, Op::Linear(_));
        let hidden = net.layers.iter().filter(|l| linear(l)).count().saturating_sub(1);
        if widths.len() > hidden || widths.contains(&0) {
            return Err(Error::Config(format!(
                "recipe {}: hidden = {widths:?}, but network {} has {hidden} hidden fully connected layers, each at \
                 least 1 wide",
                self.name, net.name
            )));
        }
        // Counts linear layers as they go by; a layer belongs to the last one before it.
        let mut seen = 0;
        net.layers.retain_mut(|layer| {
            if let Op::Linear(l) = &mut layer.op {
                seen += 1;
                if let Some(&width) = widths.get(seen - 1).filter(|_| seen <= hidden) {
                    l.outputs = width;
                }
            }
            seen <= widths.len() || seen > hidden
        });
        Ok(net)
    }
}

#[cfg(test)]
mod tests;

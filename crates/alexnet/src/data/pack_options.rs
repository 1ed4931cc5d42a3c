//! How pictures are stored: how much of each, in which form, and which part of a set.

use super::decode::Exif;
use super::resize::{Filter, Fit, Framing};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How much of each picture is kept. What keeps more can also be used as what keeps less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// A square, from which crops of one size are taken (the paper's 256²).
    #[default]
    Square,
    /// The whole picture with its shorter side resized, for crops of random size and shape.
    Whole,
    /// The file as it is, decoded again each time: crops of random size are taken from the full picture and resized
    /// once, as torchvision does.
    Original,
}

/// The form in which squares and whole pictures are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// RGB bytes: the fastest to read.
    #[default]
    Raw,
    /// JPEG of quality 95 with halved chroma, as OpenCV writes it and the tool of 2014 stored: about a seventh of the
    /// bytes. The loader decodes it.
    Jpeg,
}

/// How pictures are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackOptions {
    /// Side of the square, or the shorter side of whole pictures, pixels. Of originals: what they are brought to
    /// before a crop of fixed size is taken.
    pub side: usize,
    /// How a picture becomes a square.
    pub fit: Fit,
    /// What to do with a camera's orientation mark.
    pub exif: Exif,
    /// How much of each picture is kept.
    #[serde(default)]
    pub keep: Keep,
    /// In which form; raw for originals, which have their own.
    #[serde(default)]
    pub form: Form,
    /// How pictures are resized.
    #[serde(default)]
    pub resize: Filter,
}

impl Default for PackOptions {
    /// Raw 256×256, central square, orientation applied, antialiased bilinear.
    fn default() -> Self {
        PackOptions {
            side: 256,
            fit: Fit::default(),
            exif: Exif::default(),
            keep: Keep::default(),
            form: Form::default(),
            resize: Filter::default(),
        }
    }
}

impl PackOptions {
    /// # Errors
    /// [`Error::Config`] if the side is 0 or two options contradict each other.
    pub fn check(&self) -> Result<()> {
        let fail = |why: &str| Err(Error::Config(why.into()));
        match self {
            PackOptions { side: 0, .. } => fail("stored pictures of 0 pixels: the side must be at least 1"),
            PackOptions { keep: Keep::Original, form: Form::Jpeg, .. } => fail(
                "originals are kept in the form that they have; leave the form out, or keep squares or whole pictures",
            ),
            PackOptions { keep: Keep::Whole, fit: Fit::Warp, .. } => {
                fail("whole pictures are not warped; keep squares, or use the fit `central-square`")
            }
            _ => Ok(()),
        }
    }

    /// Why a pack with these options cannot be used where `wanted` is asked for. The form does not matter, and what
    /// keeps more serves for what keeps less.
    ///
    /// # Errors
    /// The reason, in a few words.
    pub fn serves(&self, wanted: &PackOptions) -> std::result::Result<(), String> {
        let differ =
            |what: &str, has: String, wants: String| Err(format!("{what} {has}, and {wants} is needed"));
        if self.keep < wanted.keep {
            return differ("it keeps", format!("{:?}", self.keep), format!("{:?}", wanted.keep));
        }
        if self.side != wanted.side {
            return differ("its side is", format!("{} pixels", self.side), wanted.side.to_string());
        }
        if self.fit != wanted.fit {
            return differ("its fit is", format!("{:?}", self.fit), format!("{:?}", wanted.fit));
        }
        if self.resize != wanted.resize {
            return differ("it was resized by", format!("{:?}", self.resize), format!("{:?}", wanted.resize));
        }
        if self.exif != wanted.exif {
            return differ(
                "its orientation marks:",
                format!("{:?}", self.exif),
                format!("{:?}", wanted.exif),
            );
        }
        Ok(())
    }

    /// How pictures are brought to the stored size.
    pub fn framing(&self) -> Framing {
        Framing { side: self.side, fit: self.fit, resize: self.resize }
    }

    /// Whether each picture takes the same number of bytes.
    pub(super) fn is_raw_squares(&self) -> bool {
        (self.keep, self.form) == (Keep::Square, Form::Raw)
    }
}

/// One part of a set that several machines pack, counted from 1: `2/4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub part: u32,
    /// In how many parts the set is divided.
    pub of: u32,
}

impl Shard {
    /// The pictures of this part among `n`: consecutive ones.
    pub fn range(self, n: usize) -> std::ops::Range<usize> {
        let at = |part: u32| (n as u128 * u128::from(part) / u128::from(self.of)) as usize;
        at(self.part - 1)..at(self.part)
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.part, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers =
            text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((part, of)) if (1..=of).contains(&part) => Ok(Shard { part, of }),
            _ => {
                Err(Error::Config(format!("shard {text:?}: give part and number of parts, from 1/4 to 4/4")))
            }
        }
    }
}

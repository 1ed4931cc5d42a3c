//! `alexnet data` as typed.

use super::Kept;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `alexnet data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Decode every picture; list those that cannot be used (exit code 1 if there are any)
    Check(DataCheck),
    /// Decode and resize every picture once, into one file that training reads; a killed run goes on where it stopped
    Pack(DataPack),
    /// Put the parts that `data pack --shard` made together into one pack
    Join(DataJoin),
    /// Count classes and pictures
    Stats(DataStats),
}

/// `alexnet data check`.
#[derive(Debug, Args)]
pub struct DataCheck {
    /// The folder, or a file that holds or lists pictures
    pub path: PathBuf,
    #[command(flatten)]
    pub kept: Kept,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet data pack`.
#[derive(Debug, Args)]
pub struct DataPack {
    /// The folder, or a file that holds or lists pictures
    pub path: PathBuf,
    /// The file to write [default: where training looks for it, in the cache folder]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub kept: Kept,
    /// Pack as this recipe asks; the flags below change that
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// How much of each picture is kept [default: square]
    #[arg(long, value_enum)]
    pub keep: Option<Keep>,
    /// In which form squares and whole pictures are stored [default: raw]
    #[arg(long, value_enum)]
    pub form: Option<Form>,
    /// Side of the square, or shorter side of whole pictures, in pixels [default: 256]
    #[arg(long, value_name = "N")]
    pub side: Option<usize>,
    /// How pictures are resized [default: bilinear]
    #[arg(long, value_enum)]
    pub resize: Option<Resize>,
    /// Make only part I of N, on one of N machines, for `data join`; the file must be named
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Allow a pack of more than 100 GB
    #[arg(long)]
    pub large: bool,
    /// Threads that decode [default: one for every core that this process may use]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `--keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    /// The central square: crops of one size
    Square,
    /// The whole picture, its shorter side resized: crops of random size
    Whole,
    /// The files as they are, decoded while training: crops of random size, as torchvision takes them
    Original,
}

/// `--form`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// RGB bytes: the fastest
    Raw,
    /// JPEG of quality 95 with halved chroma: about a seventh of the bytes, decoded while training
    Jpeg,
}

/// `--resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resize {
    /// Antialiased, as Pillow and torchvision
    Bilinear,
    /// The mean of the area that each pixel covers
    Area,
    /// Antialiased bicubic, as Pillow and torchvision
    Cubic,
    /// The tool of 2014: OpenCV's area when shrinking, its cubic when enlarging
    AreaCubic,
    /// Caffe's: OpenCV's linear, between the nearest pixels, not antialiased
    Linear,
}

/// `alexnet data join`.
#[derive(Debug, Args)]
pub struct DataJoin {
    /// The file to write
    pub out: PathBuf,
    /// All the parts, in any order
    #[arg(required = true, value_name = "PART")]
    pub parts: Vec<PathBuf>,
}

/// `alexnet data stats`.
#[derive(Debug, Args)]
pub struct DataStats {
    /// The folder, a file that holds or lists pictures, or a pack
    pub path: PathBuf,
    #[command(flatten)]
    pub kept: Kept,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

//! From a folder of pictures to batches of numbers: [`source`] lists a folder, [`pack`] decodes and resizes every
//! picture once into a memory-mapped file, [`mod@split`] says which pictures teach and which test, [`loader`] crops,
//! mirrors, colours and centres them in the layout that the first layer reads. [`generator`] draws pictures where
//! there are none.
//!
//! A folder is only ever read: the pack lives in a cache folder outside it.

pub mod augment;
pub mod decode;
pub mod disk;
pub mod generator;
mod in_order;
mod jpeg;
pub mod loader;
pub(crate) mod map;
pub mod pack;
mod pack_build;
mod pack_file;
mod pack_format;
mod pack_join;
mod pack_options;
pub mod paint;
pub mod preprocess;
mod resample;
pub mod resize;
pub mod source;
mod spare;
pub mod split;
pub mod stats;

pub use augment::{Augment, ColourAxes, View};
pub use decode::Exif;
pub use generator::drawn_pack;
pub use loader::{LoadedBatch, Loader, LoaderConfig, Sample};
pub use pack::{Form, Keep, Pack, PackOptions, Shard, Unreadable, check_unreadable};
pub use pack_build::{BuildOptions, Estimate, LARGE_BYTES, default_cache_dir};
pub use preprocess::{Mean, MeanAt, Preprocess};
pub use resize::{Filter, Fit};
pub use source::{Format, Listing, list, list_folder};
pub use split::{Partition, Split, SplitRule, split};
pub use stats::Stats;

//! What the arguments mean.

pub mod eval;
pub mod train;

use crate::args;
use crate::progress::Progress;
use crate::terminal::{complain, plural};
use alexnet::data::source::Skipped;
use alexnet::data::{Filter, Fit, Form, Format, Keep, Listing, Pack, PackOptions, View, list};
use alexnet::eval::model::Model;
use alexnet::exec::{self, Device, Mode, Precision};
use alexnet::{Error, Network, Result, zoo};
use std::path::Path;
use std::sync::Arc;

/// The network that `--net` or `nets NAME` names: a file if it looks like one, else one of the zoo. `classes`
/// replaces the number of outputs; without it, the network keeps its own (a file's) or ImageNet's.
pub fn network(typed: &str, classes: Option<usize>) -> Result<Network> {
    let own = match names_file(typed) {
        true => Network::from_toml(&read_text(Path::new(typed), "network")?, typed)?,
        false => zoo::by_name(typed, classes.unwrap_or_else(|| default_classes(typed)))?,
    };
    Ok(match classes {
        Some(classes) => own.with_classes(classes),
        None => own,
    })
}

fn default_classes(name: &str) -> usize {
    zoo::all().iter().find(|net| net.name == name).map_or(zoo::IMAGENET_CLASSES, Network::classes)
}

/// Whether a word that may be a name or a file is a file: it has a folder or `.toml` in it.
pub fn names_file(typed: &str) -> bool {
    typed.contains(std::path::MAIN_SEPARATOR) || typed.ends_with(".toml")
}

/// The text of a configuration file, at most a megabyte of it.
pub fn read_text(path: &Path, what: &str) -> Result<String> {
    use std::io::Read;
    const LIMIT_BYTES: u64 = 1 << 20;
    let fail = |why: String| Error::Config(format!("cannot read the {what} {}: {why}", path.display()));
    let meta = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?;
    if !meta.is_file() {
        return Err(fail("it is not a file".into()));
    }
    let file = std::fs::File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut text = String::new();
    file.take(LIMIT_BYTES + 1).read_to_string(&mut text).map_err(|e| fail(e.to_string()))?;
    if text.len() as u64 > LIMIT_BYTES {
        return Err(fail("it is longer than a megabyte".into()));
    }
    Ok(text)
}

/// What `--format` names.
pub fn format(typed: Option<&str>) -> Result<Option<Format>> {
    typed.map(|t| t.parse().map_err(|e| Error::Config(format!("--format: {e}")))).transpose()
}

/// The pictures of a source, not yet decoded. Says on standard error which format was recognised.
pub fn listing(path: &Path, format: Option<Format>) -> Result<Listing> {
    let mut progress = Progress::new("listing");
    let listing = list(path, format, &mut |done, all| progress.update(done, all, ""))?;
    progress.finish();
    let how = if format.is_some() { "as --format says" } else { "recognised" };
    complain(&format!("source    {} ({how})", listing.format));
    Ok(listing)
}

/// Pictures before any is decoded.
pub enum Pictures {
    /// Of a source.
    Listed(Listing),
    /// Of a pack file.
    Packed(Arc<Pack>),
}

impl Pictures {
    /// Lists a source, or opens a pack file.
    pub fn find(path: &Path, format: Option<Format>) -> Result<Self> {
        match !path.is_file() || format.is_some() || Format::of(path).is_some() {
            true => Ok(Pictures::Listed(listing(path, format)?)),
            false => Ok(Pictures::Packed(Arc::new(Pack::open(path)?))),
        }
    }

    /// Class names, in the order of the labels.
    pub fn classes(&self) -> &[String] {
        match self {
            Pictures::Listed(listing) => &listing.classes,
            Pictures::Packed(pack) => pack.classes(),
        }
    }

    /// The pictures stored in some way: packed, or found packed.
    pub fn pack(&self, options: &PackOptions) -> Result<Arc<Pack>> {
        match self {
            Pictures::Listed(listing) => {
                Ok(Arc::new(Pack::for_listing(listing, options, None, &mut progress_of("packing"))?))
            }
            Pictures::Packed(pack) => match pack.options().serves(options) {
                Ok(()) => Ok(Arc::clone(pack)),
                Err(why) => Err(Error::Data(format!(
                    "{}: {why}; give the folder of pictures instead",
                    pack.file().unwrap_or(Path::new("the pack")).display()
                ))),
            },
        }
    }

    /// What else is in the source, and why it is not used.
    pub fn skipped(self) -> Vec<Skipped> {
        match self {
            Pictures::Listed(listing) => listing.skipped,
            Pictures::Packed(_) => vec![],
        }
    }
}

/// The pictures of a source, packed or found packed, or of a pack file; and what else is in the source.
pub fn pictures(
    path: &Path,
    format: Option<Format>,
    options: &PackOptions,
) -> Result<(Arc<Pack>, Vec<Skipped>)> {
    let found = Pictures::find(path, format)?;
    let pack = found.pack(options)?;
    Ok((pack, found.skipped()))
}

/// Shows the progress of work that may have been begun earlier: what is told first was done then.
pub fn progress_of(what: &'static str) -> impl FnMut(usize, usize) {
    let mut progress = None;
    move |done, all| progress.get_or_insert_with(|| Progress::after(what, done)).update(done, all, "")
}

/// Lines that name the first few pictures and other things that are not used.
pub fn unused_words(pack: &Pack, skipped: &[Skipped]) -> Vec<String> {
    const NAMED: usize = 3;
    let unreadable = pack.unreadable().iter().map(|u| format!("  unreadable {}: {}", u.path, u.reason));
    let others = skipped.iter().map(|s| format!("  skipped {}: {}", s.path.display(), s.reason));
    let mut lines: Vec<String> = unreadable.take(NAMED).chain(others.take(NAMED)).collect();
    let more = pack.unreadable().len().saturating_sub(NAMED) + skipped.len().saturating_sub(NAMED);
    if more > 0 {
        lines.push(format!("  and {more} more; `alexnet data check` names them all"));
    }
    lines
}

/// How a pack keeps its pictures, in words.
pub fn stored_words(options: &PackOptions) -> String {
    let form = if options.form == Form::Jpeg { ", as JPEG" } else { "" };
    let side = options.side;
    let resized = match options.resize {
        Filter::Bilinear => "antialiased bilinear",
        Filter::Area => "mean of the area",
        Filter::Cubic => "antialiased bicubic",
        Filter::AreaCubic => "area when shrinking, cubic when enlarging",
        Filter::Linear => "linear, not antialiased",
    };
    let fitted = match options.fit {
        Fit::CentralSquare => "central",
        Fit::Warp => "squeezed to",
    };
    match options.keep {
        Keep::Square => format!("{fitted} {side}×{side} pixels{form} ({resized})"),
        Keep::Whole => format!("whole pictures, shorter side {side} pixels{form} ({resized})"),
        Keep::Original => format!("the files as they are (resized as they are used: {resized})"),
    }
}

/// A line about a set of pictures: classes, pictures, the smallest and the largest class, unreadable ones.
pub fn data_words(pack: &Pack) -> String {
    let sizes = pack.class_sizes();
    let named = |i: usize| format!("{} ({})", pack.classes()[i], sizes[i]);
    let smallest = (0..sizes.len()).min_by_key(|&i| sizes[i]).map(named).unwrap_or_default();
    let largest =
        (0..sizes.len()).max_by_key(|&i| (sizes[i], std::cmp::Reverse(i))).map(named).unwrap_or_default();
    format!(
        "{}, {}; smallest {smallest}, largest {largest}; {} unreadable",
        plural(sizes.len(), "class", "classes"),
        plural(pack.len(), "picture", "pictures"),
        pack.unreadable().len()
    )
}

/// How to compute: `--precision`, `--device` and `--threads` understood.
#[derive(Clone, Copy, Debug)]
pub struct Compute {
    /// The arithmetic.
    pub precision: Precision,
    /// Where.
    pub device: Device,
    /// At least one.
    pub threads: usize,
}

impl Compute {
    /// What the flags mean.
    pub fn of(args: &args::Compute) -> Result<Self> {
        let threads = match args.threads {
            Some(threads) => at_least_one("--threads", threads)?,
            None => crate::machine::cores(),
        };
        let flag = |name: &'static str| move |error: Error| Error::Config(format!("{name}: {error}"));
        Ok(Compute {
            precision: args.precision.as_deref().unwrap_or("auto").parse().map_err(flag("--precision"))?,
            device: args.device.parse().map_err(flag("--device"))?,
            threads,
        })
    }

    /// What an executor is compiled with.
    pub fn options(&self, batch: usize, mode: Mode) -> exec::Options {
        exec::Options {
            batch,
            mode,
            precision: self.precision,
            device: self.device,
            threads: self.threads,
            ..Default::default()
        }
    }
}

/// A count that a flag gives.
pub fn at_least_one(flag: &str, n: usize) -> Result<usize> {
    if n == 0 { Err(Error::Config(format!("{flag} 0: it must be at least 1"))) } else { Ok(n) }
}

/// Opens a model, and names on standard error the newer checkpoints that could not be used.
pub fn open_model(path: &Path) -> Result<Model> {
    let model = Model::open(path)?;
    for (skipped, why) in &model.skipped {
        complain(&format!("warning: {} is not used: {why}", skipped.display()));
    }
    Ok(model)
}

/// Refuses to write into the data folder, links followed: it is only ever read.
pub fn refuse_inside(out: &Path, data: &Path) -> Result<()> {
    let out_absolute = std::path::absolute(out).unwrap_or_else(|_| out.to_path_buf());
    let existing = out_absolute.ancestors().find_map(|folder| folder.canonicalize().ok());
    match (existing, data.canonicalize()) {
        (Some(existing), Ok(data)) if existing.starts_with(&data) => Err(Error::Config(format!(
            "{} lies in the data folder {}, which is never written to; name another place",
            out.display(),
            data.display()
        ))),
        _ => Ok(()),
    }
}

/// Refuses early what would only fail after all the work: a file in a folder that does not exist, a folder, or
/// something that is no ordinary file, in whose place none may be put.
pub fn can_create(flag: &str, out: &Path) -> Result<()> {
    let refuse = |why: String| Err(Error::Config(format!("{flag} {}{why}", out.display())));
    let folder = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return refuse(format!(": there is no folder {}", folder.display()));
    }
    match std::fs::symlink_metadata(out) {
        Ok(_) if out.is_dir() => refuse(" is a folder; name a file".into()),
        Ok(about) if !about.is_file() => {
            refuse(" is not an ordinary file, and would be replaced by one".into())
        }
        _ => Ok(()),
    }
}

/// A fraction that a flag gives, neither 0 nor 1.
pub fn fraction(flag: &str, x: f64) -> Result<f64> {
    match x > 0.0 && x < 1.0 {
        true => Ok(x),
        false => Err(Error::Config(format!("{flag} {x}: it must lie between 0 and 1, for example 0.5"))),
    }
}

/// `--views` understood.
pub fn views(n: usize) -> Result<&'static [View]> {
    alexnet::eval::views::of_number(n).map_err(|e| Error::Config(format!("--views: {e}")))
}

//! What `alexnet train …` means: recipe and flags made one, pictures, split, network, weights.

use super::{Compute, at_least_one, fraction, names_file, network, pictures, refuse_inside};
use crate::args;
use crate::terminal::{count, plural};
use alexnet::data::generator::{self, drawn_pack};
use alexnet::data::pack::MAX_UNREADABLE;
use alexnet::data::source::Skipped;
use alexnet::data::{Form, Format, Keep, Pack, Partition, check_unreadable, split};
use alexnet::exec::Precision;
use alexnet::interchange::imagenet;
use alexnet::train::recipe::{self, Recipe};
use alexnet::train::run_directory::{RunConfig, RunDirectory, SplitConfig};
use alexnet::train::start::IMAGENET;
use alexnet::{Error, Network, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where runs are kept unless `--out` says otherwise.
pub const RUNS: &str = "runs";
/// The run's network in its folder, so that the folder is complete.
pub const NETWORK: &str = "network.toml";
/// The recipe for a folder of pictures.
const FOR_A_FOLDER: &str = "finetune";
/// The recipe for a folder of pictures and a network that ImageNet's convolutions do not fit.
const FROM_NOTHING: &str = "scratch-small";
/// The recipe without any pictures.
const FOR_DRAWN: &str = "mini";
/// The side of stored pictures over that of the network's input, where a recipe for another input gives none.
const SIDE_OVER_INPUT: f64 = 256.0 / 224.0;

/// A run before anything is read but text: recipe and flags made one.
#[derive(Clone, Debug)]
pub struct Request {
    /// The folder or pack; none for drawn pictures.
    pub data: Option<PathBuf>,
    /// `--format`.
    pub format: Option<Format>,
    /// With the flags taken in.
    pub recipe: Recipe,
    /// Where the flags, or the choice of network, made it differ from what its name promises.
    pub changes: Vec<String>,
    /// Keys every random number.
    pub seed: u64,
    /// `--train-per-class` or `--split`.
    pub split: Option<SplitConfig>,
    /// `--precision` as typed, or `auto`.
    pub precision: String,
}

/// Recipe and flags made one.
///
/// # Errors
/// [`Error::Config`] naming the flag, or file and line.
pub fn request(args: &args::Train) -> Result<Request> {
    let mut changes = Vec::new();
    let named = match (&args.recipe, &args.data) {
        (Some(name), _) => name.clone(),
        (None, None) => FOR_DRAWN.into(),
        (None, Some(_)) => match &args.net {
            Some(net) if args.from.is_none() && imagenet::refusal(&network(net, None)?)?.is_some() => {
                changes.push(format!(
                    "recipe {FROM_NOTHING} was chosen, because ImageNet's convolutions do not fit {net}"
                ));
                FROM_NOTHING.into()
            }
            _ => FOR_A_FOLDER.into(),
        },
    };
    let original = recipe::load(&named)?;
    let mut recipe = original.clone();
    if let Some(from) = &args.from {
        recipe.from = Some(from.clone());
    }
    if let Some(net) = &args.net {
        fit_side(&mut recipe, &network(net, None)?)?;
        recipe.net = net.clone();
    }
    if let Some(epochs) = args.epochs {
        recipe = recipe.with_epochs(u64::from(epochs));
    }
    flags(args, &mut recipe)?;
    refuse_imagenet(&recipe)?;
    recipe.bring_preprocessing();
    if args.data.is_none() {
        // Pictures are drawn as squares of the stored size: there is no more of them.
        (recipe.preprocess.keep, recipe.preprocess.form) = (Keep::Square, Form::Raw);
    }
    changes.extend(recipe.differences(&original));
    if names_file(&recipe.net) {
        // The run is resumed from other folders too.
        recipe.net = absolute(Path::new(&recipe.net));
    }
    Ok(Request {
        data: args.data.clone(),
        format: super::format(args.kept.format.as_deref())?,
        recipe,
        changes,
        seed: args.seed.unwrap_or(0),
        split: asked_split(args)?,
        precision: args.compute.precision.clone().unwrap_or_else(|| "auto".into()),
    })
}

/// The split that a flag asks for.
fn asked_split(args: &args::Train) -> Result<Option<SplitConfig>> {
    let (flag, split) = match (args.train_per_class, args.split) {
        (Some(n), _) => {
            ("--train-per-class", SplitConfig::TrainPerClass(at_least_one("--train-per-class", n)?))
        }
        (None, Some(x)) => ("--split", SplitConfig::Fraction(fraction("--split", x)?)),
        (None, None) => return Ok(None),
    };
    match args.data {
        Some(_) => Ok(Some(split)),
        None => Err(Error::Config(format!(
            "{flag} splits a folder of pictures, and there is none: name it, as in `alexnet train DATA`"
        ))),
    }
}

/// ImageNet's convolutions for a network that they do not fit are refused before an hour of packing.
fn refuse_imagenet(recipe: &Recipe) -> Result<()> {
    if recipe.from.as_deref() != Some(IMAGENET) {
        return Ok(());
    }
    match imagenet::refusal(&network(&recipe.net, None)?)? {
        None => Ok(()),
        Some(why) => Err(Error::Config(format!(
            "--from imagenet belongs to net torchvision and does not fit net {0}: {why}; use --net torchvision, or \
             another recipe, such as --recipe {FROM_NOTHING}, without --from",
            recipe.net
        ))),
    }
}

/// Stores pictures at a size that suits `net`, if it is far from that of the recipe's own network.
fn fit_side(recipe: &mut Recipe, net: &Network) -> Result<()> {
    let (input, side) = (net.input.h, recipe.preprocess.side);
    if input != network(&recipe.net, None)?.input.h && (input > side || 2 * input < side) {
        recipe.preprocess.side = (input as f64 * SIDE_OVER_INPUT).round() as usize;
    }
    Ok(())
}

/// Takes in the flags that may also change a run that goes on.
fn flags(args: &args::Train, recipe: &mut Recipe) -> Result<()> {
    if let Some(epochs) = args.epochs {
        recipe.epochs = u64::from(epochs);
        recipe.warmup_epochs = recipe.warmup_epochs.min(recipe.epochs as f64);
    }
    recipe.batch = args.batch.unwrap_or(recipe.batch);
    recipe.lr = args.lr.unwrap_or(recipe.lr);
    recipe.check().map_err(|e| Error::Config(format!("recipe {}: {e}", recipe.name)))
}

/// The run that `--resume` goes on with: its folder, held by this process, and its configuration with the flags
/// taken in.
///
/// # Errors
/// [`Error::Config`] if there is none, or for a flag that would make it another run.
pub fn resumed(args: &args::Train, folder: Option<&Path>) -> Result<(RunDirectory, RunConfig, Vec<String>)> {
    let fixed = [
        ("--net", args.net.is_some()),
        ("--recipe", args.recipe.is_some()),
        ("--from", args.from.is_some()),
        ("--out", args.out.is_some()),
        ("--batch", args.batch.is_some()),
        ("--seed", args.seed.is_some()),
        ("--train-per-class", args.train_per_class.is_some()),
        ("--split", args.split.is_some()),
    ];
    if let Some((flag, _)) = fixed.iter().find(|(_, given)| *given) {
        return Err(Error::Config(format!(
            "{flag} cannot change a run that goes on; leave it out, or start a new run without --resume"
        )));
    }
    let path = match folder {
        Some(folder) => folder.to_path_buf(),
        None => RunDirectory::newest(Path::new(RUNS))?,
    };
    let run = RunDirectory::open(&path)?;
    let mut config = run.read_config()?;
    let original = config.recipe.clone();
    flags(args, &mut config.recipe)?;
    let changes = config.recipe.differences(&original);
    if let Some(data) = &args.data {
        config.data = Some(absolute(data));
    }
    if args.kept.format.is_some() {
        config.format = super::format(args.kept.format.as_deref())?.map(|f| f.name().into());
    }
    if let Some(precision) = &args.compute.precision {
        config.precision = precision.clone();
    }
    Ok((run, config, changes))
}

/// The network of a run that goes on: the file in its folder, else what its recipe names.
pub fn network_of(run: &RunDirectory, recipe: &Recipe) -> String {
    let own = run.path().join(NETWORK);
    if own.is_file() { absolute(&own) } else { recipe.net.clone() }
}

/// Pictures, how they are split, and the network for their classes.
#[derive(Debug)]
pub struct Material {
    /// All pictures.
    pub pack: Arc<Pack>,
    /// What else is in the folder, and why it is not used.
    pub skipped: Vec<Skipped>,
    /// How they are split.
    pub split: SplitConfig,
    /// The two sides.
    pub partition: Partition,
    /// The network as the recipe trains it.
    pub net: Network,
    /// Where these pictures make it another experiment than the recipe's source describes.
    pub differs: Vec<String>,
}

/// Reads or draws the pictures, and fits the network `net` (a name or a file) to them. Without a `chosen` split, it is
/// the folder's own or the recipe's fraction.
///
/// # Errors
/// As packing, splitting and [`Recipe::apply`].
pub fn material(
    data: Option<&Path>,
    format: Option<Format>,
    recipe: &Recipe,
    net: &str,
    seed: u64,
    chosen: Option<SplitConfig>,
) -> Result<Material> {
    // A wrong network is found before an hour of packing.
    let net = recipe.apply(network(net, None)?)?;
    let (pack, skipped) = match data {
        None => {
            let (train, val) = (generator::TRAIN_PER_CLASS, generator::VAL_PER_CLASS);
            (Arc::new(drawn_pack(seed, train, val, recipe.preprocess.side)?), vec![])
        }
        Some(path) => pictures(path, format, &recipe.pack_options())?,
    };
    check_unreadable(&pack, MAX_UNREADABLE)?;
    let split_config = match chosen {
        Some(split) => split,
        None if pack.has_given_split() => SplitConfig::Given,
        None => SplitConfig::Fraction(recipe.validation.fraction),
    };
    let partition = split(&pack, &split_config.rule(seed))?;
    let net = net.with_classes(pack.classes().len());
    let differs = recipe.differences_of_data(pack.classes().len(), partition.train.len());
    Ok(Material { pack, skipped, split: split_config, partition, net, differs })
}

/// Makes the run's folder: `--out`, or the next free one in `runs/`, named after the data.
///
/// # Errors
/// [`Error::Config`] if `--out` holds something already, or the folder cannot be made.
pub fn run_folder(out: Option<&Path>, data: Option<&Path>) -> Result<RunDirectory> {
    match out {
        Some(out) => RunDirectory::create(out),
        None => {
            let stem = data.and_then(|d| {
                PathBuf::from(absolute(d)).file_stem().map(|s| s.to_string_lossy().into_owned())
            });
            RunDirectory::create_next(Path::new(RUNS), stem.as_deref().unwrap_or("drawn"))
        }
    }
}

/// Refuses a folder for results that holds something already, before any work is done.
///
/// # Errors
/// [`Error::Config`] if so, or if the data would be written to.
pub fn check_out(out: Option<&Path>, data: Option<&Path>) -> Result<()> {
    if let Some(data) = data.filter(|data| data.is_dir()) {
        refuse_inside(out.unwrap_or(Path::new(RUNS)), data)
            .map_err(|e| Error::Config(format!("results: {e}, with --out")))?;
    }
    let Some(out) = out else { return Ok(()) };
    if RunDirectory::is_run(out) {
        return Err(Error::Config(format!(
            "--out {0} is a run already; continue it with --resume {0}, or choose another folder",
            out.display()
        )));
    }
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Config(format!("--out {} is not empty; choose another folder", out.display())));
    }
    if out.is_file() {
        return Err(Error::Config(format!("--out {} is a file; name a folder", out.display())));
    }
    Ok(())
}

/// The absolute form of a path, links kept; as typed if the system does not say.
pub fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}

/// A line about the split.
pub fn split_words(split: SplitConfig, partition: &Partition) -> String {
    let how = match split {
        SplitConfig::Given => "as the folder says".to_string(),
        SplitConfig::Fraction(f) => {
            format!("{:.0} % of each class, chosen by the hash of its path", 100.0 * f)
        }
        SplitConfig::TrainPerClass(n) => format!("all but {n} of each class"),
    };
    format!(
        "{} to learn from, {} to validate with ({how})",
        plural(partition.train.len(), "picture", "pictures"),
        count(partition.val.len())
    )
}

/// `--precision`, `--device` and `--threads` of a run.
///
/// # Errors
/// [`Error::Config`] naming the flag.
pub fn compute(args: &args::Compute, precision: &str) -> Result<Compute> {
    let compute = Compute::of(&args::Compute {
        precision: Some(precision.into()),
        device: args.device.clone(),
        threads: args.threads,
    })?;
    if compute.precision == Precision::Int8 {
        return Err(Error::Config("--precision: int8 is for inference; train in f32 or bf16".into()));
    }
    Ok(compute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn asked(words: &str) -> Result<Request> {
        let Command::Train(train) = Cli::parse_from(words.split(' ')).command else { panic!("{words}") };
        request(&train)
    }

    #[test]
    fn defaults_follow_the_data_and_the_network() {
        let drawn = asked("alexnet train").unwrap();
        assert_eq!((drawn.recipe.name.as_str(), drawn.recipe.net.as_str()), ("mini", "alexnet-mini"));
        let folder = asked("alexnet train pictures").unwrap();
        assert_eq!((folder.recipe.name.as_str(), folder.recipe.net.as_str()), ("finetune", "torchvision"));
        assert_eq!(folder.recipe.from.as_deref(), Some("imagenet"));
        assert!(folder.changes.is_empty(), "{:?}", folder.changes);
        let other = asked("alexnet train pictures --net caffenet").unwrap();
        assert_eq!((other.recipe.name.as_str(), other.recipe.net.as_str()), ("scratch-small", "caffenet"));
        assert!(other.changes[0].contains("do not fit caffenet"), "{:?}", other.changes);
    }

    #[test]
    fn convolutions_of_another_network_are_refused_at_once() {
        let error = asked("alexnet train pictures --net caffenet --from imagenet").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("does not fit net caffenet: its conv1"), "{error}");
    }

    #[test]
    fn flags_change_the_recipe_and_are_listed() {
        let r =
            asked("alexnet train x --epochs 3 --batch 16 --lr 0.5 --seed 7 --train-per-class 30").unwrap();
        assert_eq!((r.recipe.epochs, r.recipe.batch, r.recipe.lr, r.seed), (3, 16, 0.5, 7));
        assert_eq!((r.changes.len(), r.split), (3, Some(SplitConfig::TrainPerClass(30))), "{:?}", r.changes);
        assert_eq!(asked("alexnet train x --split 0.5").unwrap().split, Some(SplitConfig::Fraction(0.5)));
        for wrong in ["alexnet train x --split 1", "alexnet train x --split 0", "alexnet train --split 0.5"] {
            assert!(asked(wrong).unwrap_err().to_string().contains("--split"), "{wrong}");
        }
        assert!(
            asked("alexnet train --train-per-class 30")
                .unwrap_err()
                .to_string()
                .contains("--train-per-class")
        );
        assert!(asked("alexnet train x --batch 0").unwrap_err().to_string().contains("batch"));
    }

    #[test]
    fn a_precision_that_does_not_train_is_refused() {
        let flags = args::Compute { precision: None, device: "auto".into(), threads: Some(1) };
        assert!(compute(&flags, "f32").is_ok() && compute(&flags, "bf16").is_ok());
        let error = compute(&flags, "int8").unwrap_err().to_string();
        assert!(error.contains("--precision: int8 is for inference"), "{error}");
    }

    #[test]
    fn another_number_of_epochs_keeps_the_course() {
        let r = asked("alexnet train x --recipe krizhevsky-2012-code --epochs 182").unwrap();
        assert!(r.changes.iter().any(|c| c == "schedule.at = [50.0, 102.0, 158.0], not [25.0, 51.0, 79.0]"));
        assert_eq!(r.recipe.augment.colour_noise_until, Some(134));
        assert_eq!(r.recipe.layers["conv1"].changes[1].from_epoch, 144.0);
    }

    #[test]
    fn a_smaller_network_stores_smaller_pictures() {
        let r = asked("alexnet train x --net alexnet-mini --recipe scratch-small").unwrap();
        assert_eq!(r.recipe.preprocess.side, 73);
    }
}

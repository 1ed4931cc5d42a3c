//! What `alexnet eval …` means: which networks answer, about which pictures, and what is to be written.

use super::{Pictures, can_create, fraction, open_model, refuse_inside, views};
use crate::args;
use alexnet::data::source::Skipped;
use alexnet::data::{Format, Pack, PackOptions, SplitRule, View, split};
use alexnet::eval::align::{Catalogue, Common, common};
use alexnet::eval::classes::{Matching, matching};
use alexnet::eval::ensemble::Weights;
use alexnet::eval::model::Model;
use alexnet::eval::predictions::{Predictions, is_predictions};
use alexnet::exec::contract::Params;
use alexnet::train::run_directory::SplitConfig;
use alexnet::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The flags, understood before anything is opened.
#[derive(Debug)]
pub struct Request<'a> {
    /// Models and files of predictions, as typed.
    members: Vec<&'a Path>,
    /// The folder or pack of pictures; none if every member is a file of predictions.
    data: Option<&'a Path>,
    /// The views of each picture.
    pub views: &'static [View],
    /// How the members are weighed.
    pub weights: Weights,
    /// `--format`.
    format: Option<Format>,
    split: Option<f64>,
    /// The accuracy that must be reached.
    pub min_top1: Option<f64>,
}

/// What the arguments mean.
///
/// # Errors
/// [`Error::Config`] naming the flag.
pub fn request(args: &args::Eval) -> Result<Request<'_>> {
    let views = views(args.views)?;
    let flag = |e: Error| Error::Config(format!("--weights: {e}"));
    let weights: Weights = args.weights.parse().map_err(flag)?;
    let split = args.split.map(|x| fraction("--split", x)).transpose()?;
    if let Some(x) = args.min_top1.filter(|x| !(0.0..=1.0).contains(x)) {
        return Err(Error::Config(format!(
            "--min-top1 {x}: it is a fraction of the pictures from 0 to 1, for example 0.6"
        )));
    }
    let mut members: Vec<&Path> = args.paths.iter().map(PathBuf::as_path).collect();
    let data = match members.iter().all(|path| is_predictions(path)) {
        true => None,
        false => members.pop(),
    };
    if members.is_empty() {
        return Err(Error::Config(format!(
            "eval needs a model and a folder of pictures, as in `alexnet eval RUN DATA`, and there is only {}",
            args.paths[0].display()
        )));
    }
    if data.is_none() && split.is_some() {
        return Err(Error::Config(
            "--split chooses pictures of a folder, and there are only saved predictions".into(),
        ));
    }
    match &weights {
        Weights::Given(given) if given.len() != members.len() => Err(Error::Config(format!(
            "--weights {}: {} numbers for {} networks",
            args.weights,
            given.len(),
            members.len()
        ))),
        Weights::Fit if members.len() < 2 => {
            Err(Error::Config("--weights fit: it takes at least two networks to weigh them".into()))
        }
        _ => Ok(()),
    }?;
    let outputs = [("--save-predictions", &args.save_predictions), ("--submission", &args.submission)];
    for (flag, out) in outputs.into_iter().filter_map(|(flag, out)| Some((flag, out.as_deref()?))) {
        can_create(flag, out)?;
        if let Some(data) = data.filter(|data| data.is_dir()) {
            refuse_inside(out, data).map_err(|e| Error::Config(format!("{flag}: {e}")))?;
        }
        if args.paths.iter().any(|path| same_file(path, out)) {
            return Err(Error::Config(format!("{flag} {}: it would replace what is read", out.display())));
        }
    }
    if let (Some(a), Some(b)) = (&args.save_predictions, &args.submission)
        && (a == b || same_file(a, b))
    {
        return Err(Error::Config("--save-predictions and --submission name the same file".into()));
    }
    let format = super::format(args.kept.format.as_deref())?;
    Ok(Request { members, data, views, weights, format, split, min_top1: args.min_top1 })
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// One network of those that are measured.
#[derive(Debug)]
pub struct Member {
    /// As typed.
    pub name: String,
    /// Where its answers come from.
    pub source: Source,
}

/// Where a member's answers come from.
#[derive(Debug)]
pub enum Source {
    /// They are computed.
    Model(Box<Computed>),
    /// They were computed earlier.
    Saved(Predictions),
}

/// A model, and the pictures as it takes them.
#[derive(Debug)]
pub struct Computed {
    /// The model. Of several, only one at a time has its weights in memory: see [`Computed::with_weights`].
    pub model: Model,
    /// All pictures of the data.
    pub pack: Arc<Pack>,
    held_out: HeldOut,
    /// For each class of the pictures, the output that stands for it.
    outputs: Arc<[u32]>,
}

impl Computed {
    /// Reads the weights again if they were dropped.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn with_weights<T>(&self, work: impl FnOnce(&Model) -> Result<T>) -> Result<T> {
        match self.model.params.0.is_empty() {
            true => work(&Model::open(&self.model.path)?),
            false => work(&self.model),
        }
    }
}

impl Member {
    /// The network's name.
    pub fn net(&self) -> &str {
        match &self.source {
            Source::Model(computed) => &computed.model.net.name,
            Source::Saved(predictions) => predictions.net(),
        }
    }

    /// The path of one of its pictures, by its own number.
    fn picture(&self, row: u32) -> &str {
        match &self.source {
            Source::Model(computed) => computed.pack.path(row as usize),
            Source::Saved(predictions) => predictions.picture(row as usize),
        }
    }

    fn catalogue(&self) -> Catalogue<'_> {
        let pictures = match &self.source {
            Source::Model(c) => {
                let output = |i: usize| c.outputs[c.pack.label(i) as usize];
                let of = |&i: &u32| (c.pack.path(i as usize), output(i as usize), i);
                c.held_out.pictures.iter().map(of).collect()
            }
            Source::Saved(p) => {
                let of = |i: usize| Some((p.picture(i), p.label(i)?, i as u32));
                (0..p.len()).filter_map(of).collect()
            }
        };
        Catalogue { name: self.name.clone(), pictures }
    }
}

/// Networks and pictures.
#[derive(Debug)]
pub struct Material {
    /// At least one.
    pub members: Vec<Member>,
    /// The class names that all members have.
    pub classes: Vec<String>,
    /// Which of them are the classes of the pictures; none if every member is saved.
    pub matching: Option<Matching>,
    /// The pictures.
    pub common: Common,
    /// Which pictures these are, in words.
    pub part: String,
    /// Of that part, those that could not be decoded.
    pub unreadable: Vec<String>,
    /// What else is in the folder, and why it is not used.
    pub skipped: Vec<Skipped>,
    /// What the user should know first.
    pub warnings: Vec<String>,
}

impl Material {
    /// The path of picture `i` of those in common.
    pub fn path(&self, i: usize) -> &str {
        self.members[0].picture(self.common.rows[0][i])
    }

    /// Pictures.
    pub fn len(&self) -> usize {
        self.common.labels.len()
    }

    /// The pack of the first member that computes.
    pub fn pack(&self) -> Option<&Pack> {
        self.members.iter().find_map(|m| match &m.source {
            Source::Model(computed) => Some(&*computed.pack),
            Source::Saved(_) => None,
        })
    }
}

/// Opens everything, and finds the pictures that every member may be measured with.
///
/// # Errors
/// Of opening models, predictions and pictures; [`Error::Data`] if classes differ or no picture is left.
pub fn material(request: &Request) -> Result<Material> {
    // Whatever is wrong with a model is found before any picture is decoded.
    let opened = open(request)?;
    let classes = opened[0].classes().to_vec();
    for (path, other) in request.members.iter().zip(&opened).skip(1) {
        if other.classes() != classes {
            return Err(Error::Data(format!(
                "{} and {} cannot be averaged: their classes differ: {}",
                request.members[0].display(),
                path.display(),
                first_difference(&classes, other.classes())
            )));
        }
    }
    let computes = opened.iter().any(|o| matches!(o, Opened::Model(_)));
    let found =
        request.data.filter(|_| computes).map(|data| Pictures::find(data, request.format)).transpose()?;
    let matching = found.as_ref().map(|found| matching(&classes, found.classes())).transpose()?;
    let outputs: Arc<[u32]> = matching.as_ref().map_or([].into(), |m| m.outputs.clone().into());
    let mut warnings: Vec<String> = matching.iter().filter_map(|m| m.warning.clone()).collect();
    let mut packs: Vec<(PackOptions, Arc<Pack>)> = Vec::new();
    let mut members: Vec<Member> = Vec::new();
    for (path, opened) in request.members.iter().zip(opened) {
        let source = match (opened, &found) {
            (Opened::Model(model), Some(found)) => {
                let options = model.pack_options();
                let pack = match packs.iter().find(|(own, _)| *own == options) {
                    Some((_, pack)) => Arc::clone(pack),
                    None => {
                        let pack = found.pack(&options)?;
                        packs.push((options, Arc::clone(&pack)));
                        pack
                    }
                };
                let held_out = held_out(&model, &pack, request.split)?;
                warnings.extend(held_out.warning.clone());
                let outputs = Arc::clone(&outputs);
                Source::Model(Box::new(Computed { model: *model, pack, held_out, outputs }))
            }
            (Opened::Saved(saved), _) => Source::Saved(saved),
            (Opened::Model(_), None) => unreachable!("models are opened where there are pictures"),
        };
        members.push(Member { name: path.display().to_string(), source });
    }
    let skipped = found.map(Pictures::skipped).unwrap_or_default();
    let catalogues: Vec<Catalogue> = members.iter().map(Member::catalogue).collect();
    let common = common(&catalogues)?;
    let part = part_words(&members, &catalogues, common.labels.len());
    drop(catalogues);
    let unreadable = members.iter().find_map(|m| match &m.source {
        Source::Model(c) => {
            Some(c.held_out.unreadable.iter().map(|&i| c.pack.path(i as usize).to_string()).collect())
        }
        Source::Saved(_) => None,
    });
    let unreadable = unreadable.unwrap_or_default();
    Ok(Material { members, classes, matching, common, part, unreadable, skipped, warnings })
}

/// A member, before there are pictures.
enum Opened {
    Model(Box<Model>),
    Saved(Predictions),
}

impl Opened {
    fn classes(&self) -> &[String] {
        match self {
            Opened::Model(model) => &model.classes,
            Opened::Saved(saved) => saved.classes(),
        }
    }
}

/// Opens every member, and sees that each model takes what its preprocessing gives.
fn open(request: &Request) -> Result<Vec<Opened>> {
    let member = |&path: &&Path| {
        if request.data.is_none() || is_predictions(path) {
            return Ok(Opened::Saved(Predictions::open(path)?));
        }
        let mut model = open_model(path)?;
        model.check()?;
        // Of several, one at a time has its weights in memory.
        if request.members.len() > 1 {
            model.params = Params::default();
        }
        Ok(Opened::Model(Box::new(model)))
    };
    request.members.iter().map(member).collect()
}

/// Where two lists of classes differ first.
fn first_difference(a: &[String], b: &[String]) -> String {
    match a.iter().zip(b).position(|(a, b)| a != b) {
        Some(i) => format!("output {} is {} in the first and {} in the second", i + 1, a[i], b[i]),
        None => format!("{} in the first, {} in the second", a.len(), b.len()),
    }
}

fn part_words(members: &[Member], catalogues: &[Catalogue], common: usize) -> String {
    let mut parts: Vec<&str> = members
        .iter()
        .map(|m| match &m.source {
            Source::Model(computed) => computed.held_out.part.as_str(),
            Source::Saved(_) => "the pictures of saved predictions",
        })
        .collect();
    parts.dedup();
    let words = parts.join("; ");
    match catalogues.iter().all(|c| c.pictures.len() == common) {
        true => words,
        false => {
            format!("{words}; of these, the pictures that no network was trained on and all can answer for")
        }
    }
}

/// The pictures that a model may be measured with.
#[derive(Debug)]
struct HeldOut {
    /// Indices into the pack, readable ones.
    pictures: Vec<u32>,
    unreadable: Vec<u32>,
    part: String,
    warning: Option<String>,
}

/// The pictures that a model is measured with, and what they are in words: the fraction that was asked for; of the
/// pictures that it was trained on, the part that was kept for validation; of others, `val/` where there is one, else
/// all.
fn held_out(model: &Model, pack: &Pack, asked: Option<f64>) -> Result<HeldOut> {
    let own = pack.fingerprint() == model.state.data_fingerprint;
    let (rule, part) = if let Some(x) = asked {
        let of = if own { "its own data" } else { "other data than it was trained on" };
        (Some(SplitRule::Fraction(x)), format!("{} % of each class of {of}", 100.0 * x))
    } else if own {
        let rule = model.state.split.rule(model.state.seed);
        (Some(rule), "the part of its own data that it was not trained on".into())
    } else if pack.has_given_split() {
        (Some(SplitRule::Given), "val/ of other data than it was trained on".into())
    } else {
        (None, "all of other data than it was trained on".into())
    };
    let differs = asked.is_some_and(|x| model.state.split != SplitConfig::Fraction(x));
    let warning = (own && differs).then(|| {
        format!(
            "warning: {} was trained on some of these pictures: it was split otherwise",
            model.path.display()
        )
    });
    let bad = || pack.unreadable().iter().map(|u| u.index);
    let (pictures, unreadable) = match &rule {
        Some(rule) => {
            let given = *rule == SplitRule::Given;
            let val = |&i: &u32| given && pack.split_of(i as usize) == Some(alexnet::data::Split::Val);
            (split(pack, rule)?.val, bad().filter(val).collect())
        }
        None => (
            (0..pack.len() as u32).filter(|&i| pack.picture(i as usize).is_some()).collect(),
            bad().collect(),
        ),
    };
    Ok(HeldOut { pictures, unreadable, part, warning })
}

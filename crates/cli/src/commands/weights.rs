//! `alexnet weights`: what a weight file is, a model from one, and one from a model.

use crate::args::{ExportFormat, Weights, WeightsExport, WeightsImport, WeightsInfo};
use crate::failure::Outcome;
use crate::plan;
use crate::terminal::{count, plural, print_line, table};
use alexnet::data::{Mean, Preprocess};
use alexnet::error::nearest;
use alexnet::eval::model::Model;
use alexnet::interchange::export::{self, onnx};
use alexnet::interchange::foreign::{ChannelOrder, Foreign, sizes};
use alexnet::interchange::import::{Settings, import, usual_preprocessing};
use alexnet::interchange::recognise::recognise;
use alexnet::interchange::{WeightFile, caffemodel};
use alexnet::train::tensor_file;
use alexnet::{Error, Network, Result, zoo};
use serde_json::json;
use std::path::Path;

/// Runs `alexnet weights …`.
pub fn run(args: Weights) -> Outcome {
    match args {
        Weights::Info(args) => info(&args),
        Weights::Import(args) => bring_in(&args),
        Weights::Export(args) => take_out(&args),
    }
}

/// The network that `--net` names, with as many classes as a matrix of the file has rows: the last that fits.
fn named_network(typed: Option<&str>, foreign: &Foreign) -> Result<Option<Network>> {
    let Some(typed) = typed else { return Ok(None) };
    let net = plan::network(typed, None)?;
    if plan::names_file(typed) {
        return Ok(Some(net));
    }
    let rows = foreign.tensors.iter().rev().filter(|t| t.shape.len() == 2).map(|t| t.shape[0]);
    let fitting = rows.take(8).map(|classes| net.clone().with_classes(classes));
    Ok(Some(fitting.into_iter().find(|net| recognise(foreign, Some(net)).is_ok()).unwrap_or(net)))
}

fn info(args: &WeightsInfo) -> Outcome {
    if args.file.is_dir() {
        return own(&plan::open_model(&args.file)?, args.json);
    }
    let file = WeightFile::open(&args.file)?;
    if tensor_file::is_one(file.bytes())
        && let Ok(model) = Model::open(&args.file)
    {
        return own(&model, args.json);
    }
    let foreign = file.read()?;
    let forced = named_network(args.net.as_deref(), &foreign)?;
    let recognized = recognise(&foreign, forced.as_ref());
    let preprocessing = match (&foreign.preprocess, &recognized) {
        (Some(text), _) => format!("in the file: {}", preprocess_text(text)),
        (None, Ok(found)) => format!("not in the file; {}", usual_preprocessing(&found.net).1),
        (None, Err(_)) => "not in the file".into(),
    };
    let order = foreign.channels.map(|order| match order {
        ChannelOrder::Rgb => "red, green, blue",
        ChannelOrder::Bgr => "blue, green, red",
    });
    if args.json {
        let tensors: Vec<_> = foreign
            .tensors
            .iter()
            .filter(|t| !t.is_turned())
            .map(|t| json!({"name": t.name, "shape": t.shape, "dtype": t.dtype.to_string()}))
            .collect();
        let about: serde_json::Map<_, _> =
            foreign.about.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        let object = json!({
            "file": args.file.display().to_string(),
            "format": foreign.format.words(),
            "about": about,
            "network": recognized.as_ref().ok().map(|r| r.net.name.clone()),
            "classes": recognized.as_ref().ok().map(|r| r.net.classes()),
            "how": recognized.as_ref().map_or_else(ToString::to_string, |r| r.how.clone()),
            "channels": order,
            "preprocessing": preprocessing,
            "tensors": tensors,
        });
        return Ok(print_line(&object.to_string())?);
    }
    let mut lines = vec![format!("format         {}", foreign.format.words())];
    lines.extend(foreign.about.iter().map(|(key, value)| format!("  {key}: {value}")));
    lines.push(match &recognized {
        Ok(found) => {
            format!("network        {} for {} classes: {}", found.net.name, found.net.classes(), found.how)
        }
        Err(error) => format!("network        not recognized: {error}"),
    });
    lines.extend(order.map(|order| format!("channels       {order}")));
    lines.push(format!("preprocessing  {preprocessing}"));
    let mut rows = vec![["tensor", "sizes", "type", "elements"].map(String::from).to_vec()];
    for t in foreign.tensors.iter().filter(|t| !t.is_turned()) {
        rows.push(vec![t.name.clone(), sizes(&t.shape), t.dtype.to_string(), count(t.elements())]);
    }
    lines.push(table(&rows, &[false, true, false, true]));
    for line in lines {
        print_line(&printable(&line))?;
    }
    Ok(())
}

/// Names in a file may have anything in them; control characters would speak to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn preprocess_text(json: &str) -> String {
    match serde_json::from_str::<Preprocess>(json) {
        Ok(preprocess) => preprocess_words(&preprocess),
        Err(error) => format!("not understood ({error})"),
    }
}

fn preprocess_words(p: &Preprocess) -> String {
    let mean = match &p.mean {
        Mean::Channels(mean) => format!("mean {mean:?}"),
        Mean::Picture(_) => "a mean picture".into(),
    };
    format!(
        "{:?} of {}×{} pixels, crop {}, red-green-blue, scale {}, {mean}, deviation {:?}",
        p.fit, p.side, p.side, p.crop, p.scale, p.std
    )
}

/// About a checkpoint of this program.
fn own(model: &Model, json: bool) -> Outcome {
    let net = &model.net;
    if json {
        let tensors: Vec<_> = model
            .params
            .0
            .iter()
            .map(|p| json!({"name": p.name, "shape": p.shape, "dtype": "f32"}))
            .collect();
        let object = json!({
            "file": model.path.display().to_string(),
            "format": "checkpoint of this program",
            "network": net.name,
            "classes": net.classes(),
            "origin": model.state.origin,
            "epochs": model.state.position.epoch,
            "channels": "red, green, blue",
            "preprocessing": preprocess_words(&model.preprocess),
            "tensors": tensors,
        });
        return Ok(print_line(&object.to_string())?);
    }
    print_line("format         checkpoint of this program")?;
    match &model.state.origin {
        Some(origin) => print_line(&format!("origin         {origin}"))?,
        None => print_line(&format!("trained        {} epochs", model.state.position.epoch))?,
    }
    print_line(&format!("network        {} for {} classes", net.name, net.classes()))?;
    print_line(&format!("preprocessing  {}", preprocess_words(&model.preprocess)))?;
    let mut rows = vec![["tensor", "sizes", "type", "elements"].map(String::from).to_vec()];
    for p in &model.params.0 {
        rows.push(vec![p.name.clone(), sizes(&p.shape), "f32".into(), count(p.data.len())]);
    }
    Ok(print_line(&table(&rows, &[false, true, false, true]))?)
}

fn bring_in(args: &WeightsImport) -> Outcome {
    plan::can_create("OUT", &args.out)?;
    let file = WeightFile::open(&args.file)?;
    if args.out.canonicalize().ok().is_some_and(|out| args.file.canonicalize().ok() == Some(out)) {
        return Err(crate::failure::Failure::config("the model would replace the file that it is made of"));
    }
    let foreign = file.read()?;
    let settings = Settings {
        net: named_network(args.net.as_deref(), &foreign)?,
        classes: args.classes.as_deref().map(class_names).transpose()?,
        channels: args.channels.as_deref().map(channel_order).transpose()?,
        preprocess: args.preprocess.as_deref().map(preprocess_named).transpose()?,
        mean: args.mean.as_deref().map(mean).transpose()?,
    };
    let imported = import(&foreign, &settings)?;
    for note in &imported.notes {
        print_line(&printable(note))?;
    }
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let classes = imported.classes.len();
    let origin = format!("{} ({})", name, foreign.format.words());
    imported.checkpoint(&origin).write(&args.out)?;
    print_line(&format!("model for {} in {}", plural(classes, "class", "classes"), args.out.display()))?;
    Ok(())
}

fn class_names(path: &Path) -> Result<Vec<String>> {
    Ok(plan::read_text(path, "list of classes")?.lines().map(|line| line.trim().to_string()).collect())
}

fn one_of<T>(flag: &str, typed: &str, all: &[(&str, T)]) -> Result<T>
where
    T: Clone,
{
    all.iter().find(|(name, _)| *name == typed).map(|(_, value)| value.clone()).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        let hint = match nearest(typed, names.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", names.join(" and ")),
        };
        Error::Config(format!("{flag} {typed}: {hint}"))
    })
}

fn channel_order(typed: &str) -> Result<ChannelOrder> {
    one_of("--channels", typed, &[("rgb", ChannelOrder::Rgb), ("bgr", ChannelOrder::Bgr)])
}

fn preprocess_named(typed: &str) -> Result<Preprocess> {
    let of = |name: &str| -> Result<Preprocess> {
        Ok(usual_preprocessing(&zoo::by_name(name, zoo::IMAGENET_CLASSES)?).0)
    };
    one_of("--preprocess", typed, &[("torchvision", of("torchvision")?), ("caffe", of("caffenet")?)])
}

fn mean(typed: &str) -> Result<Mean> {
    let numbers: Option<Vec<f32>> = typed.split(',').map(|part| part.trim().parse().ok()).collect();
    if let Some(numbers) = numbers {
        return match <[f32; 3]>::try_from(numbers) {
            Ok(mean) => Ok(Mean::Channels(mean)),
            Err(other) => Err(Error::Config(format!("--mean {typed}: {} numbers, not three", other.len()))),
        };
    }
    let file = WeightFile::open(Path::new(typed))?;
    let fail = |why: String| Error::Checkpoint(format!("{typed}: {why}"));
    Ok(Mean::Picture(caffemodel::read_mean(file.bytes()).map_err(fail)?.0))
}

fn take_out(args: &WeightsExport) -> Outcome {
    plan::can_create("OUT", &args.out)?;
    let format = match (args.format, args.out.extension().and_then(|e| e.to_str())) {
        (Some(format), _) => format,
        (None, Some("safetensors")) => ExportFormat::Safetensors,
        (None, Some("onnx")) => ExportFormat::Onnx,
        (None, Some("caffemodel")) => ExportFormat::Caffe,
        (None, _) => {
            return Err(crate::failure::Failure::config(format!(
                "{}: its ending tells no format; give --format safetensors, onnx or caffe",
                args.out.display()
            )));
        }
    };
    if args.logits && format != ExportFormat::Onnx {
        return Err(crate::failure::Failure::config("--logits is for ONNX alone"));
    }
    let model = plan::open_model(&args.model)?;
    if args.out.canonicalize().ok().is_some_and(|out| model.path.canonicalize().ok() == Some(out)) {
        return Err(crate::failure::Failure::config("the file would replace the model that it is made of"));
    }
    let source = export::Source {
        net: &model.net,
        params: &model.params,
        preprocess: &model.preprocess,
        classes: &model.classes,
    };
    match format {
        ExportFormat::Safetensors => export::safetensors::write(source, &args.out)?,
        ExportFormat::Onnx => {
            let output = if args.logits { onnx::Output::Logits } else { onnx::Output::Probabilities };
            onnx::write(source, &args.out, output)?;
        }
        ExportFormat::Caffe => {
            let prototxt = args.out.with_extension("prototxt");
            export::caffe::write(source, &args.out, &prototxt)?;
            print_line(&format!("network as text in {}", prototxt.display()))?;
        }
    }
    print_line(&format!("{} for {} classes in {}", model.net.name, model.classes.len(), args.out.display()))?;
    Ok(())
}

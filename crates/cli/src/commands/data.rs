//! `alexnet data`: check, pack and describe a set of pictures.

use crate::args::{self, Data, DataCheck, DataJoin, DataPack, DataStats};
use crate::failure::{Failure, Outcome};
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{bytes, complain, plural, print_line, table};
use alexnet::Error;
use alexnet::data::source::Reader;
use alexnet::data::{BuildOptions, Filter, Form, Keep, Listing, Pack, PackOptions, Shard, Stats};
use alexnet::train::recipe;
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Runs `alexnet data …`.
pub fn run(data: Data) -> Outcome {
    match data {
        Data::Check(args) => check(args),
        Data::Pack(args) => pack(args),
        Data::Join(args) => join(args),
        Data::Stats(args) => stats(args),
    }
}

/// Decodes every picture, without keeping any.
fn check(args: DataCheck) -> Outcome {
    let listing = plan::listing(&args.path, plan::format(args.kept.format.as_deref())?)?;
    let faults = decode_all(&listing);
    if args.json {
        let named = |path: &str, reason: &str| json!({ "path": path, "reason": reason });
        let object = json!({
            "pictures": listing.entries.len(),
            "classes": listing.classes.len(),
            "unreadable": faults.iter().map(|(p, r)| named(p, r)).collect::<Vec<_>>(),
            "skipped": listing.skipped.iter()
                .map(|s| named(&s.path.display().to_string(), &s.reason)).collect::<Vec<_>>(),
        });
        print_line(&object.to_string())?;
    } else {
        for (path, reason) in &faults {
            print_line(&format!("unreadable: {path}: {reason}"))?;
        }
        for skipped in &listing.skipped {
            print_line(&format!("skipped: {}: {}", skipped.path.display(), skipped.reason))?;
        }
        print_line(&format!(
            "{} in {}, {} unreadable, {} skipped",
            plural(listing.entries.len(), "picture", "pictures"),
            plural(listing.classes.len(), "class", "classes"),
            faults.len(),
            listing.skipped.len(),
        ))?;
    }
    if faults.is_empty() { Ok(()) } else { Err(Failure::Negative) }
}

/// The pictures of a listing that cannot be decoded, with the reason, in the order of the listing.
fn decode_all(listing: &Listing) -> Vec<(String, String)> {
    let next = AtomicUsize::new(0);
    let total = listing.entries.len();
    let exif = PackOptions::default().exif;
    let reader = Reader::new(listing);
    let mut progress = Progress::new("checking");
    let mut faults = Vec::new();
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        for _ in 0..crate::machine::cores().min(total) {
            let (send, next, reader) = (send.clone(), &next, &reader);
            scope.spawn(move || {
                while let Some((i, entry)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|i| listing.entries.get(i).map(|entry| (i, entry)))
                {
                    let result = reader.picture(entry, exif).map(|_| ());
                    if send.send((i, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        for (done, (i, result)) in receive.iter().enumerate() {
            progress.update(done + 1, total, "");
            if let Err(reason) = result {
                faults.push((i, reason));
            }
        }
    });
    faults.sort_unstable();
    faults.into_iter().map(|(i, reason)| (listing.entries[i].name(), reason)).collect()
}

/// Makes a pack, in the cache folder or in a file.
fn pack(args: DataPack) -> Outcome {
    let options = pack_options(&args)?;
    let shard = args.shard.as_deref().map(str::parse::<Shard>).transpose();
    let shard = shard.map_err(|e| Error::Config(format!("--shard: {e}")))?;
    let threads = args.threads.map(|n| plan::at_least_one("--threads", n)).transpose()?.unwrap_or(0);
    let build = BuildOptions { threads, shard, large: args.large, ..Default::default() };
    if shard.is_some() && args.out.is_none() {
        let why = "--shard makes a part for `alexnet data join`: name the file to write, after the pictures";
        return Err(Error::Config(why.into()).into());
    }
    let listing = plan::listing(&args.path, plan::format(args.kept.format.as_deref())?)?;
    let estimate = Pack::estimate(&listing, &options, shard)?;
    let about = if estimate.exact { "" } else { "about " };
    complain(&format!("the pictures of the pack take {about}{}", bytes(estimate.bytes)));
    let mut tell = plan::progress_of("packing");
    let pack = match &args.out {
        None => Pack::for_listing_with(&listing, &options, &build, None, &mut tell)?,
        Some(out) => {
            plan::refuse_inside(out, &listing.base)?;
            Pack::build_with(&listing, &options, &build, out, &mut tell)?
        }
    };
    drop(tell);
    describe(&pack)
}

/// What the recipe and the flags ask for.
fn pack_options(args: &DataPack) -> alexnet::Result<PackOptions> {
    let mut options = match &args.recipe {
        Some(name) => recipe::load(name)?.pack_options(),
        None => PackOptions::default(),
    };
    if let Some(keep) = args.keep {
        options.keep = match keep {
            args::Keep::Square => Keep::Square,
            args::Keep::Whole => Keep::Whole,
            args::Keep::Original => Keep::Original,
        };
        if keep == args::Keep::Original && args.form.is_none() {
            options.form = Form::Raw;
        }
    }
    if let Some(form) = args.form {
        options.form = match form {
            args::Form::Raw => Form::Raw,
            args::Form::Jpeg => Form::Jpeg,
        };
    }
    if let Some(resize) = args.resize {
        options.resize = match resize {
            args::Resize::Bilinear => Filter::Bilinear,
            args::Resize::Area => Filter::Area,
            args::Resize::Cubic => Filter::Cubic,
            args::Resize::AreaCubic => Filter::AreaCubic,
            args::Resize::Linear => Filter::Linear,
        };
    }
    if let Some(side) = args.side {
        options.side = plan::at_least_one("--side", side)?;
    }
    options.check()?;
    Ok(options)
}

/// Puts the parts of a pack together.
fn join(args: DataJoin) -> Outcome {
    plan::can_create("OUT", &args.out)?;
    let mut tell = plan::progress_of("joining");
    let pack = Pack::join(&args.parts, &args.out, &mut tell)?;
    drop(tell);
    describe(&pack)
}

/// Lines about a pack that has just been made.
fn describe(pack: &Pack) -> Outcome {
    for bad in pack.unreadable() {
        print_line(&format!("unreadable: {}: {}", bad.path, bad.reason))?;
    }
    let file = pack.file().unwrap_or(Path::new("memory"));
    let size = std::fs::metadata(file).map_or(0, |m| m.len());
    print_line(&plan::data_words(pack))?;
    let part = pack.shard().map_or(String::new(), |shard| format!("part {shard}, "));
    print_line(&format!("{part}{}, fingerprint {}", plan::stored_words(pack.options()), pack.fingerprint()))?;
    print_line(&format!("{} ({})", file.display(), bytes(size)))?;
    Ok(())
}

/// Counts classes and pictures, and the colours' statistics.
fn stats(args: DataStats) -> Outcome {
    let (pack, skipped) =
        plan::pictures(&args.path, plan::format(args.kept.format.as_deref())?, &PackOptions::default())?;
    let every: Vec<u32> = (0..pack.len() as u32).collect();
    let stats = Stats::compute(&pack, &every, crate::machine::cores())?;
    let sizes = pack.class_sizes();
    if args.json {
        let classes: serde_json::Map<String, serde_json::Value> =
            pack.classes().iter().zip(&sizes).map(|(name, &n)| (name.clone(), n.into())).collect();
        let object = json!({
            "pictures": pack.len(),
            "unreadable": pack.unreadable().len(),
            "skipped": skipped.len(),
            "classes": classes,
            "side": pack.side(),
            "mean_rgb": stats.channel_mean,
            "std_rgb": stats.channel_std,
            "colour_sigma": stats.axes.sigma,
            "colour_axes": stats.axes.axes,
            "fingerprint": pack.fingerprint(),
        });
        return Ok(print_line(&object.to_string())?);
    }
    let mut rows = vec![vec!["class".to_string(), "pictures".to_string()]];
    rows.extend(pack.classes().iter().zip(&sizes).map(|(name, n)| vec![name.clone(), n.to_string()]));
    print_line(&table(&rows, &[false, true]))?;
    print_line(&format!("\n{}", plan::data_words(&pack)))?;
    for line in plan::unused_words(&pack, &skipped) {
        print_line(&line)?;
    }
    let [r, g, b] = stats.channel_mean;
    let [dr, dg, db] = stats.channel_std;
    print_line(&format!(
        "mean R {r:.2} G {g:.2} B {b:.2}, standard deviation R {dr:.2} G {dg:.2} B {db:.2}"
    ))?;
    for (sigma, [r, g, b]) in stats.axes.sigma.iter().zip(&stats.axes.axes) {
        print_line(&format!("colour axis ({r:+.4}, {g:+.4}, {b:+.4}), deviation {sigma:.3}"))?;
    }
    print_line(&format!("fingerprint {}", pack.fingerprint()))?;
    Ok(())
}

//! WebDataset: tars in which the members of a sample share a key: `KEY.jpg` with `KEY.cls` (a number or a name) or
//! `KEY.json` (an object with `label`). The key is the name up to the first dot of its last part.

use super::labels::Labels;
use super::reader::ReadAt;
use super::shelf::{self, Shelf};
use super::tar_index::{self, Found, Member};
use super::{Entry, Format, Listing, PICTURE_EXTENSIONS, Place, Tell};
use crate::data::split::Split;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Files beside the shards that may name the classes, one a line.
const CLASS_FILES: [&str; 3] = ["classnames.txt", "classes.txt", "labels.txt"];
/// Largest `.cls` and `.json` that are read.
const MAX_CLS_BYTES: u64 = 4 << 10;
const MAX_JSON_BYTES: u64 = 1 << 20;
/// Keys of a JSON object that may hold the label, the first that is there is taken.
const JSON_KEYS: [&str; 4] = ["label", "cls", "class", "class_name"];

/// Lists the shards of a folder (its own, or those in folders such as `train/`), or one shard.
///
/// # Errors
/// [`Error::Data`] naming the shard.
pub fn list(root: &Path, tell: Tell) -> Result<Listing> {
    let (mut shelf, shards) = Shelf::of_shards(root, ".tar")?;
    let mut labels = Labels::default();
    let all = shards.len();
    for (i, (shard, side)) in shards.into_iter().enumerate() {
        self::shard(&mut shelf, &mut labels, &shard, side)?;
        tell(i + 1, all);
    }
    let known = known_classes(&shelf.base)?;
    shelf.finish_labelled(Format::WebDataset, root, labels, known)
}

/// Names of the classes, if a file beside the shards gives them.
fn known_classes(base: &Path) -> Result<Option<Vec<String>>> {
    let Some(path) = CLASS_FILES.iter().map(|n| base.join(n)).find(|p| p.is_file()) else { return Ok(None) };
    let text = shelf::read_text(&path, shelf::MAX_TEXT_BYTES)?;
    Ok(Some(text.trim_end().lines().map(|l| l.trim().to_string()).collect()))
}

/// The members of one sample.
#[derive(Default)]
struct Sample {
    key: PathBuf,
    picture: Option<Member>,
    cls: Option<Member>,
    json: Option<Member>,
}

fn shard(shelf: &mut Shelf, labels: &mut Labels, shard: &Path, side: Option<Split>) -> Result<()> {
    let (index, file) = shelf.open(shard)?;
    let bytes = shelf.files[index as usize].bytes;
    let mut sample = Sample::default();
    let walked = tar_index::walk(&file, 0, bytes, &mut |found| {
        match found {
            Found::Passed(name, why) => shelf.skip(shard.join(name), why),
            Found::Member(member) => {
                let (key, extension) = key_of(&member.path);
                if key != sample.key {
                    finish_sample(shelf, labels, &file, (index, shard, side), std::mem::take(&mut sample))?;
                    sample.key = key;
                }
                let last = extension.rsplit('.').next().unwrap_or("");
                let slot = match last {
                    "cls" => &mut sample.cls,
                    "json" => &mut sample.json,
                    _ if PICTURE_EXTENSIONS.contains(&last) => &mut sample.picture,
                    _ => return Ok(()),
                };
                if slot.is_some() {
                    shelf.skip(shard.join(&member.path), "a second one for the same key");
                } else {
                    *slot = Some(member);
                }
            }
        }
        Ok(())
    });
    walked
        .and_then(|()| finish_sample(shelf, labels, &file, (index, shard, side), sample))
        .map_err(|why| Error::Data(format!("{}: {why}", shelf.base.join(shard).display())))
}

/// Key and extension, in small letters, of a member.
fn key_of(path: &Path) -> (PathBuf, String) {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let text = String::from_utf8_lossy(name);
    let (stem, extension) = text.split_once('.').unwrap_or((&text, ""));
    (path.with_file_name(stem), extension.to_ascii_lowercase())
}

/// Adds a sample, if it is complete.
fn finish_sample(
    shelf: &mut Shelf,
    labels: &mut Labels,
    file: &dyn ReadAt,
    (index, shard, split): (u32, &Path, Option<Split>),
    sample: Sample,
) -> std::result::Result<(), String> {
    let Some(picture) = sample.picture else {
        if let Some(lone) = sample.cls.or(sample.json) {
            shelf.skip(shard.join(lone.path), "a label without a picture");
        }
        return Ok(());
    };
    let label = match (&sample.cls, &sample.json) {
        (Some(cls), _) => text(file, cls, MAX_CLS_BYTES).map(|t| t.trim().to_string()),
        (None, Some(json)) => text(file, json, MAX_JSON_BYTES).and_then(|t| json_label(&t)),
        (None, None) => Err("a picture without a label (.cls or .json)".into()),
    };
    match label {
        Ok(label) if !label.is_empty() => shelf.entries.push(Entry {
            path: shard.with_extension("").join(&picture.path),
            class: labels.id(&label),
            split,
            place: Place::Part { file: index, offset: picture.offset, bytes: picture.bytes },
        }),
        Ok(_) => shelf.skip(shard.join(&picture.path), "its label is empty"),
        Err(why) => shelf.skip(shard.join(&picture.path), why),
    }
    Ok(())
}

fn text(file: &dyn ReadAt, member: &Member, limit: u64) -> std::result::Result<String, String> {
    if member.bytes > limit {
        return Err(format!("its label file has {} bytes; at most {limit} are read", member.bytes));
    }
    let mut bytes = vec![0; member.bytes as usize];
    file.fill_at(&mut bytes, member.offset)?;
    String::from_utf8(bytes).map_err(|_| "its label is not text".into())
}

fn json_label(text: &str) -> std::result::Result<String, String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| format!("its .json cannot be read ({e})"))?;
    match JSON_KEYS.iter().find_map(|key| value.get(key)) {
        Some(serde_json::Value::String(name)) => Ok(name.trim().into()),
        Some(serde_json::Value::Number(n)) if n.is_u64() => Ok(n.to_string()),
        Some(_) => Err("the label in its .json is neither a name nor a whole number from 0".into()),
        None => Err("no `label` in its .json".into()),
    }
}

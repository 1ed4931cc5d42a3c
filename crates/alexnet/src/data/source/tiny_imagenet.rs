//! Tiny-ImageNet as downloaded: `train/WNID/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`,
//! `wnids.txt` and `words.txt`.

use super::folder::pictures_in;
use super::shelf::{self, Shelf};
use super::{Entry, Format, Listing};
use crate::data::split::Split;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;

/// Where the validation pictures' classes are.
const ANNOTATIONS: &str = "val/val_annotations.txt";
const WNIDS: &str = "wnids.txt";
const WORDS: &str = "words.txt";
/// Missing things that are named.
const NAMED: usize = 3;

/// Whether a folder has the layout of Tiny-ImageNet.
pub fn recognise(root: &Path) -> bool {
    root.join(WNIDS).is_file() || root.join(ANNOTATIONS).is_file()
}

/// Lists a folder with the layout of Tiny-ImageNet. Classes are the WordNet ids of `wnids.txt`, sorted, with their
/// words.
///
/// # Errors
/// [`Error::Data`] naming the file that is missing or wrong.
pub fn list(root: &Path) -> Result<Listing> {
    let expected = [WNIDS, WORDS, "train", "val/images", ANNOTATIONS];
    let missing: Vec<&str> = expected.into_iter().filter(|name| !root.join(name).exists()).collect();
    if !missing.is_empty() {
        return Err(Error::Data(format!(
            "{}: Tiny-ImageNet's {} {} missing",
            root.display(),
            missing.join(", "),
            if missing.len() == 1 { "is" } else { "are" }
        )));
    }
    let text = |name: &str| shelf::read_text(&root.join(name), shelf::MAX_TEXT_BYTES);
    let mut wnids: Vec<String> =
        text(WNIDS)?.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    wnids.sort_unstable();
    wnids.dedup();
    if let Some(odd) = wnids.iter().find(|w| !w.bytes().all(|b| b.is_ascii_alphanumeric())) {
        let odd: String = odd.chars().take(40).collect();
        return Err(Error::Data(format!("{}: {odd:?} is not a WordNet id", root.join(WNIDS).display())));
    }
    let words_text = text(WORDS)?;
    let words: HashMap<&str, &str> = words_text.lines().filter_map(|l| l.trim().split_once('\t')).collect();
    let class_of: HashMap<&str, u32> =
        wnids.iter().enumerate().map(|(i, w)| (w.as_str(), i as u32)).collect();
    let mut shelf = Shelf::new(root);
    for name in [WNIDS, WORDS, ANNOTATIONS] {
        shelf.open(Path::new(name))?;
    }
    let mut without = Vec::new();
    for (class, wnid) in wnids.iter().enumerate() {
        let before = shelf.entries.len();
        for (path, place) in pictures_in(root, &Path::new("train").join(wnid), &mut shelf) {
            shelf.entries.push(Entry { path, class: class as u32, split: Some(Split::Train), place });
        }
        if shelf.entries.len() == before {
            without.push(format!("train/{wnid}/images"));
        }
    }
    if !without.is_empty() {
        return Err(Error::Data(format!(
            "{}: {} of {} classes have no pictures: {}{}",
            root.display(),
            without.len(),
            wnids.len(),
            without[..without.len().min(NAMED)].join(", "),
            if without.len() > NAMED { ", ..." } else { "" }
        )));
    }
    let in_annotations = |why: String| Error::Data(format!("{}: {why}", root.join(ANNOTATIONS).display()));
    let truth = annotations(&text(ANNOTATIONS)?, &class_of).map_err(in_annotations)?;
    let mut found: HashSet<String> = HashSet::new();
    for (path, place) in pictures_in(root, Path::new("val/images"), &mut shelf) {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or("").to_string();
        match truth.get(&name) {
            Some(&class) => {
                shelf.entries.push(Entry { path, class, split: Some(Split::Val), place });
                found.insert(name);
            }
            None => shelf.skip(path, format!("not in {ANNOTATIONS}")),
        }
    }
    let mut absent: Vec<&String> = truth.keys().filter(|name| !found.contains(*name)).collect();
    absent.sort_unstable();
    if !absent.is_empty() {
        let names: Vec<&str> = absent.iter().take(NAMED).map(|s| s.as_str()).collect();
        return Err(in_annotations(format!(
            "{} of the pictures that it names are not in val/images: {}{}",
            absent.len(),
            names.join(", "),
            if absent.len() > NAMED { ", ..." } else { "" }
        )));
    }
    if root.join("test").is_dir() {
        shelf.skip("test", "pictures without labels");
    }
    let name = |w: &String| format!("{w} {}", words.get(w.as_str()).unwrap_or(&"")).trim_end().to_string();
    let classes = wnids.iter().map(name).collect();
    shelf.finish(Format::TinyImagenet, root, classes)
}

/// Names and classes of validation pictures: a name, a tab, a WordNet id, and a box that is not used, a line.
///
/// # Errors
/// The line that is wrong.
pub fn annotations(
    text: &str,
    class_of: &HashMap<&str, u32>,
) -> std::result::Result<HashMap<String, u32>, String> {
    let mut truth = HashMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let mut fields = line.split('\t');
        let (Some(name), Some(wnid)) = (fields.next(), fields.next()) else {
            return Err(format!("line {}: a name, a tab and a WordNet id are expected", i + 1));
        };
        let Some(&class) = class_of.get(wnid.trim()) else {
            let shown: String = wnid.trim().chars().take(40).collect();
            return Err(format!("line {}: {shown:?} is not in {WNIDS}", i + 1));
        };
        if truth.insert(name.trim().to_string(), class).is_some_and(|other| other != class) {
            return Err(format!("line {}: {} has a second label", i + 1, name.trim()));
        }
    }
    if truth.is_empty() { Err("no lines in it".into()) } else { Ok(truth) }
}

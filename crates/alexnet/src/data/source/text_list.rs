//! A list of paths and labels: CSV, TSV, or text with a path and a label a line. Paths are relative to the list's
//! folder.
//!
//! A first line of column names may say which column is which (path, label, and split if there is one); without it
//! the first is the path and the second the label.

use super::labels::Labels;
use super::shelf::{self, Shelf};
use super::{Entry, Format, Listing, Place, modified_ns};
use crate::data::decode::{check_regular, io_reason};
use crate::data::split::Split;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What the columns may be called.
const PATH_NAMES: [&str; 11] = [
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "image",
    "image_path",
    "img",
    "image_id",
    "picture",
    "id",
];
const LABEL_NAMES: [&str; 8] =
    ["label", "labels", "class", "class_name", "category", "target", "class_id", "y"];
const SPLIT_NAMES: [&str; 4] = ["split", "set", "subset", "fold"];
/// Largest list: 20 million lines or so.
const MAX_LIST_BYTES: u64 = 1 << 30;
/// Missing files that are named.
const NAMED: usize = 3;

/// A line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Counted from 1.
    pub line: u64,
    /// As written.
    pub path: String,
    /// As written.
    pub label: String,
    /// Its side, if there is a column for it.
    pub split: Option<Split>,
}

/// Reads the pictures that a list names.
///
/// # Errors
/// [`Error::Data`] with the line that is wrong, or the files that are missing.
pub fn list(root: &Path) -> Result<Listing> {
    let (base, only) = shelf::base_of(root);
    let Some(name) = only else {
        return Err(Error::Data(format!(
            "{} is a folder; give the list itself (.csv, .tsv or .txt)",
            root.display()
        )));
    };
    let fail = |why: String| Error::Data(format!("{}: {why}", root.display()));
    let text = shelf::read_text(root, MAX_LIST_BYTES)?;
    let extension = name.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let rows = rows(&text, &extension).map_err(fail)?;
    drop(text);
    let mut shelf = Shelf::new(&base);
    shelf.open(&name)?;
    let mut labels = Labels::default();
    let mut missing = Vec::new();
    let mut count = 0;
    let mut seen: HashMap<PathBuf, (u64, u32)> = HashMap::new();
    for row in rows {
        let class = labels.id(&row.label);
        let path = PathBuf::from(&row.path);
        if let Some((line, other)) = seen.get(&path) {
            if *other == class {
                shelf.skip(&path, format!("line {} names it again", row.line));
                continue;
            }
            return Err(fail(format!(
                "line {}: {} has another label than in line {line}",
                row.line, row.path
            )));
        }
        seen.insert(path.clone(), (row.line, class));
        let about = std::fs::metadata(base.join(&path));
        let place = about.map_err(|e| io_reason(&e)).and_then(|about| {
            check_regular(&about)?;
            Ok(Place::File { bytes: about.len(), modified_ns: modified_ns(&about) })
        });
        match place {
            Ok(place) => shelf.entries.push(Entry { path, class, split: row.split, place }),
            Err(why) => {
                count += 1;
                if missing.len() < NAMED {
                    missing.push(format!("line {}: {} ({why})", row.line, row.path));
                }
            }
        }
    }
    if count > 0 {
        return Err(fail(format!(
            "{count} of the files that it names cannot be used: {}{}; paths are relative to {}",
            missing.join(", "),
            if count > NAMED { ", ..." } else { "" },
            base.display()
        )));
    }
    shelf
        .entries
        .sort_by(|a, b| a.path.as_os_str().as_encoded_bytes().cmp(b.path.as_os_str().as_encoded_bytes()));
    shelf.finish_labelled(Format::List, root, labels, None)
}

/// The lines of a list, in the form that the extension promises (`csv`, `tsv`, else either, or blanks).
///
/// # Errors
/// What is wrong, with the line.
pub fn rows(text: &str, extension: &str) -> std::result::Result<Vec<Row>, String> {
    let first = text.lines().find(|l| !l.trim().is_empty()).ok_or("an empty list")?;
    let delimiter = match extension {
        "csv" if !first.contains(',') && first.contains(';') => Some(b';'),
        "csv" => Some(b','),
        "tsv" => Some(b'\t'),
        _ => [b'\t', b',', b';'].into_iter().find(|&d| first.as_bytes().contains(&d)),
    };
    let mut columns = None;
    let mut rows = Vec::new();
    let mut take = |line: u64, fields: &[&str]| {
        if fields.iter().all(|f| f.trim().is_empty()) {
            return Ok(());
        }
        if columns.is_none() {
            columns = Some(Columns::of(fields, line)?);
            if columns.as_ref().is_some_and(|c| c.named) {
                return Ok(());
            }
        }
        let columns = columns.as_ref().expect("set above");
        rows.push(columns.row(fields, line)?);
        Ok::<(), String>(())
    };
    match delimiter {
        Some(delimiter) => {
            let mut reader = csv::ReaderBuilder::new()
                .delimiter(delimiter)
                .has_headers(false)
                .flexible(true)
                .from_reader(text.as_bytes());
            let mut record = csv::StringRecord::new();
            while reader.read_record(&mut record).map_err(|e| e.to_string())? {
                let line = record.position().map_or(0, |p| p.line());
                take(line, &record.iter().collect::<Vec<_>>())?;
            }
        }
        // As Caffe's tools write it: the label is what follows the last blank.
        None => {
            for (i, line) in text.lines().enumerate() {
                let fields = match line.trim().rsplit_once([' ', '\t']) {
                    Some((path, label)) => vec![path.trim_end(), label],
                    None => vec![line.trim()],
                };
                take(i as u64 + 1, &fields)?;
            }
        }
    }
    if rows.is_empty() { Err("a list without pictures".into()) } else { Ok(rows) }
}

/// Which column is which.
struct Columns {
    path: usize,
    label: usize,
    split: Option<usize>,
    /// Whether the first line named them.
    named: bool,
}

impl Columns {
    fn of(first: &[&str], line: u64) -> std::result::Result<Columns, String> {
        let lower: Vec<String> = first.iter().map(|f| f.trim().to_ascii_lowercase()).collect();
        let find = |names: &[&str]| names.iter().find_map(|n| lower.iter().position(|f| f == n));
        let split = find(&SPLIT_NAMES);
        match (find(&PATH_NAMES), find(&LABEL_NAMES)) {
            (Some(path), Some(label)) => Ok(Columns { path, label, split, named: true }),
            (None, None) if first.len() >= 2 => {
                let split = (first.len() >= 3 && side(first[2]).is_some()).then_some(2);
                if first.len() > 2 && split.is_none() {
                    return Err(format!(
                        "line {line}: {} columns and no names for them; the first line should name at least path \
                         and label",
                        first.len()
                    ));
                }
                Ok(Columns { path: 0, label: 1, split, named: false })
            }
            (None, None) => Err(format!("line {line}: a path and a label are expected in each line")),
            (path, _) => Err(format!(
                "line {line}: no column for the {} (columns: {}); call it {}",
                if path.is_some() { "label" } else { "path" },
                lower.join(", "),
                if path.is_some() { LABEL_NAMES[0] } else { PATH_NAMES[0] }
            )),
        }
    }

    fn row(&self, fields: &[&str], line: u64) -> std::result::Result<Row, String> {
        let field = |i: usize, what: &str| {
            let text = fields.get(i).map(|f| f.trim()).filter(|f| !f.is_empty());
            text.ok_or_else(|| format!("line {line}: no {what}"))
        };
        let path = field(self.path, "path")?;
        if path.contains('\0') {
            return Err(format!("line {line}: a zero byte in the path"));
        }
        let split = match self.split {
            None => None,
            Some(i) => {
                let text = field(i, "split")?;
                Some(side(text).ok_or_else(|| {
                    format!("line {line}: {text:?} is no side of a split (train, val or test)")
                })?)
            }
        };
        Ok(Row { line, path: path.into(), label: field(self.label, "label")?.into(), split })
    }
}

fn side(text: &str) -> Option<Split> {
    match text.trim().to_ascii_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "val" | "valid" | "validation" | "test" | "testing" => Some(Split::Val),
        _ => None,
    }
}

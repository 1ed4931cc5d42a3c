//! The probabilities that a network gave to pictures, kept in a file, so that networks can be averaged, weighed and
//! looked into without computing again.
//!
//! The file is that of [`super::rows`]; its rows are called `probabilities` and are (classes). Metadata: `format`,
//! `net`, `model`, `views`, `classes` (JSON).

use super::rows::RowFile;
use crate::data::decode::{check_regular, io_reason};
use crate::data::map::map_file;
use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The value of the metadata key `format`; another layout has another number.
const FORMAT: &str = "alexnet-predictions-1";
/// How the value of that key begins, whatever the number.
const FAMILY: &str = "alexnet-predictions-";
/// A longer header is none of ours: this holds the names of a million classes.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// What the rows are called.
const ROWS: &str = "probabilities";

/// Begins a file of predictions. `net` and `model` say what gave them.
///
/// # Errors
/// [`Error::Config`] if it cannot be created.
pub fn create(out: &Path, net: &str, model: &str, views: usize, classes: &[String]) -> Result<RowFile> {
    let metadata = BTreeMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("net".to_string(), net.to_string()),
        ("model".to_string(), model.to_string()),
        ("views".to_string(), views.to_string()),
        ("classes".to_string(), serde_json::json!(classes).to_string()),
    ]);
    RowFile::create(out, ROWS, &[classes.len()], metadata)
}

/// Whether a path is a file of predictions, of this or another version of the format, whole or damaged behind its
/// header; a file that cannot be read is none.
pub fn is_predictions(path: &Path) -> bool {
    let header = || {
        check_regular(&std::fs::metadata(path).ok()?).ok()?;
        let mut file = File::open(path).ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let length = Some(u64::from_le_bytes(length)).filter(|&n| n <= MAX_HEADER_BYTES)?;
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text).ok()?;
        let header: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(header["__metadata__"]["format"].as_str()?.starts_with(FAMILY))
    };
    header() == Some(true)
}

/// A file of predictions, mapped: rows are read from it as they are needed. That nobody rewrites it in place
/// meanwhile is a condition of use.
#[derive(Debug)]
pub struct Predictions {
    path: PathBuf,
    net: String,
    views: String,
    classes: Vec<String>,
    labels: Vec<Option<u32>>,
    /// Each ended by a zero byte.
    paths: String,
    path_starts: Vec<usize>,
    map: memmap2::Mmap,
    /// Where the rows begin in `map`.
    start: usize,
}

impl Predictions {
    /// Opens a file; its structure is checked, its values are not.
    ///
    /// # Errors
    /// [`Error::Data`] if it is missing, damaged, or holds no predictions.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |why: String| {
            Error::Data(format!("{}: {why}; make it with eval --save-predictions", path.display()))
        };
        let file = File::open(path).map_err(|e| fail(io_reason(&e)))?;
        file.metadata().map_err(|e| fail(io_reason(&e))).and_then(|a| check_regular(&a).map_err(fail))?;
        let map = map_file(&file).map_err(|e| fail(io_reason(&e)))?;
        parse(path, map).map_err(fail)
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.path
    }

    /// The network's name, as it was written.
    pub fn net(&self) -> &str {
        &self.net
    }

    /// The number of views, as it was written.
    pub fn views(&self) -> &str {
        &self.views
    }

    /// Pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Class names, in the order of the probabilities.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The class of picture `i`, if it is known.
    pub fn label(&self, i: usize) -> Option<u32> {
        self.labels[i]
    }

    /// The path of picture `i` relative to its data folder.
    pub fn picture(&self, i: usize) -> &str {
        &self.paths[self.path_starts[i]..self.path_starts[i + 1] - 1]
    }

    /// Reads the probabilities of picture `i`.
    ///
    /// Panics if `row` has not one place a class.
    pub fn read_row(&self, i: usize, row: &mut [f32]) {
        assert_eq!(row.len(), self.classes.len(), "one place a class");
        let bytes = &self.map[self.start + i * row.len() * 4..][..row.len() * 4];
        for (value, bytes) in row.iter_mut().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }
}

fn parse(path: &Path, map: memmap2::Mmap) -> std::result::Result<Predictions, String> {
    let wrong = |e: safetensors::SafeTensorError| format!("damaged, or no predictions ({e})");
    let (_, header) = SafeTensors::read_metadata(&map).map_err(wrong)?;
    let tensors = SafeTensors::deserialize(&map).map_err(wrong)?;
    let empty = HashMap::new();
    let metadata = header.metadata().as_ref().unwrap_or(&empty);
    let text = |key: &str| metadata.get(key).cloned().ok_or(format!("no `{key}` in its metadata"));
    let format = text("format")?;
    if format != FORMAT {
        return Err(format!("of format {format}; this program reads {FORMAT}"));
    }
    let classes: Vec<String> =
        serde_json::from_str(&text("classes")?).map_err(|e| format!("damaged class names ({e})"))?;
    let tensor = |name: &str| tensors.tensor(name).map_err(|_| format!("no tensor `{name}`"));
    let rows = tensor(ROWS)?;
    let &[n, width] = rows.shape() else { return Err(format!("`{ROWS}` is no table")) };
    // At least one column: then the length of the file bounds the number of rows.
    if width != classes.len() || width == 0 || rows.dtype() != Dtype::F32 {
        return Err(format!("`{ROWS}` is not F32 (pictures, {})", classes.len()));
    }
    let labels = match tensors.tensor("labels") {
        Err(_) => vec![None; n],
        Ok(labels) if labels.dtype() == Dtype::I64 && labels.shape() == [n] => labels
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| match i64::from_le_bytes(*bytes) {
                -1 => Ok(None),
                label if (0..width as i64).contains(&label) => Ok(Some(label as u32)),
                label => Err(format!("a picture of class {label} among {width}")),
            })
            .collect::<std::result::Result<_, _>>()?,
        Ok(_) => return Err("`labels` is not I64 (pictures)".into()),
    };
    let paths = String::from_utf8(tensor("paths")?.data().to_vec()).map_err(|e| e.to_string())?;
    let mut path_starts = vec![0];
    path_starts.extend(paths.bytes().enumerate().filter(|&(_, b)| b == 0).map(|(i, _)| i + 1));
    if path_starts.len() != n + 1 || path_starts[n] != paths.len() {
        return Err(format!("{} paths for {n} pictures", path_starts.len() - 1));
    }
    // Both slices lie in the map.
    let start = rows.data().as_ptr() as usize - map.as_ptr() as usize;
    let (net, views) = (text("net")?, text("views")?);
    Ok(Predictions { path: path.to_path_buf(), net, views, classes, labels, paths, path_starts, map, start })
}

/// The probabilities of one member of an ensemble for the pictures in question.
#[derive(Debug)]
pub enum Table<'t> {
    /// (pictures, classes), in memory.
    Memory(Vec<f32>),
    /// These rows of a file.
    Saved(&'t Predictions, &'t [u32]),
}

impl Table<'_> {
    /// Adds `weight` times the row of picture `i` to `sum`, one place a class; `scratch` is for the table's own use.
    pub fn add_row(&self, i: usize, weight: f32, sum: &mut [f32], scratch: &mut Vec<f32>) {
        let row = self.row(i, sum.len(), scratch);
        sum.iter_mut().zip(row).for_each(|(s, p)| *s += weight * p);
    }

    /// The row of picture `i`, `classes` long.
    pub fn row<'a>(&'a self, i: usize, classes: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Table::Memory(values) => &values[i * classes..(i + 1) * classes],
            Table::Saved(predictions, rows) => {
                scratch.resize(classes, 0.0);
                predictions.read_row(rows[i] as usize, scratch);
                scratch
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path) -> PathBuf {
        let out = folder.join("p.safetensors");
        let mut rows = create(&out, "n", "run", 10, &["a".into(), "b".into()]).unwrap();
        rows.push("b/1.jpg", Some(1), &[0.25, 0.75]).unwrap();
        rows.push("x.jpg", None, &[0.5, 0.5]).unwrap();
        rows.finish().unwrap();
        out
    }

    #[test]
    fn what_is_saved_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        assert!(is_predictions(&path));
        let p = Predictions::open(&path).unwrap();
        assert_eq!(
            (p.len(), p.classes(), p.net(), p.views()),
            (2, &["a".to_string(), "b".into()][..], "n", "10")
        );
        assert_eq!((p.label(0), p.label(1)), (Some(1), None));
        assert_eq!((p.picture(0), p.picture(1)), ("b/1.jpg", "x.jpg"));
        let mut sum = vec![1.0, 1.0];
        Table::Saved(&p, &[1, 0]).add_row(1, 2.0, &mut sum, &mut vec![]);
        assert_eq!(sum, [1.5, 2.5]);
        Table::Memory(vec![9.0, 9.0, 1.0, 2.0]).add_row(1, 1.0, &mut sum, &mut vec![]);
        assert_eq!(sum, [2.5, 4.5]);
    }

    #[test]
    fn other_and_damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        let bytes = std::fs::read(&path).unwrap();
        let other = folder.path().join("other");
        assert!(!is_predictions(&other) && !is_predictions(folder.path()));
        assert!(Predictions::open(&other).unwrap_err().to_string().contains("other"));
        assert_eq!(Predictions::open(folder.path()).unwrap_err().exit_code(), 3);
        for cut in 0..bytes.len() {
            std::fs::write(&other, &bytes[..cut]).unwrap();
            assert!(Predictions::open(&other).is_err(), "{cut} bytes");
        }
        for (from, to) in [("predictions-1", "predictions-2"), ("[2,2]", "[4,1]"), ("I64", "F64")] {
            let text = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bad = bytes.clone();
            bad[text..text + from.len()].copy_from_slice(to.as_bytes());
            std::fs::write(&other, &bad).unwrap();
            assert_eq!(Predictions::open(&other).unwrap_err().exit_code(), 3, "{to}");
        }
        std::fs::write(&other, bytes.iter().map(|b| b ^ 0xff).collect::<Vec<_>>()).unwrap();
        assert!(!is_predictions(&other));
    }
}

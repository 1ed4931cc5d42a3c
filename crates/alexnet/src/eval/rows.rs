//! A safetensors file of one row of numbers a picture, written row by row: whatever the number of pictures, no more
//! than one row, the labels and the paths are in memory. The file appears when it is complete.
//!
//! | tensor | type, shape | |
//! |---|---|---|
//! | the rows' own name | F32 (N, ...) | first in the file |
//! | `labels` | I64 (N) | class indices, −1 where the class is not known; absent if none is |
//! | `paths` | U8 (bytes) | UTF-8, each ended by a zero byte |
//!
//! Python reads it with `safetensors.numpy.load_file`.

use crate::error::{Error, Result};
use crate::train::durable::Pending;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Digits of the largest number in a header; the header's place is kept before the numbers are known.
const DIGITS: usize = 20;
/// A header begins at an address that is a multiple of this, and so do the tensors.
const ALIGN: usize = 8;

/// A file of rows that is being written.
#[derive(Debug)]
pub struct RowFile {
    out: PathBuf,
    pending: Pending,
    name: String,
    shape: Vec<usize>,
    metadata: BTreeMap<String, String>,
    header_bytes: usize,
    labels: Vec<i64>,
    /// Each ended by a zero byte.
    paths: Vec<u8>,
}

impl RowFile {
    /// Begins the file `out`: its rows are called `name` and have this shape.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be created.
    pub fn create(
        out: &Path,
        name: &str,
        shape: &[usize],
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        let pending = Pending::create(out).map_err(|e| unwritable(out, &e))?;
        let (labels, paths) = (vec![], vec![]);
        let mut file = RowFile {
            out: out.to_path_buf(),
            pending,
            name: name.into(),
            shape: shape.to_vec(),
            metadata,
            header_bytes: 0,
            labels,
            paths,
        };
        // Four numbers depend on what is still to come, the lengths of the tensors and the number of pictures; each
        // is now one digit long.
        file.header_bytes = (file.header(true).len() + 8 * DIGITS).next_multiple_of(ALIGN);
        let place = vec![b' '; 8 + file.header_bytes];
        file.pending.out().write_all(&place).map_err(|e| unwritable(out, &e))?;
        Ok(file)
    }

    /// Adds a picture; `label` is `None` where its class is not known.
    ///
    /// Panics if there are not as many values as a row has elements.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn push(&mut self, path: &str, label: Option<u32>, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), self.shape.iter().product::<usize>(), "one row");
        let out = self.pending.out();
        let written = values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()));
        written.map_err(|e| unwritable(&self.out, &e))?;
        self.labels.push(label.map_or(-1, i64::from));
        self.paths.extend_from_slice(path.replace('\0', "\\x00").as_bytes());
        self.paths.push(0);
        Ok(())
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is no row yet.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Elements of one row.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Completes the file and puts it in its place.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn finish(mut self) -> Result<()> {
        let header = self.header(self.labelled());
        let labels = if self.labelled() { &self.labels[..] } else { &[] };
        let mut write = || {
            let out = self.pending.out();
            labels.iter().try_for_each(|label| out.write_all(&label.to_le_bytes()))?;
            out.write_all(&self.paths)?;
            out.seek(SeekFrom::Start(0))?;
            out.write_all(&(self.header_bytes as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())
        };
        write().map_err(|e| unwritable(&self.out, &e))?;
        let out = self.out;
        self.pending.commit(|_| Ok(())).map_err(|e| unwritable(&out, &e))
    }

    fn labelled(&self) -> bool {
        self.labels.iter().any(|&label| label >= 0)
    }

    /// The header as JSON; what follows it up to its kept length is spaces.
    fn header(&self, labelled: bool) -> String {
        let n = self.len();
        let shape: Vec<usize> = std::iter::once(n).chain(self.shape.iter().copied()).collect();
        let mut end = 0;
        let mut offsets = |bytes: usize| {
            let start = end;
            end += bytes;
            [start, end]
        };
        let mut tensors = Map::new();
        tensors.insert("__metadata__".into(), json!(self.metadata));
        let rows_bytes = shape.iter().product::<usize>() * size_of::<f32>();
        let mut add = |name: &str, dtype: &str, shape: &[usize], bytes: usize| {
            let entry: Value = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets(bytes) });
            tensors.insert(name.into(), entry);
        };
        add(&self.name, "F32", &shape, rows_bytes);
        if labelled {
            add("labels", "I64", &[n], n * size_of::<i64>());
        }
        add("paths", "U8", &[self.paths.len()], self.paths.len());
        Value::Object(tensors).to_string()
    }
}

/// Why a file of answers cannot be written.
pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "; free some space or name another place"
        }
        _ => "",
    };
    Error::Config(format!("cannot write {}: {error}{hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, SafeTensors};

    #[test]
    fn rows_labels_and_paths_are_read_by_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("r.safetensors");
        let metadata = BTreeMap::from([("net".to_string(), "a \"net\"".to_string())]);
        let mut file = RowFile::create(&out, "features", &[2, 3], metadata).unwrap();
        let row = |start: usize| (start..start + 6).map(|v| v as f32).collect::<Vec<_>>();
        file.push("a/1.jpg", Some(4), &row(0)).unwrap();
        for i in 1..1000 {
            file.push("b/2.jpg", None, &row(i)).unwrap();
        }
        assert!(!out.exists(), "nothing before the end");
        file.finish().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let bytes = std::fs::read(&out).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let features = read.tensor("features").unwrap();
        assert_eq!((features.dtype(), features.shape()), (Dtype::F32, &[1000, 2, 3][..]));
        assert_eq!(features.data()[6 * 4 * 999..][..4], 999f32.to_le_bytes());
        let labels = read.tensor("labels").unwrap();
        assert_eq!(labels.shape(), [1000]);
        assert_eq!(labels.data()[..16], [4i64.to_le_bytes(), (-1i64).to_le_bytes()].concat());
        assert!(read.tensor("paths").unwrap().data().starts_with(b"a/1.jpg\0b/2.jpg\0"));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["net"], "a \"net\"");
    }

    #[test]
    fn without_labels_there_are_none_and_an_abandoned_file_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("r.safetensors");
        let mut file = RowFile::create(&out, "features", &[1], BTreeMap::new()).unwrap();
        file.push("x", None, &[1.0]).unwrap();
        file.finish().unwrap();
        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(SafeTensors::deserialize(&bytes).unwrap().names().len(), 2);
        let mut other = RowFile::create(&out, "features", &[1], BTreeMap::new()).unwrap();
        other.push("y", None, &[2.0]).unwrap();
        drop(other);
        assert_eq!(std::fs::read(&out).unwrap(), bytes, "the old file stays");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = RowFile::create(&folder.path().join("no/r"), "features", &[1], BTreeMap::new());
        assert!(nowhere.unwrap_err().to_string().contains("no/r"));
    }
}

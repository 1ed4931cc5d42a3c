//! Parquet files as Hugging Face keeps pictures: a column of picture files, a structure with the field `bytes` or plain
//! bytes, and a column of labels, whole numbers or names. Names of classes are read from the `huggingface` metadata.
//!
//! A row group's column of pictures is in memory at a time, at most [`MAX_GROUP_BYTES`].

use super::labels::Labels;
use super::pages;
use super::reader::{ReadAt, Section};
use super::shelf::Shelf;
use super::{Entry, Format, Listing, Place, Tell};
use crate::error::{Error, Result};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use ::parquet::file::reader::{ChunkReader, Length};
use ::parquet::file::serialized_reader::SerializedPageReader;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// Largest column of pictures in a row group: they are unpacked a row group at a time.
pub const MAX_GROUP_BYTES: u64 = 1 << 30;
/// Rows that are asked for at a time.
const BATCH: usize = 1024;
/// The smallest picture file: a file has no more rows than pictures of this size would fit in it. Without this limit a
/// few bytes could stand for billions of missing values.
const MIN_PICTURE_BYTES: u64 = 8;
/// Names of columns, the first that is there is taken, where the metadata does not say.
const PICTURE_NAMES: [&str; 7] = ["image", "img", "picture", "photo", "jpg", "jpeg", "png"];
const LABEL_NAMES: [&str; 7] = ["label", "labels", "fine_label", "class", "cls", "target", "category"];

/// The pictures of a row group; `None` where there is none.
pub type Group = Vec<Option<ByteArray>>;

/// Lists the Parquet files of a folder (its own, or those in folders such as `data/`), or one file.
///
/// # Errors
/// [`Error::Data`] naming the file.
pub fn list(root: &Path, tell: Tell) -> Result<Listing> {
    let (mut shelf, shards) = Shelf::of_shards(root, ".parquet")?;
    let base = shelf.base.clone();
    let mut labels = Labels::default();
    let mut known: Option<Vec<String>> = None;
    let all = shards.len();
    for (i, (shard, split)) in shards.into_iter().enumerate() {
        let (index, file) = shelf.open(&shard)?;
        let fail = |why: String| Error::Data(format!("{}: {why}", base.join(&shard).display()));
        let found = rows(Arc::new(file), shelf.files[index as usize].bytes).map_err(fail)?;
        if known.is_none() {
            known = found.classes.clone();
        } else if found.classes.is_some() && found.classes != known {
            return Err(fail("its classes are not those of the files before it".into()));
        }
        let stem = shard.with_extension("");
        let mut number = 0;
        for (group, labels_of) in found.labels.into_iter().enumerate() {
            for (row, label) in labels_of.into_iter().enumerate() {
                let path = stem.join(format!("{number:07}"));
                number += 1;
                // -1 stands for "not told" in test parts.
                match label.filter(|l| l != "-1") {
                    Some(label) => {
                        let place = Place::Row { file: index, group: group as u32, row: row as u32 };
                        shelf.entries.push(Entry { path, class: labels.id(&label), split, place });
                    }
                    None => shelf.skip(path, "a row without a label"),
                }
            }
        }
        tell(i + 1, all);
    }
    shelf.finish_labelled(Format::Parquet, root, labels, known)
}

/// Parquet's decoders are not expected to panic; if one does on a damaged file, the file is refused.
fn guarded<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("damaged: Parquet's decoder failed on it".into()))
}

/// The pictures of one row group of a file of `bytes` bytes.
///
/// # Errors
/// What is wrong with the file.
pub fn read_group(
    file: Arc<dyn ReadAt + Send + Sync>,
    bytes: u64,
    group: u32,
) -> std::result::Result<Group, String> {
    guarded(|| {
        let source = Arc::new(Source { file, bytes });
        let meta = metadata(&source)?;
        let columns = Columns::find(&meta)?;
        let mut pictures = Group::new();
        let (column, full) = column(&source, &meta, group as usize, columns.picture)?;
        match column {
            ColumnReader::ByteArrayColumnReader(reader) => {
                values(reader, full, source.bytes / MIN_PICTURE_BYTES, &mut |v| pictures.push(v))?
            }
            _ => return Err("its column of pictures does not hold bytes".into()),
        }
        Ok(pictures)
    })
}

/// What a file says of its rows.
pub struct Rows {
    /// Names of the classes, if the metadata has them.
    pub classes: Option<Vec<String>>,
    /// The label of each row, by row group.
    pub labels: Vec<Vec<Option<String>>>,
}

/// Reads the labels of all rows of a file of `bytes` bytes.
///
/// # Errors
/// What is wrong with the file.
pub fn rows(file: Arc<dyn ReadAt + Send + Sync>, bytes: u64) -> std::result::Result<Rows, String> {
    guarded(|| {
        let source = Arc::new(Source { file, bytes });
        let meta = metadata(&source)?;
        let columns = Columns::find(&meta)?;
        let number = |v: Option<i64>| v.map(|v| v.to_string());
        let text = |v: ByteArray| v.as_utf8().ok().map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
        let mut labels = Vec::new();
        let mut rows = 0;
        for group in 0..meta.num_row_groups() {
            let mut of_group = Vec::new();
            let limit = (source.bytes / MIN_PICTURE_BYTES).saturating_sub(rows);
            let (column, full) = column(&source, &meta, group, columns.label)?;
            match column {
                ColumnReader::Int32ColumnReader(r) => {
                    values(r, full, limit, &mut |v| of_group.push(number(v.map(i64::from))))?;
                }
                ColumnReader::Int64ColumnReader(r) => {
                    values(r, full, limit, &mut |v| of_group.push(number(v)))?
                }
                ColumnReader::ByteArrayColumnReader(r) => {
                    values(r, full, limit, &mut |v| of_group.push(v.and_then(text)))?;
                }
                _ => return Err("its column of labels holds neither whole numbers nor text".into()),
            }
            rows += of_group.len() as u64;
            labels.push(of_group);
        }
        Ok(Rows { classes: columns.classes, labels })
    })
}

/// A file as the decoder sees it: nothing can be asked for that is not in it.
struct Source {
    file: Arc<dyn ReadAt + Send + Sync>,
    bytes: u64,
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Source {
    type T = std::io::BufReader<Section<dyn ReadAt + Send + Sync>>;

    fn get_read(&self, start: u64) -> ::parquet::errors::Result<Self::T> {
        let end = self.bytes;
        Ok(std::io::BufReader::new(Section { file: self.file.clone(), offset: start.min(end), end }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ::parquet::errors::Result<Bytes> {
        let fits = start.checked_add(length as u64).is_some_and(|end| end <= self.bytes);
        if !fits {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of a file of {}", self.bytes)));
        }
        let mut buffer = vec![0; length];
        self.file.fill_at(&mut buffer, start).map_err(ParquetError::General)?;
        Ok(buffer.into())
    }
}

fn metadata(source: &Arc<Source>) -> std::result::Result<ParquetMetaData, String> {
    let mut tail = [0; 8];
    let at = source.bytes.checked_sub(8).ok_or("not a Parquet file: too short")?;
    source.file.fill_at(&mut tail, at)?;
    if &tail[4..] != b"PAR1" {
        return Err("not a Parquet file, or cut short: it does not end with PAR1".into());
    }
    ParquetMetaDataReader::new().parse_and_finish(&**source).map_err(|e| format!("damaged: {}", plain(&e)))
}

fn plain(error: &ParquetError) -> String {
    error.to_string().replace(['\n', '\r'], " ").replace(
        "Disabled feature at compile time: ",
        "it needs a codec that this program was built without: ",
    )
}

/// Which columns (of the leaves of the schema) are which, and the names of the classes.
struct Columns {
    picture: usize,
    label: usize,
    classes: Option<Vec<String>>,
}

impl Columns {
    fn find(meta: &ParquetMetaData) -> std::result::Result<Columns, String> {
        let schema = meta.file_metadata().schema_descr();
        let features = meta
            .file_metadata()
            .key_value_metadata()
            .and_then(|all| all.iter().find(|kv| kv.key == "huggingface"))
            .and_then(|kv| serde_json::from_str::<serde_json::Value>(kv.value.as_deref()?).ok())
            .and_then(|v| v.pointer("/info/features").cloned());
        // Features of a kind, in the order of the columns.
        let of_kind = |kind: &str| -> Vec<String> {
            let is = |v: &serde_json::Value| v.get("_type").and_then(|t| t.as_str()) == Some(kind);
            let all = features.as_ref().and_then(|f| f.as_object());
            all.map(|f| f.iter().filter(|(_, v)| is(v)).map(|(k, _)| k.clone()).collect()).unwrap_or_default()
        };
        let leaf = |path: &[&str]| schema.columns().iter().position(|c| c.path().parts() == path);
        let picture_leaf = |name: &str| leaf(&[name, "bytes"]).or_else(|| leaf(&[name]));
        let first = |names: Vec<String>, usual: &[&str], find: &dyn Fn(&str) -> Option<usize>| {
            let preferred = usual.iter().filter(|u| names.iter().any(|n| n == **u)).map(|u| u.to_string());
            let in_order = preferred.chain(names.iter().cloned()).chain(usual.iter().map(|u| u.to_string()));
            in_order.into_iter().find_map(|name| Some((find(&name)?, name)))
        };
        let columns = || {
            let names: Vec<String> = schema.columns().iter().take(20).map(|c| c.path().string()).collect();
            names.join(", ")
        };
        let (picture, _) = first(of_kind("Image"), &PICTURE_NAMES, &picture_leaf)
            .ok_or_else(|| format!("no column of pictures such as `image` (columns: {})", columns()))?;
        let (label, name) = first(of_kind("ClassLabel"), &LABEL_NAMES, &|name| leaf(&[name]))
            .ok_or_else(|| format!("no column of labels such as `label` (columns: {})", columns()))?;
        for column in [picture, label] {
            if schema.column(column).max_rep_level() > 0 {
                return Err(format!("its column {} holds lists", schema.column(column).path().string()));
            }
        }
        let names = features.as_ref().and_then(|f| f.get(&name)?.get("names")?.as_array());
        let classes = names.map(|n| n.iter().map(|v| v.as_str().unwrap_or_default().to_string()).collect());
        Ok(Columns { picture, label, classes })
    }
}

/// Opens a column of a row group, after a look at what its page headers claim; and the level of values that are set.
fn column(
    source: &Arc<Source>,
    meta: &ParquetMetaData,
    group: usize,
    column: usize,
) -> std::result::Result<(ColumnReader, i16), String> {
    if group >= meta.num_row_groups() {
        return Err(format!("no row group {group}"));
    }
    let chunk = meta.row_group(group).column(column);
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let range = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
    let (start, length) = range
        .filter(|(start, length)| start.checked_add(*length).is_some_and(|end| end <= source.bytes))
        .ok_or("cut short or damaged: a column lies beyond the end of the file")?;
    let full = chunk.column_descr().max_def_level();
    pages::check(&*source.file, start, length, MAX_GROUP_BYTES, full > 0)?;
    let rows = usize::try_from(meta.row_group(group).num_rows())
        .map_err(|_| "damaged: a negative number of rows")?;
    let pages = SerializedPageReader::new(source.clone(), chunk, rows, None).map_err(|e| plain(&e))?;
    Ok((get_column_reader(chunk.column_descr_ptr(), Box::new(pages)), full))
}

/// Visits every value of a column; `None` for those that are not set, whose level is below `full`. More than `limit`
/// values are an error.
fn values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    full: i16,
    limit: u64,
    visit: &mut dyn FnMut(Option<T::T>),
) -> std::result::Result<(), String> {
    let (mut defined, mut found) = (Vec::new(), Vec::new());
    let mut seen = 0;
    loop {
        defined.clear();
        found.clear();
        let (records, ..) =
            reader.read_records(BATCH, Some(&mut defined), None, &mut found).map_err(|e| plain(&e))?;
        if records == 0 {
            return Ok(());
        }
        seen += records as u64;
        if seen > limit {
            return Err("damaged: more rows than pictures fit in the file".into());
        }
        if full == 0 {
            // No value may be missing, and there are no levels.
            found.drain(..).for_each(|v| visit(Some(v)));
            continue;
        }
        let mut next = found.drain(..);
        for level in &defined {
            visit(if *level == full { next.next() } else { None });
        }
    }
}

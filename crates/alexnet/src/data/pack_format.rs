//! The bytes of a pack file: its tables, its header, and reading them back. [`super::pack`] has the table of tensors.

use super::decode::MAX_PIXELS;
use super::pack::{Form, Keep, PackOptions, Shard, Unreadable};
use super::resize::LONGEST_ASPECT;
use super::split::Split;
use super::stats::Sums;
use safetensors::SafeTensors;
use serde::Serialize;
use serde_json::{Map, Value, json as value};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The value of the metadata key `format`; another layout has another number.
pub(super) const FORMAT: &str = "alexnet-pack-2";

/// Everything in a pack but the pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    pub classes: Vec<String>,
    pub labels: Vec<u32>,
    pub splits: Vec<Option<Split>>,
    /// xxh3-64 of what is stored; 0 where nothing is.
    pub hashes: Vec<u64>,
    /// Each ended by a zero byte.
    pub paths: String,
    pub unreadable: Vec<Unreadable>,
    /// Where each picture begins, and the end; empty if all are raw squares.
    pub offsets: Vec<u64>,
    /// Width and height of each, 0 where it is unreadable; empty if all are raw squares.
    pub sizes: Vec<[u32; 2]>,
    /// Sums over the pictures that [`Index::counts`] says; not made in memory.
    pub sums: Option<Sums>,
}

impl Index {
    pub fn push(&mut self, path: &str, label: u32, split: Option<Split>) {
        self.labels.push(label);
        self.splits.push(split);
        self.hashes.push(0);
        // A zero byte cannot occur in a file name; elsewhere it would end the path early.
        self.paths.push_str(&path.replace('\0', "\\x00"));
        self.paths.push('\0');
    }

    /// Which pictures of which classes, to the pixel.
    pub fn fingerprint(&self, options: &PackOptions) -> String {
        let mut hash = Xxh3::new();
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(FORMAT.as_bytes());
        part(&json(options));
        part(&json(&self.classes));
        part(&le_bytes_u32(&self.labels));
        part(&self.split_bytes());
        part(&le_bytes_u64(&self.hashes));
        part(self.paths.as_bytes());
        part(&json(&self.unreadable));
        part(&le_bytes_u64(&self.offsets));
        part(&le_bytes_u32(self.sizes.as_flattened()));
        format!("{:032x}", hash.digest128())
    }

    /// Whether picture `i` is counted in the sums: where the source says which pictures teach, those; else all.
    pub fn counts(&self, i: usize) -> bool {
        match self.splits[i] {
            Some(Split::Val) => false,
            Some(Split::Train) | None => true,
        }
    }

    pub fn split_bytes(&self) -> Vec<u8> {
        let code = |s: &Option<Split>| match s {
            None => 0,
            Some(Split::Train) => 1,
            Some(Split::Val) => 2,
        };
        self.splits.iter().map(code).collect()
    }
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers become JSON")
}

pub(super) fn le_bytes_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(super) fn le_bytes_u64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The u64 in little-endian bytes, as many as there are whole ones.
pub(super) fn u64s(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}

/// As [`u64s`].
pub(super) fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

/// A tensor of the file: name, type, shape, and where it lies in the data.
pub(super) struct Place {
    pub name: &'static str,
    dtype: &'static str,
    shape: Vec<u64>,
    pub start: u64,
    pub end: u64,
}

/// Where each tensor lies; `pictures` and `unreadable` are given in bytes. All that is known before the first picture
/// is made comes first, so that pictures can be appended.
pub(super) fn places(
    n: usize,
    options: &PackOptions,
    path_bytes: usize,
    pictures: u64,
    unreadable: u64,
) -> Vec<Place> {
    let (n, side) = (n as u64, options.side as u64);
    let varied = !options.is_raw_squares();
    let picture_shape = if varied { vec![pictures] } else { vec![n, side, side, 3] };
    let tensors: [(bool, &'static str, &'static str, u64, Vec<u64>); 10] = [
        (true, "hashes", "U64", 8, vec![n]),
        (varied, "offsets", "U64", 8, vec![n + 1]),
        (true, "sums", "U64", 8, vec![side, side, 3]),
        (true, "moments", "U64", 8, vec![Sums::MOMENTS as u64]),
        (true, "labels", "U32", 4, vec![n]),
        (varied, "sizes", "U32", 4, vec![n, 2]),
        (true, "splits", "U8", 1, vec![n]),
        (true, "paths", "U8", 1, vec![path_bytes as u64]),
        (true, "pictures", "U8", 1, picture_shape),
        (true, "unreadable", "U8", 1, vec![unreadable]),
    ];
    let mut at = 0u64;
    let there = tensors.into_iter().filter(|t| t.0);
    there
        .map(|(_, name, dtype, width, shape)| {
            let start = at;
            at = at.saturating_add(shape.iter().fold(width, |a, &b| a.saturating_mul(b)));
            Place { name, dtype, shape, start, end: at }
        })
        .collect()
}

/// The place of a tensor that every pack has.
pub(super) fn place<'a>(places: &'a [Place], name: &str) -> &'a Place {
    places.iter().find(|p| p.name == name).expect("every pack has this tensor")
}

/// The header, without its length and padding.
pub(super) fn header(
    options: &PackOptions,
    index: &Index,
    source: &str,
    shard: Option<Shard>,
    fingerprint: &str,
    places: &[Place],
) -> Vec<u8> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("JSON is UTF-8");
    let mut metadata = value!({
        "format": FORMAT,
        "classes": text(json(&index.classes)),
        "options": text(json(options)),
        "source": source,
        "fingerprint": fingerprint,
        "statistics": format!("{:016x}", index.sums.as_ref().map_or(0, statistics_hash)),
    });
    if let Some(shard) = shard {
        metadata["shard"] = shard.to_string().into();
    }
    let mut head = Map::new();
    head.insert("__metadata__".into(), metadata);
    for p in places {
        let tensor: Value = value!({"dtype": p.dtype, "shape": p.shape, "data_offsets": [p.start, p.end]});
        head.insert(p.name.into(), tensor);
    }
    json(&head)
}

/// Stands for the sums, which the fingerprint leaves out: they follow from the pixels.
fn statistics_hash(sums: &Sums) -> u64 {
    xxh3_64(&[le_bytes_u64(&sums.position), le_bytes_u64(&sums.moments())].concat())
}

/// A pack file as read, all but the pixels.
pub(super) struct Parsed {
    pub options: PackOptions,
    pub index: Index,
    pub source: String,
    pub shard: Option<Shard>,
    pub fingerprint: String,
    /// Where the pixels begin in the file.
    pub start: usize,
}

/// Reads everything but the pixels from the bytes of a file. What it answers is consistent: every offset lies within
/// the pictures, every size fits its bytes.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let unreadable = |e: safetensors::SafeTensorError| match e {
        safetensors::SafeTensorError::MetadataIncompleteBuffer
        | safetensors::SafeTensorError::HeaderTooSmall => "truncated".to_string(),
        e => format!("not a pack ({e})"),
    };
    let tensors = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let empty = std::collections::HashMap::new();
    let metadata = header.metadata().as_ref().unwrap_or(&empty);
    let text =
        |key: &str| metadata.get(key).cloned().ok_or(format!("not a pack (no `{key}` in its metadata)"));
    let format = text("format")?;
    if format != FORMAT {
        return Err(format!("of format {format}; this program reads {FORMAT}"));
    }
    let bad_json = |e: serde_json::Error| format!("damaged metadata ({e})");
    let options: PackOptions = serde_json::from_str(&text("options")?).map_err(bad_json)?;
    let classes: Vec<String> = serde_json::from_str(&text("classes")?).map_err(bad_json)?;
    let shard = metadata.get("shard").map(|s| s.parse::<Shard>().map_err(|e| e.to_string())).transpose()?;
    let tensor = |name: &str| tensors.tensor(name).map_err(|_| format!("no tensor `{name}`"));
    let data = |name: &str| tensor(name).map(|t| t.data().to_vec());
    let labels = u32s(&data("labels")?);
    let n = labels.len();
    let hashes = u64s(&data("hashes")?);
    let side_of = |&b: &u8| match b {
        0 => Ok(None),
        1 => Ok(Some(Split::Train)),
        2 => Ok(Some(Split::Val)),
        b => Err(format!("a split of {b}")),
    };
    let splits = tensor("splits")?.data().iter().map(side_of).collect::<Result<Vec<_>, _>>()?;
    let paths = String::from_utf8(data("paths")?).map_err(|e| e.to_string())?;
    let unreadable: Vec<Unreadable> =
        serde_json::from_slice(tensor("unreadable")?.data()).map_err(bad_json)?;
    let varied = !options.is_raw_squares();
    let offsets = if varied { u64s(&data("offsets")?) } else { Vec::new() };
    let sizes = if varied { u32s(&data("sizes")?) } else { Vec::new() };
    let sizes: Vec<[u32; 2]> = sizes.chunks_exact(2).map(|s| [s[0], s[1]]).collect();
    let pictures = tensor("pictures")?;
    // Shapes, types and places are those that this program would write for so many pictures, or nothing is trusted.
    let (pictures_len, unreadable_len) =
        (pictures.data().len() as u64, tensor("unreadable")?.data().len() as u64);
    for p in places(n, &options, paths.len(), pictures_len, unreadable_len) {
        let t = tensor(p.name)?;
        let shape: Vec<u64> = t.shape().iter().map(|&d| d as u64).collect();
        if shape != p.shape || t.dtype().to_string() != p.dtype {
            return Err(format!("its tensors do not fit together (`{}`)", p.name));
        }
    }
    options.check().map_err(|e| e.to_string())?;
    let sums = Sums::from_parts(u64s(&data("sums")?), &u64s(&data("moments")?));
    if text("statistics")? != format!("{:016x}", statistics_hash(&sums)) {
        return Err("damaged: its sums are not as they were written".into());
    }
    // Both slices lie in `bytes`.
    let start = pictures.data().as_ptr() as usize - bytes.as_ptr() as usize;
    let index =
        Index { classes, labels, splits, hashes, paths, unreadable, offsets, sizes, sums: Some(sums) };
    if varied {
        check_offsets(&options, &index, pictures_len)?;
    }
    Ok(Parsed { options, index, source: text("source")?, shard, fingerprint: text("fingerprint")?, start })
}

/// Whether offsets and sizes of pictures of varied length can be believed.
fn check_offsets(options: &PackOptions, index: &Index, pictures_len: u64) -> Result<(), String> {
    let ends = (index.offsets.first(), index.offsets.last());
    if ends != (Some(&0), Some(&pictures_len)) {
        return Err("damaged: its offsets do not cover its pictures".into());
    }
    let mut unreadable = vec![false; index.labels.len()];
    for bad in &index.unreadable {
        *unreadable.get_mut(bad.index as usize).ok_or("an unreadable picture beyond the end")? = true;
    }
    for (i, (ends, &[width, height])) in index.offsets.windows(2).zip(&index.sizes).enumerate() {
        let Some(length) = ends[1].checked_sub(ends[0]) else {
            return Err(format!("damaged: picture {i} ends before it begins"));
        };
        let (w, h) = (u64::from(width), u64::from(height));
        let (short, side) = (w.min(h), options.side as u64);
        let sensible = match options.keep {
            _ if unreadable[i] => w == 0 && h == 0 && length == 0,
            Keep::Square => w == side && h == side,
            Keep::Whole => short == side && w.max(h) <= side * LONGEST_ASPECT as u64,
            Keep::Original => short > 0 && w * h <= MAX_PIXELS,
        };
        let fits = unreadable[i]
            || match (options.keep, options.form) {
                (Keep::Square | Keep::Whole, Form::Raw) => length == w * h * 3,
                _ => length > 0,
            };
        if !sensible || !fits {
            return Err(format!("damaged: picture {i} of {w}×{h} pixels in {length} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_before_pictures_and_follow_each_other() {
        for (keep, form, tensors) in [(Keep::Square, Form::Raw, 8), (Keep::Whole, Form::Jpeg, 10)] {
            let options = PackOptions { side: 4, keep, form, ..Default::default() };
            let places = places(5, &options, 17, 5 * 48, 2);
            assert_eq!(places.len(), tensors);
            assert!(places.windows(2).all(|p| p[0].end == p[1].start));
            assert_eq!(place(&places, "pictures").end - place(&places, "pictures").start, 240);
            assert_eq!(places.last().unwrap().name, "unreadable");
        }
    }
}

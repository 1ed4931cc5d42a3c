//! A safetensors file whose every byte is covered by a checksum. Any reader of safetensors can open it; this one also
//! notices a cut, a flipped bit, or a byte too many.
//!
//! The layout is that of safetensors: the header's length (u64, little-endian), a JSON header, the tensors' bytes in
//! order without gaps. The metadata begin with `header_xxh3`, the XXH3-128 of the header with this value's digits
//! taken as zeros, and have `xxh3.<tensor>` for each tensor. A wrong length prefix moves the header's end, and so
//! fails the header's checksum.

use super::durable::fail_point;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// How every header begins, so that the checksum's digits are where both sides expect them.
const PREFIX: &str = r#"{"__metadata__":{"header_xxh3":""#;
/// Hexadecimal digits of an XXH3-128.
const DIGITS: usize = 32;
/// The limit of the safetensors format.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Elements converted to bytes at a time: 256 KiB.
const CHUNK: usize = 65_536;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorRef<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: &'a [usize],
    /// Its elements, last axis fastest.
    pub data: &'a [f32],
}

/// A tensor that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its elements, last axis fastest.
    pub data: Vec<f32>,
}

/// Calls `each` with the little-endian bytes of `data`, piece by piece.
fn for_bytes(data: &[f32], mut each: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut bytes = vec![0u8; 4 * CHUNK.min(data.len())];
    for chunk in data.chunks(CHUNK) {
        let bytes = &mut bytes[..4 * chunk.len()];
        for (to, from) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(chunk) {
            *to = from.to_le_bytes();
        }
        each(bytes)?;
    }
    Ok(())
}

/// The header for these tensors, its length prefix included.
///
/// # Errors
/// [`Error::Diverged`] naming the first tensor that has a value that is not finite: such a file is never written.
pub fn header(tensors: &[TensorRef], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    let mut meta: Map<String, Value> =
        metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
    let mut offset = 0;
    for tensor in tensors {
        let mut hasher = Xxh3::new();
        for_bytes(tensor.data, |bytes| {
            hasher.update(bytes);
            Ok(())
        })
        .map_err(|e| Error::Checkpoint(e.to_string()))?;
        // One pass more, but over memory that the checksum has just read.
        if let Some(at) = tensor.data.iter().position(|x| !x.is_finite()) {
            return Err(Error::Diverged(format!(
                "{} has the value {} at element {at}; nothing was saved",
                tensor.name, tensor.data[at]
            )));
        }
        meta.insert(format!("xxh3.{}", tensor.name), format!("{:032x}", hasher.digest128()).into());
        let end = offset + 4 * tensor.data.len();
        entries.insert(
            tensor.name.clone(),
            serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let tail = |map: Map<String, Value>| {
        let text = Value::Object(map).to_string();
        let inner = text[1..text.len() - 1].to_string();
        if inner.is_empty() { inner } else { format!(",{inner}") }
    };
    let mut text =
        format!("{PREFIX}{}\"{}}}{}}}", "0".repeat(DIGITS), tail(meta), tail(entries)).into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let digits = format!("{:032x}", xxh3_128(&text));
    text[PREFIX.len()..PREFIX.len() + DIGITS].copy_from_slice(digits.as_bytes());
    let mut whole = (text.len() as u64).to_le_bytes().to_vec();
    whole.extend(text);
    Ok(whole)
}

/// Writes the header and the tensors.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, header: &[u8], tensors: &[TensorRef]) -> std::io::Result<()> {
    out.write_all(header)?;
    for (i, tensor) in tensors.iter().enumerate() {
        if i == tensors.len() / 2 {
            out.flush()?;
            fail_point("half-written");
        }
        for_bytes(tensor.data, |bytes| out.write_all(bytes))?;
    }
    out.flush()
}

struct Entry {
    name: String,
    shape: Vec<usize>,
    /// From the end of the header.
    start: u64,
    bytes: u64,
    checksum: String,
}

/// Whether this is the beginning of such a file.
pub fn is_one(file: &[u8]) -> bool {
    file.get(8..).is_some_and(|text| text.starts_with(PREFIX.as_bytes()))
}

/// An open file whose header is sound. Tensors are checked as they are read.
pub struct Reader {
    path: PathBuf,
    file: File,
    data_start: u64,
    /// In the order of the file.
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
}

impl Reader {
    /// Opens a file and checks its header and length.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it cannot be read, is cut, damaged, or not of this kind.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |why: &str| Error::Checkpoint(format!("{}: {why}", path.display()));
        let io = |e: std::io::Error| fail(&format!("cannot be read: {e}"));
        let mut file = File::open(path).map_err(io)?;
        let status = file.metadata().map_err(io)?;
        if !status.is_file() {
            return Err(fail("is not a file"));
        }
        let len = status.len();
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(|_| fail("is cut: it has no header"))?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER_BYTES || header_len > len.saturating_sub(8) {
            return Err(fail("is cut or damaged: its header does not fit in it"));
        }
        let mut text = vec![0; header_len as usize];
        file.read_exact(&mut text).map_err(io)?;
        let digits = PREFIX.len()..PREFIX.len() + DIGITS;
        if text.len() < digits.end || !text.starts_with(PREFIX.as_bytes()) {
            return Err(fail("is not a checkpoint of this program, or its header is damaged"));
        }
        let stated = text[digits.clone()].to_vec();
        text[digits].fill(b'0');
        if format!("{:032x}", xxh3_128(&text)).as_bytes() != stated {
            return Err(fail("is damaged: its header's checksum does not match"));
        }
        let (entries, metadata) = parse(&text).map_err(|why| fail(&format!("has a wrong header: {why}")))?;
        let data_start = 8 + header_len;
        let end = entries.last().map_or(0, |e| e.start + e.bytes);
        if data_start + end != len {
            return Err(fail(&format!("is cut or damaged: {len} bytes, expected {}", data_start + end)));
        }
        Ok(Reader { path: path.to_path_buf(), file, data_start, entries, metadata })
    }

    /// The metadata value of this name.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is none.
    pub fn metadata(&self, key: &str) -> Result<&str> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| {
            Error::Checkpoint(format!(
                "{}: is no checkpoint of this program: {key} is missing",
                self.path.display()
            ))
        })
    }

    /// Name and sizes of every tensor, in the order of the file.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|e| (e.name.as_str(), &e.shape[..]))
    }

    /// Reads the tensors whose names `wanted` accepts, in the order of the file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor that is damaged.
    pub fn read(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        for i in 0..self.entries.len() {
            if wanted(&self.entries[i].name) {
                let mut data = Vec::with_capacity((self.entries[i].bytes / 4) as usize);
                self.scan(i, |bytes| {
                    data.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
                })?;
                let Entry { name, shape, .. } = &self.entries[i];
                tensors.push(Tensor { name: name.clone(), shape: shape.clone(), data });
            }
        }
        Ok(tensors)
    }

    /// Checks every tensor without keeping it.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn verify(&mut self) -> Result<()> {
        (0..self.entries.len()).try_for_each(|i| self.scan(i, |_| {}))
    }

    fn scan(&mut self, index: usize, mut each: impl FnMut(&[u8])) -> Result<()> {
        let entry = &self.entries[index];
        let fail =
            |why: String| Error::Checkpoint(format!("{}: tensor {} {why}", self.path.display(), entry.name));
        let io = |e: std::io::Error| fail(format!("cannot be read: {e}"));
        self.file.seek(SeekFrom::Start(self.data_start + entry.start)).map_err(io)?;
        let mut hasher = Xxh3::new();
        let mut left = entry.bytes as usize;
        let mut buffer = vec![0u8; left.min(4 * CHUNK)];
        while left > 0 {
            let piece = &mut buffer[..left.min(4 * CHUNK)];
            self.file.read_exact(piece).map_err(io)?;
            hasher.update(piece);
            each(piece);
            left -= piece.len();
        }
        if format!("{:032x}", hasher.digest128()) == entry.checksum {
            Ok(())
        } else {
            Err(fail("is damaged: its checksum does not match".into()))
        }
    }
}

/// Tensors in the order of the file, and metadata.
fn parse(text: &[u8]) -> std::result::Result<(Vec<Entry>, BTreeMap<String, String>), String> {
    let root: Map<String, Value> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let mut metadata = BTreeMap::new();
    for (key, value) in root.get("__metadata__").and_then(Value::as_object).ok_or("no metadata")? {
        metadata.insert(key.clone(), value.as_str().ok_or("a metadata value is not text")?.to_string());
    }
    let mut entries = Vec::new();
    for (name, value) in root.iter().filter(|(name, _)| *name != "__metadata__") {
        let numbers = |key: &str| -> Option<Vec<u64>> {
            value.get(key)?.as_array()?.iter().map(Value::as_u64).collect()
        };
        let broken = || format!("the entry of {name} is not understood");
        let shape = numbers("shape").ok_or_else(broken)?;
        let offsets = numbers("data_offsets").ok_or_else(broken)?;
        let elements = shape.iter().try_fold(1u64, |n, &s| n.checked_mul(s)).ok_or_else(broken)?;
        let bytes = elements.checked_mul(4).ok_or_else(broken)?;
        let [start, end] = offsets[..] else { return Err(broken()) };
        if value.get("dtype").and_then(Value::as_str) != Some("F32") || start.checked_add(bytes) != Some(end)
        {
            return Err(broken());
        }
        let checksum = metadata.remove(&format!("xxh3.{name}")).ok_or(format!("{name} has no checksum"))?;
        let shape = shape.iter().map(|&s| s as usize).collect();
        entries.push(Entry { name: name.clone(), shape, start, bytes, checksum });
    }
    entries.sort_by_key(|e| (e.start, e.bytes));
    let mut end = 0;
    for entry in &entries {
        if entry.start != end {
            return Err(format!("{} overlaps another tensor or leaves a hole", entry.name));
        }
        end += entry.bytes;
    }
    Ok((entries, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn sample() -> (Vec<u8>, Vec<Tensor>) {
        let tensor = |name: &str, shape: &[usize], start: f32| Tensor {
            name: name.into(),
            shape: shape.to_vec(),
            data: (0..shape.iter().product::<usize>()).map(|i| start + i as f32).collect(),
        };
        let tensors =
            vec![tensor("b.weight", &[2, 3], 1.0), tensor("a.bias", &[4], -8.5), tensor("empty", &[0], 0.0)];
        let refs: Vec<TensorRef> = tensors
            .iter()
            .map(|t| TensorRef { name: t.name.clone(), shape: &t.shape, data: &t.data })
            .collect();
        let metadata = BTreeMap::from([("state".to_string(), "{\"quoted\":\"\\n\"}".to_string())]);
        let header = header(&refs, &metadata).unwrap();
        let mut bytes = Vec::new();
        write(&mut bytes, &header, &refs).unwrap();
        (bytes, tensors)
    }

    fn read(dir: &Path, bytes: &[u8]) -> Result<Vec<Tensor>> {
        let path = dir.join("t.safetensors");
        std::fs::write(&path, bytes).unwrap();
        Reader::open(&path)?.read(|_| true)
    }

    #[test]
    fn what_is_written_is_read_here_and_by_safetensors() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, mut tensors) = sample();
        let got = read(dir.path(), &bytes).unwrap();
        tensors.sort_by_key(|t| got.iter().position(|g| g.name == t.name));
        assert_eq!(got, tensors);
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for t in &tensors {
            let view = theirs.tensor(&t.name).unwrap();
            assert_eq!((view.shape(), view.dtype()), (&t.shape[..], safetensors::Dtype::F32));
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(values, t.data);
        }
    }

    /// A file that is damaged in place, which is much faster than writing it anew thousands of times.
    fn damaged(dir: &Path, bytes: &[u8]) -> (File, PathBuf) {
        let path = dir.join("damaged.safetensors");
        std::fs::write(&path, bytes).unwrap();
        (File::options().write(true).open(&path).unwrap(), path)
    }

    fn reads(path: &Path) -> bool {
        Reader::open(path).and_then(|mut r| r.verify()).is_ok()
    }

    #[test]
    fn a_cut_at_any_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut bytes, _) = sample();
        bytes.push(0);
        let (file, path) = damaged(dir.path(), &bytes);
        for len in (0..=bytes.len()).rev() {
            file.set_len(len as u64).unwrap();
            assert_eq!(reads(&path), len == bytes.len() - 1, "{len} bytes");
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, _) = sample();
        let (mut file, path) = damaged(dir.path(), &bytes);
        let mut put = |at: usize, byte: u8| {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[byte]).unwrap();
        };
        for bit in 0..8 * bytes.len() {
            let at = bit / 8;
            put(at, bytes[at] ^ 1 << (bit % 8));
            assert!(!reads(&path), "bit {bit}");
            put(at, bytes[at]);
        }
        assert!(reads(&path), "whole again");
    }

    #[test]
    fn junk_is_refused_without_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, _) = sample();
        let mut stream = Stream::new(1, Purpose::Synthetic, 0, 0);
        for _ in 0..300 {
            let mut bad = bytes.clone();
            for _ in 0..1 + stream.below(20) {
                let at = stream.below(bad.len());
                bad[at] = stream.next_u32() as u8;
            }
            if bad != bytes {
                assert!(read(dir.path(), &bad).is_err());
            }
        }
        // Headers whose checksum is right, as only a forger or a faulty program would write them.
        for entries in [
            r#","x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#,
            r#","x":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}"#,
            r#","x":{"dtype":"F64","shape":[1],"data_offsets":[0,4]}"#,
            r#","x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
            r#","x":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551615,3]}"#,
            r#","x":7"#,
        ] {
            let mut text = format!("{PREFIX}{}\",\"xxh3.x\":\"0\"}}{entries}}}", "0".repeat(DIGITS));
            let digits = format!("{:032x}", xxh3_128(text.as_bytes()));
            text.replace_range(PREFIX.len()..PREFIX.len() + DIGITS, &digits);
            let mut file = (text.len() as u64).to_le_bytes().to_vec();
            file.extend(text.as_bytes());
            file.extend([0; 4]);
            assert!(read(dir.path(), &file).is_err(), "{entries}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_not_written() {
        for bad in [f32::NAN, f32::INFINITY] {
            let data = [1.0, bad];
            let error = header(&[TensorRef { name: "w".into(), shape: &[2], data: &data }], &BTreeMap::new())
                .unwrap_err();
            assert_eq!(error.exit_code(), 5);
            assert!(error.to_string().starts_with("w has the value"), "{error}");
        }
    }
}

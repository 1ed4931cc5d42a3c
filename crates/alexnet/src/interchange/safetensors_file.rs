//! Weights as Hugging Face's safetensors, read in place: a length, a JSON header, bytes.

use super::foreign::{Dtype, Foreign, ForeignTensor, Format, MAX_TENSORS, short};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

/// The largest header. The format allows 100 MB; that of an AlexNet has 2 KB, and a mean picture or class names as
/// metadata make it no larger than this.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// A tensor's entry.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header, in the file's order; a name that stands twice is refused.
#[derive(Default)]
struct Header {
    metadata: Vec<(String, String)>,
    entries: Vec<(String, Entry)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut names = std::collections::BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if names.len() >= MAX_TENSORS {
                        return Err(de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    if !names.insert(name.clone()) {
                        return Err(de::Error::custom(format!("two tensors {}", short(&name))));
                    }
                    if name == "__metadata__" {
                        let all: std::collections::BTreeMap<String, String> = map.next_value()?;
                        header.metadata = all.into_iter().collect();
                    } else {
                        header.entries.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Whether this can be the beginning of a safetensors file: a length that fits, and a brace.
pub fn is_one(file: &[u8]) -> bool {
    file.len() > 9 && file[8] == b'{' && file[6..8] == [0, 0]
}

/// Reads a file.
pub fn read(file: &[u8]) -> Result<Foreign<'_>, String> {
    let prefix = file.first_chunk::<8>().ok_or("it is cut: it has no header")?;
    let length = u64::from_le_bytes(*prefix);
    if length > MAX_HEADER_BYTES {
        return Err(format!("it states a header of {length} bytes; {MAX_HEADER_BYTES} are the most"));
    }
    let (text, data) = file[8..]
        .split_at_checked(length as usize)
        .ok_or_else(|| format!("it is cut: its header of {length} bytes does not fit in it"))?;
    let header: Header =
        serde_json::from_slice(text).map_err(|e| format!("its header is not understood: {e}"))?;
    let mut places = Vec::new();
    let mut tensors = Vec::new();
    for (name, entry) in header.entries {
        let shown = short(&name);
        let dtype = match entry.dtype.as_str() {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            "F64" => Dtype::F64,
            "I64" | "U64" => Dtype::Integer(8),
            "I32" | "U32" => Dtype::Integer(4),
            "I16" | "U16" => Dtype::Integer(2),
            "I8" | "U8" | "BOOL" => Dtype::Integer(1),
            other => return Err(format!("tensor {shown}: elements of type {}", short(other))),
        };
        let (start, end) = entry.data_offsets;
        let place = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let bytes = place.and_then(|(start, end)| data.get(start..end)).ok_or_else(|| {
            format!(
                "tensor {shown}: bytes {start} to {end} are not in the file, which has {} for tensors",
                data.len()
            )
        })?;
        places.push((start, end));
        let sizes = entry.shape.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
        let shape = sizes.map_err(|_| format!("tensor {shown}: impossible sizes"))?;
        tensors.push(ForeignTensor::new(name, shape, dtype, bytes.into())?);
    }
    places.sort_unstable();
    let mut reached = 0;
    for (start, end) in places {
        if start != reached {
            return Err("two tensors overlap, or there is a hole between them".into());
        }
        reached = end;
    }
    if reached != data.len() as u64 {
        return Err(format!("{} bytes follow its last tensor", data.len() as u64 - reached));
    }
    // JSON objects have no order of their own: writers sort by name or size, and so the file's order says nothing.
    let mut foreign = Foreign::new(Format::Safetensors, tensors);
    for (key, value) in header.metadata {
        match key.as_str() {
            "alexnet.network" => foreign.network = Some(value),
            "alexnet.preprocess" => foreign.preprocess = Some(value),
            "alexnet.classes" => foreign.classes = Some(value),
            _ if key.starts_with("xxh3.") || key == "header_xxh3" => {}
            _ => foreign.about.push((short(&key), short(&value))),
        }
    }
    Ok(foreign)
}

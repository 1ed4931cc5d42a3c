//! Files of `torch.save`, the zip archives of today ([`zip`]) and the rows of pickles of before 1.6. The pickle in them is
//! read by [`pickle`], which executes nothing.

pub mod pickle;
pub mod zip;

use super::foreign::{Dtype, Foreign, ForeignTensor, Format, MAX_AXES, MAX_TENSORS, elements, short};
use pickle::{Object, Pickle, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The largest pickle, bytes: the tensors' elements are not in it. A training checkpoint of AlexNet has 20 KB.
const MAX_PICKLE_BYTES: usize = 8 << 20;
/// How deep dictionaries may lie in one another.
const MAX_DEPTH: usize = 6;
/// The first pickle of a legacy file: PROTO 2, LONG1 of ten bytes, 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: [u8; 15] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// A piece of memory that tensors are views of.
#[derive(Clone, Copy)]
struct Storage<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

/// The storages that a pickle refers to, by the number of the referring object.
type Storages<'a> = BTreeMap<usize, Storage<'a>>;

/// Whether this is the beginning of a legacy file.
pub fn is_legacy(file: &[u8]) -> bool {
    file.starts_with(&LEGACY_MAGIC)
}

/// A reference to a storage: (`storage`, type, key, device, elements, view).
struct Reference<'a> {
    dtype: Dtype,
    key: &'a str,
    elements: usize,
    /// First element and number of them in the storage of this key; legacy files only.
    view: Option<(usize, usize)>,
}

fn reference<'a>(pickle: &Pickle<'a>, id: Value) -> Result<Reference<'a>, String> {
    let parts = pickle.list(id).ok_or("a storage without a description")?;
    let (Some(&[word, kind, key, _device, count]), rest) = (parts.first_chunk::<5>(), parts.get(5..)) else {
        return Err("a storage whose description is too short".into());
    };
    if pickle.text(word) != Some("storage") {
        return Err("a reference to something that is no storage".into());
    }
    let Some(Object::Global(kind)) = pickle.object(kind) else {
        return Err("a storage without a type".into());
    };
    let dtype = match *kind {
        "torch.FloatStorage" => Dtype::F32,
        "torch.HalfStorage" => Dtype::F16,
        "torch.BFloat16Storage" => Dtype::Bf16,
        "torch.DoubleStorage" => Dtype::F64,
        "torch.LongStorage" => Dtype::Integer(8),
        "torch.IntStorage" => Dtype::Integer(4),
        "torch.ShortStorage" => Dtype::Integer(2),
        "torch.CharStorage" | "torch.ByteStorage" | "torch.BoolStorage" => Dtype::Integer(1),
        other => return Err(format!("a storage of type {other}")),
    };
    let key = pickle.text(key).ok_or("a storage without a key")?;
    let elements = size(count)?;
    let view = match rest.and_then(|rest| rest.first()).and_then(|&view| pickle.list(view)) {
        None => None,
        Some(&[_key, offset, count]) => Some((size(offset)?, size(count)?)),
        Some(_) => return Err("a view of a storage that is not understood".into()),
    };
    Ok(Reference { dtype, key, elements, view })
}

fn size(value: Value) -> Result<usize, String> {
    match value {
        Value::Int(n) if (0..1 << 40).contains(&n) => Ok(n as usize),
        other => Err(format!("{other:?} is no size")),
    }
}

/// All storages that the pickle refers to, by object.
fn references<'a>(pickle: &Pickle<'a>) -> Result<Vec<(usize, Reference<'a>)>, String> {
    let ids = pickle.objects.iter().enumerate().filter_map(|(at, object)| match object {
        Object::Persistent(id) => Some((at, *id)),
        _ => None,
    });
    let all: Vec<_> = ids.map(|(at, id)| Ok((at, reference(pickle, id)?))).collect::<Result<_, String>>()?;
    if all.len() > MAX_TENSORS {
        return Err(format!("it refers to {} storages; {MAX_TENSORS} are the most", all.len()));
    }
    Ok(all)
}

/// Reads a zip archive of `torch.save`.
pub fn read_zip(file: &[u8]) -> Result<Foreign<'_>, String> {
    let directory = zip::directory(file)?;
    let named = directory.iter().find(|(name, _)| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let Some((name, entry)) = named else {
        return Err("this zip archive has no data.pkl: it was not written by torch.save".into());
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(constants) = directory.keys().find(|n| n.ends_with("constants.pkl")) {
        return Err(format!(
            "this archive has {}: it is a TorchScript program, not weights; save the module's state_dict()",
            short(constants)
        ));
    }
    if let Some((name, order)) = directory.get_key_value(&format!("{folder}byteorder"))
        && zip::read(file, name, order)? != b"little"
    {
        return Err("its numbers are not in little-endian order; save it on a machine where they are".into());
    }
    if entry.place.len() > MAX_PICKLE_BYTES {
        return Err(format!("its pickle has {} bytes; {MAX_PICKLE_BYTES} are the most", entry.place.len()));
    }
    let pickle = pickle::load(zip::read(file, name, entry)?)?;
    let mut storages = Storages::new();
    let mut checked = BTreeSet::new();
    for (at, reference) in references(&pickle)? {
        let key = short(reference.key);
        let name = format!("{folder}data/{}", reference.key);
        let entry = directory.get(&name).ok_or_else(|| format!("storage {key} is not in the archive"))?;
        let bytes = match checked.insert(reference.key) {
            true => zip::read(file, &name, entry)?,
            false => &file[entry.place.clone()],
        };
        let needed = reference.elements.checked_mul(reference.dtype.bytes());
        if needed != Some(bytes.len()) {
            return Err(format!(
                "storage {key} should have {} elements of {}, and has {} bytes",
                reference.elements,
                reference.dtype,
                bytes.len()
            ));
        }
        storages.insert(at, Storage { dtype: reference.dtype, bytes });
    }
    let tensors = tensors(&pickle, &storages)?;
    Ok(described(Foreign::new(Format::PthZip, tensors), &pickle))
}

/// Reads a file of `torch.save` from before 1.6: a magic number, a version, facts about the machine, the object, the
/// keys of the storages (a pickle each), and then each storage as its number of elements (8 bytes) and the elements.
pub fn read_legacy(file: &[u8]) -> Result<Foreign<'_>, String> {
    let mut at = LEGACY_MAGIC.len();
    let mut next = || {
        let rest = &file[at..];
        let pickle = pickle::load(&rest[..rest.len().min(MAX_PICKLE_BYTES)])?;
        at += pickle.end;
        Ok::<_, String>(pickle)
    };
    let version = next()?;
    if version.root != Value::Int(1001) {
        return Err(format!("its protocol is {:?}; 1001 is the only one", version.root));
    }
    let machine = next()?;
    if let Some(Object::Dict(facts)) = machine.object(machine.root)
        && facts.iter().any(|&(key, v)| machine.text(key) == Some("little_endian") && v == Value::Bool(false))
    {
        return Err("its numbers are not in little-endian order; save it on a machine where they are".into());
    }
    let pickle = next()?;
    let keys = next()?;
    let keys: Vec<&str> = keys
        .list(keys.root)
        .and_then(|list| list.iter().map(|&key| keys.text(key)).collect())
        .ok_or("the list of its storages is not understood")?;
    let references = references(&pickle)?;
    let mut stored: BTreeMap<&str, (Dtype, &[u8])> = BTreeMap::new();
    for key in keys {
        let shown = short(key);
        let first = references.iter().find(|(_, r)| r.key == key);
        let (_, reference) = first.ok_or_else(|| format!("storage {shown} belongs to no tensor"))?;
        let head = file.get(at..).and_then(|rest| rest.first_chunk::<8>());
        let count = i64::from_le_bytes(*head.ok_or("it is cut: a storage is missing")?);
        let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(reference.dtype.bytes()));
        let data = bytes.and_then(|n| file.get(at + 8..)?.get(..n));
        let data =
            data.ok_or_else(|| format!("storage {shown} of {count} elements does not fit in the file"))?;
        if count as usize != reference.elements {
            return Err(format!(
                "storage {shown} should have {} elements, and has {count}",
                reference.elements
            ));
        }
        if stored.insert(key, (reference.dtype, data)).is_some() {
            return Err(format!("there are two storages {shown}"));
        }
        at += 8 + data.len();
    }
    if at != file.len() {
        return Err(format!("{} bytes follow its last storage", file.len() - at));
    }
    let mut storages = Storages::new();
    for (at, reference) in references {
        let key = short(reference.key);
        let &(dtype, bytes) =
            stored.get(reference.key).ok_or_else(|| format!("storage {key} is not in the file"))?;
        if dtype != reference.dtype {
            return Err(format!("storage {key} has two types of elements"));
        }
        let bytes = match reference.view {
            None => bytes,
            Some((offset, count)) => {
                let end = (offset + count).checked_mul(dtype.bytes());
                let view = end.and_then(|end| bytes.get(offset * dtype.bytes()..end));
                view.ok_or_else(|| format!("a view reaches beyond storage {key}"))?
            }
        };
        storages.insert(at, Storage { dtype, bytes });
    }
    let tensors = tensors(&pickle, &storages)?;
    Ok(described(Foreign::new(Format::PthLegacy, tensors), &pickle))
}

/// The tensors of the dictionary of names that is the file's content, or that lies in it under `state_dict`, `model` or
/// another name.
fn tensors<'a>(pickle: &Pickle<'a>, storages: &Storages<'a>) -> Result<Vec<ForeignTensor<'a>>, String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![(pickle.root, String::new(), 0)];
    while let Some((value, name, depth)) = open.pop() {
        let Value::Object(at) = value else { continue };
        match &pickle.objects[at] {
            Object::Tensor(arguments) => {
                if found.len() >= MAX_TENSORS {
                    return Err(format!("more than {MAX_TENSORS} tensors"));
                }
                // A tensor of an optimizer has no name of its own, and is no weight.
                if !name.is_empty() {
                    found.push(tensor(pickle, storages, name, arguments)?);
                }
            }
            Object::Dict(entries) if depth < MAX_DEPTH && seen.insert(at) => {
                for &(key, value) in entries.iter().rev() {
                    let Some(key) = pickle.text(key) else { continue };
                    if depth == 0 && key == "optimizer" {
                        continue;
                    }
                    let name = if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
                    if name.len() <= super::foreign::MAX_NAME_BYTES {
                        open.push((value, name, depth + 1));
                    }
                }
            }
            _ => {}
        }
    }
    if found.is_empty() {
        return Err("it holds no named tensors; save a module's state_dict()".into());
    }
    Ok(found)
}

fn tensor<'a>(
    pickle: &Pickle<'a>,
    storages: &Storages<'a>,
    name: String,
    arguments: &[Value],
) -> Result<ForeignTensor<'a>, String> {
    let wrong = |what: &str| format!("tensor {}: {what}", short(&name));
    let &[storage, offset, shape, strides, ..] = arguments else {
        return Err(wrong("its parts are missing"));
    };
    let storage = match storage {
        Value::Object(at) => storages.get(&at),
        _ => None,
    };
    let storage = *storage.ok_or_else(|| wrong("it has no storage"))?;
    let numbers = |value| -> Result<Vec<usize>, String> {
        let list = pickle.list(value).filter(|list| list.len() <= MAX_AXES);
        list.ok_or_else(|| wrong("its sizes are not understood"))?.iter().map(|&n| size(n)).collect()
    };
    let (shape, strides, offset) = (numbers(shape)?, numbers(strides)?, size(offset)?);
    elements(&name, &shape)?;
    ForeignTensor::strided(name, shape, storage.dtype, storage.bytes, offset, strides)
}

/// Adds the plain facts of a training checkpoint: `epoch`, `arch` and the like.
fn described<'a>(mut foreign: Foreign<'a>, pickle: &Pickle<'a>) -> Foreign<'a> {
    if let Some(Object::Dict(entries)) = pickle.object(pickle.root) {
        for &(key, value) in entries.iter().take(32) {
            let Some(key) = pickle.text(key) else { continue };
            let words = match value {
                Value::Int(n) => n.to_string(),
                Value::Float(x) => x.to_string(),
                Value::Object(_) => match pickle.text(value) {
                    Some(text) => short(text),
                    None => continue,
                },
                _ => continue,
            };
            foreign.about.push((short(key), words));
        }
    }
    foreign
}

//! The zip archives that `torch.save` writes: entries stored as they are. Nothing is ever decompressed, so there are no
//! bombs; an archive that somebody compressed afterwards is refused by name. Names are compared, never opened as paths.

use std::collections::BTreeMap;
use std::ops::Range;

/// PyTorch writes a handful of entries and one for each storage.
const MAX_ENTRIES: usize = 8192;
/// The central directory of that many entries.
const MAX_DIRECTORY_BYTES: usize = 4 << 20;
const END: [u8; 4] = *b"PK\x05\x06";
const END64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR64: [u8; 4] = *b"PK\x06\x07";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Where its bytes lie in the file.
    pub place: Range<usize>,
    /// The CRC-32 that they should have.
    pub crc32: u32,
}

/// The entries of an archive by name.
pub type Directory = BTreeMap<String, Entry>;

fn u16_at(bytes: &[u8], at: usize) -> Result<usize, String> {
    let b = bytes.get(at..).and_then(|b| b.first_chunk::<2>()).ok_or("the archive is cut")?;
    Ok(usize::from(u16::from_le_bytes(*b)))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, String> {
    let b = bytes.get(at..).and_then(|b| b.first_chunk::<4>()).ok_or("the archive is cut")?;
    Ok(u32::from_le_bytes(*b) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<usize, String> {
    let b = bytes.get(at..).and_then(|b| b.first_chunk::<8>()).ok_or("the archive is cut")?;
    let n = u64::from_le_bytes(*b);
    usize::try_from(n)
        .ok()
        .filter(|&n| n < 1 << 62)
        .ok_or_else(|| format!("the archive states a size of {n}"))
}

/// Reads the central directory and checks that every entry lies in the file, apart from all others.
pub fn directory(file: &[u8]) -> Result<Directory, String> {
    let (count, size, start) = end_record(file)?;
    if count > MAX_ENTRIES || size > MAX_DIRECTORY_BYTES {
        return Err(format!(
            "the archive states {count} entries in {size} bytes; {MAX_ENTRIES} are the most"
        ));
    }
    let central = start.checked_add(size).and_then(|end| file.get(start..end));
    let central = central.ok_or("the archive's directory lies beyond its end")?;
    let mut entries = Directory::new();
    let mut at = 0;
    for _ in 0..count {
        if central.get(at..at + 4) != Some(&ENTRY) {
            return Err("the archive's directory is cut or damaged".into());
        }
        let flags = u16_at(central, at + 8)?;
        let method = u16_at(central, at + 10)?;
        let crc32 = u32_at(central, at + 16)? as u32;
        let mut numbers = [u32_at(central, at + 24)?, u32_at(central, at + 20)?, u32_at(central, at + 42)?];
        let [name_len, extra_len, comment_len] =
            [u16_at(central, at + 28)?, u16_at(central, at + 30)?, u16_at(central, at + 32)?];
        let name = central.get(at + 46..at + 46 + name_len).ok_or("the archive's directory is cut")?;
        let name = std::str::from_utf8(name).map_err(|_| "an entry's name is no text")?;
        let shown = super::super::foreign::short(name);
        let extra = at + 46 + name_len..at + 46 + name_len + extra_len;
        sizes_of_zip64(central.get(extra).ok_or("the archive's directory is cut")?, &mut numbers)?;
        at += 46 + name_len + extra_len + comment_len;
        let [size, stored, offset] = numbers;
        if method != 0 || size != stored {
            return Err(format!(
                "entry {shown} is compressed; torch.save stores entries as they are: unpack the archive and zip it \
                 again with compression 0"
            ));
        }
        if flags & 1 != 0 {
            return Err(format!("entry {shown} is encrypted"));
        }
        let place = data_of(file, offset, size).map_err(|why| format!("entry {shown}: {why}"))?;
        if entries.insert(name.to_string(), Entry { place, crc32 }).is_some() {
            return Err(format!("there are two entries {shown}"));
        }
    }
    let mut places: Vec<&Range<usize>> =
        entries.values().map(|e| &e.place).filter(|p| !p.is_empty()).collect();
    places.sort_by_key(|place| place.start);
    if places.windows(2).any(|pair| pair[0].end > pair[1].start)
        || places.last().is_some_and(|last| last.end > start)
    {
        return Err("two entries of the archive lie in the same place".into());
    }
    Ok(entries)
}

/// The number of entries, and the size and place of the directory.
fn end_record(file: &[u8]) -> Result<(usize, usize, usize), String> {
    // A comment of up to 64 KiB may follow the record.
    let from = file.len().saturating_sub(22 + 65_535);
    let tail = &file[from..];
    let at = tail
        .windows(4)
        .rposition(|w| w == END)
        .ok_or("the archive is cut: it has no directory at its end")?;
    let end = from + at;
    let (mut count, mut size, mut start) =
        (u16_at(file, end + 10)?, u32_at(file, end + 12)?, u32_at(file, end + 16)?);
    if let Some(locator) = end.checked_sub(20)
        && file[locator..].starts_with(&LOCATOR64)
    {
        let end64 = u64_at(file, locator + 8)?;
        if file.get(end64..).is_none_or(|record| !record.starts_with(&END64)) {
            return Err("the archive's directory is not where it says".into());
        }
        (count, size, start) =
            (u64_at(file, end64 + 32)?, u64_at(file, end64 + 40)?, u64_at(file, end64 + 48)?);
    }
    Ok((count, size, start))
}

/// Replaces numbers that do not fit in 32 bits by those of the zip64 field: size, stored size, offset.
fn sizes_of_zip64(mut extra: &[u8], numbers: &mut [usize; 3]) -> Result<(), String> {
    while extra.len() >= 4 {
        let (kind, length) = (u16_at(extra, 0)?, u16_at(extra, 2)?);
        let field = extra.get(4..4 + length).ok_or("an entry's extra field is cut")?;
        if kind == 1 {
            let mut at = 0;
            for number in numbers.iter_mut().filter(|n| **n == u32::MAX as usize) {
                *number = u64_at(field, at)?;
                at += 8;
            }
        }
        extra = &extra[4 + length..];
    }
    Ok(())
}

/// Where the bytes of the entry whose local header is at `offset` lie.
fn data_of(file: &[u8], offset: usize, size: usize) -> Result<Range<usize>, String> {
    if file.get(offset..).is_none_or(|header| !header.starts_with(&LOCAL)) {
        return Err("its header is not where the directory says".into());
    }
    let start = offset + 30 + u16_at(file, offset + 26)? + u16_at(file, offset + 28)?;
    match start.checked_add(size) {
        Some(end) if end <= file.len() => Ok(start..end),
        _ => Err(format!("{size} bytes do not fit in the file of {} bytes", file.len())),
    }
}

/// The bytes of an entry, if their checksum is right.
pub fn read<'a>(file: &'a [u8], name: &str, entry: &Entry) -> Result<&'a [u8], String> {
    let bytes = &file[entry.place.clone()];
    if crc32fast::hash(bytes) != entry.crc32 {
        return Err(format!(
            "entry {} is damaged: its checksum does not match (torch.save can be told to leave checksums out; save \
             the file again with them)",
            super::super::foreign::short(name)
        ));
    }
    Ok(bytes)
}

//! The page headers of a Parquet column, checked before a decoder believes them: they say how many bytes to allocate.
//! Format: parquet.thrift (`PageHeader`), in Thrift's compact protocol.

use super::reader::ReadAt;

/// Most bytes of one page header, statistics included.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// More than any codec packs (deflate: 1,032 to 1), and a little for tiny pages.
const MAX_RATIO: u64 = 1100;
const SLACK_BYTES: u64 = 4 << 10;
/// Structures within structures.
const MAX_DEPTH: usize = 8;

/// Walks the pages in the bytes `start..start + length` of a file.
///
/// # Errors
/// A header that cannot be read, or sizes that cannot be true, or pages of more than `limit` bytes in all.
pub fn check(file: &dyn ReadAt, start: u64, length: u64, limit: u64) -> Result<(), String> {
    let end = start.checked_add(length).ok_or("a column beyond the end of the file")?;
    let (mut at, mut total) = (start, 0u64);
    while at < end {
        let mut head = vec![0; (end - at).min(MAX_HEADER_BYTES) as usize];
        // Most headers are short; the rest is asked for when it is needed.
        let first = head.len().min(256);
        file.fill_at(&mut head[..first], at)?;
        let sizes = match Header::read(&head[..first]) {
            Some(sizes) => sizes,
            None => {
                file.fill_at(&mut head, at)?;
                Header::read(&head).ok_or_else(|| format!("damaged: no page header at byte {at}"))?
            }
        };
        let left = end - at - sizes.header;
        if sizes.stored > left || sizes.unpacked > MAX_RATIO * sizes.stored + SLACK_BYTES {
            return Err(format!(
                "damaged: a page of {} bytes, unpacked {}, where {left} are left",
                sizes.stored, sizes.unpacked
            ));
        }
        total += sizes.unpacked;
        if total > limit {
            return Err(format!("a column of a row group with more than {limit} bytes"));
        }
        at += sizes.header + sizes.stored;
    }
    Ok(())
}

/// What a page header says of sizes, and its own, in bytes.
struct Header {
    header: u64,
    unpacked: u64,
    stored: u64,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Header> {
        let mut rest = bytes;
        let (mut unpacked, mut stored) = (None, None);
        structure(&mut rest, 0, &mut |id, value| match id {
            2 => unpacked = value,
            3 => stored = value,
            _ => {}
        })?;
        let size = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        Some(Header {
            header: (bytes.len() - rest.len()) as u64,
            unpacked: size(unpacked)?,
            stored: size(stored)?,
        })
    }
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    Some(*first)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let b = byte(rest)?;
        value |= u64::from(b & 0x7F) << shift;
        if b & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn signed(rest: &mut &[u8]) -> Option<i64> {
    let raw = varint(rest)?;
    Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

fn skip(rest: &mut &[u8], n: u64) -> Option<()> {
    *rest = rest.get(usize::try_from(n).ok()?..)?;
    Some(())
}

/// Takes a structure; `visit` is told the whole numbers among its fields.
fn structure(rest: &mut &[u8], depth: usize, visit: &mut dyn FnMut(i64, Option<i64>)) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut id = 0i64;
    loop {
        let head = byte(rest)?;
        if head == 0 {
            return Some(());
        }
        id = match head >> 4 {
            0 => signed(rest)?,
            step => id.checked_add(i64::from(step))?,
        };
        match head & 0x0F {
            // The value of a boolean field stands in its type.
            1 | 2 => {}
            4..=6 => visit(id, Some(signed(rest)?)),
            kind => value(rest, kind, depth)?,
        }
    }
}

/// Takes a value of any kind.
fn value(rest: &mut &[u8], kind: u8, depth: usize) -> Option<()> {
    match kind {
        1..=3 => skip(rest, 1),
        4..=6 => signed(rest).map(drop),
        7 => skip(rest, 8),
        8 => {
            let n = varint(rest)?;
            skip(rest, n)
        }
        9 | 10 => {
            let head = byte(rest)?;
            let n = match head >> 4 {
                15 => varint(rest)?,
                n => u64::from(n),
            };
            (0..n).try_for_each(|_| value(rest, head & 0x0F, depth + 1))
        }
        12 => structure(rest, depth + 1, &mut |_, _| {}),
        // Page headers have no maps.
        _ => None,
    }
}

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

/// Kinds of pages, and the encodings that need a dictionary page before them.
const DATA_PAGE: i64 = 0;
const DICTIONARY_PAGE: i64 = 2;
const DICTIONARY_ENCODINGS: [i64; 2] = [2, 8];

/// Walks the pages in the bytes `start..start + length` of a file. `optional`: values may be missing, so that pages
/// begin with levels.
///
/// # Errors
/// A header that cannot be read, or sizes that cannot be true, or pages of more than `limit` bytes in all.
pub fn check(file: &dyn ReadAt, start: u64, length: u64, limit: u64, optional: bool) -> Result<(), String> {
    let end = start.checked_add(length).ok_or("a column beyond the end of the file")?;
    let (mut at, mut total) = (start, 0u64);
    let mut has_dictionary = false;
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
        // Every value of a dictionary takes a byte at least, and a place in memory before it is read.
        if sizes.dictionary > sizes.unpacked {
            return Err(format!(
                "damaged: a dictionary of {} values in {} bytes",
                sizes.dictionary, sizes.unpacked
            ));
        }
        has_dictionary |= sizes.kind == DICTIONARY_PAGE;
        if DICTIONARY_ENCODINGS.contains(&sizes.encoding) && !has_dictionary {
            return Err("damaged: a page that needs a dictionary, and there is none before it".into());
        }
        // Four bytes say how long the levels are.
        if optional && sizes.kind == DATA_PAGE && sizes.unpacked < 4 {
            return Err(format!("damaged: a page of {} bytes", sizes.unpacked));
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
    kind: i64,
    /// Of a data page, of either version; 0 of others.
    encoding: i64,
    header: u64,
    unpacked: u64,
    stored: u64,
    /// Values of a dictionary page.
    dictionary: u64,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Header> {
        let mut rest = bytes;
        let (mut kind, mut encoding) = (-1, 0);
        let (mut unpacked, mut stored, mut dictionary) = (-1, -1, 0);
        structure(&mut rest, &mut Vec::new(), &mut |path, value| match path {
            [1] => kind = value,
            [5, 2] | [8, 4] => encoding = value,
            [2] => unpacked = value,
            [3] => stored = value,
            [7, 1] => dictionary = value,
            _ => {}
        })?;
        let size = |n: i64| u64::try_from(n).ok();
        Some(Header {
            kind,
            encoding,
            header: (bytes.len() - rest.len()) as u64,
            unpacked: size(unpacked)?,
            stored: size(stored)?,
            dictionary: size(dictionary)?,
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

/// Takes a structure; `visit` is told the numbers of the fields that lead to each whole number in it, and the number.
fn structure(rest: &mut &[u8], path: &mut Vec<i64>, visit: &mut dyn FnMut(&[i64], i64)) -> Option<()> {
    if path.len() > MAX_DEPTH {
        return None;
    }
    path.push(0);
    loop {
        let head = byte(rest)?;
        if head == 0 {
            path.pop();
            return Some(());
        }
        let last = path.last_mut()?;
        *last = match head >> 4 {
            0 => signed(rest)?,
            step => last.checked_add(i64::from(step))?,
        };
        match head & 0x0F {
            // The value of a boolean field stands in its type.
            1 | 2 => {}
            4..=6 => visit(path, signed(rest)?),
            12 => structure(rest, path, visit)?,
            kind => value(rest, kind, path.len())?,
        }
    }
}

/// Takes a value of any kind that is not a field.
fn value(rest: &mut &[u8], kind: u8, depth: usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
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
            // No element takes less than a byte.
            if n > rest.len() as u64 {
                return None;
            }
            (0..n).try_for_each(|_| value(rest, head & 0x0F, depth + 1))
        }
        12 => structure(rest, &mut vec![0; depth], &mut |_, _| {}),
        // Page headers have no maps.
        _ => None,
    }
}

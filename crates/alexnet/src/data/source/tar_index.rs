//! Where the members of a tar lie: the headers are walked, nothing is unpacked.
//!
//! Only regular files with plain relative names are listed. Links, devices, folders with data, names with `..`, a
//! leading `/` or control characters are reported and passed over. A size that leads past the end of the archive, a wrong
//! checksum and a missing end are errors: such an archive is damaged or was not downloaded completely.
//!
//! Formats: POSIX ustar and pax ("pax Interchange Format"), GNU tar ("Basic Tar Format"), and the old one before both.

use super::reader::ReadAt;
use crate::data::source::printable;
use std::path::{Component, Path, PathBuf};

/// Headers and sizes are counted in blocks of this many bytes.
const BLOCK_BYTES: u64 = 512;
/// Bytes that are read at a time: a page, which the system reads anyway.
const WINDOW_BYTES: u64 = 4096;
/// Longest name that is read; longer ones are a lie or a nuisance.
const MAX_NAME_BYTES: u64 = 4096;
/// Longest extended header (PAX) that is read.
const MAX_PAX_BYTES: u64 = 64 << 10;

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: relative, without `.` and `..`.
    pub path: PathBuf,
    /// Where its bytes begin in the file that holds the archive.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
}

/// What a header walk finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A regular file.
    Member(Member),
    /// Something that is not used: its name as text, and why.
    Passed(String, String),
}

/// Walks the headers of the archive that fills the bytes `offset..offset + bytes` of a file or buffer.
///
/// # Errors
/// What is wrong with the archive and where, without its name; or whatever `visit` returns.
pub fn walk(
    file: &dyn ReadAt,
    offset: u64,
    bytes: u64,
    visit: &mut dyn FnMut(Found) -> Result<(), String>,
) -> Result<(), String> {
    let end = offset.checked_add(bytes).ok_or("an archive of more than 2^64 bytes")?;
    let mut at = offset;
    let mut extended = Extended::default();
    let mut window = Window { at: 0, bytes: Vec::with_capacity(WINDOW_BYTES as usize) };
    loop {
        let place = at - offset;
        if at == end {
            return Err("cut short: it ends without the two blocks of zeros that close an archive".into());
        }
        if end - at < BLOCK_BYTES {
            return Err(format!("cut short: it ends within the header at byte {place}"));
        }
        let block = window.block(file, at, end)?;
        if block.iter().all(|&b| b == 0) {
            return Ok(());
        }
        let header = Header(block);
        header.check_sum().map_err(|why| match place {
            0 => format!("not a tar: {why}"),
            _ => format!("damaged: {why} at byte {place}"),
        })?;
        let size = header.size().ok_or_else(|| format!("damaged: no size in the header at byte {place}"))?;
        let kind = header.kind();
        // An extended header speaks of the next entry, never of another extended header.
        let size = if EXTENSIONS.contains(&kind) { size } else { extended.size.unwrap_or(size) };
        let data = at + BLOCK_BYTES;
        if size > end - data {
            return Err(format!(
                "cut short: its member {} should have {size} bytes, and {} are left",
                printable_bytes(&header.name().unwrap_or_default()),
                end - data
            ));
        }
        match kind {
            LONG_NAME => {
                let mut name = vec![0; bounded(size, MAX_NAME_BYTES, "a name")? as usize];
                file.fill_at(&mut name, data)?;
                if name.last() == Some(&0) {
                    name.pop();
                }
                extended.name = Some(name);
            }
            PAX => {
                let mut text = vec![0; bounded(size, MAX_PAX_BYTES, "an extended header")? as usize];
                file.fill_at(&mut text, data)?;
                extended.take(&text).map_err(|why| format!("damaged: {why} at byte {place}"))?;
            }
            LONG_LINK | PAX_GLOBAL => {}
            _ => {
                let name = extended.name.take().map_or_else(|| header.name(), Ok);
                extended = Extended::default();
                if let Some(found) = understood(kind, name, data, size) {
                    visit(found)?;
                }
            }
        }
        // The padding of the last member may be missing; then the end mark is, too, and that is noticed above.
        at = data + size.next_multiple_of(BLOCK_BYTES).min(end - data);
    }
}

/// What is read of the archive around a header: small members and their headers come with the one before them.
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The block at `at`; an archive that ends at `end` has it.
    fn block(&mut self, file: &dyn ReadAt, at: u64, end: u64) -> Result<&[u8; BLOCK_BYTES as usize], String> {
        if at < self.at || at + BLOCK_BYTES > self.at + self.bytes.len() as u64 {
            self.at = at;
            self.bytes.resize(WINDOW_BYTES.min(end - at) as usize, 0);
            file.fill_at(&mut self.bytes, at)?;
        }
        let block = self.bytes[(at - self.at) as usize..].first_chunk();
        Ok(block.expect("a window from the block on has it"))
    }
}

/// Kinds of entries, by the byte that marks them.
const LONG_NAME: u8 = b'L';
const LONG_LINK: u8 = b'K';
const PAX: u8 = b'x';
const PAX_GLOBAL: u8 = b'g';
/// Entries that speak of the next one.
const EXTENSIONS: [u8; 4] = [LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL];

/// A header block.
struct Header<'a>(&'a [u8; BLOCK_BYTES as usize]);

impl Header<'_> {
    /// Compares the checksum with the bytes; its own field counts as blanks.
    fn check_sum(&self) -> Result<(), String> {
        let own = 148..156;
        let byte = |(i, &b): (usize, &u8)| if own.contains(&i) { 32 } else { u64::from(b) };
        let sum: u64 = self.0.iter().enumerate().map(byte).sum();
        if number(&self.0[own.clone()]) == Some(sum) { Ok(()) } else { Err("a wrong checksum".into()) }
    }

    fn size(&self) -> Option<u64> {
        number(&self.0[124..136])
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    /// Prefix and name; `Err` with something to show if there are bytes behind the zero byte that ends the name.
    fn name(&self) -> Result<Vec<u8>, String> {
        let field = &self.0[..100];
        let text = |field: &[u8]| field.split(|&b| b == 0).next().unwrap_or_default().to_vec();
        let own = text(field);
        if field[own.len()..].iter().any(|&b| b != 0) {
            let last = field.iter().rposition(|&b| b != 0).unwrap_or(0);
            return Err(printable_bytes(&field[..=last]));
        }
        // GNU's format has other things where POSIX's has the prefix.
        let prefix = if &self.0[257..263] == b"ustar\0" { text(&self.0[345..500]) } else { Vec::new() };
        Ok(if prefix.is_empty() { own } else { [&prefix[..], b"/", &own].concat() })
    }
}

/// A number in a header: octal digits among blanks and zero bytes, or GNU's binary form, marked by its first bit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let zero = high.iter().enumerate().all(|(i, &b)| b == if i == 0 { 0x80 } else { 0 });
        let value = u64::from_be_bytes(low.try_into().ok()?);
        return zero.then_some(value);
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extended {
    fn take(&mut self, text: &[u8]) -> Result<(), String> {
        let mut rest = text;
        while rest.first().is_some_and(|&b| b != 0) {
            let (key, value) =
                record(&mut rest).ok_or_else(|| "an extended header that cannot be read".to_string())?;
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                    self.size = Some(size.ok_or("an extended header with a size that is no number")?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Takes one record of an extended header: its length in decimal, a blank, `key=value`, a line feed.
fn record<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let blank = rest.iter().take(20).position(|&b| b == b' ')?;
    let length: usize = std::str::from_utf8(&rest[..blank]).ok()?.parse().ok()?;
    let body = rest.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&b| b == b'=')?;
    *rest = &rest[length..];
    Some((&body[..equals], &body[equals + 1..]))
}

/// A member, or why it is none; nothing for folders.
fn understood(kind: u8, name: Result<Vec<u8>, String>, offset: u64, bytes: u64) -> Option<Found> {
    let name = match name {
        Ok(name) => name,
        Err(shown) => return Some(Found::Passed(shown, "a zero byte in its name".into())),
    };
    let passed = |why: &str| Some(Found::Passed(printable_bytes(&name), why.into()));
    match kind {
        // Old archives mark folders by a slash at the end of the name.
        b'5' => return None,
        0 | b'0' | b'7' if name.ends_with(b"/") => return None,
        0 | b'0' | b'7' => {}
        b'1' => return passed("a hard link in an archive"),
        b'2' => return passed("a symbolic link in an archive"),
        b'3' | b'4' => return passed("a device in an archive"),
        b'6' => return passed("a FIFO in an archive"),
        b'S' => return passed("a sparse file in an archive"),
        _ => return passed("not a regular file in an archive"),
    }
    if name.contains(&0) {
        return passed("a zero byte in its name");
    }
    // Names are printed, and these would command a terminal.
    if name.iter().any(u8::is_ascii_control) {
        return passed("a control character in its name");
    }
    match relative(&name) {
        Ok(path) => Some(Found::Member(Member { path, offset, bytes })),
        Err(why) => passed(why),
    }
}

/// A name as a path of plain parts.
fn relative(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.starts_with(b"/") {
        return Err("an absolute name in an archive");
    }
    let mut path = PathBuf::new();
    for part in Path::new(&os_name(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("a name with .. in an archive"),
            Component::RootDir | Component::Prefix(_) => return Err("an absolute name in an archive"),
        }
    }
    if path.as_os_str().is_empty() { Err("a member without a name") } else { Ok(path) }
}

#[cfg(unix)]
fn os_name(name: &[u8]) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(name.to_vec())
}

#[cfg(not(unix))]
fn os_name(name: &[u8]) -> std::ffi::OsString {
    String::from_utf8_lossy(name).into_owned().into()
}

/// The beginning of a name, fit to be shown.
fn printable_bytes(name: &[u8]) -> String {
    printable(&os_name(&name[..name.len().min(128)])).replace('\0', "\\x00")
}

fn bounded(size: u64, limit: u64, what: &str) -> Result<u64, String> {
    if size > limit { Err(format!("{what} of {size} bytes; at most {limit} are read")) } else { Ok(size) }
}

//! The one place that maps files into memory.

use std::fs::File;

/// A whole file, mapped read-only.
///
/// A mapped file that another program shortens makes the reader fault, and one that is rewritten changes under the
/// reader. Packs are written under another name and renamed, so that this program never does either; that nobody
/// else does is a condition of use ([`super::pack::Pack::verify_unchanged`] notices it between epochs).
pub fn map_file(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only and private to this process; see above for the condition that the file stays
    // as it is, which no program can enforce and which the documentation states.
    unsafe { memmap2::Mmap::map(file) }
}

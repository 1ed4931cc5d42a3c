//! Putting the parts of a set that several machines packed into one pack.

use super::pack::{Pack, Unreadable, picture_len};
use super::pack_build::unique_key;
use super::pack_file::Writer;
use super::pack_format::Index;
use super::stats::Sums;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

impl Pack {
    /// Puts the parts of a pack together into the file `out`, which is byte for byte what packing the whole set at once
    /// makes. Parts may be given in any order. `progress` is told (pictures done, pictures in all).
    ///
    /// # Errors
    /// [`Error::Data`] if a part is missing, there twice, damaged or of another set, or `out` cannot be written.
    pub fn join(parts: &[PathBuf], out: &Path, progress: &mut dyn FnMut(usize, usize)) -> Result<Pack> {
        let parts = open_parts(parts)?;
        let first = &parts[0];
        let varied = !first.options().is_raw_squares();
        let mut index = Index { classes: first.classes().to_vec(), ..Default::default() };
        let mut sums = Sums::new(first.side());
        for part in &parts {
            let (own, before) = (part.index(), index.labels.len() as u32);
            let bytes = index.offsets.pop().unwrap_or(0);
            index.labels.extend(&own.labels);
            index.splits.extend(&own.splits);
            index.hashes.extend(&own.hashes);
            index.paths.push_str(&own.paths);
            index.offsets.extend(own.offsets.iter().map(|o| bytes + o));
            index.sizes.extend(&own.sizes);
            let moved = |u: &Unreadable| Unreadable { index: before + u.index, ..u.clone() };
            index.unreadable.extend(own.unreadable.iter().map(moved));
            if let Some(own) = &own.sums {
                sums.merge(own);
            }
        }
        index.sums = Some(sums);
        let total = index.labels.len();
        let bytes = match index.offsets.last() {
            Some(&end) if varied => end,
            _ => (total as u64).saturating_mul(picture_len(first.side()) as u64),
        };
        let (mut writer, journal, _) = Writer::begin(out, first.options(), &index, bytes, &unique_key())?;
        let mut done = 0;
        for part in &parts {
            for i in 0..part.len() {
                let copied = part.check_picture(i).map_err(|why| part.named(&why));
                if let Err(error) = copied.and_then(|()| writer.append(part.stored_bytes(i))) {
                    writer.discard(journal);
                    return Err(error);
                }
                done += 1;
                progress(done, total);
            }
        }
        writer.finish(&index, first.source(), None, journal)?;
        Pack::open(out)
    }
}

/// The parts in their order, if they are all parts of one set.
fn open_parts(paths: &[PathBuf]) -> Result<Vec<Pack>> {
    let mut parts: Vec<Pack> = Vec::new();
    for path in paths {
        parts.push(Pack::open_part(path)?);
    }
    let fail = |why: String| Err(Error::Data(why));
    let Some(first) = parts.first() else { return fail("no parts to put together".into()) };
    let Some(shard) = first.shard() else {
        return fail(format!("{} is a whole pack, not a part", first.place()));
    };
    for part in &parts {
        let of = part.shard().map(|s| s.of);
        if of != Some(shard.of) || part.source() != first.source() || part.options() != first.options() {
            return fail(format!("{} and {} are not parts of the same set", first.place(), part.place()));
        }
    }
    parts.sort_by_key(|p| p.shard().map(|s| s.part));
    for part in 1..=shard.of {
        let found: Vec<_> = parts.iter().filter(|p| p.shard().is_some_and(|s| s.part == part)).collect();
        match found[..] {
            [_] => {}
            [] => return fail(format!("part {part}/{} is missing", shard.of)),
            [a, b, ..] => {
                return fail(format!("{} and {} are both part {part}/{}", a.place(), b.place(), shard.of));
            }
        }
    }
    Ok(parts)
}

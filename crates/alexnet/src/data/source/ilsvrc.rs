//! ILSVRC-2012 and ILSVRC-2010 as downloaded: archives of training pictures (a tar of one tar for each synset), of
//! validation and test pictures, and the development kit. Layout: the kits' readme.txt.
//!
//! A class is a synset without children, in the order of ILSVRC's own ids: label = id - 1.

use super::devkit::{self, Devkit};
use super::reader::ReadAt;
use super::shelf::{self, Shelf};
use super::tar_index::{self, Found, Member};
use super::{Entry, Format, Listing, Place, Tell};
use crate::data::split::Split;
use crate::error::{Error, Result, nearest};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Most threads that walk archives; more wait for the disk.
const MAX_THREADS: usize = 16;
/// A development kit is a few MiB.
const MAX_KIT_FILE_BYTES: u64 = 64 << 20;

/// The names of one year's files.
struct Year {
    name: &'static str,
    train: &'static str,
    val: &'static str,
    test: &'static str,
    devkit: &'static str,
    /// Within the development kit.
    val_truth: &'static str,
    /// Beside the archives, where the classes of the test pictures were published.
    test_truth: Option<&'static str>,
    /// Pictures that replace damaged ones.
    patches: Option<&'static str>,
    id_field: &'static str,
}

const YEARS: [Year; 2] = [
    Year {
        name: "ILSVRC2012",
        train: "ILSVRC2012_img_train.tar",
        val: "ILSVRC2012_img_val.tar",
        test: "ILSVRC2012_img_test.tar",
        devkit: "ILSVRC2012_devkit_t12.tar.gz",
        val_truth: "data/ILSVRC2012_validation_ground_truth.txt",
        test_truth: None,
        patches: None,
        id_field: "ILSVRC2012_ID",
    },
    Year {
        name: "ILSVRC2010",
        train: "ILSVRC2010_images_train.tar",
        val: "ILSVRC2010_images_val.tar",
        test: "ILSVRC2010_images_test.tar",
        devkit: "ILSVRC2010_devkit-1.0.tar.gz",
        val_truth: "data/ILSVRC2010_validation_ground_truth.txt",
        test_truth: Some("ILSVRC2010_test_ground_truth.txt"),
        patches: Some("patch_images.tar"),
        id_field: "ILSVRC2010_ID",
    },
];

/// Whether a file has the name of one of ILSVRC's archives.
pub fn is_archive(name: &str) -> bool {
    YEARS.iter().any(|y| [y.train, y.val, y.test].contains(&name))
}

/// Whether a folder holds files of ILSVRC.
pub fn recognise(folder: &Path) -> bool {
    YEARS.iter().any(|y| [y.train, y.val, y.devkit].iter().any(|name| folder.join(name).is_file()))
}

/// Lists a folder with the archives of a year, training and validation; or one archive alone, with the development
/// kit beside it.
///
/// # Errors
/// [`Error::Data`] naming the file that is missing or wrong.
pub fn list(root: &Path, tell: Tell) -> Result<Listing> {
    let (base, only) = shelf::base_of(root);
    if !base.join(only.as_deref().unwrap_or(Path::new(""))).exists() {
        return Err(Error::Data(format!("no such folder or file: {}", root.display())));
    }
    let only = only.as_ref().map(|name| name.to_string_lossy().into_owned());
    let mut source = Source { year: year_of(&base, only.as_deref(), root)?, shelf: Shelf::new(&base), tell };
    let kit = source.devkit()?;
    let year = source.year;
    match only.as_deref() {
        None => {
            // What is missing is said before an hour of reading.
            source.expect(year.train, "the training pictures")?;
            source.expect(year.val, "the validation pictures")?;
            source.flat(year.val, &kit.val_truth, Some(Split::Val))?;
            source.train(&kit)?;
        }
        Some(name) if name == year.train => source.train(&kit)?,
        Some(name) if name == year.val => source.flat(year.val, &kit.val_truth, None)?,
        Some(_) => {
            let truth = source.test_truth(&kit)?;
            source.flat(year.test, &truth, None)?;
        }
    }
    source.patches()?;
    source.shelf.finish(Format::Ilsvrc, root, kit.class_names())
}

/// The year whose files are there.
fn year_of(base: &Path, only: Option<&str>, root: &Path) -> Result<&'static Year> {
    if let Some(name) = only {
        let named = YEARS.iter().find(|y| [y.train, y.val, y.test].contains(&name));
        return named.ok_or_else(|| {
            let all = YEARS.iter().flat_map(|y| [y.train, y.val, y.test]);
            let near = nearest(name, all).map(|n| format!("; its name should be {n}")).unwrap_or_default();
            Error::Data(format!("{} is not an archive of ILSVRC by its name{near}", root.display()))
        });
    }
    let there = |y: &Year| [y.train, y.val, y.devkit].iter().filter(|n| base.join(n).is_file()).count();
    let year = YEARS.iter().rev().max_by_key(|y| there(y)).expect("two years");
    if there(year) > 0 {
        return Ok(year);
    }
    let y = &YEARS[0];
    Err(Error::Data(format!(
        "{} holds none of ILSVRC's files; expected {}, {} and {} (or those of 2010), as downloaded",
        base.display(),
        y.train,
        y.val,
        y.devkit
    )))
}

struct Source<'a> {
    year: &'static Year,
    shelf: Shelf,
    tell: Tell<'a>,
}

impl Source<'_> {
    /// The path of a file that must be there.
    fn expect(&self, name: &str, what: &str) -> Result<PathBuf> {
        let path = self.shelf.base.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let others: Vec<String> = std::fs::read_dir(&self.shelf.base)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        let near = nearest(name, others.iter().map(String::as_str));
        let near = near.map(|n| format!("; {n} is there, is it meant?")).unwrap_or_default();
        Err(Error::Data(format!(
            "{}: {name} is missing ({what} of {}, as downloaded){near}",
            self.shelf.base.display(),
            self.year.name
        )))
    }

    fn devkit(&mut self) -> Result<Devkit> {
        let path = self.expect(self.year.devkit, "the development kit, with the order of the classes,")?;
        let bytes = shelf::read_small(&path, MAX_KIT_FILE_BYTES)?;
        self.shelf.open(Path::new(self.year.devkit))?;
        devkit::read(&bytes, self.year.id_field, self.year.val_truth)
            .map_err(|why| Error::Data(format!("{}: {why}; download it again", path.display())))
    }

    fn test_truth(&mut self, kit: &Devkit) -> Result<Vec<u32>> {
        let Some(name) = self.year.test_truth else {
            return Err(Error::Data(format!(
                "{}: the classes of {}'s test pictures were never published; give {} to measure with",
                self.shelf.base.join(self.year.test).display(),
                self.year.name,
                self.year.val
            )));
        };
        let path = self.expect(name, "the classes of the test pictures")?;
        let text = shelf::read_small(&path, shelf::MAX_TEXT_BYTES)?;
        self.shelf.open(Path::new(name))?;
        devkit::ground_truth(&text, kit.wnids.len())
            .map_err(|why| Error::Data(format!("{}: {why}", path.display())))
    }

    /// The members of an archive in this folder.
    fn members(&mut self, name: &str) -> Result<(u32, std::fs::File, Vec<Member>)> {
        let (index, file) = self.shelf.open(Path::new(name))?;
        let bytes = self.shelf.files[index as usize].bytes;
        let mut members = Vec::new();
        let shelf = &mut self.shelf;
        tar_index::walk(&file, 0, bytes, &mut |found| {
            match found {
                Found::Member(member) => members.push(member),
                Found::Passed(inside, why) => shelf.skip(Path::new(name).join(inside), why),
            }
            Ok(())
        })
        .map_err(|why| {
            Error::Data(format!("{}: {why}; download it again", shelf.base.join(name).display()))
        })?;
        Ok((index, file, members))
    }

    /// The archive of archives.
    fn train(&mut self, kit: &Devkit) -> Result<()> {
        let name = self.year.train;
        let path = self.expect(name, "the training pictures")?;
        let (index, file, members) = self.members(name)?;
        let fail = |why: String| Error::Data(format!("{}: {why}", path.display()));
        let class_of: HashMap<&str, u32> =
            kit.wnids.iter().enumerate().map(|(i, w)| (w.as_str(), i as u32)).collect();
        let mut classes: Vec<Option<Member>> = vec![None; kit.wnids.len()];
        let mut others = Vec::new();
        for member in members {
            let stem = Some(&member.path).filter(|p| p.extension().is_some_and(|e| e == "tar"));
            let wnid = stem.and_then(|p| p.file_stem()?.to_str());
            match wnid.and_then(|w| class_of.get(w)) {
                Some(&class) if classes[class as usize].is_some() => {
                    return Err(fail(format!("{} occurs twice in it", member.path.display())));
                }
                Some(&class) => classes[class as usize] = Some(member),
                None => others.push(member.path),
            }
        }
        if classes.iter().all(Option::is_none) {
            let found = others.first().map_or("nothing".into(), |p| p.display().to_string());
            return Err(fail(format!(
                "not the archive that was expected: one tar for each synset ({}.tar, ...) should be in it, and there \
                 is {found}",
                kit.wnids.first().map_or("n01440764", String::as_str)
            )));
        }
        let missing: Vec<String> = kit
            .wnids
            .iter()
            .zip(&classes)
            .filter(|(_, m)| m.is_none())
            .map(|(w, _)| format!("{w}.tar"))
            .collect();
        if !missing.is_empty() {
            return Err(fail(format!(
                "{} of {} synsets are missing in it: {}{}; it is not the whole archive",
                missing.len(),
                kit.wnids.len(),
                missing.iter().take(3).cloned().collect::<Vec<_>>().join(", "),
                if missing.len() > 3 { ", ..." } else { "" }
            )));
        }
        for other in others {
            self.shelf.skip(Path::new(name).join(other), "not the archive of one of the synsets");
        }
        // As they lie in the file, so that packing reads it from one end to the other.
        let mut order: Vec<(u32, Member)> =
            classes.into_iter().enumerate().filter_map(|(c, m)| Some((c as u32, m?))).collect();
        order.sort_by_key(|(_, m)| m.offset);
        for ((class, member), found) in order.iter().zip(walk_all(&file, &order, &mut *self.tell)) {
            let wnid = &kit.wnids[*class as usize];
            let found = found.map_err(|why| {
                Error::Data(format!("{}, in it {}: {why}", path.display(), member.path.display()))
            })?;
            for inside in found {
                match inside {
                    Found::Member(m) => self.shelf.entries.push(Entry {
                        path: Path::new("train").join(wnid).join(m.path),
                        class: *class,
                        split: Some(Split::Train),
                        place: Place::Part { file: index, offset: m.offset, bytes: m.bytes },
                    }),
                    Found::Passed(inside, why) => {
                        self.shelf.skip(Path::new(name).join(&member.path).join(inside), why);
                    }
                }
            }
        }
        Ok(())
    }

    /// An archive of pictures whose names end in their numbers, and the class of each number.
    fn flat(&mut self, name: &str, truth: &[u32], split: Option<Split>) -> Result<()> {
        let what = if name == self.year.val { "validation" } else { "test" };
        let path = self.expect(name, &format!("the {what} pictures"))?;
        let (index, _, members) = self.members(name)?;
        let fail = |why: String| Error::Data(format!("{}: {why}", path.display()));
        let mut seen = vec![false; truth.len()];
        let count = members.len();
        let prefix = format!("{}_{}", self.year.name, if what == "test" { "test_" } else { "val_" });
        for member in members {
            let file_name = member.path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let number = file_name.strip_prefix(&prefix).and_then(|rest| {
                rest.split('.')
                    .next()
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?
                    .parse()
                    .ok()
            });
            let Some(number) = number else {
                return Err(fail(format!(
                    "not the archive that was expected: pictures called {prefix}00000001.JPEG and so on should be in \
                     it, and there is {}",
                    member.path.display()
                )));
            };
            let place = Place::Part { file: index, offset: member.offset, bytes: member.bytes };
            let number: usize = number;
            match number.checked_sub(1).and_then(|i| seen.get_mut(i).map(|seen| (i, seen))) {
                Some((i, seen)) if !*seen => {
                    *seen = true;
                    let path = Path::new(if what == "test" { "test" } else { "val" }).join(file_name);
                    self.shelf.entries.push(Entry { path, class: truth[i], split, place });
                }
                Some(_) => return Err(fail(format!("{file_name} occurs twice in it"))),
                None => {
                    return Err(fail(format!(
                        "{file_name}, and the ground truth has {} lines for {count} pictures; archive and \
                         development kit do not belong together",
                        truth.len()
                    )));
                }
            }
        }
        if count != truth.len() {
            return Err(fail(format!(
                "{count} pictures, and the ground truth has {} lines; the archive is not complete, or does not \
                 belong to the development kit",
                truth.len()
            )));
        }
        Ok(())
    }

    /// Replaces the pictures of 2010 that were published damaged, if the archive of their replacements is there.
    fn patches(&mut self) -> Result<()> {
        let Some(name) = self.year.patches.filter(|name| self.shelf.base.join(name).is_file()) else {
            return Ok(());
        };
        let (index, _, members) = self.members(name)?;
        let by_name: HashMap<_, _> =
            members.iter().filter_map(|m| Some((m.path.file_name()?.to_owned(), m))).collect();
        for entry in &mut self.shelf.entries {
            if let Some(m) = entry.path.file_name().and_then(|n| by_name.get(n)) {
                entry.place = Place::Part { file: index, offset: m.offset, bytes: m.bytes };
            }
        }
        Ok(())
    }
}

/// Walks the archives in an archive, several at a time; what each holds, in order.
fn walk_all(
    file: &(dyn ReadAt + Sync),
    archives: &[(u32, Member)],
    tell: Tell,
) -> Vec<std::result::Result<Vec<Found>, String>> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
    let mut results: Vec<_> = archives.iter().map(|_| Ok(Vec::new())).collect();
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        for _ in 0..threads.min(archives.len()) {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                while let Some((i, (_, archive))) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|i| archives.get(i).map(|archive| (i, archive)))
                {
                    let mut found = Vec::new();
                    let walked = tar_index::walk(file, archive.offset, archive.bytes, &mut |f| {
                        found.push(f);
                        Ok(())
                    });
                    if send.send((i, walked.map(|()| found))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        for (done, (i, found)) in receive.iter().enumerate() {
            results[i] = found;
            tell(done + 1, archives.len());
        }
    });
    results
}

//! A folder for each class.

use super::super::decode::{check_regular, io_reason, sniff};
use super::shelf::Shelf;
use super::{Entry, Format, Listing, PICTURE_EXTENSIONS, Place, Skipped, modified_ns, printable};
use crate::data::split::Split;
use crate::error::{Error, Result, nearest};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Names that the two sides of a split go by; the first of each that exists is taken.
const TRAIN_NAMES: [&str; 2] = ["train", "training"];
const VAL_NAMES: [&str; 5] = ["val", "valid", "validation", "test", "testing"];
/// Folders within folders within a class.
const MAX_DEPTH: usize = 32;

/// Lists a folder of class folders, with or without `train/` and `val/` above them. Names that begin with a dot are
/// ignored. Symbolic links are followed, but not in circles.
///
/// # Errors
/// [`Error::Data`] if the path is wrong (naming a near one), at the wrong level (naming the right one), or holds
/// fewer than two classes with a picture.
pub fn list_folder(root: &Path) -> Result<Listing> {
    check_root(root)?;
    let mut walk = Walk { root: root.to_path_buf(), skipped: Vec::new(), ancestors: Vec::new() };
    let top = walk.read(root, Path::new(""))?;
    let folder = |names: &[&str]| {
        names.iter().find_map(|n| top.iter().find(|e| e.is_dir && e.name.eq_ignore_ascii_case(n)))
    };
    let sides = match (folder(&TRAIN_NAMES), folder(&VAL_NAMES)) {
        (Some(train), Some(val)) => {
            let [inside_train, inside_val] = [walk.read_child(train)?, walk.read_child(val)?];
            let has_folders = |inside: &[Found]| inside.iter().any(|e| e.is_dir);
            if !has_folders(&inside_train) || !has_folders(&inside_val) {
                return Err(Error::Data(format!(
                    "{}: {}/ and {}/ must hold one folder for each class, and {} holds none; if they are themselves \
                     the two classes, give them other names",
                    root.display(),
                    train.path.display(),
                    val.path.display(),
                    if has_folders(&inside_train) { val.path.display() } else { train.path.display() },
                )));
            }
            for other in top.iter().filter(|e| !std::ptr::eq(*e, train) && !std::ptr::eq(*e, val)) {
                walk.skip(&other.path, "beside the train and validation folders");
            }
            vec![(Some(Split::Train), inside_train), (Some(Split::Val), inside_val)]
        }
        (Some(only), None) | (None, Some(only)) if top.iter().filter(|e| e.is_dir).count() == 1 => {
            return Err(Error::Data(format!(
                "{}: there is only {}/ in it, which is no class; {} was probably meant, or the other half of the \
                 split is missing",
                root.display(),
                only.path.display(),
                root.join(&only.path).display()
            )));
        }
        _ => vec![(None, top)],
    };
    gather(walk, sides)
}

/// Collects the pictures of the class folders of each side.
fn gather(mut walk: Walk, sides: Vec<(Option<Split>, Vec<Found>)>) -> Result<Listing> {
    // By name, so that the two sides agree on the classes.
    let mut by_class: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    let mut empty = Vec::new();
    let mut loose = 0;
    for (split, top) in sides {
        for found in top {
            if !found.is_dir {
                loose += 1;
                walk.skip(&found.path, "not in a class folder");
                continue;
            }
            let mut entries = Vec::new();
            walk.pictures(&found, split, &mut entries)?;
            if entries.is_empty() {
                walk.skip(&found.path, "an empty class folder: no pictures in it");
                empty.push(found.name);
            } else if split == Some(Split::Val) && !by_class.contains_key(&found.name) {
                walk.skip(&found.path, "a class without training pictures");
            } else {
                by_class.entry(found.name).or_default().extend(entries);
            }
        }
    }
    let root = walk.root;
    if by_class.len() < 2 {
        return Err(too_few_classes(&root, &by_class, &empty, loose));
    }
    let classes: Vec<String> = by_class.keys().cloned().collect();
    let mut entries = Vec::new();
    for (class, (_, members)) in by_class.into_iter().enumerate() {
        entries.extend(members.into_iter().map(|e| Entry { class: class as u32, ..e }));
    }
    entries.sort_by(|a, b| a.path.as_os_str().as_encoded_bytes().cmp(b.path.as_os_str().as_encoded_bytes()));
    let base = root.clone();
    let skipped = walk.skipped;
    Ok(Listing { format: Format::Folder, root, base, classes, entries, files: Vec::new(), skipped })
}

/// Says what is wrong with a folder of fewer than two classes, and which folder was probably meant.
fn too_few_classes(
    root: &Path,
    found: &BTreeMap<String, Vec<Entry>>,
    empty: &[String],
    loose: usize,
) -> Error {
    let here = root.display();
    let hint = "expected one folder for each class with its pictures in it";
    if let Some((name, entries)) = found.iter().next() {
        // All pictures of the only class lie in folders within it: one level too high.
        let deeper = entries.iter().all(|e| e.path.components().count() >= 3);
        let folders: std::collections::BTreeSet<_> =
            entries.iter().map(|e| e.path.components().nth(1)).collect();
        if deeper && folders.len() >= 2 {
            return Error::Data(format!(
                "{here} holds a single folder, {name}, with {} folders in it; {} was probably meant",
                folders.len(),
                root.join(name).display()
            ));
        }
        let also = match empty {
            [] => String::new(),
            names => format!(" (without a picture: {})", names.join(", ")),
        };
        return Error::Data(format!(
            "{here} holds pictures of one class only, {name}{also}; at least two are needed"
        ));
    }
    if !empty.is_empty() {
        return Error::Data(format!(
            "{here} holds no pictures: {} folders without any ({}); {hint}",
            empty.len(),
            empty.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        ));
    }
    if loose > 0 {
        let parent = std::path::absolute(root).ok().and_then(|p| p.parent().map(Path::to_path_buf));
        let meant = parent.map(|p| format!("; if this is one class, {} was probably meant", p.display()));
        return Error::Data(format!(
            "{here} holds {loose} files and no class folders: {hint}{}",
            meant.unwrap_or_default()
        ));
    }
    Error::Data(format!("{here} is empty: {hint}"))
}

/// Whether the root is a folder; if not, what was probably meant.
fn check_root(root: &Path) -> Result<()> {
    let about = match std::fs::metadata(root) {
        Ok(about) => about,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let near =
                near_sibling(root).map(|p| format!("; did you mean {}?", p.display())).unwrap_or_default();
            return Err(Error::Data(format!("no such folder: {}{near}", root.display())));
        }
        Err(e) => return Err(Error::Data(format!("{}: {}", root.display(), io_reason(&e)))),
    };
    if about.is_dir() {
        return Ok(());
    }
    let archive = root.to_string_lossy().to_ascii_lowercase();
    let hint = if [".tar", ".gz", ".tgz", ".zip"].iter().any(|e| archive.ends_with(e)) {
        "unpack the archive first and give the folder"
    } else {
        "give the folder that holds the class folders"
    };
    Err(Error::Data(format!("{} is a file, not a folder: {hint}", root.display())))
}

/// The existing folder whose name is nearest to the first part of the path that does not exist.
fn near_sibling(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let missing = absolute.ancestors().take_while(|p| !p.exists()).last()?;
    let typed = missing.file_name()?.to_str()?.to_owned();
    let parent = missing.parent()?;
    let names: Vec<String> = std::fs::read_dir(parent)
        .ok()?
        .filter_map(|e| e.ok().filter(|e| e.path().is_dir())?.file_name().into_string().ok())
        .collect();
    let near = parent.join(nearest(&typed, names.iter().map(String::as_str))?);
    let rest = absolute.strip_prefix(missing).ok()?;
    let whole = if rest.as_os_str().is_empty() { near } else { near.join(rest) };
    // Given relative, answered relative.
    let shown = std::env::current_dir().ok().filter(|_| path.is_relative());
    let shown =
        shown.and_then(|here| whole.strip_prefix(here).map(Path::to_path_buf).ok()).unwrap_or(whole.clone());
    whole.is_dir().then_some(shown)
}

/// Something in a folder.
struct Found {
    /// Its own name; bytes that are not UTF-8 as `\xNN`.
    name: String,
    /// Relative to the root.
    path: PathBuf,
    is_dir: bool,
    about: Metadata,
}

struct Walk {
    root: PathBuf,
    skipped: Vec<Skipped>,
    /// The folders between the root and here, to notice circles.
    ancestors: Vec<PathBuf>,
}

impl Walk {
    fn skip(&mut self, path: &Path, reason: impl Into<String>) {
        self.skipped.push(Skipped { path: path.to_path_buf(), reason: reason.into() });
    }

    /// The visible contents of a folder, sorted by bytes. What cannot be examined is skipped.
    fn read(&mut self, folder: &Path, relative: &Path) -> Result<Vec<Found>> {
        let unreadable = |e: std::io::Error| Error::Data(format!("{}: {}", folder.display(), io_reason(&e)));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            names.push(entry.map_err(unreadable)?.file_name());
        }
        names.sort_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
        let mut found = Vec::new();
        for name in names {
            if ignored(&name) {
                continue;
            }
            let path = relative.join(&name);
            match std::fs::metadata(folder.join(&name)) {
                Ok(about) => {
                    found.push(Found { name: printable(&name), path, is_dir: about.is_dir(), about })
                }
                Err(e) => {
                    let link = folder.join(&name).is_symlink();
                    let reason = match e.kind() {
                        std::io::ErrorKind::NotFound if link => "a symbolic link to nothing".into(),
                        _ if link => format!("a symbolic link that leads nowhere ({})", io_reason(&e)),
                        _ => io_reason(&e),
                    };
                    self.skip(&path, reason);
                }
            }
        }
        Ok(found)
    }

    fn read_child(&mut self, found: &Found) -> Result<Vec<Found>> {
        let folder = self.root.join(&found.path);
        self.read(&folder, &found.path)
    }

    /// Adds the pictures in and below a folder.
    fn pictures(&mut self, folder: &Found, split: Option<Split>, entries: &mut Vec<Entry>) -> Result<()> {
        let full = self.root.join(&folder.path);
        let Ok(canonical) = full.canonicalize() else {
            self.skip(&folder.path, "cannot be opened");
            return Ok(());
        };
        // A link to the root, or to a folder that the root lies in, leads back here as well.
        let holds_root = self.root.canonicalize().is_ok_and(|r| r.starts_with(&canonical));
        if holds_root || self.ancestors.contains(&canonical) {
            self.skip(&folder.path, "a symbolic link in a circle");
            return Ok(());
        }
        if self.ancestors.len() >= MAX_DEPTH {
            self.skip(&folder.path, format!("more than {MAX_DEPTH} folders deep"));
            return Ok(());
        }
        let inside = match self.read_child(folder) {
            Ok(inside) => inside,
            Err(_) => {
                let reason = std::fs::read_dir(&full)
                    .err()
                    .map_or("changed while it was read".into(), |e| io_reason(&e));
                self.skip(&folder.path, reason);
                return Ok(());
            }
        };
        self.ancestors.push(canonical);
        for found in inside {
            if found.is_dir {
                self.pictures(&found, split, entries)?;
            } else if let Err(reason) =
                check_regular(&found.about).and_then(|()| self.looks_like_picture(&found))
            {
                self.skip(&found.path, reason);
            } else {
                let place = Place::File { bytes: found.about.len(), modified_ns: modified_ns(&found.about) };
                entries.push(Entry { path: found.path, class: 0, split, place });
            }
        }
        self.ancestors.pop();
        Ok(())
    }

    /// A file with a picture's extension is believed until it is decoded; others (no extension, notes, lists) are
    /// looked into.
    fn looks_like_picture(&self, found: &Found) -> std::result::Result<(), String> {
        let extension = found.path.extension().and_then(OsStr::to_str).unwrap_or("").to_ascii_lowercase();
        if PICTURE_EXTENSIONS.contains(&extension.as_str()) {
            return Ok(());
        }
        let mut head = Vec::new();
        std::fs::File::open(self.root.join(&found.path))
            .and_then(|f| f.take(64).read_to_end(&mut head))
            .map_err(|e| io_reason(&e))?;
        sniff(&head).map(drop).map_err(|_| "not a picture".into())
    }
}

/// The pictures in and below a folder of a source that is not a folder for each class: those of its `images/`, if it
/// has one.
pub(super) fn pictures_in(root: &Path, folder: &Path, shelf: &mut Shelf) -> Vec<(PathBuf, Place)> {
    let inner = folder.join("images");
    let path = if root.join(&inner).is_dir() { inner } else { folder.to_path_buf() };
    let mut walk = Walk { root: root.to_path_buf(), skipped: Vec::new(), ancestors: Vec::new() };
    let mut entries = Vec::new();
    match std::fs::metadata(root.join(&path)) {
        Ok(about) => {
            let found = Found { name: String::new(), path, is_dir: about.is_dir(), about };
            // Folders that cannot be read are among those skipped.
            let _ = walk.pictures(&found, None, &mut entries);
        }
        Err(e) => walk.skip(&path, io_reason(&e)),
    }
    walk.skipped.into_iter().for_each(|s| shelf.skip(s.path, s.reason));
    entries.into_iter().map(|e| (e.path, e.place)).collect()
}

/// Names that systems leave behind, and hidden ones.
fn ignored(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b".")
        || [&b"Thumbs.db"[..], b"desktop.ini", b"__MACOSX", b"__pycache__"]
            .iter()
            .any(|n| bytes.eq_ignore_ascii_case(n))
}

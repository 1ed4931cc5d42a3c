//! CIFAR-10 and CIFAR-100, binary version: records of one label byte (CIFAR-100: two, coarse and fine) and 32×32
//! pixels, the red ones first, then green, then blue. Layout: the data sets' page, "Binary version".

use super::reader::{ReadAt, open_regular};
use super::shelf::{self, Shelf};
use super::{Entry, Format, Listing, Place};
use crate::data::decode::Picture;
use crate::data::split::Split;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Side of the pictures, pixels.
pub const SIDE_PX: usize = 32;
/// Bytes of a picture.
pub const PICTURE_BYTES: usize = 3 * SIDE_PX * SIDE_PX;

/// The files of one of the two sets.
struct Kind {
    name: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    classes: &'static str,
    /// The folder in the download.
    folder: &'static str,
    label_bytes: u64,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "CIFAR-10",
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: "test_batch.bin",
        classes: "batches.meta.txt",
        folder: "cifar-10-batches-bin",
        label_bytes: 1,
    },
    Kind {
        name: "CIFAR-100",
        train: &["train.bin"],
        test: "test.bin",
        classes: "fine_label_names.txt",
        folder: "cifar-100-binary",
        label_bytes: 2,
    },
];

/// The folder with the binary files, and which set it is.
fn find(root: &Path) -> Option<(PathBuf, &'static Kind)> {
    KINDS.iter().find_map(|kind| {
        let holds =
            |folder: &Path| kind.train.iter().chain([&kind.test]).any(|name| folder.join(name).is_file());
        [root.to_path_buf(), root.join(kind.folder)].into_iter().find(|f| holds(f)).map(|f| (f, kind))
    })
}

/// Whether a folder holds CIFAR's binary files.
pub fn recognise(root: &Path) -> bool {
    find(root).is_some()
}

/// Lists a folder with the binary version of CIFAR-10 or CIFAR-100, or with the folder of the download.
///
/// # Errors
/// [`Error::Data`] naming the file that is missing or wrong.
pub fn list(root: &Path) -> Result<Listing> {
    let Some((base, kind)) = find(root) else {
        let python = ["data_batch_1", "cifar-10-batches-py", "cifar-100-python", "meta"];
        let hint = if python.iter().any(|n| root.join(n).exists()) {
            "; this is the Python version, download the binary one"
        } else {
            ""
        };
        return Err(Error::Data(format!(
            "{} holds no files of CIFAR; expected data_batch_1.bin to data_batch_5.bin, test_batch.bin and \
             batches.meta.txt (CIFAR-10), or train.bin, test.bin and fine_label_names.txt (CIFAR-100){hint}",
            root.display()
        )));
    };
    let needed = kind.train.iter().chain([&kind.test, &kind.classes]);
    let missing: Vec<&str> = needed.copied().filter(|name| !base.join(name).is_file()).collect();
    if !missing.is_empty() {
        return Err(Error::Data(format!(
            "{}: {} of {} {} missing",
            base.display(),
            missing.join(", "),
            kind.name,
            if missing.len() == 1 { "is" } else { "are" }
        )));
    }
    let text = shelf::read_text(&base.join(kind.classes), 1 << 20)?;
    let classes: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    let mut shelf = Shelf::new(&base);
    shelf.open(Path::new(kind.classes))?;
    let train = kind.train.iter().map(|name| (*name, Split::Train));
    for (name, split) in train.chain([(kind.test, Split::Val)]) {
        let file = open_regular(&base.join(name))
            .map_err(|why| Error::Data(format!("{}: {why}", base.join(name).display())))?;
        let (index, _) = shelf.open(Path::new(name))?;
        let bytes = shelf.files[index as usize].bytes;
        let found = labels(&file, bytes, kind.label_bytes, classes.len())
            .map_err(|why| Error::Data(format!("{}: {why}", base.join(name).display())))?;
        let stem = name.trim_end_matches(".bin");
        let record = kind.label_bytes + PICTURE_BYTES as u64;
        shelf.entries.extend(found.into_iter().enumerate().map(|(i, class)| Entry {
            path: Path::new(stem).join(format!("{i:05}")),
            class,
            split: Some(split),
            place: Place::Planes { file: index, offset: i as u64 * record + kind.label_bytes },
        }));
    }
    shelf.finish(Format::Cifar, root, classes)
}

/// The classes of the records of a file: the last label byte of each.
///
/// # Errors
/// A wrong size, or the record with a label out of range.
pub fn labels(
    file: &(impl ReadAt + ?Sized),
    bytes: u64,
    label_bytes: u64,
    classes: usize,
) -> std::result::Result<Vec<u32>, String> {
    let record = label_bytes + PICTURE_BYTES as u64;
    if bytes == 0 || !bytes.is_multiple_of(record) {
        return Err(format!(
            "{bytes} bytes are not a whole number of records of {record} bytes; download it again"
        ));
    }
    let mut labels = Vec::new();
    for i in 0..bytes / record {
        let mut label = [0];
        file.fill_at(&mut label, i * record + label_bytes - 1)?;
        if usize::from(label[0]) >= classes {
            return Err(format!("record {i} has the label {} among {classes} classes", label[0]));
        }
        labels.push(u32::from(label[0]));
    }
    Ok(labels)
}

/// The picture whose planes begin at an offset.
pub fn picture(file: &(impl ReadAt + ?Sized), offset: u64) -> std::result::Result<Picture, String> {
    let mut planes = vec![0; PICTURE_BYTES];
    file.fill_at(&mut planes, offset)?;
    let area = SIDE_PX * SIDE_PX;
    let pixels = (0..area).flat_map(|i| [planes[i], planes[area + i], planes[2 * area + i]]).collect();
    Ok(Picture { width: SIDE_PX, height: SIDE_PX, pixels })
}

//! Pictures named by path, decoded as they are needed: what `predict` and `features` read.

use super::views::mean_outputs;
use crate::data::decode::{decode_file, sniff};
use crate::data::pack::NewPicture;
use crate::data::resize::Squarer;
use crate::data::{Form, Keep, Pack, PackOptions, Preprocess, View};
use crate::error::{Error, Result, nearest};
use crate::exec::contract::Executor;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};

/// Pictures that are decoded together: 50 MB of squares of 256 pixels.
const CHUNK: usize = 256;
/// Folders within folders.
const MAX_DEPTH: usize = 32;
/// Files in a folder that have these extensions are taken for pictures without a look inside.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "jpe", "png", "gif", "bmp", "webp", "tif", "tiff"];

/// Receives a file with its output, or with the reason why it cannot be read.
pub type EachFile<'a> = dyn FnMut(&Path, std::result::Result<&[f32], &str>) -> Result<()> + 'a;

/// The pixels of a stored square, or why there are none.
type Square = std::result::Result<Vec<u8>, String>;

/// The pictures that paths stand for: files as given; of folders, everything in them that is a picture by name or
/// content, sorted, names that begin with a dot left out.
///
/// # Errors
/// [`Error::Data`] if a path does not exist or cannot be listed, or if there is no picture at all.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let about = std::fs::metadata(path).map_err(|e| missing(path, &e))?;
        if about.is_dir() {
            walk(path, &mut vec![], &mut files)?;
        } else {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        return Err(Error::Data(format!("there are no pictures in {}", names.join(", "))));
    }
    Ok(files)
}

fn missing(path: &Path, error: &std::io::Error) -> Error {
    if error.kind() != std::io::ErrorKind::NotFound {
        return Error::Data(format!("{}: {error}", path.display()));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let typed = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let hint = match nearest(&typed, names.iter().map(String::as_str)) {
        Some(near) => format!("; did you mean {}?", folder.join(near).display()),
        None => String::new(),
    };
    Error::Data(format!("no such file or folder: {}{hint}", path.display()))
}

/// `above` holds the real paths of the folders that are being walked, so that no link leads in a circle.
fn walk(folder: &Path, above: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> Result<()> {
    let fail = |e: std::io::Error| Error::Data(format!("{}: {e}", folder.display()));
    let real = folder.canonicalize().map_err(fail)?;
    if above.contains(&real) || above.len() >= MAX_DEPTH {
        return Ok(());
    }
    above.push(real);
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(folder).map_err(fail)?.collect();
    let mut names: Vec<_> = entries.map_err(fail)?.into_iter().map(|e| e.file_name()).collect();
    names.sort_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
    for name in names.iter().filter(|n| !n.as_encoded_bytes().starts_with(b".")) {
        let path = folder.join(name);
        match std::fs::metadata(&path) {
            Ok(about) if about.is_dir() => walk(&path, above, files)?,
            Ok(about) if about.is_file() && looks_like_a_picture(&path) => files.push(path),
            // Neither: a pipe, a dangling link, another kind of file.
            _ => {}
        }
    }
    above.pop();
    Ok(())
}

fn looks_like_a_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    EXTENSIONS.contains(&extension.as_str()) || {
        let mut head = Vec::new();
        std::fs::File::open(path).and_then(|f| f.take(64).read_to_end(&mut head)).is_ok()
            && sniff(&head).is_ok()
    }
}

/// Runs an executor for inference over views of picture files: `each` receives every file in order with its mean output,
/// or with the reason why it cannot be read. Decoding runs beside computing; no more than two pieces of 256 pictures are
/// in memory.
///
/// # Errors
/// As [`mean_outputs`].
pub fn outputs(
    executor: &mut dyn Executor,
    files: &[PathBuf],
    preprocess: &Arc<Preprocess>,
    views: &[View],
    threads: usize,
    each: &mut EachFile,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(1);
        scope.spawn(move || {
            for chunk in files.chunks(CHUNK) {
                // Fails if the other side gave up: then nobody waits for more.
                if send.send((chunk, decode(chunk, preprocess, threads))).is_err() {
                    break;
                }
            }
        });
        for (chunk, pack) in receive {
            let pack = Arc::new(pack?);
            let reasons: Vec<Option<&str>> = (0..chunk.len() as u32)
                .map(|i| pack.unreadable().iter().find(|u| u.index == i).map(|u| u.reason.as_str()))
                .collect();
            let pictures: Vec<u32> = (0..chunk.len() as u32).collect();
            let mut tell = |i: u32, output: Option<&[f32]>| {
                each(&chunk[i as usize], output.ok_or(reasons[i as usize].unwrap_or("it cannot be decoded")))
            };
            mean_outputs(executor, &pack, &pictures, preprocess, views, &mut tell)?;
        }
        Ok(())
    })
}

/// The files as a pack in memory, all of one nameless class.
fn decode(files: &[PathBuf], preprocess: &Preprocess, threads: usize) -> Result<Pack> {
    // Only the central view is taken, so that squares are enough.
    let options = PackOptions { keep: Keep::Square, form: Form::Raw, ..preprocess.pack_options() };
    let squares: Vec<OnceLock<Square>> = files.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, files.len()) {
            scope.spawn(|| {
                let mut squarer = Squarer::default();
                while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < files.len()) {
                    let square = decode_file(&files[i], options.exif)
                        .map(|picture| squarer.square(&picture, options.framing()));
                    // Every index is given out once.
                    let _ = squares[i].set(square);
                }
            });
        }
    });
    let pictures = files.iter().zip(squares).map(|(file, square)| NewPicture {
        path: file.display().to_string(),
        label: 0,
        split: None,
        pixels: square.into_inner().unwrap_or_else(|| Err("it was not decoded".into())),
    });
    Pack::from_pictures(vec![String::new()], &options, pictures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn folders_give_their_pictures_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("b/inner")).unwrap();
        file(&root.join("b/inner/2.JPG"), b"");
        file(&root.join("b/1.png"), b"");
        file(&root.join("a"), b"\x89PNG\r\n\x1a\n0000");
        file(&root.join("notes.txt"), b"no picture");
        file(&root.join(".hidden.jpg"), b"");
        #[cfg(unix)]
        std::os::unix::fs::symlink(root, root.join("b/loop")).unwrap();
        let found = expand(&[root.to_path_buf()]).unwrap();
        let names: Vec<_> = found.iter().map(|p| p.strip_prefix(root).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b/1.png", "b/inner/2.JPG"]);
        // A file is taken whatever it is called.
        assert_eq!(expand(&[root.join("notes.txt")]).unwrap().len(), 1);
    }

    #[test]
    fn wrong_paths_are_named_with_the_nearest_right_one() {
        let folder = tempfile::tempdir().unwrap();
        file(&folder.path().join("cat.jpg"), b"");
        let error = expand(&[folder.path().join("cst.jpg")]).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(
            error.to_string().contains("did you mean") && error.to_string().contains("cat.jpg"),
            "{error}"
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(expand(&[empty.path().to_path_buf()]).unwrap_err().to_string().contains("no pictures"));
    }
}

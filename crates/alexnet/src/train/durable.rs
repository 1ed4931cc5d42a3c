//! Writing a file so that whatever happens there is either the old file or the new one, whole.
//!
//! A new file is created beside the target (exclusively: no link is followed), written, flushed to the disk, read
//! back and checked, renamed over the target, and the folder is flushed too. A process that dies at any point leaves
//! at most a temporary file, which [`remove_leftovers`] takes away; a machine that loses power has the new file if
//! [`write()`] had returned, and otherwise the old one or the new one.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};

/// How names of temporary files begin.
const TEMPORARY: &str = ".writing-";

/// In test builds, ends the process here if the environment asks for this point: what a kill would leave is left.
#[inline]
pub fn fail_point(_name: &str) {
    #[cfg(test)]
    if std::env::var_os("ALEXNET_FAIL_POINT").is_some_and(|at| at == _name) {
        std::process::exit(99);
    }
}

/// A file that is being written beside the place where it will appear. Dropped before [`Pending::commit`], it leaves
/// nothing.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` once it is on its way to its place.
    out: Option<BufWriter<File>>,
}

impl Pending {
    /// Begins the file that will replace `path`.
    ///
    /// # Errors
    /// Any that the system reports; [`ErrorKind::WouldBlock`] if another process is writing the same file.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "not a file name"))?;
        let mut temporary_name = std::ffi::OsString::from(TEMPORARY);
        temporary_name.push(name);
        let temporary = folder_of(path).join(temporary_name);
        remove_leftover(&temporary)?;
        fail_point("before-write");
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        // Held until the file is closed. Some file systems have no locks: then nothing is guarded.
        let _ = file.try_lock();
        let out = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Pending { path: path.to_path_buf(), temporary, out })
    }

    /// Where to write.
    pub fn out(&mut self) -> &mut BufWriter<File> {
        self.out.as_mut().expect("only `commit`, which takes all of it, ends the writing")
    }

    /// Flushes the file to the disk, lets `check` read it (and refuse it), and puts it in its place.
    ///
    /// # Errors
    /// Any that the system reports, or that of `check`; the place is then as it was, and the temporary file is gone.
    pub fn commit(mut self, check: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.out().flush()?;
        fail_point("after-write");
        self.out().get_ref().sync_all()?;
        fail_point("after-fsync");
        check(&self.temporary)?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.out = None;
        fail_point("after-rename");
        sync_folder(folder_of(&self.path))?;
        fail_point("after-folder-fsync");
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            // What is in the buffer is not worth a write that may fail; a leftover is harmless.
            let _ = out.into_parts();
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes the temporary file of a process that died, but not that of one that is alive: it holds a lock.
fn remove_leftover(temporary: &Path) -> Result<()> {
    match std::fs::symlink_metadata(temporary) {
        Ok(about) if about.is_file() => {
            let held = |file: File| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock));
            if File::open(temporary).is_ok_and(held) {
                return Err(Error::new(ErrorKind::WouldBlock, "another process is writing it"));
            }
        }
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    std::fs::remove_file(temporary)
}

/// Replaces `path` by what `fill` writes. `check` receives the path of the finished temporary file and may refuse it.
///
/// # Errors
/// Any that the system reports, or that of `check`; `path` is then as it was, and the temporary file is gone.
pub fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let mut pending = Pending::create(path)?;
    fill(pending.out())?;
    pending.commit(check)
}

/// Replaces `path` by `bytes`, durably.
///
/// # Errors
/// As [`write()`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, |out| out.write_all(bytes), |_| Ok(()))
}

/// Makes names that were created, renamed or removed in `folder` survive a loss of power.
///
/// # Errors
/// Any that the system reports.
pub fn sync_folder(folder: &Path) -> Result<()> {
    // Windows cannot open a folder as a file; its journal orders renames itself.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Removes the temporary files that processes which died left in `folder`.
pub fn remove_leftovers(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let leftovers = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(TEMPORARY));
    leftovers.map(|e| e.path()).filter(|p| std::fs::remove_file(p).is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_bytes(&path, b"old").unwrap();
        let full = |_: &mut BufWriter<File>| Err(Error::from(ErrorKind::StorageFull));
        assert_eq!(write(&path, full, |_| Ok(())).unwrap_err().kind(), ErrorKind::StorageFull);
        let refuse = |p: &Path| {
            assert_eq!(std::fs::read(p).unwrap(), b"new");
            Err(Error::other("damaged"))
        };
        assert_eq!(write(&path, |out| out.write_all(b"new"), refuse).unwrap_err().to_string(), "damaged");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        write_bytes(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_at_the_temporary_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(format!("{TEMPORARY}f"))).unwrap();
        write_bytes(&dir.path().join("f"), b"new").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn two_writers_of_one_file_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut first = Pending::create(&path).unwrap();
        first.out().write_all(b"first").unwrap();
        assert_eq!(Pending::create(&path).unwrap_err().kind(), ErrorKind::WouldBlock);
        first.commit(|_| Ok(())).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        drop(Pending::create(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "dropped, it leaves nothing");
    }

    #[test]
    fn leftovers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{TEMPORARY}x")), b"half").unwrap();
        std::fs::write(dir.path().join("x"), b"whole").unwrap();
        assert_eq!(remove_leftovers(dir.path()).len(), 1);
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"whole");
    }
}

//! Fetching one file of known size and SHA-256: into `FILE.part`, from where an earlier attempt ended if the server can,
//! and renamed when every byte is right. A file that is not what was promised is never left under its name.

use alexnet::{Error, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file to fetch.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// What it is called on the command line.
    pub name: String,
    /// Where it lies.
    pub url: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256: 64 hexadecimal digits.
    pub sha256: String,
    /// What it is, in a line.
    #[serde(default)]
    pub about: String,
}

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 17;
/// Attempts that got nothing further before it gives up.
const ATTEMPTS: usize = 3;

/// Fetches `known` into `target`, unless it is there already. `progress` is told (bytes so far, bytes in all). True if
/// anything was fetched.
///
/// # Errors
/// [`Error::Data`] with the address and what is wrong.
pub fn fetch(known: &Known, target: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<bool> {
    let fail = |why: String| Error::Data(format!("{}: {why}", known.url));
    if known.sha256.len() != 64 || !known.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(fail("its SHA-256 in the table is not 64 hexadecimal digits".into()));
    }
    if target.is_file() {
        check(known, target).map_err(|why| {
            Error::Data(format!("{}: {why}; move it away to fetch it anew", target.display()))
        })?;
        return Ok(false);
    }
    let part = part_of(target);
    let local = |e: std::io::Error| Error::Data(format!("{}: {e}", part.display()));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(4 * 3600)))
        .user_agent(concat!("alexnet/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let mut without_gain = 0;
    loop {
        let have = std::fs::metadata(&part).map_or(0, |about| about.len());
        if have >= known.bytes {
            break;
        }
        match attempt(&agent, known, &part, have, progress) {
            Ok(()) => {}
            Err(Stop::Local(e)) => return Err(local(e)),
            Err(Stop::Final(why)) => return Err(fail(why)),
            Err(Stop::Broken(why)) => {
                let now = std::fs::metadata(&part).map_or(0, |about| about.len());
                without_gain = if now > have { 0 } else { without_gain + 1 };
                if without_gain >= ATTEMPTS {
                    return Err(fail(format!(
                        "{why}; {now} of {} bytes are kept, and the same command goes on from there",
                        known.bytes
                    )));
                }
            }
        }
    }
    if let Err(why) = check(known, &part) {
        // What is wrong from the beginning cannot be continued.
        std::fs::remove_file(&part).map_err(local)?;
        return Err(fail(format!("what was received is not what was published: {why}; it was deleted")));
    }
    File::open(&part).and_then(|file| file.sync_all()).map_err(local)?;
    std::fs::rename(&part, target).map_err(local)?;
    Ok(true)
}

/// The file of an unfinished download.
fn part_of(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    target.with_file_name(name)
}

/// Why an attempt ended.
enum Stop {
    /// Another attempt may get further.
    Broken(String),
    /// None will.
    Final(String),
    /// The disk's fault.
    Local(std::io::Error),
}

fn attempt(
    agent: &ureq::Agent,
    known: &Known,
    part: &Path,
    have: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> std::result::Result<(), Stop> {
    let mut request = agent.get(&known.url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(ureq::Error::StatusCode(416)) => {
            std::fs::remove_file(part).map_err(Stop::Local)?;
            return Err(Stop::Broken("the server has less than was received before".into()));
        }
        Err(ureq::Error::StatusCode(code)) if code < 500 => {
            return Err(Stop::Final(format!("the server answers {code}")));
        }
        Err(error) => return Err(Stop::Broken(error.to_string())),
    };
    let resumed = match response.status().as_u16() {
        206 => {
            let range =
                response.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
            if !range.starts_with(&format!("bytes {have}-")) {
                return Err(Stop::Final(format!("the server sent the part {range:?}, not that from {have}")));
            }
            true
        }
        // The whole file, from a server that cannot send parts.
        _ => false,
    };
    let mut got = if resumed { have } else { 0 };
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(resumed)
        .truncate(!resumed)
        .open(part)
        .map_err(Stop::Local)?;
    let mut body = response.into_body().into_reader();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match body.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                got += n as u64;
                if got > known.bytes {
                    drop(file);
                    std::fs::remove_file(part).map_err(Stop::Local)?;
                    return Err(Stop::Final(format!(
                        "the server sends more than the {} bytes published",
                        known.bytes
                    )));
                }
                file.write_all(&piece[..n]).map_err(Stop::Local)?;
                progress(got, known.bytes);
            }
            Err(error) => return Err(Stop::Broken(error.to_string())),
        }
    }
    if got < known.bytes { Err(Stop::Broken("the connection ended early".into())) } else { Ok(()) }
}

/// Why the file is not the one that is known, if it is not.
fn check(known: &Known, path: &Path) -> std::result::Result<(), String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    if length != known.bytes {
        return Err(format!("it has {length} bytes, not {}", known.bytes));
    }
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(|e| e.to_string())? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(&known.sha256) {
        Ok(())
    } else {
        Err(format!("its SHA-256 is {found}, not {}", known.sha256))
    }
}

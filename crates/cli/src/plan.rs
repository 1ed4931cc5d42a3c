//! What the arguments mean.

use alexnet::{Error, Network, Result, zoo};
use std::path::Path;

/// The network that `--net` or `nets NAME` names: a file if it looks like one, else one of the zoo. `classes`
/// replaces the number of outputs; without it, the network keeps its own (a file's) or ImageNet's.
pub fn network(typed: &str, classes: Option<usize>) -> Result<Network> {
    let own = match names_file(typed) {
        true => Network::from_toml(&read_text(Path::new(typed), "network")?, typed)?,
        false => zoo::by_name(typed, classes.unwrap_or_else(|| default_classes(typed)))?,
    };
    Ok(match classes {
        Some(classes) => own.with_classes(classes),
        None => own,
    })
}

fn default_classes(name: &str) -> usize {
    zoo::all().iter().find(|net| net.name == name).map_or(zoo::IMAGENET_CLASSES, Network::classes)
}

/// Whether a word that may be a name or a file is a file: it has a folder or `.toml` in it.
pub fn names_file(typed: &str) -> bool {
    typed.contains(std::path::MAIN_SEPARATOR) || typed.ends_with(".toml")
}

/// The text of a configuration file, at most a megabyte of it.
pub fn read_text(path: &Path, what: &str) -> Result<String> {
    use std::io::Read;
    const LIMIT_BYTES: u64 = 1 << 20;
    let fail = |why: String| Error::Config(format!("cannot read the {what} {}: {why}", path.display()));
    let meta = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?;
    if !meta.is_file() {
        return Err(fail("it is not a file".into()));
    }
    let file = std::fs::File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut text = String::new();
    file.take(LIMIT_BYTES + 1).read_to_string(&mut text).map_err(|e| fail(e.to_string()))?;
    if text.len() as u64 > LIMIT_BYTES {
        return Err(fail("it is longer than a megabyte".into()));
    }
    Ok(text)
}

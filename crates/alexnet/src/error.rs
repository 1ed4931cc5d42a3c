//! The library's one error type. An error says what, where, why, and what to do; its kind decides the
//! program's exit code.

/// Everything that can go wrong, by what the user can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, a network, a recipe or a configuration key is wrong.
    #[error("{}", shown(.0))]
    Config(String),
    /// The pictures cannot be used: missing, at the wrong level, too many unreadable.
    #[error("{}", shown(.0))]
    Data(String),
    /// A checkpoint or weight file is missing, damaged or does not fit.
    #[error("{}", shown(.0))]
    Checkpoint(String),
    /// Training produced a value that is not finite.
    #[error("{}", shown(.0))]
    Diverged(String),
    /// The device cannot run the plan: memory, instructions, driver.
    #[error("{}", shown(.0))]
    Device(String),
    /// A signal asked to stop; a durable checkpoint was written first.
    #[error("{}", shown(.0))]
    Interrupted(String),
}

/// A message as it may be shown. Names and values in it can come from a file that somebody else made: control characters,
/// with which a file could rewrite what stands on the terminal, are escaped.
fn shown(message: &str) -> std::borrow::Cow<'_, str> {
    let unwanted = |c: char| c.is_control() && c != '\n';
    if !message.contains(unwanted) {
        return message.into();
    }
    let mut clean = String::with_capacity(message.len());
    for c in message.chars() {
        match c {
            c if unwanted(c) => clean.extend(c.escape_default()),
            c => clean.push(c),
        }
    }
    clean.into()
}

/// `Result` with this library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The program's exit code: 2 configuration, 3 data, 4 checkpoint, 5 diverged, 6 device, 75 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => 2,
            Error::Data(_) => 3,
            Error::Checkpoint(_) => 4,
            Error::Diverged(_) => 5,
            Error::Device(_) => 6,
            Error::Interrupted(_) => 75,
        }
    }
}

/// The candidate nearest to `typed` by edit distance, if it is near enough to be a likely typo
/// (at most a third of the typed length, and at least one edit is always forgiven).
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (typed.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|c| (edit_distance(typed, c), c))
        .filter(|&(d, _)| d <= limit)
        .min_by_key(|&(d, _)| d)
        .map(|(_, c)| c)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_forgives_typos_and_nothing_more() {
        let names = ["alexnet-2012", "caffenet", "zfnet"];
        assert_eq!(nearest("cafenet", names), Some("caffenet"));
        assert_eq!(nearest("alexnet-2021", names), Some("alexnet-2012"));
        assert_eq!(nearest("resnet50", names), None);
    }

    #[test]
    fn control_characters_are_escaped() {
        let shown = Error::Data("no class \u{1b}[2J\r here,\nnor é".into()).to_string();
        assert_eq!(shown, "no class \\u{1b}[2J\\r here,\nnor é");
    }

    #[test]
    fn edit_distance_of_known_pairs() {
        for (a, b, d) in [("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("same", "same", 0)]
        {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
        }
    }
}

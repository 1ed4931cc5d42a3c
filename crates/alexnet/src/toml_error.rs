//! Errors of TOML files, said as file, line, what is wrong, and the nearest valid name.

use crate::error::{Error, nearest};
use std::ops::Range;

/// The number of the line (from 1) of the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

/// An error about the piece `span` of `text`, which was read from `origin` (a path, or what else it came from).
pub fn at(text: &str, origin: &str, span: Option<Range<usize>>, message: &str) -> Error {
    match span {
        Some(span) => Error::Config(format!("{origin}:{}: {message}", line_of(text, span.start))),
        None => Error::Config(format!("{origin}: {message}")),
    }
}

/// A parser's or deserializer's error, with its place and, for an unknown key or word, the nearest valid one.
pub fn explain(text: &str, origin: &str, error: &toml::de::Error) -> Error {
    at(text, origin, error.span(), &plain(error.message()))
}

/// serde's wording of unknown names, "unknown field `x`, expected one of `a`, `b`", made shorter and more helpful.
fn plain(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let what = match message.split_once(' ') {
        Some(("unknown", rest)) if rest.starts_with("field") => "key",
        Some(("unknown", rest)) if rest.starts_with("variant") => "value",
        _ => return message.trim_end().replace('\n', "; "),
    };
    let typed = quoted.next().unwrap_or_default();
    let valid: Vec<&str> = quoted.collect();
    unknown(what, typed, &valid)
}

/// "unknown key `x`" with the nearest valid name, or with all of them.
pub fn unknown(what: &str, typed: &str, valid: &[&str]) -> String {
    match nearest(typed, valid.iter().copied()) {
        Some(near) => format!("unknown {what} `{typed}`; did you mean `{near}`?"),
        None if valid.is_empty() => format!("unknown {what} `{typed}`"),
        None => format!("unknown {what} `{typed}`; valid are {}", valid.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_s_words_become_hints() {
        assert_eq!(
            plain("unknown field `filter`, expected one of `filters`, `kernel`"),
            "unknown key `filter`; did you mean `filters`?"
        );
        assert_eq!(
            plain("unknown variant `up`, expected `floor` or `ceil`"),
            "unknown value `up`; valid are floor, ceil"
        );
        assert_eq!(plain("missing field `kernel`"), "missing field `kernel`");
    }

    #[test]
    fn lines_count_from_one() {
        assert_eq!(line_of("a\nb\nc", 0), 1);
        assert_eq!(line_of("a\nb\nc", 4), 3);
        assert_eq!(line_of("a", 99), 1);
    }
}

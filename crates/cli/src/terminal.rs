//! Printing for people: tables, numbers, and a place for text that gives way to `--json`.

use std::io::{self, IsTerminal, Write};

/// Where the words of a command go: standard output, or standard error when a program reads the answer there.
pub struct Words {
    to_stderr: bool,
}

impl Words {
    /// Standard output, unless `json` is wanted there.
    pub fn new(json: bool) -> Self {
        Words { to_stderr: json }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// If it cannot be written to standard output. A lost standard error is no error.
    pub fn line(&self, text: &str) -> io::Result<()> {
        if self.to_stderr {
            complain(text);
            Ok(())
        } else {
            print_line(text)
        }
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// If it cannot be written; a broken pipe among other things.
pub fn print_line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Writes a line to standard error, if there is one.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether progress can be drawn: standard error is a terminal that can move its cursor.
pub fn can_draw() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Rows as aligned columns, two spaces apart. `right` says which columns are aligned to the right.
pub fn table(rows: &[Vec<String>], right: &[bool]) -> String {
    let width = |text: &String| text.chars().count();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..columns).map(|c| rows.iter().filter_map(|r| r.get(c)).map(width).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[c] - width(cell));
            let (before, after) =
                if right.get(c) == Some(&true) { (space.as_str(), "") } else { ("", space.as_str()) };
            line.push_str(if c > 0 { "  " } else { "" });
            line.push_str(before);
            line.push_str(cell);
            line.push_str(after);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

/// The end of a text that may be at most `columns` characters long, with an ellipsis for what is left out before it: of
/// paths, the end tells them apart.
pub fn ending(text: &str, columns: usize) -> String {
    match text.chars().count().checked_sub(columns) {
        None | Some(0) => text.to_string(),
        Some(over) => std::iter::once('…').chain(text.chars().skip(over + 1)).collect(),
    }
}

/// The beginning of a text that may be at most `columns` characters long, with an ellipsis for what is left out.
pub fn beginning(text: &str, columns: usize) -> String {
    match text.chars().count() > columns {
        false => text.to_string(),
        true => text.chars().take(columns.saturating_sub(1)).chain(std::iter::once('…')).collect(),
    }
}

/// Digits in groups of three: `60,965,224`.
pub fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "1 picture", "2 pictures".
pub fn plural(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// Bytes in the unit that a person reads.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (0..units.len()).rev().find(|&p| n >= 1 << (10 * p)).unwrap_or(0);
    let value = n as f64 / (1u64 << (10 * power)) as f64;
    if power == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[power]) }
}

/// A fraction as per cent with two decimals: `18.20 %`.
pub fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// A time that a person reads: `42 s`, `3 min 07 s`, `5 h 12 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(60_965_224), "60,965,224");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(percent(0.182), "18.20 %");
        assert_eq!(duration(59.6), "1 min 00 s");
        assert_eq!(duration(7387.0), "2 h 03 min");
        assert_eq!(plural(1, "class", "classes"), "1 class");
        assert_eq!((ending("a/bc/d", 4), beginning("abcdef", 4)), ("…c/d".into(), "abc…".into()));
        assert_eq!((ending("abcd", 4), beginning("abcd", 4)), ("abcd".into(), "abcd".into()));
    }

    #[test]
    fn columns_align_by_characters() {
        let rows = vec![vec!["a×".into(), "1".into()], vec!["bcd".into(), "10".into()]];
        assert_eq!(table(&rows, &[false, true]), "a×    1\nbcd  10");
    }
}

//! The file that ILSVRC's organizers take: a line a picture, five class numbers counted from 1, the likeliest first.

use super::metrics::{GUESSES, largest};

/// The five likeliest classes, counted from 1; fewer if there are fewer classes.
pub fn guesses(probabilities: &[f32]) -> Vec<u32> {
    largest(probabilities, GUESSES).into_iter().map(|(class, _)| class as u32 + 1).collect()
}

/// The line of a picture. One that could not be read has no guess: zeros, so that the lines after it keep their places.
pub fn line(guesses: Option<&[u32]>) -> String {
    let numbers: Vec<String> = guesses.unwrap_or(&[0; GUESSES]).iter().map(u32::to_string).collect();
    numbers.join(" ")
}

/// By what a picture's line is ordered: ILSVRC's own numbers (`ILSVRC2012_val_00000001.JPEG`, in whatever folders)
/// where every picture has one, else the relative path.
pub fn sort<T>(pictures: &mut [T], path: impl Fn(&T) -> &str) {
    fn name(path: &str) -> &str {
        path.rsplit('/').next().unwrap_or(path)
    }
    let numbered = |path: &str| {
        let stem = name(path).split('.').next().unwrap_or_default();
        let mut parts = stem.split('_');
        let year = parts.next().and_then(|p| p.strip_prefix("ILSVRC"));
        let digits = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
        year.is_some_and(digits)
            && matches!(parts.next(), Some("val" | "test"))
            && parts.next().is_some_and(digits)
            && parts.next().is_none()
    };
    if pictures.iter().all(|p| numbered(path(p))) {
        pictures.sort_by(|a, b| name(path(a)).cmp(name(path(b))));
    } else {
        pictures.sort_by(|a, b| path(a).cmp(path(b)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let p = [0.1, 0.3, 0.05, 0.2, 0.3, 0.05];
        assert_eq!(line(Some(&guesses(&p))), "2 5 4 1 3");
        assert_eq!(line(Some(&guesses(&p[..2]))), "2 1");
        assert_eq!(line(None), "0 0 0 0 0");
    }

    #[test]
    fn ilsvrc_s_numbers_come_before_folders() {
        let sorted = |mut paths: Vec<&'static str>| {
            sort(&mut paths, |p| p);
            paths
        };
        let val = ["n02/ILSVRC2012_val_00000001.JPEG", "n01/ILSVRC2012_val_00000002.JPEG"];
        assert_eq!(sorted(vec![val[1], val[0]]), val);
        let mixed = ["n01/ILSVRC2012_val_00000002.JPEG", "n02/ILSVRC2012_val_1b.JPEG"];
        assert_eq!(sorted(vec![mixed[1], mixed[0]]), mixed);
        assert_eq!(sorted(vec!["b/1.jpg", "a/2.jpg"]), ["a/2.jpg", "b/1.jpg"]);
    }
}

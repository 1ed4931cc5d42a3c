//! Which pictures teach and which test.

use super::pack::Pack;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The side of the split that a picture is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The network learns from it.
    Train,
    /// It measures the network.
    Val,
}

/// How a set is split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SplitRule {
    /// As the folder says, with its `train/` and `val/`.
    Given,
    /// This fraction of each class is for validation: those pictures whose hash is small. A picture's side depends
    /// on its own path alone, so that adding or removing files never moves another, and there is no seed.
    Fraction(f64),
    /// `n` pictures of each class teach, the rest test: the protocol of Caltech-101. The order within a class is
    /// that of the hash of (seed, path).
    TrainPerClass {
        /// Training pictures a class.
        n: usize,
        /// Another seed, another split.
        seed: u64,
    },
}

/// A split set: indices into the pack, ascending. Unreadable pictures are in neither list.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Partition {
    /// The pictures to learn from.
    pub train: Vec<u32>,
    /// The pictures to measure with.
    pub val: Vec<u32>,
}

/// Splits a pack.
///
/// # Errors
/// [`Error::Config`] for a fraction outside 0..1 or `n` = 0; [`Error::Data`] if the rule is
/// [`SplitRule::Given`] and the folder has no `train/` and `val/`, or if one side would be empty.
pub fn split(pack: &Pack, rule: &SplitRule) -> Result<Partition> {
    let readable = |&i: &u32| pack.is_readable(i as usize);
    let all = (0..pack.len() as u32).filter(readable);
    let mut partition = Partition::default();
    match *rule {
        SplitRule::Given => {
            for i in all {
                match pack.split_of(i as usize) {
                    Some(Split::Train) => partition.train.push(i),
                    Some(Split::Val) => partition.val.push(i),
                    None => {
                        return Err(Error::Data(format!(
                            "{} is on no side of the split: the folder has no train/ and val/ folders; ask for a \
                             fraction instead",
                            pack.path(i as usize)
                        )));
                    }
                }
            }
        }
        SplitRule::Fraction(fraction) => {
            if !(fraction > 0.0 && fraction < 1.0) {
                return Err(Error::Config(format!(
                    "validation fraction {fraction}: it must lie between 0 and 1, for example 0.1"
                )));
            }
            let (class, path) = (|i: u32| pack.label(i as usize), |i: u32| pack.path(i as usize));
            by_hash(all, class, path, fraction, 0, &mut partition.val, &mut partition.train);
        }
        SplitRule::TrainPerClass { n, seed } => {
            if n == 0 {
                return Err(Error::Config("0 training pictures a class: it must be at least 1".into()));
            }
            for mut class in by_class(pack, all) {
                class.sort_by_key(|&i| (hash(pack.path(i as usize), seed), i));
                let rest = class.split_off(n.min(class.len()));
                partition.train.extend(class);
                partition.val.extend(rest);
            }
        }
    }
    partition.train.sort_unstable();
    partition.val.sort_unstable();
    for (side, list) in [("training", &partition.train), ("validation", &partition.val)] {
        if list.is_empty() {
            return Err(Error::Data(format!(
                "no picture is left for {side}: {} readable pictures in {} classes are too few for this split; add \
                 pictures, or give train/ and val/ folders",
                pack.len() - pack.unreadable().len(),
                pack.classes().len()
            )));
        }
    }
    Ok(partition)
}

/// The hash that orders pictures; the path is relative to the data folder and uses `/`.
fn hash(path: &str, seed: u64) -> u64 {
    xxh3_64_with_seed(path.as_bytes(), seed)
}

fn by_class(pack: &Pack, pictures: impl Iterator<Item = u32>) -> Vec<Vec<u32>> {
    let mut classes = vec![Vec::new(); pack.classes().len()];
    for i in pictures {
        classes[pack.label(i as usize) as usize].push(i);
    }
    classes
}

/// Splits pictures by a threshold on the hash of each one's path, so that no picture moves when others come or go: of
/// each class, about `fraction` go to `low`, the rest to `high`. By chance a class may end up wholly on one side; then,
/// and only then, its picture nearest the threshold changes sides, if the class has two. Another seed, another split.
pub(crate) fn by_hash<P: AsRef<str>>(
    pictures: impl Iterator<Item = u32>,
    class: impl Fn(u32) -> u32,
    path: impl Fn(u32) -> P,
    fraction: f64,
    seed: u64,
    low: &mut Vec<u32>,
    high: &mut Vec<u32>,
) {
    let threshold = (fraction * 2f64.powi(64)) as u64;
    let mut classes: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
    for i in pictures {
        classes.entry(class(i)).or_default().push((hash(path(i).as_ref(), seed), i));
    }
    for mut class in classes.into_values() {
        class.sort_unstable();
        let mut below = class.iter().filter(|&&(key, _)| key < threshold).count();
        if class.len() >= 2 {
            below = below.clamp(1, class.len() - 1);
        }
        low.extend(class[..below].iter().map(|&(_, i)| i));
        high.extend(class[below..].iter().map(|&(_, i)| i));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::{NewPicture, PackOptions};

    fn pack(names: &[(String, u32)], classes: usize) -> Pack {
        let pictures = names.iter().map(|(path, label)| NewPicture {
            path: path.clone(),
            label: *label,
            split: None,
            pixels: if path.contains("bad") { Err("cut".into()) } else { Ok(vec![0; 3]) },
        });
        let classes = (0..classes).map(|c| format!("c{c}")).collect();
        Pack::from_pictures(classes, &PackOptions { side: 1, ..Default::default() }, pictures).unwrap()
    }

    fn names(per_class: usize, classes: u32) -> Vec<(String, u32)> {
        (0..classes).flat_map(|c| (0..per_class).map(move |i| (format!("c{c}/{i:04}.jpg"), c))).collect()
    }

    #[test]
    fn a_fraction_is_stratified_and_does_not_move_pictures() {
        let many = names(500, 4);
        let pack_many = pack(&many, 4);
        let all = split(&pack_many, &SplitRule::Fraction(0.1)).unwrap();
        assert_eq!(all.train.len() + all.val.len(), 2000);
        for c in 0..4 {
            let n = all.val.iter().filter(|&&i| pack_many.label(i as usize) == c).count();
            // 500 draws at 0.1: five standard deviations about 50.
            assert!((17..=83).contains(&n), "class {c}: {n}");
        }
        // Every second picture goes; the others stay on their side.
        let fewer: Vec<_> = many.iter().step_by(2).cloned().collect();
        let pack_fewer = pack(&fewer, 4);
        let rest = split(&pack_fewer, &SplitRule::Fraction(0.1)).unwrap();
        let val: Vec<&str> = all.val.iter().map(|&i| pack_many.path(i as usize)).collect();
        for i in rest.val {
            assert!(val.contains(&pack_fewer.path(i as usize)));
        }
    }

    #[test]
    fn a_class_of_two_is_on_both_sides() {
        let p = pack(&names(2, 50), 50);
        let s = split(&p, &SplitRule::Fraction(0.1)).unwrap();
        assert_eq!((s.train.len(), s.val.len()), (50, 50));
    }

    #[test]
    fn caltech_protocol() {
        let p = pack(&names(40, 3), 3);
        let rule = |seed| SplitRule::TrainPerClass { n: 30, seed };
        let one = split(&p, &rule(1)).unwrap();
        assert_eq!((one.train.len(), one.val.len()), (90, 30));
        for c in 0..3 {
            assert_eq!(one.train.iter().filter(|&&i| p.label(i as usize) == c).count(), 30);
        }
        assert_eq!(one, split(&p, &rule(1)).unwrap());
        assert_ne!(one, split(&p, &rule(2)).unwrap());
    }

    #[test]
    fn unreadable_pictures_are_on_no_side() {
        let mut n = names(10, 2);
        n.push(("c0/bad.jpg".into(), 0));
        let p = pack(&n, 2);
        for rule in [SplitRule::Fraction(0.3), SplitRule::TrainPerClass { n: 5, seed: 0 }] {
            let s = split(&p, &rule).unwrap();
            assert_eq!(s.train.len() + s.val.len(), 20);
        }
        assert_eq!(p.unreadable()[0].path, "c0/bad.jpg");
    }

    #[test]
    fn what_cannot_be_split_says_so() {
        let p = pack(&names(1, 3), 3);
        assert!(
            split(&p, &SplitRule::TrainPerClass { n: 1, seed: 0 })
                .unwrap_err()
                .to_string()
                .contains("validation")
        );
        assert!(split(&p, &SplitRule::Given).unwrap_err().to_string().contains("train/"));
        assert!(split(&p, &SplitRule::Fraction(1.5)).unwrap_err().to_string().contains("between 0 and 1"));
    }
}

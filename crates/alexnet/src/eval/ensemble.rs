//! Several networks as one: their probabilities for a picture are added, each network's with its own weight. The paper
//! averages five and seven networks (§6); the program that came with it weighs them, and finds the weights on pictures
//! that were kept apart (its script `avg-valid`).

use super::metrics::{GUESSES, shared_hit};
use super::predictions::Table;
use crate::data::split::by_hash;
use crate::error::{Error, Result};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights that the search tries are 0, 1/STEPS, ..., 1.
const STEPS: usize = 20;
/// The weight at which every network begins.
const BEGIN: usize = STEPS / 2;
/// Rounds over all networks, at most.
const ROUNDS: usize = 5;
/// Rows that a thread takes at a time; sums are made of these pieces in order, whatever the number of threads.
const PIECE: usize = 64;
/// Other than that of a split for training, so that both halves are as mixed as the whole.
const HALF_SEED: u64 = 0x6861_6c66;

/// How members are weighed.
#[derive(Clone, Debug, PartialEq)]
pub enum Weights {
    /// All alike.
    Equal,
    /// One number a member; only their proportions matter.
    Given(Vec<f64>),
    /// Found on one half of the pictures and judged on the other.
    Fit,
}

impl FromStr for Weights {
    type Err = Error;

    /// `equal`, `fit`, or numbers with commas between them.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else, a negative number, or zeros alone.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "equal" => return Ok(Weights::Equal),
            "fit" => return Ok(Weights::Fit),
            _ => {}
        }
        let wrong = |what: &str| {
            Error::Config(format!(
                "{what}: give `equal`, `fit`, or one number a network, such as 0.2,0.3,0.5"
            ))
        };
        let number = |word: &str| match word.trim().parse::<f64>() {
            Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
            Ok(_) => Err(wrong(&format!("weight `{word}` is not a number from 0 up"))),
            Err(_) => Err(wrong(&format!("`{word}` is no weight"))),
        };
        let given: Vec<f64> = text.split(',').map(number).collect::<Result<_>>()?;
        if given.iter().all(|&x| x == 0.0) {
            return Err(wrong("all weights are 0"));
        }
        Ok(Weights::Given(given))
    }
}

/// Weights in the same proportions that sum to 1, so that what they weigh stays a probability. Panics if all are 0.
pub fn to_sum_one(weights: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    assert!(sum > 0.0, "weights that are all 0");
    weights.iter().map(|w| w / sum).collect()
}

/// The two halves of some pictures, by a hash of each one's path, within each class: (to fit with, to judge with), as
/// ascending positions. A picture's side depends on its own path alone.
pub fn halves<P: AsRef<str>>(labels: &[u32], path: impl Fn(u32) -> P) -> (Vec<u32>, Vec<u32>) {
    let mut fit = Vec::new();
    let mut judge = Vec::new();
    by_hash(0..labels.len() as u32, |i| labels[i as usize], path, 0.5, HALF_SEED, &mut fit, &mut judge);
    fit.sort_unstable();
    judge.sort_unstable();
    (fit, judge)
}

/// What [`fit`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// One weight a member, multiples of .05 from 0 to 1, as the original search reports them.
    pub weights: Vec<f64>,
    /// The top-5 error over the pictures that they were found on.
    pub top5_error: f64,
    /// That of equal weights over the same pictures.
    pub equal_top5_error: f64,
}

/// Finds weights with the smallest top-5 error over pictures `rows` of the tables, as the original script searches:
/// every weight begins at .5; one network after the other takes the first of the values 0, .05, ..., 1 that makes the
/// error smaller than it was and smallest; it ends when a whole round has changed nothing, or after five. Here ties
/// are shared as in [`super::metrics`] (the script took the first).
///
/// `progress` is told (networks tried, the most that there can be). Panics if a table has not one row a label.
pub fn fit(
    tables: &[Table],
    labels: &[u32],
    rows: &[u32],
    classes: usize,
    threads: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Fitted {
    let mut at = vec![BEGIN; tables.len()];
    let mut best = f64::NEG_INFINITY;
    let mut equal = 0.0;
    let mut last_changed = usize::MAX;
    'search: for round in 0..ROUNDS {
        for member in 0..tables.len() {
            if last_changed == member {
                break 'search;
            }
            progress(round * tables.len() + member, ROUNDS * tables.len());
            let hits = hits_by_weight(tables, labels, rows, classes, &at, member, threads);
            if round == 0 && member == 0 {
                equal = hits[BEGIN];
                best = equal;
            }
            for (step, &hit) in hits.iter().enumerate() {
                if hit > best {
                    best = hit;
                    at[member] = step;
                    last_changed = member;
                }
            }
        }
        if last_changed == usize::MAX {
            break;
        }
    }
    let error = |hits: f64| if rows.is_empty() { 0.0 } else { (1.0 - hits / rows.len() as f64).max(0.0) };
    Fitted {
        weights: at.iter().map(|&step| step as f64 / STEPS as f64).collect(),
        top5_error: error(best),
        equal_top5_error: error(equal),
    }
}

/// Pictures that are right within five guesses, for each weight that `member` may have while the others keep theirs.
fn hits_by_weight(
    tables: &[Table],
    labels: &[u32],
    rows: &[u32],
    classes: usize,
    at: &[usize],
    member: usize,
    threads: usize,
) -> [f64; STEPS + 1] {
    let weight = |step: usize| step as f32 / STEPS as f32;
    let pieces: Vec<&[u32]> = rows.chunks(PIECE).collect();
    let piece_hits = |piece: &[u32]| {
        let mut hits = [0.0; STEPS + 1];
        let (mut others, mut own, mut scratch) = (vec![0.0f32; classes], vec![0.0f32; classes], vec![]);
        for &i in piece {
            let i = i as usize;
            others.fill(0.0);
            for (table, &step) in
                tables.iter().zip(at).enumerate().filter(|&(m, _)| m != member).map(|(_, t)| t)
            {
                table.add_row(i, weight(step), &mut others, &mut scratch);
            }
            own.copy_from_slice(tables[member].row(i, classes, &mut scratch));
            for (step, hit) in hits.iter_mut().enumerate() {
                let weight = weight(step);
                let label = labels[i] as usize;
                let right = others[label] + weight * own[label];
                // Four bytes each, so that as many are counted at a time as there are values.
                let (mut above, mut equal) = (0u32, 0u32);
                for (other, own) in others.iter().zip(&own) {
                    let p = other + weight * own;
                    above += u32::from(p > right);
                    equal += u32::from(p == right);
                }
                let (above, equal) = (above as usize, equal as usize);
                *hit += shared_hit(GUESSES, above, equal);
            }
        }
        hits
    };
    let next = AtomicUsize::new(0);
    let mut found: Vec<(usize, [f64; STEPS + 1])> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, pieces.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while let Some((p, piece)) =
                        Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|p| Some((p, pieces.get(p)?)))
                    {
                        mine.push((p, piece_hits(piece)));
                    }
                    mine
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    found.sort_unstable_by_key(|&(p, _)| p);
    let mut total = [0.0; STEPS + 1];
    for (_, hits) in found {
        total.iter_mut().zip(hits).for_each(|(t, h)| *t += h);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Tally;
    use crate::rng::{Purpose, Stream};

    const CLASSES: usize = 12;
    const PICTURES: usize = 300;

    /// A member that knows the label to this degree; the rest is noise.
    fn member(seed: u64, labels: &[u32], knowledge: f32) -> Table<'static> {
        let mut random = Stream::new(seed, Purpose::Synthetic, 0, 0);
        let mut values = Vec::new();
        for &label in labels {
            let mut row: Vec<f32> = (0..CLASSES).map(|_| random.below(1000) as f32 / 1000.0).collect();
            row[label as usize] += knowledge;
            let sum: f32 = row.iter().sum();
            values.extend(row.iter().map(|v| v / sum));
        }
        Table::Memory(values)
    }

    fn top5(tables: &[Table], labels: &[u32], rows: &[u32], weights: &[f64]) -> f64 {
        let mut tally = Tally::new(CLASSES);
        for &i in rows {
            let mut sum = vec![0.0; CLASSES];
            for (table, &w) in tables.iter().zip(weights) {
                table.add_row(i as usize, w as f32, &mut sum, &mut vec![]);
            }
            tally.add(&sum, labels[i as usize]);
        }
        tally.top5_error()
    }

    #[test]
    fn weights_are_read_and_refused() {
        assert_eq!("fit".parse::<Weights>().unwrap(), Weights::Fit);
        assert_eq!("equal".parse::<Weights>().unwrap(), Weights::Equal);
        assert_eq!("0.2, 0.3,0.5".parse::<Weights>().unwrap(), Weights::Given(vec![0.2, 0.3, 0.5]));
        for bad in ["", "0,0", "1,-1", "nan", "1;2", "fitt", "1,,2"] {
            assert_eq!(bad.parse::<Weights>().unwrap_err().exit_code(), 2, "{bad}");
        }
        assert_eq!(to_sum_one(&[1.0, 3.0]), [0.25, 0.75]);
    }

    #[test]
    fn fitting_finds_the_member_that_knows_something() {
        let labels: Vec<u32> = (0..PICTURES as u32).map(|i| i % CLASSES as u32).collect();
        let tables = [member(1, &labels, 0.0), member(2, &labels, 0.5), member(3, &labels, 0.1)];
        let rows: Vec<u32> = (0..PICTURES as u32).filter(|i| i % 3 != 0).collect();
        let fitted = fit(&tables, &labels, &rows, CLASSES, 1, &mut |_, _| {});
        assert_eq!(fitted, fit(&tables, &labels, &rows, CLASSES, 3, &mut |_, _| {}), "threads do not matter");
        assert!(fitted.weights[1] > 2.0 * fitted.weights[0], "{fitted:?}");
        assert!(fitted.top5_error < fitted.equal_top5_error, "{fitted:?}");
        // The errors are those that a tally counts with the same weights.
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(top5(&tables, &labels, &rows, &fitted.weights), fitted.top5_error));
        assert!(close(top5(&tables, &labels, &rows, &[0.5; 3]), fitted.equal_top5_error));
        // No single weight can be moved to a smaller error: the search had ended by itself.
        for m in 0..3 {
            for step in 0..=STEPS {
                let mut other = fitted.weights.clone();
                other[m] = step as f64 / STEPS as f64;
                assert!(top5(&tables, &labels, &rows, &other) >= fitted.top5_error - 1e-9, "{m} {step}");
            }
        }
    }

    /// The search as a few plain loops, which count the whole error for every value that is tried.
    #[test]
    fn the_search_goes_the_way_of_the_original() {
        let labels: Vec<u32> = (0..90).map(|i| i % CLASSES as u32).collect();
        let rows: Vec<u32> = (0..90).collect();
        for seed in 0..5 {
            let tables: Vec<Table> =
                (0..4).map(|m| member(10 * seed + m, &labels, 0.15 * m as f32)).collect();
            let mut weights = vec![0.5; 4];
            let mut best = top5(&tables, &labels, &rows, &weights);
            let mut changed = None;
            'search: for _round in 0..5 {
                for m in 0..4 {
                    if changed == Some(m) {
                        break 'search;
                    }
                    for step in 0..=20 {
                        let old = std::mem::replace(&mut weights[m], f64::from(step) / 20.0);
                        let error = top5(&tables, &labels, &rows, &weights);
                        if error < best {
                            best = error;
                            changed = Some(m);
                        } else {
                            weights[m] = old;
                        }
                    }
                }
            }
            let fitted = fit(&tables, &labels, &rows, CLASSES, 2, &mut |_, _| {});
            assert_eq!(fitted.weights, weights, "{seed}");
            assert!((fitted.top5_error - best).abs() < 1e-9);
        }
    }

    #[test]
    fn halves_are_stratified_and_depend_on_the_path_alone() {
        let labels: Vec<u32> = (0..400).map(|i| i % 4).collect();
        let path = |i: u32| format!("{}/{i}.jpg", i % 4);
        let (fit, judge) = halves(&labels, path);
        assert_eq!(fit.len() + judge.len(), 400);
        for class in 0..4 {
            let n = fit.iter().filter(|&&i| i % 4 == class).count();
            // A hundred draws at a half: five standard deviations about 50.
            assert!((25..=75).contains(&n), "class {class}: {n}");
        }
        let (fewer, _) = halves(&labels[..200], path);
        assert!(fewer.iter().all(|i| fit.contains(i)));
        // The pictures that a split for training keeps for validation are on both sides.
        let (mut val, mut train) = (vec![], vec![]);
        by_hash(0..400, |i| i % 4, path, 0.3, 0, &mut val, &mut train);
        assert!(val.iter().any(|i| fit.contains(i)) && val.iter().any(|i| judge.contains(i)));
    }

    #[test]
    fn a_single_member_and_no_pictures_are_no_trouble() {
        let labels = [0, 1];
        let table = || Table::Memory([vec![0.0; CLASSES], vec![0.5; CLASSES]].concat());
        assert_eq!(fit(&[table()], &labels, &[], CLASSES, 2, &mut |_, _| {}).top5_error, 0.0);
        let one = fit(&[table()], &labels, &[0, 1], CLASSES, 2, &mut |_, _| {});
        assert_eq!(one.weights, [0.5]);
    }
}

//! Error rates from probabilities, counted as the original code counts them (cuda-convnet, `layer.cu`, `LogregCost`): a
//! tie is shared among the tied classes, so that a network that says the same of every class is right as often as
//! chance, not always or never.

use std::collections::BTreeMap;

/// The number of guesses that the top-5 error allows.
pub const GUESSES: usize = 5;

/// Counts of right and wrong answers over a set of pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    classes: usize,
    /// Pictures of each class.
    pictures: Vec<u64>,
    /// Of those, right at the first guess; fractions from ties.
    top1: Vec<f64>,
    /// Of those, right within five guesses.
    top5: Vec<f64>,
    /// Sum of −ln p(label), nats.
    log_loss: f64,
    /// (label, predicted) -> pictures; pairs that never occurred are absent.
    confusion: BTreeMap<(u32, u32), u64>,
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        let (pictures, top1, top5) = (vec![0; classes], vec![0.0; classes], vec![0.0; classes]);
        Tally { classes, pictures, top1, top5, log_loss: 0.0, confusion: BTreeMap::new() }
    }

    /// Counts one picture: one probability a class, and the right class.
    ///
    /// Top-1 is 1/e of a hit where e classes share the largest value; top-5 is s/e of a hit where g < 5 classes are
    /// above the label's value, e equal it (itself included) and s = 5 − g slots are left, at most 1.
    ///
    /// Panics if the number of probabilities is not the number of classes, or the label is none of them.
    pub fn add(&mut self, probabilities: &[f32], label: u32) {
        assert_eq!(probabilities.len(), self.classes, "one probability a class");
        let own = probabilities[label as usize];
        let above = probabilities.iter().filter(|&&p| p > own).count();
        let equal = probabilities.iter().filter(|&&p| p == own).count();
        let hit = |guesses: usize| shared_hit(guesses, above, equal);
        let class = label as usize;
        self.pictures[class] += 1;
        self.top1[class] += hit(1);
        self.top5[class] += hit(GUESSES);
        self.log_loss -= f64::from(own.max(f32::MIN_POSITIVE)).ln();
        *self.confusion.entry((label, first_largest(probabilities) as u32)).or_default() += 1;
    }

    /// Pictures counted.
    pub fn pictures(&self) -> u64 {
        self.pictures.iter().sum()
    }

    /// Fraction of pictures whose likeliest class is wrong; 0 if nothing was counted.
    pub fn top1_error(&self) -> f64 {
        self.error(&self.top1)
    }

    /// Fraction of pictures whose class is not among the five likeliest; 0 if nothing was counted.
    pub fn top5_error(&self) -> f64 {
        self.error(&self.top5)
    }

    fn error(&self, hits: &[f64]) -> f64 {
        match self.pictures() {
            0 => 0.0,
            n => (1.0 - hits.iter().sum::<f64>() / n as f64).max(0.0),
        }
    }

    /// The mean over classes of the fraction of their pictures that are right at the first guess, every class
    /// counting the same; classes without pictures do not count.
    pub fn mean_class_accuracy(&self) -> f64 {
        let accuracies: Vec<f64> = (0..self.classes).filter_map(|c| self.class_accuracy(c)).collect();
        if accuracies.is_empty() { 0.0 } else { accuracies.iter().sum::<f64>() / accuracies.len() as f64 }
    }

    /// The fraction of one class's pictures that are right at the first guess; `None` if it has none.
    pub fn class_accuracy(&self, class: usize) -> Option<f64> {
        let n = *self.pictures.get(class)?;
        (n > 0).then(|| self.top1[class] / n as f64)
    }

    /// The fraction of one class's pictures that are right within five guesses; `None` if it has none.
    pub fn class_top5_accuracy(&self, class: usize) -> Option<f64> {
        let n = *self.pictures.get(class)?;
        (n > 0).then(|| self.top5[class] / n as f64)
    }

    /// The class that pictures of class `label` are most often taken for, and how many; `None` if none is wrong.
    pub fn taken_for(&self, label: u32) -> Option<(u32, u64)> {
        let row = self.confusion.range((label, 0)..=(label, u32::MAX));
        let wrong = row.filter(|((_, predicted), _)| *predicted != label);
        wrong.map(|(&(_, predicted), &n)| (predicted, n)).max_by_key(|&(p, n)| (n, std::cmp::Reverse(p)))
    }

    /// Pictures of one class.
    pub fn class_pictures(&self, class: usize) -> u64 {
        self.pictures.get(class).copied().unwrap_or(0)
    }

    /// Mean of −ln p(label), nats; probabilities of zero count as the smallest positive f32.
    pub fn mean_log_loss(&self) -> f64 {
        match self.pictures() {
            0 => 0.0,
            n => self.log_loss / n as f64,
        }
    }

    /// Pictures of class `label` whose first guess was `predicted` (of tied guesses, the lowest class).
    pub fn confusion(&self, label: u32, predicted: u32) -> u64 {
        self.confusion.get(&(label, predicted)).copied().unwrap_or(0)
    }

    /// The pairs of different classes that were confused most: (label, predicted, pictures), most first.
    pub fn most_confused(&self, n: usize) -> Vec<(u32, u32, u64)> {
        let wrong = self.confusion.iter().filter(|((label, predicted), _)| label != predicted);
        let mut pairs: Vec<_> =
            wrong.map(|(&(label, predicted), &count)| (label, predicted, count)).collect();
        pairs.sort_by_key(|&(label, predicted, count)| (std::cmp::Reverse(count), label, predicted));
        pairs.truncate(n);
        pairs
    }
}

/// The part of a hit that a picture counts for, where `above` classes have a larger value than the right one and `equal`
/// the same, itself included: the slots that are left, shared by those that are equal.
pub(super) fn shared_hit(guesses: usize, above: usize, equal: usize) -> f64 {
    match equal {
        // A value that is not a number equals nothing, itself included, and is never right.
        0 => 0.0,
        _ => (guesses.saturating_sub(above) as f64 / equal as f64).min(1.0),
    }
}

/// The position of the largest value, the first of several.
pub(super) fn first_largest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The `n` largest probabilities, largest first, as (class, probability); ties in the order of the classes.
pub fn largest(probabilities: &[f32], n: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
    order.into_iter().take(n).map(|class| (class, probabilities[class])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_without_ties() {
        let p = [0.05, 0.3, 0.2, 0.15, 0.12, 0.1, 0.08];
        for (label, top1, top5) in [(1, 0.0, 0.0), (2, 1.0, 0.0), (5, 1.0, 0.0), (6, 1.0, 1.0), (0, 1.0, 1.0)]
        {
            let mut t = Tally::new(7);
            t.add(&p, label);
            assert_eq!((t.top1_error(), t.top5_error()), (top1, top5), "{label}");
        }
    }

    #[test]
    fn ties_are_shared() {
        // All of ten classes alike: chance.
        let mut t = Tally::new(10);
        t.add(&[0.1; 10], 3);
        assert!((t.top1_error() - 0.9).abs() < 1e-12 && (t.top5_error() - 0.5).abs() < 1e-12);
        // Four above, three equal: one slot for three.
        let mut t = Tally::new(8);
        t.add(&[0.2, 0.2, 0.2, 0.2, 0.05, 0.05, 0.05, 0.0], 5);
        assert!((t.top5_error() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(t.top1_error(), 1.0);
        // Two share the first place.
        let mut t = Tally::new(3);
        t.add(&[0.4, 0.4, 0.2], 1);
        assert_eq!((t.top1_error(), t.top5_error()), (0.5, 0.0));
    }

    #[test]
    fn classes_count_the_same_however_many_pictures_they_have() {
        let mut t = Tally::new(3);
        for _ in 0..9 {
            t.add(&[0.9, 0.1, 0.0], 0);
        }
        t.add(&[0.9, 0.1, 0.0], 1);
        assert!((t.top1_error() - 0.1).abs() < 1e-12);
        assert_eq!(t.mean_class_accuracy(), 0.5);
        assert_eq!(
            (t.class_accuracy(0), t.class_accuracy(1), t.class_accuracy(2)),
            (Some(1.0), Some(0.0), None)
        );
        assert_eq!((t.confusion(0, 0), t.confusion(1, 0), t.confusion(0, 1)), (9, 1, 0));
        assert_eq!(t.most_confused(5), [(1, 0, 1)]);
        assert_eq!((t.taken_for(1), t.taken_for(0), t.taken_for(2)), (Some((0, 1)), None, None));
        assert_eq!((t.class_top5_accuracy(1), t.class_top5_accuracy(2)), (Some(1.0), None));
        assert_eq!(t.pictures(), 10);
    }

    #[test]
    fn numbers_that_are_none_are_wrong() {
        let mut t = Tally::new(2);
        t.add(&[f32::NAN, f32::NAN], 0);
        assert_eq!((t.top1_error(), t.top5_error()), (1.0, 1.0));
        assert_eq!(Tally::new(4).top1_error(), 0.0);
    }

    #[test]
    fn log_loss_is_the_mean_of_minus_ln_p() {
        let mut t = Tally::new(2);
        t.add(&[0.5, 0.5], 0);
        t.add(&[0.75, 0.25], 1);
        assert!((t.mean_log_loss() - (2f64.ln() + 4f64.ln()) / 2.0).abs() < 1e-7);
    }

    #[test]
    fn largest_first() {
        assert_eq!(largest(&[0.1, 0.6, 0.1, 0.2], 3), [(1, 0.6), (3, 0.2), (0, 0.1)]);
        assert_eq!(largest(&[0.5], 5), [(0, 0.5)]);
    }
}

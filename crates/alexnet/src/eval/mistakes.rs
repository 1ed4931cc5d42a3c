//! Which pictures a network gets wrong: examples of each pair of classes that it confuses, and those that it gets wrong
//! with the most confidence.

use super::metrics::first_largest;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

/// Pictures that are remembered for each pair of classes.
const EXAMPLES: usize = 3;

/// A picture whose first guess is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wrong {
    /// The picture, by whatever number it was added with.
    pub picture: u32,
    /// Its class.
    pub label: u32,
    /// The class that it was taken for.
    pub guess: u32,
    /// The probability of its class.
    pub label_probability: f32,
    /// The probability of the guess.
    pub guess_probability: f32,
}

impl Wrong {
    /// −ln of the probability of its class, nats; a probability of zero counts as the smallest positive f32.
    pub fn loss(&self) -> f64 {
        -f64::from(self.label_probability.max(f32::MIN_POSITIVE)).ln()
    }
}

/// Ordered by confidence: the greatest is the least confidently wrong, so that a heap gives it up first.
#[derive(Clone, Copy, Debug)]
struct ByConfidence(Wrong);

impl Ord for ByConfidence {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.0, &other.0);
        a.label_probability
            .total_cmp(&b.label_probability)
            .then(b.guess_probability.total_cmp(&a.guess_probability))
            .then(a.picture.cmp(&b.picture))
    }
}

impl PartialOrd for ByConfidence {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByConfidence {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ByConfidence {}

/// Remembers some of the pictures that are wrong.
#[derive(Clone, Debug, Default)]
pub struct Mistakes {
    /// (label, guess) -> the first few pictures.
    examples: BTreeMap<(u32, u32), Vec<u32>>,
    worst: BinaryHeap<ByConfidence>,
    keep: usize,
}

impl Mistakes {
    /// Nothing yet; the `worst` most confidently wrong pictures will be kept.
    pub fn new(worst: usize) -> Self {
        Mistakes { keep: worst, ..Mistakes::default() }
    }

    /// Looks at one picture: one probability a class, and the right class. The guess is the first of the likeliest.
    pub fn add(&mut self, picture: u32, probabilities: &[f32], label: u32) {
        let guess = first_largest(probabilities) as u32;
        if guess == label {
            return;
        }
        let seen = self.examples.entry((label, guess)).or_default();
        if seen.len() < EXAMPLES {
            seen.push(picture);
        }
        self.worst.push(ByConfidence(Wrong {
            picture,
            label,
            guess,
            label_probability: probabilities[label as usize],
            guess_probability: probabilities[guess as usize],
        }));
        if self.worst.len() > self.keep {
            self.worst.pop();
        }
    }

    /// The first few pictures of class `label` that were taken for `guess`.
    pub fn examples(&self, label: u32, guess: u32) -> &[u32] {
        self.examples.get(&(label, guess)).map_or(&[], Vec::as_slice)
    }

    /// The most confidently wrong: those whose own class has the smallest probability come first.
    pub fn worst(&self) -> Vec<Wrong> {
        self.worst.clone().into_sorted_vec().into_iter().map(|w| w.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_come_first_and_pairs_have_examples() {
        let mut m = Mistakes::new(3);
        for (picture, own) in [0.3, 0.1, 0.4, 0.0, 0.2, 0.9, 0.1].into_iter().enumerate() {
            m.add(picture as u32, &[own, 1.0 - own, 0.0], 0);
        }
        let worst: Vec<u32> = m.worst().iter().map(|w| w.picture).collect();
        assert_eq!(worst, [3, 1, 6]);
        assert_eq!(m.examples(0, 1), [0, 1, 2]);
        assert!(m.examples(1, 0).is_empty());
        let first = m.worst()[0];
        assert_eq!((first.label, first.guess, first.guess_probability), (0, 1, 1.0));
        assert!(first.loss() > 80.0 && first.loss().is_finite());
        let mut none = Mistakes::new(0);
        none.add(0, &[0.0, 1.0], 0);
        assert!(none.worst().is_empty());
        assert_eq!(none.examples(0, 1), [0]);
    }
}

//! Signs that a run goes wrong.

use std::collections::VecDeque;

/// Steps that a loss is compared with.
const WINDOW: usize = 128;
/// Steps before the first comparison, and between two warnings.
const PATIENCE: usize = 64;
/// Standard deviations above the mean that are worth a warning.
const LIMIT: f64 = 6.0;

/// Compares each loss with those of the last steps. A sign for the user's eye, not part of the run's state.
#[derive(Clone, Debug, Default)]
pub struct LossWatch {
    recent: VecDeque<f64>,
    quiet_for: usize,
}

impl LossWatch {
    /// Takes in a loss; its distance from the mean of the last steps, in standard deviations, if that is far.
    pub fn spike(&mut self, loss: f64) -> Option<f64> {
        let n = self.recent.len() as f64;
        let mean = self.recent.iter().sum::<f64>() / n;
        let variance = self.recent.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let z = (loss - mean) / variance.sqrt().max(1e-3 * mean.abs());
        let full = self.recent.len() >= PATIENCE;
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        self.quiet_for += 1;
        if !full || z.is_nan() || z <= LIMIT || self.quiet_for < PATIENCE {
            return None;
        }
        self.quiet_for = 0;
        Some(z)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_noticed_and_ordinary_noise_is_not() {
        let mut watch = LossWatch::default();
        for i in 0..1000 {
            assert_eq!(watch.spike(2.0 + 0.1 * f64::from(i % 7)), None, "{i}");
        }
        assert!(watch.spike(9.0).unwrap() > 6.0);
        assert_eq!(watch.spike(9.0), None, "one warning is enough");
    }

    #[test]
    fn a_loss_that_never_moves_does_not_divide_by_zero() {
        let mut watch = LossWatch::default();
        for _ in 0..200 {
            assert_eq!(watch.spike(0.5), None);
        }
        assert!(watch.spike(0.6).is_some());
    }
}

//! How parameters move: the rule of the paper (§5), and what two later recipes add to it.
//!
//! v ← μ·v − wd·ε·w − ε·ḡ,  w ← w + v

use super::Real;
use serde::{Deserialize, Serialize};

/// What a recipe adds to the update rule; the same for a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rule {
    /// Rates that follow each tensor's norms.
    pub lars: Option<Lars>,
    /// After each step a convolution's filter whose root mean square exceeds this is rescaled to it (Zeiler and
    /// Fergus, arXiv 1311.2901, §3.1: 0.1).
    pub filter_rms: Option<f32>,
}

impl Rule {
    /// Whether a tensor moves only when its whole gradient is known.
    pub fn needs_whole_gradients(&self) -> bool {
        self.lars.is_some()
    }
}

/// Layer-wise adaptive rates (You, Gitman, Ginsburg, arXiv 1708.03888): each tensor has a local rate,
///
/// λ = η·‖w‖ / (‖ḡ‖ + wd·‖w‖)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lars {
    /// η, how far a tensor trusts its gradient.
    pub trust: f64,
    /// What the local rate does.
    #[serde(default)]
    pub policy: Policy,
}

/// What a local rate does (the two policies of NVIDIA's Caffe).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It bounds the rate of the schedule: min(ε, λ).
    #[default]
    Clip,
    /// It multiplies the rate of the schedule: ε·λ (the paper).
    Scale,
}

impl Lars {
    /// The rate of a tensor with these norms; ε itself where one of them is zero.
    pub fn rate(&self, lr: f64, decay: f64, weight_norm: f64, gradient_norm: f64) -> f64 {
        // A zero tensor must be able to leave zero, and a zero gradient has no scale.
        if weight_norm == 0.0 || gradient_norm == 0.0 {
            return lr;
        }
        let local = self.trust * weight_norm / (gradient_norm + decay * weight_norm);
        match self.policy {
            Policy::Clip => lr.min(local),
            Policy::Scale => lr * local,
        }
    }
}

/// Σ a²
pub fn norm_squared<T: Real>(a: &[T]) -> f64 {
    a.iter().map(|a| a.as_f64() * a.as_f64()).sum()
}

/// Moves a tensor by its gradient. With ε = 0 nothing moves.
pub fn sgd<T: Real>(lr: f64, decay: f64, momentum: f64, g: &[T], w: &mut [T], v: &mut [T]) {
    if lr == 0.0 {
        return;
    }
    let (lr, decay, momentum) = (T::of(lr), T::of(decay), T::of(momentum));
    for ((w, v), &g) in w.iter_mut().zip(v).zip(g) {
        *v = momentum * *v - decay * lr * *w - lr * g;
        *w += *v;
    }
}

/// Rescales a filter whose root mean square exceeds `limit` to `limit`.
pub fn limit_rms<T: Real>(limit: f32, filter: &mut [T]) {
    let rms = (norm_squared(filter) / filter.len().max(1) as f64).sqrt();
    let limit = f64::from(limit);
    // Not a number and infinity stay, so that they are noticed.
    if rms > limit && rms.is_finite() {
        let scale = T::of(limit / rms);
        filter.iter_mut().for_each(|w| *w *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_rates_by_hand() {
        let clip = Lars { trust: 0.001, policy: Policy::Clip };
        // λ = 0.001·4 / (1 + 0.5·4)
        assert!((clip.rate(10.0, 0.5, 4.0, 1.0) - 0.004 / 3.0).abs() < 1e-15);
        assert_eq!(clip.rate(0.001, 0.5, 4.0, 1.0), 0.001);
        let scale = Lars { trust: 0.001, policy: Policy::Scale };
        assert!((scale.rate(10.0, 0.5, 4.0, 1.0) - 0.04 / 3.0).abs() < 1e-15);
        for lars in [clip, scale] {
            assert_eq!((lars.rate(0.1, 0.5, 0.0, 1.0), lars.rate(0.1, 0.5, 1.0, 0.0)), (0.1, 0.1));
        }
    }

    #[test]
    fn a_filter_is_brought_back_to_the_limit() {
        let mut filter = [0.3f64, -0.4, 0.0, 0.0];
        limit_rms(0.1, &mut filter);
        assert!((norm_squared(&filter) / 4.0 - 0.01).abs() < 1e-9, "{filter:?}");
        assert!((filter[0] / filter[1] + 0.75).abs() < 1e-12, "its direction stays");
        let mut small = [0.05f32, -0.05];
        limit_rms(0.1, &mut small);
        assert_eq!(small, [0.05, -0.05]);
        let mut broken = [f32::INFINITY, 1.0];
        limit_rms(0.1, &mut broken);
        assert_eq!(broken, [f32::INFINITY, 1.0]);
    }
}

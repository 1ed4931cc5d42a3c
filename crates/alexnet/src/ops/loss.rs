//! What is minimized: the mean over the batch of each picture's loss, in nats. With logits z and label t,
//!
//! * softmax (paper §3.5): p_k = exp(z_k) / Σ_j exp(z_j), loss −ln p_t;
//! * independent logistic units: p_k = 1 / (1 + exp(−z_k)), loss −ln p_t − Σ_{k≠t} ln(1 − p_k).
//!
//! Both have the gradient dz_k = p_k − \[k = t\]. The mean is weighted: a picture of weight 0, one that could not be
//! decoded, counts for nothing, whatever its logits.

use super::{Real, activation};
use crate::net::{Activation, Loss};

/// The probabilities of all classes of all pictures.
pub fn probabilities<T: Real>(
    loss: Loss,
    classes: usize,
    z: &[T],     // (N, K)
    p: &mut [T], // (N, K)
) {
    assert_eq!(z.len(), p.len(), "z and p differ in shape");
    for (z, p) in z.chunks(classes).zip(p.chunks_mut(classes)) {
        match loss {
            Loss::Softmax => {
                // Shifted by the largest logit, so that no exponential overflows.
                let largest = largest(z);
                for (p, &z) in p.iter_mut().zip(z) {
                    *p = (z - largest).exp();
                }
                let sum = p.iter().fold(T::zero(), |sum, &p| sum + p);
                p.iter_mut().for_each(|p| *p /= sum);
            }
            Loss::Logistic => activation::forward(Activation::Logistic, z, p),
        }
    }
}

/// The loss of one picture.
pub fn of_picture<T: Real>(
    loss: Loss,
    z: &[T], // (K)
    label: u32,
) -> f64 {
    let target = z[label as usize].as_f64();
    match loss {
        Loss::Softmax => {
            let largest = largest(z).as_f64();
            largest + z.iter().map(|z| (z.as_f64() - largest).exp()).sum::<f64>().ln() - target
        }
        // −ln(1 − p) = ln(1 + exp(z)), written so that nothing overflows.
        Loss::Logistic => {
            let softplus = |z: f64| z.max(0.0) + (-z.abs()).exp().ln_1p();
            z.iter().map(|z| softplus(z.as_f64())).sum::<f64>() - target
        }
    }
}

/// The weighted mean loss of the batch; 0 if all weights are.
pub fn forward<T: Real>(
    loss: Loss,
    classes: usize,
    z: &[T],         // (N, K)
    labels: &[u32],  // (N)
    weights: &[f32], // (N)
) -> f64 {
    assert_eq!(
        (z.len(), weights.len()),
        (labels.len() * classes, labels.len()),
        "z, labels, weights differ in N"
    );
    mean(|n| of_picture(loss, &z[n * classes..][..classes], labels[n]), weights)
}

/// The weighted mean of the pictures' losses, asked for where the weight is not 0; 0 if all weights are.
pub fn mean(
    of: impl Fn(usize) -> f64,
    weights: &[f32], // (N)
) -> f64 {
    let weight = |w: &f32| f64::from(*w);
    let counted = weights.iter().enumerate().filter(|(_, w)| **w != 0.0);
    let sum: f64 = counted.map(|(n, w)| weight(w) * of(n)).sum();
    let weight: f64 = weights.iter().map(weight).sum();
    if weight == 0.0 { 0.0 } else { sum / weight }
}

/// The gradient of the weighted mean loss with respect to the logits: weight/Σweights · (p − \[k = t\]).
pub fn backward<T: Real>(
    classes: usize,
    p: &[T],         // (N, K), the probabilities
    labels: &[u32],  // (N)
    weights: &[f32], // (N)
    dz: &mut [T],    // (N, K)
) {
    assert_eq!([p.len(), dz.len()], [labels.len() * classes; 2], "p, dz, labels differ in N");
    let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    for (n, dz) in dz.chunks_mut(classes).enumerate() {
        if weights[n] == 0.0 {
            dz.fill(T::zero());
            continue;
        }
        let weight = T::of(f64::from(weights[n]) / sum);
        for (k, dz) in dz.iter_mut().enumerate() {
            let target = if k == labels[n] as usize { T::one() } else { T::zero() };
            *dz = weight * (p[n * classes + k] - target);
        }
    }
}

/// The sum of the weights of pictures whose top class is not their label.
pub fn top1_wrong<T: Real>(
    classes: usize,
    z: &[T],         // (N, K)
    labels: &[u32],  // (N)
    weights: &[f32], // (N)
) -> f64 {
    let pictures = z.chunks_exact(classes).zip(labels).zip(weights);
    let wrong = pictures.filter(|&((z, &label), _)| top1_is_wrong(z, label));
    wrong.map(|(_, &weight)| f64::from(weight)).sum()
}

/// Whether the picture's top class is not the label. Of equal logits the lower class comes first; a logit of the
/// label that is not a number is wrong.
pub fn top1_is_wrong<T: Real>(
    z: &[T], // (K)
    label: u32,
) -> bool {
    let label = label as usize;
    let behind =
        |(k, &other): (usize, &T)| k == label || other < z[label] || (other == z[label] && k > label);
    z[label].is_nan() || !z.iter().enumerate().all(behind)
}

/// The largest element; NaN if any is NaN.
fn largest<T: Real>(z: &[T]) -> T {
    z.iter().fold(T::neg_infinity(), |max, &z| if z > max || z.is_nan() { z } else { max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;

    const BOTH: [Loss; 2] = [Loss::Softmax, Loss::Logistic];

    #[test]
    fn known_values() {
        // Softmax of (0, ln 2, ln 5) is (1, 2, 5)/8; logistic of (0, ln 3) is (1/2, 3/4).
        let z = [0.0, 2f64.ln(), 5f64.ln()];
        let mut p = [0.0; 3];
        probabilities(Loss::Softmax, 3, &z, &mut p);
        assert!(check::relative_error(&p, &[0.125, 0.25, 0.625]) < 1e-15);
        assert!((of_picture(Loss::Softmax, &z, 1) - 4f64.ln()).abs() < 1e-15);
        let (z, mut p) = ([0.0, 3f64.ln()], [0.0; 2]);
        probabilities(Loss::Logistic, 2, &z, &mut p);
        assert!(check::relative_error(&p, &[0.5, 0.75]) < 1e-15);
        // −ln(1/2) − ln(1/4) and −ln(1/2) − ln(3/4)
        assert!((of_picture(Loss::Logistic, &z, 0) - 8f64.ln()).abs() < 1e-15);
        assert!((of_picture(Loss::Logistic, &z, 1) - (8f64 / 3.0).ln()).abs() < 1e-15);
    }

    #[test]
    fn far_logits_stay_finite() {
        let z = [-2000.0f32, 0.0, 2000.0];
        for loss in BOTH {
            let mut p = [f32::NAN; 3];
            probabilities(loss, 3, &z, &mut p);
            assert!(p.iter().all(|p| (0.0..=1.0).contains(p)), "{loss:?}: {p:?}");
            assert!(
                (of_picture(loss, &z, 0) - 4000.0).abs() < 1.0 + 2000.0 * f64::from(loss == Loss::Logistic)
            );
        }
        assert_eq!(of_picture(Loss::Softmax, &z, 2), 0.0);
    }

    #[test]
    fn weight_zero_counts_for_nothing() {
        for loss in BOTH {
            let z = [1.0, 2.0, 3.0, f64::NAN, f64::NAN, f64::NAN];
            let mut p = [0.0; 6];
            probabilities(loss, 3, &z, &mut p);
            assert_eq!(forward(loss, 3, &z, &[0, 1], &[1.0, 0.0]), of_picture(loss, &z[..3], 0));
            let (mut both, mut alone) = ([9.0; 6], [9.0; 3]);
            backward(3, &p, &[0, 1], &[1.0, 0.0], &mut both);
            backward(3, &p[..3], &[0], &[1.0], &mut alone);
            assert_eq!(both[..3], alone);
            assert_eq!(both[3..], [0.0; 3]);
            assert_eq!(forward(loss, 3, &z, &[0, 1], &[0.0, 0.0]), 0.0);
        }
    }

    #[test]
    fn top_class_with_ties() {
        let z = [1.0, 3.0, 3.0, 2.0];
        assert_eq!([0, 1, 2, 3].map(|label| top1_is_wrong(&z, label)), [true, false, true, true]);
        assert!(top1_is_wrong(&[f64::NAN, 1.0], 0) && top1_is_wrong(&[f64::NAN, 1.0], 1));
    }

    #[test]
    fn gradients() {
        let (labels, weights) = ([2, 0, 1, 2], [1.0, 1.0, 0.0, 1.0]);
        for loss in BOTH {
            let z: Vec<f64> = check::uniform(0, 12).iter().map(|z| 3.0 * z).collect();
            let (mut p, mut dz) = (vec![f64::NAN; 12], vec![f64::NAN; 12]);
            probabilities(loss, 3, &z, &mut p);
            backward(3, &p, &labels, &weights, &mut dz);
            check::gradient(&format!("dz of {loss:?}"), &z, &dz, |z| forward(loss, 3, z, &labels, &weights));
        }
    }
}

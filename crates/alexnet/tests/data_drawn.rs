//! The drawn pictures ask for a network: what a linear classifier finds in their pixels, or in histograms of their
//! colours and gradients, is not enough. (That a network learns them is tested with the trainer.)

use alexnet::data::generator::{SIDE, TRAIN_PER_CLASS, VAL_PER_CLASS, drawn_pack};
use alexnet::data::{Pack, SplitRule, split};
use alexnet::rng::{Purpose, Stream};

/// Examples as rows of features, with their classes.
struct Examples {
    features: Vec<f32>,
    labels: Vec<u32>,
    width: usize,
}

fn examples(pack: &Pack, pictures: &[u32], features: impl Fn(&[u8]) -> Vec<f32>) -> Examples {
    let mut e = Examples { features: Vec::new(), labels: Vec::new(), width: 0 };
    for &i in pictures {
        let f = features(pack.picture(i as usize).unwrap());
        e.width = f.len();
        e.features.extend(f);
        e.labels.push(pack.label(i as usize));
    }
    e
}

/// Subtracts the training mean and divides by the training deviation, feature by feature.
fn standardize(train: &mut Examples, val: &mut Examples) {
    let (width, n) = (train.width, train.labels.len() as f64);
    let mut sums = vec![[0.0f64; 2]; width];
    for row in train.features.chunks_exact(width) {
        for (s, &x) in sums.iter_mut().zip(row) {
            s[0] += f64::from(x);
            s[1] += f64::from(x) * f64::from(x);
        }
    }
    let scale: Vec<[f32; 2]> = sums
        .iter()
        .map(|&[s, q]| {
            let mean = s / n;
            [mean as f32, (1.0 / (q / n - mean * mean).max(1e-8).sqrt()) as f32]
        })
        .collect();
    for e in [train, val] {
        for row in e.features.chunks_exact_mut(width) {
            for (x, [mean, factor]) in row.iter_mut().zip(&scale) {
                *x = (*x - mean) * factor;
            }
        }
    }
}

/// Multinomial logistic regression by stochastic gradient descent with momentum and a falling rate.
struct Regression {
    /// (classes, width + 1); the last column is the bias.
    weights: Vec<f32>,
    classes: usize,
}

impl Regression {
    fn logits(&self, x: &[f32]) -> Vec<f32> {
        self.weights
            .chunks_exact(x.len() + 1)
            .map(|w| {
                // Eight sums at once, so that the compiler may use vectors.
                let mut sums = [0.0f32; 8];
                for (w, x) in w.chunks_exact(8).zip(x.chunks_exact(8)) {
                    for i in 0..8 {
                        sums[i] += w[i] * x[i];
                    }
                }
                let whole = x.len() / 8 * 8;
                let rest: f32 = w[whole..x.len()].iter().zip(&x[whole..]).map(|(w, x)| w * x).sum();
                sums.iter().sum::<f32>() + rest + w[x.len()]
            })
            .collect()
    }

    fn error(&self, e: &Examples) -> f64 {
        let wrong = e.features.chunks_exact(e.width).zip(&e.labels).filter(|(x, label)| {
            let z = self.logits(x);
            let best = (0..self.classes).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap();
            best != **label as usize
        });
        wrong.count() as f64 / e.labels.len() as f64
    }

    /// Trains; gives the error on `val` after each epoch.
    fn train(
        train: &Examples,
        val: &Examples,
        classes: usize,
        epochs: u64,
        rate: f32,
        decay: f32,
    ) -> Vec<f64> {
        const BATCH: usize = 100;
        let (width, stride) = (train.width, train.width + 1);
        let mut model = Regression { weights: vec![0.0; classes * stride], classes };
        let mut velocity = vec![0.0f32; classes * stride];
        let mut order: Vec<usize> = (0..train.labels.len()).collect();
        let mut errors = Vec::new();
        for epoch in 0..epochs {
            Stream::new(0, Purpose::Shuffle, epoch, 0).shuffle(&mut order);
            let rate = rate * 0.5 * (1.0 + (std::f32::consts::PI * epoch as f32 / epochs as f32).cos());
            for batch in order.chunks(BATCH) {
                for (v, w) in velocity.iter_mut().zip(&model.weights) {
                    *v = 0.9 * *v - rate * decay * w;
                }
                for &i in batch {
                    let x = &train.features[i * width..(i + 1) * width];
                    let z = model.logits(x);
                    let top = z.iter().copied().fold(f32::MIN, f32::max);
                    let sum: f32 = z.iter().map(|z| (z - top).exp()).sum();
                    for c in 0..classes {
                        let target = f32::from(u8::from(train.labels[i] as usize == c));
                        let g = rate / batch.len() as f32 * ((z[c] - top).exp() / sum - target);
                        let v = &mut velocity[c * stride..(c + 1) * stride];
                        for (v, x) in v.iter_mut().zip(x) {
                            *v -= g * x;
                        }
                        v[width] -= g;
                    }
                }
                for (w, v) in model.weights.iter_mut().zip(&velocity) {
                    *w += v;
                }
            }
            errors.push(model.error(val));
        }
        errors
    }
}

/// The central 64×64 pixels as they are.
fn raw(pixels: &[u8]) -> Vec<f32> {
    let start = (SIDE - 64) / 2;
    let row = |y: usize| pixels[((start + y) * SIDE + start) * 3..][..64 * 3].iter().map(|&p| f32::from(p));
    (0..64).flat_map(row).collect()
}

/// Colours: 16 bins a channel and 4×4×4 bins jointly. Gradients of the luminance: magnitudes by direction in 18 bins
/// over the whole picture and in 9 unsigned bins in each of 4×4 cells, and how many pixels have much of a gradient.
fn histograms(pixels: &[u8]) -> Vec<f32> {
    let mut colours = vec![0.0f32; 48 + 64];
    for p in pixels.chunks_exact(3) {
        let mut joint = 0;
        for c in 0..3 {
            colours[c * 16 + usize::from(p[c] / 16)] += 1.0;
            joint = joint * 4 + usize::from(p[c] / 64);
        }
        colours[48 + joint] += 1.0;
    }
    let mut gradients = vec![0.0f32; 18 + 16 * 9 + 8];
    let light = |y: usize, x: usize| {
        let p = &pixels[(y * SIDE + x) * 3..][..3];
        0.3 * f32::from(p[0]) + 0.59 * f32::from(p[1]) + 0.11 * f32::from(p[2])
    };
    for y in 1..SIDE - 1 {
        for x in 1..SIDE - 1 {
            let (dx, dy) = (light(y, x + 1) - light(y, x - 1), light(y + 1, x) - light(y - 1, x));
            let magnitude = dx.hypot(dy);
            let turn = dy.atan2(dx) / std::f32::consts::TAU + 0.5;
            gradients[((turn * 18.0) as usize).min(17)] += magnitude;
            let unsigned = ((turn * 18.0) as usize).min(17) % 9;
            let cell = y * 4 / SIDE * 4 + x * 4 / SIDE;
            gradients[18 + cell * 9 + unsigned] += magnitude;
            gradients[162 + ((magnitude / 16.0) as usize).min(7)] += 1.0;
        }
    }
    // Roots tame the long tails of counts, which favours the classifier.
    colours.iter().chain(&gradients).map(|v| v.sqrt()).collect()
}

/// The lowest validation error that regression reaches at any epoch under any of the decays; the last third of the
/// epochs must bring nothing more, so that it is a plateau.
fn best_error(
    pack: &Pack,
    features: impl Fn(&[u8]) -> Vec<f32>,
    epochs: u64,
    rate: f32,
    decays: &[f32],
) -> f64 {
    let sides = split(pack, &SplitRule::Given).unwrap();
    let mut train = examples(pack, &sides.train, &features);
    let mut val = examples(pack, &sides.val, &features);
    standardize(&mut train, &mut val);
    let lowest = |e: &[f64]| e.iter().copied().fold(1.0, f64::min);
    let mut best = 1.0f64;
    for &decay in decays {
        let errors = Regression::train(&train, &val, pack.classes().len(), epochs, rate, decay);
        println!("width {} decay {decay}: {errors:.3?}", train.width);
        let early = lowest(&errors[..errors.len() * 2 / 3]);
        assert!(lowest(&errors) > early - 0.02, "no plateau: {errors:?}");
        // It does learn something: chance is 11 in 12.
        assert!(lowest(&errors) < 0.9, "{errors:?}");
        best = best.min(lowest(&errors));
    }
    best
}

#[test]
fn a_linear_classifier_does_not_suffice() {
    let begin = std::time::Instant::now();
    let pack = drawn_pack(1, TRAIN_PER_CLASS, VAL_PER_CLASS, SIDE).unwrap();
    println!("drawn {} pictures in {:?}", pack.len(), begin.elapsed());
    let pixels = best_error(&pack, raw, 6, 1e-4, &[1e-2]);
    println!("raw pixels {pixels:.3} after {:?}", begin.elapsed());
    let histograms = best_error(&pack, histograms, 45, 2e-2, &[1e-3, 3e-2]);
    println!("histograms {histograms:.3} after {:?}", begin.elapsed());
    assert!(pixels > 0.5, "{pixels}");
    assert!(histograms > 0.4, "{histograms}");
}

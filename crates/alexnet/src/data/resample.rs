//! Three rules of OpenCV: the mean over the area that a pixel covers and cubic interpolation between four neighbours, with
//! which the tool of 2014 (cuda-convnet2's `make-data`) resized; and linear interpolation between two, with which Caffe's
//! `convert_imageset` does.

/// Which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Each new pixel is the mean of what it covers, source pixels counted by the part of them that is covered.
    Area,
    /// Keys' cubic with a = −3/4 through four neighbours, positions beyond the border taken from the border. It looks
    /// at no more than four pixels, so it is meant for enlarging.
    Cubic,
    /// A line through two neighbours, whatever the reduction: shrinking passes over the pixels between.
    Linear,
}

/// A rectangle of a picture of RGB pixels whose rows are `row_px` long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// Rows from the top, three bytes a pixel.
    pub pixels: &'a [u8],
    /// Pixels from one row to the next.
    pub row_px: usize,
    /// Columns left of the rectangle.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
}

/// What each target position is made of: `reach` consecutive source positions from `first` on, weighted.
struct Taps {
    first: Vec<usize>,
    /// (targets, reach); they add up to 1.
    weights: Vec<f32>,
    reach: usize,
}

impl Taps {
    fn new(rule: Rule, from: usize, to: usize) -> Taps {
        let scale = from as f64 / to as f64;
        let reach = match rule {
            Rule::Area => (scale.ceil() as usize + 1).min(from),
            Rule::Cubic => 4.min(from),
            Rule::Linear => 2.min(from),
        };
        let mut taps = Taps { first: Vec::with_capacity(to), weights: vec![0.0; to * reach], reach };
        for (i, weights) in taps.weights.chunks_exact_mut(reach).enumerate() {
            match rule {
                Rule::Area => {
                    let (begin, end) = (i as f64 * scale, ((i + 1) as f64 * scale).min(from as f64));
                    let first = (begin.floor() as usize).min(from - reach);
                    taps.first.push(first);
                    for (k, w) in weights.iter_mut().enumerate() {
                        let at = (first + k) as f64;
                        let covered = (end.min(at + 1.0) - begin.max(at)).max(0.0);
                        *w = (covered / (end - begin)) as f32;
                    }
                }
                Rule::Cubic => taps.first.push(between(4, keys, i, scale, from, weights)),
                Rule::Linear => taps.first.push(between(2, |x| 1.0 - x, i, scale, from, weights)),
            }
        }
        taps
    }
}

/// The weights of the `n` source positions around target position `i` by their distance; a position beyond the border
/// stands for the one at the border. Returns the first position that has a weight.
fn between(n: i64, weight: fn(f64) -> f64, i: usize, scale: f64, from: usize, weights: &mut [f32]) -> usize {
    let centre = (i as f64 + 0.5) * scale - 0.5;
    let before = centre.floor() as i64 - (n / 2 - 1);
    let first = (before.max(0) as usize).min(from - weights.len());
    for k in before..before + n {
        let at = k.clamp(0, from as i64 - 1) as usize;
        weights[at - first] += weight((centre - k as f64).abs()) as f32;
    }
    first
}

/// Keys' cubic with a = −3/4, at a distance in source pixels.
fn keys(x: f64) -> f64 {
    const A: f64 = -0.75;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

/// The part resized to `new_w`×`new_h`, rows from the top, (new_h, new_w, 3). No size may be 0.
pub(super) fn resample(part: Part, new_w: usize, new_h: usize, rule: Rule) -> Vec<u8> {
    let across = Taps::new(rule, part.width, new_w);
    let down = Taps::new(rule, part.height, new_h);
    let len = new_w * 3;
    // Rows made narrow (or wide) already, as many as a new row is made of: row y lies at y modulo that.
    let mut ready = vec![0f32; down.reach * len];
    let mut made = 0;
    let mut out = Vec::with_capacity(new_h * len);
    let mut sum = vec![0f32; len];
    for (&first, weights) in down.first.iter().zip(down.weights.chunks_exact(down.reach)) {
        made = made.max(first);
        while made < first + down.reach {
            let start = ((part.top + made) * part.row_px + part.left) * 3;
            let row = &part.pixels[start..start + part.width * 3];
            narrow(row, &across, &mut ready[made % down.reach * len..][..len]);
            made += 1;
        }
        sum.fill(0.0);
        for (k, &weight) in weights.iter().enumerate() {
            let row = &ready[(first + k) % down.reach * len..][..len];
            for (s, v) in sum.iter_mut().zip(row) {
                *s += weight * v;
            }
        }
        // A cast of a float to an integer saturates.
        out.extend(sum.iter().map(|s| s.round_ties_even() as u8));
    }
    out
}

fn narrow(row: &[u8], across: &Taps, out: &mut [f32]) {
    let targets = out.chunks_exact_mut(3).zip(&across.first).zip(across.weights.chunks_exact(across.reach));
    for ((to, &first), weights) in targets {
        let mut sum = [0f32; 3];
        for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
            for c in 0..3 {
                sum[c] += weight * f32::from(pixel[c]);
            }
        }
        to.copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pixels: &[u8], width: usize, height: usize) -> Part<'_> {
        Part { pixels, row_px: width, left: 0, top: 0, width, height }
    }

    #[test]
    fn weights_add_up_to_one() {
        for rule in [Rule::Area, Rule::Cubic, Rule::Linear] {
            for (from, to) in [(1, 1), (1, 9), (2, 5), (3, 7), (256, 256), (375, 256), (1000, 3), (5, 256)] {
                let taps = Taps::new(rule, from, to);
                for (first, weights) in taps.first.iter().zip(taps.weights.chunks_exact(taps.reach)) {
                    assert!(first + taps.reach <= from);
                    let sum: f32 = weights.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-5, "{rule:?} {from} to {to}: {sum}");
                }
            }
        }
    }

    #[test]
    fn halving_takes_means_of_four() {
        let pixels: Vec<u8> = (0..8 * 6 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let got = resample(whole(&pixels, 8, 6), 4, 3, Rule::Area);
        for (i, v) in got.iter().enumerate() {
            let (y, x, c) = (i / 12, i / 3 % 4, i % 3);
            let at = |dy: usize, dx: usize| f32::from(pixels[((2 * y + dy) * 8 + 2 * x + dx) * 3 + c]);
            let mean = (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0;
            assert!((f32::from(*v) - mean).abs() <= 0.5);
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture_and_a_part_is_cut_out() {
        let pixels: Vec<u8> = (0..9 * 7 * 3).map(|i| (i * 53 % 256) as u8).collect();
        for rule in [Rule::Area, Rule::Cubic, Rule::Linear] {
            assert_eq!(resample(whole(&pixels, 9, 7), 9, 7, rule), pixels);
            let part = Part { left: 2, top: 1, width: 5, height: 4, ..whole(&pixels, 9, 7) };
            let cut: Vec<u8> = (1..5).flat_map(|y| pixels[(y * 9 + 2) * 3..][..15].iter().copied()).collect();
            assert_eq!(resample(part, 5, 4, rule), cut);
            // What lies around the part has no influence.
            assert_eq!(resample(part, 13, 11, rule), resample(whole(&cut, 5, 4), 13, 11, rule));
        }
    }
}

//! Maps of pairs for tests, and how close what is computed on them has to be.

use super::Random;
use alexnet_kernels::bf16::{MapLayout, PICTURES, TAIL, convert, pairs, pairs_mut, round, widen};

/// Canonical values (N, C, H, W) that bf16 holds, and the map that holds them; lanes without a picture hold finite noise.
pub struct Map {
    pub layout: MapLayout,
    pub values: Vec<f64>,
    pub data: Vec<f32>,
}

impl Map {
    pub fn random(layout: MapLayout, count: usize, integers: bool, random: &mut Random) -> Map {
        let len = count * layout.channels * layout.height * layout.width;
        let values = if integers { random.integers(len) } else { random.reals(len) };
        let values: Vec<f64> = values.into_iter().map(|v| f64::from(widen(round(v)))).collect();
        Map { layout, data: store(&layout, count, &values, 0.0), values }
    }

    pub fn picture(&self) -> usize {
        self.layout.channels * self.layout.height * self.layout.width
    }

    pub fn at(&self, n: usize, c: usize, h: usize, w: usize) -> f64 {
        self.values[n * self.picture() + (c * self.layout.height + h) * self.layout.width + w]
    }
}

pub fn room(layout: &MapLayout, count: usize) -> usize {
    count.div_ceil(PICTURES) * layout.block_len() + TAIL
}

pub fn store(layout: &MapLayout, count: usize, values: &[f64], missing: f32) -> Vec<f32> {
    let mut data = vec![0.0f32; room(layout, count)];
    let words = pairs_mut(&mut data);
    let picture = layout.channels * layout.height * layout.width;
    for n in 0..count.next_multiple_of(PICTURES) {
        for e in 0..picture {
            let (c, h, w) =
                (e / (layout.height * layout.width), e / layout.width % layout.height, e % layout.width);
            let (at, high) = layout.offset(n % PICTURES, c, h, w);
            let bits = round(values.get(n * picture + e).map_or(missing, |v| *v as f32));
            words[n / PICTURES * layout.block_len() + at] |= u32::from(bits) << if high { 16 } else { 0 };
        }
    }
    data
}

/// The map's values, and a check that nothing else was written: tails and empty halves are zero.
pub fn load(layout: &MapLayout, count: usize, data: &[f32]) -> Vec<f32> {
    let mut values = vec![0.0; count * layout.channels * layout.height * layout.width];
    convert::to_canonical(layout, count, data, &mut values);
    let blocks = count.div_ceil(PICTURES) * layout.block_len();
    assert!(pairs(&data[blocks..]).iter().all(|p| *p == 0), "the tail was written");
    if layout.split_channels() % 2 == 1 {
        for at in 0..blocks {
            if at / PICTURES % layout.split_pairs() == layout.split_pairs() - 1 {
                assert_eq!(pairs(data)[at] >> 16, 0, "an empty half was written");
            }
        }
    }
    values
}

/// bf16 within its rounding of what f32 sums of `terms` terms of size 1 give.
pub fn assert_rounded(what: &str, got: &[f32], want: &[f64], terms: usize, integers: bool) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        if integers {
            assert_eq!(g, widen(round(w as f32)), "{what}: element {i}, exactly {w}");
        } else {
            let bound = w.abs() / 256.0 + 1e-5 * (terms as f64).sqrt();
            assert!((f64::from(g) - w).abs() <= bound, "{what}: element {i} is {g}, not {w} (± {bound:e})");
        }
    }
}

pub fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| widen(round(v))).collect()
}

//! Mixed precision: operands and activations in bf16, sums in f32.
//!
//! A *pair* is a u32 that holds two neighbouring channels of one picture at one position, the even one in its low half.
//! Maps are (blocks, splits, H, W, pairs, 32 pictures): a vector is one pair of channels of 16 pictures, and that is at
//! once what a row of a tile's right operand holds (see [`engine`]). So a window of a convolution is a few runs of
//! consecutive rows, padding is skipped exactly, and normalization, activation and pooling go lane by lane. A map is cut
//! into splits where a grouped convolution reads or writes it, so that the channels of a group are consecutive even
//! across the columns of the window: 5 columns of 48 channels make one run of 240.
//!
//! Rounding is to nearest, ties to even. Products of bf16 are exact in f32; sums are f32. A multiplication unit may
//! flush denormal operands and sums to zero.

pub mod conv;
pub mod convert;
pub mod engine;
pub mod entry;
pub mod few;
pub mod linear;
pub mod lrn;
pub mod lrn_pool;
pub mod pooling;
pub mod spatial_lrn;

mod amx;
mod apart;
mod dot;

pub use engine::Engine;

use crate::simd::Simd;

/// Pictures of a block: the lanes of two vectors of 16, and the depth of a tile when a sum runs over pictures.
pub const PICTURES: usize = 32;

/// Elements of a tile's edge: rows, and pairs or columns in a row.
pub(crate) const EDGE: usize = 16;

/// Pairs of a tile.
pub(crate) const TILE: usize = EDGE * EDGE;

/// How a map of one block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// C
    pub channels: usize,
    /// Parts of C that lie apart; a divisor of C.
    pub splits: usize,
    /// H
    pub height: usize,
    /// W
    pub width: usize,
}

impl MapLayout {
    /// Channels of a split.
    pub fn split_channels(&self) -> usize {
        self.channels / self.splits
    }

    /// Pairs of a split; the last has an empty half if its channels are odd in number.
    pub fn split_pairs(&self) -> usize {
        self.split_channels().div_ceil(2)
    }

    /// Pairs (of all pictures) at one position of one split.
    pub fn position_len(&self) -> usize {
        self.split_pairs() * PICTURES
    }

    /// Pairs of one split of one block.
    pub fn split_len(&self) -> usize {
        self.height * self.width * self.position_len()
    }

    /// Pairs of one block.
    pub fn block_len(&self) -> usize {
        self.splits * self.split_len()
    }

    /// Where a position of a split begins within its block.
    #[inline(always)]
    pub fn at(&self, split: usize, h: usize, w: usize) -> usize {
        ((split * self.height + h) * self.width + w) * self.position_len()
    }

    /// Where channel `c` of the block's picture `n` lies: the pair, and whether it is its high half.
    pub fn offset(&self, n: usize, c: usize, h: usize, w: usize) -> (usize, bool) {
        let (split, c) = (c / self.split_channels(), c % self.split_channels());
        (self.at(split, h, w) + c / 2 * PICTURES + n, c % 2 == 1)
    }

    /// Whether a block is a flat one, but for the order of its features: whether no pair has an empty half.
    pub fn lies_flat(&self) -> bool {
        self.split_channels().is_multiple_of(2)
    }

    /// The feature, of (C, H, W), that lies where a flat block has number `lying`, if it [lies flat](MapLayout::lies_flat).
    pub fn feature(&self, lying: usize) -> usize {
        let (position, c) = (lying / self.split_channels(), lying % self.split_channels());
        let positions = self.height * self.width;
        (position / positions * self.split_channels() + c) * positions + position % positions
    }
}

/// Pairs beyond a map's end that a tile may read (and multiply by zero): they must be finite, so they are part of the
/// map's room and stay zero.
pub const TAIL: usize = EDGE * PICTURES;

/// Pairs of a map in another layout that goes to memory past the caches: 8 MiB, more than the second ones hold. Storing would
/// read every line first, which takes turns with reading what it comes from.
pub(crate) const STREAMED_LEN: usize = 2 << 20;

/// The memory of an arena as pairs.
pub fn pairs(data: &[f32]) -> &[u32] {
    // SAFETY: u32 has the size and alignment of f32, and every bit pattern is one of both.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) }
}

/// The memory of an arena as pairs, to write.
pub fn pairs_mut(data: &mut [f32]) -> &mut [u32] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), data.len()) }
}

/// The nearest bf16, ties to even, as the high half of an f32. (A NaN stays one: what arithmetic yields has its quiet bit
/// set and no low bits that a carry could run through.)
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + (0x7fff + (bits >> 16 & 1))) >> 16) as u16
}

/// The f32 of a bf16.
#[inline(always)]
pub fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// A pair of rounded values.
#[inline(always)]
pub fn pair(even: f32, odd: f32) -> u32 {
    u32::from(round(even)) | u32::from(round(odd)) << 16
}

/// An integer that orders as the bf16 with these bits does; both zeros are 0. A NaN is larger than any number, so that it
/// is not passed over.
#[inline(always)]
pub(crate) fn key(bits: i16) -> i16 {
    let magnitude = bits & 0x7fff;
    if bits < 0 && magnitude <= 0x7f80 { -magnitude } else { magnitude }
}

/// The bits of a key.
#[inline(always)]
pub(crate) fn value_of(key: i16) -> i16 {
    if key < 0 { -key | i16::MIN } else { key }
}

/// Rounds `count` consecutive values to pairs; the half behind an odd number of them is zero.
#[inline(always)]
pub(crate) unsafe fn round_values<S: Simd>(from: *const f32, count: usize, to: *mut u32) {
    const STEP: usize = 2 * EDGE;
    let whole = count / STEP * STEP;
    // SAFETY: the caller's promise of `count` values and as many halves of pairs.
    unsafe {
        for i in (0..whole).step_by(STEP) {
            S::round_values(from.add(i), to.add(i / 2));
        }
        if whole < count {
            let (mut values, mut pairs) = ([0.0; STEP], [0; EDGE]);
            std::ptr::copy_nonoverlapping(from.add(whole), values.as_mut_ptr(), count - whole);
            S::round_values(values.as_ptr(), pairs.as_mut_ptr());
            std::ptr::copy_nonoverlapping(pairs.as_ptr(), to.add(whole / 2), (count - whole).div_ceil(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_lie_where_they_are_said_to() {
        let map = MapLayout { channels: 12, splits: 2, height: 3, width: 4 };
        assert!(map.lies_flat());
        for (c, h, w) in (0..12).flat_map(|c| (0..3).flat_map(move |h| (0..4).map(move |w| (c, h, w)))) {
            let (at, odd) = map.offset(0, c, h, w);
            assert_eq!(map.feature(at / PICTURES * 2 + usize::from(odd)), (c * 3 + h) * 4 + w);
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        for (x, want) in
            [(1.0, 1.0), (1.0 + 2f32.powi(-8), 1.0), (1.0 + 3.0 * 2f32.powi(-8), 1.0 + 2f32.powi(-6))]
        {
            assert_eq!(widen(round(x)), want);
            assert_eq!(widen(round(-x)), -want);
        }
        assert_eq!(widen(round(1.0 + 2f32.powi(-8) + 2f32.powi(-20))), 1.0 + 2f32.powi(-7));
        assert_eq!(widen(round(f32::MAX)), f32::INFINITY);
        assert!(widen(round(f32::NAN)).is_nan() && widen(round(-f32::NAN)).is_nan());
        assert_eq!(pair(1.0, -2.0), 0xc000_3f80);
    }

    #[test]
    fn every_channel_has_its_own_place() {
        let map = MapLayout { channels: 6, splits: 2, height: 2, width: 3 };
        let mut seen = std::collections::HashSet::new();
        for n in 0..PICTURES {
            for c in 0..6 {
                for h in 0..2 {
                    for w in 0..3 {
                        let place = map.offset(n, c, h, w);
                        assert!(place.0 < map.block_len() && seen.insert(place));
                    }
                }
            }
        }
    }

    #[test]
    fn keys_order_as_the_numbers_do() {
        let values = [f32::NEG_INFINITY, -2.0, -1.0, -0.0, 0.0, 1e-30, 1.0, 2.0, f32::INFINITY, f32::NAN];
        let bits = |v: f32| round(v) as i16;
        let keys: Vec<i16> = values.iter().map(|v| key(bits(*v))).collect();
        assert!(keys.is_sorted() && keys[0] > i16::MIN);
        assert!(key(bits(-f32::NAN)) > key(bits(f32::INFINITY)));
        for v in values {
            assert_eq!(value_of(key(bits(v))), bits(if v == 0.0 { 0.0 } else { v }), "{v}");
        }
    }
}

//! A few pictures at once, forward only. The other kernels of [`crate::bf16`] have a picture in every lane, which
//! wastes most lanes when there are fewer pictures than lanes; here the lanes are channels.
//!
//! Maps are (pictures, splits, H, W, pairs), stored with the border that the convolution that reads them pads with. So a
//! row of a window is one run through memory, all columns and pairs of it, and the windows of neighbouring positions begin
//! a fixed distance apart: they are the rows of the left operand of [`engine`](super::engine)'s product, as many as a row
//! of the output has, and the weights are its right operand.
//!
//! Linear layers ([`crate::linear::few`]) read every weight once, row by row: their bytes are what a single picture takes time for.

pub mod conv;
pub mod convert;
pub mod lrn;
pub mod pooling;
pub mod spatial_lrn;

use super::{EDGE, widen};
use crate::simd::Simd;

/// Rows or columns of zeros around a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Border {
    /// Before the first.
    pub before: usize,
    /// After the last, at least.
    pub after: usize,
}

/// How a map of one picture lies. Elements of the border are zero and stay so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureLayout {
    /// C
    pub channels: usize,
    /// Parts of C that lie apart; a divisor of C.
    pub splits: usize,
    /// H
    pub height: usize,
    /// W
    pub width: usize,
    /// Above and below.
    pub rows: Border,
    /// Left and right.
    pub columns: Border,
}

impl PictureLayout {
    /// Channels of a split.
    pub fn split_channels(&self) -> usize {
        self.channels / self.splits
    }

    /// Pairs of a position of a split; the last has an empty half if its channels are odd in number.
    pub fn split_pairs(&self) -> usize {
        self.split_channels().div_ceil(2)
    }

    /// Pairs of a row of one split, border included.
    pub fn row_len(&self) -> usize {
        (self.columns.before + self.width + self.columns.after) * self.split_pairs()
    }

    /// Pairs of one split.
    pub fn split_len(&self) -> usize {
        (self.rows.before + self.height + self.rows.after) * self.row_len()
    }

    /// Pairs of one picture, whole vectors. Beyond its last row are zeros, as many as the last step of a window's row and
    /// the last vector of a position reach: no picture's values depend on its neighbour's.
    pub fn picture_len(&self) -> usize {
        (self.splits * self.split_len() + EDGE).next_multiple_of(EDGE)
    }

    /// Where a position of a split begins within its picture.
    #[inline(always)]
    pub fn at(&self, split: usize, h: usize, w: usize) -> usize {
        split * self.split_len()
            + (self.rows.before + h) * self.row_len()
            + (self.columns.before + w) * self.split_pairs()
    }

    /// Where channel `c` lies within its picture: the pair, and whether it is its high half.
    pub fn offset(&self, c: usize, h: usize, w: usize) -> (usize, bool) {
        let (split, c) = (c / self.split_channels(), c % self.split_channels());
        (self.at(split, h, w) + c / 2, c % 2 == 1)
    }
}

/// Widens `count` consecutive values; behind an odd number of them comes the half that is left over.
#[inline(always)]
unsafe fn widen_values(from: *const u32, count: usize, to: *mut f32) {
    // SAFETY: the caller's promise of `count` halves of pairs, and of as many values to write, rounded up to be even.
    unsafe {
        let from = from.cast::<u16>();
        for i in 0..count.next_multiple_of(2) {
            let half = if cfg!(target_endian = "little") { i } else { i ^ 1 };
            *to.add(i) = widen(*from.add(half));
        }
    }
}

/// Stores the first `n` of a vector of pairs.
#[inline(always)]
unsafe fn store_first_pairs<S: Simd>(p: *mut u32, even: S::V, odd: S::V, n: usize) {
    // SAFETY: the caller's promise of `n` pairs; the array holds every vector.
    unsafe {
        if n >= S::LANES {
            S::store_pairs(p, even, odd);
        } else {
            let mut all = [0; EDGE];
            S::store_pairs(all.as_mut_ptr(), even, odd);
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_own_place() {
        let (rows, columns) = (Border { before: 1, after: 2 }, Border { before: 3, after: 0 });
        let map = PictureLayout { channels: 6, splits: 2, height: 2, width: 17, rows, columns };
        assert_eq!((map.split_pairs(), map.row_len()), (2, 40));
        let mut seen = std::collections::HashSet::new();
        for c in 0..6 {
            for h in 0..2 {
                for w in 0..17 {
                    let place = map.offset(c, h, w);
                    assert!(place.0 + EDGE <= map.picture_len() && seen.insert(place));
                }
            }
        }
    }
}

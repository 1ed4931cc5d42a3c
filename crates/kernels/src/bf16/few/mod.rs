//! A few pictures at once, forward only. The other kernels of [`crate::bf16`] have a picture in every lane, which
//! wastes most lanes when there are fewer pictures than lanes; here the lanes are the columns of a row of one picture.
//!
//! Maps are (pictures, splits, H, pairs, W): a row of columns under another takes the place of the 32 pictures of the
//! other layout. They are stored with the border that the convolution that reads them pads with, so the window's
//! columns are the same rows of pairs, read some columns further on, and a column of the window is one run through
//! memory: `kernel` rows of all pairs of a split. The products and the left operands are those of
//! [`engine`](super::engine).
//!
//! Linear layers ([`linear`]) read every weight once, row by row: their bytes are what a single picture takes time for.

pub mod conv;
pub mod convert;
pub mod linear;
pub mod pooling;

use super::EDGE;

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
pub struct RowLayout {
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

impl RowLayout {
    /// Channels of a split.
    pub fn split_channels(&self) -> usize {
        self.channels / self.splits
    }

    /// Pairs of a split; the last has an empty half if its channels are odd in number.
    pub fn split_pairs(&self) -> usize {
        self.split_channels().div_ceil(2)
    }

    /// Columns of a row of one pair, border included; whole tiles, so that rows begin at cache lines.
    pub fn pitch(&self) -> usize {
        (self.columns.before + self.width + self.columns.after).next_multiple_of(EDGE)
    }

    /// Pairs of a row of one split.
    pub fn row_len(&self) -> usize {
        self.split_pairs() * self.pitch()
    }

    /// Pairs of one split.
    pub fn split_len(&self) -> usize {
        (self.rows.before + self.height + self.rows.after) * self.row_len()
    }

    /// Pairs of one picture. Beyond its last row are zeros, as many as a tile that begins within the map may reach: the
    /// depth of its last step is multiplied by zero there, and no picture's values depend on its neighbour's.
    pub fn picture_len(&self) -> usize {
        self.splits * self.split_len() + EDGE * self.pitch() + EDGE
    }

    /// Where a pair of a split at a position begins within its picture.
    #[inline(always)]
    pub fn at(&self, split: usize, pair: usize, h: usize, w: usize) -> usize {
        split * self.split_len()
            + (self.rows.before + h) * self.row_len()
            + pair * self.pitch()
            + self.columns.before
            + w
    }

    /// Where channel `c` lies within its picture: the pair, and whether it is its high half.
    pub fn offset(&self, c: usize, h: usize, w: usize) -> (usize, bool) {
        let (split, c) = (c / self.split_channels(), c % self.split_channels());
        (self.at(split, c / 2, h, w), c % 2 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_own_place() {
        let (rows, columns) = (Border { before: 1, after: 2 }, Border { before: 3, after: 0 });
        let map = RowLayout { channels: 6, splits: 2, height: 2, width: 17, rows, columns };
        assert_eq!((map.split_pairs(), map.pitch()), (2, 32));
        let mut seen = std::collections::HashSet::new();
        for c in 0..6 {
            for h in 0..2 {
                for w in 0..17 {
                    let place = map.offset(c, h, w);
                    assert!(place.0 + EDGE * map.pitch() < map.picture_len() && seen.insert(place));
                }
            }
        }
    }
}

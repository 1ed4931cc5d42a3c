//! Rows of map 0 that a unit of a convolution makes of pixels when its windows come to them. They wait in a ring in the unit's
//! scratch, as many as a window has, and stay in L2: no map of them is stored.

use crate::bf16::engine::Pieces;
use crate::bf16::entry::{Entry, Pixels, Rows};
use crate::bf16::{EDGE, PICTURES};
use crate::simd::Simd;
use std::ops::Range;

/// Pairs behind a row: the last step of a run may read so far beyond it, and multiplies what is there by zero.
const BEYOND: usize = EDGE * PICTURES;

/// Map 0, row by row.
pub(super) struct Entering<'a> {
    rows: Rows<'a>,
    /// Rows of a window.
    kernel: usize,
}

impl<'a> Entering<'a> {
    /// For windows of `kernel` rows of the map of `count` pictures.
    pub fn new(entry: &Entry, count: usize, pixels: Pixels<'a>, kernel: usize) -> Entering<'a> {
        assert_eq!(entry.map.splits, 1, "a map 0 of splits");
        Entering { rows: Rows::new(entry, count, pixels), kernel }
    }

    /// Elements of scratch: the ring, and what it takes to fill it.
    pub fn scratch_len(entry: &Entry, kernel: usize) -> usize {
        kernel * row_len(entry) + entry.scratch_len()
    }

    /// How pixels become the map.
    pub fn entry(&self) -> &Entry {
        self.rows.entry()
    }

    /// Where row `h` begins in the ring, in pairs.
    #[inline(always)]
    pub fn at(&self, h: usize) -> usize {
        h % self.kernel * row_len(self.rows.entry())
    }

    /// The pixels that some rows of a block are made of.
    pub fn under(&self, block: usize, rows: Range<usize>) -> Pieces {
        self.rows.under(block, rows)
    }

    /// Zeros behind the rows of the ring.
    ///
    /// # Safety
    /// `ring` has [`Entering::scratch_len`] elements.
    pub unsafe fn clear(&self, ring: *mut f32) {
        let len = row_len(self.rows.entry());
        for row in 0..self.kernel {
            // SAFETY: the caller's promise.
            unsafe { ring.add((row + 1) * len - BEYOND).write_bytes(0, BEYOND) };
        }
    }

    /// Makes rows of a block, in place of those that lie where they go.
    ///
    /// # Safety
    /// As [`Entering::clear`]; the processor has `S`.
    #[inline(always)]
    pub unsafe fn fill<S: Simd>(&self, block: usize, rows: Range<usize>, ring: *mut f32) {
        for h in rows.clone() {
            // SAFETY: the caller's promise.
            unsafe {
                let scratch = ring.add(self.kernel * row_len(self.rows.entry()));
                self.rows.fill::<S>(block, 0, h, rows.end, scratch, ring.add(self.at(h)).cast());
            }
        }
    }
}

/// Pairs from a row to the next.
fn row_len(entry: &Entry) -> usize {
    entry.map.width * entry.map.position_len() + BEYOND
}

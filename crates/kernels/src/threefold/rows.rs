//! Maps in high and low parts, a picture's row of a map after the other: what is under a row of a window is consecutive.

use crate::bf16::engine::{Engine, run_vectors};
use crate::bf16::{PICTURES, round, widen};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// Values of a cache line.
const LINE: usize = 32;

/// How a map in high and low parts lies: (blocks, groups, H, 2 parts, 32 pictures, columns with zeros around them, C/G) in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Pictures in a block of the map in f32, at most 32.
    pub block: usize,
    /// G
    pub groups: usize,
    /// C/G
    pub channels: usize,
    /// H
    pub height: usize,
    /// W
    pub width: usize,
    /// Columns of zeros before and after a row.
    pub pad: [usize; 2],
}

impl Rows {
    /// Values from a picture's row to the next one's: an odd number of lines, so that 32 pictures fall into different sets of a
    /// cache.
    pub(super) fn row_len(&self) -> usize {
        let values = (self.pad[0] + self.width + self.pad[1]) * self.channels;
        (values.div_ceil(LINE) | 1) * LINE
    }

    /// Values of a part of a row, of all pictures.
    pub(super) fn part_len(&self) -> usize {
        PICTURES * self.row_len()
    }

    fn block_len(&self) -> usize {
        self.groups * self.height * 2 * self.part_len()
    }

    /// Where the high parts of a row begin.
    #[inline(always)]
    pub(super) fn at(&self, block: usize, group: usize, h: usize) -> usize {
        block * self.block_len() + (group * self.height + h) * 2 * self.part_len()
    }

    /// Elements of f32 that hold `blocks` blocks, and as much behind them as a step may read.
    pub fn len(&self, blocks: usize) -> usize {
        (blocks * self.block_len() + LINE) / 2
    }
}

/// The parts of a map of `blocks` blocks. What is beyond rows and pictures becomes zero.
///
/// Shapes: x (blocks, H, W, block, C).
pub fn split(ctx: &mut Context, engine: Engine, rows: &Rows, blocks: usize, x: &[f32], to: &mut [f32]) {
    let Rows { block, groups, channels, height, width, .. } = *rows;
    assert!(x.len() >= blocks * height * width * block * groups * channels, "map");
    assert!(to.len() >= rows.len(blocks) && block <= PICTURES, "parts");
    // A step may read so far beyond the last row, and multiplies what is there by zero.
    to[rows.len(blocks) - LINE / 2..rows.len(blocks)].fill(0.0);
    run_vectors(ctx, engine, &Split { rows: *rows, blocks, x, to: Ptr::from_mut(to) });
}

struct Split<'a> {
    rows: Rows,
    blocks: usize,
    x: &'a [f32],
    to: Ptr,
}

impl Kernel for Split<'_> {
    /// Rows of the map.
    fn units(&self) -> usize {
        self.blocks * self.rows.height
    }

    /// A picture's row.
    fn scratch_len(&self) -> usize {
        self.rows.row_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let Rows { block, groups, channels, height, width, pad } = self.rows;
        let (b, h) = (unit / height, unit % height);
        let (row_len, part_len) = (self.rows.row_len(), self.rows.part_len());
        let x = &self.x[unit * width * block * groups * channels..][..width * block * groups * channels];
        let to = self.to.at(0).cast::<u16>();
        // SAFETY: the row lies within `to`, of which this unit owns it; scratch has room for a picture's.
        unsafe {
            std::ptr::write_bytes(scratch, 0, row_len);
            for group in 0..groups {
                let to = to.add(self.rows.at(b, group, h));
                for n in 0..PICTURES {
                    let (high, low) = (to.add(n * row_len), to.add(part_len + n * row_len));
                    if n >= block {
                        std::ptr::write_bytes(high, 0, row_len);
                        std::ptr::write_bytes(low, 0, row_len);
                        continue;
                    }
                    for w in 0..width {
                        let from = x.as_ptr().add((w * block + n) * groups * channels + group * channels);
                        let to = scratch.add((pad[0] + w) * channels);
                        std::ptr::copy_nonoverlapping(from, to, channels);
                    }
                    split_row::<S>(scratch, row_len, high, low);
                }
            }
        }
    }
}

/// The parts of `len` values, whole lines.
#[inline(always)]
pub(super) unsafe fn split_row<S: Simd>(from: *const f32, len: usize, high: *mut u16, low: *mut u16) {
    let mut rest = [0.0f32; LINE];
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..len).step_by(LINE) {
            let (from, high) = (from.add(i), high.add(i).cast::<u32>());
            S::round_values(from, high);
            for v in 0..LINE {
                rest[v] = *from.add(v) - widen(*high.cast::<u16>().add(v));
            }
            S::round_values(rest.as_ptr(), low.add(i).cast());
        }
    }
}

/// The parts of a value.
#[inline(always)]
pub(super) fn parts(x: f32) -> (u16, u16) {
    let high = round(x);
    (high, round(x - widen(high)))
}

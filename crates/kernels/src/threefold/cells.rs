//! 32 × 32 values of a matrix in parts, as a step's operand: the high parts, then the low ones, 4 KiB.

use super::rows::split_row;
use crate::bf16::{EDGE, TILE};
use crate::simd::Simd;

/// Rows and columns.
pub(super) const SIDE: usize = 2 * EDGE;
/// Elements: two tiles of high parts, two of low ones.
pub(super) const CELL: usize = 4 * TILE;

/// A left operand: rows as they are. Zero beyond `rows` and `columns`.
///
/// # Safety
/// `from` has so many rows, `stride` apart, and `to` room for a cell; the processor has `S`.
#[inline(always)]
pub(super) unsafe fn left<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    columns: usize,
    to: *mut u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..SIDE {
            let (high, low) = (to.add(row * EDGE), to.add(2 * TILE + row * EDGE));
            if row >= rows {
                high.write_bytes(0, EDGE);
                low.write_bytes(0, EDGE);
            } else if columns >= SIDE {
                split_row::<S>(from.add(row * stride), SIDE, high.cast(), low.cast());
            } else {
                let mut values = [0.0f32; SIDE];
                std::ptr::copy_nonoverlapping(from.add(row * stride), values.as_mut_ptr(), columns);
                split_row::<S>(values.as_ptr(), SIDE, high.cast(), low.cast());
            }
        }
    }
}

/// A right operand: rows in pairs. Zero beyond `rows` and `columns`.
///
/// # Safety
/// As [`left`].
#[inline(always)]
pub(super) unsafe fn right<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    columns: usize,
    to: *mut u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for p in 0..EDGE {
            for c in (0..SIDE).step_by(S::LANES) {
                let lanes = columns.saturating_sub(c).min(S::LANES);
                let mut both = [S::zero(); 2];
                for (half, value) in both.iter_mut().enumerate() {
                    if 2 * p + half < rows && lanes > 0 {
                        *value = S::load_part(from.add((2 * p + half) * stride + c), lanes);
                    }
                }
                let high = to.add(c / EDGE * TILE + p * EDGE + c % EDGE);
                S::store_pairs(high, both[0], both[1]);
                let rounded = S::load_pairs(high);
                S::store_pairs(high.add(2 * TILE), S::sub(both[0], rounded.0), S::sub(both[1], rounded.1));
            }
        }
    }
}

/// A right operand whose columns are the rows of `from`. Zero beyond `rows` and `columns`, which are those of `from`.
///
/// # Safety
/// As [`left`].
#[inline(always)]
pub(super) unsafe fn right_turned<S: Simd>(
    from: *const f32,
    stride: usize,
    rows: usize,
    columns: usize,
    to: *mut u32,
) {
    let mut rows_of_pairs = [0u32; CELL];
    // SAFETY: the caller's promise.
    unsafe {
        left::<S>(from, stride, rows, columns, rows_of_pairs.as_mut_ptr());
        for tile in (0..CELL).step_by(TILE) {
            S::transpose(rows_of_pairs.as_ptr().add(tile), EDGE, to.add(tile));
        }
    }
}

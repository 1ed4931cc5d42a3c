//! Local response normalization across maps and the max pooling behind it in one pass (see [`crate::lrn`] and [`crate::pooling`],
//! whose results these are): what lies between them, y of the normalization and its gradient, is never stored.
//!
//! ```text
//! forward, for some pictures, a band of rows of the pooled map      (a unit)
//!   for row of the pooled map
//!     normalize the rows that its windows are the first to need      as many as a window has, in L2
//!     the largest of every window
//! backward, for a row of x                                          (a unit)
//!   for position, some pictures
//!     gather dy of the normalization from the windows                in L1
//!     its gradient
//! ```

use crate::lrn::Lrn;
use crate::panel::tiles;
use crate::parallel::{Context, Kernel, Ptr};
use crate::pooling::{self, Geometry, Largest, Share, Window};
use crate::simd::{Simd, prefetch_run};

/// Pictures whose normalized rows are there at a time: 3 rows of 55 positions of 96 maps are a quarter of a MiB.
const PICTURES: usize = 4;
/// Pictures of a position whose gradient is computed at a time.
const GATHERED: usize = 8;

/// A normalization and the pooling behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrnPool {
    /// The normalization.
    pub lrn: Lrn,
    /// The pooling.
    pub pool: Geometry,
}

impl LrnPool {
    fn check(&self, blocks: usize, x: usize, y: usize) {
        self.pool.check(blocks, x, y);
        assert!(self.pool.depth.is_multiple_of(self.lrn.channels), "whole pictures");
    }

    /// Pictures of a block.
    fn block(&self) -> usize {
        self.pool.depth / self.lrn.channels
    }

    /// Elements of the normalized rows of some pictures.
    fn rows_len(&self) -> usize {
        let pictures = PICTURES.min(self.block());
        self.pool.rows.kernel * self.pool.columns.input * pictures * self.lrn.channels
    }

    /// Elements of scratch that each thread needs.
    pub fn scratch_len(&self) -> usize {
        let rows = |pictures: usize| self.lrn.rows_scratch_len(pictures * self.lrn.towers);
        let gathered = GATHERED.min(self.block());
        let backward = 2 * gathered * self.lrn.channels + rows(gathered);
        (self.rows_len() + rows(PICTURES.min(self.block()))).max(backward)
    }
}

/// y = the pooled normalization of x; `winners`, if they are wanted, receive the place of the (first) maximum.
pub fn forward(ctx: &mut Context, op: &LrnPool, x: &[f32], y: &mut [f32], winners: Option<&mut [u8]>) {
    let blocks = x.len() / op.pool.input_len(1);
    op.check(blocks, x.len(), y.len());
    let groups = op.block().div_ceil(PICTURES);
    // The rows between two bands are normalized twice: no more bands than give every thread a few units.
    let bands = (4 * ctx.threads()).div_ceil((blocks * groups).max(1)).clamp(1, op.pool.rows.output.max(1));
    ctx.run(&Forward { op: *op, blocks, groups, bands, x, largest: Largest::new(y, winners) });
}

struct Forward<'a> {
    op: LrnPool,
    blocks: usize,
    /// Of the pictures of a block.
    groups: usize,
    /// Of the rows of y.
    bands: usize,
    x: &'a [f32],
    largest: Largest,
}

impl Kernel for Forward<'_> {
    fn units(&self) -> usize {
        self.blocks * self.groups * self.bands
    }

    fn scratch_len(&self) -> usize {
        self.op.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let LrnPool { lrn, pool } = self.op;
        let Geometry { rows, columns, depth } = pool;
        let (unit, band) = (unit / self.bands, unit % self.bands);
        let (block, group) = (unit / self.groups, unit % self.groups);
        let outputs = band * rows.output / self.bands..(band + 1) * rows.output / self.bands;
        let Some((picture, pictures)) = tiles(self.op.block(), PICTURES).nth(group) else { return };
        let (first, len) = (picture * lrn.channels, pictures * lrn.channels);
        let normalized = scratch;
        let lrn_scratch = scratch.wrapping_add(self.op.rows_len());
        // Row h lies where the one that no window needs any more lay.
        let slot = |h: usize, w: usize| normalized.wrapping_add((h % rows.kernel * columns.input + w) * len);
        let mut window = Window::new();
        let mut next = 0;
        // SAFETY: positions are within x, and scratch has room for so many rows; this unit owns these pictures of its rows of y
        // and of the winners.
        unsafe {
            lrn.clear_rows(pictures * lrn.towers, lrn_scratch);
            for p in outputs {
                let top = p * rows.stride;
                for h in next.max(top)..(top + rows.kernel).min(rows.input) {
                    for w in 0..columns.input {
                        let at = ((block * rows.input + h) * columns.input + w) * depth + first;
                        let x = self.x.as_ptr().add(at);
                        // Positions are too far apart for the processor to foresee the next one.
                        prefetch_run(x.wrapping_add(depth), len);
                        lrn.normalize_rows::<S>(pictures * lrn.towers, x, slot(h, w), lrn_scratch);
                    }
                    next = h + 1;
                }
                for q in 0..columns.output {
                    window.find(&pool, p, q, |h, w| (slot(h, w).cast_const(), 0));
                    let out = ((block * rows.output + p) * columns.output + q) * depth + first;
                    self.largest.of::<S>(&window, len, out);
                }
            }
        }
    }
}

/// Which elements of a window receive the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub enum Won<'a> {
    /// The recorded winner (Caffe, PyTorch).
    Winner(&'a [u8]),
    /// Every element that equals this output y (cuda-convnet).
    EveryMaximum(&'a [f32]),
}

/// dx from x and dy of the pooled map. With `relu`, dx is zero where x is not positive: x came out of a ReLU.
pub fn backward(
    ctx: &mut Context,
    op: &LrnPool,
    x: &[f32],
    won: Won,
    dy: &[f32],
    relu: bool,
    dx: &mut [f32],
) {
    let blocks = x.len() / op.pool.input_len(1);
    op.check(blocks, x.len(), dy.len());
    assert_eq!(x.len(), dx.len(), "maps");
    let share = match won {
        Won::Winner(winners) => Share::Winner(winners),
        Won::EveryMaximum(y) => Share::EveryMaximum { x, y },
    };
    match won {
        Won::Winner(winners) => assert_eq!(winners.len(), dy.len(), "winners"),
        Won::EveryMaximum(y) => assert_eq!(y.len(), dy.len(), "maps"),
    }
    ctx.run(&Backward { op: *op, blocks, x, share, dy, relu, dx: Ptr::from_mut(dx) });
}

struct Backward<'a> {
    op: LrnPool,
    blocks: usize,
    x: &'a [f32],
    share: Share<'a>,
    dy: &'a [f32],
    relu: bool,
    dx: Ptr,
}

impl Kernel for Backward<'_> {
    /// Rows of x.
    fn units(&self) -> usize {
        self.blocks * self.op.pool.rows.input
    }

    fn scratch_len(&self) -> usize {
        self.op.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let LrnPool { lrn, pool } = self.op;
        let Geometry { rows, columns, depth } = pool;
        let (block, h) = (unit / rows.input, unit % rows.input);
        let room = GATHERED.min(self.op.block()) * lrn.channels;
        let (gathered, normalized) = (scratch, scratch.wrapping_add(room));
        let lrn_scratch = normalized.wrapping_add(room);
        // SAFETY: positions are within the maps, and scratch has room for so many pictures; this unit owns row h of the block in dx.
        unsafe {
            // Rows of scratch are alike, so what is ready for the most pictures is for fewer.
            lrn.clear_rows(room / lrn.channels * lrn.towers, lrn_scratch);
            for w in 0..columns.input {
                let position = ((block * rows.input + h) * columns.input + w) * depth;
                for (picture, pictures) in tiles(self.op.block(), GATHERED) {
                    let (lrn_rows, len) = (pictures * lrn.towers, pictures * lrn.channels);
                    let elements = picture * lrn.channels..picture * lrn.channels + len;
                    let x = self.x.as_ptr().add(position + elements.start);
                    let dx = self.dx.at(position + elements.start);
                    prefetch_run(x.wrapping_add(depth), len);
                    prefetch_run(dx.wrapping_add(depth), len);
                    if let Share::EveryMaximum { .. } = self.share {
                        // What the forward pass compared, bit for bit.
                        lrn.normalize_rows::<S>(lrn_rows, x, normalized, lrn_scratch);
                    }
                    let (share, dy, place) = (self.share, self.dy, [h, w]);
                    pooling::gather::<S>(&pool, share, dy, block, place, elements, normalized, gathered);
                    lrn.gradient_of_rows::<S>(lrn_rows, x, gathered, self.relu, dx, lrn_scratch);
                }
            }
        }
    }
}

//! Local response normalization across maps and the max pooling behind it in one pass (see [`super::lrn`] and
//! [`super::pooling`], whose results these are): what lies between them, y of the normalization and its gradient, is never
//! stored. That is half of the bytes that the two move.
//!
//! ```text
//! forward, for a band of rows of the pooled map          (a unit)
//!   for row, position: normalize                         a ring of as many positions as a window has columns, in L1
//!     for windows whose last column this is              their largest value in this row
//!       join the rows above                              one row of windows, in L2; stored when the last row has come
//! backward, for a row of x                               (a unit)
//!   for position: gradient of the normalization, whose dy is gathered from the windows on the way
//! ```

use super::engine::{Engine, run_vectors};
use super::lrn::{Five, Sink, Source, Two, Walk};
use super::pooling::{Finish, Geometry, Largest, MOST_PLACES, Record, Windows, Won};
use super::{PICTURES, pairs};
use crate::lrn::Lrn;
use crate::parallel::{Context, Kernel, Ptr};
use crate::pooling::windows_of;
use crate::simd::Simd;

/// A normalization over windows of five channels and the pooling behind it.
#[derive(Clone, Copy, Debug)]
pub struct LrnPool {
    /// The normalization.
    pub lrn: Lrn,
    /// The pooling, from the normalization's layout.
    pub pool: Geometry,
}

impl LrnPool {
    fn check(&self, blocks: usize, x: usize, y: usize, places: usize) {
        assert!(Five::takes(&self.lrn, &self.pool.input), "windows of five, and channels in whole pairs");
        assert_eq!(self.lrn.channels, self.pool.input.channels, "channels");
        self.pool.check(blocks, x, y, places);
    }

    /// Pairs of a position, of all pictures.
    fn position_len(&self) -> usize {
        self.pool.pairs() * PICTURES
    }

    /// Windows of a column that one row can be part of.
    fn live(&self) -> usize {
        self.pool.rows.kernel.div_ceil(self.pool.rows.stride)
    }

    /// Outputs that can be unfinished at a time.
    fn unfinished(&self) -> usize {
        self.live() * self.pool.columns.output * self.pool.pairs()
    }

    /// Elements of scratch that each thread needs: normalized positions, and for every unfinished output its largest value
    /// so far and where it was.
    pub fn scratch_len(&self) -> usize {
        self.pool.columns.kernel * self.position_len() + 2 * self.unfinished() * PICTURES
    }
}

/// y = the pooled normalization of x, and who won, if that is wanted. `relu`: whether x came out of a ReLU, so that nothing that
/// is pooled is negative, and [`backward`] passes nothing to what is zero: that has no winner.
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    op: &LrnPool,
    blocks: usize,
    x: &[f32],
    y: &mut [f32],
    relu: bool,
    record: Option<Record>,
) {
    op.check(blocks, x.len(), y.len(), record.as_ref().map_or(usize::MAX, |r| r.places.len()));
    // The rows between two bands are normalized twice: no more bands than give every thread a few.
    let bands = (4 * ctx.threads()).div_ceil(blocks).clamp(1, op.pool.rows.output);
    let finish = Finish::new(y, relu, record);
    run_vectors(ctx, engine, &Forward { op: *op, blocks, bands, x: pairs(x), finish });
}

struct Forward<'a> {
    op: LrnPool,
    blocks: usize,
    /// Of a block.
    bands: usize,
    x: &'a [u32],
    finish: Finish,
}

/// A normalized position.
struct ToScratch(*mut u32);

impl Sink for ToScratch {
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, _at: usize, y: Two<S::V>) {
        // SAFETY: the caller's promise that there is room for every pair of a position.
        unsafe { S::store_pairs(self.0, y[0], y[1]) };
        self.0 = self.0.wrapping_add(PICTURES);
    }
}

impl Kernel for Forward<'_> {
    fn units(&self) -> usize {
        self.blocks * self.bands
    }

    fn scratch_len(&self) -> usize {
        self.op.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        // SAFETY: passed on from the caller.
        unsafe {
            match (self.finish.relu, self.finish.records()) {
                (false, false) => self.band::<S, false, false>(unit, scratch),
                (false, true) => self.band::<S, false, true>(unit, scratch),
                (true, false) => self.band::<S, true, false>(unit, scratch),
                (true, true) => self.band::<S, true, true>(unit, scratch),
            }
        }
    }
}

impl Forward<'_> {
    /// A band of rows of y.
    #[inline(always)]
    unsafe fn band<S: Simd, const RELU: bool, const RECORD: bool>(&self, unit: usize, scratch: *mut f32) {
        let LrnPool { lrn, pool } = self.op;
        let Geometry { input, rows, columns, .. } = pool;
        let (block, band) = (unit / self.bands, unit % self.bands);
        let outputs = band * rows.output / self.bands..(band + 1) * rows.output / self.bands;
        let five = Five { lrn, map: input, x: self.x };
        let (ring, position_len) = (scratch.cast::<u32>(), self.op.position_len());
        let last = ((outputs.end - 1) * rows.stride + rows.kernel).min(rows.input);
        for h in outputs.start * rows.stride..last {
            let mut q = 0;
            for w in 0..columns.input {
                let first = block * input.block_len() + input.at(0, h, w);
                let slot = ring.wrapping_add(w % columns.kernel * position_len);
                for lane in (0..PICTURES).step_by(S::LANES) {
                    // SAFETY: the position is within x, and the ring has room for it.
                    unsafe { five.normalize::<S>(first + lane, &mut ToScratch(slot.wrapping_add(lane))) };
                }
                // The windows whose last column this is; more than one if they overhang the last column of the map.
                while q < columns.output && (q * columns.stride + columns.kernel).min(columns.input) == w + 1
                {
                    // SAFETY: all columns of the window are in the ring.
                    unsafe { self.pool_row::<S, RELU, RECORD>(block, &outputs, h, q, w, scratch) };
                    q += 1;
                }
            }
        }
    }

    /// Row `h` of the windows of output column `q`, whose last column is `w`.
    #[inline(always)]
    unsafe fn pool_row<S: Simd, const RELU: bool, const RECORD: bool>(
        &self,
        block: usize,
        outputs: &std::ops::Range<usize>,
        h: usize,
        q: usize,
        w: usize,
        scratch: *mut f32,
    ) {
        let Geometry { output, rows, columns, .. } = self.op.pool;
        let (position_len, live) = (self.op.position_len(), self.op.live());
        let ring = scratch.cast::<u32>().cast_const();
        let unfinished = scratch.wrapping_add(columns.kernel * position_len).cast::<u32>();
        // Where the ring holds the window's columns.
        let first = q * columns.stride;
        let mut held = [0; MOST_PLACES];
        for (held, w) in held.iter_mut().zip(first..=w) {
            *held = w % columns.kernel * position_len;
        }
        let held = &held[..=w - first];
        // The windows that this row is part of.
        let mut parts = [Part::default(); MOST_PLACES];
        let mut used = 0;
        for (p, r) in windows_of(rows, h).filter(|(p, _)| outputs.contains(p)) {
            parts[used] = Part {
                row: r,
                last: r + 1 == rows.kernel || h + 1 == rows.input,
                unfinished: 2 * (p % live * columns.output + q) * position_len,
                y: output.at(0, p, 0),
            };
            used += 1;
        }
        let mut to = Walk::new(&output, block * output.block_len() + output.at(0, 0, q), 0);
        let winners = self.finish.winners;
        for pair in 0..self.op.pool.pairs() {
            let at = to.step();
            for lane in (0..PICTURES).step_by(S::LANES) {
                let ring = ring.wrapping_add(pair * PICTURES + lane);
                // SAFETY: the ring holds the window's columns, and scratch every unfinished output; this unit owns its
                // rows of y and of the record.
                unsafe {
                    let mut row = Largest::<S, RELU, RECORD>::first(ring.add(held[0]));
                    for (s, from) in held.iter().enumerate().skip(1) {
                        row.see(ring.add(*from), s, winners);
                    }
                    for part in &parts[..used] {
                        let keys = unfinished.add(part.unfinished + 2 * pair * PICTURES + lane).cast::<i16>();
                        let places = keys.add(2 * PICTURES);
                        let mut all = Largest::<S, RELU, RECORD> {
                            keys: row.keys,
                            places: S::shift_shorts(row.places, part.row * columns.kernel),
                        };
                        if part.row > 0 {
                            let mut above = Largest::<S, RELU, RECORD> {
                                keys: S::load_shorts(keys),
                                places: S::load_shorts(places),
                            };
                            above.join(&all, winners);
                            all = above;
                        }
                        if part.last {
                            self.finish.store(at + part.y + lane, &all);
                        } else {
                            S::store_shorts(keys, all.keys);
                            if RECORD {
                                S::store_shorts(places, all.places);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A row as a part of a window.
#[derive(Clone, Copy, Default)]
struct Part {
    /// Which of the window's rows.
    row: usize,
    /// Whether it is the last: what the window yields is known.
    last: bool,
    /// Where the largest values of the rows so far lie in scratch.
    unfinished: usize,
    /// Where the window's y lies, seen from one at the top.
    y: usize,
}

/// dx from x and dy of the pooled map. With `relu`, dx is zero where x is not positive: x came out of a ReLU.
pub fn backward(
    ctx: &mut Context,
    engine: Engine,
    op: &LrnPool,
    blocks: usize,
    x: &[f32],
    dy: &[f32],
    places: &[u16],
    relu: bool,
    dx: &mut [f32],
) {
    op.check(blocks, x.len().min(dx.len()), dy.len(), places.len());
    let won = Won { dy: pairs(dy), places };
    run_vectors(ctx, engine, &Backward { op: *op, blocks, x: pairs(x), won, relu, dx: Ptr::from_mut(dx) });
}

struct Backward<'a> {
    op: LrnPool,
    blocks: usize,
    x: &'a [u32],
    won: Won<'a>,
    relu: bool,
    dx: Ptr,
}

/// The gradient of a normalized position, from the windows that it won.
struct Gathered<'a> {
    won: Won<'a>,
    windows: &'a Windows,
    to: Walk,
}

impl Source for Gathered<'_> {
    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self, _at: usize) -> Two<S::V> {
        let out = self.to.step();
        // SAFETY: the caller's promise; the windows are within the pooled map.
        unsafe { self.won.gather::<S>(self.windows, out) }
    }
}

impl Kernel for Backward<'_> {
    /// Rows of x.
    fn units(&self) -> usize {
        self.blocks * self.op.pool.rows.input
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let LrnPool { lrn, pool } = self.op;
        let Geometry { input, output, rows, columns } = pool;
        let (block, h) = (unit / rows.input, unit % rows.input);
        let five = Five { lrn, map: input, x: self.x };
        let mut windows = Windows::new(&pool);
        for w in 0..columns.input {
            windows.find(&pool, h, w);
            for lane in (0..PICTURES).step_by(S::LANES) {
                let first = block * input.block_len() + input.at(0, h, w) + lane;
                let to = Walk::new(&output, block * output.block_len() + lane, 0);
                let mut dy = Gathered { won: self.won, windows: &windows, to };
                // SAFETY: the position is within x and dx, of which this unit owns row h of the block.
                unsafe { five.gradient::<S>(first, &mut dy, self.relu, self.dx) };
            }
        }
    }
}

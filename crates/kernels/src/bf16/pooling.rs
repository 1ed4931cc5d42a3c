//! Max pooling on bf16 maps (see [`crate::pooling`]): which places of a window receive the gradient of its maximum is
//! recorded as 16 bits, and the gradient is gathered.

use super::engine::{Engine, run_vectors};
use super::lrn::{Two, Walk};
use super::{EDGE, MapLayout, PICTURES, STREAMED_LEN, pairs};
use crate::conv::Axis;
use crate::parallel::{Context, Kernel, Ptr};
use crate::pooling::windows_of;
use crate::simd::{Simd, prefetch};
use std::ops::Range;

/// The geometry of a pooling; `Axis::pad` is zero, and windows are clipped to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// x
    pub input: MapLayout,
    /// y, whose channels may be split otherwise.
    pub output: MapLayout,
    /// H, P, window
    pub rows: Axis,
    /// W, Q, window
    pub columns: Axis,
}

impl Geometry {
    pub(super) fn check(&self, blocks: usize, x: usize, y: usize, places: usize) {
        assert!(x >= blocks * self.input.block_len(), "the map that is pooled");
        self.check_output(blocks, y, places);
    }

    /// As [`Geometry::check`], where nothing holds x.
    pub(super) fn check_output(&self, blocks: usize, y: usize, places: usize) {
        assert!(y >= blocks * self.output.block_len(), "the pooled map");
        assert!(places >= 2 * blocks * self.output.block_len(), "winners");
        assert!(self.rows.kernel * self.columns.kernel <= MOST_PLACES, "places of a window");
        assert_eq!(self.input.channels, self.output.channels, "channels");
        let axes = [
            (self.rows, self.input.height, self.output.height),
            (self.columns, self.input.width, self.output.width),
        ];
        for (axis, input, output) in axes {
            assert_eq!((axis.input, axis.output), (input, output), "an axis of other maps");
            assert!(
                axis.pad == 0 && (output == 0 || (output - 1) * axis.stride < input),
                "windows within the map"
            );
        }
        // A pair of one map is a pair of the other.
        let even = |map: &MapLayout| map.splits == 1 || map.split_channels().is_multiple_of(2);
        let (x, y) = (&self.input, &self.output);
        assert!(x.splits == y.splits || even(x) && even(y), "splits of an odd number of channels");
    }

    /// Channel pairs over all splits.
    pub(super) fn pairs(&self) -> usize {
        self.input.splits * self.input.split_pairs()
    }
}

/// Most places of a window: a bit each.
pub const MOST_PLACES: usize = 16;

/// Who receives the gradient of a maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winners {
    /// The first of a window (Caffe, PyTorch).
    First,
    /// Every one that is as large, in full (cuda-convnet).
    All,
}

/// Where winners are recorded, for each half of each pair of y a bit for each place of its window, and who wins.
#[derive(Debug)]
pub struct Record<'a> {
    /// Twice as many as y has pairs.
    pub places: &'a mut [u16],
    /// Who wins.
    pub winners: Winners,
}

/// y = max over each window of x, and who won, if that is wanted. `relu`: whether x came out of a ReLU, which passes no gradient
/// to what is not positive: such a maximum has no winner.
pub fn max_forward(
    ctx: &mut Context,
    g: &Geometry,
    blocks: usize,
    x: &[f32],
    y: &mut [f32],
    relu: bool,
    record: Option<Record>,
) {
    g.check(blocks, x.len(), y.len(), record.as_ref().map_or(usize::MAX, |r| r.places.len()));
    let finish = Finish::new(y, relu, record);
    ctx.run(&MaxForward { g: *g, blocks, x: pairs(x), finish });
}

/// The largest values so far of as many pairs as a vector has lanes, as keys, and, if `RECORD` says so, where they were: a bit
/// for each place. `RELU`: whether the values came out of a ReLU, whose keys are less work.
pub(super) struct Largest<S: Simd, const RELU: bool, const RECORD: bool> {
    pub keys: S::Shorts,
    pub places: S::Shorts,
}

impl<S: Simd, const RELU: bool, const RECORD: bool> Largest<S, RELU, RECORD> {
    /// The pairs of a window's first place.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; the pairs are there.
    #[inline(always)]
    pub unsafe fn first(pairs: *const u32) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = S::load_shorts(pairs.cast());
            let keys = if RELU { S::magnitudes(bits) } else { S::keys(bits) };
            Largest { keys, places: S::splat_short(1) }
        }
    }

    /// Takes in the pairs of a later place.
    ///
    /// # Safety
    /// As [`Largest::first`].
    #[inline(always)]
    pub unsafe fn see(&mut self, pairs: *const u32, place: usize, winners: Winners) {
        // SAFETY: the caller's promise.
        unsafe {
            let seen = Self { places: S::splat_short((1u16 << place) as i16), ..Self::first(pairs) };
            self.join(&seen, winners);
        }
    }

    /// Takes in the largest of later places.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub unsafe fn join(&mut self, later: &Self, winners: Winners) {
        // SAFETY: the caller's promise.
        unsafe {
            if !RECORD {
                self.keys = S::max_shorts(self.keys, later.keys);
                return;
            }
            let not_larger = match winners {
                Winners::First => self.places,
                Winners::All => {
                    let both = S::or_shorts(self.places, later.places);
                    S::where_greater(self.keys, later.keys, self.places, both)
                }
            };
            self.places = S::where_greater(later.keys, self.keys, later.places, not_larger);
            self.keys = S::max_shorts(self.keys, later.keys);
        }
    }
}

/// The places of a window within a map: where they lie, and their numbers.
pub(super) struct Places {
    all: [(usize, usize); MOST_PLACES],
    count: usize,
}

impl Places {
    /// Those in `rows` and `columns`, which begin where the window does, of a window of `width` columns; `at` says where a
    /// position lies.
    #[inline(always)]
    pub fn new(
        rows: Range<usize>,
        columns: Range<usize>,
        width: usize,
        at: impl Fn(usize, usize) -> usize,
    ) -> Places {
        let mut places = Places { all: [(0, 0); MOST_PLACES], count: 0 };
        for (i, row) in rows.enumerate() {
            for (j, column) in columns.clone().enumerate() {
                places.all[places.count] = (at(row, column), i * width + j);
                places.count += 1;
            }
        }
        places
    }

    /// The largest of some pairs; `x` is where they lie at the map's origin. Asks for what is `ahead` of all places, the next
    /// window, which the processor does not foresee.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; the window is within x.
    #[inline(always)]
    pub unsafe fn largest<S: Simd, const RELU: bool, const RECORD: bool>(
        &self,
        x: *const u32,
        ahead: usize,
        winners: Winners,
    ) -> Largest<S, RELU, RECORD> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut largest = Largest::<S, RELU, RECORD>::first(x.add(self.all[0].0));
            for &(at, place) in &self.all[1..self.count] {
                prefetch(x.wrapping_add(at + ahead).cast());
                largest.see(x.add(at), place, winners);
            }
            largest
        }
    }
}

/// Where the largest values of windows go: to y, and their places to the record.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    y: Ptr,
    /// Address of the record's places; 0 if winners are not wanted.
    places: usize,
    pub winners: Winners,
    pub relu: bool,
}

impl Finish {
    /// `relu`: whether what is pooled came out of a ReLU.
    pub fn new(y: &mut [f32], relu: bool, record: Option<Record>) -> Finish {
        let y = Ptr::from_mut(y);
        match record {
            None => Finish { y, places: 0, winners: Winners::First, relu },
            Some(Record { places, winners }) => {
                Finish { y, places: places.as_mut_ptr() as usize, winners, relu }
            }
        }
    }

    /// Whether winners are wanted.
    pub fn records(&self) -> bool {
        self.places != 0
    }

    /// Stores the pairs that begin at `at`.
    ///
    /// # Safety
    /// They are within y and the record, and nothing else touches them; the processor has the instructions of `S`.
    #[inline(always)]
    pub unsafe fn store<S: Simd, const RELU: bool, const RECORD: bool>(
        &self,
        at: usize,
        largest: &Largest<S, RELU, RECORD>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let values = if RELU { largest.keys } else { S::values_of(largest.keys) };
            S::store_shorts(self.y.at(at).cast(), values);
            if !RECORD {
                return;
            }
            let mut places = largest.places;
            if RELU {
                let none = S::splat_short(0);
                places = S::where_greater(largest.keys, none, places, none);
            }
            S::store_shorts((self.places as *mut i16).add(2 * at), places);
        }
    }
}

struct MaxForward<'a> {
    g: Geometry,
    blocks: usize,
    x: &'a [u32],
    finish: Finish,
}

impl Kernel for MaxForward<'_> {
    /// Rows of y.
    fn units(&self) -> usize {
        self.blocks * self.g.rows.output
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        // SAFETY: passed on from the caller.
        unsafe {
            match (self.finish.relu, self.finish.records()) {
                (false, false) => self.row::<S, false, false>(unit),
                (false, true) => self.row::<S, false, true>(unit),
                (true, false) => self.row::<S, true, false>(unit),
                (true, true) => self.row::<S, true, true>(unit),
            }
        }
    }
}

impl MaxForward<'_> {
    /// A row of y.
    #[inline(always)]
    unsafe fn row<S: Simd, const RELU: bool, const RECORD: bool>(&self, unit: usize) {
        let Geometry { input, output, rows, columns } = self.g;
        let (block, p) = (unit / rows.output, unit % rows.output);
        let h0 = p * rows.stride;
        let h1 = (h0 + rows.kernel).min(rows.input);
        for q in 0..columns.output {
            let w0 = q * columns.stride;
            let w1 = (w0 + columns.kernel).min(columns.input);
            let window = Places::new(h0..h1, w0..w1, columns.kernel, |h, w| input.at(0, h, w));
            let ahead = columns.stride * input.position_len();
            let mut from = Walk::new(&input, block * input.block_len(), 0);
            let mut to = Walk::new(&output, block * output.block_len() + output.at(0, p, q), 0);
            for _ in 0..self.g.pairs() {
                let (from, to) = (from.step(), to.step());
                for lane in (0..PICTURES).step_by(S::LANES) {
                    // SAFETY: the window is within x; this unit owns row p of the block in y and in the record, whose
                    // lengths were checked.
                    unsafe {
                        let x = self.x.as_ptr().add(from + lane);
                        let largest = window.largest::<S, RELU, RECORD>(x, ahead, self.finish.winners);
                        self.finish.store(to + lane, &largest);
                    }
                }
            }
        }
    }
}

/// Windows that hold one position: at most as many as a window has places.
const MOST_WINDOWS: usize = MOST_PLACES;

/// dx gathered from dy and the record of the forward pass: each input receives the gradients of the windows that it won.
pub fn max_backward(
    ctx: &mut Context,
    engine: Engine,
    g: &Geometry,
    blocks: usize,
    dy: &[f32],
    places: &[u16],
    dx: &mut [f32],
) {
    g.check(blocks, dx.len(), dy.len(), places.len());
    let won = Won { dy: pairs(dy), places };
    let streams = blocks * g.input.block_len() >= STREAMED_LEN;
    run_vectors(ctx, engine, &MaxBackward { g: *g, blocks, won, dx: Ptr::from_mut(dx), streams });
}

/// The windows that hold one position.
pub(super) struct Windows {
    /// Where each writes within a split of a block of y, and the bit of the position's place in it.
    all: [(usize, u16); MOST_WINDOWS],
    count: usize,
    /// From a column of windows to the next, which is asked for while one is gathered from.
    ahead: usize,
}

impl Windows {
    /// None, of a pooling.
    pub fn new(g: &Geometry) -> Windows {
        Windows { all: [(0, 0); MOST_WINDOWS], count: 0, ahead: g.output.position_len() }
    }

    /// Those of position (h, w).
    #[inline(always)]
    pub fn find(&mut self, g: &Geometry, h: usize, w: usize) {
        self.count = 0;
        for (p, r) in windows_of(g.rows, h) {
            for (q, s) in windows_of(g.columns, w) {
                self.all[self.count] = (g.output.at(0, p, q), 1 << (r * g.columns.kernel + s));
                self.count += 1;
            }
        }
    }

    #[inline(always)]
    fn iter(&self) -> std::slice::Iter<'_, (usize, u16)> {
        self.all[..self.count].iter()
    }
}

/// What positions receive from the windows that they won.
#[derive(Clone, Copy)]
pub(super) struct Won<'a> {
    pub dy: &'a [u32],
    pub places: &'a [u16],
}

impl Won<'_> {
    /// The gradient of a pair of channels of a position that these windows hold, for as many lanes as a vector has; `out` is
    /// where they lie in y for a window at the origin.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; the windows are within y.
    #[inline(always)]
    pub unsafe fn gather<S: Simd>(&self, windows: &Windows, out: usize) -> Two<S::V> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [S::zero(); 2];
            for &(position, bit) in windows.iter() {
                let at = out + position;
                prefetch(self.dy.as_ptr().wrapping_add(at + windows.ahead).cast());
                prefetch(self.places.as_ptr().wrapping_add(2 * (at + windows.ahead)).cast());
                let (even, odd) =
                    S::load_pairs_where(self.dy.as_ptr().add(at), self.places.as_ptr().add(2 * at), bit);
                sums = [S::add(sums[0], even), S::add(sums[1], odd)];
            }
            sums
        }
    }
}

struct MaxBackward<'a> {
    g: Geometry,
    blocks: usize,
    won: Won<'a>,
    dx: Ptr,
    /// Whether dx is beyond what caches hold until it is read.
    streams: bool,
}

impl Kernel for MaxBackward<'_> {
    /// Rows of x.
    fn units(&self) -> usize {
        self.blocks * self.g.input.height
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Geometry { input, output, .. } = self.g;
        let (block, h) = (unit / input.height, unit % input.height);
        let mut windows = Windows::new(&self.g);
        for w in 0..input.width {
            windows.find(&self.g, h, w);
            for lane in (0..PICTURES).step_by(S::LANES) {
                let mut from = Walk::new(&input, block * input.block_len() + input.at(0, h, w) + lane, 0);
                let mut to = Walk::new(&output, block * output.block_len() + lane, 0);
                for _ in 0..self.g.pairs() {
                    let at = from.step();
                    // SAFETY: this unit owns row h of the block in dx, whose length was checked as were the others'.
                    unsafe {
                        let [even, odd] = self.won.gather::<S>(&windows, to.step());
                        let to = self.dx.at(at).cast();
                        if self.streams && S::LANES == EDGE {
                            let mut line = [0; EDGE];
                            S::store_pairs(line.as_mut_ptr(), even, odd);
                            S::stream_line(line.as_ptr(), to);
                        } else {
                            S::store_pairs(to, even, odd);
                        }
                    }
                }
            }
        }
        if self.streams {
            // SAFETY: the processor has the instructions of S.
            unsafe { S::release_lines() };
        }
    }
}

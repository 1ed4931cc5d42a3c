//! The forward pass and the input gradient: one loop over packed weights.
//!
//! ```text
//! for chunk of panels            (weights of a chunk stay in L2)
//!   for block, for rows          (a unit: source rows under the window stay in L2, or are made of pixels there; if they
//!                                 are too long, a strip of columns at a time; where maps are pooled, windows whose last
//!                                 row is there)
//!     for panel, for columns     32 target channels at up to 14 positions
//!       for part of the depth    (its weights stay in L1; the map passes by)
//!         for column             one position: 32 × 32 sums over the part's runs, in registers
//!           epilogue             of the column before, whose sums are complete: bias, ReLU or mask; rounded to pairs
//! ```
//!
//! Tiles multiply faster than L2 delivers two operands: one must be in L1. The depth of a window (conv3: 72 steps of 2 KiB) is
//! too much for that, so it goes in parts, and sums are stored and loaded again between them. Other engines take it at
//! once. The epilogue of a position stands beside the next one's product: vectors and stores take their turns while tiles
//! multiply.

use super::pack::{Segment, rows_of};
use super::{Entering, Packed, Pooled};
use crate::bf16::conv::finish::Finish;
use crate::bf16::conv::{Panel, Source};
use crate::bf16::engine::{
    AHEAD_LINES, C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Pieces, Product, Rest, Right, Run, run,
};
use crate::bf16::{EDGE, PICTURES, TAIL, pairs};
use crate::conv::Axis;
use crate::parallel::{Context, Ptr};
use crate::simd::Simd;
use std::ops::Range;

/// Units of a chunk for each thread: enough that the last ones to finish do not leave the others waiting for long; but a thread
/// that takes another's last unit finds all rows under its first window in memory.
const THREAD_UNITS: usize = 4;
/// Most runs of a product: rows of the window times the splits of the map that a group reads. It bounds two arrays on the
/// stack at every position, 2.5 KiB. Published networks have 11 at most: conv1, if it is not folded.
pub const MOST_RUNS: usize = 64;
/// Most steps of a part of the depth: 36 KiB of weights, in an L1 of 48 as every processor with tiles has.
const PART_STEPS: usize = 18;
/// Most columns that share a part of the weights: their sums are 56 KiB.
const TOGETHER: usize = 14;
/// Bytes of the map's rows under a window that are too many to stay in L2, of 2 MiB with tiles, beside a chunk's weights, sums and
/// the row to come: then a strip of half as many columns goes through all rows before the next one does.
const WINDOW_BYTES: usize = 640 << 10;
/// Places for the sums of a position: of columns, and of the one before them that waits for its epilogue.
const PLACES: usize = TOGETHER + 1;
/// Elements of scratch: the sums of columns.
pub(in crate::bf16::conv) const SCRATCH_LEN: usize = PLACES * C_LEN;

/// What becomes of the map that is computed.
pub(in crate::bf16::conv) enum Target<'a> {
    /// It is stored.
    Map(&'a mut [f32]),
    /// It is pooled as its rows are there, and not stored.
    Pooled(Pooled),
}

/// The sums of every position of the target and what follows them, for the first `count` pictures.
pub(in crate::bf16::conv) fn correlate(
    ctx: &mut Context,
    engine: Engine,
    groups: usize,
    rows: &Axis,
    forward: bool,
    count: usize,
    source: Source,
    packed: &Packed,
    finish: Finish,
    target: Target,
) {
    let blocks = count.div_ceil(PICTURES);
    let source = match source {
        Source::Map(map) => {
            assert!(map.len() >= blocks * packed.source.block_len() + TAIL, "the map that is read");
            Read::Map(pairs(map))
        }
        Source::Pixels(entry, pixels) => {
            assert_eq!(entry.map, packed.source, "the map that is read");
            Read::Pixels(Entering::new(entry, count, pixels, rows.kernel))
        }
    };
    assert!(packed.group_splits * rows.kernel <= MOST_RUNS, "a window of at most {MOST_RUNS} rows");
    let (target, pooled, unit_rows) = match target {
        Target::Map(map) => {
            assert!(map.len() >= blocks * packed.target.block_len(), "the map that is written");
            let height = packed.target.height;
            let unit_rows = (blocks * height).div_ceil(THREAD_UNITS * ctx.threads()).min(height);
            (Ptr::from_mut(map), None, unit_rows)
        }
        Target::Pooled(pooled) => {
            assert_eq!(pooled.geometry().input, packed.target, "the map that is pooled");
            // The last rows of a unit may be the first of the next: as few units of a block as do.
            let units = (THREAD_UNITS * ctx.threads()).div_ceil((packed.chunks.len() - 1) * blocks.max(1));
            let unit_rows = pooled.geometry().output.height.div_ceil(units);
            (Ptr::from_mut(&mut []), Some(pooled), unit_rows)
        }
    };
    let window_bytes = packed.group_splits
        * rows.kernel
        * packed.source.width
        * packed.source.position_len()
        * size_of::<u32>();
    // A pooling takes whole rows, and pixels become whole rows.
    let strip_by_strip = window_bytes > WINDOW_BYTES && pooled.is_none() && matches!(source, Read::Map(_));
    run(
        ctx,
        engine,
        &Correlate {
            groups,
            rows: *rows,
            forward,
            blocks,
            narrow: count <= EDGE,
            source,
            packed,
            weights: pairs(&packed.data),
            in_parts: engine.has_tiles(),
            finish,
            target,
            unit_rows,
            strip_by_strip,
            strip: if strip_by_strip { TOGETHER / 2 } else { TOGETHER },
            pooled,
        },
    );
}

/// What windows read.
enum Read<'a> {
    Map(&'a [u32]),
    /// From a ring in scratch.
    Pixels(Entering<'a>),
}

struct Correlate<'a> {
    groups: usize,
    rows: Axis,
    forward: bool,
    blocks: usize,
    /// Only the first 16 pictures of the only block are there.
    narrow: bool,
    source: Read<'a>,
    packed: &'a Packed,
    weights: &'a [u32],
    finish: Finish<'a>,
    /// The map that is written; nothing, if it is pooled.
    target: Ptr,
    pooled: Option<Pooled>,
    /// Whether the depth goes in parts.
    in_parts: bool,
    /// Rows of a unit, of the pooled map if there is one.
    unit_rows: usize,
    /// Whether a unit takes all its rows at a strip of columns before the next strip.
    strip_by_strip: bool,
    /// Most columns of a strip.
    strip: usize,
}

impl Correlate<'_> {
    /// Rows of the map that is written.
    fn height(&self) -> usize {
        self.pooled.as_ref().map_or(self.packed.target.height, |pooled| pooled.geometry().output.height)
    }

    /// Units of one block.
    fn block_units(&self) -> usize {
        self.height().div_ceil(self.unit_rows)
    }

    /// Where the ring of rows of map 0 lies: behind that of rows to be pooled.
    #[inline(always)]
    fn source_ring(&self, scratch: *mut f32) -> *mut f32 {
        scratch.wrapping_add(self.packed.scratch_len(None, self.pooled.as_ref().map(Pooled::geometry)))
    }

    /// Where windows read from: the map, or the ring.
    #[inline(always)]
    fn source(&self, scratch: *mut f32) -> *const u32 {
        match self.source {
            Read::Map(map) => map.as_ptr(),
            Read::Pixels(_) => self.source_ring(scratch).cast_const().cast(),
        }
    }

    /// Where a row of a split of what is read begins.
    #[inline(always)]
    fn source_at(&self, block: usize, split: usize, h: usize) -> usize {
        let map = &self.packed.source;
        match &self.source {
            Read::Map(_) => block * map.block_len() + map.at(split, h, 0),
            Read::Pixels(entering) => entering.at(h),
        }
    }

    /// Nothing to ask for.
    fn nothing(&self) -> Pieces {
        Pieces::none(self.weights.as_ptr())
    }

    /// Where positions go: the map, or the ring behind a unit's sums.
    #[inline(always)]
    fn base(&self, scratch: *mut f32) -> *mut u32 {
        match self.pooled {
            None => self.target.at(0).cast(),
            Some(_) => scratch.wrapping_add(SCRATCH_LEN).cast(),
        }
    }
}

impl MatrixKernel for Correlate<'_> {
    fn units(&self) -> usize {
        (self.packed.chunks.len() - 1) * self.blocks * self.block_units()
    }

    fn scratch_len(&self) -> usize {
        let entry = match &self.source {
            Read::Map(_) => None,
            Read::Pixels(entering) => Some(entering.entry()),
        };
        self.packed.scratch_len(entry, self.pooled.as_ref().map(Pooled::geometry))
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let p = self.packed;
        let Unit { chunk, block, written, rows } = self.unit_at(unit);
        let mut waiting = None;
        // Rows of map 0 that were made of pixels.
        let mut entered = 0;
        if let Read::Pixels(entering) = &self.source {
            // SAFETY: scratch has room for the ring.
            unsafe { entering.clear(self.source_ring(scratch)) };
        }
        let strips =
            || p.segments.iter().flat_map(|s| s.columns.chunks(self.strip).map(move |columns| (s, columns)));
        let all = strips().count();
        let together = if self.strip_by_strip { 1 } else { all };
        for first_strip in (0..all).step_by(together) {
            let strips_from = |first: usize| strips().skip(first).take(together);
            let strips = || strips_from(first_strip);
            for row in rows.clone() {
                let columns = |first| strips_from(first).flat_map(|(_, columns)| columns.iter().copied());
                let seen = self.source_rows(row);
                if let Read::Pixels(entering) = &self.source {
                    let missing = seen.start.max(entered)..seen.end;
                    // SAFETY: scratch has room for the ring; products read no row that another takes the place of.
                    unsafe { entering.fill::<M::S>(block, missing, self.source_ring(scratch)) };
                    entered = seen.end;
                }
                let mut next = if row + 1 < rows.end {
                    self.besides(chunk, block, row + 1, seen, columns(first_strip))
                } else if first_strip + together < all {
                    self.besides(chunk, block, rows.start, 0..0, columns(first_strip + together))
                } else if unit + 1 < self.units() {
                    // Most likely this thread's next.
                    let next = self.unit_at(unit + 1);
                    let goes_on = next.block == block && next.rows.start > rows.start && together == all;
                    let seen = if goes_on { seen } else { 0..0 };
                    self.besides(next.chunk, next.block, next.rows.start, seen, columns(0))
                } else {
                    self.nothing()
                };
                for index in p.chunks[chunk]..p.chunks[chunk + 1] {
                    let panel = p.panels[index];
                    let first_split = panel.split * self.groups / p.target.splits * p.group_splits;
                    // For each row of the window in each split: where its weights begin, and its map row.
                    let mut window = [(0, 0); MOST_RUNS];
                    let mut used = 0;
                    for split in 0..p.group_splits {
                        for (r, h) in rows_of(&self.rows, row, self.forward) {
                            let weights = p.row_start(index, split, self.rows.kernel, r);
                            window[used] = (weights, self.source_at(block, first_split + split, h));
                            used += 1;
                        }
                    }
                    let window = &window[..used];
                    for (segment, columns) in strips() {
                        let (waiting, next) = (&mut waiting, &mut next);
                        // SAFETY: passed on from the caller; this unit owns the panel's pairs at these rows.
                        unsafe {
                            self.columns::<M>(
                                chunk, index, block, row, window, segment, columns, scratch, waiting, next,
                            );
                        }
                    }
                }
                if let Some(pooled) = &self.pooled {
                    let panels = &p.panels[p.chunks[chunk]..p.chunks[chunk + 1]];
                    let lanes = if self.narrow { EDGE } else { PICTURES };
                    // SAFETY: the unit's panels have this row in the ring, and it owns them in the rows that it writes.
                    unsafe {
                        if let Some(waiting) = waiting.take() {
                            self.complete::<M::S>(&waiting, 0, scratch);
                        }
                        pooled.complete::<M::S>(self.base(scratch), panels, block, &written, row, lanes);
                    }
                }
            }
        }
        if let Some(waiting) = waiting {
            // SAFETY: as above.
            unsafe { self.complete::<M::S>(&waiting, 0, scratch) };
        }
    }
}

impl Correlate<'_> {
    /// What unit number `unit` is.
    #[inline(always)]
    fn unit_at(&self, unit: usize) -> Unit {
        let (chunk, rest) =
            (unit / (self.blocks * self.block_units()), unit % (self.blocks * self.block_units()));
        let (block, first_row) = (rest / self.block_units(), rest % self.block_units() * self.unit_rows);
        let written = first_row..(first_row + self.unit_rows).min(self.height());
        let rows = self.pooled.as_ref().map_or(written.clone(), |pooled| pooled.rows_under(&written));
        Unit { chunk, block, written, rows }
    }

    /// The rows of the map that is read under the window of a row.
    #[inline(always)]
    fn source_rows(&self, row: usize) -> Range<usize> {
        let rows = || rows_of(&self.rows, row, self.forward).map(|(_, h)| h);
        rows().min().unwrap_or(0)..rows().max().map_or(0, |h| h + 1)
    }

    /// What a row of a block reads of the map besides the rows that were seen, for the panels of a chunk at some columns: it
    /// comes from memory.
    fn besides(
        &self,
        chunk: usize,
        block: usize,
        row: usize,
        seen: Range<usize>,
        columns: impl Iterator<Item = usize>,
    ) -> Pieces {
        let p = self.packed;
        let Range { start, end } = self.source_rows(row);
        let start = start.max(seen.end);
        let map = match &self.source {
            Read::Map(map) => map.as_ptr(),
            Read::Pixels(_) if start >= end => return self.nothing(),
            Read::Pixels(entering) => return entering.under(block, start..end),
        };
        // Positions of these rows, from the first that is read on.
        let reads = columns
            .filter_map(|w| p.walk.columns[w])
            .map(|c| (c.source, c.source + p.walk.taps[c.taps].count));
        let Some((first, last)) = reads.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).filter(|_| start < end)
        else {
            return self.nothing();
        };
        let panel = &p.panels[p.chunks[chunk]];
        let split = panel.split * self.groups / p.target.splits * p.group_splits;
        let from = map.wrapping_add(block * p.source.block_len() + p.source.at(split, start, first));
        let position_len = p.source.position_len();
        if p.group_splits == 1 {
            let row_len = p.source.width * position_len;
            return Pieces::new(from, (last - first) * position_len, row_len, end - start);
        }
        let positions = (end - start - 1) * p.source.width + last - first;
        Pieces::new(from, positions * position_len, p.source.split_len(), p.group_splits)
    }
}

/// What a unit computes.
struct Unit {
    chunk: usize,
    block: usize,
    /// Rows of the map that is stored.
    written: Range<usize>,
    /// Rows of the map that is computed.
    rows: Range<usize>,
}

/// A position of a panel whose sums are complete.
#[derive(Clone, Copy)]
struct Waiting {
    panel: Panel,
    /// Where its first pair goes.
    at: usize,
    /// Where its sums lie in scratch.
    place: usize,
}

impl Correlate<'_> {
    /// Some positions of a row for panel `index`, which is one of the chunk. The window has these rows: where their weights
    /// begin, and where their map rows. Finishes the position that waited, and leaves the last one.
    #[inline(always)]
    unsafe fn columns<M: Matrix>(
        &self,
        chunk: usize,
        index: usize,
        block: usize,
        row: usize,
        window: &[(usize, usize)],
        segment: &Segment,
        columns: &[usize],
        scratch: *mut f32,
        waiting: &mut Option<Waiting>,
        next: &mut Pieces,
    ) {
        let p = self.packed;
        let source = self.source(scratch);
        let panel = &p.panels[index];
        let depth = segment.steps * window.len();
        let parts = if self.in_parts { depth.div_ceil(PART_STEPS).max(1) } else { 1 };
        let mut shape = Product {
            rows: panel.tiles,
            columns: if self.narrow { 1 } else { 2 },
            left: Left::Tiles,
            right: Right::Rows,
            a_step: panel.tiles * EDGE * EDGE,
            b_step: EDGE * PICTURES,
            last: EDGE,
        };
        let mut runs = [Run::default(); MOST_RUNS];
        let mut count = 0;
        // Sums that are complete at once stay in L1.
        let places = if parts == 1 { 2 } else { PLACES };
        let first_place = waiting.map_or(0, |waiting| waiting.place + 1);
        for part in 0..parts {
            let (start, end) = (part * depth / parts, (part + 1) * depth / parts);
            let is_last = part + 1 == parts;
            let mut taps = None;
            for (i, &w) in columns.iter().enumerate() {
                let column = p.walk.columns[w];
                // Neighbours whose windows do not overhang differ in where they read alone.
                if i == 0 || taps != column.map(|column| column.taps) {
                    taps = column.map(|column| column.taps);
                    count = taps.map_or(0, |taps| {
                        let (first, steps) = p.runs[taps];
                        if parts == 1 {
                            shape.last =
                                p.walk.taps[taps].count * p.source.split_pairs() - (steps - 1) * EDGE;
                        }
                        let mut count = 0;
                        for r in start / segment.steps..end.div_ceil(segment.steps) {
                            let row = r * segment.steps;
                            let from = (segment.first + start.saturating_sub(row)).max(first);
                            let to = (segment.first + segment.steps.min(end - row)).min(first + steps);
                            if from < to {
                                let (weights, map) = window[r];
                                runs[count] = Run {
                                    a: weights + from * shape.a_step,
                                    b: map + (from - first) * shape.b_step,
                                    steps: to - from,
                                };
                                count += 1;
                            }
                        }
                        count
                    });
                }
                let map_column = column.map_or(0, |column| column.source * p.source.position_len());
                let place = (first_place + i) % places;
                let sums = scratch.wrapping_add(place * C_LEN);
                // SAFETY: `correlate` checked the maps; runs lie within them and, where the last step of a run reaches
                // beyond, within the map's tail; scratch holds the sums of every column, and those that wait are others.
                unsafe {
                    let (runs, a) = (&runs[..count], self.weights.as_ptr());
                    let b = source.add(map_column);
                    if self.narrow {
                        M::product(&shape, runs, a, b, sums, part > 0);
                        if let Some(before) = waiting {
                            self.complete::<M::S>(before, 0, scratch);
                        }
                    } else {
                        let rest = waiting.as_ref().map(|before| self.rest(before, scratch));
                        let ahead = next.ask(end - start, AHEAD_LINES);
                        let done =
                            M::product_beside(&shape, runs, a, b, sums, part > 0, ahead, rest.as_ref());
                        if let Some(before) = waiting {
                            self.complete::<M::S>(before, done, scratch);
                        }
                    }
                }
                *waiting = None;
                if is_last {
                    let at = match &self.pooled {
                        None => {
                            let map = p.target;
                            let position = block * map.block_len() + map.at(panel.split, row, columns[i]);
                            position + panel.first / 2 * PICTURES
                        }
                        Some(pooled) => pooled.at(index - p.chunks[chunk], row, columns[i]),
                    };
                    *waiting = Some(Waiting { panel: *panel, at, place });
                }
            }
        }
    }

    /// All that is to be done with the sums that wait.
    #[inline(always)]
    fn rest(&self, waiting: &Waiting, scratch: *mut f32) -> Rest {
        let Waiting { panel, at, place } = waiting;
        let channel = panel.split * self.packed.target.split_channels() + panel.first;
        let sums = scratch.wrapping_add(place * C_LEN);
        self.finish.rest(sums, channel, panel.valid, *at, self.base(scratch))
    }

    /// Finishes the sums that wait, except those of the first pairs of channels, which are.
    #[inline(always)]
    unsafe fn complete<S: Simd>(&self, waiting: &Waiting, done: usize, scratch: *mut f32) {
        let Waiting { panel, at, place } = waiting;
        let channel = panel.split * self.packed.target.split_channels() + panel.first;
        let lanes = if self.narrow { EDGE } else { PICTURES };
        let sums = scratch.wrapping_add(place * C_LEN);
        // SAFETY: the caller's promise; C has a row for every channel of a tile, also where none exists.
        unsafe {
            self.finish.store_panel::<S>(
                sums.add(2 * done * C_STRIDE),
                channel + 2 * done,
                panel.valid - 2 * done,
                at + done * PICTURES,
                lanes,
                self.base(scratch),
            );
        }
    }
}

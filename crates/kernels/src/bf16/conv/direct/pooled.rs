//! Max pooling of the rows that a unit of a convolution has just computed. They wait in a ring in the unit's scratch, as many
//! rows of every panel of its chunk as a window has, and stay in L2: no map of them is stored.

use crate::bf16::conv::Panel;
use crate::bf16::lrn::Walk;
use crate::bf16::pooling::{Finish, Geometry, Places, Record};
use crate::bf16::{EDGE, PICTURES};
use crate::simd::Simd;
use std::ops::Range;

/// Pairs of a position of a panel in the ring.
const PANEL_LEN: usize = EDGE * PICTURES;

/// A pooling behind a convolution.
pub(in crate::bf16::conv) struct Pooled {
    geometry: Geometry,
    finish: Finish,
}

impl Pooled {
    /// A pooling of `blocks` blocks to `y`. `relu`: whether what is pooled came out of a ReLU.
    pub fn new(
        geometry: &Geometry,
        blocks: usize,
        y: &mut [f32],
        relu: bool,
        record: Option<Record>,
    ) -> Pooled {
        geometry.check_output(blocks, y.len(), record.as_ref().map_or(usize::MAX, |r| r.places.len()));
        Pooled { geometry: *geometry, finish: Finish::new(y, relu, record) }
    }

    /// Elements of a ring of so many panels.
    pub fn ring_len(geometry: &Geometry, panels: usize) -> usize {
        panels * geometry.rows.kernel * geometry.input.width * PANEL_LEN
    }

    /// What is pooled and what that becomes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The rows under the windows of some rows of y.
    pub fn rows_under(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.geometry.rows.stride..self.end_of(rows.end - 1)
    }

    /// The row behind the windows of row `p` of y.
    fn end_of(&self, p: usize) -> usize {
        let rows = self.geometry.rows;
        (p * rows.stride + rows.kernel).min(rows.input)
    }

    /// Where a position of a chunk's panel number `panel` waits.
    #[inline(always)]
    pub fn at(&self, panel: usize, row: usize, column: usize) -> usize {
        let Geometry { input, rows, .. } = &self.geometry;
        ((panel * rows.kernel + row % rows.kernel) * input.width + column) * PANEL_LEN
    }

    /// Row `row` is in the ring: pools the windows that it completes, among those of some rows of y of a block, for a chunk of
    /// panels and the first `lanes` pictures.
    ///
    /// # Safety
    /// The ring holds these panels; nothing else touches these rows of y and of the record; the processor has the
    /// instructions of `S`.
    #[inline(always)]
    pub unsafe fn complete<S: Simd>(
        &self,
        ring: *const u32,
        panels: &[Panel],
        block: usize,
        rows: &Range<usize>,
        row: usize,
        lanes: usize,
    ) {
        // SAFETY: passed on from the caller.
        unsafe {
            match (self.finish.relu, self.finish.records()) {
                (false, false) => self.windows::<S, false, false>(ring, panels, block, rows, row, lanes),
                (false, true) => self.windows::<S, false, true>(ring, panels, block, rows, row, lanes),
                (true, false) => self.windows::<S, true, false>(ring, panels, block, rows, row, lanes),
                (true, true) => self.windows::<S, true, true>(ring, panels, block, rows, row, lanes),
            }
        }
    }

    #[inline(always)]
    unsafe fn windows<S: Simd, const RELU: bool, const RECORD: bool>(
        &self,
        ring: *const u32,
        panels: &[Panel],
        block: usize,
        rows: &Range<usize>,
        row: usize,
        lanes: usize,
    ) {
        let Geometry { input, output, columns, .. } = &self.geometry;
        for p in rows.clone().filter(|&p| self.end_of(p) == row + 1) {
            let first_row = p * self.geometry.rows.stride;
            for (i, panel) in panels.iter().enumerate() {
                let first_pair = (panel.split * input.split_channels() + panel.first) / 2;
                for q in 0..columns.output {
                    let first_column = q * columns.stride;
                    let window = Places::new(
                        first_row..row + 1,
                        first_column..(first_column + columns.kernel).min(columns.input),
                        columns.kernel,
                        |row, column| self.at(i, row, column),
                    );
                    let mut to =
                        Walk::new(output, block * output.block_len() + output.at(0, p, q), first_pair);
                    for pair in 0..panel.valid.div_ceil(2) {
                        let to = to.step();
                        for lane in (0..lanes).step_by(S::LANES) {
                            // SAFETY: passed on from the caller; the window's rows are the last ones of the ring.
                            unsafe {
                                let from = ring.add(pair * PICTURES + lane);
                                let ahead = columns.stride * PANEL_LEN;
                                let largest =
                                    window.largest::<S, RELU, RECORD>(from, ahead, self.finish.winners);
                                self.finish.store(to + lane, &largest);
                            }
                        }
                    }
                }
            }
        }
    }
}

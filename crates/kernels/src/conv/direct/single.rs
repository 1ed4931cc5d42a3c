//! Forward, where a block is one picture: the rows of a tile are positions whose windows have the same taps. Its order,
//! outside in:
//!
//! ```text
//! unit: one picture, one panel of output channels, a band of output rows (threads)
//!   chunk of the reduction whose weights fit in half of L1 (24 KiB)
//!     line of positions
//!       tile of positions (6-8): dot() over the chunk's taps and channels
//! ```
//!
//! so that weights come from memory once for a band, from L1 for every position of it, while the picture stays in L2. Where
//! windows lie within the map's columns, lines go along rows; beside that they go down, so that edges fill tiles too:
//!
//! ```text
//! · - - - - ·
//! | - - - - |
//! | - - - - |
//! · - - - - ·
//! ```

use super::{CHUNK_TAPS, Packed};
use crate::conv::Geometry;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::{DotRows, Finish, Output, Run, Start};
use std::ops::Range;

/// Rows of a band: enough that reading weights does not matter, and for a tile down the edges; and few enough that there
/// are units for all threads.
const BAND: usize = 7;

/// y = x ∗ w + b for the first `count` pictures, whose maps are (H, W, C) and (P, Q, K).
pub(super) fn forward(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    x: &[f32],
    w: &Packed,
    bias: &[f32],
    finish: Finish,
    y: &mut [f32],
) {
    assert_eq!(g.block, 1, "pictures one by one");
    ctx.run(&Single { g: *g, count, x, w, bias, finish, y: Ptr::from_mut(y) });
}

struct Single<'a> {
    g: Geometry,
    count: usize,
    x: &'a [f32],
    w: &'a Packed,
    bias: &'a [f32],
    finish: Finish,
    y: Ptr,
}

/// Output positions with the same taps.
struct Line {
    row: usize,
    column: usize,
    len: usize,
    /// Whether it goes down a column, not along a row.
    down: bool,
}

impl Line {
    /// The distance between its positions, where columns and rows are so far apart.
    fn step(&self, column: usize, row: usize) -> usize {
        if self.down { row } else { column }
    }
}

impl Single<'_> {
    fn bands(&self) -> usize {
        self.g.rows.output.div_ceil(BAND)
    }

    /// Every position of a band of rows once, in lines.
    #[inline(always)]
    fn for_each_line(&self, band: Range<usize>, mut run: impl FnMut(Line)) {
        let g = &self.g;
        let inside = g.columns.inside();
        let wide = if inside.is_empty() { 0..0 } else { inside };
        let tall = g.rows.inside();
        let tall = tall.start.max(band.start)..tall.end.min(band.end);
        if !wide.is_empty() {
            for row in band.clone() {
                run(Line { row, column: wide.start, len: wide.len(), down: false });
            }
        }
        for column in (0..g.columns.output).filter(|column| !wide.contains(column)) {
            if !tall.is_empty() {
                run(Line { row: tall.start, column, len: tall.len(), down: true });
            }
            for row in band.clone().filter(|row| !tall.contains(row)) {
                run(Line { row, column, len: 1, down: true });
            }
        }
    }
}

impl Kernel for Single<'_> {
    fn units(&self) -> usize {
        self.count * self.w.offsets.len() * self.bands()
    }

    fn scratch_len(&self) -> usize {
        super::SCRATCH_LEN
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, bias: *mut f32) {
        let Single { g, w, .. } = self;
        let (panels, bands) = (w.offsets.len(), self.bands());
        let (picture, i, band) = (unit / bands / panels, unit / bands % panels, unit % bands);
        let (group, panel) = (i / w.panels.len(), w.panels[i % w.panels.len()]);
        let band = band * BAND..((band + 1) * BAND).min(g.rows.output);
        let channel = group * (g.k / g.groups) + panel.first;
        let width = panel.vectors * S::LANES;
        let mut room = [Run::default(); CHUNK_TAPS];
        // SAFETY: the offsets are those of `Packed::new`, and `conv::forward` checked the extents of x, y and bias; the
        // positions of a band of a panel are this unit's.
        unsafe {
            // A panel reads whole vectors of bias: a copy with room at the end.
            std::ptr::write_bytes(bias, 0, width);
            std::ptr::copy_nonoverlapping(self.bias.as_ptr().add(channel), bias, panel.valid);
            let x = self.x.as_ptr().add(picture * g.input_len(1) + group * (g.c / g.groups));
            let y = self.y.at(picture * g.output_len(1) + channel);
            let weights = w.data.as_ptr().add(w.offsets[i]);
            for (ci, chunk) in w.chunks.iter().enumerate() {
                let start = if ci == 0 { Start::Row(bias) } else { Start::Output };
                let last = ci + 1 == w.chunks.len();
                let finish = if last { self.finish } else { Finish::Store };
                self.for_each_line(band.clone(), |line| {
                    let runs = chunk.runs(width, &mut room, |piece| {
                        let h = g.rows.forward(line.row, piece.r)?;
                        let v = g.columns.forward(line.column, piece.s)?;
                        Some((h * g.columns.input + v) * g.c + piece.first)
                    });
                    if runs.is_empty() && ci != 0 && !last {
                        return;
                    }
                    let x_stride = line.step(g.columns.stride, g.rows.stride * g.columns.input) * g.c;
                    S::call(DotRows {
                        vectors: panel.vectors,
                        runs,
                        x,
                        x_stride,
                        next: !line.down && g.columns.stride == 1,
                        w: weights,
                        start,
                        ahead: &mut [],
                        out: Output {
                            y: y.add((line.row * g.columns.output + line.column) * g.k),
                            stride: line.step(1, g.columns.output) * g.k,
                            rows: line.len,
                            valid: panel.valid,
                        },
                        finish,
                    });
                });
            }
        }
    }
}

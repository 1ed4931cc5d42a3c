//! Convolution in parts: the forward pass and the input gradient are one loop over differently packed weights.
//!
//! ```text
//! for chunk of panels            (their weights stay in L2)
//!   for block, strip of columns, rows   (a unit)
//!     for panel, for column      32 pictures × 32 target channels at one position, the whole window at once
//! ```

use super::rows::{Rows, parts};
use crate::arena::Buffer;
use crate::bf16::engine::{C_LEN, C_STRIDE, Engine, Matrix, MatrixKernel, Pieces, Run, Threefold, run};
use crate::bf16::{EDGE, PICTURES, TILE, pairs, pairs_mut};
use crate::conv::{Epilogue, Fold, Geometry};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use std::ops::Range;

/// Bytes of the weights of a chunk of panels.
const CHUNK_BYTES: usize = 640 << 10;
/// Bytes of the map under the windows of a strip of columns: with a chunk's weights they stay in an L2 of 2 MiB.
const WINDOW_BYTES: usize = 1 << 20;
/// Units of a chunk for each thread.
const THREAD_UNITS: usize = 4;
/// Most rows of a window.
pub const MOST_ROWS: usize = 16;

/// Target channels that are computed together.
#[derive(Clone, Copy, Debug)]
struct Panel {
    group: usize,
    /// First channel within the group.
    first: usize,
    valid: usize,
}

impl Panel {
    fn tiles(&self) -> usize {
        self.valid.div_ceil(EDGE)
    }
}

/// Packed weights of one direction: for every panel and row of the window the steps' tiles, high parts and low ones.
#[derive(Debug)]
pub struct Packed {
    g: Geometry,
    fold: Fold,
    forward: bool,
    source: Rows,
    panels: Vec<Panel>,
    /// First panels of the chunks, and the number of panels.
    chunks: Vec<usize>,
    /// Where each panel's weights begin, in pairs; one more at the end.
    starts: Vec<usize>,
    /// Steps of a row of the window.
    steps: usize,
    data: Buffer,
}

impl Packed {
    /// Room for the forward pass.
    pub fn for_forward(g: &Geometry, fold: Fold) -> Packed {
        let columns = g.columns;
        let after = ((columns.output - 1) * columns.stride + columns.kernel)
            .saturating_sub(columns.pad + columns.input);
        let source = Rows {
            block: g.block,
            groups: g.groups,
            channels: g.c / g.groups,
            height: g.rows.input,
            width: columns.input,
            pad: [columns.pad, after],
        };
        Packed::new(g, fold, true, source, g.k / g.groups)
    }

    /// Whether the input gradient can be computed in this way.
    pub fn fits_backward(g: &Geometry) -> bool {
        let axis = |a: &crate::conv::Axis| a.stride == 1 && a.pad < a.kernel;
        axis(&g.rows) && axis(&g.columns)
    }

    /// Room for the input gradient.
    ///
    /// # Panics
    /// If it does not [fit](Packed::fits_backward).
    pub fn for_backward(g: &Geometry) -> Packed {
        assert!(Packed::fits_backward(g), "the input gradient of a strided convolution");
        let columns = g.columns;
        let before = columns.kernel - 1 - columns.pad;
        let source = Rows {
            block: g.block,
            groups: g.groups,
            channels: g.k / g.groups,
            height: g.rows.output,
            width: columns.output,
            pad: [before, (columns.input + columns.kernel - 1).saturating_sub(before + columns.output)],
        };
        Packed::new(g, Fold::none(columns.kernel), false, source, g.c / g.groups)
    }

    fn new(g: &Geometry, fold: Fold, forward: bool, source: Rows, targets: usize) -> Packed {
        assert!(g.rows.kernel <= MOST_ROWS, "a window of at most {MOST_ROWS} rows");
        let steps = (g.columns.kernel * source.channels).div_ceil(Threefold::STEP);
        let panels: Vec<Panel> = (0..g.groups)
            .flat_map(|group| {
                (0..targets).step_by(2 * EDGE).map(move |first| Panel {
                    group,
                    first,
                    valid: (targets - first).min(2 * EDGE),
                })
            })
            .collect();
        let mut starts = vec![0];
        for panel in &panels {
            starts.push(starts[starts.len() - 1] + g.rows.kernel * steps * 2 * panel.tiles() * TILE);
        }
        let data = Buffer::zeros(starts[starts.len() - 1]);
        let group_panels = panels.len() / g.groups;
        let group_bytes = data.len() / g.groups * size_of::<u32>();
        let together = group_panels.div_ceil(group_bytes.div_ceil(CHUNK_BYTES).max(1)).max(1);
        let mut chunks: Vec<usize> =
            (0..panels.len()).filter(|i| (i % group_panels).is_multiple_of(together)).collect();
        chunks.push(panels.len());
        Packed { g: *g, fold, forward, source, panels, chunks, starts, steps, data }
    }

    /// How the map that is read lies in parts.
    pub fn rows(&self) -> &Rows {
        &self.source
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Elements of scratch that each thread needs, to split the map as well.
    pub fn scratch_len(&self) -> usize {
        C_LEN.max(self.source.row_len())
    }
}

/// Packs w (K, C/G, R, S).
pub fn pack(ctx: &mut Context, w: &[f32], packed: &mut Packed) {
    let g = packed.g;
    let canonical = g.c / g.groups / packed.fold.fold;
    assert_eq!(w.len(), g.k * canonical * g.rows.kernel * packed.fold.kernel, "weights");
    let mut data = std::mem::replace(&mut packed.data, Buffer::zeros(0));
    ctx.run(&Pack { packed, w, data: Ptr::from_mut(&mut data) });
    packed.data = data;
}

struct Pack<'a> {
    packed: &'a Packed,
    w: &'a [f32],
    data: Ptr,
}

impl Kernel for Pack<'_> {
    /// Panels.
    fn units(&self) -> usize {
        self.packed.panels.len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let p = self.packed;
        let (g, panel, tiles) = (&p.g, p.panels[unit], p.panels[unit].tiles());
        let (window, kernel) = (g.columns.kernel, g.rows.kernel);
        let canonical = g.c / g.groups / p.fold.fold;
        let filter = canonical * kernel * p.fold.kernel;
        let first_filter = panel.group * (g.k / g.groups);
        // SAFETY: panels' parts of the data are disjoint and within it.
        let to = pairs_mut(unsafe {
            std::slice::from_raw_parts_mut(self.data.at(p.starts[unit]), p.starts[unit + 1] - p.starts[unit])
        });
        for r in 0..kernel {
            for depth in 0..window * p.source.channels {
                let (s, c) = (depth / p.source.channels, depth % p.source.channels);
                let (step, pair, half) = (depth / Threefold::STEP, depth % Threefold::STEP / 2, depth % 2);
                let to = &mut to[(r * p.steps + step) * 2 * tiles * TILE..][..2 * tiles * TILE];
                // Where the weights of the panel's targets lie: the first, and from one to the next.
                let place = if p.forward {
                    let tap = p.fold.canonical(canonical, c, s);
                    tap.map(|(c, s)| {
                        ((first_filter + panel.first) * filter + (c * kernel + r) * p.fold.kernel + s, filter)
                    })
                } else {
                    let plane = kernel * window;
                    Some((
                        (first_filter + c) * filter + panel.first * plane + r * window + (window - 1 - s),
                        plane,
                    ))
                };
                let Some((first, distance)) = place else { continue };
                for m in 0..panel.valid {
                    let (high, low) = parts(self.w[first + m * distance]);
                    let at = m / EDGE * TILE + pair * EDGE + m % EDGE;
                    let shift = 16 * half as u32;
                    let keep = 0xffff_0000u32 >> shift;
                    to[at] = to[at] & keep | u32::from(high) << shift;
                    let at = at + tiles * TILE;
                    to[at] = to[at] & keep | u32::from(low) << shift;
                }
            }
        }
    }
}

/// What follows a sum.
#[derive(Clone, Copy)]
enum Finish<'a> {
    Bias { bias: &'a [f32], relu: bool },
    Mask(&'a [f32]),
    Store,
}

/// y = x ∗ w + b, perhaps through a ReLU, for the pictures of `blocks` blocks.
///
/// Shapes: x in parts ([`Packed::rows`]), bias (K), y (blocks, P, Q, block, K).
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    blocks: usize,
    x: &[f32],
    packed: &Packed,
    bias: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
) {
    assert!(packed.forward && bias.len() == packed.g.k, "biases");
    assert!(y.len() >= packed.g.output_len(blocks), "outputs");
    let finish = Finish::Bias { bias, relu: epilogue == Epilogue::BiasRelu };
    correlate(ctx, engine, blocks, x, packed, finish, y);
}

/// dx from dy. With `relu`, dx is zero where that (x, as it came out of a ReLU) is not positive.
///
/// Shapes: dy in parts ([`Packed::rows`]), dx and relu (blocks, H, W, block, C).
pub fn backward_input(
    ctx: &mut Context,
    engine: Engine,
    blocks: usize,
    dy: &[f32],
    packed: &Packed,
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    let len = packed.g.input_len(blocks);
    assert!(!packed.forward && dx.len() >= len && relu.is_none_or(|x| x.len() >= len), "inputs");
    correlate(ctx, engine, blocks, dy, packed, relu.map_or(Finish::Store, Finish::Mask), dx);
}

fn correlate(
    ctx: &mut Context,
    engine: Engine,
    blocks: usize,
    source: &[f32],
    packed: &Packed,
    finish: Finish,
    target: &mut [f32],
) {
    assert!(source.len() >= packed.source.len(blocks), "the map in parts");
    let g = &packed.g;
    let (height, width) =
        if packed.forward { (g.rows.output, g.columns.output) } else { (g.rows.input, g.columns.input) };
    let unit_rows = (blocks * height).div_ceil(THREAD_UNITS * ctx.threads()).clamp(1, height);
    let window_bytes = g.rows.kernel * 2 * packed.source.part_len() * size_of::<u16>();
    let strips = window_bytes.div_ceil(WINDOW_BYTES);
    let strip = width.div_ceil(strips).max(1);
    run(
        ctx,
        engine,
        &Correlate {
            packed,
            blocks,
            source: pairs(source).as_ptr().cast(),
            weights: pairs(&packed.data),
            finish,
            target: Ptr::from_mut(target),
            height,
            width,
            channels: if packed.forward { g.k } else { g.c },
            unit_rows,
            strip,
        },
    );
}

struct Correlate<'a> {
    packed: &'a Packed,
    blocks: usize,
    source: *const u16,
    weights: &'a [u32],
    finish: Finish<'a>,
    target: Ptr,
    /// Of the target.
    height: usize,
    width: usize,
    /// Of the target, all groups.
    channels: usize,
    unit_rows: usize,
    /// Columns of a strip.
    strip: usize,
}

// SAFETY: the source is only read.
unsafe impl Sync for Correlate<'_> {}

impl Correlate<'_> {
    fn block_units(&self) -> usize {
        self.height.div_ceil(self.unit_rows)
    }

    /// Rows of the window that are within the map at row `h` of the target, and the map's rows there.
    fn window(&self, h: usize) -> impl Iterator<Item = (usize, usize)> {
        let (axis, forward) = (self.packed.g.rows, self.packed.forward);
        (0..axis.kernel)
            .filter_map(move |r| Some((r, if forward { axis.forward(h, r) } else { axis.backward(h, r) }?)))
    }

    /// What a row's windows at some columns read besides what those of the row before do.
    fn besides(&self, block: usize, group: usize, row: usize, columns: &Range<usize>) -> Pieces {
        let (p, none) = (self.packed, Pieces::none(self.source.cast()));
        let last = |row: usize| self.window(row).map(|(_, h)| h).max();
        let (Some(before), Some(h)) = (last(row - 1), last(row)) else { return none };
        if h <= before {
            return none;
        }
        let stride = if p.forward { p.g.columns.stride } else { 1 };
        let first = columns.start * stride * p.source.channels;
        let values = ((columns.len() - 1) * stride + p.g.columns.kernel) * p.source.channels;
        let from = self.source.wrapping_add(p.source.at(block, group, h) + first);
        Pieces::new(from.cast(), values.div_ceil(2), p.source.row_len() / 2, 2 * PICTURES)
    }
}

impl MatrixKernel for Correlate<'_> {
    fn units(&self) -> usize {
        (self.packed.chunks.len() - 1) * self.blocks * self.block_units()
    }

    fn scratch_len(&self) -> usize {
        C_LEN
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let p = self.packed;
        let (chunk, rest) =
            (unit / (self.blocks * self.block_units()), unit % (self.blocks * self.block_units()));
        let (block, first_row) = (rest / self.block_units(), rest % self.block_units() * self.unit_rows);
        let rows = first_row..(first_row + self.unit_rows).min(self.height);
        let panels = p.chunks[chunk]..p.chunks[chunk + 1];
        let group = p.panels[panels.start].group;
        let stride = if p.forward { p.g.columns.stride } else { 1 };
        let mut runs = [Run::default(); MOST_ROWS];
        for first in (0..self.width).step_by(self.strip) {
            let columns = first..(first + self.strip).min(self.width);
            for row in rows.clone() {
                let mut next = if row + 1 < rows.end {
                    self.besides(block, group, row + 1, &columns)
                } else {
                    Pieces::none(self.source.cast())
                };
                for index in panels.clone() {
                    let panel = p.panels[index];
                    let tiles = panel.tiles();
                    let shape = Threefold {
                        rows: p.g.block.div_ceil(EDGE),
                        columns: tiles,
                        a_row: p.source.row_len(),
                        a_low: p.source.part_len(),
                        a_step: Threefold::STEP,
                        b_step: 2 * tiles * TILE,
                    };
                    let mut used = 0;
                    for (r, h) in self.window(row) {
                        runs[used] = Run {
                            a: p.source.at(block, group, h),
                            b: p.starts[index] + r * p.steps * shape.b_step,
                            steps: p.steps,
                        };
                        used += 1;
                    }
                    for w in columns.clone() {
                        // SAFETY: `correlate` checked the maps; the last step of a run reaches at most a line beyond it. This
                        // unit owns the panel's channels at these positions.
                        unsafe {
                            let a = self.source.add(w * stride * p.source.channels);
                            let ahead = next.ask(used * p.steps, Threefold::LINES);
                            M::threefold(
                                &shape,
                                &runs[..used],
                                a,
                                self.weights.as_ptr(),
                                scratch,
                                false,
                                ahead,
                            );
                            self.store::<M::S>(&panel, (block * self.height + row) * self.width + w, scratch);
                        }
                    }
                }
            }
        }
    }
}

impl Correlate<'_> {
    /// Finishes the sums of a panel at a position.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, panel: &Panel, position: usize, sums: *const f32) {
        let p = self.packed;
        let channel = panel.group * (self.channels / p.g.groups) + panel.first;
        for n in 0..p.g.block {
            let at = (position * p.g.block + n) * self.channels + channel;
            for c in (0..panel.valid).step_by(S::LANES) {
                let lanes = (panel.valid - c).min(S::LANES);
                // SAFETY: the caller's promise: the position is within the target, and C holds its sums.
                unsafe {
                    let sum = S::load(sums.add(n * C_STRIDE + c));
                    let value = match self.finish {
                        Finish::Bias { bias, relu } => {
                            let sum = S::add(sum, S::load_part(bias.as_ptr().add(channel + c), lanes));
                            // In this order a NaN passes through.
                            if relu { S::max(S::zero(), sum) } else { sum }
                        }
                        Finish::Mask(x) => {
                            S::where_positive(S::load_part(x.as_ptr().add(at + c), lanes), sum)
                        }
                        Finish::Store => sum,
                    };
                    S::store_part(self.target.at(at + c), value, lanes);
                }
            }
        }
    }
}

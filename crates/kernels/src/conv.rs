//! Convolution in blocks of pictures: maps are (blocks, H, W, block, C), so that the rows of every tile are pictures at
//! one position. Taps that fall outside the map are skipped exactly, for any stride and padding; nothing is padded.
//!
//! Forward and input gradient are one loop (`Correlate`) over differently packed weights. Order of its loops, outside in:
//!
//! ```text
//! unit: one block, one output row (threads)
//!   group, panel of output channels (up to 64)
//!     chunk of the reduction whose weights fit in half of L1 (24 KiB)
//!       position in the row
//!         tile of pictures (6-8): dot() over the chunk's taps and channels
//! ```
//!
//! so that a chunk of weights is read from L2 once a row and from L1 for every position of it.

use crate::arena::Buffer;
use crate::isa::Isa;
use crate::panel::{Panel, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::{self, Finish, Output, Run, Start};

/// Weights of a chunk, bytes: half of a 48-KiB L1, which leaves room for the activations.
const CHUNK_BYTES: usize = 24 << 10;
/// Most taps in a chunk: bounds an array on the stack.
const CHUNK_TAPS: usize = 64;

/// One axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Input size, pixels.
    pub input: usize,
    /// Output size, pixels.
    pub output: usize,
    /// Kernel size, pixels.
    pub kernel: usize,
    /// Step between windows, pixels.
    pub stride: usize,
    /// Zeros before the first input pixel. Any number may follow the last.
    pub pad: usize,
}

impl Axis {
    /// The input position that output `o` reads through tap `t`, if it is within the map.
    #[inline(always)]
    fn forward(&self, o: usize, t: usize) -> Option<usize> {
        (o * self.stride + t).checked_sub(self.pad).filter(|&i| i < self.input)
    }

    /// The output position that reads input `i` through tap `t`, if there is one.
    #[inline(always)]
    fn backward(&self, i: usize, t: usize) -> Option<usize> {
        let reach = (i + self.pad).checked_sub(t)?;
        Some(reach / self.stride).filter(|&o| reach % self.stride == 0 && o < self.output)
    }
}

/// The geometry of a convolution of pictures in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Pictures that are interleaved at each position.
    pub block: usize,
    /// C, input channels over all groups.
    pub c: usize,
    /// K, filters over all groups.
    pub k: usize,
    /// G.
    pub groups: usize,
    /// H, P, R.
    pub rows: Axis,
    /// W, Q, S.
    pub columns: Axis,
}

impl Geometry {
    /// Elements of the input for `blocks` blocks.
    pub fn input_len(&self, blocks: usize) -> usize {
        blocks * self.rows.input * self.columns.input * self.block * self.c
    }

    /// Elements of the output for `blocks` blocks.
    pub fn output_len(&self, blocks: usize) -> usize {
        blocks * self.rows.output * self.columns.output * self.block * self.k
    }

    fn taps(&self) -> usize {
        self.rows.kernel * self.columns.kernel
    }
}

/// A chunk of the reduction: pieces of taps.
#[derive(Clone, Debug)]
struct Chunk {
    pieces: Vec<Piece>,
}

/// Channels `first..first + len` of tap (r, s); `step` is where its weights start, in steps of the reduction.
#[derive(Clone, Copy, Debug)]
struct Piece {
    r: usize,
    s: usize,
    first: usize,
    len: usize,
    step: usize,
}

/// Cuts the reduction over `kernel` taps of `channels` each into chunks of at most `most` steps.
fn chunks(rows: usize, columns: usize, channels: usize, most: usize) -> Vec<Chunk> {
    let mut chunks = vec![];
    let (mut pieces, mut steps) = (vec![], 0);
    for r in 0..rows {
        for s in 0..columns {
            for (first, len) in tiles(channels, most) {
                if steps + len > most || pieces.len() == CHUNK_TAPS {
                    chunks.push(Chunk { pieces: std::mem::take(&mut pieces) });
                    steps = 0;
                }
                pieces.push(Piece { r, s, first, len, step: (r * columns + s) * channels + first });
                steps += len;
            }
        }
    }
    chunks.push(Chunk { pieces });
    chunks
}

/// Weights packed for [`forward`] or [`backward_input`]: panel by panel, within a panel tap by tap, within a tap channel
/// by channel, one panel-wide row of weights each; columns that no channel has are zero.
#[derive(Debug)]
pub struct Packed {
    panels: Vec<Panel>,
    /// Offset of each panel of each group.
    offsets: Vec<usize>,
    chunks: Vec<Chunk>,
    /// Steps of the reduction: taps × channels read.
    steps: usize,
    lanes: usize,
    data: Buffer,
}

impl Packed {
    fn new(isa: Isa, groups: usize, reads: usize, writes: usize, rows: usize, columns: usize) -> Self {
        let lanes = isa.lanes();
        let panels = panels(isa, writes / groups);
        let widest = panels.iter().map(|p| p.vectors * lanes).max().unwrap_or(lanes);
        let steps = rows * columns * (reads / groups);
        let mut offsets = vec![];
        let mut len = 0;
        for _ in 0..groups {
            for p in &panels {
                offsets.push(len);
                len += p.vectors * lanes * steps;
            }
        }
        let most = (CHUNK_BYTES / size_of::<f32>() / widest).max(1);
        let chunks = chunks(rows, columns, reads / groups, most);
        Packed { panels, offsets, chunks, steps, lanes, data: Buffer::zeros(len) }
    }

    /// Room for the weights of [`forward`].
    pub fn for_forward(isa: Isa, g: &Geometry) -> Self {
        Packed::new(isa, g.groups, g.c, g.k, g.rows.kernel, g.columns.kernel)
    }

    /// Room for the weights of [`backward_input`].
    pub fn for_backward(isa: Isa, g: &Geometry) -> Self {
        Packed::new(isa, g.groups, g.k, g.c, g.rows.kernel, g.columns.kernel)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }
}

/// Where element (k, c, r, s) of a packed or canonical filter bank lies: the canonical bank is (K, C/G, R, S) of a
/// kernel whose columns may be folded into channels (see [`Fold`]).
#[derive(Clone, Copy, Debug)]
pub struct Fold {
    /// Columns of the canonical kernel.
    pub kernel: usize,
    /// Columns of input folded into the channels; 1 without folding.
    pub fold: usize,
}

impl Fold {
    /// Canonical (channel, column) of folded (channel, column), if the canonical kernel has it.
    #[inline(always)]
    fn canonical(&self, channels: usize, c: usize, s: usize) -> Option<(usize, usize)> {
        let column = s * self.fold + c / channels;
        (column < self.kernel).then_some((c % channels, column))
    }
}

/// Packs canonical weights `w` (K, C/G, R, S) for [`forward`].
pub fn pack_forward(ctx: &mut Context, g: &Geometry, fold: Fold, w: &[f32], packed: &mut Packed) {
    pack(ctx, g, fold, w, packed, false);
}

/// Packs canonical weights `w` (K, C/G, R, S) for [`backward_input`]. The kernel must not be folded.
pub fn pack_backward(ctx: &mut Context, g: &Geometry, w: &[f32], packed: &mut Packed) {
    pack(ctx, g, Fold { kernel: g.columns.kernel, fold: 1 }, w, packed, true);
}

fn pack(ctx: &mut Context, g: &Geometry, fold: Fold, w: &[f32], packed: &mut Packed, backward: bool) {
    let canonical_channels = g.c / g.groups / fold.fold;
    assert_eq!(w.len(), g.k * canonical_channels * g.rows.kernel * fold.kernel, "weights");
    let reads = if backward { g.k } else { g.c } / g.groups;
    assert_eq!(packed.lanes, ctx.isa().lanes(), "packed for another instruction set");
    assert_eq!(packed.steps, g.taps() * reads, "packed for another geometry");
    let data = Ptr::from_mut(&mut packed.data);
    ctx.run(&Pack { g: *g, fold, w, backward, packed, data });
}

struct Pack<'a> {
    g: Geometry,
    fold: Fold,
    w: &'a [f32],
    backward: bool,
    packed: &'a Packed,
    /// The packed weights.
    data: Ptr,
}

impl Kernel for Pack<'_> {
    /// A tap of a panel of a group.
    fn units(&self) -> usize {
        self.packed.offsets.len() * self.g.taps()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Pack { g, fold, w, .. } = self;
        let (i, tap) = (unit / g.taps(), unit % g.taps());
        let (r, s) = (tap / g.columns.kernel, tap % g.columns.kernel);
        let panels = &self.packed.panels;
        let (group, panel) = (i / panels.len(), panels[i % panels.len()]);
        let width = panel.vectors * S::LANES;
        let (kg, cg) = (g.k / g.groups, g.c / g.groups);
        let reads = if self.backward { kg } else { cg };
        let channels = cg / fold.fold;
        for read in 0..reads {
            let row = self.packed.offsets[i] + (tap * reads + read) * width;
            for lane in 0..panel.valid {
                let write = panel.first + lane;
                let (k, c) = if self.backward { (read, write) } else { (write, read) };
                let value = match fold.canonical(channels, c, s) {
                    Some((c, s)) => {
                        w[(((group * kg + k) * channels + c) * g.rows.kernel + r) * fold.kernel + s]
                    }
                    None => 0.0,
                };
                // SAFETY: the row is within the panel, whose room `Packed::new` added up; this unit owns it.
                unsafe { *self.data.at(row + lane) = value };
            }
        }
    }
}

/// What [`forward`] does with its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// y = sum + bias
    Bias,
    /// y = max(sum + bias, 0)
    BiasRelu,
}

/// y = x ∗ w + b for the first `count` pictures.
///
/// Shapes: x (blocks, H, W, block, C), bias (K), y (blocks, P, Q, block, K).
pub fn forward(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    x: &[f32],
    w: &Packed,
    bias: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
) {
    let blocks = count.div_ceil(g.block);
    assert!(x.len() >= g.input_len(blocks) && y.len() >= g.output_len(blocks), "maps");
    assert_eq!(bias.len(), g.k, "biases");
    assert_eq!(w.lanes, ctx.isa().lanes(), "packed for another instruction set");
    assert_eq!(
        w.steps * w.panels.len() * g.groups,
        g.taps() * g.c / g.groups * w.offsets.len(),
        "packed weights"
    );
    let finish = match epilogue {
        Epilogue::Bias => Finish::Store,
        Epilogue::BiasRelu => Finish::Relu,
    };
    // A panel reads whole vectors of bias: a copy with room at the end.
    let kernel = Correlate {
        g: *g,
        backward: false,
        count,
        x: x.as_ptr() as usize,
        w,
        bias: Some(bias),
        finish: Masked(finish),
        y: Ptr::from_mut(y),
    };
    ctx.run(&kernel);
}

/// dx = dy ∗ wᵀ for the first `count` pictures. With `relu`, the input as the forward pass read it after a ReLU, dx is
/// zero where that is zero.
///
/// Shapes: dy (blocks, P, Q, block, K), dx and relu (blocks, H, W, block, C).
pub fn backward_input(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    dy: &[f32],
    w: &Packed,
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    let blocks = count.div_ceil(g.block);
    assert!(dx.len() >= g.input_len(blocks) && dy.len() >= g.output_len(blocks), "maps");
    assert!(relu.is_none_or(|x| x.len() >= g.input_len(blocks)), "activation");
    assert_eq!(w.lanes, ctx.isa().lanes(), "packed for another instruction set");
    assert_eq!(w.steps, g.taps() * g.k / g.groups, "packed weights");
    let finish = relu.map_or(Finish::Store, |x| Finish::Mask(x.as_ptr()));
    let kernel = Correlate {
        g: *g,
        backward: true,
        count,
        x: dy.as_ptr() as usize,
        w,
        bias: None,
        finish: Masked(finish),
        y: Ptr::from_mut(dx),
    };
    ctx.run(&kernel);
}

/// `Finish` may hold a pointer into an input, which threads only read.
struct Masked(Finish);
// SAFETY: see above.
unsafe impl Sync for Masked {}

/// Forward, or backward with input and output exchanged.
struct Correlate<'a> {
    g: Geometry,
    backward: bool,
    count: usize,
    /// Address of the map that is read.
    x: usize,
    w: &'a Packed,
    bias: Option<&'a [f32]>,
    finish: Masked,
    y: Ptr,
}

impl Kernel for Correlate<'_> {
    fn units(&self) -> usize {
        self.count.div_ceil(self.g.block) * if self.backward { self.g.rows.input } else { self.g.rows.output }
    }

    /// The widest panel's bias.
    fn scratch_len(&self) -> usize {
        64
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let g = &self.g;
        let (rows, columns) = (g.rows, g.columns);
        // What is read (in_) and written (out_): extents and channels.
        let ((in_h, in_w, in_c), (out_h, out_w, out_c)) = if self.backward {
            ((rows.output, columns.output, g.k), (rows.input, columns.input, g.c))
        } else {
            ((rows.input, columns.input, g.c), (rows.output, columns.output, g.k))
        };
        let (block, out_row) = (unit / out_h, unit % out_h);
        let pictures = (self.count - block * g.block).min(g.block);
        let x = self.x as *const f32;
        for group in 0..g.groups {
            for (i, panel) in self.w.panels.iter().enumerate() {
                let width = panel.vectors * S::LANES;
                // SAFETY: the offsets are those of `Packed::new`, and the forward and backward constructors checked
                // the extents of x, y, bias and mask against the geometry.
                unsafe {
                    let w = self.w.data.as_ptr().add(self.w.offsets[group * self.w.panels.len() + i]);
                    let channel = group * (out_c / g.groups) + panel.first;
                    let first_start = match self.bias {
                        Some(bias) => {
                            std::ptr::write_bytes(scratch, 0, width);
                            std::ptr::copy_nonoverlapping(bias.as_ptr().add(channel), scratch, panel.valid);
                            Start::Row(scratch)
                        }
                        None => Start::Zero,
                    };
                    for (ci, chunk) in self.w.chunks.iter().enumerate() {
                        let start = if ci == 0 { first_start } else { Start::Output };
                        let last = ci + 1 == self.w.chunks.len();
                        for out_column in 0..out_w {
                            let mut runs = [Run::default(); CHUNK_TAPS];
                            let mut taps = 0;
                            for piece in &chunk.pieces {
                                let at = if self.backward {
                                    rows.backward(out_row, piece.r).zip(columns.backward(out_column, piece.s))
                                } else {
                                    rows.forward(out_row, piece.r).zip(columns.forward(out_column, piece.s))
                                };
                                if let Some((h, v)) = at {
                                    let x = ((block * in_h + h) * in_w + v) * g.block * in_c
                                        + group * (in_c / g.groups)
                                        + piece.first;
                                    runs[taps] = Run { x, w: piece.step * width, len: piece.len };
                                    taps += 1;
                                }
                            }
                            if taps == 0 && ci != 0 && !last {
                                continue;
                            }
                            let at =
                                ((block * out_h + out_row) * out_w + out_column) * g.block * out_c + channel;
                            for (first, n) in tiles(pictures, S::ROWS[panel.vectors - 1]) {
                                let y = at + first * out_c;
                                let finish = match self.finish.0 {
                                    _ if !last => Finish::Store,
                                    Finish::Mask(mask) => Finish::Mask(mask.add(y)),
                                    other => other,
                                };
                                let out =
                                    Output { y: self.y.at(y), stride: out_c, rows: n, valid: panel.valid };
                                tile::dot::<S>(
                                    panel.vectors,
                                    &runs[..taps],
                                    x.add(first * in_c),
                                    in_c,
                                    w,
                                    start,
                                    out,
                                    finish,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// dw and db, summed over the first `count` pictures, in canonical order; overwrites both.
///
/// Shapes: x (blocks, H, W, block, C), dy (blocks, P, Q, block, K), dw (K, C/G, R, S), db (K).
///
/// A unit is one group, one panel of filters and a few rows of the kernel, over all pictures: no sum crosses units, so
/// the result does not depend on the threads. Within a unit a few positions of dy (24 KiB) are copied together and
/// multiplied with x for the unit's rows, all columns of the kernel and all channels.
pub fn backward_weight(
    ctx: &mut Context,
    g: &Geometry,
    fold: Fold,
    plan: &WeightPlan,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let blocks = count.div_ceil(g.block);
    assert!(x.len() >= g.input_len(blocks) && dy.len() >= g.output_len(blocks), "maps");
    assert_eq!(dw.len(), g.k * (g.c / g.groups / fold.fold) * g.rows.kernel * fold.kernel, "weight gradient");
    assert_eq!(db.len(), g.k, "bias gradient");
    assert_eq!(plan.lanes, ctx.isa().lanes(), "planned for another instruction set");
    ctx.run(&WeightGradient {
        g: *g,
        fold,
        count,
        x,
        dy,
        plan,
        dw: Ptr::from_mut(dw),
        db: Ptr::from_mut(db),
    });
}

/// How [`backward_weight`] is cut into units; made once a plan.
#[derive(Clone, Debug)]
pub struct WeightPlan {
    panels: Vec<Panel>,
    lanes: usize,
    /// Positions of dy copied together.
    together: usize,
    /// Rows of the kernel in a unit.
    unit_rows: usize,
    /// The widest panel, elements.
    width: usize,
}

impl WeightPlan {
    /// The cut for a geometry, which does not depend on the number of threads.
    pub fn new(isa: Isa, g: &Geometry) -> Self {
        let panels = panels(isa, g.k / g.groups);
        let width = panels.iter().map(|p| p.vectors).max().unwrap_or(1) * isa.lanes();
        let together = CHUNK_BYTES / size_of::<f32>() / width / g.block;
        // As many rows as leave eight units and as have their sums in half of a 1-MiB L2.
        let row_bytes = g.columns.kernel * (g.c / g.groups) * width * size_of::<f32>();
        let rows = g.rows.kernel;
        let unit_rows =
            (rows * panels.len() * g.groups).div_ceil(8).min((512 << 10) / row_bytes).clamp(1, rows);
        let together = together.clamp(1, g.columns.output.min(CHUNK_TAPS));
        WeightPlan { panels, lanes: isa.lanes(), together, unit_rows, width }
    }

    /// Elements of scratch that each thread needs.
    pub fn scratch_len(&self, g: &Geometry) -> usize {
        let sums = self.unit_rows * g.columns.kernel * (g.c / g.groups) * self.width;
        sums + self.together * g.block * self.width + 2 * self.width
    }
}

struct WeightGradient<'a> {
    g: Geometry,
    fold: Fold,
    count: usize,
    x: &'a [f32],
    dy: &'a [f32],
    plan: &'a WeightPlan,
    dw: Ptr,
    db: Ptr,
}

impl WeightGradient<'_> {
    /// Units that share a panel.
    fn row_units(&self) -> usize {
        self.g.rows.kernel.div_ceil(self.plan.unit_rows)
    }

    /// Elements of the sums of one row of the kernel, (S, C/G, width).
    fn row_sums(&self, width: usize) -> usize {
        self.g.columns.kernel * (self.g.c / self.g.groups) * width
    }
}

impl Kernel for WeightGradient<'_> {
    fn units(&self) -> usize {
        self.g.groups * self.plan.panels.len() * self.row_units()
    }

    fn scratch_len(&self) -> usize {
        self.plan.scratch_len(&self.g)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let g = &self.g;
        let (rows, columns) = (g.rows, g.columns);
        let first_r = unit % self.row_units() * self.plan.unit_rows;
        let kernel_rows = first_r..(first_r + self.plan.unit_rows).min(rows.kernel);
        let strip = unit / self.row_units();
        let (group, panel) =
            (strip / self.plan.panels.len(), self.plan.panels[strip % self.plan.panels.len()]);
        let (cg, kg) = (g.c / g.groups, g.k / g.groups);
        let width = panel.vectors * S::LANES;
        let channel = group * kg + panel.first;
        // The sums (rows, S, C/G, width), the copied dy (positions, pictures, width), the bias sums (total, row).
        let sums = scratch;
        let copy = sums.wrapping_add(self.plan.unit_rows * self.row_sums(width));
        let total = copy.wrapping_add(self.plan.together * g.block * width);
        let row_sum = total.wrapping_add(width);
        let with_bias = first_r == 0;
        // SAFETY: the scratch is as long as `scratch_len` says; positions are within the maps, whose lengths
        // `backward_weight` checked; (group, panel, rows) own their elements of dw, and the first rows those of db.
        unsafe {
            std::ptr::write_bytes(sums, 0, self.plan.unit_rows * self.row_sums(width));
            std::ptr::write_bytes(total, 0, width);
            for block in 0..self.count.div_ceil(g.block) {
                let pictures = (self.count - block * g.block).min(g.block);
                for p in 0..rows.output {
                    if !with_bias && kernel_rows.clone().all(|r| rows.forward(p, r).is_none()) {
                        continue;
                    }
                    std::ptr::write_bytes(row_sum, 0, width);
                    let mut q0 = 0;
                    while q0 < columns.output {
                        let positions = self.plan.together.min(columns.output - q0);
                        let from =
                            ((block * rows.output + p) * columns.output + q0) * g.block * g.k + channel;
                        for position in 0..positions {
                            let from = self.dy.as_ptr().add(from + position * g.block * g.k);
                            copy_rows::<S>(from, g.k, panel, copy.add(position * pictures * width), pictures);
                        }
                        if with_bias {
                            add_rows::<S>(copy, panel.vectors, positions * pictures, row_sum);
                        }
                        for s in 0..columns.kernel {
                            let mut runs = [Run::default(); CHUNK_TAPS];
                            let mut used = 0;
                            for position in 0..positions {
                                if let Some(v) = columns.forward(q0 + position, s) {
                                    let x = v * g.block * g.c;
                                    runs[used] = Run { x, w: position * pictures * width, len: pictures };
                                    used += 1;
                                }
                            }
                            if used == 0 {
                                continue;
                            }
                            for r in kernel_rows.clone() {
                                let Some(h) = rows.forward(p, r) else { continue };
                                let x = (block * rows.input + h) * columns.input * g.block * g.c + group * cg;
                                let sums = sums.add((r - first_r) * self.row_sums(width));
                                for (c, n) in tiles(cg, S::ROWS[panel.vectors - 1]) {
                                    let y = sums.add((s * cg + c) * width);
                                    tile::outer::<S>(
                                        panel.vectors,
                                        &runs[..used],
                                        self.x.as_ptr().add(x + c),
                                        g.c,
                                        copy,
                                        Start::Output,
                                        Output { y, stride: width, rows: n, valid: width },
                                    );
                                }
                            }
                        }
                        q0 += positions;
                    }
                    if with_bias {
                        add_rows::<S>(row_sum, panel.vectors, 1, total);
                    }
                }
            }
            let channels = cg / self.fold.fold;
            for r in kernel_rows {
                let sums = sums.add((r - first_r) * self.row_sums(width));
                for s in 0..columns.kernel {
                    for c in 0..cg {
                        let Some((c_out, s_out)) = self.fold.canonical(channels, c, s) else { continue };
                        for lane in 0..panel.valid {
                            let k = channel + lane;
                            let at = ((k * channels + c_out) * rows.kernel + r) * self.fold.kernel + s_out;
                            *self.dw.at(at) = *sums.add((s * cg + c) * width + lane);
                        }
                    }
                }
            }
            if with_bias {
                std::ptr::copy_nonoverlapping(total, self.db.at(channel), panel.valid);
            }
        }
    }
}

/// Copies a panel's columns of `rows` rows at `stride` to consecutive panel-wide rows, zero where no channel is.
#[inline(always)]
pub(crate) unsafe fn copy_rows<S: Simd>(
    from: *const f32,
    stride: usize,
    panel: Panel,
    to: *mut f32,
    rows: usize,
) {
    let width = panel.vectors * S::LANES;
    // SAFETY: the caller's promise that rows and columns are within both arrays.
    unsafe {
        for n in 0..rows {
            let (from, to) = (from.add(n * stride), to.add(n * width));
            for v in 0..panel.vectors {
                let done = v * S::LANES;
                let value = if panel.valid >= done + S::LANES {
                    S::load(from.add(done))
                } else {
                    S::load_first(from.wrapping_add(done), panel.valid.saturating_sub(done))
                };
                S::store(to.add(done), value);
            }
        }
    }
}

/// total[·] += Σ_rows rows[·], `vectors` vectors wide.
#[inline(always)]
unsafe fn add_rows<S: Simd>(rows: *const f32, vectors: usize, count: usize, total: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for v in 0..vectors {
            let mut sum = S::load(total.add(v * S::LANES));
            for n in 0..count {
                sum = S::add(sum, S::load(rows.add((n * vectors + v) * S::LANES)));
            }
            S::store(total.add(v * S::LANES), sum);
        }
    }
}

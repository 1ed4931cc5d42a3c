//! Linear layers on plain row-major matrices: x (N, I), w (O, I), y (N, O).
//!
//! The weights are the large operand: each pass reads them from memory once. Forward, a tile is rows of w by a panel of
//! pictures; backward, one pass over a strip of columns of w yields the input gradient and the weight gradient and
//! applies the update, so that no weight gradient is ever stored.

use crate::arena::Buffer;
use crate::panel::{Panel, copy_rows, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::sgd::{Mover, Update};
use crate::simd::Simd;
use crate::tile::{self, Finish, Output, Run, Start};

/// Bytes of a packed panel's chunk of the reduction: half of L1.
const CHUNK_BYTES: usize = 24 << 10;
/// Outputs of a unit of the forward pass.
const FORWARD_ROWS: usize = 96;
/// Columns of w of a unit of the backward pass.
const STRIP: usize = 256;
/// Outputs whose weights a unit of the backward pass holds packed: with 256 columns 128 KiB.
const STRIP_ROWS: usize = 128;

/// x (N, I) packed for [`forward`]: panels of pictures, in each one row of pictures an input.
#[derive(Debug)]
pub struct PackedPictures {
    panels: Vec<Panel>,
    offsets: Vec<usize>,
    inputs: usize,
    lanes: usize,
    data: Buffer,
}

impl PackedPictures {
    /// Room for `pictures` × `inputs`.
    pub fn new(isa: crate::Isa, pictures: usize, inputs: usize) -> Self {
        let (panels, lanes) = (panels(isa, pictures), isa.lanes());
        let mut len = 0;
        let offsets = panels
            .iter()
            .map(|p| {
                len += p.vectors * lanes * inputs;
                len - p.vectors * lanes * inputs
            })
            .collect();
        PackedPictures { panels, offsets, inputs, lanes, data: Buffer::zeros(len) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Packs the first `count` rows of `x` (N, I); the others become zero.
    fn pack(&mut self, ctx: &mut Context, count: usize, x: &[f32]) {
        let data = Ptr::from_mut(&mut self.data);
        ctx.run(&Pack { packed: self, count, x, data });
    }

    /// Elements of scratch that [`forward`] needs on each thread.
    pub fn scratch_len(&self) -> usize {
        FORWARD_ROWS * self.panels.iter().map(|p| p.vectors * self.lanes).sum::<usize>()
    }
}

/// Inputs of a unit of packing.
const PACK_INPUTS: usize = 256;

struct Pack<'a> {
    packed: &'a PackedPictures,
    count: usize,
    x: &'a [f32],
    /// The packed pictures.
    data: Ptr,
}

impl Kernel for Pack<'_> {
    /// Some inputs of all pictures.
    fn units(&self) -> usize {
        self.packed.inputs.div_ceil(PACK_INPUTS)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let inputs = self.packed.inputs;
        let first = unit * PACK_INPUTS;
        let last = (first + PACK_INPUTS).min(inputs);
        for (panel, offset) in self.packed.panels.iter().zip(&self.packed.offsets) {
            let width = panel.vectors * S::LANES;
            for n in 0..width {
                let picture = panel.first + n;
                for i in first..last {
                    let value = if picture < self.count { self.x[picture * inputs + i] } else { 0.0 };
                    // SAFETY: within the panel's room, which `new` added up; this unit owns these inputs.
                    unsafe { *self.data.at(offset + i * width + n) = value };
                }
            }
        }
    }
}

/// y = x wᵀ + b, then max(·, 0) if `relu`, for the first `count` pictures.
///
/// Shapes: x (N, I), w (O, I), bias (O), y (N, O).
pub fn forward(
    ctx: &mut Context,
    count: usize,
    x: &[f32],
    packed: &mut PackedPictures,
    w: &[f32],
    bias: &[f32],
    relu: bool,
    y: &mut [f32],
) {
    let (inputs, outputs) = (packed.inputs, bias.len());
    assert_eq!(w.len(), outputs * inputs, "weights");
    assert!(x.len() >= count * inputs && y.len() >= count * outputs, "matrices");
    let pictures: usize = packed.panels.iter().map(|p| p.valid).sum();
    assert!(count <= pictures, "packed for {pictures} pictures");
    assert_eq!(packed.lanes, ctx.isa().lanes(), "packed for another instruction set");
    packed.pack(ctx, count, x);
    let used = packed.panels.iter().take_while(|p| p.first < count).count();
    let kernel = Forward { count, packed, used, w, bias, relu, y: Ptr::from_mut(y) };
    ctx.run(&kernel);
}

struct Forward<'a> {
    count: usize,
    packed: &'a PackedPictures,
    /// Panels that have pictures.
    used: usize,
    w: &'a [f32],
    bias: &'a [f32],
    relu: bool,
    y: Ptr,
}

impl Kernel for Forward<'_> {
    fn units(&self) -> usize {
        self.bias.len().div_ceil(FORWARD_ROWS)
    }

    fn scratch_len(&self) -> usize {
        self.packed.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (inputs, outputs) = (self.packed.inputs, self.bias.len());
        let first = unit * FORWARD_ROWS;
        let rows = FORWARD_ROWS.min(outputs - first);
        // SAFETY: `forward` checked all lengths; this unit owns outputs first..first + rows of every row of y.
        unsafe {
            let mut sums = scratch;
            for (panel, &offset) in self.packed.panels[..self.used].iter().zip(&self.packed.offsets) {
                let width = panel.vectors * S::LANES;
                let chunk = CHUNK_BYTES / size_of::<f32>() / width;
                let mut k = 0;
                while k < inputs {
                    let len = chunk.min(inputs - k);
                    let run = [Run { x: k, w: offset + k * width, len }];
                    for (row, n) in tiles(rows, S::ROWS[panel.vectors - 1]) {
                        let out = Output { y: sums.add(row * width), stride: width, rows: n, valid: width };
                        tile::dot::<S>(
                            panel.vectors,
                            &run,
                            self.w.as_ptr().add((first + row) * inputs),
                            inputs,
                            self.packed.data.as_ptr(),
                            if k == 0 { Start::Zero } else { Start::Output },
                            out,
                            Finish::Store,
                        );
                    }
                    k += len;
                }
                for n in 0..panel.valid.min(self.count - panel.first) {
                    let y = self.y.at((panel.first + n) * outputs + first);
                    for row in 0..rows {
                        let value = *sums.add(row * width + n) + self.bias[first + row];
                        // In this order a NaN passes through.
                        *y.add(row) = if self.relu && value < 0.0 { 0.0 } else { value };
                    }
                }
                sums = sums.add(rows * width);
            }
        }
    }
}

/// How the columns of w are cut for [`backward`]; made once a plan.
#[derive(Clone, Debug)]
pub struct Strips {
    inputs: usize,
    lanes: usize,
    /// Panels of a full strip, and of the last.
    full: Vec<Panel>,
    last: Vec<Panel>,
}

impl Strips {
    /// The cut for `inputs` columns, which does not depend on the number of threads.
    pub fn new(isa: crate::Isa, inputs: usize) -> Self {
        let last = match inputs % STRIP {
            0 => STRIP,
            rest => rest,
        };
        Strips { inputs, lanes: isa.lanes(), full: panels(isa, STRIP), last: panels(isa, last) }
    }

    fn count(&self) -> usize {
        self.inputs.div_ceil(STRIP)
    }

    fn panels(&self, strip: usize) -> &[Panel] {
        if strip + 1 < self.count() { &self.full } else { &self.last }
    }

    /// Elements of scratch that [`backward`] needs on each thread for `count` pictures.
    pub fn scratch_len(&self, count: usize) -> usize {
        let width: usize = self.full.iter().map(|p| p.vectors * self.lanes).sum();
        // Packed weights, packed inputs, one tile of gradient.
        (STRIP_ROWS + count) * width + TILE
    }
}

/// At least a tile of gradient: 24 vectors of 16 lanes.
const TILE: usize = 24 * 16;

/// What [`backward`] reads and writes besides x and dy.
pub struct Backward<'a> {
    /// The gradient of the inputs, (N, I) or a flat map of pairs, if it is wanted.
    pub dx: Option<&'a mut [f32]>,
    /// dx is zero where this, which lies like it, is not positive: x as it came out of a ReLU.
    pub relu: Option<&'a [f32]>,
    /// (O, I)
    pub w: &'a mut [f32],
    /// Momentum, (O, I).
    pub v: &'a mut [f32],
    /// How w moves.
    pub update: Update,
}

/// In one pass over the weights: dx = dy w, then w and v moved by dw = dyᵀ x. Returns whether all weights that moved are
/// finite.
///
/// Shapes: x (N, I), dy (N, O) and its transpose dy_t (O, N), for N = `count` pictures.
pub fn backward(
    ctx: &mut Context,
    strips: &Strips,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dy_t: &[f32],
    pass: Backward,
) -> bool {
    run_backward(ctx, strips, count, x, dy, dy_t, pass, false)
}

/// As [`backward`], but nothing moves: dw is written to `pass.v`, for updates that need the whole gradient first. The rate
/// of `pass.update` must not be zero; the result is always true.
pub fn backward_whole(
    ctx: &mut Context,
    strips: &Strips,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dy_t: &[f32],
    pass: Backward,
) -> bool {
    run_backward(ctx, strips, count, x, dy, dy_t, pass, true)
}

#[allow(clippy::too_many_arguments)]
fn run_backward(
    ctx: &mut Context,
    strips: &Strips,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dy_t: &[f32],
    pass: Backward,
    whole: bool,
) -> bool {
    let outputs = dy_t.len() / count;
    assert!(outputs * count == dy_t.len() && dy.len() >= count * outputs, "output gradient");
    let inputs = strips.inputs;
    assert_eq!(strips.lanes, ctx.isa().lanes(), "planned for another instruction set");
    assert!(pass.w.len() == outputs * inputs && pass.v.len() == pass.w.len(), "weights");
    assert!(x.len() >= count * inputs, "inputs");
    assert!(pass.dx.as_ref().is_none_or(|dx| dx.len() >= count * inputs), "input gradient");
    assert!(pass.relu.is_none_or(|a| a.len() >= count * inputs), "activation");
    let mut flags = [0.0f32; 256];
    let units = strips.count();
    assert!(units <= flags.len(), "more inputs than {} ", STRIP * flags.len());
    let kernel = BackwardKernel {
        count,
        strips,
        outputs,
        x,
        dy,
        dy_t,
        dx: pass.dx.map(Ptr::from_mut),
        relu: pass.relu,
        w: Ptr::from_mut(pass.w),
        v: Ptr::from_mut(pass.v),
        update: pass.update,
        whole,
        flags: Ptr::from_mut(&mut flags),
    };
    ctx.run(&kernel);
    flags[..units].iter().all(|f| *f == 0.0)
}

struct BackwardKernel<'a> {
    count: usize,
    strips: &'a Strips,
    outputs: usize,
    x: &'a [f32],
    dy: &'a [f32],
    dy_t: &'a [f32],
    dx: Option<Ptr>,
    relu: Option<&'a [f32]>,
    w: Ptr,
    v: Ptr,
    update: Update,
    /// v receives dw, and nothing moves.
    whole: bool,
    /// One element a unit: not zero if a weight became infinite or NaN.
    flags: Ptr,
}

impl Kernel for BackwardKernel<'_> {
    fn units(&self) -> usize {
        self.strips.count()
    }

    fn scratch_len(&self) -> usize {
        self.strips.scratch_len(self.count)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (count, inputs, outputs) = (self.count, self.strips.inputs, self.outputs);
        let column = unit * STRIP;
        let panels = self.strips.panels(unit);
        let width: usize = panels.iter().map(|p| p.vectors * S::LANES).sum();
        let packed_w = scratch;
        let packed_x = packed_w.wrapping_add(STRIP_ROWS * width);
        let tile_dw = packed_x.wrapping_add(count * width);
        let moves = self.update.lr != 0.0;
        // SAFETY: `backward` checked all lengths, `scratch_len` covers the packed operands; this unit owns its columns
        // of w, v and dx, and its flag.
        unsafe {
            let mut mover = Mover::<S>::new(self.update);
            if moves {
                let mut to = packed_x;
                for panel in panels {
                    let from = self.x.as_ptr().add(column + panel.first);
                    copy_rows::<S>(from, inputs, *panel, to, count);
                    to = to.add(count * panel.vectors * S::LANES);
                }
            }
            let mut row = 0;
            while row < outputs {
                let rows = STRIP_ROWS.min(outputs - row);
                let w_rows = self.w.at(row * inputs + column);
                if let Some(dx) = self.dx {
                    let mut to = packed_w;
                    for panel in panels {
                        let panel_width = panel.vectors * S::LANES;
                        copy_rows::<S>(w_rows.add(panel.first), inputs, *panel, to, rows);
                        let run = [Run { x: row, w: 0, len: rows }];
                        for (n, height) in tiles(count, S::ROWS[panel.vectors - 1]) {
                            let at = n * inputs + column + panel.first;
                            let finish = match self.relu {
                                Some(a) if row + rows == outputs => Finish::Mask(a.as_ptr().add(at)),
                                _ => Finish::Store,
                            };
                            tile::dot::<S>(
                                panel.vectors,
                                &run,
                                self.dy.as_ptr().add(n * outputs),
                                outputs,
                                to,
                                if row == 0 { Start::Zero } else { Start::Output },
                                Output { y: dx.at(at), stride: inputs, rows: height, valid: panel.valid },
                                finish,
                            );
                        }
                        to = to.add(rows * panel_width);
                    }
                }
                if moves {
                    let mut from = packed_x;
                    for panel in panels {
                        let panel_width = panel.vectors * S::LANES;
                        let run = [Run { x: 0, w: 0, len: count }];
                        for (o, height) in tiles(rows, S::ROWS[panel.vectors - 1]) {
                            tile::dot::<S>(
                                panel.vectors,
                                &run,
                                self.dy_t.as_ptr().add((row + o) * count),
                                count,
                                from,
                                Start::Zero,
                                Output { y: tile_dw, stride: panel_width, rows: height, valid: panel_width },
                                Finish::Store,
                            );
                            for j in 0..height {
                                let at = (row + o + j) * inputs + column + panel.first;
                                if self.whole {
                                    let dw = tile_dw.add(j * panel_width);
                                    std::ptr::copy_nonoverlapping(dw, self.v.at(at), panel.valid);
                                    continue;
                                }
                                mover.step(
                                    tile_dw.add(j * panel_width),
                                    self.w.at(at),
                                    self.v.at(at),
                                    panel.valid,
                                );
                            }
                        }
                        from = from.add(count * panel_width);
                    }
                }
                row += rows;
            }
            *self.flags.at(unit) = mover.check();
        }
    }
}

/// Transposes the first `count` rows of `x` (N, M) into `t` (M, N = count).
pub fn transpose(ctx: &mut Context, count: usize, x: &[f32], t: &mut [f32]) {
    let columns = t.len() / count.max(1);
    assert!(count * columns == t.len() && x.len() >= t.len(), "matrices");
    // Sixteen columns of x at a time: whole cache lines on both sides.
    ctx.for_each_chunk(t, 16 * count, |i, rows| {
        for n in 0..count {
            let from = &x[n * columns + i * 16..];
            for (row, value) in rows.chunks_exact_mut(count).zip(from) {
                row[n] = *value;
            }
        }
    });
}

/// db: sums of the rows of dy_t (O, N), each over its pictures in order.
pub fn bias_gradient(dy_t: &[f32], db: &mut [f32]) {
    let count = dy_t.len() / db.len();
    for (sum, row) in db.iter_mut().zip(dy_t.chunks_exact(count)) {
        *sum = row.iter().sum();
    }
}

//! Linear layers on plain row-major matrices: x (N, I), w (O, I), y (N, O).
//!
//! The weights are the large operand: each pass reads them from memory once. Forward, a tile is rows of w by a panel of
//! pictures; backward, one pass over a strip of columns of w yields the input gradient and the weight gradient and
//! applies the update, so that no weight gradient is ever stored.

use crate::conv::copy_rows;
use crate::panel::{Panel, panels, tiles};
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
    data: Vec<f32>,
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
        PackedPictures { panels, offsets, inputs, lanes, data: vec![0.0; len] }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Packs the first `count` rows of `x` (N, I); the others become zero.
    fn pack(&mut self, ctx: &mut Context, count: usize, x: &[f32]) {
        let mut rest = &mut self.data[..];
        let mut pieces = vec![];
        for panel in &self.panels {
            let (piece, tail) = rest.split_at_mut(panel.vectors * self.lanes * self.inputs);
            let width = panel.vectors * self.lanes;
            // Pieces of 256 inputs: enough of them for any number of threads.
            for (i, piece) in piece.chunks_mut(256 * width).enumerate() {
                pieces.push((panel.first, width, i * 256, piece));
            }
            rest = tail;
        }
        let inputs = self.inputs;
        ctx.for_each(&mut pieces, |(first, width, input, piece)| {
            for n in 0..*width {
                let picture = *first + n;
                if picture < count {
                    let row = &x[picture * inputs + *input..];
                    for (to, from) in piece[n..].iter_mut().step_by(*width).zip(row) {
                        *to = *from;
                    }
                } else {
                    piece[n..].iter_mut().step_by(*width).for_each(|to| *to = 0.0);
                }
            }
        });
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
        let width: usize = self.packed.panels.iter().map(|p| p.vectors * self.packed.lanes).sum();
        FORWARD_ROWS * width
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

/// What [`backward`] reads and writes besides x and dy.
pub struct Backward<'a> {
    /// The gradient of the inputs, (N, I), if it is wanted.
    pub dx: Option<&'a mut [f32]>,
    /// dx is zero where this, (N, I), is not positive: x as it came out of a ReLU.
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
    count: usize,
    x: &[f32],
    dy: &[f32],
    dy_t: &[f32],
    pass: Backward,
) -> bool {
    let outputs = dy_t.len() / count;
    assert!(outputs * count == dy_t.len() && dy.len() >= count * outputs, "output gradient");
    let inputs = pass.w.len() / outputs;
    assert!(pass.w.len() == outputs * inputs && pass.v.len() == pass.w.len(), "weights");
    assert!(x.len() >= count * inputs, "inputs");
    assert!(pass.dx.as_ref().is_none_or(|dx| dx.len() >= count * inputs), "input gradient");
    assert!(pass.relu.is_none_or(|a| a.len() >= count * inputs), "activation");
    let lanes = ctx.isa().lanes();
    let strip = panels(ctx.isa(), STRIP.min(inputs));
    let last = inputs % STRIP;
    let last = if last == 0 { strip.clone() } else { panels(ctx.isa(), last) };
    let mut flags = [0.0f32; 256];
    let units = inputs.div_ceil(STRIP);
    assert!(units <= flags.len(), "more inputs than {} ", STRIP * flags.len());
    let kernel = BackwardKernel {
        count,
        inputs,
        outputs,
        lanes,
        x,
        dy,
        dy_t,
        dx: pass.dx.map(Ptr::from_mut),
        relu: pass.relu,
        w: Ptr::from_mut(pass.w),
        v: Ptr::from_mut(pass.v),
        update: pass.update,
        strip,
        last,
        flags: Ptr::from_mut(&mut flags),
    };
    ctx.run(&kernel);
    flags[..units].iter().all(|f| *f == 0.0)
}

struct BackwardKernel<'a> {
    count: usize,
    inputs: usize,
    outputs: usize,
    lanes: usize,
    x: &'a [f32],
    dy: &'a [f32],
    dy_t: &'a [f32],
    dx: Option<Ptr>,
    relu: Option<&'a [f32]>,
    w: Ptr,
    v: Ptr,
    update: Update,
    /// Panels of a full strip of columns, and of the last.
    strip: Vec<Panel>,
    last: Vec<Panel>,
    /// One element a unit: not zero if a weight became infinite or NaN.
    flags: Ptr,
}

impl BackwardKernel<'_> {
    fn strip_width(&self) -> usize {
        self.strip.iter().chain(&self.last).map(|p| p.vectors * self.lanes).sum()
    }
}

impl Kernel for BackwardKernel<'_> {
    fn units(&self) -> usize {
        self.inputs.div_ceil(STRIP)
    }

    fn scratch_len(&self) -> usize {
        // Packed weights, packed inputs, one tile of gradient.
        (STRIP_ROWS + self.count) * self.strip_width() + 32 * 64
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (count, inputs, outputs) = (self.count, self.inputs, self.outputs);
        let column = unit * STRIP;
        let panels = if (unit + 1) * STRIP <= inputs { &self.strip } else { &self.last };
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

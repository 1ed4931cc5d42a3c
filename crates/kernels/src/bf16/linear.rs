//! Linear layers on flat maps (blocks, pairs of features, 32 pictures): x (I), y (O), w (O, I) in f32.
//!
//! Weights are the large operand; each pass reads the master weights from memory once and rounds them on the way, so that
//! no rounded copy of them takes room or traffic while training. [`Rounded`] is such a copy, for inference, where it
//! halves what has to be read.

use super::convert::{flat, paired_len};
use super::engine::{C_LEN, C_STRIDE, Engine, Matrix, MatrixKernel, Product, Right, Run, run};
use super::{EDGE, MapLayout, PICTURES, TAIL, pair, pairs};
use crate::arena::Buffer;
use crate::parallel::{Context, Kernel, Ptr};
use crate::sgd::{Mover, Update};
use crate::simd::Simd;

/// Pairs of a tile.
const TILE: usize = EDGE * EDGE;
/// Most blocks that a pass holds sums of at once.
const TOGETHER: usize = 8;
/// Outputs of a unit of the forward pass.
const FORWARD_ROWS: usize = 64;
/// Steps of a chunk of the forward pass: the rounded weights of 32 outputs, 64 KiB, are read again for each block.
const CHUNK_STEPS: usize = 32;
/// Columns of w of a unit of the backward pass: rows of 512 bytes.
const STRIP: usize = 128;
/// Outputs that a unit of the backward pass takes at a time: their rounded weights, transposed, are 32 KiB.
const STRIP_ROWS: usize = 128;

/// w (O, I) rounded and in tiles, for [`forward`].
#[derive(Debug)]
pub struct Rounded {
    outputs: usize,
    inputs: usize,
    data: Buffer,
}

impl Rounded {
    /// Room for `outputs` × `inputs`.
    pub fn new(outputs: usize, inputs: usize) -> Rounded {
        let steps = inputs.div_ceil(2 * EDGE);
        Rounded { outputs, inputs, data: Buffer::zeros(outputs.div_ceil(2 * EDGE) * steps * 2 * TILE) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Rounds w (O, I).
    pub fn set(&mut self, ctx: &mut Context, w: &[f32]) {
        assert_eq!(w.len(), self.outputs * self.inputs, "weights");
        let mut data = std::mem::replace(&mut self.data, Buffer::zeros(0));
        ctx.run(&Round { to: self, w, data: Ptr::from_mut(&mut data) });
        self.data = data;
    }
}

struct Round<'a> {
    to: &'a Rounded,
    w: &'a [f32],
    data: Ptr,
}

impl Kernel for Round<'_> {
    /// 32 outputs.
    fn units(&self) -> usize {
        self.to.outputs.div_ceil(2 * EDGE)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let Rounded { outputs, inputs, .. } = *self.to;
        let steps = inputs.div_ceil(2 * EDGE);
        let first = unit * 2 * EDGE;
        let rows = (outputs - first).min(2 * EDGE);
        // SAFETY: 32 outputs own their tiles; rows and columns are within w.
        unsafe {
            let w = self.w.as_ptr().add(first * inputs);
            let to = self.data.at(unit * steps * 2 * TILE).cast::<u32>();
            round_rows(w, inputs, rows, 0, steps, to);
        }
    }
}

/// Rounds `rows` rows of w, `steps` steps from column 32·`first`, to pairs of tiles; zero beyond rows and columns.
#[inline(always)]
unsafe fn round_rows(w: *const f32, inputs: usize, rows: usize, first: usize, steps: usize, to: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for step in 0..steps {
            let column = (first + step) * 2 * EDGE;
            for row in 0..2 * EDGE {
                let to = to.add((step * 2 + row / EDGE) * TILE + row % EDGE * EDGE);
                let w = w.wrapping_add(row * inputs + column);
                if row < rows && column + 2 * EDGE <= inputs {
                    let w = w.cast::<[f32; 32]>().read_unaligned();
                    let mut out = [0u32; EDGE];
                    for i in 0..EDGE {
                        out[i] = pair(w[2 * i], w[2 * i + 1]);
                    }
                    to.cast::<[u32; EDGE]>().write_unaligned(out);
                } else {
                    for i in 0..EDGE {
                        let value =
                            |c: usize| if row < rows && column + c < inputs { *w.add(c) } else { 0.0 };
                        *to.add(i) = pair(value(2 * i), value(2 * i + 1));
                    }
                }
            }
        }
    }
}

/// Where the weights of a forward pass come from.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// (O, I) in f32: rounded on the way.
    Master(&'a [f32]),
    /// Rounded beforehand.
    Rounded(&'a Rounded),
}

/// Where the outputs go.
#[derive(Debug)]
pub enum Output<'a> {
    /// A flat map.
    Map(&'a mut [f32]),
    /// (N, O) in f32: what a loss reads.
    Rows(&'a mut [f32]),
}

/// y = x wᵀ + b, then max(·, 0) if `relu`, for the first `count` pictures; of a map whole blocks are written.
///
/// Shapes: x a flat map of `inputs` features with [`TAIL`] behind it, bias (O).
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    inputs: usize,
    count: usize,
    x: &[f32],
    weights: Weights,
    bias: &[f32],
    relu: bool,
    y: Output,
) {
    let outputs = bias.len();
    let blocks = count.div_ceil(PICTURES);
    let map = flat(inputs);
    assert!(x.len() >= blocks * map.block_len() + TAIL, "inputs");
    match weights {
        Weights::Master(w) => assert_eq!(w.len(), outputs * inputs, "weights"),
        Weights::Rounded(r) => assert_eq!((r.outputs, r.inputs), (outputs, inputs), "weights"),
    }
    let (y, rows) = match y {
        Output::Map(y) => {
            assert!(y.len() >= blocks * flat(outputs).block_len(), "outputs");
            (Ptr::from_mut(y), false)
        }
        Output::Rows(y) => {
            assert!(y.len() >= count * outputs, "outputs");
            (Ptr::from_mut(y), true)
        }
    };
    run(ctx, engine, &Forward { map, count, blocks, x: pairs(x), weights, bias, relu, y, rows });
}

/// Elements of scratch that each thread needs for the passes of a layer over `blocks` blocks.
pub fn scratch_len(blocks: usize) -> usize {
    forward_scratch_len(blocks).max(backward_scratch_len(blocks))
}

/// Sums of each block, and a chunk of rounded weights.
fn forward_scratch_len(blocks: usize) -> usize {
    blocks.min(TOGETHER) * (FORWARD_ROWS / (2 * EDGE)) * C_LEN + CHUNK_STEPS * 2 * TILE
}

/// Transposed weights, sums of dx of every block, sums of dw.
fn backward_scratch_len(blocks: usize) -> usize {
    STRIP_ROWS * STRIP / 2 + blocks * (STRIP / (2 * EDGE)) * C_LEN + C_LEN
}

struct Forward<'a> {
    map: MapLayout,
    count: usize,
    blocks: usize,
    x: &'a [u32],
    weights: Weights<'a>,
    bias: &'a [f32],
    relu: bool,
    y: Ptr,
    /// Whether y is (N, O) in f32.
    rows: bool,
}

impl MatrixKernel for Forward<'_> {
    fn units(&self) -> usize {
        self.bias.len().div_ceil(FORWARD_ROWS)
    }

    fn scratch_len(&self) -> usize {
        forward_scratch_len(self.blocks)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (inputs, outputs) = (self.map.channels, self.bias.len());
        let steps = inputs.div_ceil(2 * EDGE);
        let narrow = self.count <= EDGE;
        let sums_len = self.blocks.min(TOGETHER) * (FORWARD_ROWS / (2 * EDGE)) * C_LEN;
        let chunk = scratch.wrapping_add(sums_len).cast::<u32>();
        let mut first_block = 0;
        while first_block < self.blocks {
            let blocks = (self.blocks - first_block).min(TOGETHER);
            for step in (0..steps).step_by(CHUNK_STEPS) {
                let count = CHUNK_STEPS.min(steps - step);
                for part in 0..FORWARD_ROWS / (2 * EDGE) {
                    let first = unit * FORWARD_ROWS + part * 2 * EDGE;
                    if first >= outputs {
                        break;
                    }
                    let rows = (outputs - first).min(2 * EDGE);
                    // SAFETY: `forward` checked all lengths; the last step of x may reach into its tail.
                    unsafe {
                        let a = match self.weights {
                            Weights::Master(w) => {
                                round_rows(w.as_ptr().add(first * inputs), inputs, rows, step, count, chunk);
                                chunk.cast_const()
                            }
                            Weights::Rounded(r) => {
                                pairs(&r.data).as_ptr().add((first / (2 * EDGE) * steps + step) * 2 * TILE)
                            }
                        };
                        for block in 0..blocks {
                            let shape = Product {
                                rows: rows.div_ceil(EDGE),
                                columns: if narrow { 1 } else { 2 },
                                right: Right::Rows,
                                a_step: 2 * TILE,
                                b_step: EDGE * PICTURES,
                            };
                            let b = (first_block + block) * self.map.block_len() + step * shape.b_step;
                            let sums = scratch.add((part * blocks + block) * C_LEN);
                            let run = [Run { a: 0, b, steps: count }];
                            M::product(shape, &run, a, self.x.as_ptr(), sums, step > 0);
                        }
                    }
                }
            }
            for part in 0..FORWARD_ROWS / (2 * EDGE) {
                let first = unit * FORWARD_ROWS + part * 2 * EDGE;
                for block in 0..if first < outputs { blocks } else { 0 } {
                    // SAFETY: the sums of this block were just computed; this unit owns its outputs.
                    unsafe {
                        let sums = scratch.add((part * blocks + block) * C_LEN);
                        self.store::<M::S>(first, first_block + block, sums);
                    }
                }
            }
            first_block += blocks;
        }
    }
}

impl Forward<'_> {
    /// Bias, ReLU and rounding of up to 32 outputs from `first` on.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, first: usize, block: usize, sums: *const f32) {
        let outputs = self.bias.len();
        let rows = (outputs - first).min(2 * EDGE);
        // In this order a NaN passes through.
        let relu = |v: f32| if self.relu && v < 0.0 { 0.0 } else { v };
        // SAFETY: the caller's promise; sums have 32 rows of 32 pictures.
        unsafe {
            if self.rows {
                for n in 0..PICTURES.min(self.count - block * PICTURES) {
                    for m in 0..rows {
                        let value = relu(*sums.add(m * C_STRIDE + n) + self.bias[first + m]);
                        *self.y.at((block * PICTURES + n) * outputs + first + m) = value;
                    }
                }
                return;
            }
            let lanes = if self.count <= EDGE { EDGE } else { PICTURES };
            for m in (0..rows).step_by(2) {
                let to =
                    self.y.at(block * flat(outputs).block_len() + (first + m) / 2 * PICTURES).cast::<u32>();
                for n in (0..lanes).step_by(S::LANES) {
                    let even = S::add(S::load(sums.add(m * C_STRIDE + n)), S::splat(self.bias[first + m]));
                    let odd = if m + 1 < rows {
                        S::add(S::load(sums.add((m + 1) * C_STRIDE + n)), S::splat(self.bias[first + m + 1]))
                    } else {
                        S::zero()
                    };
                    if self.relu {
                        S::store_pairs(to.add(n), S::max(S::zero(), even), S::max(S::zero(), odd));
                    } else {
                        S::store_pairs(to.add(n), even, odd);
                    }
                }
            }
        }
    }
}

/// dy of a linear layer in rows of picture pairs, (blocks, tiles of outputs, 16 outputs, 16 pairs of pictures): the left
/// operand of its weight gradient. And db (O).
pub fn unzip(ctx: &mut Context, outputs: usize, blocks: usize, dy: &[f32], to: &mut [f32], db: &mut [f32]) {
    assert!(
        dy.len() >= blocks * flat(outputs).block_len() && to.len() >= unzipped_len(outputs, blocks),
        "maps"
    );
    assert_eq!(db.len(), outputs, "bias gradient");
    ctx.run(&Unzip { outputs, blocks, dy: pairs(dy), to: Ptr::from_mut(to), db: Ptr::from_mut(db) });
}

/// Elements that [`unzip`] fills.
pub fn unzipped_len(outputs: usize, blocks: usize) -> usize {
    blocks * outputs.div_ceil(2 * EDGE) * 2 * TILE
}

struct Unzip<'a> {
    outputs: usize,
    blocks: usize,
    dy: &'a [u32],
    to: Ptr,
    db: Ptr,
}

impl Kernel for Unzip<'_> {
    /// 32 outputs.
    fn units(&self) -> usize {
        self.outputs.div_ceil(2 * EDGE)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let map = flat(self.outputs);
        let first = unit * 2 * EDGE;
        let rows = (self.outputs - first).min(2 * EDGE);
        let mut db = [0.0f32; 2 * EDGE];
        // SAFETY: 32 outputs own their rows and biases; lengths were checked.
        unsafe {
            for block in 0..self.blocks {
                let from = self.dy.as_ptr().add(block * map.block_len() + first / 2 * PICTURES);
                let to = self.to.at((block * self.units() + unit) * 2 * TILE).cast::<u32>();
                super::convert::unzip_pairs::<S>(from, rows.div_ceil(2), to);
                let written = rows.div_ceil(2) * 2 * EDGE;
                std::ptr::write_bytes(to.add(written), 0, 2 * TILE - written);
                for m in 0..rows {
                    for p in 0..EDGE {
                        let both = *to.add(m * EDGE + p);
                        db[m] += f32::from_bits(both << 16) + f32::from_bits(both & 0xffff_0000);
                    }
                }
            }
            std::ptr::copy_nonoverlapping(db.as_ptr(), self.db.at(first), rows);
        }
    }
}

/// What [`backward`] reads and writes besides its operands.
pub struct Backward<'a> {
    /// The gradient of the inputs, a flat map, if it is wanted.
    pub dx: Option<&'a mut [f32]>,
    /// dx is zero where this flat map is not positive: x as it came out of a ReLU.
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
/// Shapes: x from [`crate::bf16::convert::pair_pictures`], dy a flat map with [`TAIL`] behind it, dy_rows from [`unzip`].
pub fn backward(
    ctx: &mut Context,
    engine: Engine,
    inputs: usize,
    outputs: usize,
    count: usize,
    paired: &[f32],
    dy: &[f32],
    dy_rows: &[f32],
    pass: Backward,
) -> bool {
    let blocks = count.div_ceil(PICTURES);
    let (x_map, y_map) = (flat(inputs), flat(outputs));
    assert!(dy.len() >= blocks * y_map.block_len() + TAIL, "output gradient");
    assert!(dy_rows.len() >= unzipped_len(outputs, blocks), "output gradient");
    assert!(paired.len() >= paired_len(&x_map, blocks), "inputs");
    assert!(pass.w.len() == outputs * inputs && pass.v.len() == pass.w.len(), "weights");
    assert!(pass.dx.as_ref().is_none_or(|dx| dx.len() >= blocks * x_map.block_len()), "input gradient");
    assert!(pass.relu.is_none_or(|x| x.len() >= blocks * x_map.block_len()), "activation");
    let units = inputs.div_ceil(STRIP);
    let mut flags = [0.0f32; 1024];
    assert!(units <= flags.len(), "more inputs than {}", STRIP * flags.len());
    let kernel = BackwardKernel {
        inputs,
        outputs,
        blocks,
        paired: pairs(paired),
        dy: pairs(dy),
        dy_rows: pairs(dy_rows),
        dx: pass.dx.map(Ptr::from_mut),
        relu: pass.relu.map(pairs),
        w: Ptr::from_mut(pass.w),
        v: Ptr::from_mut(pass.v),
        update: pass.update,
        flags: Ptr::from_mut(&mut flags),
    };
    run(ctx, engine, &kernel);
    flags[..units].iter().all(|f| *f == 0.0)
}

struct BackwardKernel<'a> {
    inputs: usize,
    outputs: usize,
    blocks: usize,
    paired: &'a [u32],
    dy: &'a [u32],
    dy_rows: &'a [u32],
    dx: Option<Ptr>,
    relu: Option<&'a [u32]>,
    w: Ptr,
    v: Ptr,
    update: Update,
    /// One element a unit: not zero if a weight became infinite or NaN.
    flags: Ptr,
}

impl MatrixKernel for BackwardKernel<'_> {
    /// Strips of columns of w.
    fn units(&self) -> usize {
        self.inputs.div_ceil(STRIP)
    }

    fn scratch_len(&self) -> usize {
        backward_scratch_len(self.blocks)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (inputs, outputs, blocks) = (self.inputs, self.outputs, self.blocks);
        let column = unit * STRIP;
        let columns = STRIP.min(inputs - column);
        let parts = columns.div_ceil(2 * EDGE);
        let x_tiles = inputs.div_ceil(EDGE);
        let transposed = scratch.cast::<u32>();
        let dx_sums = scratch.wrapping_add(STRIP_ROWS * STRIP / 2);
        let dw_sums = dx_sums.wrapping_add(blocks * (STRIP / (2 * EDGE)) * C_LEN);
        let moves = self.update.lr != 0.0;
        let y_map = flat(outputs);
        // SAFETY: `backward` checked all lengths; this unit owns its columns of w, v and dx, and its flag. Steps beyond
        // the outputs multiply zero weights with what follows dy, at most its tail.
        unsafe {
            let mut mover = Mover::<M::S>::new(self.update);
            let mut row = 0;
            while row < outputs {
                let rows = STRIP_ROWS.min(outputs - row);
                if self.dx.is_some() {
                    let steps = rows.div_ceil(2 * EDGE);
                    for part in 0..parts {
                        let to = transposed.add(part * (STRIP_ROWS / (2 * EDGE)) * 2 * TILE);
                        let first = column + part * 2 * EDGE;
                        let width = (inputs - first).min(2 * EDGE);
                        let w = self.w.at(row * inputs + first);
                        for step in 0..steps {
                            let rows = (rows - step * 2 * EDGE).min(2 * EDGE);
                            let w = w.add(step * 2 * EDGE * inputs);
                            transpose_rows::<M::S>(w, inputs, rows, width, to.add(step * 2 * TILE));
                        }
                        for block in 0..blocks {
                            let shape = Product {
                                rows: width.div_ceil(EDGE),
                                columns: 2,
                                right: Right::Rows,
                                a_step: 2 * TILE,
                                b_step: EDGE * PICTURES,
                            };
                            let b = block * y_map.block_len() + row / 2 * PICTURES;
                            let sums = dx_sums.add((part * blocks + block) * C_LEN);
                            let run = [Run { a: 0, b, steps }];
                            M::product(shape, &run, to, self.dy.as_ptr(), sums, row > 0);
                        }
                    }
                }
                if moves {
                    for first in (row..row + rows).step_by(2 * EDGE) {
                        let rows = (outputs - first).min(2 * EDGE);
                        for part in 0..parts {
                            let tile = column / EDGE + part * 2;
                            let shape = Product {
                                rows: rows.div_ceil(EDGE),
                                columns: (x_tiles - tile).min(2),
                                right: Right::Tiles,
                                a_step: outputs.div_ceil(2 * EDGE) * 2 * TILE,
                                b_step: x_tiles * TILE,
                            };
                            let run = [Run { a: first * EDGE, b: tile * TILE, steps: blocks }];
                            M::product(
                                shape,
                                &run,
                                self.dy_rows.as_ptr(),
                                self.paired.as_ptr(),
                                dw_sums,
                                false,
                            );
                            let c = column + part * 2 * EDGE;
                            for m in 0..rows {
                                let at = (first + m) * inputs + c;
                                mover.step(
                                    dw_sums.add(m * C_STRIDE),
                                    self.w.at(at),
                                    self.v.at(at),
                                    (inputs - c).min(2 * EDGE),
                                );
                            }
                        }
                    }
                }
                row += rows;
            }
            if let Some(dx) = self.dx {
                for part in 0..parts {
                    for block in 0..blocks {
                        let first = column + part * 2 * EDGE;
                        let sums = dx_sums.add((part * blocks + block) * C_LEN);
                        self.store::<M::S>(dx, first, block, sums);
                    }
                }
            }
            *self.flags.at(unit) = mover.check();
        }
    }
}

impl BackwardKernel<'_> {
    /// Masks and rounds the gradient of up to 32 inputs from `first` on.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, dx: Ptr, first: usize, block: usize, sums: *const f32) {
        let at = block * flat(self.inputs).block_len() + first / 2 * PICTURES;
        let rows = (self.inputs - first).min(2 * EDGE);
        // SAFETY: the caller's promise; the activation has dx's layout.
        unsafe {
            for m in (0..rows).step_by(2) {
                let at = at + m / 2 * PICTURES;
                for n in (0..PICTURES).step_by(S::LANES) {
                    let mut even = S::load(sums.add(m * C_STRIDE + n));
                    let mut odd =
                        if m + 1 < rows { S::load(sums.add((m + 1) * C_STRIDE + n)) } else { S::zero() };
                    if let Some(x) = self.relu {
                        let (x_even, x_odd) = S::load_pairs(x.as_ptr().add(at + n));
                        even = S::where_positive(x_even, even);
                        odd = S::where_positive(x_odd, odd);
                    }
                    S::store_pairs(self.dx_at(dx, at + n), even, odd);
                }
            }
        }
    }

    #[inline(always)]
    fn dx_at(&self, dx: Ptr, at: usize) -> *mut u32 {
        dx.at(at).cast()
    }
}

/// `rows` outputs by `width` inputs of w to two tiles of 16 inputs × 16 pairs of outputs; zero beyond.
#[inline(always)]
unsafe fn transpose_rows<S: Simd>(w: *const f32, stride: usize, rows: usize, width: usize, to: *mut u32) {
    let mut both = [0u32; TILE];
    // SAFETY: the caller's promise; no vector reaches beyond the 16 inputs of a tile.
    unsafe {
        for tile in 0..width.div_ceil(EDGE) {
            let columns = (width - tile * EDGE).min(EDGE);
            for p in 0..EDGE {
                let w = w.wrapping_add(2 * p * stride + tile * EDGE);
                for c in (0..EDGE).step_by(S::LANES) {
                    let n = columns.saturating_sub(c).min(S::LANES);
                    let row = |exists: bool, w: *const f32| {
                        if !exists || n == 0 {
                            S::zero()
                        } else if n == S::LANES {
                            S::load(w)
                        } else {
                            S::load_first(w, n)
                        }
                    };
                    let even = row(2 * p < rows, w.wrapping_add(c));
                    let odd = row(2 * p + 1 < rows, w.wrapping_add(stride + c));
                    S::store_pairs(both.as_mut_ptr().add(p * EDGE + c), even, odd);
                }
            }
            S::transpose(both.as_ptr(), EDGE, to.add(tile * TILE));
        }
    }
}

//! The forward pass of a linear layer: weights are the left operand, rounded on the way or beforehand.
//!
//! ```text
//! for up to 512 outputs       (a unit: x comes from beyond L2 once for each)
//!   for 8 blocks              (their sums are held at once)
//!     for chunk of inputs     (all its weights are rounded first: 160 KiB, in L2)
//!       for 2 blocks          (their x stays in L1)
//!         for 32 outputs, block   32 outputs × 32 pictures
//! ```

use super::{STRIP, strips};
use crate::arena::Buffer;
use crate::bf16::convert::flat;
use crate::bf16::engine::{
    Ahead, C_LEN, C_STRIDE, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run,
};
use crate::bf16::{EDGE, MapLayout, PICTURES, TAIL, TILE, pair, pairs, round};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::strips::Strips;
use std::ops::Range;

/// Most blocks that a pass holds sums of at once.
const TOGETHER: usize = 8;
/// Most outputs of a unit of the forward pass: their sums for [`TOGETHER`] blocks are 512 KiB, in L2.
const FORWARD_ROWS: usize = 512;
/// Blocks that meet a chunk's weights before the next ones do.
const IN_TURN: usize = 2;
/// Steps of a chunk: x of the blocks in turn, 20 KiB, stays in L1 while weights pass by, 10 KiB for 32 outputs.
const CHUNK_STEPS: usize = 5;

/// w (O, I) rounded and in tiles, for [`forward`], in the order in which it reads them: by chunks of the depth, 32 outputs, steps.
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

    /// Where the tiles of 32 outputs from `first` on begin in the chunk whose first step is `step`; the end behind the last.
    #[inline(always)]
    fn at(&self, first: usize, step: usize) -> usize {
        let count = CHUNK_STEPS.min(self.inputs.div_ceil(2 * EDGE).saturating_sub(step));
        (step * self.outputs.div_ceil(2 * EDGE) + first / (2 * EDGE) * count) * 2 * TILE
    }

    /// Rounds w (O, I), in [`strips`]. With `map`, whose features its inputs are, the inputs are put into the order in which
    /// they lie there, so that the map need not be flattened.
    ///
    /// # Panics
    /// If the map does not [lie flat](MapLayout::lies_flat).
    pub fn set(&mut self, ctx: &mut Context, w: &[f32], map: Option<&MapLayout>) {
        assert_eq!(w.len(), strips(self.outputs, self.inputs).len(), "weights");
        assert!(map.is_none_or(|m| m.lies_flat() && m.channels * m.height * m.width == self.inputs), "map");
        let mut data = std::mem::replace(&mut self.data, Buffer::zeros(0));
        ctx.run(&Round { to: self, w, map, data: Ptr::from_mut(&mut data) });
        self.data = data;
    }
}

struct Round<'a> {
    to: &'a Rounded,
    w: &'a [f32],
    map: Option<&'a MapLayout>,
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
        for step in (0..steps).step_by(CHUNK_STEPS) {
            let count = CHUNK_STEPS.min(steps - step);
            // SAFETY: 32 outputs own their tiles; rows and columns are within w.
            unsafe {
                let to = self.data.at(self.to.at(first, step)).cast::<u32>();
                let (rows, place) = (first..first + rows, strips(outputs, inputs));
                match self.map {
                    None => round_rows::<S>(self.w.as_ptr(), place, rows, step, count, to),
                    Some(map) => gather_rows(self.w, place, map, rows, step, count, to),
                }
            }
        }
    }
}

/// Rounds rows of w, `steps` steps from strip `first` on, to pairs of tiles for every 32 rows; zero beyond rows and columns.
/// Strips are read side by side, which brings them from memory half as fast again as one after the other.
#[inline(always)]
unsafe fn round_rows<S: Simd>(
    w: *const f32,
    place: Strips,
    rows: Range<usize>,
    first: usize,
    steps: usize,
    to: *mut u32,
) {
    let (inputs, rows, first_row) = (place.columns, rows.len(), rows.start);
    let start = w.wrapping_add(place.at(first_row, first * STRIP));
    let strip = place.rows * STRIP;
    let full = (inputs / STRIP).saturating_sub(first).min(steps);
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..rows.next_multiple_of(2 * EDGE) {
            let to = to.add(row / (2 * EDGE) * steps * 2 * TILE + row / EDGE % 2 * TILE + row % EDGE * EDGE);
            let from = start.wrapping_add(row * STRIP);
            let full = if row < rows { full } else { 0 };
            for step in 0..full {
                S::round_values(from.wrapping_add(step * strip), to.add(step * 2 * TILE));
            }
            for step in full..steps {
                let (from, to) = (from.wrapping_add(step * strip), to.add(step * 2 * TILE));
                let columns = if row < rows { inputs - (first + step) * STRIP } else { 0 };
                let value = |c: usize| if c < columns { *from.add(c) } else { 0.0 };
                for i in 0..EDGE {
                    *to.add(i) = pair(value(2 * i), value(2 * i + 1));
                }
            }
        }
    }
}

/// [`round_rows`] of inputs in the order in which they lie in a map.
unsafe fn gather_rows(
    w: &[f32],
    place: Strips,
    map: &MapLayout,
    rows: Range<usize>,
    first: usize,
    steps: usize,
    to: *mut u32,
) {
    for lying in first * STRIP..((first + steps) * STRIP).min(place.columns) {
        let (step, column, feature) = (lying / STRIP - first, lying % STRIP, map.feature(lying));
        for (i, row) in rows.clone().enumerate() {
            let pair = (step * 2 + i / EDGE) * TILE + i % EDGE * EDGE + column / 2;
            // SAFETY: the caller's promise of room for the steps of these rows; a pair has two halves.
            unsafe { *to.add(pair).cast::<u16>().add(column % 2) = round(w[place.at(row, feature)]) };
        }
    }
}

/// Rows of the next chunk that a product asks for on its way, a strip a step. Rounding waits for memory, and products leave
/// it idle; but with more requests a step they only wait for each other, and the product with them.
const AHEAD_ROWS: usize = 4;
/// Where the weights of a forward pass come from.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// (O, I) in f32, in [`strips`]: rounded on the way.
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
        Weights::Master(w) => assert_eq!(w.len(), strips(outputs, inputs).len(), "weights"),
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
    // Large units read weights and x best, but every thread should have two. Sums are the same in any.
    let unit_rows = outputs.div_ceil(2 * ctx.threads()).next_multiple_of(2 * EDGE).min(FORWARD_ROWS);
    run(ctx, engine, &Forward { map, count, blocks, x: pairs(x), weights, bias, relu, y, rows, unit_rows });
}

/// Elements of scratch: sums of each block, and a chunk's rounded weights.
pub(super) fn scratch_len(blocks: usize) -> usize {
    FORWARD_ROWS / (2 * EDGE) * (blocks.min(TOGETHER) * C_LEN + CHUNK_STEPS * 2 * TILE)
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
    /// Outputs of a unit, whole panels of 32.
    unit_rows: usize,
}

impl MatrixKernel for Forward<'_> {
    fn units(&self) -> usize {
        self.bias.len().div_ceil(self.unit_rows)
    }

    fn scratch_len(&self) -> usize {
        scratch_len(self.blocks)
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32) {
        let (inputs, outputs) = (self.map.channels, self.bias.len());
        let steps = inputs.div_ceil(2 * EDGE);
        let narrow = self.count <= EDGE;
        let sums_len = self.blocks.min(TOGETHER) * (FORWARD_ROWS / (2 * EDGE)) * C_LEN;
        let chunk = scratch.wrapping_add(sums_len).cast::<u32>();
        let first_row = unit * self.unit_rows;
        let mut first_block = 0;
        while first_block < self.blocks {
            let blocks = (self.blocks - first_block).min(TOGETHER);
            for step in (0..steps).step_by(CHUNK_STEPS) {
                let count = CHUNK_STEPS.min(steps - step);
                let rows = first_row..(first_row + self.unit_rows).min(outputs);
                if let Weights::Master(w) = self.weights {
                    let place = strips(outputs, inputs);
                    // SAFETY: `forward` checked the length of w; the chunk holds this many rows.
                    unsafe { round_rows::<M::S>(w.as_ptr(), place, rows, step, count, chunk) };
                }
                let mut row_asked = first_row;
                let mut products = 0;
                let parts = (outputs - first_row).min(self.unit_rows).div_ceil(2 * EDGE);
                for (turn, part) in
                    (0..blocks).step_by(IN_TURN).flat_map(|turn| (0..parts).map(move |part| (turn, part)))
                {
                    let first = first_row + part * 2 * EDGE;
                    let rows = (outputs - first).min(2 * EDGE);
                    // SAFETY: `forward` checked all lengths; the last step of x may reach into its tail.
                    unsafe {
                        let a = match self.weights {
                            Weights::Master(_) => chunk.add(part * count * 2 * TILE).cast_const(),
                            Weights::Rounded(r) => pairs(&r.data).as_ptr().add(r.at(first, step)),
                        };
                        for block in turn..(turn + IN_TURN).min(blocks) {
                            let shape = Product {
                                rows: rows.div_ceil(EDGE),
                                columns: if narrow { 1 } else { 2 },
                                left: Left::Tiles,
                                right: Right::Rows,
                                a_step: 2 * TILE,
                                b_step: EDGE * PICTURES,
                                last: EDGE,
                            };
                            let b = (first_block + block) * self.map.block_len() + step * shape.b_step;
                            let sums = scratch.add((part * blocks + block) * C_LEN);
                            let run = [Run { a: 0, b, steps: count }];
                            // Eight lines a step: four rows of a strip, or as much of the tiles of this unit's next chunk, in as many
                            // streams as a product has steps. Several that lie apart come faster than one.
                            let ahead = match self.weights {
                                Weights::Master(w) => {
                                    let place = strips(outputs, inputs);
                                    let from = place.at(row_asked, (step + count) * STRIP);
                                    row_asked += AHEAD_ROWS;
                                    let from = w.as_ptr().wrapping_add(from).cast();
                                    Ahead { from, step: place.rows * STRIP }
                                }
                                Weights::Rounded(r) => {
                                    let panels = self.unit_rows.min(outputs - first_row).div_ceil(2 * EDGE);
                                    let asked = products * (TILE / 2);
                                    products += 1;
                                    let from = pairs(&r.data).as_ptr();
                                    let from = from.wrapping_add(r.at(first_row, step + count) + asked);
                                    Ahead { from, step: panels * 2 * TILE }
                                }
                            };
                            M::product_ahead(&shape, &run, a, self.x.as_ptr(), sums, step > 0, ahead);
                        }
                    }
                }
            }
            for part in 0..self.unit_rows / (2 * EDGE) {
                let first = first_row + part * 2 * EDGE;
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

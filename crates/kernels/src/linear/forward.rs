//! y = x wᵀ + b.

use crate::arena::Buffer;
use crate::panel::{Panel, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::strips::Strips;
use crate::tile::{Ahead, DotRows, Finish, Output, Run, Start};

/// Bytes of a packed panel's chunk of the reduction: half of L1.
const CHUNK_BYTES: usize = 24 << 10;
/// Outputs of a unit of the forward pass.
const FORWARD_ROWS: usize = 96;

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
/// Shapes: x (N, I), w (O, I) in `place`, bias (O), y (N, O).
pub fn forward(
    ctx: &mut Context,
    place: Strips,
    count: usize,
    x: &[f32],
    packed: &mut PackedPictures,
    w: &[f32],
    bias: &[f32],
    relu: bool,
    y: &mut [f32],
) {
    let (inputs, outputs) = (packed.inputs, bias.len());
    assert!(place.rows == outputs && place.columns == inputs && w.len() == place.len(), "weights");
    assert!(x.len() >= count * inputs && y.len() >= count * outputs, "matrices");
    let pictures: usize = packed.panels.iter().map(|p| p.valid).sum();
    assert!(count <= pictures, "packed for {pictures} pictures");
    assert_eq!(packed.lanes, ctx.isa().lanes(), "packed for another instruction set");
    packed.pack(ctx, count, x);
    let used = packed.panels.iter().take_while(|p| p.first < count).count();
    let kernel = Forward { place, count, packed, used, w, bias, relu, y: Ptr::from_mut(y) };
    ctx.run(&kernel);
}

struct Forward<'a> {
    /// How w lies.
    place: Strips,
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
        let (place, outputs) = (self.place, self.bias.len());
        let first = unit * FORWARD_ROWS;
        let rows = FORWARD_ROWS.min(outputs - first);
        let panels = || self.packed.panels[..self.used].iter().zip(&self.packed.offsets);
        let widest = panels().map(|(panel, _)| panel.vectors).max().unwrap_or(1) * S::LANES;
        let chunk = CHUNK_BYTES / size_of::<f32>() / widest;
        // SAFETY: `forward` checked all lengths; this unit owns outputs first..first + rows of every row of y.
        unsafe {
            let blocks = (0..place.columns).step_by(place.width).flat_map(|strip| {
                tiles(place.width.min(place.columns - strip), chunk).map(move |(k, len)| (strip + k, len))
            });
            for (k, len) in blocks {
                let w = self.w.as_ptr().add(place.at(first, k));
                let mut ahead = [next_block(w, place, rows, len, self.used)];
                let mut sums = scratch;
                for (panel, &offset) in panels() {
                    let width = panel.vectors * S::LANES;
                    S::call(DotRows {
                        vectors: panel.vectors,
                        runs: &[Run { x: 0, w: offset + k * width, len }],
                        x: w,
                        x_stride: place.width,
                        next: len == place.width,
                        w: self.packed.data.as_ptr(),
                        start: if k == 0 { Start::Zero } else { Start::Output },
                        ahead: &mut ahead,
                        out: Output { y: sums, stride: width, rows, valid: width },
                        finish: Finish::Store,
                    });
                    sums = sums.add(rows * width);
                }
            }
            let mut sums = scratch.cast_const();
            for (panel, _) in panels() {
                let width = panel.vectors * S::LANES;
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

/// The block behind the one of `rows` rows and `len` columns at `w`, if the layout lets it lie there; its rows are multiplied
/// `times` times.
fn next_block(w: *const f32, place: Strips, rows: usize, len: usize, times: usize) -> Ahead {
    // The same rows of the next strip.
    let share = if len == place.width && place.rows > rows { len.div_ceil(times) } else { 0 };
    Ahead::new(w.wrapping_add(place.rows * place.width), share, false)
}

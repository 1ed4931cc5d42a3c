//! Convolution in blocks of pictures: maps are (blocks, H, W, block, C), so that the rows of every tile are pictures at
//! one position. [`forward`], [`backward_input`] and [`backward_weight`] are computed by one of two [`Method`]s, a folder
//! each: `direct` takes every tap of every window, `winograd` takes the windows of 4×4 outputs together.
//!
//! In both, [`forward`] and [`backward_input`] are one loop over differently packed weights ([`Packed`]).

mod direct;
mod winograd;

use crate::isa::Isa;
use crate::parallel::Context;
use crate::tile::Finish;

/// What [`forward`] does with its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// y = sum + bias
    Bias,
    /// y = max(sum + bias, 0)
    BiasRelu,
}

impl Epilogue {
    /// What a tile does with its sums, which begin with the bias.
    fn finish(self) -> Finish {
        match self {
            Epilogue::Bias => Finish::Store,
            Epilogue::BiasRelu => Finish::Relu,
        }
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As it is defined, but for taps on padding, which are left out.
    Direct,
    /// Winograd's minimal filtering: fewer products, of sums and differences of the operands.
    Winograd,
}

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
    pub(crate) fn forward(&self, o: usize, t: usize) -> Option<usize> {
        (o * self.stride + t).checked_sub(self.pad).filter(|&i| i < self.input)
    }

    /// The output positions whose windows lie within the map.
    pub(crate) fn inside(&self) -> std::ops::Range<usize> {
        let first = self.pad.div_ceil(self.stride);
        let end = (self.input + self.pad).checked_sub(self.kernel).map_or(0, |last| last / self.stride + 1);
        first..end.min(self.output)
    }

    /// The output position that reads input `i` through tap `t`, if there is one.
    #[inline(always)]
    pub(crate) fn backward(&self, i: usize, t: usize) -> Option<usize> {
        let reach = (i + self.pad).checked_sub(t)?;
        Some(reach / self.stride).filter(|&o| reach % self.stride == 0 && o < self.output)
    }
}

/// Whether windows are ones that Winograd's method computes: 3×3 or 5×5, at every position, with even padding around them.
pub(crate) fn has_winograd_windows(rows: &Axis, columns: &Axis) -> bool {
    let axis =
        |a: &Axis| [(3, 1), (5, 2)].contains(&(a.kernel, a.pad)) && a.stride == 1 && a.input == a.output;
    axis(rows) && axis(columns) && rows.kernel == columns.kernel
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

    /// Whether Winograd's method computes all of its passes.
    pub fn fits_winograd(&self) -> bool {
        winograd::fits(self)
    }

    /// Whether Winograd's method computes its forward pass and weight gradient, as those of a strided first layer whose columns
    /// are folded.
    pub fn fits_winograd_first(&self) -> bool {
        winograd::fits_first(self)
    }

    /// The faster method.
    pub fn best_method(&self) -> Method {
        if winograd::pays(self) { Method::Winograd } else { Method::Direct }
    }

    fn taps(&self) -> usize {
        self.rows.kernel * self.columns.kernel
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
    /// Of a kernel that is as it is.
    pub fn none(kernel: usize) -> Fold {
        Fold { kernel, fold: 1 }
    }

    /// How many of a group's `channels` channels the canonical kernel has at folded column `s`; they are the first.
    #[inline(always)]
    fn channels_at(&self, channels: usize, s: usize) -> usize {
        channels / self.fold * self.kernel.saturating_sub(s * self.fold).min(self.fold)
    }

    /// Canonical (channel, column) of folded (channel, column), if the canonical kernel has it.
    #[inline(always)]
    pub(crate) fn canonical(&self, channels: usize, c: usize, s: usize) -> Option<(usize, usize)> {
        let column = s * self.fold + c / channels;
        (column < self.kernel).then_some((c % channels, column))
    }
}

/// Packed weights of one direction.
#[derive(Debug)]
pub struct Packed(Weights);

#[derive(Debug)]
enum Weights {
    Direct(direct::Packed),
    Winograd(winograd::Packed),
}

impl Packed {
    /// Room for [`pack_forward`].
    ///
    /// # Panics
    /// If the method does not fit the geometry ([`Geometry::fits_winograd`], [`Geometry::fits_winograd_first`]).
    pub fn for_forward(isa: Isa, g: &Geometry, fold: Fold, method: Method) -> Packed {
        Packed(match method {
            Method::Direct => Weights::Direct(direct::Packed::for_forward(isa, g, fold)),
            Method::Winograd => Weights::Winograd(winograd::Packed::for_forward(isa, g, fold)),
        })
    }

    /// Room for [`pack_backward`].
    ///
    /// # Panics
    /// If the method does not fit the geometry ([`Geometry::fits_winograd`]).
    pub fn for_backward(isa: Isa, g: &Geometry, method: Method) -> Packed {
        Packed(match method {
            Method::Direct => Weights::Direct(direct::Packed::for_backward(isa, g)),
            Method::Winograd => Weights::Winograd(winograd::Packed::for_backward(isa, g)),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Weights::Direct(packed) => packed.bytes(),
            Weights::Winograd(packed) => packed.bytes(),
        }
    }

    /// Elements of scratch that each thread needs to compute with them.
    pub fn scratch_len(&self) -> usize {
        match &self.0 {
            Weights::Direct(_) => direct::SCRATCH_LEN,
            Weights::Winograd(packed) => packed.scratch_len(),
        }
    }
}

/// Packs canonical weights `w` (K, C/G, R, S) for [`forward`].
pub fn pack_forward(ctx: &mut Context, g: &Geometry, w: &[f32], packed: &mut Packed) {
    match &mut packed.0 {
        Weights::Direct(packed) => direct::pack(ctx, g, w, packed, false),
        Weights::Winograd(packed) => winograd::pack(ctx, g, w, packed, false),
    }
}

/// Packs canonical weights `w` (K, C/G, R, S) for [`backward_input`]. The kernel must not be folded.
pub fn pack_backward(ctx: &mut Context, g: &Geometry, w: &[f32], packed: &mut Packed) {
    match &mut packed.0 {
        Weights::Direct(packed) => direct::pack(ctx, g, w, packed, true),
        Weights::Winograd(packed) => winograd::pack(ctx, g, w, packed, true),
    }
}

/// y = x ∗ w + b for the first `count` pictures.
///
/// Shapes: x (blocks, H, W, block, C), bias (K), y (blocks, P, Q, block, K).
pub fn forward(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    x: &[f32],
    packed: &Packed,
    bias: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
) {
    let blocks = count.div_ceil(g.block);
    assert!(x.len() >= g.input_len(blocks) && y.len() >= g.output_len(blocks), "maps");
    assert_eq!(bias.len(), g.k, "biases");
    match &packed.0 {
        Weights::Direct(w) => direct::forward(ctx, g, count, x, w, bias, epilogue, y),
        Weights::Winograd(w) => winograd::forward(ctx, g, count, x, w, bias, epilogue, y),
    }
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
    packed: &Packed,
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    let blocks = count.div_ceil(g.block);
    assert!(dx.len() >= g.input_len(blocks) && dy.len() >= g.output_len(blocks), "maps");
    assert!(relu.is_none_or(|x| x.len() >= g.input_len(blocks)), "activation");
    match &packed.0 {
        Weights::Direct(w) => direct::backward_input(ctx, g, count, dy, w, relu, dx),
        Weights::Winograd(w) => winograd::backward_input(ctx, g, count, dy, w, relu, dx),
    }
}

/// How [`backward_weight`] is cut into units; made once a plan.
#[derive(Debug)]
pub struct WeightPlan(Cut);

#[derive(Debug)]
enum Cut {
    Direct(direct::WeightPlan),
    Winograd(Box<winograd::WeightPlan>),
}

impl WeightPlan {
    /// The cut for a geometry, which does not depend on the number of threads.
    ///
    /// # Panics
    /// If the method does not fit the geometry ([`Geometry::fits_winograd`], [`Geometry::fits_winograd_first`]).
    pub fn new(isa: Isa, g: &Geometry, fold: Fold, method: Method) -> WeightPlan {
        WeightPlan(match method {
            Method::Direct => Cut::Direct(direct::WeightPlan::new(isa, g, fold)),
            Method::Winograd => Cut::Winograd(Box::new(winograd::WeightPlan::new(isa, g, fold))),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Cut::Direct(_) => 0,
            Cut::Winograd(plan) => plan.bytes(),
        }
    }

    /// Elements of scratch that each thread needs.
    pub fn scratch_len(&self, g: &Geometry) -> usize {
        match &self.0 {
            Cut::Direct(plan) => plan.scratch_len(g),
            Cut::Winograd(plan) => plan.scratch_len(),
        }
    }
}

/// dw and db, summed over the first `count` pictures, in canonical order; overwrites both.
///
/// Shapes: x (blocks, H, W, block, C), dy (blocks, P, Q, block, K), dw (K, C/G, R, S), db (K).
pub fn backward_weight(
    ctx: &mut Context,
    g: &Geometry,
    plan: &mut WeightPlan,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let blocks = count.div_ceil(g.block);
    assert!(x.len() >= g.input_len(blocks) && dy.len() >= g.output_len(blocks), "maps");
    assert_eq!(db.len(), g.k, "bias gradient");
    match &mut plan.0 {
        Cut::Direct(plan) => direct::backward_weight(ctx, g, plan, count, x, dy, dw, db),
        Cut::Winograd(plan) => winograd::backward_weight(ctx, plan, count, x, dy, dw, db),
    }
}

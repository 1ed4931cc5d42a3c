//! Convolution on bf16 maps: [`forward`], [`backward_input`], [`backward_weight`], computed by one of two [`Method`]s, a
//! folder each: `direct` takes every tap of every window, `winograd` takes the windows of 2×2 outputs together.
//!
//! In both, [`forward`] and [`backward_input`] are one loop over differently packed weights ([`Packed`]).

mod direct;
mod finish;
mod winograd;

pub use crate::conv::{Epilogue, Method};
pub use direct::MOST_RUNS;

use super::convert::paired_len;
use super::engine::Engine;
use super::entry::{Entry, Pixels};
use super::pooling::{self, Record};
use super::{EDGE, MapLayout, PICTURES, pairs};
use crate::conv::Axis;
use crate::parallel::Context;
use direct::{Pooled, Target};
use finish::Finish;

/// The geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// One block of x, (splits, H, W, C); its splits are a multiple of the groups.
    pub input: MapLayout,
    /// One block of y, (splits, P, Q, K); its splits are a multiple of the groups.
    pub output: MapLayout,
    /// G
    pub groups: usize,
    /// H, P, R.
    pub rows: Axis,
    /// W, Q, S.
    pub columns: Axis,
}

impl Geometry {
    /// Whether Winograd's method computes its forward pass and input gradient.
    pub fn fits_winograd(&self) -> bool {
        winograd::fits(self)
    }

    /// Whether Winograd's method also computes its weight gradient.
    pub fn weight_fits_winograd(&self) -> bool {
        winograd::fits_weight(self)
    }

    /// The faster methods on this engine: of the forward pass and the input gradient, and of the weight gradient. In bf16
    /// Winograd's operands are rounded once more.
    pub fn best_methods(&self, engine: Engine) -> [Method; 2] {
        // Tiles multiply so fast that nothing around their products may grow.
        let pays = !engine.has_tiles() && winograd::pays(self);
        [pays, pays && self.weight_fits_winograd()]
            .map(|winograd| if winograd { Method::Winograd } else { Method::Direct })
    }

    /// Positions of zeros before and after a row of x with its pictures paired: as far as windows overhang.
    fn paired_pad(&self) -> [usize; 2] {
        let Axis { input, output, kernel, stride, pad } = self.columns;
        [pad, ((output - 1) * stride + kernel).saturating_sub(pad + input)]
    }

    fn check(&self) {
        for map in [self.input, self.output] {
            assert!(
                map.splits.is_multiple_of(self.groups) && map.channels.is_multiple_of(map.splits),
                "splits"
            );
        }
        assert_eq!((self.input.height, self.input.width), (self.rows.input, self.columns.input), "x");
        assert_eq!((self.output.height, self.output.width), (self.rows.output, self.columns.output), "y");
    }
}

/// How a strided first convolution is made one of stride 1: `fold` × `fold` pixels are the channels of one position, in
/// the order (row, column, channel). 1 leaves it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    /// R = S of the kernel itself.
    pub kernel: usize,
    /// Pixels folded along each axis.
    pub fold: usize,
}

/// What a convolution reads.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A map.
    Map(&'a [f32]),
    /// Pixels, which become map 0 row by row as windows need it. The map itself is not stored.
    Pixels(&'a Entry, Pixels<'a>),
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
    /// If the method does not fit the geometry ([`Geometry::fits_winograd`]).
    pub fn for_forward(g: &Geometry, method: Method) -> Packed {
        g.check();
        Packed(match method {
            Method::Direct => Weights::Direct(direct::Packed::for_forward(g)),
            Method::Winograd => Weights::Winograd(winograd::Packed::for_forward(g)),
        })
    }

    /// Room for [`pack_backward`].
    ///
    /// # Panics
    /// If the method does not fit the geometry ([`Geometry::fits_winograd`]).
    pub fn for_backward(g: &Geometry, method: Method) -> Packed {
        g.check();
        Packed(match method {
            Method::Direct => Weights::Direct(direct::Packed::for_backward(g)),
            Method::Winograd => Weights::Winograd(winograd::Packed::for_backward(g)),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Weights::Direct(packed) => packed.bytes(),
            Weights::Winograd(packed) => packed.bytes(),
        }
    }

    /// Elements of scratch that each thread needs to compute with them; also, to make what they read of pixels, and to pool what
    /// they yield.
    ///
    /// # Panics
    /// As [`forward`] and [`forward_pooled`].
    pub fn scratch_len(&self, entry: Option<&Entry>, pool: Option<&pooling::Geometry>) -> usize {
        match &self.0 {
            Weights::Direct(packed) => packed.scratch_len(entry, pool),
            Weights::Winograd(packed) => {
                assert!(entry.is_none() && pool.is_none(), "{DIRECTLY}");
                packed.scratch_len()
            }
        }
    }
}

/// Winograd's method reads and yields rows of several positions, which are where they are stored.
const DIRECTLY: &str =
    "a convolution that reads pixels, or is pooled as it is computed, is computed directly";

/// Packs w (K, C/G, R, S) for [`forward`].
pub fn pack_forward(ctx: &mut Context, g: &Geometry, fold: Fold, w: &[f32], packed: &mut Packed) {
    match &mut packed.0 {
        Weights::Direct(packed) => direct::pack(ctx, g, fold, w, packed, true),
        Weights::Winograd(packed) => winograd::pack(ctx, g, w, packed, true),
    }
}

/// Packs w (K, C/G, R, S) for [`backward_input`].
pub fn pack_backward(ctx: &mut Context, g: &Geometry, w: &[f32], packed: &mut Packed) {
    match &mut packed.0 {
        Weights::Direct(packed) => {
            direct::pack(ctx, g, Fold { kernel: g.rows.kernel, fold: 1 }, w, packed, false);
        }
        Weights::Winograd(packed) => winograd::pack(ctx, g, w, packed, false),
    }
}

/// y = x ∗ w + b, perhaps through a ReLU, for the first `count` pictures; whole blocks are written.
///
/// Shapes: x and y as the geometry's layouts say, with [`super::TAIL`] after the last block; bias (K).
///
/// # Panics
/// If x is pixels and the weights are packed for Winograd's method.
pub fn forward(
    ctx: &mut Context,
    engine: Engine,
    g: &Geometry,
    count: usize,
    x: Source,
    packed: &Packed,
    bias: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
) {
    assert_eq!(bias.len(), g.output.channels, "bias");
    let finish = Finish::Bias { bias, relu: epilogue == Epilogue::BiasRelu };
    match &packed.0 {
        Weights::Direct(p) => {
            let y = Target::Map(y);
            direct::correlate(ctx, engine, g.groups, &g.rows, true, count, x, p, finish, y);
        }
        Weights::Winograd(p) => {
            let Source::Map(x) = x else { panic!("{DIRECTLY}") };
            winograd::correlate(ctx, engine, count, x, p, finish, y);
        }
    }
}

/// [`forward`] and the max pooling of what it yields, which is not stored: y, and who won in its windows, if that is wanted.
///
/// # Panics
/// If the weights are packed for Winograd's method.
pub fn forward_pooled(
    ctx: &mut Context,
    engine: Engine,
    g: &Geometry,
    pool: &pooling::Geometry,
    count: usize,
    x: Source,
    packed: &Packed,
    bias: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
    record: Option<Record>,
) {
    assert_eq!(bias.len(), g.output.channels, "bias");
    let relu = epilogue == Epilogue::BiasRelu;
    let finish = Finish::Bias { bias, relu };
    let Weights::Direct(packed) = &packed.0 else { panic!("{DIRECTLY}") };
    let y = Target::Pooled(Pooled::new(pool, count.div_ceil(PICTURES), y, relu, record));
    direct::correlate(ctx, engine, g.groups, &g.rows, true, count, x, packed, finish, y);
}

/// dx from dy. With `relu`, dx is zero where that (x, as it came out of a ReLU) is not positive.
pub fn backward_input(
    ctx: &mut Context,
    engine: Engine,
    g: &Geometry,
    count: usize,
    dy: &[f32],
    packed: &Packed,
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
    let finish = match relu {
        Some(x) => {
            assert!(x.len() >= count.div_ceil(PICTURES) * g.input.block_len(), "activation");
            Finish::Mask(pairs(x))
        }
        None => Finish::Store,
    };
    match &packed.0 {
        Weights::Direct(p) => {
            let dx = Target::Map(dx);
            let dy = Source::Map(dy);
            direct::correlate(ctx, engine, g.groups, &g.rows, false, count, dy, p, finish, dx);
        }
        Weights::Winograd(p) => winograd::correlate(ctx, engine, count, dy, p, finish, dx),
    }
}

/// How [`backward_weight`] is cut; made once a plan.
#[derive(Debug)]
pub struct WeightPlan(Cut);

#[derive(Debug)]
enum Cut {
    Direct(direct::WeightPlan),
    Winograd(winograd::WeightPlan),
}

impl WeightPlan {
    /// The cut for a geometry and at most `blocks` blocks.
    ///
    /// # Panics
    /// If the method does not fit the geometry ([`Geometry::weight_fits_winograd`]).
    pub fn new(g: &Geometry, blocks: usize, method: Method) -> WeightPlan {
        g.check();
        WeightPlan(match method {
            Method::Direct => Cut::Direct(direct::WeightPlan::new(g, blocks)),
            Method::Winograd => Cut::Winograd(winograd::WeightPlan::new(g)),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Cut::Direct(plan) => plan.bytes(),
            Cut::Winograd(plan) => plan.bytes(),
        }
    }

    /// Elements of scratch that each thread needs.
    pub fn scratch_len(&self, g: &Geometry) -> usize {
        match &self.0 {
            Cut::Direct(plan) => plan.scratch_len(g),
            Cut::Winograd(_) => 0,
        }
    }

    /// Elements of the room for x with its pictures paired, for so many blocks.
    pub fn paired_len(&self, g: &Geometry, blocks: usize) -> usize {
        match &self.0 {
            Cut::Direct(_) => paired_len(&g.input, g.paired_pad(), blocks),
            Cut::Winograd(plan) => plan.paired_len(),
        }
    }
}

/// dw and db, summed over all pictures of the blocks that hold `count`; overwrites both. Pictures beyond `count` count too:
/// their dy is zero.
///
/// Shapes: x and dy as the geometry says, dw (K, C/G, R, S), db (K); `paired` is room for as much as
/// [`WeightPlan::paired_len`] says.
pub fn backward_weight(
    ctx: &mut Context,
    engine: Engine,
    g: &Geometry,
    fold: Fold,
    plan: &mut WeightPlan,
    count: usize,
    x: &[f32],
    paired: &mut [f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    match &mut plan.0 {
        Cut::Direct(plan) => {
            direct::backward_weight(ctx, engine, g, fold, plan, count, x, paired, dy, dw, db);
        }
        Cut::Winograd(plan) => winograd::backward_weight(ctx, engine, plan, count, x, paired, dy, dw, db),
    }
}

/// A set of rows of a product that are computed together: up to 32 channels of one split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Panel {
    pub split: usize,
    /// First channel within the split, even.
    pub first: usize,
    /// Channels that exist.
    pub valid: usize,
    /// Tiles, 1 or 2.
    pub tiles: usize,
}

/// Cuts the channels of a map into panels.
pub(super) fn panels(map: &MapLayout) -> Vec<Panel> {
    let channels = map.split_channels();
    let split = |split| {
        (0..channels).step_by(2 * EDGE).map(move |first| {
            let valid = (channels - first).min(2 * EDGE);
            Panel { split, first, valid, tiles: valid.div_ceil(EDGE) }
        })
    };
    (0..map.splits).flat_map(split).collect()
}

//! The block product that every layer is made of, C (32 × 32) += Σ A·B over runs of steps, and the engines that compute
//! it: AMX tiles, AVX-512's bf16 dot products, or f32 arithmetic on widened operands.
//!
//! A step multiplies 32 rows by 32 columns over a depth of 32. The left operand is two tiles of 16 rows × 16 pairs
//! (`Left`). The right operand is 16 rows (one a pair of the depth) of 32 columns (`Right`). That is the shape of an AMX
//! tile; the other engines follow it.

use super::dot::Widen;
use super::{EDGE, widen};
use crate::isa::{Isa, Tier};
use crate::parallel::{Context, Kernel};
use crate::simd::{Portable, Simd};

/// What multiplies pairs of bf16, and the f32 instruction set beside it. Like [`Isa`], holding one is proof that the
/// processor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Engine(Unit, Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Dot,
    Widen,
}

impl Engine {
    /// Every engine of this machine, best first.
    pub fn all() -> Vec<Engine> {
        let mut engines = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if let Ok(avx512) = Isa::by_name("avx512") {
                if super::amx::request() {
                    engines.push(Engine(Unit::Amx, avx512));
                }
                if is_x86_feature_detected!("avx512bf16") {
                    engines.push(Engine(Unit::Dot, avx512));
                }
            }
        }
        engines.extend(Isa::all().into_iter().map(|isa| Engine(Unit::Widen, isa)));
        engines
    }

    /// The best engine, or the one that the environment variable `ALEXNET_ISA` names: `amx`, `avx512bf16`, or an
    /// instruction set of f32, on which bf16 is computed by widening.
    ///
    /// # Errors
    /// If `ALEXNET_ISA` names one that does not exist or that this processor lacks.
    pub fn best() -> Result<Engine, String> {
        match std::env::var("ALEXNET_ISA") {
            Ok(name) if !name.is_empty() => {
                Engine::by_name(&name).map_err(|why| format!("ALEXNET_ISA={name}: {why}"))
            }
            _ => Ok(Engine::all()[0]),
        }
    }

    /// The engine of this name.
    ///
    /// # Errors
    /// If there is no such engine or this processor lacks it.
    pub fn by_name(name: &str) -> Result<Engine, String> {
        let all = Engine::all();
        all.iter().copied().find(|engine| engine.name() == name).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|engine| engine.name()).collect();
            format!("this processor has {}", names.join(", "))
        })
    }

    /// AMX without asking the processor whether it has it.
    ///
    /// # Safety
    /// The processor has AVX-512-BF16; and either it has AMX and the system has granted its use, or something in this
    /// process emulates the instructions when they trap.
    ///
    /// # Panics
    /// If `avx512` is another instruction set.
    #[cfg(target_arch = "x86_64")]
    pub unsafe fn assume_amx(avx512: Isa) -> Engine {
        assert_eq!(avx512.name(), "avx512", "AMX kernels need AVX-512 besides");
        Engine(Unit::Amx, avx512)
    }

    /// `amx`, `avx512bf16`, or the name of the f32 instruction set that computes on widened operands.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Unit::Dot => "avx512bf16",
            Unit::Widen => self.1.name(),
        }
    }

    /// Whether the processor multiplies bf16 itself: only then is bf16 faster than f32.
    pub fn is_native(self) -> bool {
        self.0 != Unit::Widen
    }

    /// Whether it multiplies tiles (AMX), some ten times as fast as vectors.
    pub fn has_tiles(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => true,
            #[cfg(target_arch = "x86_64")]
            Unit::Dot => false,
            Unit::Widen => false,
        }
    }

    /// The f32 instruction set beside it.
    pub fn isa(self) -> Isa {
        self.1
    }
}

/// How the left operand of a product lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Two tiles of 16 × 16, one after the other.
    Tiles,
    /// Rows this far apart, the second tile's this far from the first's, in pairs. Of each tile only so many rows are
    /// asked for, at most [`MOST_ROWS`]; the others of its 16 are read, and their sums mean nothing. Both operands go on
    /// from step to step without a gap, the right one in rows of as many columns as there are.
    Apart { row: usize, second: usize, rows: [usize; 2] },
}

/// Rows of a tile of [`Left::Apart`]: as many sums of two vectors as fit beside the operands in 32 registers.
pub(crate) const MOST_ROWS: usize = 14;

impl Left {
    /// From a row of 16 pairs to the next, and from the first tile to the second, in pairs.
    #[inline(always)]
    pub(super) fn distances(self) -> (usize, usize) {
        match self {
            Left::Tiles => (EDGE, EDGE * EDGE),
            Left::Apart { row, second, .. } => (row, second),
        }
    }
}

/// How the right operand of a product lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// Rows of 32 columns, one after the other: pictures of a map.
    Rows,
    /// Two tiles of 16 × 16, one after the other.
    Tiles,
    /// Two tiles of 16 × 16, this many pairs from the first to the second.
    TilesApart(usize),
}

impl Right {
    /// From a row of 16 columns to the next, and from the first tile to the second, in pairs.
    #[inline(always)]
    pub(super) fn distances(self) -> (usize, usize) {
        match self {
            Right::Rows => (2 * EDGE, EDGE),
            Right::Tiles => (EDGE, EDGE * EDGE),
            Right::TilesApart(second) => (EDGE, second),
        }
    }
}

/// Consecutive steps of a product. Offsets and steps are in pairs from the operands' starts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub a: usize,
    pub b: usize,
    pub steps: usize,
}

/// The shape of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// Tiles of rows, 1 or 2.
    pub rows: usize,
    /// Tiles of columns, 1 or 2.
    pub columns: usize,
    /// Form of the left operand.
    pub left: Left,
    /// Form of the right operand.
    pub right: Right,
    /// From a step's left operand to the next, in pairs.
    pub a_step: usize,
    /// From a step's right operand to the next, in pairs.
    pub b_step: usize,
    /// Pairs of the depth in the last step of every run, of 16; the left operand's others are zero. An engine may leave
    /// them out.
    pub last: usize,
}

/// Columns of a row of C in memory.
pub(crate) const C_STRIDE: usize = 32;
/// Elements of C.
pub const C_LEN: usize = 32 * C_STRIDE;

/// Products along a row whose right operand slides: neighbouring taps of a row of a window. A step of tap `t` multiplies tiles
/// of rows with the tile of 16 columns that the step of tap `t` − 1 will meet next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slide {
    /// Tiles of rows: 1 with three taps, 2 with two.
    pub rows: usize,
    /// Elements of C from a tap's sums to the next tap's.
    pub c_tap: usize,
    /// From a step's left operand to the next, in pairs. The right one's are tiles, one after the other.
    pub a_step: usize,
}

impl Slide {
    /// Taps that are computed together.
    #[inline(always)]
    pub(crate) fn taps(&self) -> usize {
        4 - self.rows
    }
}

/// A product in f32's grade: every operand is the sum of a high and a low part in bf16, and C is the sum of the products of the
/// parts but for that of the low ones (see [`crate::threefold`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threefold {
    /// Tiles of rows, 1 or 2.
    pub rows: usize,
    /// Tiles of columns, 1 or 2. A step's right operand is so many tiles of high parts, then as many of low ones.
    pub columns: usize,
    /// From a row of the left operand to the next, in values.
    pub a_row: usize,
    /// From its high parts to its low ones, in values.
    pub a_low: usize,
    /// From a step's left operand to the next, in values.
    pub a_step: usize,
    /// From a step's right operand to the next, in pairs.
    pub b_step: usize,
}

impl Threefold {
    /// Values of a step's depth.
    pub(crate) const STEP: usize = 2 * EDGE;
    /// Lines that a step asks for.
    pub(crate) const LINES: usize = 4;
}

/// Memory that is needed soon, which a product asks for as it goes. It has the time that tiles multiply; asked for at once, as
/// much would only keep waiting what is needed now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// The first step's lines; they need not exist.
    pub from: *const u32,
    /// From a step's lines to the next one's, in pairs.
    pub step: usize,
}

/// Lines that a step of a convolution in bf16 asks for.
pub(crate) const AHEAD_LINES: usize = 2;

/// Pieces of memory that products ask for one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    /// What is still to be asked for of a piece.
    from: *const u32,
    left: usize,
    /// Pairs of a piece, from the start of one to the next, and how many follow.
    len: usize,
    distance: usize,
    follow: usize,
}

impl Pieces {
    /// So many pieces of `len` pairs, `distance` apart; they need not exist.
    #[inline(always)]
    pub(crate) fn new(from: *const u32, len: usize, distance: usize, count: usize) -> Pieces {
        if count == 0 {
            return Pieces::none(from);
        }
        Pieces { from, left: len, len, distance, follow: count - 1 }
    }

    /// Nothing: products ask for what is there, again and again.
    #[inline(always)]
    pub(crate) fn none(at: *const u32) -> Pieces {
        Pieces { from: at, left: 0, len: 0, distance: 0, follow: 0 }
    }

    /// What a product of so many steps asks for, each for so many lines.
    #[inline(always)]
    pub(crate) fn ask(&mut self, steps: usize, lines: usize) -> Ahead {
        let step = lines * EDGE;
        if self.left == 0 && self.follow > 0 {
            self.from = self.from.wrapping_add(self.distance).wrapping_sub(self.len);
            (self.left, self.follow) = (self.len, self.follow - 1);
        }
        let ahead = Ahead { from: self.from, step: if self.left > 0 { step } else { 0 } };
        let asked = self.left.min(steps * step);
        self.from = self.from.wrapping_add(asked);
        self.left -= asked;
        ahead
    }
}

/// Sums of an earlier product, of up to 32 channels (rows of C) at one position, that are still to be finished: a channel's
/// bias is added, and what is less than `least` becomes that; they are rounded, stored as pairs of channels, and zero where
/// a mask is not positive. The bias is always there: without one, −0 changes nothing.
#[repr(C)]
pub(crate) struct Rest {
    /// Rows of C.
    pub sums: *const f32,
    /// The pairs of the first two channels; those of the next two are [`PICTURES`](super::PICTURES) further on.
    pub to: *mut u32,
    /// One a channel.
    pub bias: *const f32,
    /// Pairs, as far apart as those of `to`; null without a mask.
    pub mask: *const u32,
    /// 0 for a ReLU, −∞ without one.
    pub least: f32,
    /// Pairs of channels.
    pub pairs: usize,
}

/// Computes products.
pub(crate) trait Matrix: Copy {
    /// Vectors for everything else.
    type S: Simd;

    /// C = Σ A·B over the runs, or C += with `add`. Only the rows and columns of the shape's tiles are touched. Every run
    /// has a step.
    ///
    /// # Safety
    /// All operands are within their memory; the processor has the engine.
    unsafe fn product(shape: &Product, runs: &[Run], a: *const u32, b: *const u32, c: *mut f32, add: bool);

    /// As [`product`](Matrix::product), of tiles on the left and rows on the right, where a step asks for eight lines.
    ///
    /// # Safety
    /// As [`product`](Matrix::product).
    #[inline(always)]
    unsafe fn product_ahead(
        shape: &Product,
        runs: &[Run],
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        add: bool,
        _ahead: Ahead,
    ) {
        // SAFETY: the caller's promise.
        unsafe { Self::product(shape, runs, a, b, c, add) };
    }

    /// Whether [`slide`](Matrix::slide) is faster than its products one by one.
    const SLIDES: bool = false;

    /// For every tap, C += Σ A·B over the runs, or C = Σ A·B. The rows of C are [`C_STRIDE`] apart. A step asks for two lines.
    ///
    /// # Safety
    /// As [`product`](Matrix::product); the right operand of a run has so many tiles more as there are taps besides one.
    #[inline(always)]
    unsafe fn slide(
        shape: &Slide,
        runs: &[Run],
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        add: bool,
        _ahead: Ahead,
    ) {
        let product = Product {
            rows: shape.rows,
            columns: 1,
            left: Left::Tiles,
            right: Right::Tiles,
            a_step: shape.a_step,
            b_step: EDGE * EDGE,
            last: EDGE,
        };
        for tap in 0..shape.taps() {
            let b = b.wrapping_add(tap * EDGE * EDGE);
            // SAFETY: the caller's promise.
            unsafe { Self::product(&product, runs, a, b, c.wrapping_add(tap * shape.c_tap), add) };
        }
    }

    /// As [`product`](Matrix::product), of two tiles of columns that are too many to stay in L1 beside the left operand, which
    /// should: where the processor takes hints, they pass it by. And finishes some of `rest` on the side, where vectors have
    /// nothing to do in a product. Returns how many pairs of channels: the first ones. A step asks for two lines.
    ///
    /// # Safety
    /// Also `rest` is within its memory, and C is not among it.
    #[inline(always)]
    unsafe fn product_beside(
        shape: &Product,
        runs: &[Run],
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        add: bool,
        _ahead: Ahead,
        _rest: Option<&Rest>,
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe { Self::product(shape, runs, a, b, c, add) };
        0
    }

    /// C = Σ (H + L)·(H' + L') − L·L' over the runs, or C += with `add`. The left operand of a run begins `a` values on, the
    /// right one `b` pairs. A step asks for [`Threefold::LINES`] lines.
    ///
    /// # Safety
    /// As [`product`](Matrix::product).
    #[inline(always)]
    unsafe fn threefold(
        shape: &Threefold,
        runs: &[Run],
        a: *const u16,
        b: *const u32,
        c: *mut f32,
        add: bool,
        _ahead: Ahead,
    ) {
        let tile = EDGE * EDGE;
        for (row, column) in
            (0..shape.rows * EDGE).flat_map(|m| (0..shape.columns * EDGE).map(move |n| (m, n)))
        {
            // SAFETY: the caller's promise.
            unsafe {
                let to = c.add(row * C_STRIDE + column);
                let mut sum = if add { *to } else { 0.0 };
                for (run, step) in runs.iter().flat_map(|run| (0..run.steps).map(move |step| (run, step))) {
                    let a = a.add(run.a + row * shape.a_row + step * shape.a_step);
                    let b = b.add(run.b + step * shape.b_step + column / EDGE * tile + column % EDGE);
                    for p in 0..EDGE {
                        let high = *b.add(p * EDGE);
                        let low = *b.add(shape.columns * tile + p * EDGE);
                        for half in 0..2 {
                            let of = |pair: u32| widen((pair >> (16 * half)) as u16);
                            let (ah, al) =
                                (widen(*a.add(2 * p + half)), widen(*a.add(shape.a_low + 2 * p + half)));
                            sum += ah * of(high) + ah * of(low) + al * of(high);
                        }
                    }
                }
                *to = sum;
            }
        }
    }
}

/// Work cut into units like [`Kernel`], whose units multiply.
pub(crate) trait MatrixKernel: Sync {
    /// The number of units.
    fn units(&self) -> usize;

    /// Elements of scratch that a unit needs.
    fn scratch_len(&self) -> usize {
        0
    }

    /// Computes one unit.
    ///
    /// # Safety
    /// As [`Kernel::unit`].
    unsafe fn unit<M: Matrix>(&self, unit: usize, scratch: *mut f32);
}

/// A kernel with its engine.
struct On<'a, K>(Engine, &'a K);

/// Runs every unit of `kernel`.
pub(crate) fn run<K: MatrixKernel>(ctx: &mut Context, engine: Engine, kernel: &K) {
    assert_eq!(engine.isa(), ctx.isa(), "a context for another instruction set");
    ctx.run(&On(engine, kernel));
}

/// Runs every unit of `kernel`, which multiplies no tiles, on vectors that round to bf16 as the engine does: by an
/// instruction, where it has one.
pub(crate) fn run_vectors<K: Kernel>(ctx: &mut Context, engine: Engine, kernel: &K) {
    assert_eq!(engine.isa(), ctx.isa(), "a context for another instruction set");
    ctx.run(&Vectors(engine, kernel));
}

/// A kernel of vectors with its engine.
struct Vectors<'a, K>(Engine, &'a K);

impl<K: Kernel> Kernel for Vectors<'_, K> {
    fn units(&self) -> usize {
        self.1.units()
    }

    fn scratch_len(&self) -> usize {
        self.1.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        // SAFETY: passed on from the caller; the engine proves the instructions beyond those of S.
        unsafe {
            match self.0.0 {
                #[cfg(target_arch = "x86_64")]
                Unit::Amx | Unit::Dot => super::dot::run_vectors(self.1, unit, scratch),
                Unit::Widen => self.1.unit::<S>(unit, scratch),
            }
        }
    }
}

impl<K: MatrixKernel> Kernel for On<'_, K> {
    fn units(&self) -> usize {
        self.1.units()
    }

    fn scratch_len(&self) -> usize {
        self.1.scratch_len()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        // SAFETY: passed on from the caller; the engine proves the instructions beyond those of S.
        unsafe {
            match self.0.0 {
                #[cfg(target_arch = "x86_64")]
                Unit::Amx => super::amx::run(self.1, unit, scratch),
                #[cfg(target_arch = "x86_64")]
                Unit::Dot => super::dot::run(self.1, unit, scratch),
                // `run` made sure that S is the vectors of this instruction set; naming the type keeps each engine's
                // code out of the others' functions.
                Unit::Widen => match self.0.1.tier() {
                    #[cfg(target_arch = "x86_64")]
                    Tier::Avx512 => super::dot::widen_avx512(self.1, unit, scratch),
                    #[cfg(target_arch = "x86_64")]
                    Tier::Avx2 => super::dot::widen_avx2(self.1, unit, scratch),
                    Tier::Portable => self.1.unit::<Widen<Portable>>(unit, scratch),
                },
            }
        }
    }
}

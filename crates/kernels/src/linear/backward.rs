//! dx = dy w, dw = dyᵀ x, and what dw moves.

use super::STRIP;
use crate::panel::{Panel, copy_rows, panels};
use crate::parallel::{Context, Kernel, Ptr};
use crate::sgd::{Mover, Update};
use crate::simd::{Simd, odd_lines, vectors};
use crate::strips::Strips;
use crate::tile::{Ahead, DotRows, Finish, OuterRows, Output, Run, Start};

/// Outputs that a unit of the backward pass goes through at a time: what it needs for them, 0.4 MiB of 128 pictures, is in L2
/// together with what comes next.
const STRIP_ROWS: usize = 96;

/// How the columns of w are cut for [`backward`]; made once a plan.
#[derive(Clone, Debug)]
pub struct Cut {
    inputs: usize,
    lanes: usize,
    /// Panels of a full strip, and of the last.
    full: Vec<Panel>,
    last: Vec<Panel>,
}

impl Cut {
    /// The cut for `inputs` columns, which does not depend on the number of threads.
    pub fn new(isa: crate::Isa, inputs: usize) -> Self {
        let last = match inputs % STRIP {
            0 => STRIP,
            rest => rest,
        };
        Cut { inputs, lanes: isa.lanes(), full: panels(isa, STRIP), last: panels(isa, last) }
    }

    fn strips(&self) -> usize {
        self.inputs.div_ceil(STRIP)
    }

    fn panels(&self, strip: usize) -> &[Panel] {
        if strip + 1 < self.strips() { &self.full } else { &self.last }
    }

    /// Elements of scratch that [`backward`] needs on each thread for `count` pictures.
    pub fn scratch_len(&self, count: usize) -> usize {
        let width = |panels: &[Panel]| panels.iter().map(|p| p.vectors * self.lanes).sum::<usize>();
        let widest = self.full.iter().chain(&self.last).map(|p| p.vectors * self.lanes).max().unwrap_or(0);
        // Packed inputs, the input gradient, packed weights, the gradient of a panel.
        (2 * count + STRIP_ROWS) * width(&self.full).max(width(&self.last)) + STRIP_ROWS * widest
    }
}

/// From an output of dyᵀ (O, N) to the next for `count` pictures: an odd number of lines, so that outputs fall into different sets
/// of a cache.
pub fn transposed_row(count: usize) -> usize {
    odd_lines(count)
}

/// What [`backward`] reads and writes besides x and dy.
pub struct Backward<'a> {
    /// The gradient of the inputs, (N, I) or a flat map of pairs, if it is wanted.
    pub dx: Option<&'a mut [f32]>,
    /// dx is zero where this, which lies like it, is not positive: x as it came out of a ReLU.
    pub relu: Option<&'a [f32]>,
    /// (O, I), in its layout.
    pub w: &'a mut [f32],
    /// Momentum, as w.
    pub v: &'a mut [f32],
    /// How w moves.
    pub update: Update,
}

/// In one pass over the weights: dx = dy w, then w and v moved by dw = dyᵀ x. Returns whether all weights that moved are
/// finite. With `whole` nothing moves, and dw is written to `pass.v`, for updates that need the whole gradient first; the rate of
/// `pass.update` must not be zero then.
///
/// Shapes: x (N, I) and dy_t (O, N), whose rows are [`transposed_row`] apart, for N = `count` pictures; w and v in `place`: whole
/// rows, or [`super::strips`].
pub fn backward(
    ctx: &mut Context,
    cut: &Cut,
    place: Strips,
    count: usize,
    x: &[f32],
    dy_t: &[f32],
    pass: Backward,
    whole: bool,
) -> bool {
    let inputs = cut.inputs;
    assert_eq!(cut.lanes, ctx.isa().lanes(), "planned for another instruction set");
    assert_eq!(dy_t.len(), place.rows * transposed_row(count), "output gradient");
    assert!(
        place.columns == inputs && (place.width == inputs || place.width.is_multiple_of(STRIP)),
        "layout"
    );
    assert!(pass.w.len() == place.len() && pass.v.len() == place.len(), "weights");
    assert!(x.len() >= count * inputs, "inputs");
    assert!(pass.dx.as_ref().is_none_or(|dx| dx.len() >= count * inputs), "input gradient");
    assert!(pass.relu.is_none_or(|a| a.len() >= count * inputs), "activation");
    let mut flags = [0.0f32; 512];
    let units = cut.strips();
    assert!(units <= flags.len(), "more inputs than {} ", STRIP * flags.len());
    let kernel = BackwardKernel {
        count,
        cut,
        place,
        x,
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
    cut: &'a Cut,
    place: Strips,
    x: &'a [f32],
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
        self.cut.strips()
    }

    fn scratch_len(&self) -> usize {
        self.cut.scratch_len(self.count)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let (count, inputs, place) = (self.count, self.cut.inputs, self.place);
        let column = unit * STRIP;
        let panels = self.cut.panels(unit);
        let width: usize = panels.iter().map(|p| p.vectors * S::LANES).sum();
        let packed_x = scratch;
        let dx_sums = packed_x.wrapping_add(count * width);
        let packed_w = dx_sums.wrapping_add(count * width);
        let dw = packed_w.wrapping_add(STRIP_ROWS * width);
        let moves = self.update.lr != 0.0;
        // SAFETY: `backward` checked all lengths, `scratch_len` covers the packed operands and sums; this unit owns its
        // columns of w, v and dx, and its flag.
        unsafe {
            let mut mover = Mover::<S>::new(self.update);
            if moves {
                copy_panels::<S>(self.x.as_ptr().add(column), inputs, panels, packed_x, count);
            }
            for row in (0..place.rows).step_by(STRIP_ROWS) {
                let rows = STRIP_ROWS.min(place.rows - row);
                let first = place.at(row, column);
                if self.dx.is_some() {
                    copy_panels::<S>(self.w.at(first), place.width, panels, packed_w, rows);
                    self.add_to_dx::<S>(panels, row, rows, packed_w, dx_sums);
                }
                if moves {
                    self.move_weights::<S>(panels, row, rows, first, packed_x, dw, &mut mover);
                }
            }
            if let Some(dx) = self.dx {
                self.store_dx::<S>(panels, column, dx_sums, dx);
            }
            *self.flags.at(unit) = mover.check();
        }
    }
}

impl BackwardKernel<'_> {
    /// dx += dy w over `rows` outputs from `row` on: sums panel by panel, (N, width).
    #[inline(always)]
    unsafe fn add_to_dx<S: Simd>(
        &self,
        panels: &[Panel],
        row: usize,
        rows: usize,
        packed_w: *const f32,
        sums: *mut f32,
    ) {
        let stride = transposed_row(self.count);
        let run = [Run { x: row * stride, w: 0, len: rows }];
        let start = if row == 0 { Start::Zero } else { Start::Output };
        // SAFETY: the caller's promise that operands and sums are there.
        unsafe {
            let (mut w, mut sums) = (packed_w, sums);
            for panel in panels {
                let width = panel.vectors * S::LANES;
                S::call(OuterRows {
                    vectors: panel.vectors,
                    runs: &run,
                    x: self.dy_t.as_ptr(),
                    x_stride: stride,
                    w,
                    start,
                    out: Output { y: sums, stride: width, rows: self.count, valid: width },
                });
                (w, sums) = (w.add(rows * width), sums.add(self.count * width));
            }
        }
    }

    /// Moves `rows` outputs from `row` on, the first of them at `first`, by dw = dyᵀ x.
    #[inline(always)]
    unsafe fn move_weights<S: Simd>(
        &self,
        panels: &[Panel],
        row: usize,
        rows: usize,
        first: usize,
        packed_x: *const f32,
        dw: *mut f32,
        mover: &mut Mover<S>,
    ) {
        let (place, stride) = (self.place, transposed_row(self.count));
        let run = [Run { x: 0, w: 0, len: self.count }];
        // The next rows of the strip, or the first of the next.
        let ahead = |from: Ptr| {
            let share = if place.width == STRIP { STRIP.div_ceil(panels.len()) } else { 0 };
            Ahead::new(from.at(first + rows * place.width), share, false)
        };
        let mut next = [ahead(self.w), ahead(self.v)];
        // SAFETY: the caller's promise that operands and a tile of room are there.
        unsafe {
            let mut x = packed_x;
            for panel in panels {
                let width = panel.vectors * S::LANES;
                S::call(DotRows {
                    vectors: panel.vectors,
                    runs: &run,
                    x: self.dy_t.as_ptr().add(row * stride),
                    x_stride: stride,
                    next: true,
                    w: x,
                    start: Start::Zero,
                    ahead: &mut next,
                    out: Output { y: dw, stride: width, rows, valid: width },
                    finish: Finish::Store,
                });
                for o in 0..rows {
                    let (dw, at) = (dw.add(o * width), first + o * place.width + panel.first);
                    if self.whole {
                        std::ptr::copy_nonoverlapping(dw, self.v.at(at), panel.valid);
                    } else {
                        mover.step(dw, self.w.at(at), self.v.at(at), panel.valid);
                    }
                }
                x = x.add(self.count * width);
            }
        }
    }

    /// The sums of a strip's columns from `column` on to dx.
    #[inline(always)]
    unsafe fn store_dx<S: Simd>(&self, panels: &[Panel], column: usize, sums: *const f32, dx: Ptr) {
        // SAFETY: the caller's promise that the sums are there; the columns are the unit's own.
        unsafe {
            let mut sums = sums;
            for panel in panels {
                let width = panel.vectors * S::LANES;
                for n in 0..self.count {
                    let at = n * self.cut.inputs + column + panel.first;
                    for (c, lanes) in vectors(panel.valid, S::LANES) {
                        let mut sum = S::load(sums.add(n * width + c));
                        if let Some(a) = self.relu {
                            sum = S::where_positive(S::load_part(a.as_ptr().add(at + c), lanes), sum);
                        }
                        S::store_part(dx.at(at + c), sum, lanes);
                    }
                }
                sums = sums.add(self.count * width);
            }
        }
    }
}

/// Copies `rows` rows at `stride` to panels, one after the other, of consecutive rows; zero where no column is.
#[inline(always)]
unsafe fn copy_panels<S: Simd>(from: *const f32, stride: usize, panels: &[Panel], to: *mut f32, rows: usize) {
    // Row by row, as they lie in memory.
    for n in 0..rows {
        let mut to = to;
        for panel in panels {
            let width = panel.vectors * S::LANES;
            // SAFETY: the caller's promise that rows and columns are within both arrays.
            unsafe {
                copy_rows::<S>(from.add(n * stride + panel.first), stride, *panel, to.add(n * width), 1);
                to = to.add(rows * width);
            }
        }
    }
}

/// Transposes the first `count` rows of `x` (N, M) into `t` (M, N), whose rows are `row` elements apart.
pub fn transpose(ctx: &mut Context, count: usize, x: &[f32], row: usize, t: &mut [f32]) {
    let columns = t.len() / row.max(1);
    assert!(row >= count && row * columns == t.len() && x.len() >= count * columns, "matrices");
    // Sixteen columns of x at a time: whole cache lines on both sides.
    ctx.for_each_chunk(t, 16 * row, |i, rows| {
        for n in 0..count {
            let from = &x[n * columns + i * 16..];
            for (row, value) in rows.chunks_exact_mut(row).zip(from) {
                row[n] = *value;
            }
        }
    });
}

/// db: sums of the rows of dy_t (O, N), `row` elements apart, each over its `count` pictures in order.
pub fn bias_gradient(dy_t: &[f32], row: usize, count: usize, db: &mut [f32]) {
    for (sum, row) in db.iter_mut().zip(dy_t.chunks_exact(row)) {
        *sum = row[..count].iter().sum();
    }
}

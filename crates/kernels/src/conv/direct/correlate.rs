//! Forward and input gradient: one loop over differently packed weights. Its order, outside in:
//!
//! ```text
//! unit: one block, one output row (threads)
//!   group, panel of output channels (up to 64)
//!     chunk of the reduction whose weights fit in half of L1 (24 KiB)
//!       position in the row
//!         tile of pictures (6-8): dot() over the chunk's taps and channels
//! ```
//!
//! so that a chunk of weights is read from L2 once a row and from L1 for every position of it. Forward, where a block is one
//! picture, is [`single`]'s.

use super::{CHUNK_TAPS, Packed, single};
use crate::conv::{Epilogue, Geometry};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::{DotRows, Finish, Output, Run, Start};

/// Elements of scratch that each thread needs: the widest panel's bias.
pub(in crate::conv) const SCRATCH_LEN: usize = 64;

/// y = x ∗ w + b for the first `count` pictures.
pub(in crate::conv) fn forward(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    x: &[f32],
    w: &Packed,
    bias: &[f32],
    epilogue: Epilogue,
    y: &mut [f32],
) {
    assert_eq!(w.lanes, ctx.isa().lanes(), "packed for another instruction set");
    assert_eq!(
        w.steps * w.panels.len() * g.groups,
        g.taps() * g.c / g.groups * w.offsets.len(),
        "packed weights"
    );
    let finish = epilogue.finish();
    if g.block == 1 {
        return single::forward(ctx, g, count, x, w, bias, finish, y);
    }
    let kernel = Correlate {
        g: *g,
        backward: false,
        count,
        x: x.as_ptr() as usize,
        w,
        bias: Some(bias),
        finish,
        y: Ptr::from_mut(y),
    };
    ctx.run(&kernel);
}

/// dx = dy ∗ wᵀ for the first `count` pictures.
pub(in crate::conv) fn backward_input(
    ctx: &mut Context,
    g: &Geometry,
    count: usize,
    dy: &[f32],
    w: &Packed,
    relu: Option<&[f32]>,
    dx: &mut [f32],
) {
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
        finish,
        y: Ptr::from_mut(dx),
    };
    ctx.run(&kernel);
}

/// Forward, or backward with input and output exchanged.
struct Correlate<'a> {
    g: Geometry,
    backward: bool,
    count: usize,
    /// Address of the map that is read.
    x: usize,
    w: &'a Packed,
    bias: Option<&'a [f32]>,
    finish: Finish,
    y: Ptr,
}

impl Kernel for Correlate<'_> {
    fn units(&self) -> usize {
        self.count.div_ceil(self.g.block) * if self.backward { self.g.rows.input } else { self.g.rows.output }
    }

    fn scratch_len(&self) -> usize {
        SCRATCH_LEN
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
        let mut room = [Run::default(); CHUNK_TAPS];
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
                            // A panel reads whole vectors of bias: a copy with room at the end.
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
                            let runs = chunk.runs(width, &mut room, |piece| {
                                let (h, v) = if self.backward {
                                    (rows.backward(out_row, piece.r)?, columns.backward(out_column, piece.s)?)
                                } else {
                                    (rows.forward(out_row, piece.r)?, columns.forward(out_column, piece.s)?)
                                };
                                let position = (block * in_h + h) * in_w + v;
                                Some(position * g.block * in_c + group * (in_c / g.groups) + piece.first)
                            });
                            if runs.is_empty() && ci != 0 && !last {
                                continue;
                            }
                            let at =
                                ((block * out_h + out_row) * out_w + out_column) * g.block * out_c + channel;
                            let finish = match self.finish {
                                _ if !last => Finish::Store,
                                Finish::Mask(mask) => Finish::Mask(mask.add(at)),
                                other => other,
                            };
                            let y = self.y.at(at);
                            S::call(DotRows {
                                vectors: panel.vectors,
                                runs,
                                x,
                                x_stride: in_c,
                                next: false,
                                w,
                                start,
                                ahead: &mut [],
                                out: Output { y, stride: out_c, rows: pictures, valid: panel.valid },
                                finish,
                            });
                        }
                    }
                }
            }
        }
    }
}

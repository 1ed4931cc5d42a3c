//! Stages that look at one element at a time: activations that no product computes along, dropout, and the change from
//! blocked maps to flat rows.

use super::{Cpu, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Form;
use crate::net::Shape;
use crate::ops::activation;
use crate::ops::dropout::{self, Mask};
use alexnet_kernels::parallel::ChunkWork;

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// Elements whose draws are made side by side: four to a draw, a vector of draws.
const DRAWN: usize = 64;

impl Cpu {
    pub(super) fn activation_forward(&mut self, i: usize, batch: &Batch) {
        let f = self.frame.activation_of(i);
        let used = self.used(i + 1, batch);
        let ([x], [y]) = self.frame.arena.split([self.frame.maps[i]], [self.frame.maps[i + 1].first(used)]);
        let x = Self::input_of(x, batch, i);
        self.frame.ctx.for_each_chunk(y, CHUNK, |c, y| activation::forward(f, &x[c * CHUNK..][..y.len()], y));
    }

    pub(super) fn activation_backward(&mut self, i: usize, batch: &Batch) {
        let f = self.frame.activation_of(i);
        let used = self.used(i, batch);
        let masked = self.frame.plan.stages[i].masks_input;
        let ([x, y, dy], [dx]) = self.frame.arena.split(
            [
                self.frame.maps[i].first(used),
                self.frame.maps[i + 1].first(used),
                self.frame.gradients[i + 1].first(used),
            ],
            [self.frame.gradients[i].first(used)],
        );
        self.frame.ctx.for_each_chunk(dx, CHUNK, |c, dx| {
            let part = c * CHUNK..c * CHUNK + dx.len();
            activation::backward(f, &x[part.clone()], &y[part.clone()], &dy[part.clone()], dx);
            mask_where(masked, &x[part], dx);
        });
    }

    pub(super) fn dropout_forward(&mut self, i: usize, batch: &Batch, masks: Option<&StepSettings>) {
        let (op, mask) = self.frame.dropout_of(i, masks);
        let used = self.used(i + 1, batch);
        let order = self.order(i);
        let ([x], [y]) = self.frame.arena.split([self.frame.maps[i]], [self.frame.maps[i + 1].first(used)]);
        let x = &Self::input_of(x, batch, i)[..used];
        let Some(mask) = mask else {
            let test = |c, y: &mut [f32]| dropout::forward_test(&op, &x[c * CHUNK..][..y.len()], y);
            return self.frame.ctx.for_each_chunk(y, CHUNK, test);
        };
        let work = Drop { order, mask, scale: dropout::scale(&op), x, relu: None };
        self.frame.ctx.for_each_chunk_in_vectors(y, DRAWN, &work);
    }

    pub(super) fn dropout_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) {
        let (op, mask) = self.frame.dropout_of(i, Some(settings));
        let Some(mask) = mask else { unreachable!("training draws masks") };
        let masked = self.frame.plan.stages[i].masks_input;
        let used = self.used(i, batch);
        let order = self.order(i);
        let ([x, dy], [dx]) = self.frame.arena.split(
            [self.frame.maps[i].first(used), self.frame.gradients[i + 1].first(used)],
            [self.frame.gradients[i].first(used)],
        );
        let work = Drop { order, mask, scale: dropout::scale(&op), x: dy, relu: masked.then_some(x) };
        self.frame.ctx.for_each_chunk_in_vectors(dx, DRAWN, &work);
    }

    /// How the elements of map `i` are ordered.
    fn order(&self, i: usize) -> Order {
        let map = self.frame.plan.maps[i];
        Order {
            shape: map.shape,
            block: if map.form == Form::Flat { None } else { Some(self.frame.plan.block) },
        }
    }

    pub(super) fn flatten_forward(&mut self, i: usize, batch: &Batch) {
        debug_assert!(matches!(self.stages[i], StageState::Plain));
        let shape = self.frame.plan.maps[i].shape;
        let block = self.frame.plan.block;
        let layout = self.frame.plan.input.clone();
        let from_input = self.frame.plan.maps[i].form == Form::Input;
        let ([x], [y]) = self
            .frame
            .arena
            .split([self.frame.maps[i]], [self.frame.maps[i + 1].first(batch.count * shape.len())]);
        let x = Self::input_of(x, batch, i);
        let positions = shape.h * shape.w;
        self.frame.ctx.for_each_chunk(y, shape.len(), |n, row| {
            for (position, (h, w)) in (0..shape.h).flat_map(|h| (0..shape.w).map(move |w| (h, w))).enumerate()
            {
                let from =
                    if from_input { layout.offset(n, 0, h, w) } else { blocked(shape, block, n, 0, h, w) };
                let to = row[position..].iter_mut().step_by(positions);
                to.zip(&x[from..][..shape.c]).for_each(|(y, x)| *y = *x);
            }
        });
    }

    pub(super) fn flatten_backward(&mut self, i: usize, batch: &Batch) {
        let shape = self.frame.plan.maps[i].shape;
        let block = self.frame.plan.block;
        let masked = self.frame.plan.stages[i].masks_input;
        let used = self.used(i, batch);
        let ([x, dy], [dx]) = self.frame.arena.split(
            [self.frame.maps[i].first(used), self.frame.gradients[i + 1]],
            [self.frame.gradients[i].first(used)],
        );
        let row_len = shape.w * block * shape.c;
        self.frame.ctx.for_each_chunk(dx, row_len, |unit, row| {
            let (b, h) = (unit / shape.h, unit % shape.h);
            for (place, dx) in row.chunks_exact_mut(shape.c).enumerate() {
                let (w, n) = (place / block, b * block + place % block);
                if n >= batch.count {
                    dx.fill(0.0);
                    continue;
                }
                let from = dy[n * shape.len() + h * shape.w + w..].iter().step_by(shape.h * shape.w);
                dx.iter_mut().zip(from).for_each(|(dx, dy)| *dx = *dy);
                mask_where(masked, &x[unit * row_len + place * shape.c..][..shape.c], dx);
            }
        });
    }
}

/// Offset of an element in (blocks, H, W, block, C).
pub(super) fn blocked(shape: Shape, block: usize, n: usize, c: usize, h: usize, w: usize) -> usize {
    (((n / block * shape.h + h) * shape.w + w) * block + n % block) * shape.c + c
}

/// The order of a map's elements.
#[derive(Clone, Copy)]
struct Order {
    shape: Shape,
    /// Pictures in a block, or `None` for flat rows.
    block: Option<usize>,
}

impl Order {
    /// The canonical index, picture by picture in C, H, W order, of the element at `offset`.
    #[inline(always)]
    fn canonical(&self, offset: usize) -> usize {
        let Some(block) = self.block else { return offset };
        let Shape { c, h, w } = self.shape;
        let (channel, picture) = (offset % c, offset / c % block);
        let (column, row) = (offset / (c * block) % w, offset / (c * block * w) % h);
        let n = offset / (c * block * w * h) * block + picture;
        ((n * c + channel) * h + row) * w + column
    }
}

/// Dropout of `x` while training; with `relu`, zero where that is not positive.
struct Drop<'a> {
    order: Order,
    mask: Mask,
    /// Of the elements kept.
    scale: f32,
    x: &'a [f32],
    relu: Option<&'a [f32]>,
}

impl ChunkWork<f32> for Drop<'_> {
    #[inline(always)]
    fn chunk(&self, index: usize, y: &mut [f32]) {
        let first = index * DRAWN;
        let x = &self.x[first..][..y.len()];
        if self.order.block.is_none() {
            let mut quads = [0; DRAWN / 4];
            for (i, quad) in quads.iter_mut().enumerate() {
                *quad = (first / 4 + i) as u64;
            }
            let keep = self.mask.keeps_fours(quads);
            for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
                *y = f32::from_bits((x * self.scale).to_bits() & keep[i % 4][i / 4]);
            }
        } else {
            for (e, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                *y = if self.mask.keeps(self.order.canonical(first + e)) { x * self.scale } else { 0.0 };
            }
        }
        if let Some(relu) = self.relu {
            mask_where(true, &relu[first..][..y.len()], y);
        }
    }
}

/// Zero where x is not positive, if asked.
#[inline(always)]
fn mask_where(masked: bool, x: &[f32], dx: &mut [f32]) {
    if masked {
        dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = if x > 0.0 { *dx } else { 0.0 });
    }
}

//! Stages that look at one element at a time: activations that no product computes along, dropout, and the change from
//! blocked maps to flat rows.

use super::{Cpu, StageState};
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Form;
use crate::net::{Dropout, Shape};
use crate::ops::activation;
use crate::ops::dropout::{self, Mask};

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

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
        self.frame.ctx.for_each_chunk(y, CHUNK, |c, y| {
            let x = &x[c * CHUNK..][..y.len()];
            match &mask {
                Some(mask) => order.drop(&op, mask, c * CHUNK, x, y),
                None => dropout::forward_test(&op, x, y),
            }
        });
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
        self.frame.ctx.for_each_chunk(dx, CHUNK, |c, dx| {
            let part = c * CHUNK..c * CHUNK + dx.len();
            order.drop(&op, &mask, c * CHUNK, &dy[part.clone()], dx);
            mask_where(masked, &x[part], dx);
        });
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
        self.frame.ctx.for_each_chunk(y, shape.len(), |n, row| {
            for (e, y) in row.iter_mut().enumerate() {
                let (c, h, w) = (e / (shape.h * shape.w), e / shape.w % shape.h, e % shape.w);
                *y =
                    x[if from_input { layout.offset(n, c, h, w) } else { blocked(shape, block, n, c, h, w) }];
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
            for (e, dx) in row.iter_mut().enumerate() {
                let (c, n, w) = (e % shape.c, b * block + e / shape.c % block, e / (shape.c * block));
                let at = n * shape.len() + (c * shape.h + h) * shape.w + w;
                *dx = if n < batch.count && !(masked && x[unit * row_len + e] <= 0.0) { dy[at] } else { 0.0 };
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
    /// Dropout of the elements from `first` on, a multiple of four.
    fn drop(&self, op: &Dropout, mask: &Mask, first: usize, x: &[f32], y: &mut [f32]) {
        if self.block.is_none() {
            dropout::forward_from(op, mask, first / 4, x, y);
            return;
        }
        let scale = dropout::scale::<f32>(op);
        for (e, (y, &x)) in y.iter_mut().zip(x).enumerate() {
            *y = if mask.keeps(self.canonical(first + e)) { x * scale } else { 0.0 };
        }
    }

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

/// Zero where x is not positive, if asked.
fn mask_where(masked: bool, x: &[f32], dx: &mut [f32]) {
    if masked {
        dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = if x > 0.0 { *dx } else { 0.0 });
    }
}

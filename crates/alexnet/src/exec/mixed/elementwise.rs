//! Stages that look at one element at a time: activations that no product computes along, dropout and the change
//! from maps to flat rows.

use super::Mixed;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Form;
use crate::net::{Activation, Dropout, Op, Shape};
use crate::ops::activation;
use crate::ops::dropout::{self, Mask};
use alexnet_kernels::bf16::convert::{self, positive, round_map, widen_map};
use alexnet_kernels::bf16::{MapLayout, PICTURES, pair, pairs, pairs_mut, widen};

/// Values that a thread takes at a time.
const CHUNK: usize = 1 << 14;

impl Mixed {
    fn activation_of(&self, i: usize) -> Activation {
        let Op::Activation(f) = self.frame.net.layers[self.frame.plan.stages[i].layers.start].op else {
            unreachable!("stage {i} is an activation")
        };
        f
    }

    pub(super) fn activation_forward(&mut self, i: usize, batch: &Batch) {
        let f = self.activation_of(i);
        let used = self.used(i, batch);
        let ([x], [y, x_wide, y_wide]) = self.frame.arena.split(
            [self.frame.maps[i].first(used)],
            [
                self.frame.maps[i + 1].first(used),
                self.wide[0].at_most(2 * used),
                self.wide[1].at_most(2 * used),
            ],
        );
        if f == Activation::Relu {
            let x = pairs(x);
            self.frame.ctx.for_each_chunk(pairs_mut(y), CHUNK, |c, y| {
                y.iter_mut().zip(&x[c * CHUNK..]).for_each(|(y, x)| *y = x & positive(*x));
            });
            return;
        }
        widen_map(&mut self.frame.ctx, x, x_wide);
        let x_wide = &*x_wide;
        self.frame
            .ctx
            .for_each_chunk(y_wide, CHUNK, |c, y| activation::forward(f, &x_wide[c * CHUNK..][..y.len()], y));
        round_map(&mut self.frame.ctx, y_wide, y);
    }

    pub(super) fn activation_backward(&mut self, i: usize, batch: &Batch) {
        let f = self.activation_of(i);
        let used = self.used(i, batch);
        let masked = self.frame.plan.stages[i].masks_input;
        let ([x, y, dy], [dx, x_wide, y_wide, dy_wide, dx_wide]) = self.frame.arena.split(
            [
                self.frame.maps[i].first(used),
                self.frame.maps[i + 1].first(used),
                self.frame.gradients[i + 1].first(used),
            ],
            [
                self.frame.gradients[i].first(used),
                self.wide[0].at_most(2 * used),
                self.wide[1].at_most(2 * used),
                self.wide[2].at_most(2 * used),
                self.wide[3].at_most(2 * used),
            ],
        );
        let x_pairs = pairs(x);
        if f == Activation::Relu {
            // An input out of a ReLU is positive where its output is.
            let (y, dy) = (pairs(y), pairs(dy));
            self.frame.ctx.for_each_chunk(pairs_mut(dx), CHUNK, |c, dx| {
                let part = c * CHUNK..c * CHUNK + dx.len();
                for ((dx, y), dy) in dx.iter_mut().zip(&y[part.clone()]).zip(&dy[part]) {
                    *dx = dy & positive(*y);
                }
            });
            return;
        }
        widen_map(&mut self.frame.ctx, x, x_wide);
        widen_map(&mut self.frame.ctx, y, y_wide);
        widen_map(&mut self.frame.ctx, dy, dy_wide);
        let (x, y, dy) = (&*x_wide, &*y_wide, &*dy_wide);
        self.frame.ctx.for_each_chunk(dx_wide, CHUNK, |c, dx| {
            let part = c * CHUNK..c * CHUNK + dx.len();
            activation::backward(f, &x[part.clone()], &y[part.clone()], &dy[part], dx);
        });
        round_map(&mut self.frame.ctx, dx_wide, dx);
        if masked {
            self.frame.ctx.for_each_chunk(pairs_mut(dx), CHUNK, |c, dx| {
                dx.iter_mut().zip(&x_pairs[c * CHUNK..]).for_each(|(dx, x)| *dx &= positive(*x));
            });
        }
    }

    pub(super) fn dropout_forward(&mut self, i: usize, batch: &Batch, masks: Option<&StepSettings>) {
        let (op, mask) = self.dropout_of(i, masks);
        let order = self.order(i, batch.count);
        let used = self.used(i, batch);
        let ([x], [y]) =
            self.frame.arena.split([self.frame.maps[i].first(used)], [self.frame.maps[i + 1].first(used)]);
        let x = pairs(x);
        self.frame.ctx.for_each_chunk(pairs_mut(y), 2 * PICTURES, |c, y| {
            let x = &x[c * 2 * PICTURES..][..y.len()];
            match &mask {
                Some(mask) => order.drop(&op, mask, c * 2, x, y),
                None => {
                    let scale = if op.inverted { 1.0 } else { 1.0 - op.rate as f32 };
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = scaled(*x, scale, scale));
                }
            }
        });
    }

    pub(super) fn dropout_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) {
        let (op, mask) = self.dropout_of(i, Some(settings));
        let Some(mask) = mask else { unreachable!("training draws masks") };
        let order = self.order(i, batch.count);
        let masked = self.frame.plan.stages[i].masks_input;
        let used = self.used(i, batch);
        let ([x, dy], [dx]) = self.frame.arena.split(
            [self.frame.maps[i].first(used), self.frame.gradients[i + 1].first(used)],
            [self.frame.gradients[i].first(used)],
        );
        let (x, dy) = (pairs(x), pairs(dy));
        self.frame.ctx.for_each_chunk(pairs_mut(dx), 2 * PICTURES, |c, dx| {
            let part = c * 2 * PICTURES..c * 2 * PICTURES + dx.len();
            order.drop(&op, &mask, c * 2, &dy[part.clone()], dx);
            if masked {
                dx.iter_mut().zip(&x[part]).for_each(|(dx, x)| *dx &= positive(*x));
            }
        });
    }

    /// The layer and, while training, its mask, keyed by its place in the network.
    fn dropout_of(&self, i: usize, masks: Option<&StepSettings>) -> (Dropout, Option<Mask>) {
        let layer = self.frame.plan.stages[i].layers.start;
        let Op::Dropout(op) = &self.frame.net.layers[layer].op else { unreachable!("stage {i} is dropout") };
        (op.clone(), masks.map(|s| Mask::new(op.rate, s.seed, s.step, layer)))
    }

    /// How the elements of map `i` are counted.
    fn order(&self, i: usize, count: usize) -> Order {
        let map = self.frame.plan.maps[i];
        let flat = map.form == Form::Flat;
        Order { shape: map.shape, layout: self.layouts[i], flat, count }
    }

    pub(super) fn flatten_forward(&mut self, i: usize, batch: &Batch) {
        let blocks = self.frame.blocks(batch);
        let ([x], [y]) = self.frame.arena.split([self.frame.maps[i]], [self.frame.maps[i + 1]]);
        convert::flatten(&mut self.frame.ctx, &self.layouts[i], blocks, x, y);
    }

    pub(super) fn flatten_backward(&mut self, i: usize, batch: &Batch) {
        let blocks = self.frame.blocks(batch);
        let ([x, dy], [dx]) = self
            .frame
            .arena
            .split([self.frame.maps[i], self.frame.gradients[i + 1]], [self.frame.gradients[i]]);
        let relu = self.frame.plan.stages[i].masks_input.then_some(x);
        convert::unflatten(&mut self.frame.ctx, &self.layouts[i], blocks, dy, relu, dx);
    }
}

/// Both halves multiplied.
#[inline(always)]
fn scaled(x: u32, even: f32, odd: f32) -> u32 {
    pair(widen(x as u16) * even, widen((x >> 16) as u16) * odd)
}

/// How the elements of a map are counted by a dropout's draws: canonically, picture by picture.
#[derive(Clone, Copy)]
struct Order {
    shape: Shape,
    layout: MapLayout,
    flat: bool,
    /// Pictures of the batch.
    count: usize,
}

impl Order {
    /// Dropout of one or two rows of pairs, the first of which is number `row` of the map.
    fn drop(&self, op: &Dropout, mask: &Mask, row: usize, x: &[u32], y: &mut [u32]) {
        let scale = dropout::scale::<f32>(op);
        let factor = |keep: bool| if keep { scale } else { 0.0 };
        let len = self.shape.len();
        if self.flat && len.is_multiple_of(4) && y.len() == 2 * PICTURES {
            // Two rows hold four neighbours of every picture, which share one draw.
            let (block, first) = (row / self.layout.split_pairs(), row % self.layout.split_pairs() * 2);
            for n in 0..PICTURES {
                let keep = mask.keeps_four(((block * PICTURES + n) * len + first) / 4);
                let [a, b, c, d] = keep.map(factor);
                y[n] = scaled(x[n], a, b);
                y[PICTURES + n] = scaled(x[PICTURES + n], c, d);
            }
            return;
        }
        for (r, (x, y)) in x.chunks(PICTURES).zip(y.chunks_mut(PICTURES)).enumerate() {
            let elements = [0, 1].map(|half| self.element(row + r, half));
            let block = (row + r) * PICTURES / self.layout.block_len();
            for (n, (x, y)) in x.iter().zip(y).enumerate() {
                let picture = block * PICTURES + n;
                let keeps = |e: Option<usize>| {
                    picture < self.count && e.is_some_and(|e| mask.keeps(picture * len + e))
                };
                let [even, odd] = elements.map(|e| factor(keeps(e)));
                *y = scaled(*x, even, odd);
            }
        }
    }

    /// The element of a picture, in C, H, W order, that a half of a row of pairs holds, if one does.
    fn element(&self, row: usize, half: usize) -> Option<usize> {
        let map = &self.layout;
        let (pair, position) = (row % map.split_pairs(), row / map.split_pairs());
        let c = 2 * pair + half;
        let (w, h) = (position % map.width, position / map.width % map.height);
        let split = position / (map.width * map.height) % map.splits;
        let channel = split * map.split_channels() + c;
        (c < map.split_channels()).then_some((channel * map.height + h) * map.width + w)
    }
}

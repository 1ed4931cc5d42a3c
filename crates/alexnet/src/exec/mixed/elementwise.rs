//! Stages that look at one element at a time: activations that no product computes along, dropout and the change
//! from maps to flat rows.

use super::Mixed;
use crate::exec::contract::Batch;
use crate::net::Activation;
use crate::ops::activation;
use alexnet_kernels::bf16::convert::{self, positive, round_map, widen_map};
use alexnet_kernels::bf16::{pairs, pairs_mut};

/// Values that a thread takes at a time.
const CHUNK: usize = 1 << 14;

impl Mixed {
    pub(super) fn activation_forward(&mut self, i: usize, batch: &Batch) {
        let f = self.frame.activation_of(i);
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
        let f = self.frame.activation_of(i);
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

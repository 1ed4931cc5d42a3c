//! Dropout. Its draws are counted canonically, picture by picture, so that any layout drops the same elements.

use super::Mixed;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::plan::Form;
use crate::net::{Dropout, Shape};
use crate::ops::dropout::{self, Mask};
use alexnet_kernels::bf16::convert::positive;
use alexnet_kernels::bf16::{MapLayout, PICTURES, pair, pairs, pairs_mut, widen};
use alexnet_kernels::parallel::ChunkWork;

/// Two rows of pairs hold four neighbours of every picture, which share one draw.
const CHUNK: usize = 2 * PICTURES;

impl Mixed {
    pub(super) fn dropout_forward(&mut self, i: usize, batch: &Batch, masks: Option<&StepSettings>) {
        let (op, mask) = self.frame.dropout_of(i, masks);
        let drops = mask.map(|mask| self.drops_of(i, batch, &op, mask));
        let used = self.used(i, batch);
        let frame = &mut self.frame;
        let ([x], [y]) = frame.arena.split([frame.maps[i].first(used)], [frame.maps[i + 1].first(used)]);
        let (x, y) = (pairs(x), pairs_mut(y));
        match drops {
            Some(drops) => frame.ctx.for_each_chunk_in_vectors(y, CHUNK, &Drop { drops, x, relu: None }),
            None => {
                let scale = if op.inverted { 1.0 } else { 1.0 - op.rate as f32 };
                frame.ctx.for_each_chunk_in_vectors(y, CHUNK, &Scale { scale, x });
            }
        }
    }

    pub(super) fn dropout_backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) {
        let (op, Some(mask)) = self.frame.dropout_of(i, Some(settings)) else {
            unreachable!("training draws masks")
        };
        let drops = self.drops_of(i, batch, &op, mask);
        let used = self.used(i, batch);
        let frame = &mut self.frame;
        let ([x, dy], [dx]) = frame.arena.split(
            [frame.maps[i].first(used), frame.gradients[i + 1].first(used)],
            [frame.gradients[i].first(used)],
        );
        let relu = frame.plan.stages[i].masks_input.then_some(pairs(x));
        frame.ctx.for_each_chunk_in_vectors(pairs_mut(dx), CHUNK, &Drop { drops, x: pairs(dy), relu });
    }

    /// What stage `i` drops in this step.
    fn drops_of(&self, i: usize, batch: &Batch, op: &Dropout, mask: Mask) -> Drops {
        let map = self.frame.plan.maps[i];
        Drops {
            mask,
            scale: dropout::scale(op),
            shape: map.shape,
            layout: self.layouts[i],
            flat: map.form == Form::Flat,
            count: batch.count,
        }
    }
}

/// Both halves multiplied.
#[inline(always)]
fn scaled(x: u32, scale: f32) -> u32 {
    pair(widen(x as u16) * scale, widen((x >> 16) as u16) * scale)
}

/// Dropout at test time.
struct Scale<'a> {
    scale: f32,
    x: &'a [u32],
}

impl ChunkWork<u32> for Scale<'_> {
    #[inline(always)]
    fn chunk(&self, index: usize, y: &mut [u32]) {
        let x = &self.x[index * CHUNK..][..y.len()];
        y.iter_mut().zip(x).for_each(|(y, x)| *y = scaled(*x, self.scale));
    }
}

/// Which elements of a map are dropped, and what multiplies the others.
struct Drops {
    mask: Mask,
    scale: f32,
    shape: Shape,
    layout: MapLayout,
    /// Whether the map is flat.
    flat: bool,
    /// Pictures of the batch.
    count: usize,
}

/// Dropout of `x`; with `relu`, zero where that is not positive.
struct Drop<'a> {
    drops: Drops,
    x: &'a [u32],
    relu: Option<&'a [u32]>,
}

impl ChunkWork<u32> for Drop<'_> {
    #[inline(always)]
    fn chunk(&self, index: usize, y: &mut [u32]) {
        let part = index * CHUNK..index * CHUNK + y.len();
        let x = &self.x[part.clone()];
        match (x.try_into(), (&mut *y).try_into()) {
            (Ok(x), Ok(y)) if self.drops.flat && self.drops.shape.len().is_multiple_of(4) => {
                self.drops.rows_of_fours(index, x, y);
            }
            _ => self.drops.rows(2 * index, x, y),
        }
        if let Some(relu) = self.relu {
            y.iter_mut().zip(&relu[part]).for_each(|(y, x)| *y &= positive(*x));
        }
    }
}

impl Drops {
    /// Two rows of a flat map.
    #[inline(always)]
    fn rows_of_fours(&self, index: usize, x: &[u32; CHUNK], y: &mut [u32; CHUNK]) {
        let (row, pairs) = (2 * index, self.layout.split_pairs());
        let quads = self.shape.len() / 4;
        let first = row / pairs * PICTURES * quads + row % pairs / 2;
        let mut counters = [0u64; PICTURES];
        for (n, counter) in counters.iter_mut().enumerate() {
            *counter = (first + n * quads) as u64;
        }
        let keep = self.mask.keeps_fours(counters);
        for half in 0..2 {
            for n in 0..PICTURES {
                let keep = keep[2 * half][n] & 0xffff | keep[2 * half + 1][n] & 0xffff_0000;
                y[half * PICTURES + n] = scaled(x[half * PICTURES + n], self.scale) & keep;
            }
        }
    }

    /// Rows of pairs of any map, the first of which is number `row`.
    fn rows(&self, row: usize, x: &[u32], y: &mut [u32]) {
        let len = self.shape.len();
        for (r, (x, y)) in x.chunks(PICTURES).zip(y.chunks_mut(PICTURES)).enumerate() {
            let elements = [0, 1].map(|half| self.element(row + r, half));
            let block = (row + r) * PICTURES / self.layout.block_len();
            for (n, (x, y)) in x.iter().zip(y).enumerate() {
                let picture = block * PICTURES + n;
                let keeps = |e: Option<usize>| {
                    picture < self.count && e.is_some_and(|e| self.mask.keeps(picture * len + e))
                };
                let keep = elements.map(|e| if keeps(e) { 0xffff } else { 0 });
                *y = scaled(*x, self.scale) & (keep[0] | keep[1] << 16);
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

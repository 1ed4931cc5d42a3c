//! The weight gradient, and the bias gradient with it.
//!
//! ```text
//! dg = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
//!
//! for block, row of tiles, a few tiles of it      (a part)
//!   for tile, group, some pictures                V = Bᵀ d B
//!   for column of outputs                         A dy, and its share of db
//!   for group, row of points, panel
//!     (A dy) Aᵀ of these, along the row
//!     point
//!       some channels: outer() over the pictures of the tiles
//! ```
//!
//! Every operand is computed once and read in the order in which it lies: A dy of a panel at a row of points once, V of a row of
//! points by one panel after the other. For conv2 the latter is 150 KiB, which stays in L2. Sums are one unit's each, so the
//! result does not depend on the threads. [`Taps`] turns the sums of the points into taps.

mod layout;
mod operands;
mod products;
mod taps;

use super::points::{Strip, strips};
use super::{fits, fits_first};
use crate::arena::Buffer;
use crate::conv::{Fold, Geometry};
use crate::isa::Isa;
use crate::panel::tiles;
use crate::parallel::{Context, Ptr};
use layout::Layout;
use operands::Operands;
use products::Products;
use std::ops::Range;
use taps::Taps;

/// Tiles of a part, at most: of 32 pictures the operand of a panel has half of L1.
const TILES: usize = 4;

/// How [`backward_weight`] is cut, and what it has in memory; made once a plan.
#[derive(Debug)]
pub(in crate::conv) struct WeightPlan {
    layout: Layout,
    sums: Buffer,
    values: Buffer,
    gradients: Buffer,
    column_sums: Buffer,
}

impl WeightPlan {
    /// The cut for a geometry, which does not depend on the number of threads.
    pub(in crate::conv) fn new(isa: Isa, g: &Geometry, fold: Fold) -> WeightPlan {
        assert!(fits(g) && fold.fold == 1 || fits_first(g), "a convolution for Winograd's method");
        let layout = Layout::new(isa, g, fold);
        WeightPlan {
            sums: Buffer::zeros(layout.sums_len()),
            values: Buffer::zeros(layout.values_at(g.groups)),
            gradients: Buffer::zeros(layout.gradients_len()),
            column_sums: Buffer::zeros(layout.columns() * g.k),
            layout,
        }
    }

    /// Bytes held.
    pub(in crate::conv) fn bytes(&self) -> usize {
        [&self.sums, &self.values, &self.gradients, &self.column_sums]
            .iter()
            .map(|b| b.len() * size_of::<f32>())
            .sum()
    }

    /// Elements of scratch that each thread needs.
    pub(in crate::conv) fn scratch_len(&self) -> usize {
        self.layout.scratch_len()
    }
}

/// dw and db, summed over the first `count` pictures, in canonical order.
pub(in crate::conv) fn backward_weight(
    ctx: &mut Context,
    plan: &mut WeightPlan,
    count: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let WeightPlan { layout, sums, values, gradients, column_sums } = plan;
    let g = &layout.g;
    assert_eq!(layout.lanes, ctx.isa().lanes(), "planned for another instruction set");
    assert_eq!(dw.len(), layout.dw_len(), "weight gradient");
    for block in 0..count.div_ceil(g.block) {
        let pictures = (count - block * g.block).min(g.block);
        for row in 0..strips(&g.rows) {
            for (first, tiles) in tiles(strips(&g.columns), TILES) {
                let part = Part { layout, block, pictures, row, first, tiles };
                let [to, gradients_to, column_sums_to] =
                    [&mut *values, &mut *gradients, &mut *column_sums].map(|buffer| Ptr::from_mut(buffer));
                ctx.run(&Operands {
                    part,
                    x,
                    dy,
                    values: to,
                    gradients: gradients_to,
                    column_sums: column_sums_to,
                });
                let [sums, db] = [&mut sums[..], &mut *db].map(Ptr::from_mut);
                ctx.run(&Products { part, values, gradients, column_sums, sums, db });
            }
        }
    }
    ctx.run(&Taps { layout, sums, dw: Ptr::from_mut(dw) });
}

/// What is multiplied at a time: some tiles of a row of them, of a block.
#[derive(Clone, Copy)]
struct Part<'a> {
    layout: &'a Layout,
    block: usize,
    pictures: usize,
    /// Of tiles.
    row: usize,
    /// The first tile.
    first: usize,
    /// How many.
    tiles: usize,
}

impl Part<'_> {
    /// Whether no sums are there before its own.
    fn is_first(&self) -> bool {
        (self.block, self.row, self.first) == (0, 0, 0)
    }

    /// The rows of outputs.
    fn rows(&self) -> Strip {
        Strip::at(&self.layout.g.rows, self.row)
    }

    /// The columns of outputs of a tile.
    fn strip(&self, tile: usize) -> Strip {
        Strip::at(&self.layout.g.columns, self.first + tile)
    }

    /// The columns of outputs.
    fn columns(&self) -> Range<usize> {
        let last = self.strip(self.tiles - 1);
        self.strip(0).first..last.first + last.outputs
    }
}

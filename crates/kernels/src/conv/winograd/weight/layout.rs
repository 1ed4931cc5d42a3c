//! How operands and sums lie.

use super::super::points::{Strip, strips};
use super::super::values::lot_len;
use super::super::{filter_len, pieces};
use super::TILES;
use crate::conv::{Fold, Geometry};
use crate::isa::Isa;
use crate::panel::{Panel, panels};
use crate::simd::{LINE, odd_lines};

/// Elements between the points of an operand, beyond their length, so that they do not share the sets of L1.
const GAP: usize = LINE;

/// A geometry, and where of a part lie
///
/// - the sums: (groups, panels, points, channels that are read, width);
/// - V: (groups, points, rows of a stride, depth, C/G), see [`Layout::step_len`];
/// - A dy: (groups, panels, points down, columns, pictures, width);
/// - dy of a column, summed: (columns, K).
#[derive(Debug)]
pub(super) struct Layout {
    pub g: Geometry,
    pub fold: Fold,
    /// Panels of each group.
    pub panels: Vec<Panel>,
    pub lanes: usize,
    /// The longest strips of both axes, whose points the sums are of.
    pub longest: [Strip; 2],
}

impl Layout {
    pub fn new(isa: Isa, g: &Geometry, fold: Fold) -> Layout {
        let longest = [Strip::at(&g.rows, 0), Strip::at(&g.columns, 0)];
        Layout { g: *g, fold, panels: panels(isa, g.k / g.groups), lanes: isa.lanes(), longest }
    }

    /// Points down and across.
    pub fn points(&self) -> [usize; 2] {
        self.longest.map(|strip| strip.points)
    }

    /// Of a panel, filters with those that only fill its vectors.
    pub fn width(&self, panel: &Panel) -> usize {
        panel.vectors * self.lanes
    }

    /// The first filter of a panel.
    pub fn filter(&self, group: usize, panel: &Panel) -> usize {
        group * (self.g.k / self.g.groups) + panel.first
    }

    /// Elements of dw.
    pub fn dw_len(&self) -> usize {
        self.g.k * filter_len(&self.g, self.fold)
    }

    /// Elements of scratch that each thread needs: V of a picture, or a row of points of A dy Aᵀ.
    pub fn scratch_len(&self) -> usize {
        let [down, across] = self.points();
        let width = self.panels.iter().map(|panel| self.width(panel)).max().unwrap_or(0);
        (down * across * lot_len(self.g.c / self.g.groups)).max(across * self.operand_distance(width))
    }

    /// Channels that a group reads, (rows of a stride, C/G).
    pub fn reads(&self) -> usize {
        pieces(&self.g) * self.g.c / self.g.groups
    }

    /// Tiles of a part, at most.
    fn tiles(&self) -> usize {
        strips(&self.g.columns).min(TILES)
    }

    /// Steps of the depth: the pictures of a part's tiles.
    pub fn depth(&self) -> usize {
        self.tiles() * self.g.block
    }

    /// Columns of outputs of a part, at most.
    pub fn columns(&self) -> usize {
        self.tiles() * self.longest[1].outputs
    }

    /// From one step of V to the next: the products go down a few channels of all steps, so these are an odd number of lines apart
    /// and fall into all sets of L1.
    pub fn step_len(&self) -> usize {
        let channels = self.g.c / self.g.groups;
        if channels.is_multiple_of(LINE) { odd_lines(channels) } else { channels }
    }

    /// From V at one point to that at the next.
    pub fn values_distance(&self) -> usize {
        pieces(&self.g) * self.depth() * self.step_len() + GAP
    }

    /// Where V of a group begins.
    pub fn values_at(&self, group: usize) -> usize {
        let [down, across] = self.points();
        group * down * across * self.values_distance()
    }

    /// From A dy of a panel at one point down to that at the next.
    pub fn gradient_distance(&self, width: usize) -> usize {
        self.columns() * self.g.block * width + GAP
    }

    /// Where A dy of a panel begins.
    pub fn gradient_at(&self, group: usize, index: usize) -> usize {
        group * self.gradients_of_group() + self.gradients_of(&self.panels[..index])
    }

    /// Elements of A dy.
    pub fn gradients_len(&self) -> usize {
        self.g.groups * self.gradients_of_group()
    }

    /// Elements of A dy of a group.
    pub fn gradients_of_group(&self) -> usize {
        self.gradients_of(&self.panels)
    }

    fn gradients_of(&self, panels: &[Panel]) -> usize {
        panels.iter().map(|panel| self.gradient_distance(self.width(panel))).sum::<usize>() * self.points()[0]
    }

    /// From A dy Aᵀ of a panel at one point across to that at the next.
    pub fn operand_distance(&self, width: usize) -> usize {
        self.depth() * width + GAP
    }

    /// Elements of the sums.
    pub fn sums_len(&self) -> usize {
        let [down, across] = self.points();
        down * across * self.g.k * self.reads()
    }

    /// Where the sums of a panel begin at a point.
    pub fn sums_at(&self, group: usize, panel: &Panel, [i, j]: [usize; 2]) -> usize {
        let [down, across] = self.points();
        (self.filter(group, panel) * down * across + (i * across + j) * self.width(panel)) * self.reads()
    }
}

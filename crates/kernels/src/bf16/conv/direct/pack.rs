//! Weights as left operands: for every panel of target channels, source split, row of the window and run of taps, the
//! steps' tiles one after the other.

use super::{Entering, Pooled, SCRATCH_LEN, Walk};
use crate::arena::Buffer;
use crate::bf16::conv::{Fold, Geometry, Panel, panels};
use crate::bf16::entry::Entry;
use crate::bf16::{EDGE, MapLayout, TILE, pair, pairs_mut, pooling, round_values};
use crate::conv::Axis;
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use std::ops::Range;

/// Weights of a chunk of panels, bytes: together with the source rows they should stay in an L2 of 1 to 2 MiB.
const CHUNK_BYTES: usize = 512 << 10;

/// Columns of the target that use the same weights, or a part of them where the window overhangs.
#[derive(Debug)]
pub(super) struct Segment {
    /// Where their weights begin within a (panel, split, row), in steps.
    pub first: usize,
    /// Their number.
    pub steps: usize,
    /// The columns.
    pub columns: Vec<usize>,
}

/// Packed weights of one direction.
#[derive(Debug)]
pub struct Packed {
    pub(super) walk: Walk,
    pub(super) panels: Vec<Panel>,
    /// Where each panel's weights begin, in pairs; one more at the end.
    pub(super) starts: Vec<usize>,
    /// First panels of the chunks that are computed together, and the number of panels.
    pub(super) chunks: Vec<usize>,
    /// Where each run of taps begins within a (panel, split, row), in steps, and its length.
    pub(super) runs: Vec<(usize, usize)>,
    /// Columns whose weights overlap.
    pub(super) segments: Vec<Segment>,
    /// Steps of a (panel, split, row).
    pub(super) row_steps: usize,
    /// The map that is read.
    pub(super) source: MapLayout,
    /// The map that is written.
    pub(super) target: MapLayout,
    /// Rows of a window.
    pub(super) rows: usize,
    /// Splits of the source that each group reads.
    pub(super) group_splits: usize,
    pub(super) data: Buffer,
}

impl Packed {
    /// Room for the weights of the forward pass.
    pub fn for_forward(g: &Geometry) -> Packed {
        Packed::new(g, Walk::forward(&g.columns), g.input, g.output)
    }

    /// Room for the weights of the input gradient.
    pub fn for_backward(g: &Geometry) -> Packed {
        Packed::new(g, Walk::backward(&g.columns), g.output, g.input)
    }

    fn new(g: &Geometry, walk: Walk, source: MapLayout, target: MapLayout) -> Packed {
        let pairs = source.split_pairs();
        // Where channels fill whole steps, a part of a run is a part of its tiles: every run lies within its sequence,
        // which is packed once. Else each is packed for itself.
        let shared = pairs.is_multiple_of(EDGE);
        let mut row_steps = 0;
        let mut sequence_starts = Vec::new();
        for sequence in &walk.sequences {
            sequence_starts.push(row_steps);
            row_steps += if shared { sequence.len() * pairs / EDGE } else { 0 };
        }
        let runs = walk
            .taps
            .iter()
            .map(|taps| {
                let steps = (taps.count * pairs).div_ceil(EDGE);
                if shared {
                    (sequence_starts[taps.sequence] + taps.first * pairs / EDGE, steps)
                } else {
                    row_steps += steps;
                    (row_steps - steps, steps)
                }
            })
            .collect::<Vec<(usize, usize)>>();
        let segments = segments(&walk, |taps: usize| {
            let sequence = walk.taps[taps].sequence;
            if shared {
                (sequence_starts[sequence], walk.sequences[sequence].len() * pairs / EDGE)
            } else {
                runs[taps]
            }
        });
        let group_splits = source.splits / g.groups;
        let panels = panels(&target);
        let mut starts = vec![0];
        for panel in &panels {
            let len = group_splits * g.rows.kernel * row_steps * panel.tiles * TILE;
            starts.push(starts[starts.len() - 1] + len);
        }
        let data = Buffer::zeros(starts[starts.len() - 1]);
        // No chunk across groups, which read different splits; those of a group are as equal as can be.
        let group_panels = panels.len() / g.groups;
        let group_bytes = data.len() / g.groups * size_of::<u32>();
        let chunk_panels = group_panels.div_ceil(group_bytes.div_ceil(CHUNK_BYTES).max(1)).max(1);
        let mut chunks: Vec<usize> =
            (0..panels.len()).filter(|i| (i % group_panels).is_multiple_of(chunk_panels)).collect();
        chunks.push(panels.len());
        let rows = g.rows.kernel;
        Packed {
            walk,
            panels,
            starts,
            chunks,
            runs,
            segments,
            row_steps,
            source,
            target,
            rows,
            group_splits,
            data,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<u32>()
    }

    /// Elements of scratch that each thread needs to compute with them: sums, rows that wait to be pooled, and rows of map 0.
    pub fn scratch_len(&self, entry: Option<&Entry>, pool: Option<&pooling::Geometry>) -> usize {
        let panels = self.chunks.windows(2).map(|chunk| chunk[1] - chunk[0]).max().unwrap_or(0);
        let pool = pool.map_or(0, |pool| Pooled::ring_len(pool, panels));
        SCRATCH_LEN + pool + entry.map_or(0, |entry| Entering::scratch_len(entry, self.rows))
    }

    /// Where the weights of (panel, split of the group, row of the window) begin, in pairs.
    #[inline(always)]
    pub(super) fn row_start(&self, panel: usize, split: usize, rows: usize, r: usize) -> usize {
        self.starts[panel] + (split * rows + r) * self.row_steps * self.panels[panel].tiles * TILE
    }
}

/// The columns of a walk by the weights, (first step, steps), that their taps are among. Columns without taps have no
/// steps.
fn segments(walk: &Walk, weights: impl Fn(usize) -> (usize, usize)) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for (w, column) in walk.columns.iter().enumerate() {
        let (first, steps) = column.map_or((0, 0), |column| weights(column.taps));
        match segments.iter_mut().find(|segment| (segment.first, segment.steps) == (first, steps)) {
            Some(segment) => segment.columns.push(w),
            None => segments.push(Segment { first, steps, columns: vec![w] }),
        }
    }
    segments
}

/// Packs w (K, C/G, R, S) for the forward pass, or else for the input gradient.
pub(in crate::bf16::conv) fn pack(
    ctx: &mut Context,
    g: &Geometry,
    fold: Fold,
    w: &[f32],
    packed: &mut Packed,
    forward: bool,
) {
    let channels = g.input.channels / g.groups / (fold.fold * fold.fold);
    assert_eq!(w.len(), g.output.channels * channels * fold.kernel * fold.kernel, "weights");
    let mut data = std::mem::replace(&mut packed.data, Buffer::zeros(0));
    let kernel = Pack { g: *g, fold, channels, w, packed, forward, data: Ptr::from_mut(&mut data) };
    ctx.run(&kernel);
    packed.data = data;
}

struct Pack<'a> {
    g: Geometry,
    fold: Fold,
    /// C/G of the weights.
    channels: usize,
    w: &'a [f32],
    packed: &'a Packed,
    forward: bool,
    data: Ptr,
}

impl Pack<'_> {
    /// Where the weight that joins a target channel with a source channel through a tap lies; channels count within their
    /// group.
    #[inline(always)]
    fn offset(&self, group: usize, target: usize, source: usize, r: usize, s: usize) -> Option<usize> {
        let (k, c) = if self.forward { (target, source) } else { (source, target) };
        let Fold { kernel, fold } = self.fold;
        let (c, part) = (c % self.channels, c / self.channels);
        let (r, s) = (r * fold + part / fold, s * fold + part % fold);
        let k = group * (self.g.output.channels / self.g.groups) + k;
        (r < kernel && s < kernel).then_some(((k * self.channels + c) * kernel + r) * kernel + s)
    }
}

impl Kernel for Pack<'_> {
    /// Panels.
    fn units(&self) -> usize {
        self.packed.panels.len()
    }

    /// A rounded filter, or parts of 32 filters.
    fn scratch_len(&self) -> usize {
        let plane = self.g.rows.kernel * self.fold.kernel;
        rounded_len((self.channels + 1) * plane).max(2 * EDGE * rounded_len(2 * EDGE * plane))
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32) {
        let p = self.packed;
        let panel = p.panels[unit];
        let rows = self.g.rows.kernel;
        let group = panel.split * self.g.groups / p.target.splits;
        let group_target =
            panel.split % (p.target.splits / self.g.groups) * p.target.split_channels() + panel.first;
        let start = p.starts[unit];
        let len = p.starts[unit + 1] - start;
        // SAFETY: panels' parts of the data are disjoint and within it.
        let to = pairs_mut(unsafe { std::slice::from_raw_parts_mut(self.data.at(start), len) });
        let (pairs, source_channels) = (p.source.split_pairs(), p.source.split_channels());
        // Every tap of every run: (where its first pair's tiles begin, its depth there, row and column of the window, split).
        let taps = (0..p.group_splits).flat_map(|split| (0..rows).map(move |r| (split, r))).flat_map(
            |(split, r)| {
                let row = p.row_start(unit, split, rows, r) - start;
                p.walk.taps.iter().zip(&p.runs).flat_map(move |(taps, &(first_step, _))| {
                    let sequence = &p.walk.sequences[taps.sequence][taps.first..taps.first + taps.count];
                    let run = row + first_step * panel.tiles * TILE;
                    sequence.iter().enumerate().map(move |(i, &s)| (run, i * pairs, split, r, s))
                })
            },
        );
        // Where a pair of source channels goes for row 0 of the panel. What lies beyond the channels stays zero.
        let place = |run: usize, depth: usize| run + depth / EDGE * panel.tiles * TILE + depth % EDGE;
        if self.fold.fold > 1 {
            for (run, depth, split, r, s) in taps {
                for m in 0..panel.valid {
                    for p in 0..pairs {
                        let weight = |half: usize| {
                            let source = split * source_channels + 2 * p + half;
                            let exists = 2 * p + half < source_channels;
                            let offset = exists.then(|| self.offset(group, group_target + m, source, r, s));
                            offset.flatten().map_or(0.0, |offset| self.w[offset])
                        };
                        to[place(run, depth + p) + m * EDGE] = pair(weight(0), weight(1));
                    }
                }
            }
            return;
        }
        // A filter's channels lie one after the other, each a window. Of a tile row's 16 pairs, which follow each other, a pair's
        // channels are neighbours in one filter, or lie in two neighbouring filters; either are rounded first.
        let plane = rows * self.fold.kernel;
        let filter = self.channels * plane;
        let first_filter = group * (self.g.output.channels / self.g.groups);
        let rounded = scratch.cast::<u32>();
        if self.forward {
            for m in 0..panel.valid {
                let w = &self.w[(first_filter + group_target + m) * filter..][..filter];
                // SAFETY: scratch has room for a rounded row, and zeros for a channel that does not exist.
                unsafe {
                    rounded.add(filter / 2).write_bytes(0, plane / 2 + 1);
                    round_values::<S>(w.as_ptr(), filter, rounded);
                }
                for (run, depth, split, r, s) in taps.clone() {
                    let first = split * source_channels * plane + r * self.fold.kernel + s;
                    for (p, count) in within_tiles(depth, 0..pairs) {
                        let to = &mut to[place(run, depth + p) + m * EDGE..][..count];
                        let even = first + 2 * p * plane;
                        let halves = [even, even + plane];
                        // SAFETY: the channels of these pairs are in the rounded row.
                        unsafe { S::gather_pairs(rounded, halves, 2 * plane, count, to.as_mut_ptr()) };
                        if 2 * (p + count) > source_channels {
                            to[count - 1] &= 0xffff;
                        }
                    }
                }
            }
            return;
        }
        let part = panel.valid * plane;
        let row_len = rounded_len(2 * EDGE * plane);
        for split in 0..p.group_splits {
            for first in (0..pairs).step_by(EDGE) {
                let all = first..(first + EDGE).min(pairs);
                for i in 0..2 * all.len() {
                    let row = rounded.wrapping_add(i * row_len);
                    let channel = 2 * first + i;
                    // SAFETY: scratch has room for 32 rounded rows.
                    unsafe {
                        if channel < source_channels {
                            let k = first_filter + split * source_channels + channel;
                            let w = &self.w[k * filter + group_target * plane..][..part];
                            round_values::<S>(w.as_ptr(), part, row);
                        } else {
                            row.write_bytes(0, row_len);
                        }
                    }
                }
                for (run, depth, _, r, s) in taps.clone().filter(|tap| tap.2 == split) {
                    for (p, count) in within_tiles(depth, all.clone()) {
                        let pair = rounded.wrapping_add(2 * (p - first) * row_len);
                        let to = &mut to[place(run, depth + p)..];
                        for m in 0..panel.valid {
                            let to = &mut to[m * EDGE..][..count];
                            let even = m * plane + r * self.fold.kernel + s;
                            let halves = [even, even + 2 * row_len];
                            // SAFETY: these pairs' filters were rounded.
                            unsafe { S::gather_pairs(pair, halves, 4 * row_len, count, to.as_mut_ptr()) };
                        }
                    }
                }
            }
        }
    }
}

/// Cuts pairs of a depth where the tiles that hold them end: the first of each piece, and their number.
fn within_tiles(depth: usize, pairs: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let mut next = pairs.start;
    std::iter::from_fn(move || {
        let first = next;
        next = pairs.end.min(first + EDGE - (depth + first) % EDGE);
        (first < next).then(|| (first, next - first))
    })
}

/// Elements of scratch that so many rounded values take, and one behind them.
fn rounded_len(values: usize) -> usize {
    (values / 2 + 1).next_multiple_of(EDGE)
}

/// The kernel's rows along an axis: forward and backward share the packing by rows of the window.
pub(super) fn rows_of(
    axis: &Axis,
    target: usize,
    forward: bool,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    (0..axis.kernel).filter_map(move |r| {
        let source = if forward { axis.forward(target, r) } else { axis.backward(target, r) };
        Some((r, source?))
    })
}

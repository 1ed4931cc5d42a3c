//! Weights in the order in which the convolution's inner loop reads them.

use super::{CHUNK_BYTES, CHUNK_TAPS};
use crate::arena::Buffer;
use crate::conv::{Fold, Geometry};
use crate::isa::Isa;
use crate::panel::{Panel, panels, tiles};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use crate::tile::Run;

/// A chunk of the reduction: pieces of taps.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub pieces: Vec<Piece>,
}

/// Channels `first..first + len` of tap (r, s); `step` is where its weights start, in steps of the reduction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub r: usize,
    pub s: usize,
    pub first: usize,
    pub len: usize,
    pub step: usize,
}

impl Chunk {
    /// The runs of its pieces, with weights in rows of `width`, in `room`; x is read where `at` says, unless that is on padding.
    /// Where one goes on where another ended, as that of the next column of a single picture, they are one.
    #[inline(always)]
    pub(super) fn runs<'r>(
        &self,
        width: usize,
        room: &'r mut [Run; CHUNK_TAPS],
        at: impl Fn(&Piece) -> Option<usize>,
    ) -> &'r [Run] {
        let mut count = 0;
        let mut end = None;
        for piece in &self.pieces {
            let Some(x) = at(piece) else { continue };
            if end == Some((x, piece.step)) {
                room[count - 1].len += piece.len;
            } else {
                room[count] = Run { x, w: piece.step * width, len: piece.len };
                count += 1;
            }
            end = Some((x + piece.len, piece.step + piece.len));
        }
        &room[..count]
    }
}

/// Cuts the reduction over rows × columns taps of `channels` channels each into chunks of at most `most` steps, without those
/// that the canonical kernel has not.
fn chunks(rows: usize, columns: usize, channels: usize, fold: Fold, most: usize) -> Vec<Chunk> {
    let mut chunks = vec![];
    let (mut pieces, mut steps) = (vec![], 0);
    for r in 0..rows {
        for s in 0..columns {
            for (first, len) in tiles(fold.channels_at(channels, s), most) {
                if steps + len > most || pieces.len() == CHUNK_TAPS {
                    chunks.push(Chunk { pieces: std::mem::take(&mut pieces) });
                    steps = 0;
                }
                pieces.push(Piece { r, s, first, len, step: (r * columns + s) * channels + first });
                steps += len;
            }
        }
    }
    chunks.push(Chunk { pieces });
    chunks
}

/// Weights of one direction: panel by panel, within a panel tap by tap, within a tap channel
/// by channel, one panel-wide row of weights each; columns that no channel has are zero.
#[derive(Debug)]
pub struct Packed {
    pub(super) panels: Vec<Panel>,
    /// Offset of each panel of each group.
    pub(super) offsets: Vec<usize>,
    pub(super) chunks: Vec<Chunk>,
    /// Steps of the reduction: taps × channels read.
    pub(super) steps: usize,
    fold: Fold,
    pub(super) lanes: usize,
    pub(super) data: Buffer,
}

impl Packed {
    fn new(isa: Isa, g: &Geometry, fold: Fold, reads: usize, writes: usize) -> Self {
        let Geometry { groups, rows, columns, .. } = *g;
        let (rows, columns) = (rows.kernel, columns.kernel);
        let lanes = isa.lanes();
        let panels = panels(isa, writes / groups);
        let widest = panels.iter().map(|p| p.vectors * lanes).max().unwrap_or(lanes);
        let steps = rows * columns * (reads / groups);
        let mut offsets = vec![];
        let mut len = 0;
        for _ in 0..groups {
            for p in &panels {
                offsets.push(len);
                len += p.vectors * lanes * steps;
            }
        }
        let most = (CHUNK_BYTES / size_of::<f32>() / widest).max(1);
        let chunks = chunks(rows, columns, reads / groups, fold, most);
        Packed { panels, offsets, chunks, steps, fold, lanes, data: Buffer::zeros(len) }
    }

    /// Room for the weights of the forward pass.
    pub fn for_forward(isa: Isa, g: &Geometry, fold: Fold) -> Self {
        Packed::new(isa, g, fold, g.c, g.k)
    }

    /// Room for the weights of the input gradient.
    pub fn for_backward(isa: Isa, g: &Geometry) -> Self {
        Packed::new(isa, g, Fold::none(g.columns.kernel), g.k, g.c)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }
}

/// Packs canonical weights `w` (K, C/G, R, S) for the forward pass, or else for the input gradient.
pub(in crate::conv) fn pack(ctx: &mut Context, g: &Geometry, w: &[f32], packed: &mut Packed, backward: bool) {
    let fold = packed.fold;
    let canonical_channels = g.c / g.groups / fold.fold;
    assert_eq!(w.len(), g.k * canonical_channels * g.rows.kernel * fold.kernel, "weights");
    let reads = if backward { g.k } else { g.c } / g.groups;
    assert_eq!(packed.lanes, ctx.isa().lanes(), "packed for another instruction set");
    assert_eq!(packed.steps, g.taps() * reads, "packed for another geometry");
    let data = Ptr::from_mut(&mut packed.data);
    ctx.run(&Pack { g: *g, w, backward, packed, data });
}

struct Pack<'a> {
    g: Geometry,
    w: &'a [f32],
    backward: bool,
    packed: &'a Packed,
    /// The packed weights.
    data: Ptr,
}

impl Kernel for Pack<'_> {
    /// A tap of a panel of a group.
    fn units(&self) -> usize {
        self.packed.offsets.len() * self.g.taps()
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let (Pack { g, w, .. }, fold) = (self, self.packed.fold);
        let (i, tap) = (unit / g.taps(), unit % g.taps());
        let (r, s) = (tap / g.columns.kernel, tap % g.columns.kernel);
        let panels = &self.packed.panels;
        let (group, panel) = (i / panels.len(), panels[i % panels.len()]);
        let width = panel.vectors * S::LANES;
        let (kg, cg) = (g.k / g.groups, g.c / g.groups);
        let reads = if self.backward { kg } else { cg };
        let channels = cg / fold.fold;
        for read in 0..reads {
            let row = self.packed.offsets[i] + (tap * reads + read) * width;
            for lane in 0..panel.valid {
                let write = panel.first + lane;
                let (k, c) = if self.backward { (read, write) } else { (write, read) };
                let value = match fold.canonical(channels, c, s) {
                    Some((c, s)) => {
                        w[(((group * kg + k) * channels + c) * g.rows.kernel + r) * fold.kernel + s]
                    }
                    None => 0.0,
                };
                // SAFETY: the row is within the panel, whose room `Packed::new` added up; this unit owns it.
                unsafe { *self.data.at(row + lane) = value };
            }
        }
    }
}

//! Output channels are cut into panels of whole vectors; weights are stored panel by panel so that the inner loops read
//! them in order.

use crate::isa::Isa;
use crate::simd::Simd;

/// A run of output channels that a tile computes together: `vectors` full vectors wide in packed weights, of which
/// `valid` channels exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    /// First channel, counted within its group.
    pub first: usize,
    /// Channels that exist.
    pub valid: usize,
    /// Width in vectors.
    pub vectors: usize,
}

/// Cuts `channels` into panels as equal as possible, none wider than the instruction set's widest.
pub fn panels(isa: Isa, channels: usize) -> Vec<Panel> {
    let lanes = isa.lanes();
    let vectors = channels.div_ceil(lanes);
    let count = vectors.div_ceil(isa.panel_vectors()).max(1);
    let mut first = 0;
    (0..count)
        .map(|i| {
            // The first `vectors % count` panels are one vector wider.
            let width = vectors / count + usize::from(i < vectors % count);
            let valid = (width * lanes).min(channels - first);
            let panel = Panel { first, valid, vectors: width };
            first += valid;
            panel
        })
        .collect()
}

/// Cuts `rows` into tiles as equal as possible, none higher than `most`; yields (first, height).
#[inline(always)]
pub(crate) fn tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    let (base, longer) = (rows.checked_div(count).unwrap_or(0), rows.checked_rem(count).unwrap_or(0));
    (0..count).map(move |i| (i * base + i.min(longer), base + usize::from(i < longer)))
}

/// Copies a panel's columns of `rows` rows at `stride` to consecutive panel-wide rows, zero where no channel is.
#[inline(always)]
pub(crate) unsafe fn copy_rows<S: Simd>(
    from: *const f32,
    stride: usize,
    panel: Panel,
    to: *mut f32,
    rows: usize,
) {
    let width = panel.vectors * S::LANES;
    // SAFETY: the caller's promise that rows and columns are within both arrays.
    unsafe {
        for n in 0..rows {
            let (from, to) = (from.add(n * stride), to.add(n * width));
            for v in 0..panel.vectors {
                let done = v * S::LANES;
                let value = if panel.valid >= done + S::LANES {
                    S::load(from.add(done))
                } else {
                    S::load_first(from.wrapping_add(done), panel.valid.saturating_sub(done))
                };
                S::store(to.add(done), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_every_channel_once() {
        for isa in Isa::all() {
            for channels in [1, 3, 15, 16, 17, 48, 63, 64, 65, 96, 128, 192, 256, 384, 1000] {
                let panels = panels(isa, channels);
                let mut next = 0;
                for p in &panels {
                    assert_eq!(p.first, next);
                    assert!(p.valid > 0 && p.valid <= p.vectors * isa.lanes());
                    assert!(p.vectors <= isa.panel_vectors());
                    next += p.valid;
                }
                assert_eq!(next, channels, "{isa:?}");
            }
        }
    }

    #[test]
    fn tiles_cover_every_row_once() {
        for rows in 0..70 {
            for most in 1..9 {
                let all: Vec<usize> = tiles(rows, most).flat_map(|(first, n)| first..first + n).collect();
                assert_eq!(all, (0..rows).collect::<Vec<_>>());
                assert!(tiles(rows, most).all(|(_, n)| n <= most && n > 0));
            }
        }
    }
}

//! Rows of pixels as they are stored, three bytes each.

use crate::parallel::{Context, Kernel};
use crate::simd::{Simd, prefetch};

/// Bytes of a pixel.
const PIXEL: usize = 3;
/// Bytes of a line of memory.
const LINE: usize = 64;

/// Copies a row of pixels, (W, 3), if `mirrored` from the last to the first, and asks for what is read `next` meanwhile: pictures lie
/// wherever they were packed, and their rows are too short for the processor to foresee more than the row it is in.
pub fn copy_row(ctx: &mut Context, from: &[u8], mirrored: bool, to: &mut [u8], next: &[u8]) {
    assert!(from.len() == to.len() && from.len().is_multiple_of(PIXEL), "rows of whole pixels");
    ctx.run(&CopyRow { from, mirrored, to: to.as_mut_ptr() as usize, next });
}

struct CopyRow<'a> {
    from: &'a [u8],
    mirrored: bool,
    /// Address of as many bytes.
    to: usize,
    next: &'a [u8],
}

impl Kernel for CopyRow<'_> {
    fn units(&self) -> usize {
        1
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, _unit: usize, _scratch: *mut f32) {
        let (from, to, len) = (self.from.as_ptr(), self.to as *mut u8, self.from.len());
        for line in self.next.chunks(LINE) {
            prefetch(line.as_ptr().cast());
        }
        // SAFETY: both rows have `len` bytes; sixteen are read and written while so many are left on both sides.
        unsafe {
            if !self.mirrored {
                std::ptr::copy_nonoverlapping(from, to, len);
                return;
            }
            let mut at = 0;
            while at + 16 <= len {
                S::mirror_pixels(from.add(len - at - 16), to.add(at));
                at += 15;
            }
            while at < len {
                std::ptr::copy_nonoverlapping(from.add(len - at - PIXEL), to.add(at), PIXEL);
                at += PIXEL;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn a_row_is_copied_forwards_and_backwards() {
        for isa in Isa::all() {
            let mut ctx = Context::new(isa, 1);
            for width in (0..40).chain([227, 256]) {
                let row: Vec<u8> = (0..width * 3).map(|i| (i * 7 % 251) as u8).collect();
                let backwards: Vec<u8> = row.rchunks_exact(3).flatten().copied().collect();
                for (mirrored, want) in [(false, &row), (true, &backwards)] {
                    // Nothing beyond the row is written.
                    let mut to = vec![255; row.len() + 16];
                    copy_row(&mut ctx, &row, mirrored, &mut to[..width * 3], &row);
                    assert_eq!(&to[..row.len()], want, "{isa:?}, {width} pixels, mirrored: {mirrored}");
                    assert!(to[row.len()..].iter().all(|b| *b == 255));
                }
            }
        }
    }
}

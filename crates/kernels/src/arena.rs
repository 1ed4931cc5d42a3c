//! One aligned allocation for everything that a plan holds, and regions of it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};

/// Elements that every region's start is a multiple of: one cache line, so that no aligned vector straddles two.
const LINE: usize = 16;

/// A zeroed slice of f32, aligned to huge pages when it is large and to a cache line otherwise. Its pages are the system's
/// zero pages until they are written, so what a plan holds takes memory only when the first step comes to it.
pub struct Buffer {
    start: std::ptr::NonNull<f32>,
    len: usize,
    /// What was allocated, and where: more than the slice, so that its start can be aligned within.
    allocated: (std::ptr::NonNull<u8>, Layout),
}

// SAFETY: a `Buffer` owns its memory, like a `Vec<f32>`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        const HUGE_PAGE: usize = 2 << 20;
        // Up to this alignment the allocator takes zero pages as they are; beyond, it would write zeros itself.
        const PLAIN_ALIGN: usize = 16;
        if len == 0 {
            // Nothing is allocated, so that a buffer can be taken out of its place for a while within a step.
            let nothing = (std::ptr::NonNull::dangling(), Layout::new::<()>());
            return Buffer { start: std::ptr::NonNull::dangling(), len, allocated: nothing };
        }
        let bytes = len * size_of::<f32>();
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 64 };
        let layout = Layout::from_size_align(bytes + align, PLAIN_ALIGN)
            .expect("a buffer larger than the address space");
        // SAFETY: the layout is not empty.
        let allocated = unsafe { alloc_zeroed(layout) };
        let Some(allocated) = std::ptr::NonNull::new(allocated) else { handle_alloc_error(layout) };
        // SAFETY: less than `align` further on, there are still `bytes` bytes.
        let start = unsafe { allocated.add(allocated.align_offset(align)) }.cast::<f32>();
        #[cfg(target_os = "linux")]
        if align == HUGE_PAGE {
            // SAFETY: advice on memory that this buffer owns; a refusal changes nothing.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Buffer { start, len, allocated: (allocated, layout) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (start, layout) = self.allocated;
        if layout.size() > 0 {
            // SAFETY: allocated with this layout in `zeros`.
            unsafe { dealloc(start.as_ptr(), layout) };
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialized elements that this buffer owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Buffer({} elements)", self.len)
    }
}

/// A zeroed slice of halves of such elements, as the bits of bf16 are.
#[derive(Debug)]
pub struct Halves {
    memory: Buffer,
    len: usize,
}

impl Halves {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Halves {
        Halves { memory: Buffer::zeros(len.div_ceil(2)), len }
    }
}

impl Deref for Halves {
    type Target = [u16];
    fn deref(&self) -> &[u16] {
        // SAFETY: two halves an element, of any bit pattern and less alignment.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Halves {
    fn deref_mut(&mut self) -> &mut [u16] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}

/// A part of an [`Arena`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    start: usize,
    len: usize,
}

impl Region {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `len` elements.
    pub fn first(&self, len: usize) -> Region {
        assert!(len <= self.len, "{len} elements of a region of {}", self.len);
        Region { start: self.start, len }
    }

    /// The first `len` elements, or all if there are fewer.
    pub fn at_most(&self, len: usize) -> Region {
        Region { start: self.start, len: self.len.min(len) }
    }

    fn overlaps(&self, other: &Region) -> bool {
        self.len > 0
            && other.len > 0
            && self.start < other.start + other.len
            && other.start < self.start + self.len
    }
}

/// Adds up regions before anything is allocated.
#[derive(Debug, Default)]
pub struct Layouter {
    len: usize,
}

impl Layouter {
    /// Room for `len` elements.
    pub fn reserve(&mut self, len: usize) -> Region {
        let region = Region { start: self.len, len };
        self.len = (self.len + len).next_multiple_of(LINE);
        region
    }

    /// Bytes reserved so far.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<f32>()
    }

    /// Allocates the arena.
    pub fn build(self) -> Arena {
        Arena(Buffer::zeros(self.len))
    }
}

/// One allocation, and access to disjoint regions of it.
#[derive(Debug)]
pub struct Arena(Buffer);

impl Arena {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.len() * size_of::<f32>()
    }

    /// One region.
    pub fn get(&self, region: Region) -> &[f32] {
        &self.0[region.start..region.start + region.len]
    }

    /// One region, to write.
    pub fn get_mut(&mut self, region: Region) -> &mut [f32] {
        &mut self.0[region.start..region.start + region.len]
    }

    /// Several regions at once, some to read and some to write. Panics if one that is written overlaps another.
    pub fn split<const R: usize, const W: usize>(
        &mut self,
        read: [Region; R],
        write: [Region; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        for (i, w) in write.iter().enumerate() {
            let others = read.iter().chain(&write[i + 1..]);
            assert!(others.clone().all(|other| !w.overlaps(other)), "regions overlap");
        }
        assert!(
            read.iter().chain(&write).all(|r| r.start + r.len <= self.0.len),
            "a region of another arena"
        );
        let base = self.0.start.as_ptr();
        // SAFETY: all regions are within the buffer, and those written overlap no other; the lifetimes are bounded by
        // the mutable borrow of the arena.
        unsafe {
            (
                read.map(|r| std::slice::from_raw_parts(base.add(r.start), r.len)),
                write.map(|r| std::slice::from_raw_parts_mut(base.add(r.start), r.len)),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_zero_and_apart() {
        let mut layouter = Layouter::default();
        let (a, b, c) = (layouter.reserve(5), layouter.reserve(0), layouter.reserve(5_000_000));
        let mut arena = layouter.build();
        assert!(arena.get(c).iter().all(|&x| x == 0.0));
        assert_eq!(arena.get(c).as_ptr() as usize % 64, 0);
        let ([a_read, _], [c_write]) = arena.split([a, b], [c]);
        assert_eq!((a_read.len(), c_write.len()), (5, 5_000_000));
        c_write.fill(1.0);
        assert_eq!(arena.get(a), [0.0; 5]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn a_written_region_is_not_shared() {
        let mut layouter = Layouter::default();
        let a = layouter.reserve(32);
        layouter.build().split([a.first(1)], [a]);
    }
}

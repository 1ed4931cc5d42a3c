//! From a kernel written once to all threads running its spelling for one instruction set.

use crate::arena::Buffer;
use crate::isa::{Isa, Tier};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Simd};
use crate::threads::Threads;

/// What kernels run on: an instruction set, threads, and for each thread some scratch memory.
pub struct Context {
    isa: Isa,
    threads: Threads,
    scratch: Vec<Buffer>,
}

impl Context {
    /// Kernels for `isa` on `threads` threads.
    pub fn new(isa: Isa, threads: usize) -> Self {
        let threads = Threads::new(threads);
        let scratch = (0..threads.count()).map(|_| Buffer::zeros(0)).collect();
        Context { isa, threads, scratch }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// The threads, for other work between kernels.
    pub fn threads_mut(&mut self) -> &mut Threads {
        &mut self.threads
    }

    /// Makes sure that each thread has at least `len` elements of scratch. Plans call it beforehand, so that no kernel
    /// allocates.
    pub fn reserve_scratch(&mut self, len: usize) {
        for scratch in &mut self.scratch {
            if scratch.len() < len {
                *scratch = Buffer::zeros(len);
            }
        }
    }

    /// Bytes of scratch that all threads hold.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.iter().map(|s| s.len() * size_of::<f32>()).sum()
    }

    /// Runs `work` on every item, the items shared out among the threads.
    pub fn for_each<T: Send>(&mut self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        self.threads.for_each(items, |item, _| work(item));
    }

    /// Cuts `data` into chunks of `len` and runs `work(index, chunk)` on each, shared out among the threads.
    pub fn for_each_chunk<T: Send>(
        &mut self,
        data: &mut [T],
        len: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        struct Base<T>(*mut T);
        // SAFETY: each chunk is touched by one unit only.
        unsafe impl<T: Send> Sync for Base<T> {}
        impl<T> Base<T> {
            fn at(&self, i: usize) -> *mut T {
                self.0.wrapping_add(i)
            }
        }
        let (base, total) = (Base(data.as_mut_ptr()), data.len());
        let cut = Cut::new(total, len, size_of::<T>());
        self.threads.run(cut.units(), &|unit, _| {
            for chunk in cut.chunks(unit) {
                let (first, len) = cut.part(chunk);
                // SAFETY: chunks are within the slice and disjoint, and each unit runs once.
                work(chunk, unsafe { std::slice::from_raw_parts_mut(base.at(first), len) });
            }
        });
    }

    /// As [`Context::for_each_chunk`], with the work compiled for the instruction set that this context has: loops over
    /// arrays become its vectors, if everything in [`ChunkWork::chunk`] is inlined.
    pub fn for_each_chunk_in_vectors<T: Send>(
        &mut self,
        data: &mut [T],
        len: usize,
        work: &impl ChunkWork<T>,
    ) {
        struct Chunks<'a, T, W> {
            base: usize,
            cut: Cut,
            work: &'a W,
            of: std::marker::PhantomData<fn(T)>,
        }
        impl<T: Send, W: ChunkWork<T>> Kernel for Chunks<'_, T, W> {
            fn units(&self) -> usize {
                self.cut.units()
            }

            #[inline(always)]
            unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
                for chunk in self.cut.chunks(unit) {
                    let (first, len) = self.cut.part(chunk);
                    // SAFETY: chunks are within the slice and disjoint, and each unit runs once.
                    let part =
                        unsafe { std::slice::from_raw_parts_mut((self.base as *mut T).add(first), len) };
                    self.work.chunk(chunk, part);
                }
            }
        }
        let cut = Cut::new(data.len(), len, size_of::<T>());
        self.run(&Chunks { base: data.as_mut_ptr() as usize, cut, work, of: std::marker::PhantomData });
    }

    /// Runs every unit of a kernel.
    pub(crate) fn run<K: Kernel>(&mut self, kernel: &K) {
        self.reserve_scratch(kernel.scratch_len());
        let tier = self.isa.tier();
        let bases = ScratchBases(self.scratch.as_mut_ptr());
        self.threads.run(kernel.units(), &|unit, thread| {
            // SAFETY: `thread` is below the number of scratch buffers and no two units run on it at once, so this
            // is the only reference to that buffer; `Isa` proves the instructions; the kernel's own contract holds
            // because its constructor checked the slices.
            unsafe {
                let scratch = (*bases.get().add(thread)).as_mut_ptr();
                match tier {
                    #[cfg(target_arch = "x86_64")]
                    Tier::Avx512 => run_avx512(kernel, unit, scratch),
                    #[cfg(target_arch = "x86_64")]
                    Tier::Avx2 => run_avx2(kernel, unit, scratch),
                    Tier::Portable => kernel.unit::<Portable>(unit, scratch),
                }
            }
        });
    }
}

/// How a slice is cut into chunks, and those into units: a unit is some chunks, because handing one out costs as much as
/// working on a few hundred bytes.
#[derive(Clone, Copy)]
struct Cut {
    total: usize,
    len: usize,
    together: usize,
}

impl Cut {
    /// Bytes of a unit, at least.
    const UNIT_BYTES: usize = 16 << 10;

    fn new(total: usize, len: usize, element_bytes: usize) -> Cut {
        let len = len.max(1);
        Cut { total, len, together: (Cut::UNIT_BYTES / element_bytes.max(1) / len).max(1) }
    }

    fn units(&self) -> usize {
        self.total.div_ceil(self.len * self.together)
    }

    /// Numbers of a unit's chunks.
    #[inline(always)]
    fn chunks(&self, unit: usize) -> std::ops::Range<usize> {
        unit * self.together..((unit + 1) * self.together).min(self.total.div_ceil(self.len))
    }

    /// Where a chunk begins, and its length.
    #[inline(always)]
    fn part(&self, chunk: usize) -> (usize, usize) {
        let first = chunk * self.len;
        (first, self.len.min(self.total - first))
    }
}

struct ScratchBases(*mut Buffer);
// SAFETY: each thread dereferences its own element only (see `Context::run`).
unsafe impl Sync for ScratchBases {}

impl ScratchBases {
    fn get(&self) -> *mut Buffer {
        self.0
    }
}

/// Safe work on one chunk of some data; to be marked `#[inline(always)]` (see [`Context::for_each_chunk_in_vectors`]).
pub trait ChunkWork<T>: Sync {
    /// Works on chunk number `index`.
    fn chunk(&self, index: usize, chunk: &mut [T]);
}

/// Work that is cut into units which write disjoint memory.
pub(crate) trait Kernel: Sync {
    /// The number of units.
    fn units(&self) -> usize;

    /// Elements of scratch that a unit needs.
    fn scratch_len(&self) -> usize {
        0
    }

    /// Computes one unit.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `scratch` has `scratch_len` elements that nothing else uses; no
    /// two threads compute the same unit at once.
    unsafe fn unit<S: Simd>(&self, unit: usize, scratch: *mut f32);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: &K, unit: usize, scratch: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe { kernel.unit::<Avx512>(unit, scratch) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: &K, unit: usize, scratch: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe { kernel.unit::<Avx2>(unit, scratch) }
}

/// A pointer that threads share; what each may touch is the kernel's contract.
#[derive(Clone, Copy)]
pub(crate) struct Ptr(*mut f32);
// SAFETY: kernels only touch disjoint parts through it, each part within the slice it was made from.
unsafe impl Send for Ptr {}
// SAFETY: as above.
unsafe impl Sync for Ptr {}

impl Ptr {
    pub(crate) fn from_mut(slice: &mut [f32]) -> Self {
        Ptr(slice.as_mut_ptr())
    }

    /// To halves of pairs, to be cast.
    pub(crate) fn from_bits(slice: &mut [u16]) -> Self {
        Ptr(slice.as_mut_ptr().cast())
    }

    /// The pointer `offset` elements on. Sound as long as the result stays within the slice.
    #[inline(always)]
    pub(crate) fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

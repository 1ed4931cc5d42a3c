//! The update of parameters: of whole tensors here, and tile by tile in [`crate::linear::backward`].

use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;

/// The update of v ← μ·v − wd·ε·w − ε·ḡ; w ← w + v (paper §5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// ε; zero leaves w and v as they are.
    pub lr: f32,
    /// wd
    pub decay: f32,
    /// μ
    pub momentum: f32,
}

/// Elements of a unit.
const UNIT: usize = 1 << 15;

/// v ← μ·v − wd·ε·w − ε·g; w ← w + v (paper §5). Returns whether all weights that moved are finite. With ε = 0 nothing
/// moves.
pub fn update(ctx: &mut Context, update: Update, g: &[f32], w: &mut [f32], v: &mut [f32]) -> bool {
    assert!(g.len() == w.len() && v.len() == w.len(), "parameters");
    if update.lr == 0.0 {
        return true;
    }
    let mut flags = [0.0f32; 1024];
    let unit = UNIT.max(w.len().div_ceil(flags.len()));
    let kernel = Sgd {
        update,
        len: w.len(),
        unit,
        g,
        w: Ptr::from_mut(w),
        v: Ptr::from_mut(v),
        flags: Ptr::from_mut(&mut flags),
    };
    ctx.run(&kernel);
    flags.iter().all(|f| *f == 0.0)
}

/// Σ a², in f64 over parts of fixed size, so that it does not depend on the number of threads.
pub fn norm_squared(ctx: &mut Context, a: &[f32]) -> f64 {
    let mut parts: [(usize, f64); 1024] = std::array::from_fn(|i| (i, 0.0));
    let unit = UNIT.max(a.len().div_ceil(parts.len()));
    let used = &mut parts[..a.len().div_ceil(unit)];
    ctx.for_each(used, |(i, sum)| {
        let part = &a[*i * unit..][..unit.min(a.len() - *i * unit)];
        // Eight sums side by side, which compilers turn into vectors.
        let mut lanes = [0.0f64; 8];
        let mut runs = part.chunks_exact(8);
        for run in &mut runs {
            for (lane, &x) in lanes.iter_mut().zip(run) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        let rest: f64 = runs.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        *sum = lanes.iter().sum::<f64>() + rest;
    });
    used.iter().map(|(_, sum)| sum).sum()
}

struct Sgd<'a> {
    update: Update,
    len: usize,
    /// Elements of a unit.
    unit: usize,
    g: &'a [f32],
    w: Ptr,
    v: Ptr,
    /// One element a unit: not zero if a weight became infinite or NaN.
    flags: Ptr,
}

impl Kernel for Sgd<'_> {
    fn units(&self) -> usize {
        self.len.div_ceil(self.unit)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let first = unit * self.unit;
        let end = (first + self.unit).min(self.len);
        // SAFETY: the unit's elements are within all three arrays, and its flag within the flags.
        unsafe {
            let mut mover = Mover::<S>::new(self.update);
            mover.step(self.g.as_ptr().add(first), self.w.at(first), self.v.at(first), end - first);
            *self.flags.at(unit) = mover.check();
        }
    }
}

/// Moves weights, and notices when one stops being finite.
pub(crate) struct Mover<S: Simd> {
    momentum: S::V,
    /// −ε
    lr: S::V,
    /// −wd·ε
    decay: S::V,
    /// Finite · 0 = 0, and anything else NaN.
    check: S::V,
}

impl<S: Simd> Mover<S> {
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    pub unsafe fn new(update: Update) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Mover {
                momentum: S::splat(update.momentum),
                lr: S::splat(-update.lr),
                decay: S::splat(-update.lr * update.decay),
                check: S::zero(),
            }
        }
    }

    #[inline(always)]
    unsafe fn one(&mut self, g: S::V, w: S::V, v: S::V) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let v = S::fma(self.lr, g, S::fma(self.decay, w, S::mul(self.momentum, v)));
            let w = S::add(w, v);
            self.check = S::fma(w, S::zero(), self.check);
            (w, v)
        }
    }

    /// Moves `len` weights.
    ///
    /// # Safety
    /// All three arrays have `len` elements; the processor has `S`.
    #[inline(always)]
    pub unsafe fn step(&mut self, g: *const f32, w: *mut f32, v: *mut f32, len: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut i = 0;
            while i + S::LANES <= len {
                let (wi, vi) = self.one(S::load(g.add(i)), S::load(w.add(i)), S::load(v.add(i)));
                S::store(w.add(i), wi);
                S::store(v.add(i), vi);
                i += S::LANES;
            }
            let n = len - i;
            if n > 0 {
                let (wi, vi) = self.one(
                    S::load_first(g.add(i), n),
                    S::load_first(w.add(i), n),
                    S::load_first(v.add(i), n),
                );
                S::store_first(w.add(i), wi, n);
                S::store_first(v.add(i), vi, n);
            }
        }
    }

    /// Zero if every weight that moved is finite.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    pub unsafe fn check(&self) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: no vector is longer than the array.
        unsafe { S::store(lanes.as_mut_ptr(), self.check) };
        lanes.iter().sum()
    }
}

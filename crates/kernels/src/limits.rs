//! What the machine can do at best, measured in the same run as what is compared with it: the rate of the inner loop on
//! operands in L1, and the rate at which memory is read and written.

use crate::arena::Buffer;
use crate::bf16::engine::{C_LEN, Engine, Left, Matrix, MatrixKernel, Product, Right, Run, run};
use crate::bf16::{EDGE, pair, pairs};
use crate::parallel::{Context, Kernel, Ptr};
use crate::simd::Simd;
use std::time::Instant;

/// Products of a unit of the loop.
const PRODUCTS: usize = 4;
/// Steps of a run: 8 KiB of either operand.
const STEPS: usize = 4;
/// Runs of a product, all over the same operands: a sum so long that what it costs to load and store it, on tiles half of a
/// microsecond, is next to nothing. No stage can do without; but it is a stage's to keep that small.
const RUNS: usize = 256;

/// FLOP/s of the engine's product on random operands that stay in L1, on all threads.
pub fn bf16_flop_s(ctx: &mut Context, engine: Engine) -> f64 {
    // Aligned as everything that kernels read: rows of tiles that straddle lines halve the rate.
    let random = |seed: u32| {
        let mut random = Random(seed);
        let mut operand = Buffer::zeros(STEPS * 2 * EDGE * EDGE);
        operand.fill_with(|| f32::from_bits(pair(random.next(), random.next())));
        operand
    };
    let kernel = Tiles { a: random(1), b: random(2), units: 8 * ctx.threads() };
    // Once untimed: threads that have parked take as long to wake as some units.
    run(ctx, engine, &kernel);
    let start = Instant::now();
    run(ctx, engine, &kernel);
    let step = 2.0 * 32.0f64.powi(3);
    (kernel.units * PRODUCTS * RUNS * STEPS) as f64 * step / start.elapsed().as_secs_f64()
}

struct Tiles {
    a: Buffer,
    b: Buffer,
    units: usize,
}

impl MatrixKernel for Tiles {
    fn units(&self) -> usize {
        self.units
    }

    fn scratch_len(&self) -> usize {
        C_LEN
    }

    #[inline(always)]
    unsafe fn unit<M: Matrix>(&self, _unit: usize, scratch: *mut f32) {
        let tile = 2 * EDGE * EDGE;
        let shape = Product {
            rows: 2,
            columns: 2,
            left: Left::Tiles,
            right: Right::Tiles,
            a_step: tile,
            b_step: tile,
            last: EDGE,
        };
        let runs = [Run { a: 0, b: 0, steps: STEPS }; RUNS];
        for i in 0..PRODUCTS {
            // SAFETY: both operands have this many steps, and scratch holds C.
            unsafe {
                M::product(&shape, &runs, pairs(&self.a).as_ptr(), pairs(&self.b).as_ptr(), scratch, i > 0)
            };
        }
    }
}

/// Numbers from −1 to 1.
struct Random(u32);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 16) as f32 / 32_768.0 - 1.0
    }
}

/// FLOP/s of multiply-adds of random numbers in registers, on all threads.
pub fn f32_flop_s(ctx: &mut Context) -> f64 {
    let mut random = Random(1);
    let [mut terms, mut factor] = [CHAINS + 1, 1].map(|vectors| Buffer::zeros(vectors * WIDEST));
    terms.fill_with(|| random.next());
    factor.fill(-1.0);
    let kernel = MultiplyAdd { terms, factor, units: 8 * ctx.threads() };
    // Once untimed: threads that have parked take as long to wake as some units.
    ctx.run(&kernel);
    let start = Instant::now();
    ctx.run(&kernel);
    let lanes = ctx.isa().lanes();
    (kernel.units * ROUNDS * CHAINS * lanes * 2) as f64 / start.elapsed().as_secs_f64()
}

/// Independent sums: enough to hide the latency of a multiply-add.
const CHAINS: usize = 12;
/// Multiply-adds of each in a unit.
const ROUNDS: usize = 20_000;
/// Elements of the widest vector.
const WIDEST: usize = 16;

struct MultiplyAdd {
    /// What each sum begins with, and what is added to all.
    terms: Buffer,
    /// What they are multiplied by, −1. The compiler does not see it: it would subtract.
    factor: Buffer,
    units: usize,
}

impl Kernel for MultiplyAdd {
    fn units(&self) -> usize {
        self.units
    }

    fn scratch_len(&self) -> usize {
        CHAINS * WIDEST
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, _unit: usize, scratch: *mut f32) {
        // SAFETY: scratch holds every sum, and there are terms for all and one vector more.
        unsafe {
            let terms = self.terms.as_ptr();
            let mut sums = [S::zero(); CHAINS];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(terms.add(i * WIDEST));
            }
            // s ← b − s: every bit of a sum goes on changing, where a factor below 1 would bring it to rest.
            let (a, b) = (S::load(self.factor.as_ptr()), S::load(terms.add(CHAINS * WIDEST)));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, a, b);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                S::store(scratch.add(i * WIDEST), sum);
            }
        }
    }
}

/// Bytes a second of y ← y/2 + x over arrays that no cache holds (two reads and a write), on all threads.
pub fn stream_bytes_s(ctx: &mut Context, x: &[f32], y: &mut [f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "arrays");
    let bytes = (3 * size_of_val(x)) as f64;
    let start = Instant::now();
    ctx.run(&Stream { x, y: Ptr::from_mut(y) });
    bytes / start.elapsed().as_secs_f64()
}

/// Elements of a unit.
const UNIT: usize = 1 << 16;

struct Stream<'a> {
    x: &'a [f32],
    y: Ptr,
}

impl Kernel for Stream<'_> {
    fn units(&self) -> usize {
        self.x.len().div_ceil(UNIT)
    }

    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, _scratch: *mut f32) {
        let end = ((unit + 1) * UNIT).min(self.x.len());
        let mut i = unit * UNIT;
        // SAFETY: a unit's elements are its own and within both arrays.
        unsafe {
            let half = S::splat(0.5);
            while i + S::LANES <= end {
                let y = self.y.at(i);
                S::store(y, S::fma(half, S::load(y), S::load(self.x.as_ptr().add(i))));
                i += S::LANES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn rates_are_those_of_a_processor() {
        let mut ctx = Context::new(Isa::all()[0], 1);
        let engines = Engine::all();
        let engine = *engines.iter().find(|e| e.isa() == ctx.isa()).unwrap();
        let (x, mut y) = (vec![1.0; 100_000], vec![2.0; 100_000]);
        let stream = stream_bytes_s(&mut ctx, &x, &mut y);
        for rate in [bf16_flop_s(&mut ctx, engine), f32_flop_s(&mut ctx), stream] {
            assert!(rate > 1e7 && rate < 1e16, "{rate}");
        }
        assert!(y.iter().all(|y| *y == 2.0));
    }
}

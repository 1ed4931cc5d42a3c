//! A fixed set of threads that share out numbered units of work.
//!
//! Every thread begins with an equal share of consecutive units, whose data mostly lie side by side, and takes them in order; one
//! that is done takes the last ones of others. So which thread takes a unit is left to chance; units write disjoint results
//! and no sum crosses units, so the results do not depend on it, nor on the number of threads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// How long a thread without work spins before it parks: about 50 µs, longer than the gaps within a step.
const SPINS: u32 = 20_000;

/// A job as the threads see it: run unit `u` on thread `t`.
type Job = *const (dyn Fn(usize, usize) + Sync);

struct Shared {
    /// Odd while a job runs, even between jobs; rises by one at each start and each end.
    round: AtomicUsize,
    /// What is left of each thread's share.
    shares: Vec<Share>,
    /// Threads that have not yet finished the running job.
    busy: AtomicUsize,
    panicked: AtomicBool,
    quit: AtomicBool,
    job: Mutex<Option<JobPointer>>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct JobPointer(Job);

// SAFETY: the pointee is `Sync`, and `Threads::run` keeps it alive until every thread has finished with it.
unsafe impl Send for JobPointer {}

/// Units that are still to be taken: the first in the low half, the end in the high one. Threads that look at different shares
/// do not meet in a cache line, nor in the one that is fetched along with it.
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn of(units: Range<usize>) -> u64 {
        units.start as u64 | (units.end as u64) << 32
    }

    /// The first unit, or the last.
    fn take(&self, first: bool) -> Option<usize> {
        let left = |share: u64| (share & u64::from(u32::MAX)) as usize..(share >> 32) as usize;
        let less = |share: u64| {
            let Range { start, end } = left(share);
            (start < end).then(|| Share::of(if first { start + 1..end } else { start..end - 1 }))
        };
        // What else a unit needs was made known before the job began.
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok().map(left)?;
        Some(if first { taken.start } else { taken.end - 1 })
    }
}

/// The threads. Dropping it ends them.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// `count` threads in all (at least one), the calling thread among them.
    pub fn new(count: usize) -> Self {
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            shares: (0..count.max(1)).map(|_| Share(AtomicU64::new(0))).collect(),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            job: Mutex::new(None),
            wake: Condvar::new(),
        });
        let workers = (1..count.max(1))
            .map(|thread| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("alexnet-{thread}"))
                    .spawn(move || work(&shared, thread))
                    .expect("the system refused to start a thread")
            })
            .collect();
        Threads { shared, workers }
    }

    /// The number of threads.
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `work(item, thread)` on every item, the items shared out among the threads; see [`Threads::run`].
    pub fn for_each<T: Send>(&mut self, items: &mut [T], work: impl Fn(&mut T, usize) + Sync) {
        struct Items<T>(*mut T);
        // SAFETY: each item is touched by one unit only.
        unsafe impl<T: Send> Sync for Items<T> {}
        impl<T> Items<T> {
            fn at(&self, i: usize) -> *mut T {
                self.0.wrapping_add(i)
            }
        }
        let base = Items(items.as_mut_ptr());
        // SAFETY: units are below the length and each runs once, so the references are valid and unique.
        self.run(items.len(), &|unit, thread| work(unsafe { &mut *base.at(unit) }, thread));
    }

    /// Runs `job(unit, thread)` for every unit in `0..units`, and returns when all are done. `thread` is below
    /// [`Threads::count`], and no two units run at once on the same thread.
    ///
    /// Panics if a unit panicked. Must not be called from within a job.
    pub fn run(&mut self, units: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || units <= 1 {
            (0..units).for_each(|unit| job(unit, 0));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; this function does not return, nor unwind, before `busy` is zero.
        let erased: Job = unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync), Job>(job) };
        assert!(u32::try_from(units).is_ok(), "more units than a share can count");
        for (thread, share) in shared.shares.iter().enumerate() {
            let count = shared.shares.len();
            share.0.store(Share::of(thread * units / count..(thread + 1) * units / count), Ordering::Relaxed);
        }
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        {
            let mut slot = shared.job.lock().unwrap_or_else(|e| e.into_inner());
            *slot = Some(JobPointer(erased));
            shared.round.fetch_add(1, Ordering::Release);
            shared.wake.notify_all();
        }
        let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| take_units(shared, job, 0)));
        let mut spins = 0;
        while shared.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        shared.round.fetch_add(1, Ordering::Release);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a unit of work panicked in another thread");
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Release);
        {
            let _slot = self.shared.job.lock().unwrap_or_else(|e| e.into_inner());
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn take_units(shared: &Shared, job: &(dyn Fn(usize, usize) + Sync), thread: usize) {
    let count = shared.shares.len();
    for other in 0..count {
        while let Some(unit) = shared.shares[(thread + other) % count].take(other == 0) {
            job(unit, thread);
        }
    }
}

fn work(shared: &Shared, thread: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        // Wait for an odd round that is new: a job that this thread has not run.
        let job = loop {
            let round = shared.round.load(Ordering::Acquire);
            if shared.quit.load(Ordering::Acquire) {
                return;
            }
            if round % 2 == 1 && round != seen {
                seen = round;
                let slot = shared.job.lock().unwrap_or_else(|e| e.into_inner());
                break slot.expect("a round starts with its job in place");
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                let slot = shared.job.lock().unwrap_or_else(|e| e.into_inner());
                let idle = |_: &mut Option<JobPointer>| {
                    let round = shared.round.load(Ordering::Acquire);
                    (round.is_multiple_of(2) || round == seen) && !shared.quit.load(Ordering::Acquire)
                };
                drop(shared.wake.wait_while(slot, idle).unwrap_or_else(|e| e.into_inner()));
                spins = 0;
            }
        };
        // SAFETY: `run` keeps the job alive until `busy` reaches zero, which this thread's share of it prevents.
        let job = unsafe { &*job.0 };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| take_units(shared, job, thread))).is_err()
        {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.busy.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_unit_runs_once_whatever_the_number_of_threads() {
        for count in [1, 2, 3, 8] {
            let mut threads = Threads::new(count);
            for units in [0, 1, 2, 7, 1000] {
                let sums: Vec<AtomicU64> = (0..units).map(|_| AtomicU64::new(0)).collect();
                for _ in 0..20 {
                    threads.run(units, &|unit, thread| {
                        assert!(thread < count);
                        sums[unit].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(sums.iter().all(|s| s.load(Ordering::Relaxed) == 20));
            }
        }
    }

    #[test]
    fn a_thread_that_is_done_takes_the_units_of_others() {
        let mut threads = Threads::new(2);
        for _ in 0..20 {
            let done = AtomicUsize::new(0);
            // Unit 0 waits for all others, the one beside it in its thread's share among them.
            threads.run(4, &|unit, _| {
                while unit == 0 && done.load(Ordering::Acquire) < 3 {
                    std::hint::spin_loop();
                }
                done.fetch_add(1, Ordering::Release);
            });
            assert_eq!(done.load(Ordering::Relaxed), 4);
        }
    }

    #[test]
    fn parked_threads_wake() {
        let mut threads = Threads::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let ran = AtomicUsize::new(0);
            threads.run(64, &|_, _| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.load(Ordering::Relaxed), 64);
        }
    }

    #[test]
    fn a_panic_in_a_unit_reaches_the_caller_and_the_threads_survive() {
        let mut threads = Threads::new(2);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            threads.run(10, &|unit, _| assert_ne!(unit, 7));
        }));
        assert!(caught.is_err());
        threads.run(10, &|_, _| ());
    }
}

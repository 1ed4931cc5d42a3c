//! What a parser takes: the most memory that it held at once, and time.
//!
//! Both are counted for the calling thread alone, so that tests can run beside one another; a parser that starts
//! threads must be measured otherwise. Time is the processor's, so that a busy machine fails no test; the clock on
//! the wall has a limit of its own, far above, for a parser that sleeps or waits.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The system's allocator, counting what each thread holds.
struct Counting;

thread_local! {
    /// Bytes held since the count began, and the most that it was. Frees of older memory make it negative.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that is being taken down has no cell any more; nothing is measured then.
    let _ = HELD.try_with(|held| {
        let (now, peak) = held.get();
        held.set((now + bytes, peak.max(now + bytes)));
    });
}

// SAFETY: passes every call on to the system's allocator; counting touches a constant-initialized thread-local only,
// which does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Old and new exist at once while the bytes are copied.
        count(new_size as isize);
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a call took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// The most that was held at once beyond what was held before, bytes.
    pub peak_bytes: usize,
    /// The processor's time in this thread.
    pub cpu: Duration,
    /// By the clock on the wall.
    pub wall: Duration,
}

impl Taken {
    /// The larger of each.
    pub fn max(self, other: Taken) -> Taken {
        Taken {
            peak_bytes: self.peak_bytes.max(other.peak_bytes),
            cpu: self.cpu.max(other.cpu),
            wall: self.wall.max(other.wall),
        }
    }
}

/// Runs `work` and says what it took.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    let (start, cpu) = (Instant::now(), thread_time());
    let result = work();
    let (wall, cpu) = (start.elapsed(), thread_time().saturating_sub(cpu));
    let (_, peak) = HELD.with(Cell::get);
    (result, Taken { peak_bytes: (peak - before) as usize, cpu, wall })
}

/// The processor's time that this thread has had.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn the_meter_counts_what_is_held() {
    let kept = vec![1u8; 1 << 20];
    let (_, taken) = measure(|| {
        drop(vec![0u8; 3 << 20]);
        let mut grown: Vec<u8> = vec![7; 1 << 20];
        grown.resize(2 << 20, 0);
        drop(kept);
        grown.len()
    });
    assert_eq!(taken.peak_bytes, 3 << 20);
    let (_, taken) = measure(|| std::thread::sleep(Duration::from_millis(20)));
    assert!(taken.wall >= Duration::from_millis(20) && taken.cpu < Duration::from_millis(15), "{taken:?}");
}

//! Work done by many threads and taken up in order, a bounded amount of it in flight.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard};

/// A line of items, numbered; threads take the next one, work on it and put the result in, and one thread takes the
/// results out in order.
pub(super) struct InOrder<T> {
    state: Mutex<State<T>>,
    moved: Condvar,
    /// Items that may be in flight: taken, and their result not yet taken out.
    window: usize,
    /// What those may weigh together; a single one may weigh more.
    budget: u64,
}

struct State<T> {
    next: usize,
    out: usize,
    end: usize,
    ready: BTreeMap<usize, (T, u64)>,
    weight: u64,
    stopped: bool,
}

impl<T> InOrder<T> {
    pub fn new(items: Range<usize>, window: usize, budget: u64) -> Self {
        let state = State {
            next: items.start,
            out: items.start,
            end: items.end,
            ready: BTreeMap::new(),
            weight: 0,
            stopped: false,
        };
        InOrder { state: Mutex::new(state), moved: Condvar::new(), window: window.max(1), budget }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The next item, when there is room for one of its weight; none at the end or when stopped.
    pub fn take(&self, weight: impl Fn(usize) -> u64) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.next == state.end {
                return None;
            }
            let in_flight = state.next - state.out;
            let heavy = weight(state.next);
            // Items are taken in order, so what is in flight always comes out without this one.
            if in_flight == 0 || in_flight < self.window && state.weight + heavy <= self.budget {
                state.next += 1;
                state.weight += heavy;
                return Some(state.next - 1);
            }
            state = self.moved.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Puts in the result of item `i` of this weight.
    pub fn put(&self, i: usize, result: T, weight: u64) {
        self.lock().ready.insert(i, (result, weight));
        self.moved.notify_all();
    }

    /// The next result in order; none after the last or when stopped.
    pub fn next(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.out == state.end {
                return None;
            }
            let i = state.out;
            if let Some((result, weight)) = state.ready.remove(&i) {
                state.out += 1;
                state.weight -= weight;
                self.moved.notify_all();
                return Some(result);
            }
            state = self.moved.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Ends it for everybody.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }

    /// Ends it for everybody when dropped in a panic, so that nobody waits for a thread that is gone.
    pub fn watch(&self) -> Watch<'_, T> {
        Watch(self)
    }
}

/// See [`InOrder::watch`].
pub(super) struct Watch<'a, T>(&'a InOrder<T>);

impl<T> Drop for Watch<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn results_come_in_order_and_few_are_in_flight() {
        let (line, flying, most) = (InOrder::new(3..500, 7, 100), AtomicUsize::new(0), AtomicUsize::new(0));
        let weight = |i: usize| if i.is_multiple_of(50) { 1000 } else { 20 };
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(i) = line.take(weight) {
                        most.fetch_max(flying.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        if i % 7 == 0 {
                            std::thread::yield_now();
                        }
                        line.put(i, i, weight(i));
                    }
                });
            }
            while let Some(i) = line.next() {
                flying.fetch_sub(1, Ordering::SeqCst);
                seen.push(i);
            }
        });
        assert_eq!(seen, (3..500).collect::<Vec<_>>());
        // Five of weight 20; one more may be between the line and the count.
        assert!(most.load(Ordering::SeqCst) <= 6, "{most:?}");
    }

    #[test]
    fn a_thread_that_panics_does_not_leave_the_others_waiting() {
        let line = InOrder::<()>::new(0..10, 2, 100);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _watch = line.watch();
                    line.take(|_| 1);
                    panic!("as a test");
                });
                assert!(line.next().is_none());
            })
        }));
        assert!(result.is_err());
    }
}

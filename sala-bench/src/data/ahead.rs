//! Things that are made ahead of their use, in threads of their own.
//!
//! Whoever takes them gets them in the order of their numbers, whichever thread was first. At most `room` of them
//! wait or are being made at a time, so memory is bounded; and as long as making is faster than using, nobody waits
//! for more than the first.

use std::{
    any::Any,
    collections::VecDeque,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow};

/// An iterator over things that threads make ahead. It ends after the first error.
///
/// When it is dropped the threads are stopped and waited for, at most for what each of them is making.
#[derive(Debug)]
pub(super) struct Ahead<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Something has been made.
    made: Condvar,
    /// Something has been taken, or all is over.
    taken: Condvar,
    room: usize,
}

#[derive(Debug)]
struct State<T> {
    /// What is made, from number `taken` on.
    ready: VecDeque<Option<Result<T>>>,
    /// The next number that is taken.
    taken: usize,
    /// The next number that no thread has begun.
    begun: usize,
    /// One beyond the last number; also when it was stopped.
    end: usize,
}

impl<T> Shared<T> {
    /// A thread that panicked has left nothing half done: it makes things without holding the lock.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number to make, when there is room for it; none when all is over.
    fn begin(&self) -> Option<usize> {
        let full = |state: &mut State<T>| {
            state.begun < state.end && state.begun >= state.taken + self.room
        };
        let guard = self.taken.wait_while(self.lock(), full);
        let mut state = guard.unwrap_or_else(PoisonError::into_inner);
        (state.begun < state.end).then(|| {
            state.begun += 1;
            state.begun - 1
        })
    }

    /// Hands in what was made.
    fn finish(&self, number: usize, thing: Result<T>) {
        let mut state = self.lock();
        // Numbers are taken in order, so this one is not below; unless all is over.
        if let Some(place) = number.checked_sub(state.taken) {
            if state.ready.len() <= place {
                state.ready.resize_with(place + 1, || None);
            }
            state.ready[place] = Some(thing);
        }
        drop(state);
        self.made.notify_one();
    }

    fn stop(&self) {
        let mut state = self.lock();
        state.end = state.taken;
        drop(state);
        self.taken.notify_all();
    }
}

impl<T: Send + 'static> Ahead<T> {
    /// Starts to make the things of these numbers by `make`, whose panics become errors.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(
        numbers: Range<usize>,
        threads: usize,
        room: usize,
        make: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let state = State {
            ready: VecDeque::new(),
            taken: numbers.start,
            begun: numbers.start,
            end: numbers.end.max(numbers.start),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            made: Condvar::new(),
            taken: Condvar::new(),
            room: room.max(1),
        });
        let mut ahead = Self {
            shared,
            threads: Vec::new(),
        };
        let make = Arc::new(make);
        for _ in 0..threads.clamp(1, numbers.len().max(1)) {
            let (shared, make) = (Arc::clone(&ahead.shared), Arc::clone(&make));
            let work = move || {
                while let Some(number) = shared.begin() {
                    let thing = catch_unwind(AssertUnwindSafe(|| make(number)));
                    shared.finish(number, thing.unwrap_or_else(|panic| Err(said(&*panic))));
                }
            };
            let thread = thread::Builder::new().name("data".into()).spawn(work);
            ahead
                .threads
                .push(thread.context("cannot start a thread for the data")?);
        }
        Ok(ahead)
    }
}

/// The error of a panic.
fn said(panic: &(dyn Any + Send)) -> anyhow::Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    anyhow!(
        "a thread for the data panicked: {}",
        text.unwrap_or("it did not say why")
    )
}

impl<T> Iterator for Ahead<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let missing = |state: &mut State<T>| {
            state.taken < state.end && !matches!(state.ready.front(), Some(Some(_)))
        };
        let guard = self.shared.made.wait_while(self.shared.lock(), missing);
        let mut state = guard.unwrap_or_else(PoisonError::into_inner);
        if state.taken == state.end {
            return None;
        }
        let thing = state.ready.pop_front().flatten()?;
        state.taken += 1;
        drop(state);
        if thing.is_err() {
            self.shared.stop();
        } else {
            self.shared.taken.notify_one();
        }
        Some(thing)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let state = self.shared.lock();
        let left = state.end - state.taken;
        (left, Some(left))
    }
}

impl<T> ExactSizeIterator for Ahead<T> {}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // Its panics are caught within.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use anyhow::bail;

    use super::*;

    fn squares(threads: usize, room: usize) -> Ahead<usize> {
        let make = |i: usize| {
            // Later ones are made faster, so that they overtake.
            thread::sleep(Duration::from_micros(100 * (20 - i as u64)));
            Ok(i * i)
        };
        Ahead::new(3..20, threads, room, make).unwrap()
    }

    #[test]
    fn things_come_in_order_for_any_number_of_threads_and_room() {
        let wanted: Vec<usize> = (3..20).map(|i| i * i).collect();
        for (threads, room) in [(1, 1), (1, 4), (4, 1), (4, 3), (30, 30), (0, 0)] {
            let ahead = squares(threads, room);
            assert_eq!(ahead.len(), 17);
            let got: Result<Vec<usize>> = ahead.collect();
            assert_eq!(got.unwrap(), wanted, "{threads} threads, room for {room}");
        }
    }

    #[test]
    fn no_more_than_there_is_room_for_are_made_ahead() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        let make = move |_| Ok(counter.fetch_add(1, Ordering::SeqCst));
        let mut ahead = Ahead::new(0..100, 3, 5, make).unwrap();
        for taken in 0..4 {
            let start = std::time::Instant::now();
            while made.load(Ordering::SeqCst) < taken + 5 {
                assert!(
                    start.elapsed() < Duration::from_secs(10),
                    "nothing is made ahead"
                );
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(5));
            assert_eq!(made.load(Ordering::SeqCst), taken + 5);
            ahead.next().unwrap().unwrap();
        }
    }

    #[test]
    fn an_error_comes_in_its_place_and_is_the_last() {
        let make = |i: usize| {
            if i == 4 {
                bail!("number four");
            }
            Ok(i)
        };
        let mut ahead = Ahead::new(0..10, 3, 10, make).unwrap();
        let before: Vec<usize> = (0..4).map(|_| ahead.next().unwrap().unwrap()).collect();
        assert_eq!(before, [0, 1, 2, 3]);
        assert_eq!(
            ahead.next().unwrap().unwrap_err().to_string(),
            "number four"
        );
        assert!(ahead.next().is_none());
        assert_eq!(ahead.len(), 0);
    }

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let make = |i: usize| -> Result<usize> {
            assert!(i < 2, "the third is too many");
            Ok(i)
        };
        let got: Vec<Result<usize>> = Ahead::new(0..5, 1, 2, make).unwrap().collect();
        assert_eq!(got.len(), 3);
        let message = got[2].as_ref().unwrap_err().to_string();
        assert!(
            message.contains("panicked: the third is too many"),
            "{message}"
        );
    }

    #[test]
    fn what_is_dropped_in_the_middle_leaves_no_thread_behind() {
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let make = move |i: usize| {
            let _ = &held;
            Ok(i)
        };
        let mut ahead = Ahead::new(0..1_000, 4, 3, make).unwrap();
        ahead.next().unwrap().unwrap();
        drop(ahead);
        // The threads held the other copies.
        assert_eq!(Arc::strong_count(&alive), 1);
        assert!(Ahead::new(5..5, 2, 2, Ok).unwrap().next().is_none());
    }
}

//! Work for threads that wait for it without sleeping.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Work;

/// Looks at what others have done before a waiting thread offers its core to them.
const LOOKS_A_YIELD: usize = 1000;

// Parts of the state: threads inside the work, flags, and a count of all works.
const INSIDE: u64 = (1 << 31) - 1;
const OPEN: u64 = 1 << 31;
const CLOSED: u64 = 1 << 32;
const ROUND: u64 = 1 << 33;

/// Where a caller leaves work for threads that [`Mailbox::serve`] it. Nobody waits for a thread
/// that has not come: a caller does all that is left and only waits for those inside.
#[derive(Debug)]
pub(super) struct Mailbox {
    state: AtomicU64,
    work: UnsafeCell<Option<Work>>,
    is_taken: AtomicBool,
}

// SAFETY: `work` is written by the one caller that holds `is_taken`, while the state is not open
// and nobody is inside; it is read by threads that are inside.
unsafe impl Sync for Mailbox {}
// SAFETY: as above; a `Work` may be sent.
unsafe impl Send for Mailbox {}

impl Mailbox {
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            is_taken: AtomicBool::new(false),
        }
    }

    /// Calls `work` here and on the serving threads that come while this call lasts; returns when
    /// all calls have returned. While another caller is at it, calls it here only.
    pub(super) fn run(&self, work: &(dyn Fn() + Sync)) {
        if self.is_taken.swap(true, Ordering::Acquire) {
            return work();
        }
        // SAFETY: nobody is inside, and this is the only caller. `End` waits for the last reader,
        // so that the closure outlives its use.
        unsafe { *self.work.get() = Some(Work::forever(work)) }
        let _end = End(self);
        self.state.fetch_add(ROUND | OPEN, Ordering::Release);
        work();
    }

    /// Takes part in each work once, until [`Mailbox::close`].
    pub(super) fn serve(&self) {
        let mut done = 0;
        let mut looks = Looks::default();
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & CLOSED != 0 {
                return;
            }
            let round = state / ROUND;
            if state & OPEN == 0 || round == done {
                looks.wait();
            } else if self.enter(state) {
                done = round;
                let _leave = Leave(self);
                // SAFETY: this thread is inside.
                if let Some(work) = unsafe { *self.work.get() } {
                    // SAFETY: the caller waits until nobody is inside.
                    unsafe { work.call() }
                }
            }
        }
    }

    /// Lets the serving threads go.
    pub(super) fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::Release);
    }

    fn enter(&self, state: u64) -> bool {
        let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
        self.state.compare_exchange(state, state + 1, success, failure).is_ok()
    }
}

/// Ends a work, also where it panicked: nobody comes any more, and those inside have left.
struct End<'a>(&'a Mailbox);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut looks = Looks::default();
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            looks.wait();
        }
        self.0.is_taken.store(false, Ordering::Release);
    }
}

/// Leaves a work, also where it panicked.
struct Leave<'a>(&'a Mailbox);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::Release);
    }
}

/// Looks of a thread at something that others will change soon.
#[derive(Default)]
pub(super) struct Looks(usize);

impl Looks {
    /// Waits a little, and now and then offers the core to others.
    pub(super) fn wait(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(LOOKS_A_YIELD) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

//! Threads that are parked while there is no work.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use super::Work;

#[derive(Default)]
struct State {
    /// Counts calls of `run`, so that a thread takes part in each once.
    round: u64,
    work: Option<Work>,
    running: usize,
    panic: Option<Box<dyn Any + Send>>,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    has_work: Condvar,
    is_done: Condvar,
}

/// Threads that wait for work.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One caller at a time.
    caller: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("num_threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(num_threads: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || serve(&shared))
        };
        Self { threads: (0..num_threads).map(spawn).collect(), shared, caller: Mutex::new(()) }
    }

    /// Calls `work` on every thread and on the caller's; returns when all calls have returned. A
    /// panic of any of them is passed on. While another caller is at it, or this one further up,
    /// calls it here only.
    pub(super) fn run(&self, work: &(dyn Fn() + Sync)) {
        let _one = match self.caller.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return work(),
        };
        // SAFETY: this function returns after the last use.
        let work_forever = unsafe { Work::forever(work) };
        {
            let mut state = lock(&self.shared);
            state.round += 1;
            state.work = Some(work_forever);
            state.running = self.threads.len();
        }
        self.shared.has_work.notify_all();
        let own = catch_unwind(AssertUnwindSafe(work));
        let mut state = lock(&self.shared);
        while state.running > 0 {
            state = self.shared.is_done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.work = None;
        let panic = state.panic.take();
        drop(state);
        if let Some(payload) = own.err().or(panic) {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared).is_closed = true;
        self.shared.has_work.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of tasks were passed on by `run`.
            drop(thread.join());
        }
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(shared: &Shared) {
    let mut round = 0;
    while let Some(work) = next_work(shared, &mut round) {
        // SAFETY: `run` waits until `running` is 0, so the closure is alive.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe { work.call() }));
        let mut state = lock(shared);
        if let Err(payload) = result {
            state.panic = Some(payload);
        }
        state.running -= 1;
        if state.running == 0 {
            shared.is_done.notify_one();
        }
    }
}

/// Waits for work that this thread has not done; none when the pool is closed.
fn next_work(shared: &Shared, round: &mut u64) -> Option<Work> {
    let mut state = lock(shared);
    loop {
        if state.is_closed {
            return None;
        }
        if let Some(work) = state.work.filter(|_| state.round != *round) {
            *round = state.round;
            return Some(work);
        }
        state = shared.has_work.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

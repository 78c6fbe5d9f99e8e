//! Threads that share the tasks of a kernel.
//!
//! A process that runs torch already has a team of `OpenMP` threads, and a second pool would
//! compete with it for the cores: threads that wait for their next matrix product spin. So a team
//! can run its tasks on those threads through `GOMP_parallel`, the C function that compilers call
//! for `#pragma omp parallel`. Without `OpenMP` a pool of parked threads does the work.

use std::cell::Cell;
use std::ffi::{c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

mod mailbox;
mod pool;
#[cfg(test)]
mod tests;

use mailbox::{Looks, Mailbox};
use pool::Pool;

/// `void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)`,
/// exported by `libgomp` and `libiomp5`.
pub type GompParallel = unsafe extern "C" fn(
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
    num_threads: c_uint,
    flags: c_uint,
);

/// Threads that share the tasks of a kernel. A clone has the same threads.
#[derive(Debug, Clone)]
pub struct Team {
    num_threads: usize,
    threads: Threads,
}

#[derive(Debug, Clone)]
enum Threads {
    Alone,
    Pool(Arc<Pool>),
    OpenMp(GompParallel),
    Awake(Arc<Mailbox>),
}

/// Work below this many nanoseconds is done by the caller alone: waking parked threads takes as
/// long.
const WAKING_NANOS: usize = 40_000;
/// The same for threads that are awake.
const HANDING_OVER_NANOS: usize = 5_000;

impl Team {
    /// The caller alone.
    pub fn alone() -> Self {
        Self { num_threads: 1, threads: Threads::Alone }
    }

    /// The caller and `num_threads - 1` threads of an own pool, parked between kernels.
    pub fn parked(num_threads: usize) -> Self {
        if num_threads <= 1 {
            return Self::alone();
        }
        Self { num_threads, threads: Threads::Pool(Arc::new(Pool::new(num_threads - 1))) }
    }

    /// `num_threads` threads of the process's `OpenMP` library.
    ///
    /// # Safety
    /// `parallel` is the function of that name and stays loaded.
    pub unsafe fn openmp(num_threads: usize, parallel: GompParallel) -> Self {
        if num_threads <= 1 {
            return Self::alone();
        }
        Self { num_threads, threads: Threads::OpenMp(parallel) }
    }

    /// Threads of the team, the caller included.
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// Whether work of one thread's so many nanoseconds ends sooner when it is shared.
    pub(crate) fn is_worth_sharing(&self, nanos: usize) -> bool {
        match self.threads {
            Threads::Awake(_) => nanos >= HANDING_OVER_NANOS,
            Threads::Alone | Threads::Pool(_) | Threads::OpenMp(_) => nanos >= WAKING_NANOS,
        }
    }

    /// Calls `body` on this thread with a team whose threads wait for tasks without sleeping. For
    /// many short kernels in a row: waking a parked thread takes longer than some of them.
    ///
    /// The team given to `body` may outlive the call; its tasks are done by the caller alone then.
    /// A panic of `body` ends the process where the threads are those of `OpenMP`.
    pub fn awake<R>(&self, body: impl FnOnce(&Team) -> R) -> R {
        if matches!(self.threads, Threads::Alone | Threads::Awake(_)) {
            return body(self);
        }
        let mailbox = Arc::new(Mailbox::new());
        let threads = Threads::Awake(Arc::clone(&mailbox));
        let team = Self { num_threads: self.num_threads, threads };
        let caller = std::thread::current().id();
        let here = Here { body: Cell::new(Some(body)), result: Cell::new(None) };
        self.enter(|| {
            if std::thread::current().id() == caller {
                let _close = CloseOnDrop(&mailbox);
                here.call(&team);
            } else {
                mailbox.serve();
            }
        });
        here.result.into_inner().expect("the caller's thread is one of the team")
    }

    /// Calls `task(i)` once for each `i` below `num_tasks`, in any order and on any thread, and
    /// returns when all are done. A thread takes the next task when it is done with its last.
    ///
    /// A panic in a task on an `OpenMP` thread ends the process.
    pub fn run(&self, num_tasks: usize, task: impl Fn(usize) + Sync) {
        if num_tasks <= 1 || matches!(self.threads, Threads::Alone) {
            (0..num_tasks).for_each(task);
            return;
        }
        let next = AtomicUsize::new(0);
        self.enter(|| take_all(&next, num_tasks, &task));
    }

    /// Calls `first(i)` once for each `i` below `num_first`, and when all of these are done,
    /// `second(i)` for each `i` below `num_second`: two [`Team::run`], but the threads are woken once.
    pub fn run_in_order(
        &self,
        (num_first, first): (usize, impl Fn(usize) + Sync),
        (num_second, second): (usize, impl Fn(usize) + Sync),
    ) {
        if matches!(self.threads, Threads::Alone) {
            (0..num_first).for_each(first);
            (0..num_second).for_each(second);
            return;
        }
        let (next_first, next_second) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let done = AtomicUsize::new(0);
        self.enter(|| {
            take_all(&next_first, num_first, &|index| {
                let _counted = CountedOnDrop(&done);
                first(index);
            });
            let mut looks = Looks::default();
            while done.load(Ordering::Acquire) < num_first {
                looks.wait();
            }
            take_all(&next_second, num_second, &second);
        });
    }

    /// Calls `work` on every thread, or on those that come before it is done where they are awake.
    fn enter(&self, work: impl Fn() + Sync) {
        match &self.threads {
            Threads::Alone => work(),
            Threads::Pool(pool) => pool.run(&work),
            Threads::OpenMp(parallel) => run_openmp(*parallel, self.num_threads, &work),
            Threads::Awake(mailbox) => mailbox.run(&work),
        }
    }
}

/// A closure that threads call, without its lifetime.
#[derive(Debug, Clone, Copy)]
struct Work(*const (dyn Fn() + Sync));

// SAFETY: the closure is `Sync`, and whoever made the work keeps it alive until no thread uses it.
unsafe impl Send for Work {}

impl Work {
    /// # Safety
    /// The closure outlives every call.
    unsafe fn forever(work: &(dyn Fn() + Sync)) -> Self {
        // SAFETY: only the lifetime changes.
        Self(unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) })
    }

    /// # Safety
    /// The closure is alive.
    unsafe fn call(self) {
        // SAFETY: the caller's condition.
        unsafe { (*self.0)() }
    }
}

/// What one thread of a region does, and what it returns.
struct Here<F, R> {
    body: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

// SAFETY: only the thread that made it calls it.
unsafe impl<F, R> Sync for Here<F, R> {}

impl<F: FnOnce(&Team) -> R, R> Here<F, R> {
    fn call(&self, team: &Team) {
        if let Some(body) = self.body.take() {
            self.result.set(Some(body(team)));
        }
    }
}

/// Lets the threads that serve a mailbox go, also where its caller panicked.
struct CloseOnDrop<'a>(&'a Mailbox);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Takes tasks until there are no more.
fn take_all(next: &AtomicUsize, num_tasks: usize, task: &impl Fn(usize)) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= num_tasks {
            return;
        }
        task(index);
    }
}

/// Counts a task as done even where it panicked: nobody waits for it then.
struct CountedOnDrop<'a>(&'a AtomicUsize);

impl Drop for CountedOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

fn run_openmp<W: Fn() + Sync>(parallel: GompParallel, num_threads: usize, work: &W) {
    unsafe extern "C" fn enter<W: Fn() + Sync>(work: *mut c_void) {
        // SAFETY: `work` is the reference below, which outlives the parallel region.
        unsafe { (*work.cast::<W>().cast_const())() }
    }
    let data = std::ptr::from_ref(work).cast_mut().cast();
    // SAFETY: the function returns after every thread has left `enter`.
    unsafe { parallel(enter::<W>, data, num_threads as c_uint, 0) }
}

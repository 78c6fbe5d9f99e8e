//! Threads that share the tasks of a kernel.
//!
//! A process that runs torch already has a team of `OpenMP` threads, and a second pool would
//! compete with it for the cores: threads that wait for their next matrix product spin. So a team
//! can run its tasks on those threads through `GOMP_parallel`, the C function that compilers call
//! for `#pragma omp parallel`. Without `OpenMP` a pool of parked threads does the work.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

mod pool;

use pool::Pool;

/// `void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)`,
/// exported by `libgomp` and `libiomp5`.
pub type GompParallel = unsafe extern "C" fn(
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
    num_threads: c_uint,
    flags: c_uint,
);

/// Threads that share the tasks of a kernel.
#[derive(Debug)]
pub struct Team {
    num_threads: usize,
    threads: Threads,
}

#[derive(Debug)]
enum Threads {
    Alone,
    Pool(Pool),
    OpenMp(GompParallel),
}

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
        Self { num_threads, threads: Threads::Pool(Pool::new(num_threads - 1)) }
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
            let mut num_looks = 0;
            while done.load(Ordering::Acquire) < num_first {
                num_looks += 1;
                if num_looks % LOOKS_A_YIELD == 0 {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
            take_all(&next_second, num_second, &second);
        });
    }

    /// Calls `work` on every thread.
    fn enter(&self, work: impl Fn() + Sync) {
        match &self.threads {
            Threads::Alone => work(),
            Threads::Pool(pool) => pool.run(&work),
            Threads::OpenMp(parallel) => run_openmp(*parallel, self.num_threads, &work),
        }
    }
}

/// Looks at what others have done before a waiting thread offers its core to them.
const LOOKS_A_YIELD: usize = 1000;

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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn finished(team: &Team, num_tasks: usize) -> Vec<usize> {
        let done = Mutex::new(Vec::new());
        team.run(num_tasks, |i| done.lock().expect("no task panics").push(i));
        let mut done = done.into_inner().expect("no task panics");
        done.sort_unstable();
        done
    }

    #[test]
    fn every_task_runs_once() {
        for team in [Team::alone(), Team::parked(2), Team::parked(5)] {
            for num_tasks in [0, 1, 2, 3, 100] {
                let expected: Vec<usize> = (0..num_tasks).collect();
                assert_eq!(finished(&team, num_tasks), expected);
            }
        }
    }

    #[test]
    fn the_second_kind_of_task_begins_when_the_first_is_done() {
        for team in [Team::alone(), Team::parked(2), Team::parked(5)] {
            for (num_first, num_second) in [(0, 3), (1, 0), (1, 1), (7, 40), (100, 1)] {
                let done = AtomicUsize::new(0);
                let seen = Mutex::new(Vec::new());
                let first = |_| {
                    std::thread::sleep(std::time::Duration::from_micros(20));
                    done.fetch_add(1, Ordering::Relaxed);
                };
                let second = |i| {
                    let count = done.load(Ordering::Relaxed);
                    seen.lock().expect("no task panics").push((i, count));
                };
                team.run_in_order((num_first, first), (num_second, second));
                let mut seen = seen.into_inner().expect("no task panics");
                seen.sort_unstable();
                assert_eq!(seen, (0..num_second).map(|i| (i, num_first)).collect::<Vec<_>>());
                assert_eq!(done.into_inner(), num_first);
            }
        }
    }

    #[test]
    fn a_panic_in_the_first_kind_of_task_reaches_the_caller() {
        let team = Team::parked(3);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.run_in_order((50, |i| assert_ne!(i, 20)), (50, |_| ()));
        }));
        assert!(result.is_err());
        assert_eq!(finished(&team, 9).len(), 9);
    }

    #[test]
    fn a_pool_serves_many_kernels_and_several_callers() {
        let team = Team::parked(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(finished(&team, 7).len(), 7);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let team = Team::parked(3);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.run(50, |i| assert_ne!(i, 20));
        }));
        assert!(result.is_err());
        assert_eq!(finished(&team, 9).len(), 9);
    }
}

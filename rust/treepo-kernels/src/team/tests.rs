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
fn threads_that_are_awake_run_every_task_of_many_kernels() {
    for team in [Team::alone(), Team::parked(2), Team::parked(5)] {
        let sum = team.awake(|team| {
            let mut sum = 0;
            for num_tasks in (0..60).cycle().take(3000) {
                assert_eq!(finished(team, num_tasks).len(), num_tasks);
                sum += num_tasks;
            }
            sum
        });
        assert_eq!(sum, 50 * (0..60).sum::<usize>());
    }
}

#[test]
fn threads_that_are_awake_keep_the_order_of_two_kinds_of_task() {
    Team::parked(4).awake(|team| {
        for _ in 0..500 {
            let done = AtomicUsize::new(0);
            let first = |_| {
                done.fetch_add(1, Ordering::Relaxed);
            };
            let second = |_| assert_eq!(done.load(Ordering::Relaxed), 9);
            team.run_in_order((9, first), (5, second));
        }
    });
}

#[test]
fn a_team_that_was_awake_works_alone_and_for_several_callers() {
    let parked = Team::parked(3);
    let awake = parked.awake(|team| {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        assert_eq!(finished(team, 7), (0..7).collect::<Vec<_>>());
                    }
                });
            }
        });
        team.clone()
    });
    assert_eq!(finished(&awake, 20).len(), 20);
    assert_eq!(finished(&parked, 20).len(), 20);
}

#[test]
fn threads_go_to_sleep_while_another_caller_still_has_work() {
    let parked = Team::parked(3);
    for _ in 0..200 {
        let other = parked.awake(|team| {
            let team = team.clone();
            std::thread::spawn(move || (0..20).for_each(|_| drop(finished(&team, 5))))
        });
        other.join().expect("no task panics");
    }
}

#[test]
fn a_panic_in_a_team_that_is_awake_reaches_the_caller() {
    let team = Team::parked(3);
    for bad in [0, 20, 49] {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.awake(|team| team.run(50, |i| assert_ne!(i, bad)));
        }));
        assert!(result.is_err());
        assert_eq!(finished(&team, 9).len(), 9);
    }
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

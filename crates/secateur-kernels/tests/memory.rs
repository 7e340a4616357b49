//! What kernels say that they take beside their arguments, against what they hold, by an allocator
//! that counts. One test: nothing else may run beside it.

#![expect(clippy::print_stdout, reason = "a test tells its figures")]

#[path = "../../secateur-models/tests/common/counting.rs"]
mod counting;

use rayon::ThreadPoolBuilder;
use secateur_kernels::obs::Choice;
use secateur_kernels::{factor, gram, obs};

/// Numbers in [0.5, 1.5), the same every time.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| 0.5 + (i * 7919 % 1009) as f32 / 1009.0).collect()
}

/// The identity matrix times 2.
fn diagonal(columns: usize) -> Vec<f32> {
    (0..columns * columns).map(|i| if i % (columns + 1) == 0 { 2.0 } else { 0.0 }).collect()
}

/// On threads of its own, with which goes what they keep for the next call.
fn check(what: &str, threads: usize, said: impl Fn() -> u64 + Sync, work: impl FnOnce() + Send) {
    let mut handles = Vec::new();
    let pool = ThreadPoolBuilder::new().num_threads(threads).spawn_handler(|thread| {
        handles.push(std::thread::spawn(|| thread.run()));
        Ok(())
    });
    let pool = pool.build().unwrap();
    let said = pool.install(&said);
    let held = counting::most_held(|| pool.install(work)) as u64;
    drop(pool);
    handles.into_iter().for_each(|handle| handle.join().unwrap());
    let told = format!("{what}, {threads} threads: {held} held, {said} said");
    println!("{told}");
    // Lists of rows and of tasks are not told.
    assert!(held <= said + 64 * 1024, "{told}");
    assert!(4 * held >= said, "{told}");
}

#[test]
fn kernels_keep_to_the_memory_that_they_say() {
    for threads in [1, 2] {
        // What is behind a block is the most, or the scores are.
        for (rows, columns) in [(128, 2000), (20_000, 132)] {
            for choice in [Choice::Share(0.5), Choice::Groups { pruned: 2, group: 4 }] {
                let (mut weight, u) = (numbers(rows * columns), diagonal(columns));
                let said = || obs::solve_scratch(rows, columns, choice);
                check(&format!("solve {rows} x {columns}, {choice:?}"), threads, said, || {
                    obs::solve(&mut weight, &u, choice);
                });
            }
        }
        for (rows, columns) in [(1024, 500), (3000, 300)] {
            let (x, mut sums) = (numbers(rows * columns), vec![0.0; columns * columns]);
            check(
                &format!("gram {rows} x {columns}"),
                threads,
                || gram::add_gram_scratch(columns),
                || {
                    gram::add_gram(
                        rows,
                        columns,
                        |row| &x[row * columns..][..columns],
                        |_| 1.0,
                        &mut sums,
                    );
                },
            );
        }
        for columns in [600, 1000, 1300] {
            let mut matrix = diagonal(columns);
            check(
                &format!("factor {columns}"),
                threads,
                || factor::inverse_factor_scratch(columns),
                || {
                    factor::inverse_factor(&mut matrix, columns).unwrap();
                },
            );
        }
    }
}

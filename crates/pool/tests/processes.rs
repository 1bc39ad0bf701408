//! A parent and real worker processes, without Python: calls, deaths, limits, memory.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failure fails the test

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rondel_pool::processes::board::{Listener, Stage};
use rondel_pool::processes::frame::{Buffer, Kind, Message, Pickle};
use rondel_pool::processes::parent::{Answer, Call, Cause, Lost, News, Parent};
use rondel_pool::processes::worker::Worker;

type Pool = Parent<u32, Vec<u8>>;

/// Forking while another test's threads hold a lock would copy the lock.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn message(text: &[u8], buffers: Vec<Buffer<Vec<u8>>>) -> Message<Vec<u8>> {
    Message { kind: Kind::Call, pickle: vec![text.to_vec()], buffers }
}

fn bytes(pickle: &Pickle) -> Vec<u8> {
    match pickle {
        Pickle::Inline(bytes, from) => bytes[*from..].to_vec(),
        Pickle::Block(view, from, _) => view.head(view.len())[*from..].to_vec(),
    }
}

/// What a worker does with a call: its text says it.
fn work(worker: &Worker) {
    worker.set_stage(Stage::Working);
    loop {
        let Some(slot) = worker.claim() else {
            match worker.sleep() {
                Ok(false) => return,
                _ => continue,
            }
        };
        let request = worker.read(slot).unwrap();
        let text = bytes(&request.message.pickle);
        if text == b"die" {
            // SAFETY: ends this process.
            unsafe { libc::_exit(7) };
        }
        if text == b"sleep" {
            std::thread::sleep(Duration::from_secs(100));
        }
        let buffers = request
            .buffers
            .iter()
            .map(|lease| match worker.locate(&lease.view().head(0)) {
                Some(reference) => Buffer::Placed(reference),
                None => Buffer::Copy(lease.view().head(lease.view().len())),
            })
            .collect();
        drop(request.buffers);
        let answer = Message { kind: Kind::Result, pickle: vec![text], buffers };
        if !worker.answer(slot, &answer).unwrap() {
            std::thread::sleep(Duration::from_secs(100));
        }
    }
}

fn start(pool: &Pool) -> i32 {
    let (berth, first) = pool.reserve().unwrap();
    // SAFETY: the child runs only what is below, and ends by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let [file, thread, event_loop] = pool.descriptors().map(|fd| {
            // SAFETY: duplicates belong to nobody else.
            unsafe { OwnedFd::from_raw_fd(libc::dup(fd)) }
        });
        let worker = Worker::join(file, [thread, event_loop], berth, first).unwrap();
        work(&worker);
        // SAFETY: ends the child without running the test harness's exit handlers.
        unsafe { libc::_exit(0) };
    }
    pool.started(berth, pid).unwrap();
    pid
}

fn submit(pool: &Pool, target: u32, text: &[u8], limit: Option<u64>) -> u64 {
    let call =
        Call { target, message: message(text, Vec::new()), limit, by_loop: false, gathers: false };
    pool.submit(call).0
}

/// Everything that happens until so many calls are at their end.
#[derive(Default)]
struct Ends {
    answers: Vec<(u32, Answer)>,
    failures: Vec<(u32, Cause)>,
}

fn run(pool: &Pool, calls: usize) -> Ends {
    let mut ends = Ends::default();
    let deadline = Instant::now() + Duration::from_secs(60);
    while ends.answers.len() + ends.failures.len() < calls {
        assert!(Instant::now() < deadline);
        let mut news = pool.wait().unwrap();
        for berth in std::mem::take(&mut news.ended) {
            let Lost { failed, stage } = pool.lost(berth, &mut news);
            assert_eq!(stage, Stage::Working);
            ends.failures.extend(failed);
            // SAFETY: takes the status of a child that has ended.
            unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
            pool.vacate(berth);
        }
        for _ in 0..news.missing {
            start(pool);
        }
        ends.answers.extend(news.finished.into_iter().map(|f| (f.target, f.answer.unwrap())));
    }
    ends
}

fn finish(pool: &Pool) {
    pool.close();
    loop {
        let mut news: News<u32, Vec<u8>> = pool.wait().unwrap();
        for berth in std::mem::take(&mut news.ended) {
            pool.lost(berth, &mut news);
            // SAFETY: takes the status of a child that has ended.
            unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
            pool.vacate(berth);
        }
        if news.is_over {
            return;
        }
    }
}

#[test]
fn calls_are_answered_whatever_their_size() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = Pool::new(2).unwrap();
    let texts: Vec<Vec<u8>> =
        [0, 10, 900, 1000, 70_000, 3_000_000].iter().map(|len| vec![b'x'; *len]).collect();
    for (target, text) in (0..).zip(&texts) {
        submit(&pool, target, text, None);
    }
    for number in 0..3000 {
        submit(&pool, 100 + number, &number.to_ne_bytes(), None);
    }
    let mut ends = run(&pool, texts.len() + 3000);
    assert!(ends.failures.is_empty());
    ends.answers.sort_by_key(|(target, _)| *target);
    for (target, answer) in &ends.answers {
        let expected = match texts.get(*target as usize) {
            Some(text) => text.clone(),
            None => (*target - 100).to_ne_bytes().to_vec(),
        };
        assert_eq!(bytes(&answer.pickle), expected);
    }
    drop(ends);
    assert_eq!((pool.blocks(), pool.outstanding()), (0, 0));
    finish(&pool);
}

#[test]
fn a_death_fails_its_own_call_only() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = Pool::new(3).unwrap();
    for number in 0..300 {
        submit(&pool, number, if number % 50 == 49 { b"die" } else { b"live" }, None);
    }
    let mut ends = run(&pool, 300);
    ends.failures.sort_by_key(|(target, _)| *target);
    let expected: Vec<(u32, Cause)> = (0..6).map(|i| (50 * i + 49, Cause::Died)).collect();
    assert_eq!(ends.failures, expected);
    assert_eq!(ends.answers.len(), 294);
    finish(&pool);
}

#[test]
fn limits_and_kills_end_running_calls() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = Pool::new(1).unwrap();
    let started = Instant::now();
    submit(&pool, 1, b"sleep", Some(200_000_000));
    submit(&pool, 2, b"live", Some(200_000_000));
    let ends = run(&pool, 2);
    assert_eq!(ends.failures, [(1, Cause::Limit)]);
    assert!(started.elapsed() >= Duration::from_millis(200));

    let id = submit(&pool, 3, b"sleep", None);
    let waiting = submit(&pool, 4, b"live", None);
    while !pool.is_running(id) {
        std::thread::yield_now();
    }
    assert!(pool.withdraw(id).is_none());
    assert_eq!(pool.withdraw(waiting).map(|(target, _)| target), Some(4));
    assert!(pool.kill(id, Cause::Killed));
    assert_eq!(run(&pool, 1).failures, [(3, Cause::Killed)]);
    assert!(!pool.kill(id, Cause::Killed) && !pool.is_running(id));
    finish(&pool);
}

#[test]
fn buffers_are_shared_and_given_back() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = Pool::new(1).unwrap();
    let lease = pool.allocate(100_000).unwrap();
    lease.view().write(0, b"shared");
    let placed = Buffer::Placed(lease.reference());
    let copied = Buffer::Copy(b"copied".repeat(20_000));
    let call = Call {
        target: 1,
        message: message(b"two", vec![placed, copied]),
        limit: None,
        by_loop: true,
        gathers: false,
    };
    pool.submit(call);
    // Its answer rings for a loop, which there is none of.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut news = News::default();
    let started = pool.wait().unwrap();
    assert_eq!(started.missing, 1);
    start(&pool);
    while news.finished.is_empty() {
        assert!(Instant::now() < deadline);
        pool.collect(Listener::Loop, &mut news);
        std::thread::yield_now();
    }
    let answer = news.finished.remove(0).answer.unwrap();
    assert_eq!(answer.buffers[0].view().head(6), b"shared");
    assert_eq!(answer.buffers[1].view().head(200_000), b"copied".repeat(20_000));
    drop(lease);
    assert!(pool.blocks() > 0);
    drop(answer);
    // The worker has said in its answer that it is done with them.
    assert_eq!(pool.blocks(), 0);
    finish(&pool);
}

//! A queue of jobs and the crew of threads that works on it.
//!
//! A [`Crew`] starts no thread: whoever puts jobs is told when one more is worth having
//! ([`Put::hire`]), starts it in its own way, and lets it run
//!
//! ```text
//! loop { match crew.next(number) { Next::Job(..) => .., Next::Idle => crew.rest(number), Next::End => break } }
//! ```
//!
//! In a Python extension the threads are `threading.Thread`s, and `rest` is the only part that is
//! called without the GIL. What is decided here:
//!
//! * **One worker is woken at a time.** It wakes the next one when it takes a job and leaves others
//!   behind. Jobs that block are thus spread over as many threads as there are, one after the other,
//!   while a thousand short ones do not wake everybody for nothing: under the GIL the first worker has
//!   done them all before the second gets a turn.
//! * **The last to rest is the first to be woken**, so that a crew which has become too large shrinks
//!   from its other end: who has rested for the time limit leaves.
//! * Nobody spins.
//!
//! The lock is held for a few instructions at a time, never while a job runs or is dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rondel_reactor::lock::lock;

/// A job's place in the queue: later jobs have greater ones.
pub type Ticket = u64;

/// A queue of jobs and those who work on it.
pub struct Crew<T> {
    inner: Mutex<Inner<T>>,
    max: usize,
    /// How long a worker rests before it leaves; for ever without one.
    patience: Option<Duration>,
}

struct Inner<T> {
    queue: VecDeque<(Ticket, T)>,
    next_ticket: Ticket,
    /// Workers by number; numbers are used again, the lowest first.
    workers: Vec<Option<Worker>>,
    /// Who rests, in the order in which they began to.
    resting: Vec<usize>,
    /// Hired, but not seen at the queue yet.
    starting: usize,
    /// Woken, but not seen at the queue yet.
    arriving: usize,
    open: bool,
}

struct Worker {
    state: State,
    /// Known when the worker first comes to the queue.
    alarm: Option<Arc<Alarm>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Working,
    Resting,
    Arriving,
}

/// Wakes a worker that rests. Separate from the crew, so that it rings after the lock is let go.
struct Alarm {
    thread: Thread,
    rung: AtomicBool,
}

/// Somebody to be woken. Waking is a system call: done with [`Wake::wake`] once nothing is locked.
#[must_use]
pub struct Wake(Option<Arc<Alarm>>);

impl Wake {
    /// Wakes whoever it is, if anybody.
    pub fn wake(self) {
        if let Some(alarm) = self.0 {
            alarm.rung.store(true, Ordering::Release);
            alarm.thread.unpark();
        }
    }
}

/// What became of a job that was put into the queue.
#[must_use]
pub struct Put {
    /// The job's place.
    pub ticket: Ticket,
    /// The worker to wake.
    pub wake: Wake,
    /// Start a thread for the worker of this number.
    pub hire: Option<usize>,
}

/// What a worker does next.
#[must_use]
pub enum Next<T> {
    /// This job, after waking a colleague for the others.
    Job(T, Wake),
    /// Call [`Crew::rest`].
    Idle,
    /// Leave: the crew is closed and the queue empty.
    End,
}

impl<T> Crew<T> {
    /// A crew of at most `max` workers, none of which exists yet.
    #[must_use]
    pub fn new(max: usize, patience: Option<Duration>) -> Self {
        let inner = Inner {
            queue: VecDeque::new(),
            next_ticket: 0,
            workers: Vec::new(),
            resting: Vec::new(),
            starting: 0,
            arriving: 0,
            open: true,
        };
        Crew { inner: Mutex::new(inner), max, patience }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        lock(&self.inner)
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The job itself, when the crew is closed.
    pub fn put(&self, job: T) -> Result<Put, T> {
        let mut inner = self.lock();
        if !inner.open {
            return Err(job);
        }
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        inner.queue.push_back((ticket, job));
        let wake = inner.wake_one();
        let expected = inner.resting.len() + inner.arriving + inner.starting;
        let hire = if inner.queue.len() > expected { inner.hire(self.max) } else { None };
        Ok(Put { ticket, wake, hire })
    }

    /// Takes a job back, unless a worker has it already.
    pub fn take_back(&self, ticket: Ticket) -> Option<T> {
        let mut inner = self.lock();
        // Tickets are queued in order.
        let index = inner.queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        inner.queue.remove(index).map(|(_, job)| job)
    }

    /// What the worker does next. When that is to rest it counts as resting at once.
    pub fn next(&self, number: usize) -> Next<T> {
        let mut inner = self.lock();
        inner.arrived(number, State::Working);
        if let Some((_, job)) = inner.queue.pop_front() {
            let wake = if inner.queue.is_empty() { Wake(None) } else { inner.wake_one() };
            return Next::Job(job, wake);
        }
        if !inner.open {
            inner.leave(number);
            return Next::End;
        }
        inner.arrived(number, State::Resting);
        inner.resting.push(number);
        Next::Idle
    }

    /// Rests until there is something to do. False when the worker's patience has ended: it has left
    /// the crew.
    pub fn rest(&self, number: usize) -> bool {
        let Some(alarm) = self.alarm(number) else { return false };
        let deadline = self.patience.map(|patience| Instant::now() + patience);
        loop {
            if alarm.rung.swap(false, Ordering::Acquire) {
                return true;
            }
            let Some(deadline) = deadline else {
                thread::park();
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let mut inner = self.lock();
                if let Some(at) = inner.resting.iter().position(|resting| *resting == number) {
                    inner.resting.remove(at);
                    inner.leave(number);
                    return false;
                }
                // Woken at this very moment.
                return true;
            }
            thread::park_timeout(left);
        }
    }

    fn alarm(&self, number: usize) -> Option<Arc<Alarm>> {
        let mut inner = self.lock();
        let worker = inner.workers.get_mut(number)?.as_mut()?;
        worker.alarm.clone()
    }

    /// A thread that was to be started could not be, or failed before it came to the queue.
    pub fn dismiss(&self, number: usize) {
        self.lock().leave(number);
    }

    /// Takes no more jobs; those in the queue are still done, then the workers leave.
    pub fn close(&self) {
        let alarms: Vec<Wake> = {
            let mut inner = self.lock();
            inner.open = false;
            std::iter::from_fn(|| inner.wake_last()).collect()
        };
        alarms.into_iter().for_each(Wake::wake);
    }

    /// Takes all jobs out of the queue.
    #[must_use]
    pub fn drain(&self) -> VecDeque<(Ticket, T)> {
        std::mem::take(&mut self.lock().queue)
    }

    /// Jobs that no worker has taken yet.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.lock().queue.len()
    }

    /// Workers, those that are being started included.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.lock().workers.iter().flatten().count()
    }

    /// The most workers that there may be.
    #[must_use]
    pub fn max_workers(&self) -> usize {
        self.max
    }
}

impl<T> Inner<T> {
    fn hire(&mut self, max: usize) -> Option<usize> {
        let free = self.workers.iter().position(Option::is_none).unwrap_or(self.workers.len());
        if free >= max {
            return None;
        }
        if free == self.workers.len() {
            self.workers.push(None);
        }
        self.workers[free] = Some(Worker { state: State::Starting, alarm: None });
        self.starting += 1;
        Some(free)
    }

    /// Somebody to wake for the queue, unless somebody is on the way.
    fn wake_one(&mut self) -> Wake {
        if self.arriving > 0 {
            return Wake(None);
        }
        self.wake_last().unwrap_or(Wake(None))
    }

    fn wake_last(&mut self) -> Option<Wake> {
        let number = self.resting.pop()?;
        let worker = self.workers.get_mut(number)?.as_mut()?;
        worker.state = State::Arriving;
        self.arriving += 1;
        Some(Wake(worker.alarm.clone()))
    }

    fn arrived(&mut self, number: usize, new: State) {
        let Some(Some(worker)) = self.workers.get_mut(number) else { return };
        match std::mem::replace(&mut worker.state, new) {
            State::Starting => self.starting -= 1,
            State::Arriving => self.arriving -= 1,
            // Woken by an alarm that rang late, for an earlier rest.
            State::Resting => self.resting.retain(|resting| *resting != number),
            State::Working => {}
        }
        if worker.alarm.is_none() {
            let alarm = Alarm { thread: thread::current(), rung: AtomicBool::new(false) };
            worker.alarm = Some(Arc::new(alarm));
        }
    }

    fn leave(&mut self, number: usize) {
        self.arrived(number, State::Working);
        if let Some(place) = self.workers.get_mut(number) {
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::mpsc;

    type Job = Box<dyn FnOnce() + Send>;

    fn work(crew: &Crew<Job>, number: usize) {
        loop {
            match crew.next(number) {
                Next::Job(job, wake) => {
                    wake.wake();
                    job();
                }
                Next::Idle => {
                    if !crew.rest(number) {
                        return;
                    }
                }
                Next::End => return,
            }
        }
    }

    /// Puts a job and starts the thread that this asks for.
    fn put(crew: &Arc<Crew<Job>>, job: impl FnOnce() + Send + 'static) -> Ticket {
        let put = crew.put(Box::new(job)).ok().unwrap();
        put.wake.wake();
        if let Some(number) = put.hire {
            let crew = crew.clone();
            thread::spawn(move || work(&crew, number));
        }
        put.ticket
    }

    fn wait_until(mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "not in time");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn jobs_that_block_are_spread_over_all_workers() {
        let crew = Arc::new(Crew::new(4, None));
        for _ in 0..50 {
            let barrier = Arc::new(Barrier::new(5));
            for _ in 0..4 {
                let barrier = barrier.clone();
                put(&crew, move || {
                    barrier.wait();
                });
            }
            barrier.wait();
        }
        assert_eq!(crew.workers(), 4);
        crew.close();
        wait_until(|| crew.workers() == 0);
    }

    #[test]
    fn all_jobs_are_done_once_and_one_worker_does_them_in_order() {
        let crew = Arc::new(Crew::new(1, None));
        let (sender, receiver) = mpsc::channel();
        for index in 0..1000 {
            let sender = sender.clone();
            put(&crew, move || sender.send(index).unwrap());
        }
        crew.close();
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
        assert!(crew.put(Box::new(|| ())).is_err());
    }

    #[test]
    fn who_rests_too_long_leaves_and_its_number_is_used_again() {
        let crew = Arc::new(Crew::new(8, Some(Duration::from_millis(20))));
        let barrier = Arc::new(Barrier::new(4));
        for _ in 0..3 {
            let barrier = barrier.clone();
            put(&crew, move || {
                barrier.wait();
            });
        }
        barrier.wait();
        assert!(crew.workers() <= 3);
        wait_until(|| crew.workers() == 0);
        assert_eq!(crew.put(Box::new(|| ())).ok().unwrap().hire, Some(0));
    }

    #[test]
    fn a_resting_worker_is_preferred_to_a_new_one() {
        let crew = Arc::new(Crew::new(8, None));
        for _ in 0..20 {
            let (sender, receiver) = mpsc::channel();
            put(&crew, move || sender.send(()).unwrap());
            receiver.recv().unwrap();
            wait_until(|| crew.lock().resting.len() == 1);
        }
        assert_eq!(crew.workers(), 1);
        crew.close();
    }

    #[test]
    fn a_job_is_taken_back_only_while_it_is_queued() {
        let crew: Crew<&str> = Crew::new(1, None);
        let first = crew.put("first").ok().unwrap();
        assert_eq!(first.hire, Some(0));
        let second = crew.put("second").ok().unwrap();
        let third = crew.put("third").ok().unwrap();
        assert_eq!((second.hire, third.hire), (None, None));
        assert!(matches!(crew.next(0), Next::Job("first", _)));
        assert_eq!(crew.take_back(first.ticket), None);
        assert_eq!(crew.take_back(second.ticket), Some("second"));
        assert_eq!(crew.take_back(second.ticket), None);
        assert!(matches!(crew.next(0), Next::Job("third", _)));
        assert!(matches!(crew.next(0), Next::Idle));
    }

    #[test]
    fn an_alarm_that_rings_late_does_no_harm() {
        let crew: Crew<&str> = Crew::new(1, None);
        assert_eq!(crew.put("first").ok().unwrap().hire, Some(0));
        assert!(matches!(crew.next(0), Next::Job("first", _)));
        assert!(matches!(crew.next(0), Next::Idle));
        crew.alarm(0).unwrap().rung.store(true, Ordering::Release);
        assert!(crew.rest(0));
        assert!(matches!(crew.next(0), Next::Idle));
        assert_eq!(crew.lock().resting, [0]);
        let put = crew.put("second").ok().unwrap();
        assert_eq!(put.hire, None);
        put.wake.wake();
        assert!(crew.rest(0));
        assert!(matches!(crew.next(0), Next::Job("second", _)));
        assert_eq!(crew.lock().arriving, 0);
    }

    #[test]
    fn a_worker_that_never_came_makes_room() {
        let crew: Crew<()> = Crew::new(1, None);
        assert_eq!(crew.put(()).ok().unwrap().hire, Some(0));
        crew.dismiss(0);
        assert_eq!(crew.workers(), 0);
        assert_eq!(crew.put(()).ok().unwrap().hire, Some(0));
        assert_eq!(crew.drain().len(), 2);
        assert_eq!(crew.queued(), 0);
    }
}

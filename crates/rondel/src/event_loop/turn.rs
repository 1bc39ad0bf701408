//! One turn of the loop.
//!
//! The order is asyncio's: what was ready when the turn began, then the events of this turn's poll,
//! then the timers that were due at the poll. What these schedule waits for the next turn. An
//! exception that leaves the loop (KeyboardInterrupt, SystemExit) may end a turn anywhere; what the
//! turn had not come to stays queued for the next run.
//!
//! Polling costs a system call, so a loop with callbacks to run looks at most every
//! [`POLL_INTERVAL`]. When it lets go of the GIL then is said in [`super::sharing`].

use std::io;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakrefMethods};
use rondel_reactor::clock;
use rondel_reactor::poller::{LEVEL_IS_NATIVE, Readiness};
use rondel_reactor::slab::Key;

use super::sharing::{Offer, Sharing};
use super::watching::{self, Side};
use super::{
    Loop, OnEvent, Ready, Source, State, Step, Target, Watcher, debug, exceptions, nesting,
    rehearsal,
};
use crate::ffi::handle::HandleRef;
use crate::watch;

/// Nanoseconds between looks at the poller while callbacks are ready.
const POLL_INTERVAL: u64 = 50_000;
/// While turns are short, so many of them in a row do without looking at the clock, which would be a
/// good part of their time; timers and the poller wait for that long.
const BLIND_TURNS: u32 = 4;
/// Nanoseconds between two looks at the clock that count as short.
const SHORT_TURNS: u64 = 10_000;
/// asyncio's longest wait: a day.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Runs turns until stop() was called.
pub fn run(event_loop: &Bound<'_, Loop>) -> PyResult<()> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    let director = state.director.borrow().as_ref().map(|director| director.clone_ref(py));
    if let Some(director) = director {
        return rehearsal::run(event_loop, director.bind(py));
    }
    loop {
        run_once(event_loop, state, &|| Ok(false))?;
        if state.stopping.get() {
            return Ok(());
        }
    }
}

/// One turn, which ends early when `ended` says so after a callback: what is left then is for the run
/// that this one is nested into.
pub fn run_once(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    ended: &impl Fn() -> PyResult<bool>,
) -> PyResult<()> {
    if !goes_blindly(state) {
        poll(event_loop.py(), state)?;
    }
    without_poll(event_loop, state, ended)
}

/// A turn of what there is.
pub fn without_poll(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    ended: &impl Fn() -> PyResult<bool>,
) -> PyResult<()> {
    let left = state.ready.borrow().len();
    state.left.set(left);
    state.meter.turn(left);
    let result = run_collected(event_loop, state, ended);
    state.spare_context.clear();
    if result.is_err() {
        keep_order(state, state.left.take());
    }
    result
}

/// An exception leaves the loop in the middle of a turn: its timers go back to where they stand in
/// the order, behind the `left` callbacks of the turn and before what those before them scheduled.
fn keep_order(state: &State, left: usize) {
    let due = state.due.take();
    let mut ready = state.ready.borrow_mut();
    let end = left.min(ready.len());
    let later = ready.split_off(end);
    ready.extend(due.into_iter().map(Ready::Handle));
    ready.extend(later);
}

fn run_collected(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    ended: &impl Fn() -> PyResult<bool>,
) -> PyResult<()> {
    let py = event_loop.py();
    while state.left.get() > 0 {
        let Some(ready) = state.ready.borrow_mut().pop_front() else { break };
        state.left.set(state.left.get() - 1);
        run_ready(event_loop, state, ready)?;
        if ended()? {
            return Ok(());
        }
    }
    state.gathered.send(py);
    if run_events(event_loop, state, ended)? {
        return Ok(());
    }
    loop {
        let Some(handle) = state.due.borrow_mut().pop_front() else { break };
        run_handle(event_loop, state, &handle)?;
        if ended()? {
            return Ok(());
        }
    }
    state.gathered.send(py);
    Ok(())
}

/// Leads the events that were collected to their sources; true if `ended` said so in between.
#[inline(always)]
pub fn run_events(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    ended: &impl Fn() -> PyResult<bool>,
) -> PyResult<bool> {
    loop {
        let Some(event) = state.events.borrow_mut().pop_front() else { break };
        dispatch(event_loop, state, event.key, event.readiness)?;
        if ended()? {
            return Ok(true);
        }
    }
    state.gathered.send(event_loop.py());
    Ok(false)
}

/// Whether the turn does without a poll and a look at the clock.
#[inline(always)]
fn goes_blindly(state: &State) -> bool {
    let blind = state.blind_turns.get();
    let goes = blind > 0 && is_busy(state);
    if goes {
        state.blind_turns.set(blind - 1);
    }
    goes
}

/// Collects events and due timers, waiting for them when nothing else is to do.
fn poll(py: Python<'_>, state: &State) -> PyResult<()> {
    if !is_busy(state) {
        // A signal that came after the last bytecode, while native code sent or received, would not
        // interrupt the wait that comes. Its handler may add callbacks and timers.
        py.check_signals()?;
    }
    drop_cancelled_timers(state);
    // From here until the loop counts as sleeping no Python code runs, so nobody can add work
    // without either being seen here or waking the loop.
    let busy = is_busy(state);
    let now = clock::now_ns();
    let since = now.saturating_sub(state.last_look.replace(now));
    state.blind_turns.set(if since < SHORT_TURNS { BLIND_TURNS } else { 0 });
    let deadline = state.timers.borrow().next_deadline();
    let after;
    if busy && now.saturating_sub(state.last_poll.get()) < POLL_INTERVAL {
        after = now;
    } else {
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            deadline.map(|d| Duration::from_nanos(d.saturating_sub(now)).min(LONGEST_WAIT))
        };
        state.meter.goes(now, busy);
        let kept = wait(py, state, timeout, now)?;
        after = clock::now_ns();
        state.last_poll.set(after);
        if kept {
            state.meter.looked(now, after);
        }
    }
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= after) {
        state.meter.overdue(after - deadline);
        let mut timers = state.timers.borrow_mut();
        let mut due = state.due.borrow_mut();
        let mut cancelled = 0;
        timers.pop_due(after, |handle| {
            handle.set_scheduled(false);
            cancelled += usize::from(handle.is_cancelled());
            due.push_back(handle);
        });
        timers.note_popped_cancelled(cancelled);
    }
    Ok(())
}

/// Whether a poll would not wait.
#[inline(always)]
pub fn is_busy(state: &State) -> bool {
    state.stopping.get()
        || !state.ready.borrow().is_empty()
        || !state.events.borrow().is_empty()
        || !state.due.borrow().is_empty()
}

/// Takes cancelled timers from the top of the heap, so that nobody waits for them.
#[inline(always)]
pub fn drop_cancelled_timers(state: &State) {
    loop {
        // Dropped at the end of the pass, after the borrow.
        let _dead = {
            let mut timers = state.timers.borrow_mut();
            match timers.peek() {
                Some(handle) if handle.is_cancelled() => {
                    handle.set_scheduled(false);
                    timers.note_popped_cancelled(1);
                    timers.pop()
                }
                _ => return,
            }
        };
    }
}

/// Waits in the poller for at most `timeout` (None: until something arrives) and collects its events;
/// whether it kept the GIL meanwhile.
#[inline(always)]
pub fn wait(py: Python<'_>, state: &State, timeout: Option<Duration>, now: u64) -> PyResult<bool> {
    let brief = timeout == Some(Duration::ZERO);
    let Some(mut poller) = state.poller.borrow_mut().take() else {
        // Another thread waits in it: this loop is being run twice, which its checks prevent.
        return Ok(true);
    };
    let mut events = state.spare_events.take();
    let offer = if brief { state.sharing.offer(py, now) } else { Offer::Release };
    let result = if offer == Offer::Keep {
        poller.wait(timeout, &mut events)
    } else {
        state.sleeping.set(!brief);
        let result = py.detach(|| {
            if offer == Offer::Pause {
                Sharing::pause();
            }
            let result = poller.wait(timeout, &mut events);
            (result, poller, clock::now_ns())
        });
        poller = result.1;
        state.sleeping.set(false);
        let back = state.sharing.taken_back(offer, result.2);
        state.meter.waited(brief, now, result.2, back);
        result.0
    };
    state.poller.replace(Some(poller));
    state.meter.brought(events.len());
    state.events.borrow_mut().extend(events.drain(..));
    state.spare_events.replace(events);
    match result {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(crate::errors::os_error(py, &error)),
    }
    // Python's signal handlers run here; what they raise leaves the loop.
    py.check_signals()?;
    Ok(offer == Offer::Keep)
}

/// Runs what has waited in the queue.
#[inline(always)]
pub fn run_ready(event_loop: &Bound<'_, Loop>, state: &State, ready: Ready) -> PyResult<()> {
    let handle = match ready {
        Ready::Handle(handle) => handle,
        Ready::Call(call) => call.into_handle(event_loop)?,
        Ready::Step(target, step) => {
            return run_step(event_loop, state, target.bind(event_loop.py()), step);
        }
    };
    run_handle(event_loop, state, &handle)
}

/// Runs a callback and what belongs to the end of each.
#[inline]
fn run_handle<'py>(
    event_loop: &Bound<'py, Loop>,
    state: &State,
    handle: &HandleRef,
) -> PyResult<()> {
    if handle.is_cancelled() {
        return Ok(());
    }
    let py = event_loop.py();
    if state.observed.get() {
        return watch::watched(py, state, &handle.bind(py), || {
            nesting::noted(state, handle.clone_ref(py), || run_timed(event_loop, state, handle))
        });
    }
    run_timed(event_loop, state, handle)
}

#[inline]
fn run_timed(event_loop: &Bound<'_, Loop>, state: &State, handle: &HandleRef) -> PyResult<()> {
    if state.debug.get() {
        return debug::timed(event_loop, handle, || run_plain(event_loop.py(), state, handle));
    }
    run_plain(event_loop.py(), state, handle)
}

#[inline]
fn run_plain(py: Python<'_>, state: &State, handle: &HandleRef) -> PyResult<()> {
    let result = handle.call_in_context(py);
    end_of_callback(py, state);
    match result {
        Ok(()) => Ok(()),
        Err(error) => crate::handle::report(py, handle, error),
    }
}

/// Runs a step of native code.
fn run_step(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    target: &Bound<'_, PyAny>,
    step: Step,
) -> PyResult<()> {
    let result = observed(event_loop, state, target, || step(target));
    end_of_callback(event_loop.py(), state);
    report_native(event_loop, target, result)
}

/// Gives an event to native code.
fn run_native(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    target: &Bound<'_, PyAny>,
    on_event: OnEvent,
    readiness: Readiness,
) -> PyResult<()> {
    let result = observed(event_loop, state, target, || on_event(target, readiness));
    end_of_callback(event_loop.py(), state);
    report_native(event_loop, target, result)
}

/// Runs native code under the eyes of debug mode and of the watchdog.
#[inline]
fn observed(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    target: &Bound<'_, PyAny>,
    run: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    let run = || {
        if state.debug.get() { debug::timed_native(event_loop, target, run) } else { run() }
    };
    if state.observed.get() {
        return watch::watched(event_loop.py(), state, target, run);
    }
    run()
}

/// Reports what a native callback raised. Stream transports handle their protocols' exceptions
/// themselves; those of a datagram's protocol come here, as asyncio leaves them to the callback.
#[inline]
pub fn report_native(
    event_loop: &Bound<'_, Loop>,
    target: &Bound<'_, PyAny>,
    result: PyResult<()>,
) -> PyResult<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => report_native_error(event_loop, target, error),
    }
}

#[cold]
fn report_native_error(
    event_loop: &Bound<'_, Loop>,
    target: &Bound<'_, PyAny>,
    error: PyErr,
) -> PyResult<()> {
    let py = event_loop.py();
    if exceptions::must_propagate(py, &error) {
        return Err(error);
    }
    let context = PyDict::new(py);
    context.set_item("message", format!("Exception in callback of {}", target.repr()?))?;
    context.set_item("exception", crate::errors::exception(py, &error))?;
    exceptions::call_handler(event_loop, &context)
}

#[inline]
fn end_of_callback(py: Python<'_>, state: &State) {
    state.meter.callback();
    state.gathered.end_of_callback(py);
}

/// Leads an event to its source; one that was removed meanwhile has no source any more.
fn dispatch<'py>(
    event_loop: &Bound<'py, Loop>,
    state: &State,
    key: Key,
    readiness: Readiness,
) -> PyResult<()> {
    let py = event_loop.py();
    let native: Option<(Py<PyAny>, OnEvent)> = match state.sources.borrow().get(key) {
        None => return Ok(()),
        Some(Source::Native { target: Target::Held(target), on_event }) => {
            Some((target.clone_ref(py), *on_event))
        }
        Some(Source::Native { target: Target::Dormant(target), on_event }) => {
            match target.bind(py).upgrade() {
                Some(target) => Some((target.unbind(), *on_event)),
                None => return Ok(()),
            }
        }
        Some(Source::Watched { .. }) => None,
    };
    if let Some((target, on_event)) = native {
        return run_native(event_loop, state, target.bind(py), on_event, readiness);
    }
    if readiness.readable {
        notify(event_loop, state, key, (Side::Read, readiness))?;
    }
    if readiness.writable {
        notify(event_loop, state, key, (Side::Write, readiness))?;
    }
    if !LEVEL_IS_NATIVE {
        watching::arm_again(state, key);
    }
    Ok(())
}

fn notify<'py>(
    event_loop: &Bound<'py, Loop>,
    state: &State,
    key: Key,
    (side, readiness): (Side, Readiness),
) -> PyResult<()> {
    let py = event_loop.py();
    let mut native: Option<(Py<PyAny>, OnEvent)> = None;
    let callback = match state.sources.borrow().get(key) {
        Some(Source::Watched { reader, writer, .. }) => {
            match if side == Side::Read { reader } else { writer } {
                None => return Ok(()),
                Some(Watcher::Handle(handle)) => Some(handle.clone_ref(py)),
                Some(Watcher::Future(_)) => None,
                Some(Watcher::Native(target, on_event)) => {
                    native = Some((target.clone_ref(py), *on_event));
                    None
                }
            }
        }
        _ => return Ok(()),
    };
    if let Some((target, on_event)) = native {
        return run_native(event_loop, state, target.bind(py), on_event, readiness);
    }
    match callback {
        Some(handle) if handle.is_cancelled() => {
            // The program cancelled the handle instead of removing the watcher.
            watching::clear_side(state, key, side);
            Ok(())
        }
        // It waits in a run that is nested into it, and will be called again when it has returned.
        Some(handle) if handle.is_running() => Ok(()),
        Some(handle) => run_handle(event_loop, state, &handle),
        None => {
            if let Some(Watcher::Future(future)) = watching::clear_side(state, key, side) {
                set_none_unless_done(future.bind(py))?;
            }
            Ok(())
        }
    }
}

/// Sets a waiter's result to None, unless it is done (cancelled, usually).
pub fn set_none_unless_done(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if !future.call_method0(pyo3::intern!(py, "done"))?.is_truthy()? {
        future.call_method1(pyo3::intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}

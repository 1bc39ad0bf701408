//! Sockets that stay in the poller between the waits of `sock_recv` and relatives.
//!
//! Adding a descriptor to the poller for a wait and removing it afterwards costs more than receiving
//! does, and a program that waits on a socket once will do so again. So the socket stays,
//! edge-triggered: an edge that nobody waits for means nothing, since every operation tries before it
//! waits, and after a try in vain the next edge is still to come.
//!
//! The sockets are the program's, which closes them without a word; the kernel then forgets them, and
//! another socket may get the number. What stays is therefore tied to the socket *object*: for any other
//! object with the same number the entry is void ([`wait`]). Whoever else puts a descriptor into the
//! poller takes such an entry out before ([`displace`]).

use std::cell::RefCell;
use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::poller::Readiness;

use super::{Source, State, Target, turn};
use crate::ffi::confined::Confined;

/// A socket in the poller, and the future of who waits until it can be read.
#[pyclass(frozen, module = "rondel._rondel", name = "LastingWatch")]
struct LastingWatch {
    state: Confined<Watched>,
}

struct Watched {
    /// The object that it is true of.
    sock: Py<PyWeakrefReference>,
    waiter: RefCell<Option<Py<PyAny>>>,
}

#[pymethods]
impl LastingWatch {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(state) = self.state.in_traverse(&visit) else { return Ok(()) };
        visit.call(&state.sock)?;
        match state.waiter.try_borrow() {
            Ok(waiter) => visit.call(&*waiter),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.state.get(py).waiter.take());
    }
}

impl Watched {
    fn is_of(&self, sock: &Bound<'_, PyAny>) -> bool {
        self.sock.bind(sock.py()).upgrade().is_some_and(|known| known.is(sock))
    }
}

/// The entry of a descriptor.
fn entry<'py>(py: Python<'py>, state: &State, fd: RawFd) -> Option<Bound<'py, LastingWatch>> {
    let key = *state.lasting.borrow().get(&fd)?;
    match state.sources.borrow().get(key) {
        Some(Source::Native { target: Target::Held(target), .. }) => {
            target.bind(py).cast_exact::<LastingWatch>().ok().cloned()
        }
        _ => None,
    }
}

/// Sets a future's result when the socket can be read next: after a try that found nothing. False
/// where the socket cannot stay in the poller, and nothing has changed.
pub fn wait(state: &State, fd: RawFd, sock: &Bound<'_, PyAny>, future: &Py<PyAny>) -> bool {
    let py = sock.py();
    if state.watched.borrow().contains_key(&fd) {
        return false; // the program watches it as well, or sends on it
    }
    if let Some(known) = entry(py, state, fd) {
        let watched = known.get().state.get(py);
        if watched.is_of(sock) {
            drop(watched.waiter.replace(Some(future.clone_ref(py))));
            return true;
        }
        drop(displace(state, fd));
    }
    // Objects that are not sockets may not allow it.
    let Ok(weak) = PyWeakrefReference::new(sock) else { return false };
    let watched = Watched { sock: weak.unbind(), waiter: RefCell::new(Some(future.clone_ref(py))) };
    let Ok(target) = Bound::new(py, LastingWatch { state: Confined::new(watched) }) else {
        return false;
    };
    match state.add_native(fd, target.into_any().unbind(), ready) {
        Ok(key) => {
            state.lasting.borrow_mut().insert(fd, key);
            true
        }
        Err(_) => false, // the other way tells why
    }
}

/// The socket is ready.
fn ready(target: &Bound<'_, PyAny>, readiness: Readiness) -> PyResult<()> {
    let py = target.py();
    if !readiness.readable {
        return Ok(());
    }
    let waiter = target.cast_exact::<LastingWatch>()?.get().state.get(py).waiter.take();
    match waiter {
        Some(waiter) => turn::set_none_unless_done(waiter.bind(py)),
        None => Ok(()),
    }
}

/// Ends a wait: of this future, or of whichever there is. True if there was one.
pub fn forget(py: Python<'_>, state: &State, fd: RawFd, future: Option<&Py<PyAny>>) -> bool {
    let Some(known) = entry(py, state, fd) else { return false };
    let waiter = &known.get().state.get(py).waiter;
    let is_meant = match (&*waiter.borrow(), future) {
        (Some(waiter), Some(future)) => waiter.is(future),
        (waiter, _) => waiter.is_some(),
    };
    is_meant && waiter.take().is_some()
}

/// Takes a descriptor out of the poller that somebody else is to put there. Returns who waits for it.
pub fn displace(state: &State, fd: RawFd) -> Option<Py<PyAny>> {
    if state.lasting.borrow().is_empty() {
        return None;
    }
    let waiter = Python::attach(|py| entry(py, state, fd)?.get().state.get(py).waiter.take());
    let key = state.lasting.borrow_mut().remove(&fd)?;
    // If the number has another owner, the kernel says that it is not there.
    state.remove_native(fd, key);
    waiter
}

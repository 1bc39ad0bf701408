//! Descriptors that the program watches itself: add_reader, add_writer and the waits of sock_*.

use std::os::fd::RawFd;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use rondel_reactor::poller::Watch;
use rondel_reactor::slab::Key;

use super::{Loop, Source, State, Watcher, lasting};
use crate::ffi::handle::HandleRef;

/// Reading or writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Data, connections, ends of file.
    Read,
    /// Room in the send buffer, finished connects.
    Write,
}

/// The descriptor of an int or of an object with fileno().
fn fileno(object: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    let number = if let Ok(number) = object.extract::<RawFd>() {
        Some(number)
    } else {
        object
            .call_method0(intern!(object.py(), "fileno"))
            .and_then(|number| number.extract::<RawFd>())
            .ok()
    };
    match number {
        Some(number) if number >= 0 => Ok(number),
        Some(number) => Err(PyValueError::new_err(format!("Invalid file descriptor: {number}"))),
        None => Err(PyValueError::new_err(format!("Invalid file object: {}", object.repr()?))),
    }
}

/// # Errors
/// `RuntimeError` when an open transport uses the descriptor.
pub fn check_no_transport(
    event_loop: &Bound<'_, Loop>,
    fd: RawFd,
    given: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = event_loop.py();
    let Some(transport) = event_loop.get().state(py).transport_of(py, fd) else { return Ok(()) };
    if transport.call_method0(intern!(py, "is_closing"))?.is_truthy()? {
        return Ok(());
    }
    Err(PyRuntimeError::new_err(format!(
        "File descriptor {} is used by transport {}",
        given.repr()?,
        transport.repr()?
    )))
}

/// `loop.add_reader(fd, callback, *args)` and `add_writer`.
pub fn add(
    event_loop: &Bound<'_, Loop>,
    fd: &Bound<'_, PyAny>,
    side: Side,
    callback: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<()> {
    let py = event_loop.py();
    let given = fd;
    let fd = fileno(given)?;
    check_no_transport(event_loop, fd, given)?;
    let state = event_loop.get().state(py);
    state.check_closed()?;
    let handle = HandleRef::from_parts(event_loop, callback, args, None)?;
    if state.debug.get() {
        super::debug::note_origin(py, &handle)?;
    }
    watch(py, state, fd, side, Watcher::Handle(handle))
}

/// `loop.remove_reader(fd)` and `remove_writer`: whether there was a watcher.
pub fn remove(event_loop: &Bound<'_, Loop>, fd: &Bound<'_, PyAny>, side: Side) -> PyResult<bool> {
    let py = event_loop.py();
    let given = fd;
    let fd = fileno(given)?;
    check_no_transport(event_loop, fd, given)?;
    let state = event_loop.get().state(py);
    if state.closed.get() {
        return Ok(false);
    }
    let key = state.watched.borrow().get(&fd).copied();
    let Some(key) = key else {
        return Ok(side == Side::Read && lasting::forget(py, state, fd, None));
    };
    let removed = clear_side(state, key, side);
    if let Some(Watcher::Handle(handle)) = &removed {
        crate::handle::cancel(py, handle)?;
    }
    Ok(removed.is_some())
}

/// Watches a descriptor; a watcher of the same side is replaced and cancelled.
///
/// # Errors
/// `OSError` when the descriptor cannot be polled; nothing has changed then.
pub fn watch(
    py: Python<'_>,
    state: &State,
    fd: RawFd,
    side: Side,
    watcher: Watcher,
) -> PyResult<()> {
    let existing = state.watched.borrow().get(&fd).copied();
    let Some(key) = existing else {
        // Who waits for reading is replaced, or goes on to wait here.
        let waiter = lasting::displace(state, fd).map(Watcher::Future);
        let (reader, writer, waiter) = match side {
            Side::Read => (Some(watcher), None, waiter),
            Side::Write => (waiter, Some(watcher), None),
        };
        drop(waiter);
        let wanted = Watch { read: reader.is_some(), write: writer.is_some() };
        let key = state.sources.borrow_mut().insert(Source::Watched { fd, reader, writer });
        let added = state.registrar(|registrar| registrar.add_level(fd, key, wanted));
        state.undo_unless_added(key, added)?;
        state.watched.borrow_mut().insert(fd, key);
        return Ok(());
    };
    let mut wanted = wanted(state, key);
    let had = if side == Side::Read { wanted.read } else { wanted.write };
    match side {
        Side::Read => wanted.read = true,
        Side::Write => wanted.write = true,
    }
    if !had {
        state.registrar(|registrar| {
            // A descriptor that was closed and opened again is not in the poller any more.
            match registrar.change_level(fd, key, wanted) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    registrar.add_level(fd, key, wanted)
                }
                result => result,
            }
        })?;
    } else if state.registrar(|registrar| registrar.change_level(fd, key, wanted)).is_err() {
        state.registrar(|registrar| registrar.add_level(fd, key, wanted))?;
    }
    let old = match state.sources.borrow_mut().get_mut(key) {
        Some(Source::Watched { reader, writer, .. }) => {
            let slot = if side == Side::Read { reader } else { writer };
            slot.replace(watcher)
        }
        _ => None,
    };
    if let Some(Watcher::Handle(handle)) = &old {
        crate::handle::cancel(py, handle)?;
    }
    Ok(())
}

fn wanted(state: &State, key: Key) -> Watch {
    match state.sources.borrow().get(key) {
        Some(Source::Watched { reader, writer, .. }) => {
            Watch { read: reader.is_some(), write: writer.is_some() }
        }
        _ => Watch { read: false, write: false },
    }
}

/// Takes the watcher of one side away and tells the poller.
pub fn clear_side(state: &State, key: Key, side: Side) -> Option<Watcher> {
    let (fd, removed) = match state.sources.borrow_mut().get_mut(key) {
        Some(Source::Watched { fd, reader, writer }) => {
            let slot = if side == Side::Read { reader } else { writer };
            (*fd, slot.take())
        }
        _ => return None,
    };
    removed.as_ref()?;
    let wanted = wanted(state, key);
    // The descriptor may be closed by now, which removed it from the poller: no error to report.
    let _ = state.registrar(|registrar| {
        if wanted.is_empty() {
            registrar.remove(fd)
        } else {
            registrar.change_level(fd, key, wanted)
        }
    });
    if wanted.is_empty() {
        state.watched.borrow_mut().remove(&fd);
        drop(state.sources.borrow_mut().remove(key));
    }
    removed
}

/// Where the poller has no level-triggered sources of its own: asks again for what is wanted.
pub fn arm_again(state: &State, key: Key) {
    let fd = match state.sources.borrow().get(key) {
        Some(Source::Watched { fd, .. }) => *fd,
        _ => return,
    };
    let wanted = wanted(state, key);
    let _ = state.registrar(|registrar| registrar.change_level(fd, key, wanted));
}

/// Changes what a native level-triggered source is watched for; nothing takes it out of the poller.
pub fn change_native(
    state: &State,
    fd: RawFd,
    key: Key,
    before: Watch,
    wanted: Watch,
) -> PyResult<()> {
    if before.is_empty() {
        drop(lasting::displace(state, fd));
    }
    state.registrar(|registrar| match (before.is_empty(), wanted.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => registrar.add_level(fd, key, wanted),
        (false, true) => registrar.remove(fd),
        (false, false) => registrar.change_level(fd, key, wanted),
    })
}

/// Ends the wait of a native coroutine that watches with this future, if it still does.
pub fn forget_future(py: Python<'_>, state: &State, fd: RawFd, side: Side, future: &Py<PyAny>) {
    forget(state, fd, side, future);
    if side == Side::Read {
        lasting::forget(py, state, fd, Some(future));
    }
}

/// Stops watching for native code, if it still does.
pub fn forget_native(state: &State, fd: RawFd, side: Side, target: &Bound<'_, PyAny>) {
    forget(state, fd, side, target.as_unbound());
}

fn forget(state: &State, fd: RawFd, side: Side, who: &Py<PyAny>) {
    let key = state.watched.borrow().get(&fd).copied();
    let Some(key) = key else { return };
    let is_ours = match state.sources.borrow().get(key) {
        Some(Source::Watched { reader, writer, .. }) => {
            let slot = if side == Side::Read { reader } else { writer };
            matches!(slot, Some(Watcher::Future(w) | Watcher::Native(w, _)) if w.is(who))
        }
        _ => false,
    };
    if is_ours {
        drop(clear_side(state, key, side));
    }
}

//! Turns: operations on one file come one after the other, in the order in which they were awaited.
//!
//! Who has the turn holds a [`Turn`], which may travel to a thread. When it goes, the turn passes to
//! who has waited longest.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use pyo3::intern;
use pyo3::prelude::*;

use super::file::File;
use super::job::running_loop;
use crate::coroutine::Waiting;
use crate::imports;

/// The turns of one file.
#[derive(Default)]
pub struct Turns {
    taken: Cell<bool>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    event_loop: Py<PyAny>,
    future: Py<PyAny>,
    granted: Cell<bool>,
}

impl Turns {
    /// Whether somebody waits.
    pub fn is_wanted(&self) -> bool {
        !self.waiters.borrow().is_empty()
    }

    /// Passes the turn on.
    fn pass(&self, py: Python<'_>) {
        let next = self.waiters.borrow_mut().pop_front();
        let Some(next) = next else {
            self.taken.set(false);
            return;
        };
        next.granted.set(true);
        let wake = imports::set_unless_cancelled(py).and_then(|wake| {
            next.event_loop
                .bind(py)
                .call_method1(intern!(py, "call_soon_threadsafe"), (wake, &next.future, py.None()))
        });
        // A loop that is closed wakes nobody; the turn passes on when the coroutine goes.
        drop(wake);
    }
}

/// The turn, for as long as this exists.
pub struct Turn(Py<File>);

impl Turn {
    /// Takes the turn if nobody has it.
    pub fn take(py: Python<'_>, file: &Py<File>) -> Option<Turn> {
        let turns = file.get().turns(py);
        if turns.taken.replace(true) {
            return None;
        }
        Some(Turn(file.clone_ref(py)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        Python::attach(|py| {
            let file = self.0.get();
            file.before_next_turn(py);
            file.turns(py).pass(py);
        });
    }
}

/// A place in the queue, given up when it is dropped.
struct Place {
    file: Py<File>,
    waiter: Rc<Waiter>,
}

impl Drop for Place {
    fn drop(&mut self) {
        Python::attach(|py| {
            if self.waiter.granted.get() {
                drop(Turn(self.file.clone_ref(py)));
            } else {
                let turns = self.file.get().turns(py);
                turns.waiters.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
            }
        });
    }
}

/// Waits for the turn.
pub async fn wait(waiting: &Waiting, file: &Py<File>) -> PyResult<Turn> {
    let place = Python::attach(|py| {
        let event_loop = running_loop(py)?;
        let future = event_loop.call_method0(intern!(py, "create_future"))?.unbind();
        let event_loop = event_loop.unbind();
        // Making the future may have let other threads run.
        if let Some(turn) = Turn::take(py, file) {
            return PyResult::Ok(Err(turn));
        }
        let waiter = Rc::new(Waiter { event_loop, future, granted: Cell::new(false) });
        file.get().turns(py).waiters.borrow_mut().push_back(waiter.clone());
        Ok(Ok(Place { file: file.clone_ref(py), waiter }))
    })?;
    let place = match place {
        Ok(place) => place,
        Err(turn) => return Ok(turn),
    };
    let future = Python::attach(|py| place.waiter.future.clone_ref(py));
    waiting.wait(future).await?;
    // The turn goes from the place to who asked.
    place.waiter.granted.set(false);
    Ok(Turn(Python::attach(|py| place.file.clone_ref(py))))
}

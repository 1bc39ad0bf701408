//! `Queue`: putting and getting without a Python frame, and waiting where there is no room or nothing.
//!
//! The items are in what asyncio's `_init()` has made: a deque, or a list for the other two orders.

use std::cell::Cell;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::{is_cancelled, is_done, new_deque, new_waiter, none, outcome, remove, stock};
use crate::ffi::confined::Confined;
use crate::ffi::lookup;
use crate::ffi::operation::Operation;
use crate::imports;
use crate::streams::Attribute;
use crate::streams::operation::{Kind, Step};

const CLASS: &str = "Queue";

/// In which order items leave.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Order {
    /// A program's own class decides.
    #[default]
    Unknown,
    First,
    Least,
    Last,
}

/// The native part of `rondel.Queue`.
#[pyclass(frozen, subclass, dict, weakref, module = "rondel._rondel", name = "Queue")]
pub struct Queue {
    state: Confined<State>,
}

#[derive(Default)]
struct State {
    order: Cell<Order>,
    maxsize: Attribute,
    /// The same as a number, 0 for no limit; None if it is no integer.
    limit: Cell<Option<usize>>,
    items: Attribute,
    getters: Attribute,
    putters: Attribute,
    unfinished: Cell<i64>,
    /// The event of join(), once somebody has asked for it.
    finished: Attribute,
    is_shut_down: Cell<bool>,
    event_loop: Attribute,
}

impl State {
    fn set_maxsize(&self, maxsize: &Bound<'_, PyAny>) {
        let limit = match maxsize.cast_exact::<PyInt>() {
            Ok(number) => number.extract::<i64>().ok().map(|number| {
                usize::try_from(number).unwrap_or(0) // negative: no limit
            }),
            Err(_) => None,
        };
        self.limit.set(limit);
        self.maxsize.set(maxsize.clone());
    }

    fn getters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.getters.get(py, CLASS, "_getters")
    }

    fn putters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.putters.get(py, CLASS, "_putters")
    }

    /// `_finished.set()` or `_finished.clear()`.
    #[inline]
    fn tell_joining(&self, py: Python<'_>, finished: bool) -> PyResult<()> {
        let Some(event) = self.finished.value(py) else { return Ok(()) };
        let method = if finished { intern!(py, "set") } else { intern!(py, "clear") };
        event.call_method0(method).map(drop)
    }
}

/// What `_wakeup_next()` does.
#[inline]
fn wake_next(waiters: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = waiters.py();
    while waiters.len()? > 0 {
        let waiter = waiters.call_method0(intern!(py, "popleft"))?;
        if !is_done(&waiter)? {
            return waiter.call_method1(intern!(py, "set_result"), (py.None(),)).map(drop);
        }
    }
    Ok(())
}

fn shut_down(py: Python<'_>) -> PyErr {
    imports::queue_shut_down(py)
        .and_then(|class| class.call0())
        .map_or_else(|error| error, PyErr::from_value)
}

/// A queue whose methods are all known.
struct Plain<'a, 'py> {
    state: &'a State,
    items: Bound<'py, PyAny>,
    limit: usize,
    order: Order,
}

impl<'a, 'py> Plain<'a, 'py> {
    #[inline]
    fn of(queue: &'a Bound<'py, Queue>) -> PyResult<Option<Self>> {
        let py = queue.py();
        let state = queue.get().state.get(py);
        let order = state.order.get();
        let Some(limit) = state.limit.get() else { return Ok(None) };
        if order == Order::Unknown || lookup::has_attributes(queue.as_any()) {
            return Ok(None);
        }
        let Some(items) = state.items.value(py) else { return Ok(None) };
        let expected = match order {
            Order::First => items.get_type().is(imports::deque(py)?),
            _ => items.is_exact_instance_of::<PyList>(),
        };
        Ok(expected.then_some(Plain { state, items, limit, order }))
    }

    #[inline]
    fn is_full(&self) -> PyResult<bool> {
        Ok(self.limit != 0 && self.items.len()? >= self.limit)
    }

    #[inline]
    fn is_empty(&self) -> PyResult<bool> {
        Ok(self.items.len()? == 0)
    }

    /// What `put_nowait()` does when there is room.
    #[inline]
    fn put(&self, item: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = item.py();
        if self.order == Order::Least {
            imports::heappush(py)?.call1((&self.items, item))?;
        } else {
            self.items.call_method1(intern!(py, "append"), (item,))?;
        }
        self.state.unfinished.set(self.state.unfinished.get() + 1);
        self.state.tell_joining(py, false)?;
        wake_next(&self.state.getters(py)?)
    }

    /// What `get_nowait()` does when there is something.
    #[inline]
    fn get(&self) -> PyResult<Bound<'py, PyAny>> {
        let py = self.items.py();
        let item = match self.order {
            Order::Least => imports::heappop(py)?.call1((&self.items,)),
            Order::Last => self.items.call_method0(intern!(py, "pop")),
            _ => self.items.call_method0(intern!(py, "popleft")),
        }?;
        wake_next(&self.state.putters(py)?)?;
        Ok(item)
    }
}

/// `put()`, from its start or after a wait.
pub fn put<'py>(
    owner: &Bound<'py, PyAny>,
    operation: Operation<'_>,
    waited: Option<Bound<'py, PyAny>>,
    answer: PyResult<()>,
) -> PyResult<Step<'py>> {
    let py = owner.py();
    let queue = owner.cast::<Queue>()?;
    let state = queue.get().state.get(py);
    if let Some(waited) = waited {
        wait_ended(queue, &state.putters(py)?, &waited, answer, intern!(py, "full"))?;
    }
    let item = operation.argument(py).unwrap_or_else(|| py.None().into_bound(py));
    let Some(plain) = Plain::of(queue)? else {
        return stock(imports::stock_queue(py)?, "put", (owner, item));
    };
    if state.is_shut_down.get() {
        return Err(shut_down(py));
    }
    if plain.is_full()? {
        return new_waiter(owner, &state.event_loop, &state.putters(py)?);
    }
    plain.put(&item)?;
    Ok(none(py))
}

/// `get()`, likewise.
pub fn get<'py>(
    owner: &Bound<'py, PyAny>,
    waited: Option<Bound<'py, PyAny>>,
    answer: PyResult<()>,
) -> PyResult<Step<'py>> {
    let py = owner.py();
    let queue = owner.cast::<Queue>()?;
    let state = queue.get().state.get(py);
    if let Some(waited) = waited {
        wait_ended(queue, &state.getters(py)?, &waited, answer, intern!(py, "empty"))?;
    }
    let Some(plain) = Plain::of(queue)? else {
        return stock(imports::stock_queue(py)?, "get", (owner,));
    };
    if plain.is_empty()? {
        if state.is_shut_down.get() {
            return Err(shut_down(py));
        }
        return new_waiter(owner, &state.event_loop, &state.getters(py)?);
    }
    plain.get().map(Step::Done)
}

/// After a wait that ended in an error: nobody may wait longer for it.
fn wait_ended<'py>(
    queue: &Bound<'py, Queue>,
    waiters: &Bound<'py, PyAny>,
    waited: &Bound<'py, PyAny>,
    answer: PyResult<()>,
    obstacle: &Bound<'py, pyo3::types::PyString>,
) -> PyResult<()> {
    let Err(error) = outcome(waited, answer) else { return Ok(()) };
    waited.call_method0(intern!(queue.py(), "cancel"))?;
    remove(waiters, waited)?;
    if !queue.call_method0(obstacle)?.is_truthy()? && !is_cancelled(waited)? {
        // It was woken, and cannot use that: the next one can.
        wake_next(waiters)?;
    }
    Err(error)
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Queue { state: Confined::new(State::default()) }
    }

    /// What `__init__` does. `order` is 1, 2 or 3 for the class Queue, PriorityQueue or LifoQueue
    /// itself, and 0 for a subclass of a program.
    fn _start(&self, maxsize: &Bound<'_, PyAny>, order: u8) -> PyResult<()> {
        let py = maxsize.py();
        let state = self.state.get(py);
        state.set_maxsize(maxsize);
        state.getters.set(new_deque(py)?);
        state.putters.set(new_deque(py)?);
        state.unfinished.set(0);
        drop(state.finished.take(py));
        state.is_shut_down.set(false);
        state.order.set(match order {
            1 => Order::First,
            2 => Order::Least,
            3 => Order::Last,
            _ => Order::Unknown,
        });
        Ok(())
    }

    /// Put an item into the queue; wait while it is full.
    fn put<'py>(slf: &Bound<'py, Self>, item: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::Put), slf, Some(item), 0)
    }

    /// Take an item out of the queue; wait while it is empty.
    fn get<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::Get), slf, None, 0)
    }

    /// Put an item into the queue, or raise QueueFull.
    fn put_nowait<'py>(slf: &Bound<'py, Self>, item: Bound<'py, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let Some(plain) = Plain::of(slf)? else {
            return imports::stock_queue(py)?.call_method1("put_nowait", (slf, item)).map(drop);
        };
        if plain.state.is_shut_down.get() {
            return Err(shut_down(py));
        }
        if plain.is_full()? {
            return Err(PyErr::from_value(imports::queue_full(py)?.call0()?));
        }
        plain.put(&item)
    }

    /// Take an item out of the queue, or raise QueueEmpty.
    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let Some(plain) = Plain::of(slf)? else {
            return imports::stock_queue(py)?.call_method1("get_nowait", (slf,));
        };
        if !plain.is_empty()? {
            return plain.get();
        }
        if plain.state.is_shut_down.get() {
            return Err(shut_down(py));
        }
        Err(PyErr::from_value(imports::queue_empty(py)?.call0()?))
    }

    /// Say that the work on an item that was taken out is done.
    fn task_done(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state.get(py);
        let unfinished = state.unfinished.get();
        if unfinished <= 0 {
            return Err(PyValueError::new_err("task_done() called too many times"));
        }
        state.unfinished.set(unfinished - 1);
        if unfinished == 1 { state.tell_joining(py, true) } else { Ok(()) }
    }

    /// How many items there are.
    fn qsize(&self, py: Python<'_>) -> PyResult<usize> {
        self.state.get(py).items.get(py, CLASS, "_queue")?.len()
    }

    /// Whether there is no item.
    fn empty(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(!self.state.get(py).items.get(py, CLASS, "_queue")?.is_truthy()?)
    }

    /// Whether there are as many items as there may be.
    fn full(slf: &Bound<'_, Self>) -> PyResult<bool> {
        match Plain::of(slf)? {
            Some(plain) => plain.is_full(),
            None => imports::stock_queue(slf.py())?.call_method1("full", (slf,))?.is_truthy(),
        }
    }

    /// How many items there may be; no limit if it is not positive.
    #[getter]
    fn maxsize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).maxsize.get(py, CLASS, "_maxsize")
    }

    // ---- private attributes, for programs and for asyncio's own code

    #[getter(_maxsize)]
    fn private_maxsize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.maxsize(py)
    }

    #[setter(_maxsize)]
    fn set_private_maxsize(&self, maxsize: &Bound<'_, PyAny>) {
        self.state.get(maxsize.py()).set_maxsize(maxsize);
    }

    #[getter(_queue)]
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).items.get(py, CLASS, "_queue")
    }

    #[setter(_queue)]
    fn set_items(&self, items: Bound<'_, PyAny>) {
        self.state.get(items.py()).items.set(items.clone());
    }

    #[getter(_getters)]
    fn getters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).getters(py)
    }

    #[setter(_getters)]
    fn set_getters(&self, getters: Bound<'_, PyAny>) {
        self.state.get(getters.py()).getters.set(getters.clone());
    }

    #[getter(_putters)]
    fn putters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).putters(py)
    }

    #[setter(_putters)]
    fn set_putters(&self, putters: Bound<'_, PyAny>) {
        self.state.get(putters.py()).putters.set(putters.clone());
    }

    #[getter(_unfinished_tasks)]
    fn unfinished(&self, py: Python<'_>) -> i64 {
        self.state.get(py).unfinished.get()
    }

    #[setter(_unfinished_tasks)]
    fn set_unfinished(&self, py: Python<'_>, unfinished: i64) {
        self.state.get(py).unfinished.set(unfinished);
    }

    #[getter(_finished)]
    fn finished<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let state = self.state.get(py);
        if let Some(event) = state.finished.value(py) {
            return Ok(event);
        }
        let event = imports::event_type(py)?.call0()?;
        state.finished.set(event.clone());
        state.tell_joining(py, state.unfinished.get() <= 0)?;
        Ok(event)
    }

    #[setter(_finished)]
    fn set_finished(&self, event: Bound<'_, PyAny>) {
        self.state.get(event.py()).finished.set(event.clone());
    }

    #[getter(_is_shutdown)]
    fn is_shut_down(&self, py: Python<'_>) -> bool {
        self.state.get(py).is_shut_down.get()
    }

    #[setter(_is_shutdown)]
    fn set_shut_down(&self, py: Python<'_>, is_shut_down: bool) {
        self.state.get(py).is_shut_down.set(is_shut_down);
    }

    #[getter(_loop)]
    fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.get(py).event_loop.value(py)
    }

    #[setter(_loop)]
    fn set_event_loop(&self, event_loop: Bound<'_, PyAny>) {
        self.state.get(event_loop.py()).event_loop.set(event_loop.clone());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(state) = self.state.in_traverse(&visit) else { return Ok(()) };
        state.held().into_iter().try_for_each(|field| field.traverse(&visit))
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        slf.get().state.get(slf.py()).held().into_iter().for_each(Attribute::clear);
    }
}

impl State {
    fn held(&self) -> [&Attribute; 6] {
        let State { maxsize, items, getters, putters, finished, event_loop, .. } = self;
        [maxsize, items, getters, putters, finished, event_loop]
    }
}

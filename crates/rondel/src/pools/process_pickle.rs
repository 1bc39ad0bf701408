//! Pickling for worker processes, by CPython's own C pickler and protocol 5.
//!
//! The pickler writes into a [`Sink`], which copies small parts and keeps large ones (the bytes of a
//! large `bytes`, the buffers of arrays) as they are: they are copied once, into the shared memory.
//! Whoever has registered a way to pickle a type with multiprocessing is honoured here too.

use std::cell::RefCell;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use rondel_pool::processes::frame::{Buffer, Kind, Lease, Message, Pickle, Reference};

use crate::ffi::confined::Confined;
use crate::ffi::shared_buffer::{HeldBuffer, Piece, SharedBuffer};
use crate::imports;

/// Buffers that are smaller travel inside the pickle.
const OWN_BLOCK: usize = 16 << 10;

/// Where memory of this process lies in the pool's file, if it does.
pub type Locate<'a> = &'a dyn Fn(&[u8]) -> Option<Reference>;

/// What a pickler writes into, and its buffer callback.
#[pyclass(frozen, module = "rondel._rondel", name = "PickleSink")]
pub struct Sink {
    pieces: Confined<RefCell<Vec<Piece>>>,
    buffers: Confined<RefCell<Vec<HeldBuffer>>>,
}

#[pymethods]
impl Sink {
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = data.py();
        let held = HeldBuffer::of(data)?;
        let len = held.bytes().len();
        let mut pieces = self.pieces.get(py).borrow_mut();
        // The pickler shares its frames with nobody, so they can be kept as well; small ones are not
        // worth a reference.
        if len >= OWN_BLOCK {
            pieces.push(Piece::Held(held));
            return Ok(len);
        }
        if let Some(Piece::Owned(last)) = pieces.last_mut() {
            last.extend_from_slice(held.bytes());
        } else {
            pieces.push(Piece::Owned(held.bytes().to_vec()));
        }
        drop(pieces);
        Ok(len)
    }

    /// Whether the buffer is to be a part of the pickle.
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = buffer.py();
        let raw = buffer.call_method0(intern!(py, "raw"))?;
        let held = HeldBuffer::of(&raw)?;
        if held.bytes().len() < OWN_BLOCK {
            return Ok(true);
        }
        self.buffers.get(py).borrow_mut().push(held);
        Ok(false)
    }
}

/// A pickler that is used again.
struct Coder {
    sink: Py<Sink>,
    pickler: Py<PyAny>,
    /// Registered ways to pickle when it was made, by multiprocessing and copyreg.
    registered: (usize, usize),
}

/// Spare picklers.
pub struct Coders {
    /// More than one is only ever needed when an object's `__reduce__` submits a call itself.
    spare: Confined<RefCell<Vec<Coder>>>,
}

fn registries(py: Python<'_>) -> PyResult<(Bound<'_, PyDict>, Bound<'_, PyDict>)> {
    let of_multiprocessing =
        imports::forking_pickler(py)?.getattr(intern!(py, "_extra_reducers"))?;
    let of_copyreg = imports::dispatch_table(py)?.clone();
    Ok((of_multiprocessing.cast_into()?, of_copyreg.cast_into()?))
}

impl Coders {
    pub fn new() -> Self {
        Coders { spare: Confined::new(RefCell::default()) }
    }

    fn take(&self, py: Python<'_>) -> PyResult<Coder> {
        let (first, second) = registries(py)?;
        let registered = (first.len(), second.len());
        let spare = self.spare.get(py).borrow_mut().pop();
        if let Some(coder) = spare
            && coder.registered == registered
        {
            return Ok(coder);
        }
        let sink = Bound::new(
            py,
            Sink {
                pieces: Confined::new(RefCell::default()),
                buffers: Confined::new(RefCell::default()),
            },
        )?;
        let options = PyDict::new(py);
        options.set_item(intern!(py, "buffer_callback"), &sink)?;
        let pickler = imports::pickler(py)?.call((&sink, 5), Some(&options))?;
        let table = second.copy()?;
        table.update(first.as_mapping())?;
        pickler.setattr(intern!(py, "dispatch_table"), table)?;
        Ok(Coder { sink: sink.unbind(), pickler: pickler.unbind(), registered })
    }

    /// Pickles an object into a message.
    ///
    /// # Errors
    /// Whatever pickling raises.
    pub fn pickle(
        &self,
        object: &Bound<'_, PyAny>,
        kind: Kind,
        locate: Locate<'_>,
    ) -> PyResult<Message<Piece>> {
        let py = object.py();
        let coder = self.take(py)?;
        // A pickler that has failed is dropped: it remembers half of an object.
        coder.pickler.call_method1(py, intern!(py, "dump"), (object,))?;
        coder.pickler.call_method0(py, intern!(py, "clear_memo"))?;
        let sink = coder.sink.get();
        let pickle = sink.pieces.get(py).take();
        let buffers = sink.buffers.get(py).take();
        self.spare.get(py).borrow_mut().push(coder);
        let buffers = buffers.into_iter().map(|held| match locate(held.bytes()) {
            Some(reference) => Buffer::Placed(reference),
            None => Buffer::Copy(Piece::Held(held)),
        });
        Ok(Message { kind, pickle, buffers: buffers.collect() })
    }
}

/// Makes the object of a message that was received.
///
/// # Errors
/// Whatever unpickling raises.
pub fn unpickle<'py>(
    py: Python<'py>,
    pickle: Pickle,
    buffers: Vec<Lease>,
) -> PyResult<Bound<'py, PyAny>> {
    let loads = imports::pickle_loads(py)?;
    let data = match pickle {
        Pickle::Inline(bytes, from) => {
            PyBytes::new(py, bytes.get(from..).unwrap_or_default()).into_any()
        }
        Pickle::Block(view, from, lease) => {
            Bound::new(py, SharedBuffer::part(view, from, lease))?.into_any()
        }
    };
    if buffers.is_empty() {
        return loads.call1((data,));
    }
    let list = PyList::empty(py);
    for lease in buffers {
        list.append(Bound::new(py, SharedBuffer::leased(lease))?)?;
    }
    let options = PyDict::new(py);
    options.set_item(intern!(py, "buffers"), list)?;
    loads.call((data,), Some(&options))
}

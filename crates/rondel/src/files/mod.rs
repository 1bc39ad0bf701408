//! Files: aiofiles' interface over files that are read and written natively.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`core`] | a buffered file without Python: what is read ahead, what is to be written, positions |
//! | [`buffer`] | `FileBuffer`: that as a Python object with the interface of io's buffers |
//! | [`methods`] | that object's methods for Python |
//! | [`file`] | `File`: the awaitable operations, tried at once and else done by a thread |
//! | [`attempt`] | what can be done at once, for each operation and kind of file |
//! | [`spare`] | memory for what waits to be written, of all files together |
//! | [`turns`] | operations on one file come one after the other |
//! | [`job`] | a trip to a thread |
//! | [`whole`] | whole files in one trip: `read_bytes()`, `write_bytes()` |
//!
//! An operation's way: a method of `File` makes a [`crate::coroutine`]. When awaited, it takes its turn
//! and is tried on the loop's thread, where nothing may wait for a disk: memory, the page cache
//! (`preadv2` with `RWF_NOWAIT`), positions. What would wait is done by a thread instead, through the
//! same object and from where the attempt left off. Writing is always to memory first; a thread
//! writes it to the file while the program goes on.
//!
//! Which objects there are and how they are put together is decided in the package, `rondel.files`.

mod attempt;
pub mod buffer;
mod core;
pub mod file;
mod job;
mod methods;
mod spare;
mod turns;
mod whole;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

fn value_error(text: &'static str) -> PyErr {
    PyValueError::new_err(text)
}

/// Adds the native part of `rondel.files` to the extension module.
pub fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<buffer::FileBuffer>()?;
    module.add_class::<file::File>()?;
    module.add("FileWouldBlock", module.py().get_type::<buffer::FileWouldBlock>())?;
    module.add_function(wrap_pyfunction!(job::call_in_thread, module)?)?;
    module.add_function(wrap_pyfunction!(whole::read_file, module)?)?;
    module.add_function(wrap_pyfunction!(whole::open_cached, module)?)
}

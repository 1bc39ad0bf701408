//! `FileBuffer`'s methods, as Python and `io.TextIOWrapper` call them: what [`super::buffer`] does, with
//! an exception where that would have to wait.

use std::cell::{Cell, RefCell};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::disk::{self, Patience};

use super::buffer::{
    Direction, FileBuffer, FileWouldBlock, State, report, told, unless_blocked, write_the_rest,
};
use super::core::Core;
use crate::ffi::confined::Confined;

#[pymethods]
impl FileBuffer {
    #[new]
    fn new(raw: &Bound<'_, PyAny>, size: usize, text: bool, threshold: usize) -> PyResult<Self> {
        let py = raw.py();
        let can = |name: &str| -> PyResult<bool> { raw.call_method0(name)?.extract() };
        let direction = match (can("readable")?, can("writable")?) {
            (true, true) => Direction::Both,
            (false, true) => Direction::Write,
            _ => Direction::Read,
        };
        let fd = raw.call_method0(intern!(py, "fileno"))?.extract()?;
        let local = disk::is_local(fd);
        Ok(FileBuffer {
            state: Confined::new(State {
                direction,
                fd,
                local,
                core: RefCell::new(Some(Box::new(Core::new(fd, size.max(1), text, local)))),
                raw: RefCell::new(Some(raw.clone().unbind())),
                closed: Cell::new(false),
                patience: Cell::new(Patience::Wait),
                threshold,
                deferred: RefCell::default(),
            }),
        })
    }

    #[pyo3(signature = (size=None, /))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_read(py, size))
    }

    #[pyo3(signature = (size=None, /))]
    fn read1<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_read1(py, size))
    }

    #[pyo3(signature = (size=None, /))]
    fn readline<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_readline(py, size))
    }

    #[pyo3(signature = (hint=None, /))]
    fn readlines<'py>(
        &self,
        py: Python<'py>,
        hint: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Some(number) = self.size(py, Direction::Read, hint, true) else {
            return self.refuse(py, "readlines", &[hint]);
        };
        let most = usize::try_from(number).ok().filter(|hint| *hint > 0).unwrap_or(usize::MAX);
        let lines = PyList::empty(py);
        let mut length = 0;
        while length <= most {
            let line = told(self.try_readline(py, None))?;
            let count = line.len()?;
            if count == 0 {
                break;
            }
            length += count;
            lines.append(line)?;
        }
        Ok(lines.into_any())
    }

    #[pyo3(signature = (size=None, /))]
    fn peek<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = size;
        told(self.try_peek(py))
    }

    #[pyo3(signature = (buffer, /))]
    fn readinto<'py>(
        &self,
        py: Python<'py>,
        buffer: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_readinto(py, buffer, false))
    }

    #[pyo3(signature = (buffer, /))]
    fn readinto1<'py>(
        &self,
        py: Python<'py>,
        buffer: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_readinto(py, buffer, true))
    }

    #[pyo3(signature = (buffer, /))]
    fn write<'py>(
        &self,
        py: Python<'py>,
        buffer: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_write(py, buffer))
    }

    #[pyo3(signature = (lines, /))]
    fn writelines(&self, py: Python<'_>, lines: &Bound<'_, PyAny>) -> PyResult<()> {
        if self.is_closed(py) {
            return self.refuse(py, "writelines", &[Some(lines)]).map(drop);
        }
        for line in lines.try_iter()? {
            told(self.try_write(py, &line?))?;
        }
        Ok(())
    }

    fn flush<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_flush(py))
    }

    #[pyo3(signature = (target, whence=0, /))]
    fn seek<'py>(
        &self,
        py: Python<'py>,
        target: &Bound<'py, PyAny>,
        whence: i32,
    ) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_seek(py, target, whence))
    }

    fn tell<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        told(self.try_tell(py))
    }

    #[pyo3(signature = (pos=None, /))]
    fn truncate<'py>(
        &self,
        py: Python<'py>,
        pos: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if !self.is_possible(py, Some(Direction::Write)) {
            return self.refuse(py, "truncate", &[pos]);
        }
        self.raise_deferred(py)?;
        if self.state(py).patience.get() == Patience::Now {
            return Err(FileWouldBlock::new_err(()));
        }
        told(unless_blocked(self.run(py, |core, _| core.prepare_truncate())))?;
        self.raw(py)?.call_method1(intern!(py, "truncate"), (pos,))
    }

    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state(py);
        if state.closed.get() {
            return Ok(());
        }
        let raw = self.raw(py)?;
        let flushed = match state.direction {
            Direction::Read => Ok(()),
            _ => told(self.try_flush(py)).map(drop),
        };
        if let Err(error) = &flushed
            && error.is_instance_of::<FileWouldBlock>(py)
        {
            return flushed;
        }
        state.closed.set(true);
        // What could not be written now never will be.
        drop(self.take_pending(py));
        let closed = raw.call_method0(intern!(py, "close")).map(drop);
        flushed.and(closed)
    }

    /// Give the file below away, everything written; this buffer is of no use afterwards.
    fn detach(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let raw = self.raw(py)?;
        told(self.try_flush(py))?;
        drop(self.state(py).raw.take());
        Ok(raw.unbind())
    }

    fn fileno<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.raw(py)?.call_method0(intern!(py, "fileno"))
    }

    fn isatty<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.raw(py)?.call_method0(intern!(py, "isatty"))
    }

    fn seekable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.raw(py)?.call_method0(intern!(py, "seekable"))
    }

    fn readable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.state(py).direction {
            Direction::Write => Ok(false.into_pyobject(py)?.to_owned().into_any()),
            _ => self.raw(py)?.call_method0(intern!(py, "readable")),
        }
    }

    fn writable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.state(py).direction {
            Direction::Read => Ok(false.into_pyobject(py)?.to_owned().into_any()),
            _ => self.raw(py)?.call_method0(intern!(py, "writable")),
        }
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        self.raw(py)?.getattr(intern!(py, "closed"))?.extract()
    }

    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.raw(py)?.getattr(intern!(py, "name"))
    }

    #[getter]
    fn mode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.raw(py)?.getattr(intern!(py, "mode"))
    }

    #[getter(raw)]
    fn get_raw<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.raw(py)
    }

    /// What io.TextIOWrapper asks for when it goes unclosed.
    fn _dealloc_warn(&self, py: Python<'_>, source: &Bound<'_, PyAny>) -> PyResult<()> {
        self.raw(py)?.call_method1(intern!(py, "_dealloc_warn"), (source,)).map(drop)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        match slf.getattr("name").and_then(|name| name.repr()) {
            Ok(name) => format!("<rondel._rondel.FileBuffer name={name}>"),
            Err(_) => "<rondel._rondel.FileBuffer>".to_owned(),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(state) = self.state.in_traverse(&visit)
            && let Ok(raw) = state.raw.try_borrow()
        {
            visit.call(&*raw)?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        report(py, &write_the_rest(self.state(py)));
        drop(self.state(py).raw.take());
    }
}

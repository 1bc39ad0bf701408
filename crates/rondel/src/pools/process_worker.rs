//! What a worker process runs: claim a call, unpickle, call, pickle the result, answer.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rondel_pool::processes::board::Stage;
use rondel_pool::processes::frame::{Kind, Message};
use rondel_pool::processes::process;
use rondel_pool::processes::worker::{Request, Worker};

use super::process_pickle::{self, Coders};
use crate::errors::{exception, os_error};
use crate::ffi::shared_buffer::Piece;

/// A worker of a ProcessPool, in the worker's own process.
#[pyclass(frozen, module = "rondel._rondel", name = "ProcessWorker")]
pub struct ProcessWorker {
    worker: Worker,
    coders: Coders,
}

/// Takes a descriptor over from Python code that has given up its own.
fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the worker's main function passes descriptors that it has received for this purpose and
    // does not touch again.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[pymethods]
impl ProcessWorker {
    /// Join a pool by inherited descriptors, which then belong to the worker.
    #[new]
    fn new(
        py: Python<'_>,
        descriptors: (RawFd, RawFd, RawFd),
        berth: usize,
        first: u64,
    ) -> PyResult<Self> {
        let (file, thread, event_loop) = descriptors;
        let bells = [adopt(thread), adopt(event_loop)];
        let worker =
            Worker::join(adopt(file), bells, berth, first).map_err(|error| os_error(py, &error))?;
        Ok(ProcessWorker { worker, coders: Coders::new() })
    }

    /// From now on this process ends when the parent does, whatever it is doing. The descriptor, whose
    /// other end only the parent holds, then belongs to the worker.
    #[staticmethod]
    fn end_with_parent(py: Python<'_>, pid: i32, sentinel: RawFd) -> PyResult<()> {
        process::end_with_parent(pid, Some(adopt(sentinel))).map_err(|error| os_error(py, &error))
    }

    /// Tell the parent that the initializer has failed.
    fn unable(&self) {
        self.worker.set_stage(Stage::Unable);
    }

    /// Take calls until the pool is shut down, or so many are done (0: no limit). `pack` makes what is
    /// sent in the place of an exception.
    fn serve(&self, py: Python<'_>, max_tasks: u64, pack: &Bound<'_, PyAny>) -> PyResult<()> {
        #[cfg(target_os = "linux")]
        crate::ffi::huge_pages::advise(py);
        self.worker.set_stage(Stage::Working);
        let mut done = 0;
        loop {
            if let Some(slot) = self.worker.claim() {
                self.run(py, slot, pack)?;
                done += 1;
                if done == max_tasks {
                    break;
                }
                continue;
            }
            match py.detach(|| self.worker.sleep()) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => idle_signal(py)?,
                Err(error) => return Err(os_error(py, &error)),
            }
        }
        self.worker.set_stage(Stage::Leaving);
        Ok(())
    }
}

/// A signal came while there was nothing to do. Ctrl-C goes to all processes of a terminal, and the
/// parent decides what becomes of its pool.
fn idle_signal(py: Python<'_>) -> PyResult<()> {
    match py.check_signals() {
        Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => Ok(()),
        result => result,
    }
}

impl ProcessWorker {
    fn run(&self, py: Python<'_>, slot: usize, pack: &Bound<'_, PyAny>) -> PyResult<()> {
        let outcome = match self.worker.read(slot) {
            Ok(request) => call(py, request),
            Err(error) => Err(os_error(py, &error)),
        };
        let message = match outcome {
            Ok(result) if result.is_none() => Ok(nothing()),
            Ok(result) => self.pickle(&result, Kind::Result),
            Err(error) => Err(error),
        };
        let message = match message {
            Ok(message) => message,
            Err(error) => self.pack(py, pack, &error)?,
        };
        let answered = match self.answer(py, slot, message) {
            Err(error) => {
                let message = self.pack(py, pack, &os_error(py, &error))?;
                self.answer(py, slot, message).map_err(|error| os_error(py, &error))?
            }
            Ok(answered) => answered,
        };
        if !answered {
            // The parent is about to kill this process.
            py.detach(|| {
                loop {
                    std::thread::park();
                }
            });
        }
        Ok(())
    }

    fn pickle(&self, object: &Bound<'_, PyAny>, kind: Kind) -> PyResult<Message<Piece>> {
        self.coders.pickle(object, kind, &|bytes| self.worker.locate(bytes))
    }

    /// Large results are copied without the GIL, which threads of the program may want.
    fn answer(&self, py: Python<'_>, slot: usize, message: Message<Piece>) -> io::Result<bool> {
        if message.weight() > 1 << 20 {
            py.detach(|| self.worker.answer(slot, &message))
        } else {
            self.worker.answer(slot, &message)
        }
    }

    /// The message of an exception; one that cannot be pickled is replaced by the reason.
    fn pack(
        &self,
        py: Python<'_>,
        pack: &Bound<'_, PyAny>,
        error: &PyErr,
    ) -> PyResult<Message<Piece>> {
        let packed = |error: &PyErr| {
            let packed = pack.call1((exception(py, error),))?;
            self.pickle(&packed, Kind::Exception)
        };
        packed(error).or_else(|reason| packed(&reason))
    }
}

fn nothing() -> Message<Piece> {
    Message { kind: Kind::Nothing, pickle: Vec::new(), buffers: Vec::new() }
}

/// Does what a message says. The arguments are gone when it returns, unless the result holds them.
fn call<'py>(py: Python<'py>, request: Request) -> PyResult<Bound<'py, PyAny>> {
    let object = process_pickle::unpickle(py, request.message.pickle, request.buffers)?;
    let call = object.cast_into::<PyTuple>()?;
    let function = call.get_item(0)?;
    let args = call.get_item(1)?.cast_into::<PyTuple>()?;
    let kwargs = match call.len() {
        2 => None,
        3 => Some(call.get_item(2)?.cast_into::<PyDict>()?),
        _ => return Err(PyTypeError::new_err("not a call")),
    };
    drop(call);
    function.call(args, kwargs.as_ref())
}

//! Telling other processes what this one's loops are doing, also while they are blocked.
//!
//! A native thread accepts connections on a Unix socket and writes one JSON document to each: what the
//! loops have counted and what blocks them now, which it reads without the GIL, and what Python code
//! says of them (tasks, slow callbacks). A second thread calls that code; when C code holds the GIL,
//! the document goes without its part.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pyo3::prelude::*;
use rondel_fetch::json::quoted;
use rondel_reactor::lock::lock;

use crate::errors::os_error;
use crate::event_loop::Loop;
use crate::event_loop::meter::Meter;

/// How long Python code has for its part, the wait for the GIL included.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a client may take to read.
const SLOW_CLIENT: Duration = Duration::from_secs(5);

/// A pause after a failed accept(), for lack of descriptors for example.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Shared {
    loops: Mutex<Vec<(u64, Arc<Meter>)>>,
    stopping: AtomicBool,
}

/// Answers on a listening Unix socket from `start()` to `stop()`.
///
/// `describe()` returns JSON text; it is called on a thread of its own. The document that a client
/// gets is `{"pid": …, "loops": {"ID": {…}}, "python": …}`, where the last is what `describe` said, or
/// null if it could not say it in time.
#[pyclass(frozen, module = "rondel._rondel", name = "StatusServer")]
pub struct StatusServer {
    describe: Py<PyAny>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[pymethods]
impl StatusServer {
    #[new]
    fn new(describe: Py<PyAny>) -> Self {
        StatusServer { describe, shared: Arc::default(), threads: Mutex::default() }
    }

    /// Tell of this loop too, as `id`.
    fn add(&self, py: Python<'_>, id: u64, event_loop: &Bound<'_, Loop>) {
        let meter = event_loop.get().state(py).meter.clone();
        lock(&self.shared.loops).push((id, meter));
    }

    /// Tell of it no more.
    fn remove(&self, id: u64) {
        lock(&self.shared.loops).retain(|(known, _)| *known != id);
    }

    /// Take a listening socket over, and start to answer. Raises OSError where no thread can be
    /// started.
    fn start(&self, py: Python<'_>, fd: i32) -> PyResult<()> {
        // SAFETY: the caller has detached the descriptor from its socket object for this.
        let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let (questions, asked) = mpsc::sync_channel(1);
        let describe = self.describe.clone_ref(py);
        let shared = self.shared.clone();
        let accepting =
            named("rondel-status").spawn(move || accept(&listener, &shared, &questions));
        let mut threads = lock(&self.threads);
        threads.push(accepting.map_err(|error| os_error(py, &error))?);
        let describing = named("rondel-describe").spawn(move || tell(&describe, &asked));
        threads.push(describing.map_err(|error| os_error(py, &error))?);
        Ok(())
    }

    /// End the threads. The caller shuts the socket down first, which wakes the one that accepts.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.stopping.store(true, Ordering::Release);
        let threads = std::mem::take(&mut *lock(&self.threads));
        let ended = py.detach(|| threads.into_iter().try_for_each(JoinHandle::join));
        ended.map_err(|payload| crate::panic_error(payload.as_ref()))
    }
}

fn named(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.into())
}

/// The native thread.
fn accept(listener: &UnixListener, shared: &Shared, questions: &SyncSender<Sender<String>>) {
    while !shared.stopping.load(Ordering::Acquire) {
        match listener.accept() {
            // A client that went away is its own affair.
            Ok((client, _)) => drop(answer(&client, shared, questions)),
            Err(_) if shared.stopping.load(Ordering::Acquire) => return,
            Err(_) => std::thread::sleep(AFTER_FAILURE),
        }
    }
}

fn answer(
    mut client: &UnixStream,
    shared: &Shared,
    questions: &SyncSender<Sender<String>>,
) -> std::io::Result<()> {
    client.set_write_timeout(Some(SLOW_CLIENT))?;
    let (answers, answered) = mpsc::channel();
    // There is a question already: Python has not come to it, and will not come to this one.
    let asked = questions.try_send(answers).is_ok();
    let python = if asked { answered.recv_timeout(PATIENCE).ok() } else { None };
    // What blocks the loops is read last: by now the watchdog may have seen it.
    let loops: Vec<_> =
        lock(&shared.loops).iter().map(|(id, meter)| format!("\"{id}\":{}", json(meter))).collect();
    let pid = std::process::id();
    let python = python.as_deref().unwrap_or("null");
    let all = format!("{{\"pid\":{pid},\"loops\":{{{}}},\"python\":{python}}}\n", loops.join(","));
    client.write_all(all.as_bytes())
}

/// The thread that calls Python.
fn tell(describe: &Py<PyAny>, asked: &Receiver<Sender<String>>) {
    while let Ok(answers) = asked.recv() {
        let text = Python::attach(|py| {
            describe.call0(py).and_then(|text| text.extract::<String>(py)).unwrap_or_else(|error| {
                // Nobody else hears of it.
                error.write_unraisable(py, Some(describe.bind(py)));
                "null".into()
            })
        });
        // Whoever asked may have gone on without.
        let _ = answers.send(text);
    }
}

/// What a loop has counted, and what blocks it.
fn json(meter: &Meter) -> String {
    let numbers = meter.numbers();
    let mut text = String::from("{");
    for (name, count) in numbers.counts {
        let _ = write!(text, "\"{name}\":{count},");
    }
    for (name, seconds) in numbers.seconds {
        let _ = write!(text, "\"{name}\":{seconds:?},");
    }
    match lock(&meter.stamp).as_ref().and_then(|stamp| stamp.blocked()) {
        Some((seconds, doing, stack)) => {
            let stack = quoted(&stack);
            let _ = write!(
                text,
                "\"blocked\":{{\"seconds\":{seconds:?},\"doing\":\"{doing}\",\"stack\":{stack}}}}}"
            );
        }
        None => text.push_str("\"blocked\":null}"),
    }
    text
}

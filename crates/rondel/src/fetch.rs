//! Downloads: the engine of [`rondel_fetch`] as the command line and the package use it.
//!
//! The engine runs on threads of its own that know nothing of Python. What it tells waits in a list;
//! a socket that the event loop watches says that there is something in it, once for all that came
//! since the loop looked last.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rondel_fetch::checksum::Checksum;
use rondel_fetch::cli::{self, End};
use rondel_fetch::engine::{self, Watch};
use rondel_fetch::error::{Error, Kind};
use rondel_fetch::event::{Event, Observer};
use rondel_fetch::job::Job;
use rondel_reactor::lock::lock;

use crate::errors::os_error;

/// Run `rondel get` with these arguments; returns the exit status. It takes over SIGINT, SIGTERM and
/// SIGHUP, and ends the process by the one that stopped it.
#[pyfunction]
pub fn get(py: Python<'_>, arguments: Vec<OsString>) -> i32 {
    py.detach(|| match cli::main(arguments) {
        End::Status(status) => status,
        End::Signal(signal) => {
            cli::end_by_signal(signal);
            128 + signal
        }
    })
}

/// What the command line of `rondel get --dask` asks for: the scheduler's address (None without
/// `--dask`), whether to print JSON, whether to be quiet, the folder, and the files; or the exit
/// status, if that was all.
#[pyfunction]
pub fn get_plan(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<Bound<'_, PyAny>> {
    match py.detach(|| cli::plan(arguments)) {
        Ok(plan) => {
            let files: Vec<File> = plan.jobs.into_iter().map(file).collect();
            let directory = plan.directory.into_os_string();
            let plan = (plan.scheduler, plan.json, plan.quiet, directory, files);
            Ok(plan.into_pyobject(py)?.into_any())
        }
        Err(End::Status(status) | End::Signal(status)) => Ok(status.into_pyobject(py)?.into_any()),
    }
}

/// What the engine told and nobody has taken yet.
struct Inbox {
    news: Mutex<Vec<News>>,
    wake: UnixStream,
}

enum News {
    Event(Event),
    /// The run is over, by an error of its own if there is one.
    End(Option<Error>),
}

impl Inbox {
    fn push(&self, news: News) {
        let first = {
            let mut waiting = lock(&self.news);
            waiting.push(news);
            waiting.len() == 1
        };
        if first {
            // Full, it wakes as well; closed, nobody listens any more.
            let _ = (&self.wake).write(&[1]);
        }
    }
}

impl Observer for Inbox {
    fn event(&self, event: Event) {
        self.push(News::Event(event));
    }
}

/// A file to download: URLs, name, checksum, size, headers.
type File = (Vec<String>, Option<String>, Option<String>, Option<u64>, Vec<(String, String)>);

/// A run of downloads, on a thread of its own.
#[pyclass(module = "rondel._rondel", frozen)]
pub struct Downloads {
    inbox: Arc<Inbox>,
    watch: Arc<Watch>,
    awake: UnixStream,
}

#[pymethods]
impl Downloads {
    /// Start to download `files` with the options of `rondel get`; into `directory`, if one is given,
    /// instead of theirs.
    #[new]
    #[pyo3(signature = (files, arguments, directory=None))]
    fn new(
        py: Python<'_>,
        files: Vec<File>,
        arguments: Vec<OsString>,
        directory: Option<PathBuf>,
    ) -> PyResult<Self> {
        let mut options =
            cli::options(arguments).map_err(|error| PyValueError::new_err(error.text))?;
        if let Some(directory) = directory {
            options.directory = directory;
        }
        let jobs = files.into_iter().map(job).collect::<PyResult<Vec<_>>>()?;
        let failed = |error: std::io::Error| os_error(py, &error);
        let (awake, wake) = UnixStream::pair().map_err(failed)?;
        awake.set_nonblocking(true).map_err(failed)?;
        wake.set_nonblocking(true).map_err(failed)?;
        let inbox = Arc::new(Inbox { news: Mutex::default(), wake });
        let watch = Arc::new(Watch::default());
        let (told, watched) = (Arc::clone(&inbox), Arc::clone(&watch));
        let run = move || {
            let observer: Arc<dyn Observer> = Arc::clone(&told) as _;
            let outcome = engine::run(jobs, options, observer, &watched);
            told.push(News::End(outcome.err()));
        };
        thread::Builder::new().name("rondel-downloads".into()).spawn(run).map_err(failed)?;
        Ok(Self { inbox, watch, awake })
    }

    /// The descriptor that is readable when there is something to take.
    fn fileno(&self) -> i32 {
        self.awake.as_raw_fd()
    }

    /// All that happened since the last call, in order: tuples that begin with what it is.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut buffer = [0; 64];
        loop {
            match (&self.awake).read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(count) if count == buffer.len() => {}
                _ => break,
            }
        }
        let news = std::mem::take(&mut *lock(&self.inbox.news));
        news.into_iter().map(|news| tuple(py, news)).collect()
    }

    /// Bytes received so far, and the files that are coming: index, bytes present, size.
    fn progress(&self) -> (u64, Vec<(usize, u64, Option<u64>)>) {
        let active = self.watch.active();
        let of_files = active.iter().map(|file| (file.index, file.present(), file.size()));
        (self.watch.received(), of_files.collect())
    }

    /// Stop at once; what can be resumed leaves its part. The end is still told.
    fn stop(&self) {
        self.watch.stop();
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.watch.stop();
    }
}

fn job((urls, name, checksum, size, headers): File) -> PyResult<Job> {
    let checksum = checksum
        .map(|text| {
            let wrong = || PyValueError::new_err(format!("{text:?} is not a checksum"));
            Checksum::parse(&text).ok_or_else(wrong)
        })
        .transpose()?;
    Ok(Job { urls, name, checksum, size, headers })
}

fn file(job: Job) -> File {
    let sum = |sum: Checksum| format!("{}:{}", sum.algorithm.name(), sum.hex);
    (job.urls, job.name, job.checksum.map(sum), job.size, job.headers)
}

fn tuple(py: Python<'_>, news: News) -> PyResult<Bound<'_, PyAny>> {
    let path = |path: PathBuf| path.into_os_string();
    let tuple = match news {
        News::Event(Event::Started { index, path: target, size, resumed }) => {
            ("start", index, path(target), size, resumed).into_pyobject(py)?.into_any()
        }
        News::Event(Event::Retrying { index, error, wait }) => {
            ("retry", index, failure(error), wait.as_secs_f64()).into_pyobject(py)?.into_any()
        }
        News::Event(Event::Finished { index, result: Ok(done) }) => {
            let about = (done.size, done.received, done.unchanged, done.verified);
            ("done", index, path(done.path), about).into_pyobject(py)?.into_any()
        }
        News::Event(Event::Finished { index, result: Err(error) }) => {
            ("error", index, failure(error)).into_pyobject(py)?.into_any()
        }
        News::End(error) => ("end", error.map(failure)).into_pyobject(py)?.into_any(),
    };
    Ok(tuple)
}

/// Kind, text, HTTP status and error number.
fn failure(error: Error) -> (&'static str, String, Option<u16>, Option<i32>) {
    let status = match error.kind {
        Kind::Status(status) => Some(status),
        _ => None,
    };
    (error.kind.name(), error.text, status, error.errno)
}

//! The extension module `rondel._rondel`: asyncio's event loop over [`rondel_reactor`].
//!
//! The map of the house:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`event_loop`] | the Loop object: scheduling, one turn, life cycle, debug, watched descriptors |
//! | [`handle`] | Handle and TimerHandle, as Python sees them |
//! | [`transport`] | stream sockets, datagram sockets, listeners, pipes and TLS |
//! | [`streams`] | StreamReader and StreamWriter |
//! | [`sync`] | queues and locks |
//! | [`pools`] | thread pools: calls on their way to threads and back |
//! | [`process`] | the ends of child processes, and what their pipes bring |
//! | [`resolve`] | addresses that need no look-up |
//! | [`connect`] | create_connection() to an address, without options |
//! | [`sock`] | sock_recv and relatives |
//! | [`files`] | files that are opened, read and written on the loop |
//! | [`sendfile`] | sending files by the system call |
//! | [`fetch`] | downloads, and the command `rondel get` |
//! | [`http`] | the HTTP client's connections, responses and bodies |
//! | [`coroutine`] | coroutines written in Rust |
//! | [`errors`] | errors between Rust and Python |
//! | [`sampler`] | what the process's threads are doing, and whether the GIL is held |
//! | [`watch`] | the watchdog that shows what blocks the loop |
//! | [`status`] | answering other processes: what the loops are doing |
//! | [`imports`] | names of the standard library that are looked up once |
//! | [`ffi`] | every unsafe call into CPython; nothing unsafe about Python is outside it |
//!
//! A callback's way: `call_soon` ([`ffi::scheduling`]) makes a handle ([`ffi::handle`]) and queues it;
//! a turn ([`event_loop::turn`]) takes it out, enters its context and calls it. A packet's way: the
//! poller's event finds its source in the turn's dispatch, which calls the transport
//! ([`transport::reading`]), which receives and calls the protocol.

#![allow(missing_docs)] // Python-visible names are documented for Python, in their docstrings.

mod connect;
mod coroutine;
mod errors;
mod event_loop;
mod fetch;
mod ffi;
mod files;
mod handle;
mod http;
mod imports;
mod pools;
mod process;
mod resolve;
mod sampler;
mod sendfile;
mod sock;
mod status;
mod streams;
mod sync;
mod transport;
mod watch;

use pyo3::prelude::*;

/// A Rust panic as a Python exception; a bug of ours, never the program's.
fn panic_error(payload: &(dyn std::any::Any + Send)) -> PyErr {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".into());
    pyo3::panic::PanicException::new_err((text,))
}

/// Python's asyncio, implemented in Rust: the native part. Use the package `rondel`.
// The GIL is what confines all state (`ffi::confined`); a free-threaded interpreter switches it on.
#[pymodule(gil_used = true)]
fn _rondel(module: &Bound<'_, PyModule>) -> PyResult<()> {
    rondel_reactor::fork::watch();
    let py = module.py();
    let (handle_type, timer_handle_type) = ffi::handle_types::create_types(py)?;
    module.add("Handle", handle_type)?;
    module.add("TimerHandle", timer_handle_type)?;
    module.add_class::<event_loop::Loop>()?;
    module.add_class::<event_loop::rehearsal::Rehearsal>()?;
    module.add_class::<transport::socket::SocketTransport>()?;
    module.add_class::<transport::datagram::DatagramTransport>()?;
    module.add_class::<transport::listener::Listener>()?;
    module.add_class::<transport::pipe::PipeTransport>()?;
    module.add_class::<transport::pipe::read::ReadPipeTransport>()?;
    module.add_class::<transport::pipe::write::WritePipeTransport>()?;
    module.add_class::<process::ChildWatch>()?;
    module.add_class::<process::SubprocessPipe>()?;
    module.add_class::<transport::tls::layer::TlsLayer>()?;
    module.add_class::<transport::tls::app::TlsTransport>()?;
    module.add_class::<transport::tls::buffers::TlsBuffer>()?;
    module.add_class::<coroutine::Coroutine>()?;
    ffi::stepping::install::<coroutine::Coroutine>(py);
    module.add_class::<streams::reader::StreamReader>()?;
    module.add_class::<streams::writer::StreamWriter>()?;
    module.add("StreamOperation", ffi::operation::create_type(py)?)?;
    module.add("Sleep", ffi::sleep::create_type(py)?)?;
    module.add_function(wrap_pyfunction!(ffi::sleep::native_sleep, module)?)?;
    module.add_class::<http::connection::Connection>()?;
    module.add_class::<http::digest::Digest>()?;
    module.add_class::<http::http2::connection::Http2Connection>()?;
    module.add_class::<http::http2::exchange::Exchange>()?;
    module.add_class::<http::head::ResponseHead>()?;
    module.add_class::<http::stream::StreamReader>()?;
    module.add_class::<http::websocket::WebSocket>()?;
    ffi::stepping::install::<http::wait::Wait>(py);
    module.add_class::<pools::threads::ThreadPool>()?;
    module.add_class::<pools::threads::Worker>()?;
    module.add_class::<pools::thread_call::Call>()?;
    pools::thread_call::prepare(py);
    module.add_class::<sampler::Sampler>()?;
    module.add_class::<watch::Watchdog>()?;
    module.add_class::<status::StatusServer>()?;
    files::install(module)?;
    sync::install(module)?;
    module.add_function(wrap_pyfunction!(resolve::literal_addresses, module)?)?;
    module.add_class::<fetch::Downloads>()?;
    module.add_function(wrap_pyfunction!(fetch::get, module)?)?;
    module.add_function(wrap_pyfunction!(fetch::get_plan, module)?)?;
    pools::add_processes(module)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    ffi::transport::install(py)?;
    ffi::streams::install_reader(&py.get_type::<streams::reader::StreamReader>())?;
    ffi::streams::install_writer(&py.get_type::<streams::writer::StreamWriter>())?;
    ffi::scheduling::install(&py.get_type::<event_loop::Loop>())
}

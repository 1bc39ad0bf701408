//! From a transport into a reader without a Python frame.
//!
//! Between a transport and a StreamReader stands asyncio's StreamReaderProtocol, whose data_received()
//! gives the data to reader.feed_data(). When these are what would be called, neither the class nor
//! the instances having been given others, the reader gets the data directly: ours natively, and
//! asyncio's own by doing what its feed_data() does.

use pyo3::exceptions::PyNotImplementedError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyString, PyWeakrefMethods, PyWeakrefReference};

use super::reader::StreamReader;
use crate::ffi::lookup;
use crate::imports;

/// What asyncio's classes were defined with, and ours.
struct Originals {
    data_received: Py<PyAny>,
    /// The property by which a protocol knows its reader.
    stream_reader: Py<PyAny>,
    feed_data: Py<PyAny>,
    our_feed_data: Py<PyAny>,
}

fn originals(py: Python<'_>) -> PyResult<Option<&Originals>> {
    static CELL: PyOnceLock<Option<Originals>> = PyOnceLock::new();
    CELL.get_or_try_init(py, || {
        let protocol = imports::stream_protocol(py)?;
        let found = Originals {
            data_received: protocol.getattr("data_received")?.unbind(),
            stream_reader: protocol.getattr("_stream_reader")?.unbind(),
            feed_data: imports::stream_reader(py)?.getattr("feed_data")?.unbind(),
            our_feed_data: py.get_type::<StreamReader>().getattr("feed_data")?.unbind(),
        };
        // Whoever has replaced them before rondel was imported wants them to be called.
        let genuine = is_asyncios(found.data_received.bind(py), "data_received")?
            && is_asyncios(found.feed_data.bind(py), "feed_data")?;
        Ok(genuine.then_some(found))
    })
    .map(Option::as_ref)
}

fn is_asyncios(function: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    Ok(function.getattr("__module__")?.eq("asyncio.streams")?
        && function.getattr("__name__")?.eq(name)?)
}

/// The reader that would get what `protocol.data_received()` is given.
#[inline]
fn reader_behind<'py>(
    protocol: &Bound<'py, PyAny>,
    originals: &Originals,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = protocol.py();
    let property = intern!(py, "_stream_reader");
    // First what most protocols that are others' fail.
    if !lookup::class_has(protocol, property, originals.stream_reader.bind(py))
        || !lookup::calls(protocol, intern!(py, "data_received"), originals.data_received.bind(py))
    {
        return Ok(None);
    }
    let weak = protocol.getattr(intern!(py, "_stream_reader_wr"))?;
    match weak.cast_into::<PyWeakrefReference>() {
        Ok(weak) => Ok(weak.upgrade()),
        Err(_) => Ok(None),
    }
}

/// Who is to get a transport's data.
pub enum Receiver<'py> {
    /// A reader of ours, instead of the protocol.
    Reader(Bound<'py, StreamReader>),
    /// One of asyncio's own, likewise.
    Stock(Bound<'py, PyAny>),
    /// The protocol, by its data_received().
    Protocol,
}

/// Who is to get the data that `protocol.data_received()` would be given now.
#[inline]
pub fn receiver<'py>(protocol: &Bound<'py, PyAny>) -> PyResult<Receiver<'py>> {
    let Some(originals) = originals(protocol.py())? else { return Ok(Receiver::Protocol) };
    match reader_behind(protocol, originals)? {
        Some(reader) if is_plain_stock(&reader, originals)? => Ok(Receiver::Stock(reader)),
        Some(reader) => {
            Ok(as_native(reader, originals).map_or(Receiver::Protocol, Receiver::Reader))
        }
        None => Ok(Receiver::Protocol),
    }
}

fn as_native<'py>(
    reader: Bound<'py, PyAny>,
    originals: &Originals,
) -> Option<Bound<'py, StreamReader>> {
    let py = reader.py();
    let reader = reader.cast_into::<StreamReader>().ok()?;
    let (name, ours) = (intern!(py, "feed_data"), originals.our_feed_data.bind(py));
    let feeds = if lookup::has_attributes(&reader) {
        lookup::calls(&reader, name, ours)
    } else {
        lookup::class_has(&reader, name, ours)
    };
    // After the end, feed_data() has something to say.
    (feeds && !reader.get().state(py).eof.get()).then_some(reader)
}

/// Gives data to a protocol, or straight to its reader.
///
/// # Errors
/// Those of the protocol or the reader.
pub fn data_received(protocol: &Bound<'_, PyAny>, data: Bound<'_, PyBytes>) -> PyResult<()> {
    give(protocol, &receiver(protocol)?, data)
}

/// Gives data to a protocol, or to the receiver that was found for it.
///
/// # Errors
/// As [`data_received`].
#[inline]
pub fn give(
    protocol: &Bound<'_, PyAny>,
    receiver: &Receiver<'_>,
    data: Bound<'_, PyBytes>,
) -> PyResult<()> {
    let py = protocol.py();
    match receiver {
        Receiver::Reader(reader) => return reader.get().state(py).feed(data),
        Receiver::Stock(reader) if feed_stock(reader, &data)? => return Ok(()),
        Receiver::Stock(_) | Receiver::Protocol => {}
    }
    protocol.call_method1(intern!(py, "data_received"), (data,)).map(drop)
}

/// Whether a reader is exactly asyncio's.
fn is_plain_stock(reader: &Bound<'_, PyAny>, originals: &Originals) -> PyResult<bool> {
    let py = reader.py();
    Ok(reader.get_type().is(imports::stream_reader(py)?)
        && lookup::calls(reader, intern!(py, "feed_data"), originals.feed_data.bind(py)))
}

/// What asyncio's `StreamReader.feed_data()` does; false if that had better be called, before anything
/// was done.
fn feed_stock(reader: &Bound<'_, PyAny>, data: &Bound<'_, PyBytes>) -> PyResult<bool> {
    let py = reader.py();
    let none = || py.None().into_bound(py);
    if reader.getattr(intern!(py, "_eof"))?.is_truthy()? {
        return Ok(false);
    }
    let Ok(buffer) = reader.getattr(intern!(py, "_buffer"))?.cast_into_exact::<PyByteArray>()
    else {
        return Ok(false);
    };
    let (waiter_name, transport_name): (&Bound<'_, PyString>, &Bound<'_, PyString>) =
        (intern!(py, "_waiter"), intern!(py, "_transport"));
    buffer.call_method1(intern!(py, "extend"), (data,))?;
    let waiter = reader.getattr(waiter_name)?;
    if !waiter.is_none() {
        reader.setattr(waiter_name, none())?;
        if !waiter.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            waiter.call_method1(intern!(py, "set_result"), (none(),))?;
        }
    }
    let transport = reader.getattr(transport_name)?;
    if transport.is_none() || reader.getattr(intern!(py, "_paused"))?.is_truthy()? {
        return Ok(true);
    }
    let limit: f64 = reader.getattr(intern!(py, "_limit"))?.extract()?;
    if buffer.len() as f64 > 2.0 * limit {
        match transport.call_method0(intern!(py, "pause_reading")) {
            Ok(_) => reader.setattr(intern!(py, "_paused"), true)?,
            Err(error) if error.is_instance_of::<PyNotImplementedError>(py) => {
                reader.setattr(transport_name, none())?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

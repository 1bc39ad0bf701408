//! What `getaddrinfo()` says of an address, without asking the system.

use std::net::{Ipv4Addr, Ipv6Addr};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyList, PyString, PyTuple};

/// What the system makes of a service that is only a number: a socket of each kind.
const KINDS: [(i32, i32); 3] = [
    (libc::SOCK_STREAM, libc::IPPROTO_TCP),
    (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    (libc::SOCK_RAW, 0),
];

/// `socket.getaddrinfo()`'s answer for an IPv4 or IPv6 address; None when it has to be asked itself.
#[pyfunction]
#[pyo3(signature = (host, port, family, r#type, proto, flags, /))]
pub fn literal_addresses<'py>(
    host: &Bound<'py, PyAny>,
    port: &Bound<'py, PyAny>,
    family: i32,
    r#type: i32,
    proto: i32,
    flags: i32,
) -> PyResult<Option<Bound<'py, PyList>>> {
    let py = host.py();
    let Ok(text) = host.cast::<PyString>() else { return Ok(None) };
    let Ok(text) = text.to_str() else { return Ok(None) };
    if proto != 0 || flags != 0 || r#type == libc::SOCK_RAW {
        return Ok(None);
    }
    // No subclass of int: the system's function takes none. What does not fit wraps around there, or
    // is an error.
    let port = if port.is_none() {
        0
    } else if let Ok(port) = port.cast_exact::<PyInt>() {
        match port.extract::<u16>() {
            Ok(port) => port,
            Err(_) => return Ok(None),
        }
    } else {
        return Ok(None);
    };
    let (own, address) = if text.contains(':') {
        let Some(shortest) = shortest_v6(text) else { return Ok(None) };
        (libc::AF_INET6, (shortest, port, 0, 0).into_pyobject(py)?)
    } else if text.parse::<Ipv4Addr>().is_ok() {
        (libc::AF_INET, PyTuple::new(py, [host, port.into_pyobject(py)?.as_any()])?)
    } else {
        return Ok(None);
    };
    if family != libc::AF_UNSPEC && family != own {
        return Ok(None);
    }
    let found = PyList::empty(py);
    for (index, (kind, _)) in KINDS.iter().enumerate() {
        if r#type == 0 || r#type == *kind {
            let known = known_parts(py, own)?.get_borrowed_item(index)?;
            let known = known.cast::<PyTuple>()?;
            let row = [
                known.get_item(0)?,
                known.get_item(1)?,
                known.get_item(2)?,
                known.get_item(3)?,
                address.clone().into_any(),
            ];
            found.append(PyTuple::new(py, row)?)?;
        }
    }
    Ok((!found.is_empty()).then_some(found))
}

/// For each kind: family and kind as the socket module's enums, protocol, canonical name.
fn known_parts(py: Python<'_>, family: i32) -> PyResult<&Bound<'_, PyTuple>> {
    static OF_V4: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    static OF_V6: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let cell = if family == libc::AF_INET { &OF_V4 } else { &OF_V6 };
    let make = || {
        let module = py.import("socket")?;
        let family = module.getattr("AddressFamily")?.call1((family,))?;
        let kind = module.getattr("SocketKind")?;
        let parts = KINDS
            .iter()
            .map(|(number, proto)| Ok((&family, kind.call1((*number,))?, *proto, "")))
            .collect::<PyResult<Vec<_>>>()?;
        PyResult::Ok(PyTuple::new(py, parts)?.unbind())
    };
    Ok(cell.get_or_try_init(py, make)?.bind(py))
}

/// An IPv6 address in its shortest form, as the system writes it; None when it is none.
fn shortest_v6(text: &str) -> Option<String> {
    let address: Ipv6Addr = text.parse().ok()?;
    // Of these the system writes some with an IPv4 address in them.
    let compatible = address.segments()[..6] == [0; 6] && address.segments()[6] != 0;
    (!compatible).then(|| address.to_string())
}

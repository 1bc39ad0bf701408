//! Socket addresses as Python's socket module shows them.

use std::cell::RefCell;
use std::net::{SocketAddrV4, SocketAddrV6};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyString, PyTuple};
use socket2::SockAddr;

use crate::imports;

/// An address as a transport keeps it: those of the Internet in a quarter of the 136 bytes that room
/// for any family takes, twice for each connection.
#[derive(Clone, PartialEq)]
pub enum Kept {
    V4(SocketAddrV4),
    V6(SocketAddrV6),
    Other(Box<SockAddr>),
}

impl From<SockAddr> for Kept {
    fn from(address: SockAddr) -> Self {
        if let Some(v4) = address.as_socket_ipv4() {
            Kept::V4(v4)
        } else if let Some(v6) = address.as_socket_ipv6() {
            Kept::V6(v6)
        } else {
            Kept::Other(Box::new(address))
        }
    }
}

impl Kept {
    /// The address as system calls take it.
    pub fn full(&self) -> SockAddr {
        match self {
            Kept::V4(v4) => (*v4).into(),
            Kept::V6(v6) => (*v6).into(),
            Kept::Other(other) => (**other).clone(),
        }
    }

    /// Where an Internet address is found among those of [`Shown`].
    fn place(&self) -> Option<usize> {
        let (host, port) = match self {
            Kept::V4(v4) => (v4.ip().to_bits(), v4.port()),
            Kept::V6(v6) => ((v6.ip().to_bits() >> 32 ^ v6.ip().to_bits()) as u32, v6.port()),
            Kept::Other(_) => return None,
        };
        Some((host ^ host >> 16 ^ u32::from(port)) as usize % PLACES)
    }
}

/// How many addresses [`Shown`] remembers.
const PLACES: usize = 256;

/// Internet addresses that were shown to Python lately. The peers of a datagram socket come again and
/// again, by turns, and to make a tuple with a text in it costs more than to receive does.
#[derive(Default)]
pub struct Shown(RefCell<Vec<Option<Pair>>>);

/// An address and what Python sees of it.
pub type Pair = (Kept, Py<PyAny>);

impl Shown {
    /// As [`to_python`].
    pub fn to_python(&self, py: Python<'_>, address: &Kept) -> PyResult<Py<PyAny>> {
        let place = address.place();
        if let Some(place) = place
            && let Some(Some((known, object))) = self.0.borrow().get(place)
            && known == address
        {
            return Ok(object.clone_ref(py));
        }
        let object = to_python(py, &address.full())?.unbind();
        if let Some(place) = place {
            let mut all = self.0.borrow_mut();
            if all.is_empty() {
                all.resize_with(PLACES, || None);
            }
            let before = all[place].replace((address.clone(), object.clone_ref(py)));
            drop(all);
            drop(before);
        }
        Ok(object)
    }
}

/// The address as a Python object: `(host, port)` for IPv4, `(host, port, flowinfo, scope_id)` for
/// IPv6, a str for a Unix socket's path (empty when it has none) and bytes for an abstract name.
/// `None` for families that this does not know.
pub fn to_python<'py>(py: Python<'py>, address: &SockAddr) -> PyResult<Bound<'py, PyAny>> {
    if let Some(v4) = address.as_socket_ipv4() {
        return Ok((v4.ip().to_string(), v4.port()).into_pyobject(py)?.into_any());
    }
    if let Some(v6) = address.as_socket_ipv6() {
        let scope = v6.scope_id();
        let mut host = v6.ip().to_string();
        if scope != 0 {
            host = scoped(py, &host, scope)?;
        }
        return Ok((host, v6.port(), u32::from_be(v6.flowinfo()), scope)
            .into_pyobject(py)?
            .into_any());
    }
    if let Some(path) = address.as_pathname() {
        return Ok(path.as_os_str().into_pyobject(py)?.into_any());
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(name) = address.as_abstract_namespace() {
        let mut bytes = vec![0];
        bytes.extend_from_slice(name);
        return Ok(PyBytes::new(py, &bytes).into_any());
    }
    if address.is_unix() {
        return Ok(PyString::new(py, "").into_any());
    }
    Ok(py.None().into_bound(py))
}

/// The address of a tuple with a literal host, as Python's socket module reads it; None for what it
/// takes to be looked up, or refused, by that module.
pub fn from_literal(address: &Bound<'_, PyAny>, family: Option<i32>) -> PyResult<Option<SockAddr>> {
    let Ok(tuple) = address.cast_exact::<PyTuple>() else { return Ok(None) };
    let (true, Some(family)) = ((2..=4).contains(&tuple.len()), family) else { return Ok(None) };
    let host = tuple.get_borrowed_item(0)?;
    let Ok(host) = host.cast::<PyString>() else { return Ok(None) };
    let Ok(host) = host.to_str() else { return Ok(None) };
    let number = |index: usize| -> Option<u32> {
        if index >= tuple.len() {
            return Some(0);
        }
        tuple.get_borrowed_item(index).ok()?.cast_exact::<PyInt>().ok()?.extract().ok()
    };
    let Some(port) = number(1).and_then(|port| u16::try_from(port).ok()) else { return Ok(None) };
    let parsed = match family {
        libc::AF_INET if tuple.len() == 2 => {
            host.parse().ok().map(|ip| SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => match (host.parse(), number(2), number(3)) {
            // 20 bits, in the network's order.
            (Ok(ip), Some(flow), Some(scope)) if flow <= 0xf_ffff => {
                Some(SocketAddrV6::new(ip, port, flow.to_be(), scope).into())
            }
            _ => None,
        },
        _ => None,
    };
    Ok(parsed)
}

/// The system's getnameinfo() appends the interface to a scoped address, so Python's addresses have
/// it too.
fn scoped(py: Python<'_>, host: &str, scope: u32) -> PyResult<String> {
    let interface = py
        .import("socket")?
        .call_method1("if_indextoname", (scope,))
        .and_then(|name| name.extract::<String>());
    Ok(match interface {
        Ok(name) => format!("{host}%{name}"),
        Err(_) => format!("{host}%{scope}"),
    })
}

/// The (family, type, protocol) of a socket and its Python object, made from a descriptor that the
/// object owns from then on.
pub fn socket_object<'py>(
    py: Python<'py>,
    fd: std::os::fd::OwnedFd,
    family: i32,
) -> PyResult<Bound<'py, PyAny>> {
    use std::os::fd::{AsRawFd, IntoRawFd};
    // What the sockets have that create_connection() and create_server() make by themselves.
    let is_ip = family == libc::AF_INET || family == libc::AF_INET6;
    let proto = if is_ip { libc::IPPROTO_TCP } else { 0 };
    let arguments = (family, libc::SOCK_STREAM, proto, fd.as_raw_fd());
    let sock = imports::socket_type(py)?.call1(arguments)?;
    // The object owns the descriptor now.
    let _ = fd.into_raw_fd();
    // Its timeout is unknown to it; the descriptor is non-blocking already.
    sock.call_method1("settimeout", (0.0,))?;
    Ok(sock)
}

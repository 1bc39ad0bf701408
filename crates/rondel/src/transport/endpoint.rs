//! A transport's end of the connection: the descriptor, who owns it, and what is known about it.
//!
//! A connection that we accepted is a bare descriptor; it becomes a Python socket object only when a
//! program asks for `get_extra_info("socket")`. A socket that the program or our connecting code made
//! stays that object. Either way there is one owner, and closing goes through it.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rondel_reactor::net;
use socket2::SockAddr;

use super::address;
use crate::imports;

enum Owner {
    /// Ours.
    Descriptor(OwnedFd),
    /// A Python socket object's.
    Object(Py<PyAny>),
    Closed,
}

/// See the module's documentation.
pub struct Endpoint {
    fd: Cell<RawFd>,
    owner: RefCell<Owner>,
    local: Option<SockAddr>,
    peer: Option<SockAddr>,
    /// What was asked for before, and what the transport's maker gave.
    extra: RefCell<Option<Py<PyDict>>>,
}

impl Endpoint {
    /// An accepted connection.
    pub fn accepted(fd: OwnedFd, peer: SockAddr) -> Self {
        let raw = fd.as_raw_fd();
        Endpoint {
            fd: Cell::new(raw),
            owner: RefCell::new(Owner::Descriptor(fd)),
            local: net::local_address(raw).ok(),
            peer: Some(peer),
            extra: RefCell::new(None),
        }
    }

    /// A connected Python socket.
    pub fn adopted(sock: &Bound<'_, PyAny>, extra: Option<Bound<'_, PyDict>>) -> PyResult<Self> {
        let fd: RawFd = sock.call_method0(intern!(sock.py(), "fileno"))?.extract()?;
        Ok(Endpoint {
            fd: Cell::new(fd),
            owner: RefCell::new(Owner::Object(sock.clone().unbind())),
            local: net::local_address(fd).ok(),
            peer: net::peer_address(fd).ok(),
            extra: RefCell::new(extra.map(Bound::unbind)),
        })
    }

    /// The descriptor; -1 when closed.
    pub fn fd(&self) -> RawFd {
        self.fd.get()
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        matches!(*self.owner.borrow(), Owner::Closed)
    }

    /// Whether this is a TCP connection (and no Unix socket).
    pub fn is_tcp(&self) -> bool {
        self.local.as_ref().is_some_and(|address| address.is_ipv4() || address.is_ipv6())
    }

    /// The address family, as far as it is known.
    pub fn family(&self) -> Option<i32> {
        self.local.as_ref().map(|address| address.family().into())
    }

    /// Whether the socket was connected when the transport was made.
    pub fn is_connected(&self) -> bool {
        self.peer.is_some()
    }

    /// The descriptor to remove from the poller before closing: -1 when the program closed (or
    /// detached) the socket behind our back, since the number may be another's by now.
    pub fn fd_to_remove(&self, py: Python<'_>) -> RawFd {
        let object = match &*self.owner.borrow() {
            Owner::Object(sock) => sock.clone_ref(py),
            _ => return self.fd.get(),
        };
        let current = object
            .call_method0(py, intern!(py, "fileno"))
            .and_then(|fileno| fileno.extract::<RawFd>(py))
            .unwrap_or(-1);
        if current == self.fd.get() { current } else { -1 }
    }

    /// Closes the socket through its owner.
    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        // Taken out first: closing an object runs Python code.
        let owner = self.owner.replace(Owner::Closed);
        match owner {
            Owner::Descriptor(fd) => drop(fd),
            Owner::Object(sock) => {
                sock.call_method0(py, intern!(py, "close"))?;
            }
            Owner::Closed => {}
        }
        Ok(())
    }

    /// Closes the socket of a transport that was dropped. The collector may have taken its object
    /// apart already, so this is the native part's close and failing is no news.
    pub fn abandon(&self, py: Python<'_>) {
        let owner = self.owner.replace(Owner::Closed);
        if let Owner::Object(sock) = owner
            && let Ok(native) = imports::native_socket_type(py)
        {
            let _ = native.call_method1(intern!(py, "close"), (sock,));
        }
    }

    fn extra<'py>(&self, py: Python<'py>) -> Bound<'py, PyDict> {
        self.extra.borrow_mut().get_or_insert_with(|| PyDict::new(py).unbind()).bind(py).clone()
    }

    /// `transport.get_extra_info(name)`: None when it is not known.
    pub fn extra_info<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let extra = self.extra(py);
        if let Some(known) = extra.get_item(name)? {
            return Ok(Some(known));
        }
        let Ok(key) = name.extract::<String>() else { return Ok(None) };
        let value = match key.as_str() {
            "peername" => optional_address(py, self.peer.as_ref())?,
            "sockname" => optional_address(py, self.local.as_ref())?,
            "socket" => match self.socket(py)? {
                Some(sock) => imports::transport_socket(py)?.call1((sock,))?,
                None => imports::transport_socket(py)?.call1((closed_socket(py)?,))?,
            },
            _ => return Ok(None),
        };
        extra.set_item(name, &value)?;
        Ok(Some(value))
    }

    /// The Python socket object, made now when there was none; None when closed.
    pub fn socket<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let owner = self.owner.replace(Owner::Closed);
        let owner = match owner {
            Owner::Descriptor(fd) => {
                let family = self.family().unwrap_or(libc::AF_INET);
                Owner::Object(address::socket_object(py, fd, family)?.unbind())
            }
            other => other,
        };
        let sock = match &owner {
            Owner::Object(sock) => Some(sock.bind(py).clone()),
            _ => None,
        };
        drop(self.owner.replace(owner));
        Ok(sock)
    }

    /// Shows the Python objects to the collector.
    pub fn traverse(&self, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        if let Ok(owner) = self.owner.try_borrow()
            && let Owner::Object(sock) = &*owner
        {
            visit.call(sock)?;
        }
        match self.extra.try_borrow() {
            Ok(extra) => visit.call(&*extra),
            Err(_) => Ok(()),
        }
    }
}

/// What a program gets that asks for the socket only after it was closed.
fn closed_socket(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let sock = imports::socket_type(py)?.call0()?;
    sock.call_method0(intern!(py, "close"))?;
    Ok(sock)
}

fn optional_address<'py>(
    py: Python<'py>,
    address: Option<&SockAddr>,
) -> PyResult<Bound<'py, PyAny>> {
    match address {
        Some(address) => address::to_python(py, address),
        None => Ok(py.None().into_bound(py)),
    }
}

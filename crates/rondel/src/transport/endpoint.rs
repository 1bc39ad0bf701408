//! A transport's end of the connection: the descriptor, who owns it, and what is known about it.
//!
//! A connection that we accepted is a bare descriptor; it becomes a Python socket object only when a
//! program asks for `get_extra_info("socket")`. A socket that the program or our connecting code made
//! stays that object. Either way there is one owner, and closing goes through it. A program that closes
//! or detaches its socket all the same takes the descriptor away: see [`Endpoint::fd`].

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rondel_reactor::net;
use socket2::SockAddr;

use super::address::{self, Kept};
use crate::ffi::socket::Socket;
use crate::imports;

enum Owner {
    /// Ours.
    Descriptor(OwnedFd),
    /// A Python socket object's.
    Object(Socket),
    Closed,
}

/// See the module's documentation.
pub struct Endpoint {
    number: RawFd,
    owner: RefCell<Owner>,
    local: Option<Kept>,
    peer: Option<Kept>,
    /// What was asked for before, and what the transport's maker gave.
    extra: RefCell<Option<Py<PyDict>>>,
}

impl Endpoint {
    /// A connection whose descriptor is ours.
    pub fn owned(fd: OwnedFd, peer: SockAddr) -> Self {
        let raw = fd.as_raw_fd();
        Endpoint {
            number: raw,
            owner: RefCell::new(Owner::Descriptor(fd)),
            local: net::local_address(raw).ok().map(Kept::from),
            peer: Some(peer.into()),
            extra: RefCell::new(None),
        }
    }

    /// A connected Python socket.
    pub fn adopted(sock: &Bound<'_, PyAny>, extra: Option<Bound<'_, PyDict>>) -> PyResult<Self> {
        let sock = Socket::new(sock)?;
        let fd = sock.number();
        Ok(Endpoint {
            number: fd,
            owner: RefCell::new(Owner::Object(sock)),
            local: net::local_address(fd).ok().map(Kept::from),
            peer: net::peer_address(fd).ok().map(Kept::from),
            extra: RefCell::new(extra.map(Bound::unbind)),
        })
    }

    /// The descriptor's number, also of one that is closed: a name for people and tables.
    pub fn number(&self) -> RawFd {
        self.number
    }

    /// The descriptor for a system call. -1 when the program closed (or detached) the socket behind
    /// our back, since the number may be another's by now.
    #[inline]
    pub fn fd(&self, py: Python<'_>) -> RawFd {
        match &*self.owner.borrow() {
            Owner::Object(sock) => {
                if let Some(fd) = sock.native_fd(py) {
                    return fd;
                }
            }
            _ => return self.number,
        }
        self.fd_by_asking(py)
    }

    #[cold]
    fn fd_by_asking(&self, py: Python<'_>) -> RawFd {
        let sock = match &*self.owner.borrow() {
            Owner::Object(sock) => sock.clone_ref(py),
            _ => return self.number,
        };
        sock.fd(py)
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        matches!(*self.owner.borrow(), Owner::Closed)
    }

    /// Whether this is a TCP connection (and no Unix socket).
    pub fn is_tcp(&self) -> bool {
        matches!(self.local, Some(Kept::V4(_) | Kept::V6(_)))
    }

    /// Whether this is a Unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(&self.local, Some(Kept::Other(address)) if address.is_unix())
    }

    /// The address family, as far as it is known.
    pub fn family(&self) -> Option<i32> {
        self.local.as_ref().map(|address| address.full().family().into())
    }

    /// Whether the socket was connected when the transport was made.
    pub fn is_connected(&self) -> bool {
        self.peer.is_some()
    }

    /// Closes the socket through its owner.
    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        // Taken out first: closing an object runs Python code.
        let owner = self.owner.replace(Owner::Closed);
        match owner {
            Owner::Descriptor(fd) => drop(fd),
            Owner::Object(sock) => {
                sock.object().call_method0(py, intern!(py, "close"))?;
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
            let _ = native.call_method1(intern!(py, "close"), (sock.object(),));
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
                Owner::Object(Socket::new(&address::socket_object(py, fd, family)?)?)
            }
            other => other,
        };
        let sock = match &owner {
            Owner::Object(sock) => Some(sock.object().bind(py).clone()),
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
            sock.traverse(visit)?;
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

fn optional_address<'py>(py: Python<'py>, address: Option<&Kept>) -> PyResult<Bound<'py, PyAny>> {
    match address {
        Some(address) => address::to_python(py, &address.full()),
        None => Ok(py.None().into_bound(py)),
    }
}

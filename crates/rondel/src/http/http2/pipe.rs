//! What the protocol reads from and writes to: memory between it and the transport.
//!
//! No Python here but for the `bytes` that arrived. Nothing here ever waits: reading and writing are
//! tried again by the connection, which knows when there is more to read or room again.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pyo3::pybacked::PyBackedBytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that may wait to be sent; the protocol holds the rest back.
const FULL: usize = 128 * 1024;

/// See the module's documentation.
#[derive(Default)]
pub struct Buffers {
    /// What has arrived, and how much of it was read.
    input: RefCell<Option<(PyBackedBytes, usize)>>,
    output: RefCell<Vec<u8>>,
    /// Nothing more will arrive.
    pub ended: Cell<bool>,
    /// Something was refused because the output is full.
    pub refused: Cell<bool>,
}

impl Buffers {
    /// Gives what has arrived; what was given before has been read.
    pub fn feed(&self, data: PyBackedBytes) {
        let before = self.input.replace(Some((data, 0)));
        drop(before);
    }

    /// What is to be sent.
    pub fn take_output(&self) -> Vec<u8> {
        self.output.take()
    }
}

/// The protocol's side.
pub struct Pipe(pub Rc<Buffers>);

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut input = self.0.input.borrow_mut();
        let Some((data, at)) = &mut *input else {
            return if self.0.ended.get() { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let count = room.remaining().min(data.len() - *at);
        room.put_slice(&data[*at..*at + count]);
        *at += count;
        if *at == data.len() {
            *input = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut output = self.0.output.borrow_mut();
        if output.len() >= FULL {
            self.0.refused.set(true);
            return Poll::Pending;
        }
        let before = output.len();
        for part in parts {
            output.extend_from_slice(part);
        }
        Poll::Ready(Ok(output.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

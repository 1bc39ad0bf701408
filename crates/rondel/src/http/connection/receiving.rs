//! What arrives on a connection, taken apart: heads, bodies, and what follows a switch of protocols.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{Connection, Phase};
use crate::http::framing::{Framing, Part};
use crate::http::head::{self, ResponseHead};
use crate::http::stream::StreamReader;
use crate::http::websocket::WebSocket;
use crate::http::{Lane, faults};

impl Connection {
    /// Reads what has arrived; an error is the peer's.
    pub(super) fn receive(slf: &Bound<'_, Self>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let input = data.as_bytes();
        let mut at = 0;
        while at < input.len() {
            let phase = this.phase.get(py).replace(Phase::Idle);
            match phase {
                Phase::Unmade(mut early) => {
                    early.extend_from_slice(input);
                    this.phase.get(py).replace(Phase::Unmade(early));
                    return Ok(());
                }
                Phase::Idle => {
                    // Nobody asked: what follows could be taken for the next response.
                    this.flags(py).keep.set(false);
                    return this.shut(py, "close");
                }
                Phase::Head { partial, bodiless } => {
                    match this.receive_head(slf, partial, bodiless, &input[at..])? {
                        Some(used) => at += used,
                        None => return Ok(()),
                    }
                }
                Phase::Switched(mut rest) => {
                    let socket = this.socket.get(py).borrow().as_ref().map(|s| s.clone_ref(py));
                    if socket.is_none() {
                        rest.extend_from_slice(&input[at..]);
                    }
                    this.phase.get(py).replace(Phase::Switched(rest));
                    return match socket {
                        Some(socket) => this.feed_socket(py, &socket, &input[at..]),
                        None => this.pause_reading(py),
                    };
                }
                Phase::Body(framing) => match this.receive_body(py, framing, data, at)? {
                    Some(next) => at = next,
                    None => return Ok(()),
                },
            }
        }
        Ok(())
    }

    /// Returns how much of the input was the head's; None when it is incomplete or unusable.
    fn receive_head(
        &self,
        slf: &Bound<'_, Self>,
        mut partial: Vec<u8>,
        bodiless: bool,
        input: &[u8],
    ) -> PyResult<Option<usize>> {
        let py = slf.py();
        let before = partial.len();
        let parsed = if before == 0 {
            head::parse(input)
        } else {
            partial.extend_from_slice(input);
            head::parse(&partial)
        };
        let (head, length) = match parsed {
            Ok(Some(parsed)) => parsed,
            Ok(None) => {
                if before == 0 {
                    partial.extend_from_slice(input);
                }
                self.phase.get(py).replace(Phase::Head { partial, bodiless });
                return Ok(None);
            }
            Err(text) => return self.fail_badly(py, &text).map(|()| None),
        };
        let used = length - before;
        if head.status < 200 && head.status != 101 {
            self.phase.get(py).replace(Phase::Head { partial: Vec::new(), bodiless });
            self.waiting.wake(py, &self.waiting.go_ahead)?;
            return Ok(Some(used));
        }
        if self.flags(py).switch.replace(0) == head.status {
            return self.switch(slf, head).map(|()| Some(used));
        }
        let framing = match head.framing(bodiless) {
            Ok(framing) => framing,
            Err(text) => return self.fail_badly(py, &text).map(|()| None),
        };
        self.flags(py).keep.set(head.keeps_alive() && !matches!(framing, Framing::UntilClose));
        let complete = framing.is_complete();
        let decode = self.flags(py).decode.get() && !complete;
        let decoder = if decode { head.decoder() } else { None };
        let connection = (!complete).then(|| Lane::Alone(slf.clone().unbind()));
        let body = StreamReader::create(self.event_loop.clone_ref(py), connection, decoder);
        let body = Py::new(py, body)?;
        self.announce(py, ResponseHead::new(head, body.clone_ref(py)))?;
        if !complete {
            self.phase.get(py).replace(Phase::Body(framing));
            self.waiting.body.get(py).replace(Some(body));
        }
        if complete {
            self.finish(py)?;
        }
        Ok(Some(used))
    }

    /// Gives the head to the one who waits now: the connection may be lent again before that task runs.
    fn announce(&self, py: Python<'_>, head: ResponseHead) -> PyResult<()> {
        let head = Py::new(py, head)?;
        let waiter = self.waiting.head_waiter.get(py).take();
        match waiter {
            Some(waiter) => {
                if !waiter.call_method0(py, intern!(py, "done"))?.is_truthy(py)? {
                    waiter.call_method1(py, intern!(py, "set_result"), (head,))?;
                }
            }
            None => drop(self.waiting.head.get(py).replace(Some(head))),
        }
        Ok(())
    }

    /// What follows this head is not HTTP: the exchange goes on until the connection ends, without
    /// its limits of time.
    fn switch(&self, slf: &Bound<'_, Self>, head: head::Head) -> PyResult<()> {
        let py = slf.py();
        self.flags(py).keep.set(false);
        let connection = Some(Lane::Alone(slf.clone().unbind()));
        let body = StreamReader::create(self.event_loop.clone_ref(py), connection, None);
        let body = Py::new(py, body)?;
        self.waiting.body.get(py).replace(Some(body.clone_ref(py)));
        self.phase.get(py).replace(Phase::Switched(Vec::new()));
        self.waiting.cancel_timer(py)?;
        self.announce(py, ResponseHead::new(head, body))
    }

    pub(super) fn feed_socket(
        &self,
        py: Python<'_>,
        socket: &Py<WebSocket>,
        data: &[u8],
    ) -> PyResult<()> {
        if socket.get().feed(py, data)? {
            self.pause_reading(py)?;
        }
        Ok(())
    }

    /// Takes the rest of the input for the body; returns where it ended, or None when it goes on.
    fn receive_body(
        &self,
        py: Python<'_>,
        mut framing: Framing,
        data: &Bound<'_, PyBytes>,
        mut at: usize,
    ) -> PyResult<Option<usize>> {
        let Some(body) = self.waiting.body.get(py).borrow().as_ref().map(|body| body.clone_ref(py))
        else {
            return Ok(None);
        };
        let body = body.get();
        let input = data.as_bytes();
        let (mut too_much, mut ended, mut in_data) = (false, false, false);
        while at < input.len() && !ended {
            match framing.next(&input[at..]) {
                Ok(Part::Data(count)) => {
                    too_much = body.feed(py, data, at, at + count);
                    at += count;
                    ended = framing.is_complete();
                    in_data = true;
                }
                Ok(Part::Skipped(count)) => {
                    at += count;
                    if std::mem::take(&mut in_data) {
                        body.chunk_ended(py);
                    }
                }
                Ok(Part::End(count)) => {
                    at += count;
                    ended = true;
                    body.last_chunk(py);
                }
                Err(text) => {
                    let error = faults::incomplete(py, text);
                    self.fail(py, error)?;
                    return Ok(None);
                }
            }
        }
        if ended {
            self.finish(py)?;
            return Ok(Some(at));
        }
        self.phase.get(py).replace(Phase::Body(framing));
        if too_much {
            self.pause_reading(py)?;
        }
        body.wake(py)?;
        Ok(None)
    }
}

//! A stream's handles of the crate `h2`: what there is to be had, and to be given. No Python here.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

/// Bytes of a request's body that may wait for the server's window.
const BACKLOG: usize = 64 * 1024;

/// See the module's documentation; only the memory of `backlog` may be Python's.
#[derive(Default)]
pub struct Wire {
    pub number: u64,
    pub waker: Option<Waker>,
    pub response: Option<ResponseFuture>,
    pub receiver: Option<RecvStream>,
    /// None when the request has been handed over whole.
    pub sender: Option<SendStream<Bytes>>,
    /// What there is no window for.
    pub backlog: VecDeque<Bytes>,
    /// No more will be added to it.
    pub whole: bool,
    /// Bytes that have arrived and for which the server was not given room again.
    pub held: usize,
}

/// What there was to be had.
#[derive(Default)]
pub struct News {
    pub head: Option<http::Response<()>>,
    pub data: Vec<Bytes>,
    pub ended: bool,
    pub error: Option<h2::Error>,
    pub room: bool,
    /// An informational response has come.
    pub informed: bool,
}

impl Wire {
    /// Whether more of the body is taken.
    pub fn has_room(&self) -> bool {
        self.backlog.iter().map(Bytes::len).sum::<usize>() < BACKLOG
    }

    /// Hands over as much of the body as there is a window for.
    pub fn push(&mut self, context: &mut Context<'_>) -> Result<(), h2::Error> {
        let Some(sender) = &mut self.sender else { return Ok(()) };
        while let Some(mut piece) = self.backlog.pop_front() {
            if piece.is_empty() {
                continue;
            }
            sender.reserve_capacity(piece.len());
            let mut room = sender.capacity();
            if room == 0 {
                room = match sender.poll_capacity(context) {
                    Poll::Ready(Some(room)) => room?,
                    Poll::Ready(None) => 0,
                    Poll::Pending => 0,
                };
            }
            if room == 0 {
                self.backlog.push_front(piece);
                return Ok(());
            }
            let part = piece.split_to(room.min(piece.len()));
            if !piece.is_empty() {
                self.backlog.push_front(piece);
            }
            let last = self.whole && self.backlog.is_empty();
            sender.send_data(part, last)?;
            if last {
                self.sender = None;
                return Ok(());
            }
        }
        if self.whole {
            sender.send_data(Bytes::new(), true)?;
            self.sender = None;
        }
        Ok(())
    }

    /// The same at another time than look(): an error comes with the response.
    pub fn push_now(&mut self) {
        if let Some(waker) = self.waker.clone() {
            drop(self.push(&mut Context::from_waker(&waker)));
        }
    }

    /// Everything that is new.
    pub fn look(&mut self) -> News {
        let mut news = News::default();
        let Some(waker) = self.waker.clone() else { return news };
        let context = &mut Context::from_waker(&waker);
        // An error of sending comes with the response, which may have come whole before.
        let pushed = self.push(context);
        news.room = self.has_room();
        if let Some(response) = &mut self.response {
            while let Poll::Ready(Some(Ok(_))) = response.poll_informational(context) {
                news.informed = true;
            }
            match Pin::new(response).poll(context) {
                Poll::Pending => {
                    news.error = pushed.err();
                    return news;
                }
                Poll::Ready(Err(error)) => {
                    news.error = Some(error);
                    return news;
                }
                Poll::Ready(Ok(answer)) => {
                    let (parts, receiver) = answer.into_parts();
                    news.head = Some(http::Response::from_parts(parts, ()));
                    self.response = None;
                    self.receiver = Some(receiver);
                }
            }
        }
        let Some(receiver) = &mut self.receiver else { return news };
        loop {
            if receiver.is_end_stream() {
                news.ended = true;
                return news;
            }
            match receiver.poll_data(context) {
                Poll::Ready(Some(Ok(data))) => {
                    self.held += data.len();
                    news.data.push(data);
                }
                Poll::Ready(Some(Err(error))) => {
                    news.error = Some(error);
                    return news;
                }
                Poll::Ready(None) => {
                    news.ended = true;
                    return news;
                }
                Poll::Pending => return news,
            }
        }
    }

    /// Gives the server room for as much as has arrived; returns whether there was something.
    pub fn release(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        match &mut self.receiver {
            Some(receiver) if held > 0 => {
                // It fails only when more is given than was taken.
                receiver.flow_control().release_capacity(held).is_ok()
            }
            _ => false,
        }
    }

    /// Ends the stream, whatever is still to come or to be sent.
    pub fn reset(&mut self) {
        if let Some(sender) = &mut self.sender {
            sender.send_reset(Reason::CANCEL);
        }
        // Whatever is left of the handles: dropping them all cancels as well.
        let number = self.number;
        *self = Wire { number, ..Wire::default() };
    }
}

//! Chunks that wait to be sent.
//!
//! The queue owns its chunks, whatever they are, and sends as many as one system call takes. It
//! counts bytes, so that flow control is a comparison.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::RawFd;

use crate::net;

/// Pieces handed to one `writev`; more gain nothing (the kernel's own limit is 1,024).
const MAX_PIECES: usize = 64;
/// Several pieces that together are at most so many bytes are copied into one, which costs less than
/// having the kernel gather them.
const COPIED: usize = 1024;

/// What came of sending the only chunk of a queue.
#[derive(Debug)]
pub enum Only<C> {
    /// It is sent, and for the caller to drop once it no longer borrows the queue.
    Sent(C),
    /// The socket is full; the rest stays queued.
    Kept,
    /// There is not exactly one chunk: [`WriteQueue::flush`] is for that.
    Not,
}

/// A queue of chunks with its size in bytes.
#[derive(Debug)]
pub struct WriteQueue<C> {
    chunks: VecDeque<C>,
    /// How much of the first chunk is sent already.
    sent: usize,
    bytes: usize,
}

impl<C> Default for WriteQueue<C> {
    fn default() -> Self {
        WriteQueue { chunks: VecDeque::new(), sent: 0, bytes: 0 }
    }
}

impl<C: AsRef<[u8]>> WriteQueue<C> {
    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a chunk of which the first `sent` bytes are on their way already (only possible while
    /// nothing else waits). An empty remainder is not queued.
    pub fn push(&mut self, chunk: C, sent: usize) {
        let length = chunk.as_ref().len();
        debug_assert!(sent == 0 || self.is_empty());
        if sent >= length {
            return;
        }
        if self.chunks.is_empty() {
            self.sent = sent;
        }
        self.bytes += length - sent;
        self.chunks.push_back(chunk);
    }

    /// Takes all chunks out, for the caller to drop once it no longer borrows the queue.
    pub fn take(&mut self) -> VecDeque<C> {
        self.sent = 0;
        self.bytes = 0;
        std::mem::take(&mut self.chunks)
    }

    /// Sends the only chunk, which is what most queues hold, if they hold something.
    ///
    /// # Errors
    /// As [`WriteQueue::flush`].
    #[inline]
    pub fn send_only(&mut self, fd: RawFd) -> io::Result<Only<C>> {
        let ([chunk], []) = self.chunks.as_slices() else { return Ok(Only::Not) };
        match net::send(fd, &chunk.as_ref()[self.sent..]) {
            Ok(taken) if taken < self.bytes => {
                self.sent += taken;
                self.bytes -= taken;
                Ok(Only::Kept)
            }
            Ok(_) => {
                self.sent = 0;
                self.bytes = 0;
                Ok(self.chunks.pop_front().map_or(Only::Kept, Only::Sent))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Only::Kept),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Only::Not),
            Err(error) => Err(error),
        }
    }

    /// Sends until the queue is empty or the socket is full. Chunks that are done go to `done`, for
    /// the caller to drop once it no longer borrows the queue.
    ///
    /// # Errors
    /// The operating system's, except that "would block" is no error: the rest stays queued.
    pub fn flush(&mut self, fd: RawFd, done: &mut Vec<C>) -> io::Result<()> {
        self.flush_by(done, |pieces| match pieces {
            [piece] => net::send(fd, piece),
            pieces => net::send_vectored(fd, pieces),
        })
    }

    /// As [`WriteQueue::flush`], for what is no socket: `send` takes some of the pieces and returns
    /// how many bytes that was.
    ///
    /// # Errors
    /// What `send` returns, except that "would block" is no error.
    pub fn flush_by(
        &mut self,
        done: &mut Vec<C>,
        send: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while self.bytes > 0 {
            let taken = match self.send_some(&send) {
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.advance(taken, done) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn send_some(&self, send: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        if self.chunks.len() == 1 {
            return send(&[IoSlice::new(&self.chunks[0].as_ref()[self.sent..])]);
        }
        if self.bytes <= COPIED {
            let mut copy = [0; COPIED];
            let mut end = 0;
            for piece in self.pieces() {
                copy[end..end + piece.len()].copy_from_slice(piece);
                end += piece.len();
            }
            return send(&[IoSlice::new(&copy[..end])]);
        }
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
        let mut count = 0;
        for (place, piece) in pieces.iter_mut().zip(self.pieces()) {
            *place = IoSlice::new(piece);
            count += 1;
        }
        send(&pieces[..count])
    }

    /// What is left of each chunk.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let from = |index| if index == 0 { self.sent } else { 0 };
        self.chunks.iter().enumerate().map(move |(index, chunk)| &chunk.as_ref()[from(index)..])
    }

    /// Forgets `taken` bytes; true when that ended inside a chunk, so the socket is full.
    fn advance(&mut self, mut taken: usize, done: &mut Vec<C>) -> bool {
        self.bytes -= taken;
        while let Some(chunk) = self.chunks.front() {
            let left = chunk.as_ref().len() - self.sent;
            if taken < left {
                self.sent += taken;
                return true;
            }
            taken -= left;
            self.sent = 0;
            done.extend(self.chunks.pop_front());
            if taken == 0 {
                return false;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sends_everything_in_order_over_a_small_socket() {
        let (here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let mut queue = WriteQueue::default();
        let mut expected = Vec::new();
        for size in [3_usize, 0, 70_000, 1, 500_000, 12] {
            #[allow(clippy::cast_possible_truncation)]
            let chunk: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            expected.extend_from_slice(&chunk);
            queue.push(chunk, 0);
        }
        assert_eq!(queue.len(), expected.len());
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            there.read_to_end(&mut got).unwrap();
            got
        });
        let mut done = Vec::new();
        while !queue.is_empty() {
            queue.flush(here.as_raw_fd(), &mut done).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(done.len(), 5);
        drop(here);
        assert_eq!(reader.join().unwrap(), expected);
    }

    #[test]
    fn a_partly_sent_first_chunk_counts_only_its_rest() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut queue = WriteQueue::default();
        queue.push(b"abcdef".to_vec(), 4);
        queue.push(b"gh".to_vec(), 0);
        assert_eq!(queue.len(), 4);
        queue.flush(here.as_raw_fd(), &mut Vec::new()).unwrap();
        drop(here);
        let mut got = String::new();
        there.read_to_string(&mut got).unwrap();
        assert_eq!(got, "efgh");
    }

    #[test]
    fn the_only_chunk_comes_back_once_it_is_sent_whole() {
        let (here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let fd = here.as_raw_fd();
        let mut queue = WriteQueue::default();
        assert!(matches!(queue.send_only(fd).unwrap(), Only::Not));
        queue.push(b"abc".to_vec(), 1);
        assert!(matches!(queue.send_only(fd).unwrap(), Only::Sent(chunk) if chunk == b"abc"));
        assert!(queue.is_empty());

        let large: Vec<u8> = vec![7; 4 << 20];
        queue.push(large.clone(), 0);
        assert!(matches!(queue.send_only(fd).unwrap(), Only::Kept));
        let left = queue.len();
        assert!(0 < left && left < large.len());
        assert!(matches!(queue.send_only(fd).unwrap(), Only::Kept));
        assert_eq!(queue.len(), left);
        queue.push(b"end".to_vec(), 0);
        assert!(matches!(queue.send_only(fd).unwrap(), Only::Not));
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            there.read_to_end(&mut got).unwrap();
            got
        });
        while !queue.is_empty() {
            queue.flush(fd, &mut Vec::new()).unwrap();
            std::thread::yield_now();
        }
        drop(here);
        assert_eq!(reader.join().unwrap(), [b"bc", &large[..], b"end"].concat());
    }

    #[test]
    fn a_closed_peer_is_an_error_and_take_empties_the_queue() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(there);
        let mut queue = WriteQueue::default();
        queue.push(b"x".to_vec(), 0);
        assert!(queue.flush(here.as_raw_fd(), &mut Vec::new()).is_err());
        assert_eq!(queue.take().len(), 1);
        assert!(queue.is_empty());
    }
}

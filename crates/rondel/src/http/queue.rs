//! What has arrived of a body and was not read: pieces of the `bytes` that the transport received.
//!
//! Making and dropping `bytes` runs no Python code, so a queue may be borrowed meanwhile.

use std::collections::VecDeque;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::decode::Decoder;

/// Part of `bytes`.
pub struct Piece {
    pub bytes: Py<PyBytes>,
    pub start: usize,
    pub end: usize,
    /// An HTTP chunk ends here.
    pub ends_chunk: bool,
}

impl Piece {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The bytes.
    pub fn bytes<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        &self.bytes.as_bytes(py)[self.start..self.end]
    }

    /// As `bytes` of their own, without a copy if they are all of theirs.
    pub fn into_object(self, py: Python<'_>) -> Py<PyBytes> {
        if self.len() == self.bytes.as_bytes(py).len() {
            self.bytes
        } else {
            PyBytes::new(py, self.bytes(py)).unbind()
        }
    }
}

/// See the module's documentation.
#[derive(Default)]
pub struct Queue {
    /// As it arrived, when it is encoded.
    pub encoded: VecDeque<Piece>,
    pub decoder: Option<Decoder>,
    /// The decoder holds back what had no room.
    pub holds_back: bool,
    pub plain: VecDeque<Piece>,
    /// Bytes in `plain`.
    pub plain_size: usize,
    /// Bytes in both queues.
    pub size: usize,
}

impl Queue {
    /// Takes a piece that is not encoded.
    pub fn push_plain(&mut self, piece: Piece) {
        self.size += piece.len();
        self.plain_size += piece.len();
        self.plain.push_back(piece);
    }

    /// Decodes until there is something to read. Bytes objects are made and dropped meanwhile, which
    /// runs no Python code.
    pub fn fill(&mut self, py: Python<'_>) -> Result<(), &'static str> {
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        let mut made = VecDeque::new();
        while made.is_empty() && (self.holds_back || !self.encoded.is_empty()) {
            let front = self.encoded.front_mut();
            let input = front.as_ref().map_or(&[][..], |piece| piece.bytes(py));
            let given = input.len();
            let (used, output) = decoder.decode(input).map_err(|()| decoder.name())?;
            if used == 0 && output.is_empty() && given > 0 {
                return Err(decoder.name());
            }
            self.holds_back = !output.is_empty() && output.len() == output.capacity();
            let mut ends_chunk = false;
            if let Some(piece) = front {
                piece.start += used;
                self.size -= used;
                if piece.len() == 0 {
                    ends_chunk = piece.ends_chunk;
                    self.encoded.pop_front();
                }
            }
            if !output.is_empty() {
                let end = output.len();
                made.push_back(Piece {
                    bytes: PyBytes::new(py, &output).unbind(),
                    start: 0,
                    end,
                    ends_chunk,
                });
            }
        }
        for piece in made {
            self.push_plain(piece);
        }
        Ok(())
    }

    /// Decodes until there are so many bytes to read, or all that has arrived is decoded.
    pub fn fill_to(&mut self, py: Python<'_>, count: usize) -> Result<(), &'static str> {
        let mut before = usize::MAX;
        while self.decoder.is_some() && self.plain_size < count && self.plain_size != before {
            before = self.plain_size;
            self.fill(py)?;
        }
        Ok(())
    }

    /// The first piece.
    pub fn pop(&mut self) -> Option<Piece> {
        let piece = self.plain.pop_front()?;
        self.size -= piece.len();
        self.plain_size -= piece.len();
        Some(piece)
    }

    /// Up to `most` bytes of the first piece that has any; `most` is not 0.
    pub fn take_some(&mut self, py: Python<'_>, most: usize) -> Option<Py<PyBytes>> {
        while self.plain.front().is_some_and(|piece| piece.len() == 0) {
            self.plain.pop_front();
        }
        let front = self.plain.front_mut()?;
        if front.len() <= most {
            return self.pop().map(|piece| piece.into_object(py));
        }
        let part = PyBytes::new(py, &front.bytes(py)[..most]).unbind();
        front.start += most;
        self.size -= most;
        self.plain_size -= most;
        Some(part)
    }

    /// Exactly `count` bytes, which are there.
    pub fn take_exactly(&mut self, py: Python<'_>, count: usize) -> Py<PyBytes> {
        match self.take_some(py, count) {
            Some(first) if first.as_bytes(py).len() == count => first,
            None => PyBytes::new(py, b"").unbind(),
            Some(first) => {
                let mut joined = first.as_bytes(py).to_vec();
                while joined.len() < count
                    && let Some(next) = self.take_some(py, count - joined.len())
                {
                    joined.extend_from_slice(next.as_bytes(py));
                }
                PyBytes::new(py, &joined).unbind()
            }
        }
    }

    /// How many bytes it is to the end of the first separator.
    pub fn find(&self, py: Python<'_>, separator: &[u8]) -> Option<usize> {
        let last = *separator.last()?;
        let mut before = 0;
        for piece in &self.plain {
            for (index, byte) in piece.bytes(py).iter().enumerate() {
                let count = before + index + 1;
                if *byte == last && (separator.len() == 1 || self.ends_with(py, count, separator)) {
                    return Some(count);
                }
            }
            before += piece.len();
        }
        None
    }

    fn ends_with(&self, py: Python<'_>, count: usize, separator: &[u8]) -> bool {
        let Some(start) = count.checked_sub(separator.len()) else { return false };
        let bytes = self.plain.iter().flat_map(|piece| piece.bytes(py));
        bytes.skip(start).take(separator.len()).eq(separator)
    }
}

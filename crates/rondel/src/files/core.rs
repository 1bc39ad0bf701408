//! A buffered file without Python: what is read ahead, what is not yet written, and the positions.
//!
//! The observable behaviour is that of `io.BufferedReader`, `BufferedWriter` and `BufferedRandom`: how
//! much a read asks of the system, what `peek` finds, when a seek stays inside the buffer. What was
//! written waits in `pending` until it is worth a trip to a thread.
//!
//! Every operation says whether it may wait ([`Patience`]). One that may not, and would have to, ends
//! with `WouldBlock` and has lost nothing: what it had already taken is in the buffer again, and the
//! same operation, started anew by a thread, finds it there.

use std::io;
use std::os::fd::RawFd;

use rondel_reactor::disk::{self, Patience, Sink};

use super::spare;

/// The most that one operation reads on the loop's thread. Copying that much takes about as long as a
/// trip to another thread.
pub const INLINE_MOST: usize = 512 * 1024;
/// How much is read ahead at least, by a thread, for text; the system is asked less often.
const TEXT_AHEAD: usize = 64 * 1024;

/// See the module's documentation.
pub struct Core {
    fd: RawFd,
    /// How many bytes are read ahead.
    size: usize,
    /// Whether a text layer is above, which asks for small pieces.
    text: bool,
    memory: Vec<u8>,
    /// What was read ahead and is not taken yet: `memory[position..end]`.
    position: usize,
    end: usize,
    /// What is to be written at the file's position.
    pub pending: Vec<u8>,
    /// How much may still be read on the loop's thread in this operation.
    pub budget: usize,
    pub local: bool,
}

fn would_block<T>() -> io::Result<T> {
    Err(io::ErrorKind::WouldBlock.into())
}

impl Core {
    pub fn new(fd: RawFd, size: usize, text: bool, local: bool) -> Self {
        Core {
            fd,
            size,
            text,
            memory: Vec::new(),
            position: 0,
            end: 0,
            pending: Vec::new(),
            budget: INLINE_MOST,
            local,
        }
    }

    /// How many bytes are read ahead at a time.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many bytes can be taken without asking the system.
    pub fn available(&self) -> usize {
        self.end - self.position
    }

    /// What can be taken without asking the system.
    pub fn ahead(&self) -> &[u8] {
        &self.memory[self.position..self.end]
    }

    /// Takes so many of these bytes.
    pub fn consume(&mut self, count: usize) {
        self.position = (self.position + count).min(self.end);
    }

    fn forget(&mut self) {
        self.position = 0;
        self.end = 0;
    }

    /// Puts back what an operation took that could not end.
    pub fn restore(&mut self, bytes: &[u8]) {
        // What is still in the buffer comes after it.
        let rest = self.memory[self.position..self.end].to_vec();
        self.memory.clear();
        self.memory.extend_from_slice(bytes);
        self.memory.extend_from_slice(&rest);
        self.position = 0;
        self.end = self.memory.len();
    }

    fn give(&mut self, sink: &mut Sink<'_>) {
        let count = sink.put(&self.memory[self.position..self.end]);
        self.position += count;
    }

    /// Spends from what may be read without waiting.
    fn spend(&mut self, count: usize, patience: Patience) -> io::Result<()> {
        if patience == Patience::Now {
            match self.budget.checked_sub(count) {
                Some(left) => self.budget = left,
                None => return would_block(),
            }
        }
        Ok(())
    }

    /// Reads ahead, behind what is there; returns how much came.
    fn fill(&mut self, patience: Patience) -> io::Result<usize> {
        if self.position == self.end {
            self.forget();
        }
        let most = if self.text && patience == Patience::Wait {
            self.size.max(TEXT_AHEAD)
        } else {
            self.size
        };
        if self.end >= most {
            return Ok(0);
        }
        self.spend(most - self.end, patience)?;
        self.memory.truncate(self.end);
        self.memory.reserve_exact(most - self.end);
        let spare = self.memory.spare_capacity_mut();
        let room = (most - self.end).min(spare.len());
        let mut sink = Sink::new(&mut spare[..room]);
        sink.read(self.fd, room, patience)?;
        let count = sink.filled();
        // SAFETY: the first `count` bytes behind the vector's length have just been filled.
        unsafe { self.memory.set_len(self.end + count) };
        self.end += count;
        Ok(count)
    }

    /// What has to be done before reading or moving: writes what is pending.
    fn settle(&mut self, patience: Patience) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if patience == Patience::Now {
            return would_block();
        }
        self.write_pending()
    }

    /// Writes what is pending; what could not be written stays.
    pub fn write_pending(&mut self) -> io::Result<()> {
        match disk::write_all(self.fd, &self.pending) {
            Ok(()) => {
                spare::give_back(std::mem::take(&mut self.pending));
                Ok(())
            }
            Err((written, error)) => {
                self.pending.drain(..written);
                Err(error)
            }
        }
    }

    /// Puts the system's position where the program's is, and forgets what was read ahead.
    fn rewind(&mut self) -> io::Result<()> {
        let ahead = i64::try_from(self.available()).unwrap_or(0);
        if ahead > 0 {
            disk::seek(self.fd, -ahead, libc::SEEK_CUR)?;
        }
        self.forget();
        Ok(())
    }

    /// `read(n)`: fills the sink unless the file ends before.
    pub fn read(&mut self, sink: &mut Sink<'_>, patience: Patience) -> io::Result<()> {
        self.settle(patience)?;
        self.give(sink);
        let result = self.read_rest(sink, patience);
        self.unless_done(result, sink)
    }

    fn unless_done<T>(&mut self, result: io::Result<T>, sink: &Sink<'_>) -> io::Result<T> {
        if result.is_err() {
            self.restore(sink.bytes());
        }
        result
    }

    fn read_rest(&mut self, sink: &mut Sink<'_>, patience: Patience) -> io::Result<()> {
        // Whole blocks straight to their place, and the rest by way of the buffer.
        while sink.room() >= self.size {
            let whole = sink.room() / self.size * self.size;
            self.spend(whole, patience)?;
            if sink.read(self.fd, whole, patience)? == 0 {
                return Ok(());
            }
        }
        while sink.room() > 0 {
            if self.fill(patience)? == 0 {
                return Ok(());
            }
            self.give(sink);
        }
        Ok(())
    }

    /// `read()`: fills the sink to the end of the file; whether that has come.
    pub fn read_to_end(&mut self, sink: &mut Sink<'_>, patience: Patience) -> io::Result<bool> {
        self.settle(patience)?;
        self.give(sink);
        let result = self.read_all(sink, patience);
        self.unless_done(result, sink)
    }

    fn read_all(&mut self, sink: &mut Sink<'_>, patience: Patience) -> io::Result<bool> {
        while sink.room() > 0 {
            self.spend(sink.room(), patience)?;
            if sink.read(self.fd, sink.room(), patience)? == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many bytes are left by what the file's size says, buffered ones included.
    pub fn left(&self) -> usize {
        let size = rondel_reactor::sendfile::file_size(self.fd).unwrap_or(0);
        let position = disk::seek(self.fd, 0, libc::SEEK_CUR).unwrap_or(size);
        usize::try_from(size.saturating_sub(position)).unwrap_or(0).saturating_add(self.available())
    }

    /// `read1(n)`: what is there, or what one call of the system brings.
    pub fn read1(&mut self, sink: &mut Sink<'_>, patience: Patience) -> io::Result<()> {
        self.settle(patience)?;
        let small = self.text && sink.room() < TEXT_AHEAD;
        if self.available() == 0 && small && patience == Patience::Wait {
            self.fill(patience)?;
        }
        if self.available() > 0 {
            self.give(sink);
            return Ok(());
        }
        self.forget();
        self.spend(sink.room(), patience)?;
        sink.read(self.fd, sink.room(), patience).map(drop)
    }

    /// `readinto(b)` and `readinto1(b)`.
    pub fn read_into(
        &mut self,
        sink: &mut Sink<'_>,
        once: bool,
        patience: Patience,
    ) -> io::Result<()> {
        self.settle(patience)?;
        self.give(sink);
        let result = self.read_into_rest(sink, once, patience);
        self.unless_done(result, sink)
    }

    fn read_into_rest(
        &mut self,
        sink: &mut Sink<'_>,
        once: bool,
        patience: Patience,
    ) -> io::Result<()> {
        while sink.room() > 0 {
            let count = if sink.room() > self.size {
                self.spend(sink.room(), patience)?;
                sink.read(self.fd, sink.room(), patience)?
            } else if once && sink.filled() > 0 {
                0
            } else {
                let count = self.fill(patience)?;
                self.give(sink);
                count
            };
            if count == 0 || once {
                break;
            }
        }
        Ok(())
    }

    /// `peek()`: reads ahead unless something is there.
    pub fn peek(&mut self, patience: Patience) -> io::Result<()> {
        self.settle(patience)?;
        if self.available() == 0 {
            self.fill(patience)?;
        }
        Ok(())
    }

    /// The length of the line at the position if its end is read ahead already.
    pub fn line_ahead(&self, limit: usize) -> Option<usize> {
        let ahead = self.ahead();
        let most = &ahead[..ahead.len().min(limit)];
        match memchr::memchr(b'\n', most) {
            Some(index) => Some(index + 1),
            None if most.len() == limit => Some(limit),
            None => None,
        }
    }

    /// `readline(limit)`: the next line, or what is left of the file.
    pub fn read_line(&mut self, limit: usize, patience: Patience) -> io::Result<Vec<u8>> {
        self.settle(patience)?;
        let mut line = Vec::new();
        loop {
            if let Some(count) = self.line_ahead(limit - line.len()) {
                line.extend_from_slice(&self.ahead()[..count]);
                self.consume(count);
                return Ok(line);
            }
            line.extend_from_slice(self.ahead());
            self.forget();
            match self.fill(patience) {
                Ok(0) => return Ok(line),
                Ok(_) => {}
                Err(error) => {
                    self.restore(&line);
                    return Err(error);
                }
            }
        }
    }

    /// Adds to what is to be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.end > 0 {
            self.rewind()?;
        }
        if self.pending.len() + bytes.len() > self.pending.capacity() {
            self.grow(bytes.len());
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Makes room for so many more bytes.
    fn grow(&mut self, more: usize) {
        let mut larger = spare::of_size(self.pending.len() + more);
        larger.extend_from_slice(&self.pending);
        spare::give_back(std::mem::replace(&mut self.pending, larger));
    }

    /// Writes at once, after what is pending.
    pub fn write_through(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.rewind()?;
        self.write_pending()?;
        match disk::write_all(self.fd, bytes) {
            Ok(()) => Ok(()),
            Err((written, error)) => {
                // As much as a buffer would have kept, for the next try.
                self.pending.extend_from_slice(bytes.get(written..).unwrap_or_default());
                Err(error)
            }
        }
    }

    /// `flush()`; with `rewind`, as for files that can also be read.
    pub fn flush(&mut self, rewind: bool, patience: Patience) -> io::Result<()> {
        self.settle(patience)?;
        if rewind { self.rewind() } else { Ok(()) }
    }

    /// `tell()`
    pub fn tell(&self) -> io::Result<u64> {
        let raw = disk::seek(self.fd, 0, libc::SEEK_CUR)?;
        let ahead = self.available() as u64;
        Ok((raw + self.pending.len() as u64).saturating_sub(ahead))
    }

    /// `seek(offset, whence)`
    pub fn seek(&mut self, mut offset: i64, whence: i32, patience: Patience) -> io::Result<u64> {
        let relative = matches!(whence, libc::SEEK_SET | libc::SEEK_CUR);
        let ahead = i64::try_from(self.available()).unwrap_or(0);
        if relative && ahead > 0 {
            let raw = i64::try_from(disk::seek(self.fd, 0, libc::SEEK_CUR)?).unwrap_or(i64::MAX);
            let here = raw - ahead;
            let step = if whence == libc::SEEK_SET { offset.saturating_sub(here) } else { offset };
            let back = i64::try_from(self.position).unwrap_or(0);
            if (-back..=ahead).contains(&step) {
                self.position = usize::try_from(back + step).unwrap_or(0);
                return Ok(u64::try_from(here + step).unwrap_or(0));
            }
        }
        self.settle(patience)?;
        if patience == Patience::Now && !(relative || self.local && whence == libc::SEEK_END) {
            return would_block();
        }
        if whence == libc::SEEK_CUR {
            offset = offset.saturating_sub(ahead);
        }
        let position = disk::seek(self.fd, offset, whence)?;
        self.forget();
        Ok(position)
    }

    /// Before `truncate()`: everything is written, and the positions agree.
    pub fn prepare_truncate(&mut self) -> io::Result<()> {
        self.settle(Patience::Wait)?;
        self.rewind()
    }
}

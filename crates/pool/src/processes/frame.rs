//! Messages: a pickle, where its buffers are, and which blocks the sender has done with.
//!
//! ```text
//! kind: u32 | references: u32 | releases: u32 | 0: u32
//! references: (block, offset in it, length), three u64 each
//! releases: u64 each
//! the pickle, up to the message's end
//! ```

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use rondel_reactor::lock::lock;

use super::arena::{Arena, Block, Maps, View};
use super::board::{Board, INLINE, Place};
use super::memory::MemoryFile;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A call: the pickle is of the function and its arguments.
    Call = 0,
    /// A call's result.
    Result = 1,
    /// The exception that a call raised.
    Exception = 2,
    /// A call's result, which is None: no pickle.
    Nothing = 3,
}

/// A buffer that is in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The block.
    pub block: Block,
    /// Where in the block it begins.
    pub delta: u64,
    /// How long it is.
    pub len: u64,
}

/// A buffer to send.
#[derive(Debug)]
pub enum Buffer<B> {
    /// It is to be copied into a block.
    Copy(B),
    /// It lies in a block already.
    Placed(Reference),
}

/// A message to send; `B` is memory to copy from.
#[derive(Debug)]
pub struct Message<B> {
    /// What it is.
    pub kind: Kind,
    /// The pickle, in pieces.
    pub pickle: Vec<B>,
    /// Its buffers, in the order of the pickle.
    pub buffers: Vec<Buffer<B>>,
}

impl<B: AsRef<[u8]>> Message<B> {
    /// How many bytes have to be copied to send it.
    #[must_use]
    pub fn weight(&self) -> usize {
        let buffers = self.buffers.iter().map(|buffer| match buffer {
            Buffer::Copy(bytes) => bytes.as_ref().len(),
            Buffer::Placed(_) => 0,
        });
        self.pickle.iter().map(|piece| piece.as_ref().len()).chain(buffers).sum()
    }
}

/// What sending a message took: the block it is in, and those of its buffers.
#[derive(Debug, Default)]
pub struct Sent {
    /// The block that the message itself is in.
    pub frame: Option<Block>,
    /// The blocks that it refers to, each as often as it does.
    pub buffers: Vec<Block>,
}

/// The file, and this process's allocations and mappings in it.
#[derive(Debug)]
pub struct Store {
    file: MemoryFile,
    inner: Mutex<(Arena, Maps)>,
}

impl Store {
    /// A store that allocates from a range of the file.
    #[must_use]
    pub fn new(file: MemoryFile, range: Range<u64>) -> Store {
        Store { file, inner: Mutex::new((Arena::new(range.start, range.end), Maps::default())) }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &MemoryFile {
        &self.file
    }

    fn lock(&self) -> MutexGuard<'_, (Arena, Maps)> {
        lock(&self.inner)
    }

    /// A new block, and its memory.
    ///
    /// # Errors
    /// The operating system's, or `OutOfMemory`.
    pub fn allocate(&self, len: usize) -> io::Result<(Block, View)> {
        let mut inner = self.lock();
        let (arena, maps) = &mut *inner;
        let block = arena.allocate(len)?;
        match View::of(maps, &self.file, block, 0, len as u64) {
            Ok(view) => Ok((block, view)),
            Err(error) => {
                arena.release(&self.file, block);
                Err(error)
            }
        }
    }

    /// One of this process's own blocks is free again.
    pub fn release(&self, block: Block) {
        self.lock().0.release(&self.file, block);
    }

    /// The memory of a buffer that came in a message.
    ///
    /// # Errors
    /// `InvalidData`, or the operating system's.
    pub fn view(&self, reference: &Reference) -> io::Result<View> {
        let mut inner = self.lock();
        View::of(&mut inner.1, &self.file, reference.block, reference.delta, reference.len)
    }

    /// Which place of the file is mapped at an address, if any.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<u64> {
        self.lock().1.find(bytes.as_ptr(), bytes.len())
    }

    /// Lets go of mappings.
    pub fn forget(&self, range: &Range<u64>) {
        self.lock().1.forget(range);
    }

    /// Writes a message into a slot, or into a block that the slot tells of.
    ///
    /// # Errors
    /// The operating system's, or `OutOfMemory`; no block is taken then.
    pub fn send<B: AsRef<[u8]>>(
        &self,
        board: &Board,
        slot: usize,
        message: &Message<B>,
        releases: &[Block],
    ) -> io::Result<Sent> {
        let mut sent = Sent::default();
        let result = self.send_into(board, slot, message, releases, &mut sent);
        match result {
            Ok(()) => Ok(sent),
            Err(error) => {
                // Only the copies are ours to free; they were noted as they were made.
                for (buffer, block) in message.buffers.iter().zip(&sent.buffers) {
                    if matches!(buffer, Buffer::Copy(_)) {
                        self.release(*block);
                    }
                }
                if let Some(block) = sent.frame {
                    self.release(block);
                }
                Err(error)
            }
        }
    }

    fn send_into<B: AsRef<[u8]>>(
        &self,
        board: &Board,
        slot: usize,
        message: &Message<B>,
        releases: &[Block],
        sent: &mut Sent,
    ) -> io::Result<()> {
        let pickled: usize = message.pickle.iter().map(|piece| piece.as_ref().len()).sum();
        let len = 16 + 24 * message.buffers.len() + 8 * releases.len() + pickled;
        let inline = len <= INLINE;
        let mut head = Vec::with_capacity(if inline { len } else { len - pickled });
        for number in [message.kind as usize, message.buffers.len(), releases.len(), 0] {
            let number = u32::try_from(number).map_err(io::Error::other)?;
            head.extend_from_slice(&number.to_ne_bytes());
        }
        for buffer in &message.buffers {
            let reference = match buffer {
                Buffer::Placed(reference) => *reference,
                Buffer::Copy(bytes) => {
                    let bytes = bytes.as_ref();
                    let (block, view) = self.allocate(bytes.len())?;
                    view.write(0, bytes);
                    Reference { block, delta: 0, len: bytes.len() as u64 }
                }
            };
            sent.buffers.push(reference.block);
            for number in [reference.block.number(), reference.delta, reference.len] {
                head.extend_from_slice(&number.to_ne_bytes());
            }
        }
        for block in releases {
            head.extend_from_slice(&block.number().to_ne_bytes());
        }
        if inline {
            for piece in &message.pickle {
                head.extend_from_slice(piece.as_ref());
            }
            board.write_inline(slot, &head);
            board.set_place(slot, Place { block: 0, len });
            return Ok(());
        }
        let (block, view) = self.allocate(len)?;
        sent.frame = Some(block);
        view.write(0, &head);
        let mut at = head.len();
        for piece in &message.pickle {
            view.write(at, piece.as_ref());
            at += piece.as_ref().len();
        }
        board.set_place(slot, Place { block: block.number(), len });
        Ok(())
    }
}

/// Who is told when a block that came in a message is not used any more.
pub trait Lender: Send + Sync {
    /// It is not.
    fn done_with(&self, block: Block);
}

/// A part of a block that somebody else has sent; its lender is told when it is dropped.
pub struct Lease {
    view: View,
    reference: Reference,
    lender: Arc<dyn Lender>,
}

impl Lease {
    /// A lease of memory.
    #[must_use]
    pub fn new(view: View, reference: Reference, lender: Arc<dyn Lender>) -> Lease {
        Lease { view, reference, lender }
    }

    /// The memory.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Where it is.
    #[must_use]
    pub fn reference(&self) -> Reference {
        self.reference
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.lender.done_with(self.reference.block);
    }
}

/// A pickle that was received.
pub enum Pickle {
    /// A copy of a message that was in a slot, and where in it the pickle is.
    Inline(Vec<u8>, usize),
    /// It is in a block, and where in it; the lease is None when the sender knows itself when it is read.
    Block(View, usize, Option<Lease>),
}

/// A message that was received.
pub struct Received {
    /// What it is.
    pub kind: Kind,
    /// The pickle.
    pub pickle: Pickle,
    /// Where its buffers are.
    pub references: Vec<Reference>,
    /// Blocks that the sender has done with.
    pub releases: Vec<Block>,
}

fn number(bytes: &[u8], at: usize) -> io::Result<u64> {
    let part = bytes.get(at..at + 8).and_then(|part| part.try_into().ok());
    part.map(u64::from_ne_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn count(bytes: &[u8], at: usize) -> io::Result<usize> {
    let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
    part.map(|part| u32::from_ne_bytes(part) as usize)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn block(bytes: &[u8], at: usize) -> io::Result<Block> {
    Block::from_number(number(bytes, at)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads the message of a slot.
///
/// # Errors
/// `InvalidData` for what is no message; the operating system's when its block cannot be mapped.
pub fn receive(
    store: &Store,
    board: &Board,
    slot: usize,
) -> io::Result<(Received, Option<Reference>)> {
    let place = board.place(slot);
    if place.block == 0 {
        let bytes = board.read_inline(slot, place.len);
        let (kind, references, releases, at) = parse(&bytes)?;
        return Ok((
            Received { kind, pickle: Pickle::Inline(bytes, at), references, releases },
            None,
        ));
    }
    let block = Block::from_number(place.block).ok_or(io::ErrorKind::InvalidData)?;
    let whole = Reference { block, delta: 0, len: place.len as u64 };
    let view = store.view(&whole)?;
    // The part before the pickle is short but for messages with thousands of buffers.
    let counts = view.head(16);
    let head = view.head(16 + 24 * count(&counts, 4)? + 8 * count(&counts, 8)?);
    let (kind, references, releases, at) = parse(&head)?;
    Ok((
        Received { kind, pickle: Pickle::Block(view, at, None), references, releases },
        Some(whole),
    ))
}

type Parsed = (Kind, Vec<Reference>, Vec<Block>, usize);

fn parse(bytes: &[u8]) -> io::Result<Parsed> {
    let kind = match count(bytes, 0)? {
        0 => Kind::Call,
        1 => Kind::Result,
        2 => Kind::Exception,
        3 => Kind::Nothing,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let mut at = 16;
    let mut references = Vec::new();
    for _ in 0..count(bytes, 4)? {
        references.push(Reference {
            block: block(bytes, at)?,
            delta: number(bytes, at + 8)?,
            len: number(bytes, at + 16)?,
        });
        at += 24;
    }
    let mut releases = Vec::new();
    for _ in 0..count(bytes, 8)? {
        releases.push(block(bytes, at)?);
        at += 8;
    }
    Ok((kind, references, releases, at))
}

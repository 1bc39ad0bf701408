//! Frames of a WebSocket (RFC 6455), without Python: what arrives becomes messages, messages become
//! masked frames. The refusals' texts are those that programs know from aiohttp.

use std::hash::{BuildHasher, RandomState};
use std::mem::MaybeUninit;

use super::deflate::{Deflate, Inflate};

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

const PROTOCOL_ERROR: u16 = 1002;
const INVALID_TEXT: u16 = 1007;
const TOO_BIG: u16 = 1009;
/// Of a frame whose length is given in eight bytes, beyond which it is refused whatever the limit.
const MAX_LENGTH: u64 = (1 << 63) - 1;
/// Memory that is made ready for the rest of a frame.
const MOST_RESERVED: usize = 4 * 1024 * 1024;
/// Memory that is kept for the next large frame: to get it anew costs more than to fill it.
const MOST_KEPT: usize = 256 * 1024;
/// Close codes below 3000 that a peer may send.
const CLOSE_CODES: [u16; 12] =
    [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014];

/// What arrived.
pub enum Message {
    Text(String),
    /// Text that is not to be decoded.
    RawText(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, String),
}

/// Why what arrived is refused: a close code and a text.
pub type Refusal = (u16, String);

fn refused<T>(code: u16, text: impl Into<String>) -> Result<T, Refusal> {
    Err((code, text.into()))
}

struct Header {
    fin: bool,
    opcode: u8,
    compressed: bool,
    mask: Option<[u8; 4]>,
    length: usize,
}

/// Takes frames apart.
pub struct Parser {
    /// Bytes whose frame is incomplete, from `start` on.
    tail: Vec<u8>,
    start: usize,
    /// Of a frame whose payload is incomplete.
    header: Option<Header>,
    /// A message of several frames: what there is of it, its kind, and whether it is compressed.
    partial: Vec<u8>,
    kind: Option<u8>,
    compressed: bool,
    /// Whether the last frame of data ended its message.
    ended: bool,
    inflate: Option<Inflate>,
    /// Messages of this size are refused; 0 for no limit.
    limit: usize,
    decode_text: bool,
}

impl Parser {
    pub fn new(compress: bool, limit: usize, decode_text: bool) -> Self {
        Parser {
            tail: Vec::new(),
            start: 0,
            header: None,
            partial: Vec::new(),
            kind: None,
            compressed: false,
            ended: false,
            inflate: compress.then(Inflate::new),
            limit,
            decode_text,
        }
    }

    /// Takes bytes that have arrived.
    pub fn push(&mut self, data: &[u8]) {
        if self.start > 0 {
            self.tail.drain(..self.start);
            self.start = 0;
        }
        self.tail.extend_from_slice(data);
    }

    /// Takes back the memory of a message.
    pub fn reuse(&mut self, mut data: Vec<u8>) {
        if self.tail.capacity() == 0 && data.capacity() <= MOST_KEPT {
            data.clear();
            self.tail = data;
        }
    }

    /// The next message that is complete.
    ///
    /// # Errors
    /// What arrived is against the protocol or too large.
    pub fn next(&mut self) -> Result<Option<Message>, Refusal> {
        loop {
            let header = match self.header.take() {
                Some(header) => header,
                None => match self.read_header()? {
                    Some(header) => header,
                    None => return Ok(None),
                },
            };
            let all = self.start == 0 && self.tail.len() == header.length;
            let there = &mut self.tail[self.start..];
            if there.len() < header.length {
                // All of it at once, but no more than a peer that lies could make of nothing.
                let missing = header.length - there.len();
                self.tail.reserve(missing.min(MOST_RESERVED));
                self.header = Some(header);
                return Ok(None);
            }
            let payload = &mut there[..header.length];
            if let Some(mask) = header.mask {
                apply_mask(payload, mask);
            }
            let payload = if all {
                std::mem::take(&mut self.tail)
            } else {
                let copy = payload.to_vec();
                self.start += header.length;
                copy
            };
            if let Some(message) = self.take_frame(&header, payload)? {
                return Ok(Some(message));
            }
        }
    }

    fn read_header(&mut self) -> Result<Option<Header>, Refusal> {
        let data = &self.tail[self.start..];
        let [first, second, rest @ ..] = data else { return Ok(None) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let compressed = first & 0x40 != 0;
        if first & 0x30 != 0 || (compressed && self.inflate.is_none()) {
            return refused(PROTOCOL_ERROR, "Received frame with non-zero reserved bits");
        }
        if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
            return refused(PROTOCOL_ERROR, format!("Unexpected opcode={opcode}"));
        }
        let control = opcode >= CLOSE;
        if control && !fin {
            return refused(PROTOCOL_ERROR, "Received fragmented control frame");
        }
        let short = second & 0x7f;
        if control && short > 125 {
            let text = "Control frame payload cannot be larger than 125 bytes";
            return refused(PROTOCOL_ERROR, text);
        }
        if !control && compressed && opcode == CONTINUATION && self.kind.is_some() {
            return refused(PROTOCOL_ERROR, "Received frame with non-zero reserved bits");
        }
        let (length, used) = match (short, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8)
            }
            (126 | 127, _) => return Ok(None),
            _ => (u64::from(short), 0),
        };
        self.check_size(control, length)?;
        let (mask, used) = match (second & 0x80 != 0, &rest[used..]) {
            (false, _) => (None, used),
            (true, [a, b, c, d, ..]) => (Some([*a, *b, *c, *d]), used + 4),
            (true, _) => return Ok(None),
        };
        self.start += 2 + used;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Ok(Some(Header { fin, opcode, compressed, mask, length }))
    }

    fn check_size(&self, control: bool, length: u64) -> Result<(), Refusal> {
        let limit = match self.limit {
            0 => MAX_LENGTH,
            limit => limit as u64,
        };
        let size = length.saturating_add(self.partial.len() as u64);
        // aiohttp's limit is the first size that is refused.
        if length > MAX_LENGTH || (!control && self.limit > 0 && size >= limit) {
            return refused(TOO_BIG, format!("Message size {size} exceeds limit {limit}"));
        }
        Ok(())
    }

    fn take_frame(
        &mut self,
        header: &Header,
        payload: Vec<u8>,
    ) -> Result<Option<Message>, Refusal> {
        match header.opcode {
            PING => Ok(Some(Message::Ping(payload))),
            PONG => Ok(Some(Message::Pong(payload))),
            CLOSE => close_message(&payload, self.ended).map(Some),
            opcode => self.take_data(header, opcode, payload),
        }
    }

    fn take_data(
        &mut self,
        header: &Header,
        opcode: u8,
        payload: Vec<u8>,
    ) -> Result<Option<Message>, Refusal> {
        let kind = match (opcode, self.kind) {
            (CONTINUATION, None) => {
                return refused(PROTOCOL_ERROR, "Continuation frame for non started message");
            }
            (CONTINUATION, Some(kind)) => kind,
            (_, Some(_)) => {
                let text = "The opcode in non-fin frame is expected to be zero, got ";
                return refused(PROTOCOL_ERROR, format!("{text}{opcode}"));
            }
            (_, None) => {
                self.compressed = header.compressed;
                opcode
            }
        };
        self.ended = header.fin;
        if !header.fin {
            self.kind = Some(kind);
            self.partial.extend_from_slice(&payload);
            return Ok(None);
        }
        self.kind = None;
        let mut data = std::mem::take(&mut self.partial);
        if data.is_empty() {
            data = payload;
        } else {
            data.extend_from_slice(&payload);
        }
        if self.compressed
            && let Some(inflate) = &mut self.inflate
        {
            data = inflate.message(data, self.limit)?;
        }
        match kind {
            TEXT if !self.decode_text => Ok(Some(Message::RawText(data))),
            TEXT => match String::from_utf8(data) {
                Ok(text) => Ok(Some(Message::Text(text))),
                Err(_) => refused(INVALID_TEXT, "Invalid UTF-8 text message"),
            },
            _ => Ok(Some(Message::Binary(data))),
        }
    }
}

fn close_message(payload: &[u8], ended: bool) -> Result<Message, Refusal> {
    match payload {
        [] => Ok(Message::Close(0, String::new())),
        [byte] => {
            let ended = if ended { "True" } else { "False" };
            let byte = byte.escape_ascii();
            let text = format!("Invalid close frame: {ended} 8 b'{byte}'");
            refused(PROTOCOL_ERROR, text)
        }
        [a, b, text @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            if code < 3000 && !CLOSE_CODES.contains(&code) {
                return refused(PROTOCOL_ERROR, format!("Invalid close code: {code}"));
            }
            match std::str::from_utf8(text) {
                Ok(text) => Ok(Message::Close(code, text.to_owned())),
                Err(_) => refused(INVALID_TEXT, "Invalid UTF-8 text message"),
            }
        }
    }
}

/// Makes frames.
pub struct Framer {
    secret: RandomState,
    frames: u64,
    deflate: Option<Deflate>,
}

impl Framer {
    /// `deflate`: compresses all messages.
    pub fn new(deflate: Option<Deflate>) -> Self {
        Framer { secret: RandomState::new(), frames: 0, deflate }
    }

    /// Of a frame that is a whole message: its header, the mask, and the payload when it is another
    /// than `data`. `bits`: compress this message, by itself, with so large a window.
    pub fn header(
        &mut self,
        opcode: u8,
        data: &[u8],
        bits: Option<u8>,
    ) -> (Vec<u8>, [u8; 4], Option<Vec<u8>>) {
        let packed = match (bits, &mut self.deflate) {
            _ if opcode >= CLOSE => None,
            (Some(bits), _) => Some(Deflate::new(bits, false).message(data)),
            (None, Some(deflate)) => Some(deflate.message(data)),
            (None, None) => None,
        };
        // A keyed hash of a counter: nobody who sees masks can tell the next one.
        self.frames += 1;
        let [a, b, c, d, ..] = self.secret.hash_one(self.frames).to_ne_bytes();
        let mask = [a, b, c, d];
        let mut header = Vec::with_capacity(14);
        header.push(0x80 | opcode | if packed.is_some() { 0x40 } else { 0 });
        match packed.as_deref().unwrap_or(data).len() {
            length @ 0..126 => header.push(0x80 | length as u8),
            length @ 126..65536 => {
                header.push(0x80 | 126);
                header.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                header.push(0x80 | 127);
                header.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        header.extend_from_slice(&mask);
        (header, mask, packed)
    }
}

/// Bytes that are masked at once, of which the compiler makes vectors.
const BLOCK: usize = 64;

fn widened(mask: [u8; 4]) -> [u8; BLOCK] {
    std::array::from_fn(|index| mask[index % 4])
}

/// Takes a mask off.
fn apply_mask(data: &mut [u8], mask: [u8; 4]) {
    let wide = widened(mask);
    let mut blocks = data.chunks_exact_mut(BLOCK);
    for block in blocks.by_ref() {
        for (byte, mask) in block.iter_mut().zip(&wide) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in blocks.into_remainder().iter_mut().zip(&wide) {
        *byte ^= mask;
    }
}

/// Writes `from`, with a mask put on, to as much memory.
pub fn copy_masked(to: &mut [MaybeUninit<u8>], from: &[u8], mask: [u8; 4]) {
    let wide = widened(mask);
    let (mut to, mut from) = (to.chunks_exact_mut(BLOCK), from.chunks_exact(BLOCK));
    for (to, from) in to.by_ref().zip(from.by_ref()) {
        for ((to, from), mask) in to.iter_mut().zip(from).zip(&wide) {
            to.write(from ^ mask);
        }
    }
    for ((to, from), mask) in to.into_remainder().iter_mut().zip(from.remainder()).zip(&wide) {
        to.write(from ^ mask);
    }
}

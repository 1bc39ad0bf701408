//! Content encodings, undone piece by piece and only as far as somebody reads: what a small
//! response could grow to never fills memory.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, InBuffer, OutBuffer};

/// How much comes out at once.
const PIECE: usize = 64 * 1024;

type Brotli = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

/// One response's decoder.
pub struct Decoder {
    kind: Kind,
    /// As the response named it.
    name: &'static str,
    /// The encoded data has ended.
    ended: bool,
}

enum Kind {
    Gzip(Decompress),
    /// With zlib's wrapping or, as some servers send it, without: the first byte tells.
    Deflate(Option<Decompress>),
    Brotli(Box<Brotli>),
    Zstd(DCtx<'static>),
}

impl Decoder {
    /// The decoder for a Content-Encoding; None for one that is left to the program.
    pub fn new(name: &[u8]) -> Option<Self> {
        let (kind, name) = match name.to_ascii_lowercase().as_slice() {
            b"gzip" | b"x-gzip" => (Kind::Gzip(Decompress::new_gzip(15)), "gzip"),
            b"deflate" => (Kind::Deflate(None), "deflate"),
            b"br" => {
                let alloc = StandardAlloc::default;
                (Kind::Brotli(Box::new(Brotli::new(alloc(), alloc(), alloc()))), "br")
            }
            b"zstd" => (Kind::Zstd(DCtx::try_create()?), "zstd"),
            _ => return None,
        };
        Some(Decoder { kind, name, ended: false })
    }

    /// The encoding's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the encoded data came to its own end.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// Decodes from `input`; returns how much of it was used and a piece of the result. Nothing used
    /// and nothing made means that more input is needed.
    ///
    /// # Errors
    /// The data is not what the encoding promises.
    pub fn decode(&mut self, input: &[u8]) -> Result<(usize, Vec<u8>), ()> {
        if self.ended {
            match &mut self.kind {
                // Several members or frames may follow each other; other bytes are ignored.
                Kind::Gzip(state) if input.first() == Some(&0x1f) => {
                    *state = Decompress::new_gzip(15)
                }
                Kind::Zstd(_) if input.first() == Some(&0x28) => {}
                _ => return Ok((input.len(), Vec::new())),
            }
            self.ended = false;
        }
        let mut output = Vec::with_capacity(PIECE.min(input.len().saturating_mul(8).max(1024)));
        let used = match &mut self.kind {
            Kind::Gzip(state) => inflate(state, input, &mut output, &mut self.ended)?,
            Kind::Deflate(state) => {
                let wrapped = input.first().is_some_and(|first| first & 0x0f == 8);
                let state = state.get_or_insert_with(|| Decompress::new(wrapped));
                inflate(state, input, &mut output, &mut self.ended)?
            }
            Kind::Brotli(state) => {
                output.resize(output.capacity(), 0);
                let (mut left, mut used) = (input.len(), 0);
                let (mut room, mut made, mut total) = (output.len(), 0, 0);
                let result = BrotliDecompressStream(
                    &mut left,
                    &mut used,
                    input,
                    &mut room,
                    &mut made,
                    &mut output,
                    &mut total,
                    state,
                );
                output.truncate(made);
                match result {
                    BrotliResult::ResultFailure => return Err(()),
                    BrotliResult::ResultSuccess => self.ended = true,
                    _ => {}
                }
                used
            }
            Kind::Zstd(state) => {
                output.resize(output.capacity(), 0);
                let mut source = InBuffer::around(input);
                let mut sink = OutBuffer::around(output.as_mut_slice());
                let left = state.decompress_stream(&mut sink, &mut source).map_err(drop)?;
                let made = sink.pos();
                output.truncate(made);
                self.ended = left == 0;
                source.pos()
            }
        };
        Ok((used, output))
    }
}

fn inflate(
    state: &mut Decompress,
    input: &[u8],
    output: &mut Vec<u8>,
    ended: &mut bool,
) -> Result<usize, ()> {
    let before = state.total_in();
    let status = state.decompress_vec(input, output, FlushDecompress::None).map_err(drop)?;
    *ended = status == Status::StreamEnd;
    usize::try_from(state.total_in() - before).map_err(drop)
}

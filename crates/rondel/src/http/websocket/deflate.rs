//! Compression of a WebSocket's messages (RFC 7692, permessage-deflate).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frames::Refusal;

/// A flush ends with these bytes, which are not sent.
const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];
const PIECE: usize = 16 * 1024;

/// Compresses messages.
pub struct Deflate {
    state: Compress,
    /// Each message by itself, without what came before.
    forgetful: bool,
}

impl Deflate {
    /// `bits`: the window is 2 to the power of this, from 9 to 15 (others count as the nearest).
    pub fn new(bits: u8, forgetful: bool) -> Self {
        let state = Compress::new_with_window_bits(Compression::fast(), false, bits.clamp(9, 15));
        Deflate { state, forgetful }
    }

    /// A message's compressed bytes.
    pub fn message(&mut self, data: &[u8]) -> Vec<u8> {
        let flush = if self.forgetful { FlushCompress::Full } else { FlushCompress::Sync };
        let mut output = Vec::with_capacity(data.len() / 2 + 64);
        let before = self.state.total_in();
        loop {
            let used = (self.state.total_in() - before) as usize;
            // Compressing fails only with a stream's state that is never reached here.
            let failed = self.state.compress_vec(&data[used..], &mut output, flush).is_err();
            if failed || output.len() < output.capacity() {
                break;
            }
            output.reserve(PIECE);
        }
        if output.ends_with(&FLUSHED) {
            output.truncate(output.len() - FLUSHED.len());
        }
        if output.is_empty() {
            // Nothing is new since the last flush: an empty block (RFC 7692, section 7.2.3.6).
            output.push(0);
        }
        output
    }
}

/// Decompresses messages.
pub struct Inflate {
    state: Decompress,
}

impl Inflate {
    pub fn new() -> Self {
        Inflate { state: Decompress::new(false) }
    }

    /// A message; refused when it is larger than `limit`, which is 0 for none.
    pub fn message(&mut self, mut data: Vec<u8>, limit: usize) -> Result<Vec<u8>, Refusal> {
        data.extend_from_slice(&FLUSHED);
        let mut output = Vec::with_capacity(data.len() * 2);
        let before = self.state.total_in();
        loop {
            let used = (self.state.total_in() - before) as usize;
            let status =
                self.state.decompress_vec(&data[used..], &mut output, FlushDecompress::Sync);
            if limit > 0 && output.len() > limit {
                let text = format!("Decompressed message exceeds size limit {limit}");
                return Err((1009, text));
            }
            match status {
                Err(error) => return Err((1007, error.to_string())),
                Ok(Status::StreamEnd) => {
                    self.state.reset(false);
                    return Ok(output);
                }
                Ok(_) if output.len() < output.capacity() => return Ok(output),
                Ok(_) => output.reserve(PIECE.max(output.len())),
            }
        }
    }
}

//! Where a body ends: a decoder over the bytes as they arrive. No Python here.

/// A chunk's size line and a trailer line may be this long.
const MAX_LINE: usize = 8 * 1024;
/// All trailer lines together.
const MAX_TRAILERS: usize = 64 * 1024;

/// How the body is delimited, and how far it has come.
#[derive(Debug)]
pub enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunks),
    /// All that arrives until the peer closes.
    UntilClose,
}

/// States of the chunked coding.
#[derive(Debug)]
pub enum Chunks {
    /// In a size line.
    Size(Vec<u8>),
    /// In a chunk's data.
    Data(u64),
    /// In the line end after the data; so many bytes of it were seen.
    DataEnd(usize),
    /// In a line after the last chunk; with how much all of them had before it.
    Trailer(Vec<u8>, usize),
}

/// What a part of the input is.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// So many bytes were the coding's own.
    Skipped(usize),
    /// So many bytes are data.
    Data(usize),
    /// The body ended after so many bytes of the coding's own.
    End(usize),
}

impl Framing {
    /// The chunked coding at its start.
    pub fn chunked() -> Self {
        Framing::Chunked(Chunks::Size(Vec::new()))
    }

    /// Whether nothing more is to come.
    pub fn is_complete(&self) -> bool {
        matches!(self, Framing::Length(0))
    }

    /// Tells what the first part of `input` is, which is not empty.
    ///
    /// # Errors
    /// What is wrong with the coding.
    pub fn next(&mut self, input: &[u8]) -> Result<Part, &'static str> {
        match self {
            Framing::UntilClose => Ok(Part::Data(input.len())),
            Framing::Length(left) => {
                let taken = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(if taken == 0 { Part::End(0) } else { Part::Data(taken) })
            }
            Framing::Chunked(chunks) => chunks.next(input),
        }
    }
}

impl Chunks {
    fn next(&mut self, input: &[u8]) -> Result<Part, &'static str> {
        match self {
            Chunks::Data(left) => {
                let taken = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if *left == 0 {
                    *self = Chunks::DataEnd(0);
                }
                Ok(Part::Data(taken))
            }
            Chunks::DataEnd(seen) => {
                for (index, byte) in input.iter().enumerate() {
                    if *byte != b"\r\n"[*seen] {
                        return Err("Chunk data is not followed by a line end");
                    }
                    *seen += 1;
                    if *seen == 2 {
                        *self = Chunks::Size(Vec::new());
                        return Ok(Part::Skipped(index + 1));
                    }
                }
                Ok(Part::Skipped(input.len()))
            }
            Chunks::Size(line) => {
                let Some(used) = collect_line(line, input)? else {
                    return Ok(Part::Skipped(input.len()));
                };
                let size = chunk_size(line)?;
                *self = if size == 0 { Chunks::Trailer(Vec::new(), 0) } else { Chunks::Data(size) };
                Ok(Part::Skipped(used))
            }
            Chunks::Trailer(line, before) => {
                let Some(used) = collect_line(line, input)? else {
                    return Ok(Part::Skipped(input.len()));
                };
                if line.is_empty() {
                    return Ok(Part::End(used));
                }
                let all = *before + line.len();
                if all > MAX_TRAILERS {
                    return Err("Too many trailers");
                }
                *self = Chunks::Trailer(Vec::new(), all);
                Ok(Part::Skipped(used))
            }
        }
    }
}

/// Moves input up to a line end into `line`, without the line end; None when the line goes on.
fn collect_line(line: &mut Vec<u8>, input: &[u8]) -> Result<Option<usize>, &'static str> {
    let end = input.iter().position(|byte| *byte == b'\n');
    let used = end.map_or(input.len(), |end| end + 1);
    if line.len() + used > MAX_LINE {
        return Err("A line of the chunked coding is too long");
    }
    line.extend_from_slice(&input[..used]);
    if end.is_none() {
        return Ok(None);
    }
    match line.strip_suffix(b"\r\n") {
        Some(text) => {
            let length = text.len();
            line.truncate(length);
            Ok(Some(used))
        }
        None => Err("A line of the chunked coding ends without a carriage return"),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    const BAD: &str = "Bad chunk size";
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(BAD);
    }
    let text = std::str::from_utf8(digits).map_err(|_| BAD)?;
    u64::from_str_radix(text, 16).map_err(|_| BAD)
}

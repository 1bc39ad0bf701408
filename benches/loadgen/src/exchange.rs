//! One request and its answer: what is sent, and when what came back is complete. Every byte of an echo is
//! compared, so that a loop that is fast because it is wrong shows as errors.

/// Echoed messages carry their sequence number in front, so that a late datagram is told from the awaited one.
pub const STAMP: usize = 8;

pub enum Exchange {
    Echo {
        message: Vec<u8>,
        sequence: u64,
        received: usize,
    },
    Datagram {
        message: Vec<u8>,
        sequence: u64,
    },
    Http {
        request: Vec<u8>,
        head: Vec<u8>,
        /// Bytes of the body that are still to come, once the head is complete.
        left: Option<usize>,
    },
}

impl Exchange {
    pub fn echo(size: usize, connection: usize) -> Self {
        Self::Echo { message: message(size, connection), sequence: 0, received: 0 }
    }

    pub fn datagram(size: usize, connection: usize) -> Self {
        Self::Datagram { message: message(size, connection), sequence: 0 }
    }

    pub fn http(path: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n");
        Self::Http { request: request.into_bytes(), head: Vec::new(), left: None }
    }

    pub fn request(&self) -> &[u8] {
        match self {
            Self::Echo { message, .. } | Self::Datagram { message, .. } => message,
            Self::Http { request, .. } => request,
        }
    }

    /// Makes the next request; the answer to the last one, if it is still to come, no longer counts.
    pub fn renew(&mut self) {
        match self {
            Self::Echo { message, sequence, received } => {
                *received = 0;
                stamp(message, sequence);
            }
            Self::Datagram { message, sequence } => stamp(message, sequence),
            Self::Http { head, left, .. } => {
                head.clear();
                *left = None;
            }
        }
    }

    /// Takes what was read; true when the answer is complete.
    pub fn feed(&mut self, data: &[u8]) -> Result<bool, String> {
        match self {
            Self::Echo { message, received, .. } => {
                let awaited = message.get(*received..*received + data.len());
                if awaited != Some(data) {
                    return Err(format!(
                        "{} bytes at {received} are not what was sent",
                        data.len()
                    ));
                }
                *received += data.len();
                Ok(*received == message.len())
            }
            Self::Datagram { message, .. } => {
                if data == message.as_slice() {
                    return Ok(true);
                }
                let late = data.len() == message.len() && data[STAMP..] == message[STAMP..];
                if late {
                    Ok(false)
                } else {
                    Err(format!("a datagram of {} bytes is not what was sent", data.len()))
                }
            }
            Self::Http { head, left, .. } => feed_http(head, left, data),
        }
    }
}

fn message(size: usize, connection: usize) -> Vec<u8> {
    (0..size.max(STAMP)).map(|index| (index * 31 + connection * 7 + (index >> 8)) as u8).collect()
}

fn stamp(message: &mut [u8], sequence: &mut u64) {
    *sequence += 1;
    message[..STAMP].copy_from_slice(&sequence.to_le_bytes());
}

fn feed_http(head: &mut Vec<u8>, left: &mut Option<usize>, data: &[u8]) -> Result<bool, String> {
    let body = match left {
        Some(_) => data.len(),
        None => {
            // Only the tail of what was there can hold the start of the terminator.
            let from = head.len().saturating_sub(3);
            head.extend_from_slice(data);
            let Some(end) = head[from..].windows(4).position(|window| window == b"\r\n\r\n") else {
                return Ok(false);
            };
            let end = from + end + 4;
            *left = Some(content_length(&head[..end])?);
            head.len() - end
        }
    };
    let rest = left.unwrap_or(0).checked_sub(body).ok_or("more bytes than Content-Length says")?;
    *left = Some(rest);
    Ok(rest == 0)
}

fn content_length(head: &[u8]) -> Result<usize, String> {
    let text = std::str::from_utf8(head).map_err(|error| error.to_string())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or("");
    if !status.starts_with("HTTP/1.1 200") {
        return Err(format!("the server answered {status:?}"));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| "the answer has no Content-Length".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_complete_only_when_every_byte_is_right() {
        let mut exchange = Exchange::echo(100, 3);
        exchange.renew();
        let sent = exchange.request().to_vec();
        assert_eq!(exchange.feed(&sent[..40]), Ok(false));
        assert_eq!(exchange.feed(&sent[40..]), Ok(true));
        exchange.renew();
        assert!(exchange.feed(&sent).is_err(), "the last message's sequence number must not pass");
    }

    #[test]
    fn more_than_was_sent_is_an_error() {
        let mut exchange = Exchange::echo(10, 0);
        exchange.renew();
        let mut sent = exchange.request().to_vec();
        sent.push(0);
        assert!(exchange.feed(&sent).is_err());
    }

    #[test]
    fn a_late_datagram_is_passed_over() {
        let mut exchange = Exchange::datagram(64, 1);
        exchange.renew();
        let late = exchange.request().to_vec();
        exchange.renew();
        assert_eq!(exchange.feed(&late), Ok(false));
        let now = exchange.request().to_vec();
        assert_eq!(exchange.feed(&now), Ok(true));
        assert!(exchange.feed(b"short").is_err());
    }

    #[test]
    fn an_http_answer_may_come_in_any_pieces() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-length: 5\r\nserver: x\r\n\r\nhello";
        for cut in 1..answer.len() {
            let mut exchange = Exchange::http("/");
            exchange.renew();
            assert_eq!(exchange.feed(&answer[..cut]), Ok(false), "cut at {cut}");
            assert_eq!(exchange.feed(&answer[cut..]), Ok(true), "cut at {cut}");
        }
        let mut exchange = Exchange::http("/");
        assert!(exchange.feed(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n").is_err());
    }
}

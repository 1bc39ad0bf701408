//! What can go wrong with one file.

use std::fmt;
use std::io;
use std::time::Duration;

/// What kind of thing failed; it decides about retries and the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The URL, a list or an option cannot be used.
    Input,
    /// The host has no address.
    Name,
    /// No connection, or it broke.
    Connection,
    /// The TLS handshake or a certificate.
    Tls,
    /// Nothing came for too long.
    Timeout,
    /// What came was not HTTP, or not what was asked for.
    Protocol,
    /// The server answered with this status instead of a file.
    Status(u16),
    /// The content is not what the checksum or size promises.
    Checksum,
    /// The disk: full, no permission, a folder in the way.
    Disk,
    /// The target is there already, and that was not to be.
    Exists,
    /// The run was stopped.
    Cancelled,
}

impl Kind {
    /// One word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Name => "name",
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Status(_) => "status",
            Self::Checksum => "checksum",
            Self::Disk => "disk",
            Self::Exists => "exists",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An error: its kind, and a sentence for people.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind of thing failed.
    pub kind: Kind,
    /// What happened, without the URL.
    pub text: String,
    /// The system's error number, for [`Kind::Disk`].
    pub errno: Option<i32>,
    /// What a Retry-After header asked for.
    pub retry_after: Option<Duration>,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of that kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), errno: None, retry_after: None }
    }

    /// A failed file operation; `doing` says which, as in "cannot write /path".
    pub fn disk(doing: impl fmt::Display, error: &io::Error) -> Self {
        let text = format!("{doing}: {}", describe(error));
        Self { errno: error.raw_os_error(), ..Self::new(Kind::Disk, text) }
    }

    /// A failed socket operation.
    pub fn connection(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(Kind::Connection, format!("{doing}: {}", describe(error)))
    }

    /// Whether another attempt may succeed.
    pub fn is_transient(&self) -> bool {
        match self.kind {
            Kind::Name | Kind::Connection | Kind::Timeout | Kind::Protocol => true,
            Kind::Status(status) => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Kind::Input
            | Kind::Tls
            | Kind::Checksum
            | Kind::Disk
            | Kind::Exists
            | Kind::Cancelled => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// A system error without Rust's "(os error 28)".
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

//! What to download and how: jobs and options.

use std::path::PathBuf;
use std::time::Duration;

use crate::checksum::{Checksum, Sums};
use crate::cookies::Jar;
use crate::names::Template;
use crate::netrc::Netrc;
use crate::proxy::Proxies;

/// One file.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Where it is; further URLs are mirrors, tried in turn.
    pub urls: Vec<String>,
    /// Its path below the folder, instead of what the URL or the server says.
    pub name: Option<String>,
    /// What its content must sum up to.
    pub checksum: Option<Checksum>,
    /// Its size in bytes, if known beforehand.
    pub size: Option<u64>,
    /// Headers for its requests alone.
    pub headers: Vec<(String, String)>,
}

impl Job {
    /// A job for one URL.
    pub fn from_url(url: impl Into<String>) -> Self {
        Self { urls: vec![url.into()], ..Self::default() }
    }
}

/// What to do with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Ask the server whether it has changed; replace it only then.
    Update,
    /// Leave it, without a request.
    Skip,
    /// Download and replace it.
    Replace,
    /// Keep it and choose a new name with a number.
    Rename,
    /// Fail.
    Fail,
}

/// What is forced to the disk before a file counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Nothing: the system writes when it likes. A file is whole or absent unless the power fails.
    Never,
    /// The file before it gets its name, and its folder after.
    Always,
}

/// Over how many connections one large file comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// One, and more up to this many while each further one makes it faster.
    Adaptive(usize),
    /// As many from the start, where the file is large enough.
    Fixed(usize),
}

/// How to download; the same for all files of a run.
#[derive(Debug)]
pub struct Options {
    /// The folder that files go to; made if it is not there.
    pub directory: PathBuf,
    /// How to name files that have no name of their own.
    pub template: Option<Template>,
    /// Whether a Content-Disposition header may name a file.
    pub content_disposition: bool,
    /// Files at a time, in all.
    pub concurrency: usize,
    /// Connections at a time to one host.
    pub per_host: usize,
    /// Further attempts after a first failed one.
    pub retries: u32,
    /// The longest wait that a server may ask for by Retry-After.
    pub longest_wait: Duration,
    /// For a connection: names, TCP, proxy and TLS together.
    pub connect_timeout: Duration,
    /// Without a byte from the server.
    pub idle_timeout: Duration,
    /// For a file, with all its attempts.
    pub total_timeout: Option<Duration>,
    /// Whether to go on with what an earlier run left.
    pub resume: bool,
    /// What to do with a file that is there already.
    pub existing: Existing,
    /// What is forced to the disk.
    pub fsync: Fsync,
    /// Bytes per second, of all files together.
    pub rate: Option<u64>,
    /// Over how many connections one file comes.
    pub segments: Segments,
    /// Headers for every request.
    pub headers: Vec<(String, String)>,
    /// The User-Agent header.
    pub user_agent: String,
    /// Name and password for the servers of the given URLs.
    pub user: Option<(String, String)>,
    /// Credentials by host.
    pub netrc: Netrc,
    /// Which proxy for which URL.
    pub proxies: Proxies,
    /// Accept any certificate.
    pub insecure: bool,
    /// A PEM file with the roots to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Offer HTTP/2 to TLS servers.
    pub http2: bool,
    /// Redirects to follow, at most.
    pub max_redirects: u32,
    /// Give files the time that the server says they were modified.
    pub keep_time: bool,
    /// Checksums by file name, for jobs without one.
    pub sums: Option<Sums>,
    /// Cookies to begin with.
    pub cookies: Jar,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("."),
            template: None,
            content_disposition: true,
            concurrency: 16,
            per_host: 8,
            retries: 5,
            longest_wait: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(30),
            total_timeout: None,
            resume: true,
            existing: Existing::Update,
            fsync: Fsync::Never,
            rate: None,
            segments: Segments::Adaptive(4),
            headers: Vec::new(),
            user_agent: concat!("rondel/", env!("CARGO_PKG_VERSION")).to_owned(),
            user: None,
            netrc: Netrc::default(),
            proxies: Proxies::default(),
            insecure: false,
            ca_file: None,
            http2: true,
            max_redirects: 20,
            keep_time: true,
            sums: None,
            cookies: Jar::default(),
        }
    }
}

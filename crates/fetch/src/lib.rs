//! rondel's download engine: URLs to files. It knows nothing of Python.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`job`] | what to download and how |
//! | [`engine`] | a run: the queue, how many at a time, the thread |
//! | [`transfer`] | one file: attempts, mirrors, resuming, segments, the end |
//! | [`body`] | a large file's bytes, over one connection or several |
//! | [`segments`] | which bytes are there, coming, or missing |
//! | [`part`] | what lies on the disk while a file is coming |
//! | [`exchange`] | one request and its answer: redirects, credentials, cookies |
//! | [`connect`] | connections: names, proxies ([`socks`]), TLS ([`tls`]) |
//! | [`digest`] | what digest authentication says |
//! | [`event`] | what a run tells |
//! | [`names`], [`checksum`], [`list`], [`metalink`], [`netrc`], [`cookies`], [`proxy`] | what is read |
//! | [`backoff`], [`limit`] | when to wait |
//! | [`cli`] | the command `rondel get` |
//! | [`json`] | JSON strings |
//!
//! One thread runs all of it, on a tokio runtime of its own: what arrives is written to the page cache
//! at once, which costs less than handing it to another thread. Looking names up, summing up whole files
//! and fsync go to a thread beside it.

pub mod backoff;
pub mod body;
pub mod checksum;
pub mod cli;
pub mod connect;
pub mod cookies;
pub mod digest;
pub mod engine;
pub mod error;
pub mod event;
pub mod exchange;
pub mod job;
pub mod json;
pub mod limit;
pub mod list;
pub mod metalink;
pub mod names;
pub mod netrc;
pub mod part;
pub mod proxy;
pub mod segments;
pub mod socks;
pub mod tls;
pub mod transfer;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock; a thread that panicked while it held the lock left nothing half-done here.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

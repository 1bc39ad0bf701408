//! HTTP/2: one connection that many exchanges share.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`connection`] | the protocol of a transport: drives the crate `h2` and tells exchanges of their news |
//! | [`exchange`] | one request and its response, with the methods of an HTTP/1.1 connection |
//! | [`wire`] | its stream's handles of `h2` |
//! | [`message`] | requests from HTTP/1.1's form |
//! | [`pipe`] | the memory between `h2` and the transport |
//! | [`signals`] | which streams have news |
//!
//! `h2` is written for an executor that polls its futures when their wakers say so. Here nothing is
//! ever spawned: the connection's future is polled when bytes have arrived, when there is room to
//! write again, and once after the exchanges of a turn have begun something; the wakers note which
//! streams have news, and those are looked at before the call returns. While `h2` is borrowed no
//! Python code runs: what is to be done is taken out of it first, and done afterwards.

pub mod connection;
pub mod exchange;
mod message;
mod pipe;
mod signals;
mod wire;

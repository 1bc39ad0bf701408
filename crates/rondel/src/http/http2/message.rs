//! Requests and responses between the forms of HTTP/1.1, which the rest of the client has, and of
//! HTTP/2.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::http::head::MAX_FIELDS;

/// From this size on a body is sent from Python's own memory.
const LARGE: usize = 8 * 1024;

/// Makes of the head of an HTTP/1.1 request one of HTTP/2, which is spoken over TLS only; returns it and
/// the head's length.
///
/// # Errors
/// What is wrong with it.
pub fn request(data: &[u8]) -> Result<(Request<()>, usize), String> {
    let mut few = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut few);
    let mut status = parsed.parse(data);
    let mut many;
    if status == Err(httparse::Error::TooManyHeaders) {
        many = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
        parsed = httparse::Request::new(&mut many);
        status = parsed.parse(data);
    }
    let length = match status {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Err("Incomplete request".into()),
        Err(error) => return Err(format!("Invalid request: {error}")),
    };
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut host: &[u8] = b"";
    for field in &*parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|e| e.to_string())?;
        if name == header::HOST {
            host = field.value;
            continue;
        }
        if is_of_connection(&name, field.value) {
            continue;
        }
        let mut value = HeaderValue::from_bytes(field.value).map_err(|error| error.to_string())?;
        value.set_sensitive(name == header::AUTHORIZATION);
        headers.append(name, value);
    }
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(Authority::try_from(host).map_err(|error| error.to_string())?);
    let mut target = parsed.path.unwrap_or("/");
    if let Some(rest) = target.strip_prefix("http://") {
        // For a proxy: the whole URL, whose host is the one that the request names.
        parts.scheme = Some(Scheme::HTTP);
        target = rest.find('/').map_or("/", |path| &rest[path..]);
    }
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|e| e.to_string())?);
    let mut request = Request::new(());
    let method = parsed.method.unwrap_or("GET").as_bytes();
    *request.method_mut() = Method::from_bytes(method).map_err(|error| error.to_string())?;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| error.to_string())?;
    *request.headers_mut() = headers;
    Ok((request, length))
}

/// Whether a field is about an HTTP/1.1 connection and must not be sent (RFC 9113, section 8.2.2).
fn is_of_connection(name: &HeaderName, value: &[u8]) -> bool {
    match *name {
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => true,
        header::TE => !value.eq_ignore_ascii_case(b"trailers"),
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings"),
    }
}

/// Part of a body, without a copy if it is large.
pub fn body(data: &Bound<'_, PyBytes>, from: usize) -> Bytes {
    let bytes = &data.as_bytes()[from..];
    if bytes.len() < LARGE {
        return Bytes::copy_from_slice(bytes);
    }
    Bytes::from_owner(PyBackedBytes::from(data.clone())).slice(from..)
}

//! A response's first part: its status line and header fields.

use std::ops::Range;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use super::decode::Decoder;
use super::framing::Framing;
use super::stream::StreamReader;

/// The most that a head may have before it counts as an attack.
pub const MAX_HEAD: usize = 128 * 1024;
pub const MAX_FIELDS: usize = 2048;

/// A parsed head; ranges are into `raw`.
pub struct Head {
    raw: Box<[u8]>,
    pub status: u16,
    /// HTTP/`major`.`minor`
    major: u8,
    minor: u8,
    reason: Range<usize>,
    fields: Vec<(Range<usize>, Range<usize>)>,
}

/// Parses a head at the start of `input`; returns it and its length, or None when it is incomplete.
///
/// # Errors
/// What is wrong with it.
pub fn parse(input: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let mut config = httparse::ParserConfig::default();
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    let mut few = [httparse::EMPTY_HEADER; 64];
    let mut many = Vec::new();
    let mut fields: &mut [httparse::Header<'_>] = &mut few;
    loop {
        let mut response = httparse::Response::new(fields);
        match config.parse_response(&mut response, input) {
            Ok(httparse::Status::Complete(length)) => {
                return Ok(Some((Head::new(&input[..length], &response), length)));
            }
            Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
            Ok(httparse::Status::Partial) => {
                return Err("Got more than 131072 bytes of header".into());
            }
            Err(httparse::Error::TooManyHeaders) if many.is_empty() => {}
            Err(error) => return Err(format!("Invalid response head: {error}")),
        }
        many = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
        fields = &mut many;
    }
}

impl Head {
    fn new(raw: &[u8], parsed: &httparse::Response<'_, '_>) -> Self {
        let start = raw.as_ptr() as usize;
        let range = |part: &[u8]| {
            // An absent reason is a constant outside of `raw`.
            let from = (part.as_ptr() as usize).wrapping_sub(start);
            if from <= raw.len() && !part.is_empty() { from..from + part.len() } else { 0..0 }
        };
        Head {
            status: parsed.code.unwrap_or_default(),
            major: 1,
            minor: parsed.version.unwrap_or_default(),
            reason: range(parsed.reason.unwrap_or_default().as_bytes()),
            fields: parsed
                .headers
                .iter()
                .map(|field| (range(field.name.as_bytes()), range(field.value)))
                .collect(),
            raw: raw.into(),
        }
    }

    /// A head of HTTP/2.
    pub fn of_fields<'a>(status: u16, given: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let (mut raw, mut fields) = (Vec::with_capacity(512), Vec::with_capacity(16));
        let mut add = |part: &[u8]| {
            let start = raw.len();
            raw.extend_from_slice(part);
            start..raw.len()
        };
        for (name, value) in given {
            fields.push((add(name), add(value)));
        }
        Head { raw: raw.into(), status, major: 2, minor: 0, reason: 0..0, fields }
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let wanted = name.as_bytes();
        self.fields
            .iter()
            .filter(move |(name, _)| self.raw[name.clone()].eq_ignore_ascii_case(wanted))
            .map(|(_, value)| self.raw[value.clone()].trim_ascii())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether another request may follow on the connection.
    pub fn keeps_alive(&self) -> bool {
        if self.minor == 0 {
            self.has_token("connection", "keep-alive")
        } else {
            !self.has_token("connection", "close")
        }
    }

    /// How the body is delimited. `bodiless`: the request's method allows none.
    ///
    /// # Errors
    /// What is wrong with the fields that say so.
    pub fn framing(&self, bodiless: bool) -> Result<Framing, String> {
        if bodiless || matches!(self.status, 204 | 304) {
            return Ok(Framing::Length(0));
        }
        if self.status == 101 {
            return Ok(Framing::UntilClose);
        }
        let mut length = None;
        for value in self.values("content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value).ok().filter(|_| digits);
            let number = number.and_then(|text| text.parse::<u64>().ok());
            match (number, length) {
                (Some(number), None) => length = Some(number),
                (Some(number), Some(before)) if number == before => {}
                _ => return Err("Invalid Content-Length".into()),
            }
        }
        if self.values("transfer-encoding").next().is_some() {
            if length.is_some() {
                return Err("Content-Length can't be present with Transfer-Encoding".into());
            }
            let last = self.values("transfer-encoding").last().unwrap_or_default();
            let last = last.rsplit(|byte| *byte == b',').next().unwrap_or_default();
            return Ok(if last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                Framing::chunked()
            } else {
                Framing::UntilClose
            });
        }
        Ok(length.map_or(Framing::UntilClose, Framing::Length))
    }

    /// The decoder for the body; None when it is sent as it is, or in a way that is not known.
    pub fn decoder(&self) -> Option<Decoder> {
        self.values("content-encoding").last().and_then(Decoder::new)
    }
}

/// What has arrived of a response when its head has: `await connection.response()`.
#[pyclass(frozen, module = "rondel._rondel", name = "HttpHead")]
pub struct ResponseHead {
    head: Head,
    #[pyo3(get)]
    content: Py<StreamReader>,
}

impl ResponseHead {
    pub fn new(head: Head, content: Py<StreamReader>) -> Self {
        ResponseHead { head, content }
    }
}

/// Header text as it is in Python: UTF-8, with what is not UTF-8 as surrogates.
fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(PyString::new(py, text).into_any()),
        Err(_) => PyBytes::new(py, bytes).call_method1("decode", ("utf-8", "surrogateescape")),
    }
}

#[pymethods]
impl ResponseHead {
    #[getter]
    fn status(&self) -> u16 {
        self.head.status
    }

    /// The version of HTTP: 1.1 is (1, 1).
    #[getter]
    fn version(&self) -> (u8, u8) {
        (self.head.major, self.head.minor)
    }

    #[getter]
    fn reason<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        text(py, &self.head.raw[self.head.reason.clone()])
    }

    /// The fields as they came: a list of pairs of str.
    fn fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (name, value) in &self.head.fields {
            let value = self.head.raw[value.clone()].trim_ascii();
            list.append((text(py, &self.head.raw[name.clone()])?, text(py, value)?))?;
        }
        Ok(list)
    }

    /// The fields as they came: a tuple of pairs of bytes.
    fn raw_fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let raw = |range: &Range<usize>| PyBytes::new(py, &self.head.raw[range.clone()]);
        PyTuple::new(py, self.head.fields.iter().map(|(name, value)| (raw(name), raw(value))))
    }

    /// Whether there is a field of that name (in lower or upper case).
    fn has(&self, name: &str) -> bool {
        self.head.values(name).next().is_some()
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        visit.call(&self.content)
    }
}

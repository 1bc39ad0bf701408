//! Digest authentication for Python: the challenges of [`rondel_fetch::digest`].

use std::cell::RefCell;

use pyo3::prelude::*;
use rondel_fetch::digest::{Challenge, Request};

use crate::ffi::confined::Confined;

/// A server's challenge and how often it has been answered.
#[pyclass(frozen, module = "rondel._rondel", name = "HttpDigest")]
pub struct Digest(Confined<RefCell<Challenge>>);

#[pymethods]
impl Digest {
    /// The first challenge of a WWW-Authenticate field that can be answered.
    #[staticmethod]
    fn find(header: &str) -> Option<Self> {
        Challenge::find(header).map(|challenge| Digest(Confined::new(RefCell::new(challenge))))
    }

    /// The value of an Authorization field. `own` is a nonce of the client's, new each time.
    #[pyo3(signature = (method, path, body, user, password, own, /))]
    #[allow(clippy::too_many_arguments)]
    fn answer(
        &self,
        py: Python<'_>,
        method: &str,
        path: &str,
        body: &[u8],
        user: &str,
        password: &str,
        own: &str,
    ) -> String {
        let request = Request { method, path, body };
        self.0.get(py).borrow_mut().answer_to(request, user, password, own)
    }

    /// The server's nonce.
    #[getter]
    fn nonce(&self, py: Python<'_>) -> String {
        self.0.get(py).borrow().nonce().to_owned()
    }

    /// The URLs that the same credentials are for, separated by blanks; None for the whole origin.
    #[getter]
    fn domain(&self, py: Python<'_>) -> Option<String> {
        self.0.get(py).borrow().domain().map(str::to_owned)
    }
}

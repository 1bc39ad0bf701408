//! Flow control of transports: how much may wait to be sent before the protocol is told to pause.

use std::cell::Cell;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::event_loop::{Loop, exceptions};

/// asyncio's default high-water mark in bytes.
pub const HIGH_WATER: usize = 64 * 1024;

/// A transport's limits in bytes, and what its protocol was told last.
pub struct Flow {
    pub high_water: Cell<usize>,
    pub low_water: Cell<usize>,
    /// pause_writing() was called, and resume_writing() not yet.
    pub paused: Cell<bool>,
}

impl Default for Flow {
    fn default() -> Self {
        Flow {
            high_water: Cell::new(HIGH_WATER),
            low_water: Cell::new(HIGH_WATER / 4),
            paused: Cell::new(false),
        }
    }
}

impl Flow {
    /// Whether pause_writing() is to be called now that `waiting` bytes wait.
    pub fn pauses(&self, waiting: usize) -> bool {
        waiting > self.high_water.get() && !self.paused.replace(true)
    }

    /// Whether resume_writing() is to be called now that only `waiting` bytes wait.
    pub fn resumes(&self, waiting: usize) -> bool {
        waiting <= self.low_water.get() && self.paused.replace(false)
    }
}

/// Calls a flow control method of the protocol, in the context of whoever runs now, as asyncio does.
///
/// # Errors
/// `KeyboardInterrupt` and `SystemExit`; others go to the exception handler.
pub fn tell(
    event_loop: Option<&Bound<'_, Loop>>,
    protocol: Option<Bound<'_, PyAny>>,
    transport: &Bound<'_, PyAny>,
    method: &'static str,
) -> PyResult<()> {
    let Some(protocol) = protocol else { return Ok(()) };
    let Err(error) = protocol.call_method0(method) else { return Ok(()) };
    if exceptions::must_propagate(transport.py(), &error) {
        return Err(error);
    }
    match event_loop {
        Some(event_loop) => {
            let message = format!("protocol.{method}() failed");
            super::report(event_loop, &message, &error, transport, Some(protocol))
        }
        None => Ok(()),
    }
}

/// The (low, high) limits of `set_write_buffer_limits(high, low)`; `default` is the high one when
/// neither is given.
///
/// # Errors
/// `ValueError` unless high >= low >= 0.
pub fn limits(
    high: Option<&Bound<'_, PyAny>>,
    low: Option<&Bound<'_, PyAny>>,
    default: usize,
) -> PyResult<(usize, usize)> {
    let number = |value: Option<&Bound<'_, PyAny>>| value.map(|v| v.extract::<i64>()).transpose();
    let (high, low) = (number(high)?, number(low)?);
    let default = i64::try_from(default)?;
    let high = high.unwrap_or_else(|| low.map_or(default, |low| low.saturating_mul(4)));
    let low = low.unwrap_or(high.div_euclid(4));
    if !(high >= low && low >= 0) {
        return Err(PyValueError::new_err(format!(
            "high ({high}) must be >= low ({low}) must be >= 0"
        )));
    }
    Ok((usize::try_from(low)?, usize::try_from(high)?))
}

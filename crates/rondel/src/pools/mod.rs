//! Pools as Python sees them: `concurrent.futures` executors over [`rondel_pool`].
//!
//! | module | what it is |
//! | --- | --- |
//! | [`executing`] | `loop.run_in_executor()`: which pool is asked directly |
//! | [`threads`] | ThreadPool: its queue, its workers' loop, its end |
//! | [`thread_call`] | one call on its way: from the queue to a thread, and its outcome to who waits |
//! | `processes` | ProcessPool: submitting, the pool's thread, a loop that collects answers itself |
//! | `process_call` | one call on its way to a worker process, and who waits for it |
//! | `process_pickle` | pickling into messages and back |
//! | `process_worker` | what a worker process runs |

pub mod executing;
#[cfg(target_os = "linux")]
pub mod process_call;
#[cfg(target_os = "linux")]
mod process_pickle;
#[cfg(target_os = "linux")]
pub mod process_worker;
#[cfg(target_os = "linux")]
pub mod processes;
pub mod thread_call;
pub mod threads;

use pyo3::prelude::*;

/// Puts the classes of worker processes into the module, where there are any.
#[cfg(target_os = "linux")]
pub fn add_processes(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<processes::ProcessPool>()?;
    module.add_class::<processes::ProcessServer>()?;
    module.add_class::<process_call::Call>()?;
    module.add_class::<process_worker::ProcessWorker>()?;
    module.add_class::<crate::ffi::shared_buffer::SharedBuffer>()
}

/// Worker processes rest on what only Linux has.
#[cfg(not(target_os = "linux"))]
pub fn add_processes(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}

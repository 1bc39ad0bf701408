//! Noticing fork().
//!
//! A forked child shares its parent's poll instance and wake-up descriptor: what it registers or
//! removes changes the parent's. Comparing a counter, which the child's copy of the process advances,
//! is cheap enough to do on every call; asking for the process's number is not.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);
static REGISTERED: Once = Once::new();

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// The process's generation: differs between a process and the children that it forked.
///
/// Children that are made without running this process's code (vfork, posix_spawn) do not count, nor
/// need they.
#[must_use]
#[inline]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Starts counting. Must come before the first fork() that is to be noticed.
pub fn watch() {
    REGISTERED.call_once(|| {
        // SAFETY: `in_child` only touches an atomic, which is allowed after fork() in any program.
        // Running out of memory here leaves forks unnoticed, as if this did not exist.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_of_another_generation() {
        watch();
        let before = generation();
        // SAFETY: the child only compares numbers and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let differs = generation() != before;
            // SAFETY: ends the child without running the test harness's exit handlers.
            unsafe { libc::_exit(i32::from(!differs)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
        assert_eq!(generation(), before);
    }
}

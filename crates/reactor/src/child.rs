//! The end of a child process, as a descriptor to poll (Linux's pidfd).
//!
//! A [`Child`] becomes readable when the process has ended. Taking its status through the descriptor
//! cannot hit another process that got the same number meanwhile.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A child process that nobody has waited for yet.
#[derive(Debug)]
pub struct Child {
    fd: OwnedFd,
    pid: i32,
}

impl Child {
    /// The descriptor to poll for reading.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(target_os = "linux")]
impl Child {
    /// Opens a child by its number, which is its own until somebody waits for it.
    ///
    /// # Errors
    /// The operating system's: `ENOSYS` and `EPERM` where this is not to be had, `ESRCH` when
    /// somebody has waited for the child already.
    pub fn open(pid: i32) -> io::Result<Child> {
        use std::os::fd::FromRawFd;
        // SAFETY: pidfd_open takes integers; the descriptor it returns is owned by nobody else.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            match i32::try_from(fd) {
                Ok(fd) if fd >= 0 => Ok(Child { fd: OwnedFd::from_raw_fd(fd), pid }),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// The status of a child that has ended: its exit code, or a signal's number, negated. None
    /// while it still runs.
    ///
    /// # Errors
    /// The operating system's: `ECHILD` when somebody else has waited for the child.
    pub fn wait(&self) -> io::Result<Option<i32>> {
        #[allow(clippy::cast_sign_loss)]
        let fd = self.fd() as libc::id_t;
        match wait_for(libc::P_PIDFD, fd) {
            // Linux 5.3 has pidfd_open, but waits for pidfds only from 5.4 on.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                #[allow(clippy::cast_sign_loss)]
                let pid = self.pid as libc::id_t;
                wait_for(libc::P_PID, pid)
            }
            result => result,
        }
    }
}

#[cfg(target_os = "linux")]
fn wait_for(what: libc::idtype_t, id: libc::id_t) -> io::Result<Option<i32>> {
    // SAFETY: siginfo_t is plain memory for which zeros are a value; waitid fills it in, and leaves
    // the number at zero when the child still runs. The fields read are those of a child's status.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        while libc::waitid(what, id, &raw mut info, libc::WEXITED | libc::WNOHANG) < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if info.si_pid() == 0 {
            return Ok(None);
        }
        let status = info.si_status();
        Ok(Some(if info.si_code == libc::CLD_EXITED { status } else { -status }))
    }
}

#[cfg(not(target_os = "linux"))]
impl Child {
    /// Not to be had on this system.
    ///
    /// # Errors
    /// Always `Unsupported`.
    pub fn open(_pid: i32) -> io::Result<Child> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Not to be had on this system.
    ///
    /// # Errors
    /// Always `Unsupported`.
    pub fn wait(&self) -> io::Result<Option<i32>> {
        let _ = self.pid;
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn open(child: &std::process::Child) -> io::Result<Child> {
        Child::open(i32::try_from(child.id()).map_err(io::Error::other)?)
    }

    fn ended(child: &Child) -> io::Result<Option<i32>> {
        let mut poll = libc::pollfd { fd: child.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
        child.wait()
    }

    #[test]
    #[allow(clippy::zombie_processes)] // Waiting is what is tested.
    fn tells_the_exit_code_once() {
        let process = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let child = open(&process).unwrap();
        assert_eq!(ended(&child).unwrap(), Some(7));
        assert_eq!(child.wait().unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert_eq!(open(&process).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    #[allow(clippy::zombie_processes)]
    fn tells_the_signal_and_that_a_child_still_runs() {
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let child = open(&process).unwrap();
        assert_eq!(child.wait().unwrap(), None);
        process.kill().unwrap();
        assert_eq!(ended(&child).unwrap(), Some(-libc::SIGKILL));
    }
}

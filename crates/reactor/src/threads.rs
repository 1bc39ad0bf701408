//! What the kernel says of this process's threads: who runs, and what the others wait for.
//!
//! From /proc (proc(5)): `task/TID/syscall` names the call that a thread is blocked in, or says that
//! it is running. Where that is not to be read (another system, a sandbox), no thread is reported.

use std::path::Path;
use std::{fs, io};

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Their names say it.
pub enum Doing {
    Running,
    Sleeping,
    Polling,
    Socket,
    File,
    Pipe,
    Lock,
    Child,
    Other,
}

impl Doing {
    /// Its name, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Doing::Running => "running",
            Doing::Sleeping => "sleeping",
            Doing::Polling => "polling",
            Doing::Socket => "socket",
            Doing::File => "file",
            Doing::Pipe => "pipe",
            Doing::Lock => "lock",
            Doing::Child => "child",
            Doing::Other => "other",
        }
    }
}

/// The native id of the calling thread; 0 where it cannot be had.
pub fn own_thread() -> u32 {
    fs::read_link("/proc/thread-self").ok().as_deref().and_then(number).unwrap_or_default()
}

/// What each thread of this process but `me` is doing.
pub fn doing_but(me: u32) -> Vec<(u32, Doing)> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| {
            let id = number(&task.path()).filter(|id| *id != me)?;
            Some((id, doing(id)?))
        })
        .collect()
}

/// What one thread of this process is doing; None where that is not to be known.
pub fn doing(thread: u32) -> Option<Doing> {
    let call = fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
    Some(classify(&call))
}

/// Sends a signal to one thread of this process.
///
/// # Errors
/// The system call's; `Unsupported` on a system that has no such call.
#[cfg(target_os = "linux")]
pub fn signal(thread: u32, signal: i32) -> io::Result<()> {
    // SAFETY: tgkill() takes numbers only, and checks that the thread is one of this process.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal to one thread of this process.
///
/// # Errors
/// `Unsupported`: this system has no such call.
#[cfg(not(target_os = "linux"))]
pub fn signal(_thread: u32, _signal: i32) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// Reads one line of `syscall`: "running", or the call's number and its arguments in hexadecimal.
#[cfg(target_os = "linux")]
fn classify(line: &str) -> Doing {
    let mut words = line.split_ascii_whitespace();
    let Some(Ok(call)) = words.next().map(str::parse::<libc::c_long>) else {
        return Doing::Running;
    };
    let argument =
        words.next().and_then(|word| i64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    match call {
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => Doing::Sleeping,
        libc::SYS_ppoll | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => Doing::Polling,
        // select() on nothing is how some programs sleep.
        libc::SYS_pselect6 if argument == Some(0) => Doing::Sleeping,
        libc::SYS_pselect6 => Doing::Polling,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select if argument == Some(0) => Doing::Sleeping,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll | libc::SYS_epoll_wait | libc::SYS_select => Doing::Polling,
        libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg
        | libc::SYS_connect
        | libc::SYS_accept
        | libc::SYS_accept4 => Doing::Socket,
        libc::SYS_read
        | libc::SYS_write
        | libc::SYS_readv
        | libc::SYS_writev
        | libc::SYS_splice
        | libc::SYS_sendfile => argument.map_or(Doing::Other, descriptor),
        libc::SYS_pread64
        | libc::SYS_pwrite64
        | libc::SYS_preadv
        | libc::SYS_pwritev
        | libc::SYS_openat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_getdents64
        | libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_ftruncate
        | libc::SYS_fallocate
        | libc::SYS_unlinkat
        | libc::SYS_copy_file_range => Doing::File,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open
        | libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_unlink
        | libc::SYS_rename
        | libc::SYS_mkdir
        | libc::SYS_rmdir => Doing::File,
        libc::SYS_futex => Doing::Lock,
        libc::SYS_wait4 | libc::SYS_waitid => Doing::Child,
        _ => Doing::Other,
    }
}

#[cfg(not(target_os = "linux"))]
fn classify(_line: &str) -> Doing {
    Doing::Other
}

/// What a thread that reads or writes this descriptor waits for.
#[cfg(target_os = "linux")]
fn descriptor(fd: i64) -> Doing {
    let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) else { return Doing::Other };
    let target = target.to_string_lossy();
    if target.starts_with("socket:") {
        Doing::Socket
    } else if target.starts_with("pipe:") {
        Doing::Pipe
    } else if target.starts_with('/') && !target.starts_with("/dev/") {
        Doing::File
    } else {
        Doing::Other
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// Looks at a new thread until it is found doing what is expected.
    fn found(expected: Doing, body: impl FnOnce() + Send + 'static) {
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let _ = tell.send(own_thread());
            body();
        });
        let id = told.recv().expect("the thread has started");
        let deadline = Instant::now() + Duration::from_secs(10);
        while doing(id) != Some(expected) {
            assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", doing(id));
            thread::yield_now();
        }
        assert!(doing_but(0).iter().any(|(other, _)| *other == id));
        assert!(!doing_but(id).iter().any(|(other, _)| *other == id));
        drop(thread);
    }

    #[test]
    fn a_thread_is_found_sleeping() {
        found(Doing::Sleeping, || thread::sleep(Duration::from_secs(1)));
    }

    #[test]
    fn a_thread_is_found_computing() {
        found(Doing::Running, || {
            let end = Instant::now() + Duration::from_secs(1);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
        });
    }

    #[test]
    fn a_thread_is_found_waiting_for_a_socket_and_a_lock() {
        let (mut near, far) = UnixStream::pair().expect("a pair of sockets");
        near.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
        found(Doing::Socket, move || {
            let _ = near.read(&mut [0]);
            drop(far);
        });
        found(Doing::Lock, || thread::park_timeout(Duration::from_secs(1)));
    }

    #[test]
    fn lines_are_classified() {
        let read = libc::SYS_pread64;
        assert_eq!(classify("running\n"), Doing::Running);
        assert_eq!(classify(&format!("{read} 0x3 0x0")), Doing::File);
        assert_eq!(classify(&format!("{} 0x0", libc::SYS_pselect6)), Doing::Sleeping);
        assert_eq!(classify(&format!("{} 0x4", libc::SYS_pselect6)), Doing::Polling);
        assert_eq!(classify("-1 0x0"), Doing::Other);
        assert_eq!(classify(""), Doing::Running);
    }

    #[test]
    fn only_threads_of_this_process_are_signalled() {
        assert!(signal(1, 0).is_err());
        assert!(signal(own_thread(), 0).is_ok());
    }
}

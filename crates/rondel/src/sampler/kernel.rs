//! What the kernel says of this process's threads: who runs, and what the others wait for.
//!
//! From /proc (proc(5)): `task/TID/syscall` names the call that a thread is blocked in, or says that
//! it is running. Where that is not to be read (another system, a sandbox), no thread is reported.

use std::fs;
use std::path::Path;

/// What a thread is doing.
#[derive(Clone, Copy)]
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
    /// Its name for Python.
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
pub fn threads(me: u32) -> Vec<(u32, &'static str)> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| {
            let id = number(&task.path()).filter(|id| *id != me)?;
            let call = fs::read_to_string(task.path().join("syscall")).ok()?;
            Some((id, classify(&call).name()))
        })
        .collect()
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// Read one line of `syscall`: "running", or the call's number and its arguments in hexadecimal.
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

/// What a thread that reads or writes this descriptor waits for.
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

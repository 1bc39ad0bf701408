//! What the server under test has used, read from outside: it needs no code of its own for it.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// CPU time of all threads of `pid`, user and system, in nanosecond resolution.
///
/// `/proc/PID/stat` has the same figure in ticks of 10 ms, which is too coarse for windows of a second.
pub fn cpu_time(pid: i32) -> io::Result<Duration> {
    let mut clock = MaybeUninit::<libc::clockid_t>::uninit();
    // SAFETY: `clock` is valid for the one write that the call makes, and is read only on success.
    let clock = unsafe {
        match libc::clock_getcpuclockid(pid, clock.as_mut_ptr()) {
            0 => clock.assume_init(),
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    };
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: as above.
    let time = unsafe {
        if libc::clock_gettime(clock, time.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        time.assume_init()
    };
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Resident memory of `pid` in bytes, as the kernel sums it when it is asked (`/proc/PID/statm` may lag by
/// some pages per thread, `smaps_rollup` does not).
pub fn resident(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("smaps_rollup has no Rss line"))
}

/// Asks for socket buffers that hold a burst of a thousand datagrams; refused, the default stays.
pub fn widen_buffers(socket: &impl AsRawFd) {
    let wanted: libc::c_int = 8 << 20;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE, libc::SO_RCVBUF, libc::SO_SNDBUF] {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe one live c_int, which the call only reads.
        let code = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const wanted).cast(),
                length,
            )
        };
        if code == 0 && option == libc::SO_SNDBUFFORCE {
            return;
        }
    }
}

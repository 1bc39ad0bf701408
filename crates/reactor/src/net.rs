//! Non-blocking socket calls on raw descriptors.
//!
//! The descriptors belong to transports, which hold them open for as long as they use them; a stale
//! one gives the operating system's error, never undefined behaviour.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

fn with_socket<R>(fd: RawFd, f: impl FnOnce(&SockRef<'_>) -> R) -> R {
    // SAFETY: the borrow ends with this function. Callers hold the descriptor open; if one did not,
    // the kernel would answer EBADF. -1, which BorrowedFd forbids, is refused by `check` before.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    f(&SockRef::from(&fd))
}

fn check(fd: RawFd) -> io::Result<RawFd> {
    if fd < 0 { Err(io::Error::from_raw_os_error(libc::EBADF)) } else { Ok(fd) }
}

/// Receives into initialised memory; 0 is the end of the stream.
///
/// # Errors
/// The operating system's; `WouldBlock` when nothing has arrived.
pub fn recv(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    recv_uninit(fd, as_uninit(buffer))
}

fn as_uninit(buffer: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: initialised bytes are valid as MaybeUninit, and receiving only writes initialised bytes.
    unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) }
}

/// Receives into memory that need not be initialised: the first so many bytes are, afterwards.
///
/// # Errors
/// As [`recv`].
pub fn recv_uninit(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    with_socket(check(fd)?, |socket| socket.recv(buffer))
}

/// As [`recv_uninit`] on a Unix socket, and tells whether the kernel may have stopped early: it does
/// where a descriptor or the sender's credentials came along, whatever follows.
///
/// # Errors
/// As [`recv`].
#[cfg(target_os = "linux")]
pub fn recv_uninit_told(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> io::Result<(usize, bool)> {
    let fd = check(fd)?;
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeros is a message header without address, pieces or control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    // SAFETY: the header describes one piece of writable memory, which outlives the call.
    let received = unsafe { libc::recvmsg(fd, &raw mut message, 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // There is no room for control data: whatever would have come counts as cut off.
    Ok((received, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// As [`recv_uninit`] on a Unix socket; whether the kernel has stopped early is not known here.
///
/// # Errors
/// As [`recv`].
#[cfg(not(target_os = "linux"))]
pub fn recv_uninit_told(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> io::Result<(usize, bool)> {
    Ok((recv_uninit(fd, buffer)?, true))
}

/// The same into initialised memory.
///
/// # Errors
/// As [`recv`].
pub fn recv_told(fd: RawFd, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    recv_uninit_told(fd, as_uninit(buffer))
}

/// Receives up to `most` bytes behind what a vector holds; returns how many came.
///
/// # Errors
/// As [`recv`].
pub fn recv_append(fd: RawFd, bytes: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    bytes.reserve(most);
    let received = recv_uninit(fd, &mut bytes.spare_capacity_mut()[..most])?;
    // SAFETY: so many bytes of the spare capacity were just initialised.
    unsafe { bytes.set_len(bytes.len() + received) };
    Ok(received)
}

/// Receives up to `size` bytes into a vector, in place of what it held.
///
/// # Errors
/// As [`recv`]; the vector is empty then.
pub fn recv_vec(fd: RawFd, memory: &mut Vec<u8>, size: usize) -> io::Result<usize> {
    memory.clear();
    recv_append(fd, memory, size)
}

/// Sends what the socket takes now and returns how much that was.
///
/// # Errors
/// The operating system's; `WouldBlock` when the send buffer is full. Never raises `SIGPIPE`.
pub fn send(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    with_socket(check(fd)?, |socket| socket.send_with_flags(data, SEND_FLAGS))
}

/// Sends several pieces in one call and returns how many bytes were taken.
///
/// # Errors
/// As [`send`].
pub fn send_vectored(fd: RawFd, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    with_socket(check(fd)?, |socket| socket.send_vectored_with_flags(pieces, SEND_FLAGS))
}

/// Sends a datagram to an address.
///
/// # Errors
/// The operating system's; `WouldBlock` when the send buffer is full.
pub fn send_to(fd: RawFd, data: &[u8], address: &SockAddr) -> io::Result<usize> {
    with_socket(check(fd)?, |socket| socket.send_to_with_flags(data, address, SEND_FLAGS))
}

#[cfg(target_os = "linux")]
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;
// Elsewhere the interpreter ignores SIGPIPE from its start.
#[cfg(not(target_os = "linux"))]
const SEND_FLAGS: i32 = 0;

/// Accepts a connection: non-blocking and not inherited by child processes.
///
/// # Errors
/// The operating system's; `WouldBlock` when nobody waits.
pub fn accept(fd: RawFd) -> io::Result<(OwnedFd, SockAddr)> {
    with_socket(check(fd)?, |socket| {
        let (connection, address) = accept_nonblocking(socket)?;
        Ok((OwnedFd::from(connection), address))
    })
}

#[cfg(target_os = "linux")]
fn accept_nonblocking(socket: &SockRef<'_>) -> io::Result<(Socket, SockAddr)> {
    // socket2 has no accept4 with SOCK_NONBLOCK, which saves two calls for each connection.
    let fd = socket.as_raw_fd();
    // SAFETY: accept4 writes at most `length` bytes to `storage` and tells in `length` how many they
    // were; the new descriptor is owned by nobody else.
    unsafe {
        let (connection, address) = SockAddr::try_init(|storage, length| {
            let connection =
                libc::accept4(fd, storage.cast(), length, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
            if connection < 0 { Err(io::Error::last_os_error()) } else { Ok(connection) }
        })?;
        Ok((Socket::from(OwnedFd::from_raw_fd(connection)), address))
    }
}

#[cfg(not(target_os = "linux"))]
fn accept_nonblocking(socket: &SockRef<'_>) -> io::Result<(Socket, SockAddr)> {
    let (connection, address) = socket.accept()?;
    connection.set_nonblocking(true)?;
    Ok((connection, address))
}

/// Begins to connect a new TCP socket, non-blocking and not inherited by child processes. Once it is
/// writable, [`connect_error`] tells what came of it.
///
/// # Errors
/// The operating system's, when that is known at once.
pub fn connect(address: &SockAddr) -> io::Result<OwnedFd> {
    let socket = nonblocking_stream(Domain::from(i32::from(address.family())))?;
    match socket.connect(address) {
        Ok(()) => {}
        // The same errors as Python's BlockingIOError and InterruptedError stand for.
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS | libc::EALREADY | libc::EAGAIN | libc::EINTR) => {}
            _ => return Err(error),
        },
    }
    Ok(OwnedFd::from(socket))
}

#[cfg(target_os = "linux")]
fn nonblocking_stream(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

#[cfg(not(target_os = "linux"))]
fn nonblocking_stream(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What a finished connect came to: None when the socket is connected.
///
/// # Errors
/// The operating system's, when it does not tell.
pub fn connect_error(fd: RawFd) -> io::Result<Option<io::Error>> {
    with_socket(check(fd)?, |socket| socket.take_error())
}

/// The address of the socket's own end.
///
/// # Errors
/// The operating system's.
pub fn local_address(fd: RawFd) -> io::Result<SockAddr> {
    with_socket(check(fd)?, |socket| socket.local_addr())
}

/// The address of the other end.
///
/// # Errors
/// The operating system's; `NotConnected` when there is none.
pub fn peer_address(fd: RawFd) -> io::Result<SockAddr> {
    with_socket(check(fd)?, |socket| socket.peer_addr())
}

/// Switches Nagle's algorithm off on TCP sockets, so that small writes leave at once.
///
/// # Errors
/// The operating system's, as for sockets that are not TCP.
pub fn set_nodelay(fd: RawFd) -> io::Result<()> {
    with_socket(check(fd)?, |socket| socket.set_tcp_nodelay(true))
}

/// Ends the sending direction: the peer reads an end of file after what was sent.
///
/// # Errors
/// The operating system's.
pub fn shutdown_write(fd: RawFd) -> io::Result<()> {
    with_socket(check(fd)?, |socket| socket.shutdown(std::net::Shutdown::Write))
}

/// Whether an error means "not now": the call may be tried again later.
#[must_use]
pub fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn accepts_without_blocking_and_moves_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(is_retry(&accept(listener.as_raw_fd()).unwrap_err()));
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = accept(listener.as_raw_fd()).unwrap();
        let server = server.as_raw_fd();
        assert_eq!(peer.as_socket().unwrap(), client.local_addr().unwrap());
        assert_eq!(peer_address(server).unwrap().as_socket(), peer.as_socket());
        assert_eq!(
            local_address(server).unwrap().as_socket().unwrap(),
            listener.local_addr().unwrap()
        );
        set_nodelay(server).unwrap();
        let mut buffer = [0; 8];
        assert!(is_retry(&recv(server, &mut buffer).unwrap_err()));
        let client_fd = client.as_raw_fd();
        assert_eq!(send(client_fd, b"ab").unwrap(), 2);
        let pieces = [IoSlice::new(b"cd"), IoSlice::new(b"e")];
        assert_eq!(send_vectored(client_fd, &pieces).unwrap(), 3);
        shutdown_write(client_fd).unwrap();
        let mut got = Vec::new();
        loop {
            match recv(server, &mut buffer) {
                Ok(0) => break,
                Ok(n) => got.extend_from_slice(&buffer[..n]),
                Err(error) => assert!(is_retry(&error)),
            }
        }
        assert_eq!(got, b"abcde");
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        assert_eq!(send(-1, b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(recv(-1, &mut [0]).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

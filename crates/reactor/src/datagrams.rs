//! Datagrams: receiving many at once.
//!
//! As in [`crate::net`], which sends them, descriptors belong to transports that hold them open.

use std::io;
use std::mem;
use std::os::fd::RawFd;

use socket2::SockAddr;

/// The most that one call receives.
pub const MOST: usize = 16;
/// How many bytes the datagrams of one call come to, if they are as large as those of the call before:
/// beyond that they and the objects made of them push each other out of the processor's cache.
const AT_ONCE: usize = 128 * 1024;
/// Room for one datagram of the internet protocols: 16 bits count its bytes.
pub const INTERNET_ROOM: usize = 64 * 1024;
/// Room for one datagram of any other family (asyncio's figure).
pub const LARGEST_ROOM: usize = 256 * 1024;

/// Memory into which datagrams are received, with where they came from. It is as large as it can ever
/// need to be, and the system only provides what was written to.
pub struct Batch {
    memory: Vec<u8>,
    names: Box<[libc::sockaddr_storage; MOST]>,
    /// Of each datagram that was received: its size, its name's size.
    sizes: Vec<(usize, libc::socklen_t)>,
    /// Bytes from one datagram's place to the next one's.
    room: usize,
}

impl Default for Batch {
    fn default() -> Self {
        // SAFETY: all zeros are a valid sockaddr_storage.
        let names = Box::new(unsafe { mem::zeroed() });
        let memory = vec![0; MOST * INTERNET_ROOM];
        Batch { memory, names, sizes: Vec::with_capacity(MOST), room: INTERNET_ROOM }
    }
}

impl Batch {
    /// Receives what has arrived, as much as fits with `room` bytes for each datagram; longer ones are
    /// cut. Returns how many there were, at least one.
    ///
    /// # Errors
    /// The operating system's, also those of earlier sends; `WouldBlock` when nothing has arrived.
    pub fn receive(&mut self, fd: RawFd, room: usize) -> io::Result<usize> {
        self.room = room.clamp(1, self.memory.len());
        let largest = self.sizes.iter().map(|size| size.0).max().unwrap_or(0);
        let most = (AT_ONCE / largest.max(1)).clamp(1, MOST);
        self.sizes.clear();
        self.fill(fd, most.min(self.memory.len() / self.room))?;
        Ok(self.sizes.len())
    }

    /// The bytes of a datagram of the last [`Batch::receive`] and its sender's address, `None` when the
    /// sender has none.
    #[must_use]
    pub fn datagram(&self, index: usize) -> (&[u8], Option<SockAddr>) {
        let Some(&(size, name)) = self.sizes.get(index) else { return (&[], None) };
        let start = index * self.room;
        (&self.memory[start..start + size], self.address(index, name))
    }

    fn address(&self, index: usize, length: libc::socklen_t) -> Option<SockAddr> {
        if length == 0 {
            return None;
        }
        // SAFETY: the kernel wrote `length` bytes of an address to this name; the rest is zero or from
        // an older address, which the length leaves out.
        let address = unsafe {
            SockAddr::try_init(|storage, size| {
                storage.cast::<libc::sockaddr_storage>().write(self.names[index]);
                *size = length;
                Ok(())
            })
        };
        address.ok().map(|((), address)| address)
    }

    #[cfg(target_os = "linux")]
    fn fill(&mut self, fd: RawFd, count: usize) -> io::Result<()> {
        // SAFETY: all zeros are valid headers and pieces (null pointers, no lengths).
        let mut headers: [libc::mmsghdr; MOST] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut pieces: [libc::iovec; MOST] = unsafe { mem::zeroed() };
        let places = self.memory.chunks_mut(self.room).zip(self.names.iter_mut());
        for ((header, piece), (place, name)) in headers.iter_mut().zip(&mut pieces).zip(places) {
            piece.iov_base = place.as_mut_ptr().cast();
            piece.iov_len = place.len();
            header.msg_hdr.msg_iov = piece;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = NAME_SIZE;
        }
        // SAFETY: the first `count` headers point to pieces, places and names that outlive the call
        // and that nothing else uses meanwhile; the kernel answers a bad descriptor with an error.
        let received = unsafe {
            libc::recvmmsg(
                fd,
                headers.as_mut_ptr(),
                count as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let Ok(received) = usize::try_from(received) else {
            return Err(io::Error::last_os_error());
        };
        let sizes = headers.iter().take(received);
        self.sizes.extend(sizes.map(|h| (h.msg_len as usize, h.msg_hdr.msg_namelen)));
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn fill(&mut self, fd: RawFd, count: usize) -> io::Result<()> {
        let places = self.memory.chunks_mut(self.room).zip(self.names.iter_mut());
        for (place, name) in places.take(count) {
            let mut length = NAME_SIZE;
            // SAFETY: place and name are writable for as long as the call lasts, and their sizes are
            // what is said; the kernel answers a bad descriptor with an error.
            let received = unsafe {
                libc::recvfrom(
                    fd,
                    place.as_mut_ptr().cast(),
                    place.len(),
                    libc::MSG_DONTWAIT,
                    std::ptr::from_mut(name).cast(),
                    &raw mut length,
                )
            };
            match usize::try_from(received) {
                Ok(received) => self.sizes.push((received, length)),
                // What has arrived comes first; an error is found again by the next call, or by
                // the poller.
                Err(_) if !self.sizes.is_empty() => break,
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_possible_truncation)] // 128
const NAME_SIZE: libc::socklen_t = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn receives_what_has_arrived_with_its_senders() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let senders = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = SockAddr::from(receiver.local_addr().unwrap());
        let mut batch = Batch::default();
        let nothing = batch.receive(receiver.as_raw_fd(), INTERNET_ROOM).unwrap_err();
        assert!(net::is_retry(&nothing));
        for number in 0..MOST + 3 {
            let text = "x".repeat(number);
            let sent = net::send_to(senders[number % 2].as_raw_fd(), text.as_bytes(), &to).unwrap();
            assert_eq!(sent, number);
        }
        let mut seen = 0;
        for expected in [MOST, 3] {
            let count = batch.receive(receiver.as_raw_fd(), INTERNET_ROOM).unwrap();
            assert_eq!(count, expected);
            for index in 0..count {
                let (data, sender) = batch.datagram(index);
                assert_eq!(data, "x".repeat(seen).as_bytes());
                let sender = sender.unwrap().as_socket().unwrap();
                assert_eq!(sender, senders[seen % 2].local_addr().unwrap());
                seen += 1;
            }
            assert_eq!(batch.datagram(count).0, b"");
        }
    }

    #[test]
    fn a_sender_without_a_name_has_no_address() {
        let (here, there) = UnixDatagram::pair().unwrap();
        here.send(&[7; 100_000]).unwrap();
        here.send(b"").unwrap();
        let mut batch = Batch::default();
        assert_eq!(batch.receive(there.as_raw_fd(), LARGEST_ROOM).unwrap(), 2);
        let (data, sender) = batch.datagram(0);
        assert_eq!(data, [7; 100_000]);
        assert!(sender.is_none());
        assert_eq!(batch.datagram(1).0, b"");
    }

    #[test]
    fn an_error_of_an_earlier_send_comes_out() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        socket.connect(gone).unwrap();
        socket.send(b"x").unwrap();
        let error = Batch::default().receive(socket.as_raw_fd(), INTERNET_ROOM).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let closed = Batch::default().receive(-1, INTERNET_ROOM).unwrap_err();
        assert_eq!(closed.raw_os_error(), Some(libc::EBADF));
    }
}

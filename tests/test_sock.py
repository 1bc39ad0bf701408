"""sock_recv, sock_sendall, sock_accept, sock_connect and their relatives."""

import asyncio
import contextlib
import errno
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    HOST,
    connected,
    listening_socket,
    needs_ipv6,
    open_fds,
    read_exactly,
    tcp_pair,
    unused_port,
)

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))
    sock.setblocking(False)
    return sock


def stream_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


# --- receiving ---------------------------------------------------------------------------------


def test_sock_recv(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            far.send(b"at once")
            assert await loop.sock_recv(near, 100) == b"at once"
            waiting = loop.create_task(loop.sock_recv(near, 3))
            await asyncio.sleep(0.005)
            assert not waiting.done()
            far.send(b"later")
            assert await waiting == b"lat"
            assert await loop.sock_recv(near, 100) == b"er"
            far.close()
            assert await loop.sock_recv(near, 100) == b""

    run(main)


def test_sock_recv_into(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            buffer = bytearray(10)
            far.send(b"hello")
            assert await loop.sock_recv_into(near, buffer) == 5
            assert buffer == b"hello\0\0\0\0\0"
            waiting = loop.create_task(loop.sock_recv_into(near, memoryview(buffer)[2:6]))
            await asyncio.sleep(0.005)
            far.send(b"123456")
            assert await waiting == 4
            assert buffer == b"he1234\0\0\0\0"
            far.close()
            assert await loop.sock_recv_into(near, buffer) == 2
            assert await loop.sock_recv_into(near, buffer) == 0
            # Nothing holds on to the buffer.
            buffer.extend(b"x")

    run(main)


def test_sock_recvfrom(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as near, udp_socket() as far:
            far.sendto(b"at once", near.getsockname())
            assert await loop.sock_recvfrom(near, 100) == (b"at once", far.getsockname())
            waiting = loop.create_task(loop.sock_recvfrom(near, 3))
            await asyncio.sleep(0.005)
            far.sendto(b"later", near.getsockname())
            # A datagram is cut, not continued.
            assert await waiting == (b"lat", far.getsockname())
            far.sendto(b"", near.getsockname())
            assert await loop.sock_recvfrom(near, 3) == (b"", far.getsockname())

    run(main)


def test_sock_recvfrom_into(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as near, udp_socket() as far:
            buffer = bytearray(10)
            far.sendto(b"hello", near.getsockname())
            assert await loop.sock_recvfrom_into(near, buffer) == (5, far.getsockname())
            assert buffer[:5] == b"hello"
            waiting = loop.create_task(loop.sock_recvfrom_into(near, buffer, 3))
            await asyncio.sleep(0.005)
            far.sendto(b"12345", near.getsockname())
            assert await waiting == (3, far.getsockname())
            assert buffer[:5] == b"123lo"

    run(main)


def test_receiving_on_a_reset_connection(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 100))
            await asyncio.sleep(0.005)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            with pytest.raises(ConnectionResetError):
                await waiting

    run(main)


# --- sending -----------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_sock_sendall_of_much_data(loop: Loop, run: Run, convert: Any) -> None:
    async def main() -> None:
        data = random.Random(1).randbytes(4 << 20)
        with tcp_pair(small=True) as (near, far):
            sending = loop.create_task(loop.sock_sendall(near, convert(data)))
            await asyncio.sleep(0.005)
            assert not sending.done()
            assert await read_exactly(far, len(data)) == data
            assert await sending is None

    run(main)


def test_sock_sendall_at_once(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            assert await loop.sock_sendall(near, b"small") is None  # type: ignore[func-returns-value]
            assert far.recv(100) == b"small"
            await loop.sock_sendall(near, b"")
            with pytest.raises(BlockingIOError):
                far.recv(100)

    run(main)


def test_sock_sendall_and_recv_at_once_on_one_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        data = random.Random(1).randbytes(2 << 20)
        with tcp_pair(small=True) as (near, far):

            async def receive(sock: socket.socket) -> bytes:
                out = bytearray()
                while len(out) < len(data):
                    out += await loop.sock_recv(sock, 1 << 16)
                return bytes(out)

            results = await asyncio.gather(
                loop.sock_sendall(near, data),
                loop.sock_sendall(far, data[::-1]),
                receive(near),
                receive(far),
            )
            assert results == [None, None, data[::-1], data]

    run(main)


def test_sock_sendall_to_a_closed_peer(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far):
            sending = loop.create_task(loop.sock_sendall(near, bytes(4 << 20)))
            await asyncio.sleep(0.005)
            far.close()
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await sending

    run(main)


def test_sock_sendto(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as near, udp_socket() as far:
            assert await loop.sock_sendto(near, b"hello", far.getsockname()) == 5
            assert await loop.sock_recvfrom(far, 100) == (b"hello", near.getsockname())
            assert await loop.sock_sendto(near, b"", far.getsockname()) == 0
            assert await loop.sock_recvfrom(far, 100) == (b"", near.getsockname())
            with pytest.raises(OSError) as caught:
                await loop.sock_sendto(near, bytes(100_000), far.getsockname())
            assert caught.value.errno == errno.EMSGSIZE

    run(main)


# --- accepting ---------------------------------------------------------------------------------


def test_sock_accept(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket() as listener:
            with socket.create_connection(listener.getsockname()) as client:
                conn, address = await loop.sock_accept(listener)
                with conn:
                    assert address == client.getsockname()
                    assert isinstance(conn, socket.socket)
                    assert conn.gettimeout() == 0
            waiting = loop.create_task(loop.sock_accept(listener))
            await asyncio.sleep(0.005)
            assert not waiting.done()
            with socket.create_connection(listener.getsockname()) as client:
                conn, address = await waiting
                conn.close()
                assert address == client.getsockname()

    run(main)


def test_sock_accept_on_a_socket_that_does_not_listen(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with stream_socket() as sock:
            with pytest.raises(OSError) as caught:
                await loop.sock_accept(sock)
            assert caught.value.errno == errno.EINVAL

    run(main)


# --- connecting --------------------------------------------------------------------------------


def test_sock_connect(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket() as listener, stream_socket() as sock:
            assert await loop.sock_connect(sock, listener.getsockname()) is None  # type: ignore[func-returns-value]
            assert sock.getpeername() == listener.getsockname()
            conn, _ = await loop.sock_accept(listener)
            with conn:
                await loop.sock_sendall(sock, b"hello")
                assert await loop.sock_recv(conn, 100) == b"hello"

    run(main)


def test_sock_connect_resolves_names(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket() as listener, stream_socket() as sock:
            await loop.sock_connect(sock, ("localhost", listener.getsockname()[1]))
            assert sock.getpeername() == listener.getsockname()

    run(main)


@needs_ipv6
def test_sock_connect_ipv6(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket(host="::1") as listener, socket.socket(socket.AF_INET6) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())
            assert sock.getpeername() == listener.getsockname()

    run(main)


def test_sock_connect_refused(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        with stream_socket() as sock:
            with pytest.raises(ConnectionRefusedError) as caught:
                await loop.sock_connect(sock, (HOST, port))
            assert caught.value.errno == errno.ECONNREFUSED
            assert caught.value.strerror == f"Connect call failed ('{HOST}', {port})"
            assert sock.fileno() != -1

    run(main)


def test_sock_connect_to_a_name_that_does_not_resolve(loop: Loop, run: Run) -> None:
    async def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    async def main() -> None:
        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
        with stream_socket() as sock:
            with pytest.raises(socket.gaierror, match="no such name"):
                await loop.sock_connect(sock, ("name.invalid", 80))
            assert sock.fileno() != -1

    run(main)


def test_sock_connect_issues_its_connect_in_the_first_step(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket() as listener, stream_socket() as sock:
            task = loop.create_task(loop.sock_connect(sock, listener.getsockname()))
            await asyncio.sleep(0)
            # Loopback answers at once, so the connection exists after that one step.
            assert sock.getpeername() == listener.getsockname()
            await task

    run(main)


@contextlib.contextmanager
def full_listener() -> Any:
    """The address of a listener whose backlog is full: a connect to it is not answered."""
    with listening_socket(backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(3):
            filler = stack.enter_context(stream_socket())
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_sock_connect_cancelled(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with full_listener() as address, stream_socket() as sock:
            await asyncio.sleep(0.01)
            task = loop.create_task(loop.sock_connect(sock, address))
            await asyncio.sleep(0.01)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert loop.remove_writer(sock) is False
            assert sock.fileno() != -1

    run(main)


def test_sock_connect_on_a_connected_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, _):
            with pytest.raises(OSError) as caught:
                await loop.sock_connect(near, near.getpeername())
            assert caught.value.errno == errno.EISCONN

    run(main)


def test_sock_connect_of_a_datagram_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as near, udp_socket() as far:
            await loop.sock_connect(near, far.getsockname())
            assert near.getpeername() == far.getsockname()
            await loop.sock_sendall(near, b"hello")
            assert await loop.sock_recv(far, 100) == b"hello"

    run(main)


# --- cancelling --------------------------------------------------------------------------------

WAITING: dict[str, Callable[[Any, socket.socket], Any]] = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
    "sock_sendall": lambda loop, sock: loop.sock_sendall(sock, bytes(4 << 20)),
    "sock_accept": lambda loop, sock: loop.sock_accept(sock),
}


@pytest.mark.parametrize("name", WAITING)
def test_cancellation_leaves_nothing_behind(loop: Loop, run: Run, name: str) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            if name == "sock_accept":
                sock = stack.enter_context(listening_socket())
            else:
                sock, _ = stack.enter_context(tcp_pair(small=True))
            before = open_fds()
            task = loop.create_task(WAITING[name](loop, sock))
            await asyncio.sleep(0.005)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert loop.remove_reader(sock) is False
            assert loop.remove_writer(sock) is False
            assert open_fds() == before
            assert sock.fileno() != -1

    run(main)


def test_cancelled_receive_loses_no_data(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            for i in range(50):
                task = loop.create_task(loop.sock_recv(near, 100))
                await asyncio.sleep(0)
                far.send(b"%d" % (i % 10))
                if i % 2:
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    got = await task
                except asyncio.CancelledError:
                    got = await loop.sock_recv(near, 100)
                assert got == b"%d" % (i % 10)

    run(main)


def test_second_receive_replaces_the_first(loop: Loop, run: Run) -> None:
    """As with add_reader, the later one takes the descriptor; the earlier one stays unanswered."""

    async def main() -> None:
        with tcp_pair() as (near, far):
            first = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0)
            second = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0)
            far.send(b"hello")
            assert await second == b"hello"
            assert not first.done()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            far.send(b"again")
            assert await loop.sock_recv(near, 10) == b"again"

    run(main)


def test_cancelled_first_receive_leaves_the_second_alone(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            first = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0)
            second = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.sleep(0.005)
            far.send(b"hello")
            assert await asyncio.wait_for(second, 5) == b"hello"

    run(main)


# --- errors ------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any, socket.socket], Any]] = {
    **WAITING,
    "sock_sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", (HOST, 9)),
    "sock_connect": lambda loop, sock: loop.sock_connect(sock, (HOST, 9)),
}


@pytest.mark.parametrize("name", CALLS)
def test_blocking_socket_is_refused_in_debug_mode(loop: Loop, run: Run, name: str) -> None:
    loop.set_debug(True)

    async def main() -> None:
        with socket.socket() as sock:
            for timeout in (None, 5):
                sock.settimeout(timeout)
                with pytest.raises(ValueError, match=r"^the socket must be non-blocking$"):
                    await CALLS[name](loop, sock)

    run(main)


@pytest.mark.parametrize("name", CALLS)
def test_tls_socket_is_refused(loop: Loop, run: Run, name: str) -> None:
    import ssl

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        with stream_socket() as plain:
            sock = context.wrap_socket(plain, do_handshake_on_connect=False)
            with sock, pytest.raises(TypeError, match=r"^Socket cannot be of type SSLSocket$"):
                await CALLS[name](loop, sock)

    run(main)


def test_closed_socket_is_an_error(loop: Loop, run: Run) -> None:
    async def main() -> None:
        sock = stream_socket()
        sock.close()
        for call in (
            loop.sock_recv(sock, 10),
            loop.sock_sendall(sock, b"x"),
            loop.sock_accept(sock),
        ):
            with pytest.raises(OSError) as caught:
                await call
            assert caught.value.errno == errno.EBADF

    run(main)


def test_socket_of_a_transport_is_refused(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            with transport.get_extra_info("socket").dup() as duplicate:
                # A duplicate is a descriptor of its own.
                duplicate.setblocking(False)
            with socket.socket(fileno=transport.get_extra_info("socket").fileno()) as same:
                try:
                    with pytest.raises(RuntimeError) as caught:
                        await loop.sock_recv(same, 10)
                finally:
                    fd = same.detach()
            assert str(caught.value) == f"File descriptor {fd} is used by transport {transport!r}"

    run(main)


def test_they_are_coroutines_that_do_nothing_until_awaited(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            receiving = loop.sock_recv(near, 10)
            sending = loop.sock_sendall(far, b"hello")
            assert asyncio.iscoroutine(receiving)
            assert asyncio.iscoroutine(sending)
            await asyncio.sleep(0)
            with pytest.raises(BlockingIOError):
                near.recv(10)
            await sending
            assert await receiving == b"hello"

    run(main)

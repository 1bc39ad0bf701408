"""UDP and Unix datagrams: making endpoints, sending, receiving, closing."""

import asyncio
import contextlib
import gc
import pathlib
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import HOST, has_ipv6, is_stock, needs_ipv6, open_fds, run_until, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


class Inbox(asyncio.DatagramProtocol):
    """Writes down what the transport tells it."""

    def __init__(self) -> None:
        self.transport: asyncio.DatagramTransport = None  # type: ignore[assignment]
        self.got: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert type(data) is bytes
        self.got.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    @property
    def texts(self) -> list[bytes]:
        return [data for data, _ in self.got]


@contextlib.contextmanager
def udp_socket(host: str = HOST) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(10)
        yield sock


async def bound(loop: Loop, factory: Any = Inbox, host: str = HOST) -> tuple[Any, Any, Any]:
    """An endpoint on a port of its own, and its address."""
    transport, protocol = await loop.create_datagram_endpoint(factory, local_addr=(host, 0))
    return transport, protocol, transport.get_extra_info("sockname")


async def closed(*transports: Any) -> None:
    for transport in transports:
        transport.close()
    await asyncio.sleep(0.01)


# --- endpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [HOST, pytest.param("::1", marks=needs_ipv6)])
def test_question_and_answer(loop: Loop, run: Run, host: str) -> None:
    class Upper(Inbox):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.sendto(data.upper(), addr)

    async def main() -> None:
        server, upper, address = await bound(loop, Upper, host)
        client, inbox = await loop.create_datagram_endpoint(Inbox, remote_addr=address[:2])
        assert isinstance(client, asyncio.DatagramTransport) or sys.version_info < (3, 12)
        assert isinstance(client, asyncio.Transport)
        assert client.get_extra_info("peername") == address
        assert server.get_extra_info("peername") is None
        assert inbox.transport is client
        client.sendto(b"one")
        client.sendto(b"two", None)
        await until(lambda: len(inbox.got) == 2)
        assert inbox.got == [(b"ONE", address), (b"TWO", address)]
        assert {addr for _, addr in upper.got} == {client.get_extra_info("sockname")}
        sock = client.get_extra_info("socket")
        assert sock.type == socket.SOCK_DGRAM
        assert sock.getsockname() == client.get_extra_info("sockname")
        await closed(server, client)
        assert upper.lost == inbox.lost == [None]

    run(main)


def test_senders_are_told_apart(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server, inbox, address = await bound(loop)
        with udp_socket() as one, udp_socket() as two:
            for number in range(30):
                (one if number % 3 else two).sendto(b"%d" % number, address)
            await until(lambda: len(inbox.got) == 30)
            names = one.getsockname(), two.getsockname()
            assert inbox.got == [
                (b"%d" % number, names[0] if number % 3 else names[1]) for number in range(30)
            ]
            for _, addr in inbox.got[:4]:
                server.sendto(b"back", addr)
            assert [one.recvfrom(10), two.recvfrom(10)] == [(b"back", address)] * 2
        await closed(server)

    run(main)


@pytest.mark.parametrize(
    "make",
    [
        lambda port: (HOST, port),
        lambda port: ["127.0.0.1", port],
        lambda port: ("localhost", port),
        lambda port: (b"127.0.0.1", port),
        lambda port: ("127.1", port),
    ],
)
def test_forms_of_an_address(loop: Loop, run: Run, make: Callable[[int], Any]) -> None:
    async def main() -> None:
        transport, inbox, _ = await bound(loop)
        with udp_socket() as sock:
            address = make(sock.getsockname()[1])
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reference:
                    reference.sendto(b"", address)
            except (TypeError, OSError):
                pytest.skip("the socket module refuses this form")
            sock.recv(10)
            transport.sendto(b"x", address)
            assert sock.recv(10) == b"x"
        assert not inbox.errors
        await closed(transport)

    run(main)


@needs_ipv6
def test_ipv6_addresses_of_each_length(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, inbox, _ = await bound(loop, host="::1")
        with udp_socket("::1") as sock:
            port = sock.getsockname()[1]
            for address in (("::1", port), ("::1", port, 0), ("::1", port, 0, 0)):
                transport.sendto(repr(address).encode(), address)
                assert sock.recv(100) == repr(address).encode()
        assert not inbox.errors
        await closed(transport)

    run(main)


@pytest.mark.parametrize("address", [("127.0.0.1",), (HOST, -1), (HOST, 1 << 16), (HOST, "x"), 7])
def test_address_that_is_none_ends_the_transport(
    loop: Loop, run: Run, reported: list[dict[str, Any]], address: Any
) -> None:
    async def main() -> None:
        transport, inbox, _ = await bound(loop)
        transport.sendto(b"x", address)
        await until(lambda: inbox.lost)
        assert isinstance(inbox.lost[0], (TypeError, OverflowError))
        (context,) = reported
        assert context["message"] == "Fatal write error on datagram transport"
        assert context["exception"] is inbox.lost[0]
        assert context["transport"] is transport
        assert context["protocol"] is inbox

    run(main)


def test_no_address_at_all_ends_the_transport(
    loop: Loop, run: Run, reported: list[dict[str, Any]]
) -> None:
    async def main() -> None:
        transport, inbox, _ = await bound(loop)
        transport.sendto(b"x")
        await until(lambda: inbox.lost)
        assert isinstance(inbox.lost[0], TypeError)

    run(main)
    assert len(reported) == 1


@pytest.mark.parametrize("data", ["text", 7, None, [b"x"]])
def test_data_that_is_none(loop: Loop, run: Run, data: Any) -> None:
    async def main() -> None:
        transport, _, address = await bound(loop)
        name = type(data).__name__
        with pytest.raises(
            TypeError, match=f"^data argument must be a bytes-like object, not '{name}'$"
        ):
            transport.sendto(data, address)
        await closed(transport)

    run(main)


def test_buffers_of_each_kind(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, inbox, address = await bound(loop)
        for data in (b"one", bytearray(b"two"), memoryview(b"three")):
            transport.sendto(data, address)
        await until(lambda: len(inbox.got) == 3)
        assert inbox.texts == [b"one", b"two", b"three"]
        await closed(transport)

    run(main)


def test_empty_datagrams(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, inbox, address = await bound(loop)
        with udp_socket() as sock:
            sock.sendto(b"", address)
            await until(lambda: inbox.got)
            assert inbox.texts == [b""]
            # Sending them came with 3.13.
            transport.sendto(b"", sock.getsockname())
            transport.sendto(b"end", sock.getsockname())
            assert sock.recv(10) == (b"" if sys.version_info >= (3, 13) else b"end")
        await closed(transport)

    run(main)


def test_largest_datagram(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, inbox, address = await bound(loop)
        largest = bytes(range(256)) * 255 + b"x" * (65507 - 65280)
        transport.sendto(largest, address)
        await until(lambda: inbox.got)
        assert inbox.texts == [largest]
        transport.sendto(largest + b"!", address)
        assert [error.errno for error in inbox.errors] == [90]  # EMSGSIZE
        await closed(transport)

    run(main)


def test_flood_arrives_whole_and_in_order(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, inbox, address = await bound(loop)
        with udp_socket() as sock:
            for number in range(1000):
                sock.sendto(b"%d" % number, address)
                if number % 100 == 99:
                    await until(lambda number=number: len(inbox.got) == number + 1)
        assert inbox.texts == [b"%d" % number for number in range(1000)]
        await closed(transport)

    run(main)


def test_refused_connection_is_an_error_received(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as sock:
            address = sock.getsockname()
        transport, inbox = await loop.create_datagram_endpoint(Inbox, remote_addr=address)
        transport.sendto(b"x")
        await until(lambda: inbox.errors)
        assert isinstance(inbox.errors[0], ConnectionRefusedError)
        assert inbox.errors[0].errno == 111
        assert not transport.is_closing()
        # The next send goes out, or finds the error of the one before.
        transport.sendto(b"y")
        await closed(transport)
        assert inbox.lost == [None]

    run(main)


def test_fixed_remote_address(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as sock:
            address = sock.getsockname()
            transport, inbox = await loop.create_datagram_endpoint(Inbox, remote_addr=address)
            transport.sendto(b"same", address)
            assert sock.recv(10) == b"same"
            with pytest.raises(ValueError) as caught:
                transport.sendto(b"other", (HOST, 1))
            assert str(caught.value) == f"Invalid address: must be None or {address}"
            await closed(transport)
            assert not inbox.errors

    run(main)


def test_broadcast_does_not_connect(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as sock:
            address = sock.getsockname()
            transport, inbox = await loop.create_datagram_endpoint(
                Inbox, remote_addr=address, allow_broadcast=True
            )
            own = transport.get_extra_info("socket")
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
            assert transport.get_extra_info("peername") is None
            transport.sendto(b"x")
            data, sender = sock.recvfrom(10)
            assert data == b"x"
            with udp_socket() as third:
                third.sendto(b"from elsewhere", (HOST, sender[1]))
                await until(lambda: inbox.got)
            with pytest.raises(ValueError, match="Invalid address: must be None or "):
                transport.sendto(b"x", (HOST, 9))
            await closed(transport)

    run(main)


def test_reuse_port(loop: Loop, run: Run) -> None:
    async def main() -> None:
        one, _ = await loop.create_datagram_endpoint(Inbox, (HOST, 0), reuse_port=True)
        address = one.get_extra_info("sockname")
        two, _ = await loop.create_datagram_endpoint(Inbox, address, reuse_port=True)
        before = open_fds()
        with pytest.raises(OSError, match="Address already in use"):
            await loop.create_datagram_endpoint(Inbox, address)
        assert open_fds() == before
        await closed(one, two)

    run(main)


def test_socket_of_the_programs_own(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with udp_socket() as sock, udp_socket() as peer:
            sock.connect(peer.getsockname())
            transport, inbox = await loop.create_datagram_endpoint(Inbox, sock=sock)
            assert sock.gettimeout() == 0
            assert transport.get_extra_info("peername") == peer.getsockname()
            transport.sendto(b"x")
            assert peer.recvfrom(10) == (b"x", sock.getsockname())
            # A connected socket's own peer counts, whatever is said.
            transport.sendto(b"y", (HOST, 9))
            assert peer.recv(10) == b"y"
            with pytest.raises(RuntimeError, match="is used by transport"):
                loop.add_reader(sock, print)
            await closed(transport)
            assert sock.fileno() == -1
            assert not inbox.errors

    run(main)


def test_family_alone(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, _ = await loop.create_datagram_endpoint(Inbox, family=socket.AF_INET)
        with udp_socket() as sock:
            transport.sendto(b"x", sock.getsockname())
            assert sock.recv(10) == b"x"
        await closed(transport)

    run(main)


def test_arguments_that_do_not_go_together(loop: Loop, run: Run) -> None:
    async def main() -> None:
        make = loop.create_datagram_endpoint
        with udp_socket() as sock, socket.socket() as stream:
            with pytest.raises(ValueError, match="^unexpected address family$"):
                await make(Inbox)
            expected = "A (UDP S|datagram s)ocket was expected, got <socket"
            with pytest.raises(ValueError, match=expected):
                await make(Inbox, sock=stream)
            with pytest.raises(ValueError) as caught:
                await make(
                    Inbox, (HOST, 1), (HOST, 2), family=2, reuse_port=True, flags=0, sock=sock
                )
            assert str(caught.value) == (
                "socket modifier keyword arguments can not be used when sock is specified. "
                f"(local_addr=('{HOST}', 1), remote_addr=('{HOST}', 2), family=2, reuse_port=True)"
            )
            for address in (f"{HOST}:1", (HOST,), [HOST, 1], (HOST, 1, 2)):
                with pytest.raises(TypeError, match="^2-tuple is expected$"):
                    await make(Inbox, local_addr=address)
            for kwargs in ({"local_addr": (HOST, 1)}, {"remote_addr": b"x"}):
                with pytest.raises(TypeError, match="^string is expected$"):
                    await make(Inbox, family=socket.AF_UNIX, **kwargs)
            with pytest.raises(TypeError):
                await make(Inbox, (HOST, 0), reuse_address=True)
            if has_ipv6():
                with pytest.raises(ValueError, match="^can not get address information$"):
                    await make(Inbox, local_addr=(HOST, 0), remote_addr=("::1", 9))
            assert sock.fileno() >= 0

    run(main)


def test_factory_that_raises_leaves_no_descriptor(loop: Loop, run: Run) -> None:
    def factory() -> Inbox:
        raise ZeroDivisionError

    async def main() -> None:
        before = open_fds()
        with pytest.raises(ZeroDivisionError):
            await loop.create_datagram_endpoint(factory, (HOST, 0))
        gc.collect()
        assert open_fds() == before

    if is_stock(loop):
        pytest.skip("asyncio leaves the socket to the collector, with a warning")
    run(main)


def test_datagrams_over_unix_sockets(loop: Loop, run: Run, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        server_path, client_path = str(tmp_path / "server"), str(tmp_path / "client")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
            stale.bind(server_path)
        make = loop.create_datagram_endpoint
        server, at_server = await make(Inbox, server_path, family=socket.AF_UNIX)
        client, at_client = await make(Inbox, client_path, server_path, family=socket.AF_UNIX)
        assert client.get_extra_info("peername") == server_path
        client.sendto(b"q" * 100_000)
        await until(lambda: at_server.got)
        assert at_server.got == [(b"q" * 100_000, client_path)]
        server.sendto(b"a", client_path)
        server.sendto(b"b", at_server.got[0][1])
        await until(lambda: len(at_client.got) == 2)
        assert at_client.got == [(b"a", server_path), (b"b", server_path)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
            nameless.sendto(b"n", server_path)
        await until(lambda: len(at_server.got) == 2)
        assert at_server.got[1] == (b"n", None)
        await closed(server, client)

    run(main)


# --- closing and errors ------------------------------------------------------------------------


def test_close_tells_once_and_after_the_callback(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, inbox, address = await bound(loop)
        sock = transport.get_extra_info("socket")
        transport.close()
        assert transport.is_closing()
        assert inbox.lost == []
        transport.close()
        transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert inbox.lost == [None]
        assert sock.fileno() == -1
        assert "closed" in repr(transport)
        assert transport.get_extra_info("sockname") == address

    run(main)


def test_nothing_is_received_after_close(loop: Loop, run: Run) -> None:
    class Closing(Inbox):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    async def main() -> None:
        _, inbox, address = await bound(loop, Closing)
        with udp_socket() as sock:
            for _ in range(5):
                sock.sendto(b"x", address)
        await until(lambda: inbox.lost)
        await asyncio.sleep(0.02)
        assert len(inbox.got) == 1
        assert inbox.lost == [None]

    run(main)


def test_sends_after_close(loop: Loop, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with udp_socket() as sock:
            transport, inbox = await loop.create_datagram_endpoint(
                Inbox, remote_addr=sock.getsockname()
            )
            transport.abort()
            for _ in range(6):
                transport.sendto(b"late")
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(10)
            await until(lambda: inbox.lost)
            for _ in range(2):
                transport.sendto(b"later")

    run(main)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["socket.send() raised exception."] * 4


def test_exception_in_datagram_received_is_reported(
    loop: Loop, run: Run, reported: list[dict[str, Any]]
) -> None:
    class Raising(Inbox):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"1":
                raise ZeroDivisionError

    async def main() -> None:
        transport, inbox, address = await bound(loop, Raising)
        with udp_socket() as sock:
            for number in range(4):
                sock.sendto(b"%d" % number, address)
        await until(lambda: len(inbox.got) == 4)
        assert inbox.texts == [b"0", b"1", b"2", b"3"]
        assert not inbox.lost
        await closed(transport)

    run(main)
    (context,) = reported
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["message"].startswith("Exception in callback ")


def test_interrupt_in_datagram_received_loses_nothing(loop: Loop) -> None:
    class Interrupted(Inbox):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"1":
                raise KeyboardInterrupt

    transport, inbox, address = loop.run_until_complete(bound(loop, Interrupted))
    with udp_socket() as sock:
        for number in range(4):
            sock.sendto(b"%d" % number, address)
    with pytest.raises(KeyboardInterrupt):
        run_until(loop, lambda: len(inbox.got) == 4)
    assert inbox.texts == [b"0", b"1"]
    run_until(loop, lambda: len(inbox.got) == 4)
    assert inbox.texts == [b"0", b"1", b"2", b"3"]
    loop.run_until_complete(closed(transport))


def test_pausing_in_the_middle_of_a_batch(loop: Loop, run: Run) -> None:
    class Pausing(Inbox):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"1":
                self.transport.pause_reading()  # type: ignore[attr-defined]

    async def main() -> None:
        transport, inbox, address = await bound(loop, Pausing)
        with udp_socket() as sock:
            for number in range(4):
                sock.sendto(b"%d" % number, address)
            await until(lambda: len(inbox.got) == 2)
            await asyncio.sleep(0.02)
            assert inbox.texts == [b"0", b"1"]
            assert not transport.is_reading()
            transport.resume_reading()
            assert transport.is_reading()
            sock.sendto(b"4", address)
            await until(lambda: len(inbox.got) == 5)
        assert inbox.texts == [b"0", b"1", b"2", b"3", b"4"]
        await closed(transport)

    run(main)


def test_protocol_can_be_replaced_in_the_middle_of_a_batch(loop: Loop, run: Run) -> None:
    second = Inbox()

    class First(Inbox):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.set_protocol(second)

    async def main() -> None:
        transport, first, address = await bound(loop, First)
        with udp_socket() as sock:
            for number in range(3):
                sock.sendto(b"%d" % number, address)
        await until(lambda: len(second.got) == 2)
        assert first.texts == [b"0"]
        assert second.texts == [b"1", b"2"]
        assert transport.get_protocol() is second
        await closed(transport)
        assert (first.lost, second.lost) == ([], [None])

    run(main)


def test_dropped_transport_warns_and_closes(loop: Loop, run: Run) -> None:
    async def main() -> None:
        before = open_fds()
        transport, inbox, _ = await bound(loop)
        transport.pause_reading()
        dropped = weakref.ref(transport)
        inbox.transport = None
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            del transport, inbox
            gc.collect()
        assert dropped() is None
        assert open_fds() == before

    run(main)


def test_endpoint_that_reads_is_kept_alive(loop: Loop, run: Run) -> None:
    async def main() -> None:
        transport, inbox, address = await bound(loop)
        inbox.transport = None
        known = weakref.ref(transport)
        del transport
        gc.collect()
        with udp_socket() as sock:
            sock.sendto(b"x", address)
            await until(lambda: inbox.got)
        await closed(known())

    run(main)

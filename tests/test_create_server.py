"""create_server with every argument but ssl, and connect_accepted_socket."""

import asyncio
import errno
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    HOST,
    Recorder,
    is_stock,
    listening_socket,
    needs_ipv6,
    open_fds,
    skip_if_asyncio_errs,
    tcp_pair,
    until,
    unused_port,
)

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


def addresses(server: asyncio.Server) -> list[Any]:
    return sorted(sock.getsockname() for sock in server.sockets)


async def visit(address: tuple[str, int]) -> bytes:
    """Connect, send a line, and return what comes back."""
    reader, writer = await asyncio.open_connection(*address[:2])
    writer.write(b"hello")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


# --- binding -----------------------------------------------------------------------------------


def test_host_and_port(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, HOST, 0)
        assert isinstance(server, asyncio.AbstractServer)
        ((host, port),) = addresses(server)
        assert host == HOST
        assert port > 0
        assert await visit((host, port)) == b"hello"
        server.close()

    run(main)


def test_several_hosts(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        server = await loop.create_server(Echo, ["127.0.0.2", "127.0.0.3"], port)
        assert addresses(server) == [("127.0.0.2", port), ("127.0.0.3", port)]
        for address in addresses(server):
            assert await visit(address) == b"hello"
        server.close()

    run(main)


def test_hosts_may_be_any_iterable(loop: Loop, run: Run) -> None:
    async def main() -> None:
        hosts = (host for host in ("127.0.0.2", "127.0.0.3"))
        server = await loop.create_server(Echo, hosts, 0)  # type: ignore[arg-type]
        assert [host for host, _ in addresses(server)] == ["127.0.0.2", "127.0.0.3"]
        server.close()

    run(main)


def test_same_host_twice_is_bound_once(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        server = await loop.create_server(Echo, [HOST, HOST, "localhost"], port)
        assert addresses(server)[-1] == (HOST, port)
        assert len([a for a in addresses(server) if a[0] == HOST]) == 1
        server.close()

    run(main)


@pytest.mark.parametrize("host", [None, ""])
def test_no_host_is_every_interface(loop: Loop, run: Run, host: str | None) -> None:
    async def main() -> None:
        port = unused_port()
        server = await loop.create_server(Echo, host, port)
        assert ("0.0.0.0", port) in addresses(server)
        assert await visit((HOST, port)) == b"hello"
        server.close()

    run(main)


@needs_ipv6
def test_no_host_binds_both_families_side_by_side(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        server = await loop.create_server(Echo, None, port)
        assert addresses(server) == [("0.0.0.0", port), ("::", port, 0, 0)]
        for sock in server.sockets:
            if sock.family == socket.AF_INET6:
                assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) != 0
        assert await visit(("::1", port)) == b"hello"
        assert await visit((HOST, port)) == b"hello"
        server.close()

    run(main)


def test_family(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, None, 0, family=socket.AF_INET)
        (sock,) = server.sockets
        assert sock.family == socket.AF_INET
        server.close()

    run(main)


def test_resolver_gets_the_arguments(loop: Loop, run: Run) -> None:
    calls: list[Any] = []

    async def getaddrinfo(host: Any, port: Any, **kwargs: Any) -> list[Any]:
        calls.append((host, port, kwargs))
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (HOST, port))]

    async def main() -> None:
        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
        server = await loop.create_server(
            Echo, "name.invalid", 0, family=socket.AF_INET, flags=socket.AI_NUMERICSERV
        )
        server.close()
        assert calls == [
            (
                "name.invalid",
                0,
                {
                    "family": socket.AF_INET,
                    "type": socket.SOCK_STREAM,
                    "proto": 0,
                    "flags": socket.AI_NUMERICSERV,
                },
            )
        ]

    run(main)


def test_flags_are_passive_by_default(loop: Loop, run: Run) -> None:
    seen: list[Any] = []

    async def getaddrinfo(host: Any, port: Any, **kwargs: Any) -> list[Any]:
        seen.append(kwargs["flags"])
        return []

    async def main() -> None:
        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
        with pytest.raises(OSError, match=r"^getaddrinfo\('name\.invalid'\) returned empty list$"):
            await loop.create_server(Echo, "name.invalid", 0)
        assert seen == [socket.AI_PASSIVE]

    run(main)


# --- options -----------------------------------------------------------------------------------


def option(server: asyncio.Server, name: int) -> int:
    return int(server.sockets[0].getsockopt(socket.SOL_SOCKET, name))


@pytest.mark.parametrize(("given", "expected"), [(None, 1), (True, 1), (False, 0)])
def test_reuse_address(loop: Loop, run: Run, given: bool | None, expected: int) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, HOST, 0, reuse_address=given)
        assert option(server, socket.SO_REUSEADDR) == expected
        server.close()

    run(main)


def test_reuse_port(loop: Loop, run: Run) -> None:
    async def main() -> None:
        first = await loop.create_server(Echo, HOST, 0, reuse_port=True)
        assert option(first, socket.SO_REUSEPORT) == 1
        second = await loop.create_server(Echo, HOST, addresses(first)[0][1], reuse_port=True)
        assert addresses(first) == addresses(second)
        first.close()
        second.close()
        third = await loop.create_server(Echo, HOST, 0)
        assert option(third, socket.SO_REUSEPORT) == 0
        third.close()

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="keep_alive is new in 3.13")
@pytest.mark.parametrize(("given", "expected"), [(None, 0), (True, 1), (False, 0)])
def test_keep_alive(loop: Loop, run: Run, given: bool | None, expected: int) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, HOST, 0, keep_alive=given)
        assert option(server, socket.SO_KEEPALIVE) == expected
        server.close()

    run(main)


def test_backlog_is_given_to_listen(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, HOST, 0, backlog=7)
        port = addresses(server)[0][1]
        with open("/proc/net/tcp") as table:
            rows = [line.split() for line in table]
        assert any(row[1] == f"0100007F:{port:04X}" and row[3] == "0A" for row in rows)
        # As many as may wait: what comes beyond that the kernel may reset.
        answers = await asyncio.gather(*(visit((HOST, port)) for _ in range(7)))
        assert answers == [b"hello"] * 7
        server.close()

    run(main)


def test_start_serving_false(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, HOST, 0, start_serving=False)
        assert not server.is_serving()
        address = addresses(server)[0]
        # Bound, but it does not listen.
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        await server.start_serving()
        assert server.is_serving()
        assert await visit(address) == b"hello"
        server.close()

    run(main)


# --- sock --------------------------------------------------------------------------------------


def test_sock(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            sock.bind((HOST, 0))
            server = await loop.create_server(Echo, sock=sock)
            assert addresses(server) == [sock.getsockname()]
            assert server.sockets[0].fileno() == sock.fileno()
            assert sock.gettimeout() == 0
            assert await visit(sock.getsockname()) == b"hello"
            server.close()
            assert sock.fileno() == -1

    run(main)


def test_sock_that_listens_already(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket() as sock:
            early = asyncio.ensure_future(visit(sock.getsockname()))
            await asyncio.sleep(0.01)
            server = await loop.create_server(Echo, sock=sock)
            assert await early == b"hello"
            server.close()

    run(main)


def test_sock_and_host_conflict(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            for host, port in ((HOST, 0), (None, 0), (HOST, None)):
                with pytest.raises(
                    ValueError,
                    match=r"^host/port and sock can not be specified at the same time$",
                ):
                    await loop.create_server(Echo, host, port, sock=sock)  # type: ignore[call-overload]
            assert sock.fileno() != -1
            assert sock.gettimeout() is None

    run(main)


def test_sock_must_be_a_stream_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError) as caught:
                await loop.create_server(Echo, sock=sock)
            assert str(caught.value) == f"A Stream Socket was expected, got {sock!r}"

    run(main)


# --- errors ------------------------------------------------------------------------------------


def test_neither_address_nor_sock(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"^Neither host/port nor sock were specified$"):
            await loop.create_server(Echo)  # type: ignore[call-overload]

    run(main)


def test_address_in_use_names_the_address(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with listening_socket() as taken:
            address = taken.getsockname()
            with pytest.raises(OSError) as caught:
                await loop.create_server(Echo, *address)
            assert caught.value.errno == errno.EADDRINUSE
            reason = "address already in use"
            if sys.version_info >= (3, 13):
                reason = f"[errno {errno.EADDRINUSE}] {reason}"
            assert caught.value.strerror == (
                f"error while attempting to bind on address {address!r}: {reason}"
            )

    run(main)


def test_address_that_is_not_ours(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OSError) as caught:
            await loop.create_server(Echo, "192.0.2.1", 0)
        if sys.version_info < (3, 13):
            assert caught.value.errno == errno.EADDRNOTAVAIL
            assert caught.value.strerror == (
                "error while attempting to bind on address ('192.0.2.1', 0): "
                "cannot assign requested address"
            )
        else:
            assert caught.value.errno is None
            assert str(caught.value) == ("could not bind on any address out of [('192.0.2.1', 0)]")

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="all or nothing until 3.12")
def test_addresses_that_are_not_ours_are_passed_over(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = await loop.create_server(Echo, ["192.0.2.1", HOST], 0)
        assert [host for host, _ in addresses(server)] == [HOST]
        server.close()

    run(main)


def test_failures_leave_no_descriptors(loop: Loop, run: Run) -> None:
    async def fail_often() -> None:
        with listening_socket() as taken:
            port = taken.getsockname()[1]
            for _ in range(20):
                with pytest.raises(OSError):
                    await loop.create_server(Echo, ["127.0.0.2", HOST], port)

    run(fail_often)
    before = open_fds()
    run(fail_often)
    assert open_fds() == before


def test_ssl_must_be_a_context(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"^ssl argument must be an SSLContext or None$"):
            await loop.create_server(Echo, HOST, 0, ssl=True)  # type: ignore[call-overload]

    run(main)


@pytest.mark.parametrize("argument", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_tls_arguments_without_tls(loop: Loop, run: Run, argument: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=rf"^{argument} is only meaningful with ssl$"):
            await loop.create_server(Echo, HOST, 0, **{argument: 1})

    run(main)


# --- accepting ---------------------------------------------------------------------------------


def test_each_connection_gets_a_protocol_of_its_own(loop: Loop, run: Run) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async def main() -> None:
        server = await loop.create_server(factory, HOST, 0)
        address = addresses(server)[0]
        socks = [socket.create_connection(address) for _ in range(5)]
        await until(lambda: len(made) == 5 and all(p.events for p in made))
        for sock, data in zip(socks, b"abcde", strict=True):
            sock.sendall(bytes([data]))
        await until(lambda: all(protocol.data for protocol in made))
        assert sorted(bytes(protocol.data) for protocol in made) == [b"a", b"b", b"c", b"d", b"e"]
        assert {p.transport.get_extra_info("peername") for p in made} == {
            sock.getsockname() for sock in socks
        }
        for sock in socks:
            sock.close()
        await until(lambda: all(protocol.lost for protocol in made))
        assert all(p.events == ["made", "data", "eof", "lost"] for p in made)
        server.close()

    run(main)


def test_accepted_transport_knows_its_addresses(loop: Loop, run: Run) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async def main() -> None:
        server = await loop.create_server(factory, HOST, 0)
        address = addresses(server)[0]
        with socket.create_connection(address) as sock:
            await until(lambda: made and made[0].events)
            transport = made[0].transport
            assert transport.get_extra_info("sockname") == address
            assert transport.get_extra_info("peername") == sock.getsockname()
            inner = transport.get_extra_info("socket")
            assert inner.getsockname() == address
            assert inner.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        await until(lambda: made[0].lost)
        server.close()

    run(main)


def test_accepting_survives_running_out_of_descriptors(
    loop: Loop, run: Run, reported: list[dict[str, Any]]
) -> None:
    import resource

    async def main() -> None:
        server = await loop.create_server(Echo, HOST, 0)
        address = addresses(server)[0]
        with socket.socket() as client:
            client.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            spare = socket.socket()
            highest = spare.fileno()
            spare.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            try:
                client.connect_ex(address)
                await until(lambda: reported)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            context = reported[0]
            # asyncio reports it once for every place in the backlog.
            assert len(reported) == 1 or is_stock(loop)
            assert context["message"] == "socket.accept() out of system resource"
            assert context["exception"].errno == errno.EMFILE
            assert isinstance(context["socket"], asyncio.trsock.TransportSocket)
            assert context["socket"].getsockname() == address
            # It is tried again after a second.
            client.send(b"hello")
            received: list[bytes] = []

            def arrived() -> bool:
                try:
                    received.append(client.recv(10))
                except BlockingIOError:
                    return False
                return True

            await until(arrived)
            assert received == [b"hello"]
        server.close()

    run(main)


# --- connect_accepted_socket -------------------------------------------------------------------


def test_connect_accepted_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair(blocking=True) as (near, far):
            transport, protocol = await loop.connect_accepted_socket(Recorder, near)
            assert protocol.events == ["made"]
            assert protocol.transport is transport
            assert transport.get_extra_info("socket").fileno() == near.fileno()
            assert transport.get_extra_info("peername") == far.getsockname()
            far.sendall(b"data")
            await until(lambda: protocol.data == b"data")
            transport.write(b"answer")
            assert far.recv(10) == b"answer"
            transport.close()
            await until(lambda: protocol.lost)
            assert near.fileno() == -1

    run(main)


def test_connect_accepted_socket_must_be_a_stream_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError) as caught:
                await loop.connect_accepted_socket(Recorder, sock)
            assert str(caught.value) == f"A Stream Socket was expected, got {sock!r}"

    run(main)


@pytest.mark.parametrize("argument", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_connect_accepted_socket_tls_arguments(loop: Loop, run: Run, argument: str) -> None:
    async def main() -> None:
        with tcp_pair() as (near, _):
            with pytest.raises(ValueError, match=rf"^{argument} is only meaningful with ssl$"):
                await loop.connect_accepted_socket(Recorder, near, **{argument: 1})

    run(main)


def test_connect_accepted_socket_of_a_failing_factory(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(loop, "the socket is left open", until=(3, 14))

    def factory() -> asyncio.Protocol:
        raise LookupError("no protocol today")

    async def main() -> None:
        with tcp_pair() as (near, far):
            with pytest.raises(LookupError, match="no protocol today"):
                await loop.connect_accepted_socket(factory, near)
            assert near.fileno() == -1
            assert far.recv(1) == b""

    run(main)

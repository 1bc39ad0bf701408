"""create_connection with every argument but ssl: addresses, sockets, eyeballs, errors."""

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    HOST,
    Recorder,
    finish,
    info,
    listener,
    listening_socket,
    needs_ipv6,
    open_fds,
    resolve_to,
    skip_if_asyncio_errs,
    tcp_pair,
    until,
    unused_port,
)

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

STREAM = socket.SOCK_STREAM
TCP = socket.IPPROTO_TCP


# --- connecting --------------------------------------------------------------------------------


def test_returns_the_transport_and_the_protocol_after_connection_made(loop: Loop, run: Run) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async def main() -> None:
        async with listener() as (_, port):
            transport, protocol = await loop.create_connection(factory, HOST, port)
            assert made == [protocol]
            assert protocol.transport is transport
            assert protocol.events == ["made"]
            assert isinstance(transport, asyncio.Transport)
            assert transport.get_extra_info("peername") == (HOST, port)
            await finish(transport)

    run(main)


@pytest.mark.parametrize("host", [HOST, "localhost", b"127.0.0.1"])
@pytest.mark.parametrize("as_text", [False, True])
def test_forms_of_host_and_port(loop: Loop, run: Run, host: Any, as_text: bool) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            given = str(port) if as_text else port
            transport, _ = await loop.create_connection(Recorder, host, given)
            assert transport.get_extra_info("peername") == (HOST, port)
            await finish(transport)

    run(main)


def test_host_of_none_is_the_loopback(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            transport, _ = await loop.create_connection(Recorder, None, port, family=socket.AF_INET)
            assert transport.get_extra_info("peername") == (HOST, port)
            await finish(transport)

    run(main)


@needs_ipv6
def test_ipv6(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener("::1") as (_, port):
            transport, _ = await loop.create_connection(Recorder, "::1", port)
            assert transport.get_extra_info("peername") == ("::1", port, 0, 0)
            assert transport.get_extra_info("socket").family == socket.AF_INET6
            await finish(transport)

    run(main)


def test_no_delay_is_set(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            transport, _ = await loop.create_connection(Recorder, HOST, port)
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(TCP, socket.TCP_NODELAY) != 0
            await finish(transport)

    run(main)


def test_resolver_gets_the_arguments(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            calls = resolve_to(loop, info(HOST, port))
            transport, _ = await loop.create_connection(
                Recorder,
                "name.invalid",
                port,
                family=socket.AF_INET,
                proto=TCP,
                flags=socket.AI_ADDRCONFIG,
            )
            await finish(transport)
            assert calls[0] == (
                "name.invalid", port, socket.AF_INET, STREAM, TCP, socket.AI_ADDRCONFIG,
            )  # fmt: skip

    run(main)


def test_address_literals_are_not_resolved(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            calls = resolve_to(loop)
            transport, _ = await loop.create_connection(Recorder, HOST, port)
            await finish(transport)
            assert calls == []

    run(main)


def test_next_address_is_tried_when_one_refuses(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            resolve_to(loop, info(HOST, unused_port()), info("127.0.0.2", port), info(HOST, port))
            transport, _ = await loop.create_connection(Recorder, "name.invalid", 1)
            assert transport.get_extra_info("peername") == (HOST, port)
            await finish(transport)

    run(main)


def test_families_that_do_not_fit_the_machine_are_passed_over(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            strange = (socket.AF_NETLINK, STREAM, TCP, "", (HOST, port))
            resolve_to(loop, strange, info(HOST, port))
            transport, _ = await loop.create_connection(Recorder, "name.invalid", 1)
            assert transport.get_extra_info("peername") == (HOST, port)
            await finish(transport)

    run(main)


@needs_ipv6
def test_family_restricts_a_literal(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            with pytest.raises(OSError):
                await loop.create_connection(Recorder, HOST, port, family=socket.AF_INET6)

    run(main)


# --- local_addr --------------------------------------------------------------------------------


def test_local_addr(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (sock, port):
            wanted = unused_port()
            transport, _ = await loop.create_connection(
                Recorder, HOST, port, local_addr=("127.0.0.3", wanted)
            )
            assert transport.get_extra_info("sockname") == ("127.0.0.3", wanted)
            await until(lambda: sock.accept()[1] == ("127.0.0.3", wanted))
            await finish(transport)

    run(main)


def test_local_addr_that_is_taken(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port), listener() as (_, taken):
            with pytest.raises(OSError) as caught:
                await loop.create_connection(Recorder, HOST, port, local_addr=(HOST, taken))
            assert caught.value.errno == errno.EADDRINUSE
            reason = "address already in use"
            if sys.version_info >= (3, 13):
                reason = f"[errno {errno.EADDRINUSE}] {reason}"
            assert caught.value.strerror == (
                f"error while attempting to bind on address ('{HOST}', {taken}): {reason}"
            )

    run(main)


@needs_ipv6
def test_local_addr_of_another_family(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            with pytest.raises(
                OSError, match=r"^no matching local address with family=.*2.* found$"
            ):
                await loop.create_connection(Recorder, HOST, port, local_addr=("::1", 0))

    run(main)


# --- sock --------------------------------------------------------------------------------------


def test_sock_is_used_as_it_is(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair(blocking=True) as (near, far):
            fd = near.fileno()
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            assert transport.get_extra_info("socket").fileno() == fd
            assert near.gettimeout() == 0
            far.sendall(b"data")
            await until(lambda: protocol.data == b"data")
            await finish(transport)

    run(main)


def test_sock_may_be_of_another_family(loop: Loop, run: Run) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            reader, writer = await asyncio.open_connection(sock=near)
            far.send(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert writer.get_extra_info("socket").family == socket.AF_UNIX
            assert writer.get_extra_info("peername") == ""
            writer.close()
            await writer.wait_closed()

    run(main)


def test_sock_is_closed_with_the_transport(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, _):
            transport, _ = await loop.create_connection(Recorder, sock=near)
            await finish(transport)
            assert near.fileno() == -1

    run(main)


def test_sock_and_host_conflict_before_the_socket_is_touched(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair(blocking=True) as (near, _):
            for host, port in ((HOST, 80), (None, 80), (HOST, None)):
                with pytest.raises(
                    ValueError,
                    match=r"^host/port and sock can not be specified at the same time$",
                ):
                    await loop.create_connection(Recorder, host, port, sock=near)  # type: ignore[call-overload]
            assert near.fileno() != -1
            assert near.gettimeout() is None

    run(main)


def test_sock_must_be_a_stream_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError) as caught:
                await loop.create_connection(Recorder, sock=sock)
            assert str(caught.value) == f"A Stream Socket was expected, got {sock!r}"
            assert sock.fileno() != -1

    run(main)


def test_sock_of_another_transport_is_refused(loop: Loop, run: Run) -> None:
    skip_if_asyncio_errs(loop, "a second transport takes the socket", until=(3, 12))

    async def main() -> None:
        with tcp_pair() as (near, far):
            transport, _ = await loop.create_connection(Recorder, sock=near)
            with pytest.raises(
                RuntimeError, match=r"^File descriptor <socket.* is used by transport <.*>$"
            ):
                await loop.create_connection(Recorder, sock=near)
            far.close()
            await finish(transport)


def test_neither_address_nor_sock(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(
            ValueError, match=r"^host and port was not specified and no sock specified$"
        ):
            await loop.create_connection(Recorder)  # type: ignore[call-overload]

    run(main)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("server_hostname", "name"), ("ssl_handshake_timeout", 1), ("ssl_shutdown_timeout", 1)],
)
def test_tls_arguments_without_tls(loop: Loop, run: Run, argument: str, value: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=rf"^{argument} is only meaningful with ssl$"):
            await loop.create_connection(Recorder, HOST, 1, **{argument: value})

    run(main)


# --- errors ------------------------------------------------------------------------------------


def test_refused(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        with pytest.raises(ConnectionRefusedError) as caught:
            await loop.create_connection(Recorder, HOST, port)
        assert caught.value.errno == errno.ECONNREFUSED
        assert caught.value.strerror == f"Connect call failed ('{HOST}', {port})"

    run(main)


def test_errors_that_read_alike_become_one(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        resolve_to(loop, info(HOST, port), info(HOST, port))
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, "name.invalid", port)

    run(main)


def test_errors_that_differ_are_listed(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        resolve_to(loop, info(HOST, port), info("127.0.0.2", port))
        with pytest.raises(OSError) as caught:
            await loop.create_connection(Recorder, "name.invalid", port)
        assert type(caught.value) is OSError
        assert str(caught.value) == (
            "Multiple exceptions: "
            f"[Errno 111] Connect call failed ('{HOST}', {port}), "
            f"[Errno 111] Connect call failed ('127.0.0.2', {port})"
        )

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="all_errors is new in 3.12")
def test_all_errors(loop: Loop, run: Run) -> None:
    async def main() -> None:
        port = unused_port()
        resolve_to(loop, info(HOST, port), info("127.0.0.2", port))
        with pytest.raises(ExceptionGroup) as caught:
            await loop.create_connection(Recorder, "name.invalid", port, all_errors=True)
        assert caught.value.message == "create_connection failed"
        assert [type(exc) for exc in caught.value.exceptions] == [ConnectionRefusedError] * 2
        assert [str(exc) for exc in caught.value.exceptions] == [
            f"[Errno 111] Connect call failed ('{host}', {port})" for host in (HOST, "127.0.0.2")
        ]
        resolve_to(loop, info(HOST, port))
        with pytest.raises(ExceptionGroup) as caught:
            await loop.create_connection(Recorder, "name.invalid", port, all_errors=True)
        assert len(caught.value.exceptions) == 1

    run(main)


def test_resolver_that_finds_nothing(loop: Loop, run: Run) -> None:
    async def main() -> None:
        resolve_to(loop)
        with pytest.raises(OSError, match=r"^getaddrinfo\(\) returned empty list$"):
            await loop.create_connection(Recorder, "name.invalid", 80)
        with pytest.raises(OSError, match=r"^getaddrinfo\(\) returned empty list$"):
            await loop.create_connection(Recorder, HOST, 80, local_addr=("name.invalid", 0))

    run(main)


def test_resolver_error_is_passed_on(loop: Loop, run: Run) -> None:
    async def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    async def main() -> None:
        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
        with pytest.raises(socket.gaierror, match="no such name"):
            await loop.create_connection(Recorder, "name.invalid", 80)

    run(main)


def test_factory_that_fails(loop: Loop, run: Run) -> None:
    def factory() -> asyncio.Protocol:
        raise LookupError("no protocol today")

    async def main() -> None:
        async with listener() as (sock, port):
            with pytest.raises(LookupError, match="no protocol today"):
                await loop.create_connection(factory, HOST, port)
            accepted: list[socket.socket] = []
            await until(lambda: accepted or accepted.append(sock.accept()[0]))
            accepted[0].close()

    run(main)


def test_failures_leave_no_descriptors(loop: Loop, run: Run) -> None:
    async def fail_often() -> None:
        resolve_to(loop, info(HOST, unused_port()), info("127.0.0.2", unused_port()))
        for _ in range(20):
            with pytest.raises(OSError):
                await loop.create_connection(Recorder, "name.invalid", 1)
            with pytest.raises(OSError):
                await loop.create_connection(
                    Recorder, "name.invalid", 1, local_addr=("192.0.2.1", 0)
                )

    run(fail_often)
    before = open_fds()
    run(fail_often)
    assert open_fds() == before


def test_cancelled_while_connecting(loop: Loop, run: Run) -> None:
    async def main() -> None:
        # The backlog is full, so that the next connection is not answered.
        with listening_socket(backlog=0) as sock, contextlib.ExitStack() as stack:
            address = sock.getsockname()
            while True:
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(address)
                await asyncio.sleep(0.01)
                try:
                    filler.getpeername()
                except OSError:
                    break
            before = open_fds()
            task = loop.create_task(loop.create_connection(Recorder, *address))
            await asyncio.sleep(0.02)
            assert not task.done()
            assert open_fds() == before + 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert open_fds() == before

    run(main)


def test_many_connections_at_once(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0, backlog=300)
        address = server.sockets[0].getsockname()
        pairs = await asyncio.gather(
            *(loop.create_connection(Recorder, *address) for _ in range(200))
        )
        assert len({transport.get_extra_info("sockname") for transport, _ in pairs}) == 200
        for transport, _ in pairs:
            transport.close()
        server.close()
        await until(lambda: all(protocol.lost for _, protocol in pairs))

    run(main)

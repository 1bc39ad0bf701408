"""create_connection: the order and the race of a host's addresses (RFC 8305)."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import HOST, Recorder, finish, has_ipv6, info, listener, open_fds, resolve_to

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


def connects(loop: Loop, script: dict[str, float | OSError]) -> list[str]:
    """Let sock_connect to a host take script[host] seconds, or fail; hosts are noted in order."""
    tried: list[str] = []
    real = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: Any) -> None:
        tried.append(address[0])
        step = script[address[0]]
        if isinstance(step, OSError):
            raise step
        await asyncio.sleep(step)
        await real(sock, address)

    loop.sock_connect = sock_connect  # type: ignore[method-assign]
    return tried


def test_happy_eyeballs_overtake_a_slow_address(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            tried = connects(loop, {"127.0.0.2": 60, HOST: 0, "127.0.0.3": 60})
            resolve_to(loop, info("127.0.0.2", port), info(HOST, port), info("127.0.0.3", port))
            started = time.monotonic()
            transport, _ = await loop.create_connection(
                Recorder, "name.invalid", port, happy_eyeballs_delay=0.05
            )
            assert 0.05 <= time.monotonic() - started < 5
            assert transport.get_extra_info("peername") == (HOST, port)
            assert tried == ["127.0.0.2", HOST]
            await finish(transport)

    run(main)


def test_happy_eyeballs_do_not_wait_after_a_failure(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            tried = connects(loop, {"127.0.0.2": OSError("no"), HOST: 0})
            resolve_to(loop, info("127.0.0.2", port), info(HOST, port))
            started = time.monotonic()
            transport, _ = await loop.create_connection(
                Recorder, "name.invalid", port, happy_eyeballs_delay=60
            )
            assert time.monotonic() - started < 5
            assert tried == ["127.0.0.2", HOST]
            await finish(transport)

    run(main)


def test_happy_eyeballs_close_the_losers(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            connects(loop, {"127.0.0.2": 60, HOST: 0})
            resolve_to(loop, info("127.0.0.2", port), info(HOST, port))
            before = open_fds()
            transport, _ = await loop.create_connection(
                Recorder, "name.invalid", port, happy_eyeballs_delay=0.01
            )
            assert open_fds() == before + 1
            await finish(transport)
            assert open_fds() == before

    run(main)


def test_happy_eyeballs_that_all_fail(loop: Loop, run: Run) -> None:
    async def main() -> None:
        connects(loop, {"127.0.0.2": OSError(1, "first"), HOST: OSError(2, "second")})
        resolve_to(loop, info("127.0.0.2", 1), info(HOST, 1))
        with pytest.raises(OSError) as caught:
            await loop.create_connection(Recorder, "name.invalid", 1, happy_eyeballs_delay=0.01)
        assert str(caught.value) == "Multiple exceptions: [Errno 1] first, [Errno 2] second"

    run(main)


SIX = ["2001:db8::1", "2001:db8::2", "2001:db8::3"]
FOUR = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, SIX + FOUR),
        ({"interleave": 0}, SIX + FOUR),
        ({"interleave": 1}, [SIX[0], FOUR[0], SIX[1], FOUR[1], SIX[2], FOUR[2]]),
        ({"interleave": 2}, [SIX[0], SIX[1], FOUR[0], SIX[2], FOUR[1], FOUR[2]]),
        (
            {"happy_eyeballs_delay": 0.5},
            [SIX[0], FOUR[0], SIX[1], FOUR[1], SIX[2], FOUR[2]],
        ),
        ({"happy_eyeballs_delay": 0.5, "interleave": 0}, SIX + FOUR),
    ],
)
def test_order_of_the_families(
    loop: Loop, run: Run, arguments: dict[str, Any], expected: list[str]
) -> None:
    async def main() -> None:
        # No packet leaves: sock_connect is the test's own.
        tried = connects(loop, {host: OSError("no") for host in SIX + FOUR})
        resolve_to(loop, *(info(host, 9) for host in SIX + FOUR))
        with pytest.raises(OSError, match="no"):
            await loop.create_connection(Recorder, "name.invalid", 9, **arguments)
        assert tried == expected

    run(main)


def test_assigned_sock_connect_is_used(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with listener() as (_, port):
            tried = connects(loop, {HOST: 0})
            transport, _ = await loop.create_connection(Recorder, HOST, port)
            assert tried == [HOST]
            await finish(transport)

    run(main)

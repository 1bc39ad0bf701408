"""Trap 11: no path that a user can reach may panic, whatever the arguments are."""

import asyncio
import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
from support import HOST, Recorder, connected, is_stock, tcp_pair, turns

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


WRONG: dict[str, Callable[[Any], Any]] = {
    "call_later nan": lambda loop: loop.call_later(math.nan, int).cancel(),
    "call_at nan": lambda loop: loop.call_at(math.nan, int).cancel(),
    "call_later of a huge int": lambda loop: loop.call_later(10**400, int).cancel(),
    "call_at of a huge int": lambda loop: loop.call_at(-(10**400), int).cancel(),
    "call_at -inf": lambda loop: loop.call_at(-math.inf, int),
    "call_soon with a bad context": lambda loop: loop.call_soon(int, context="text").cancel(),
    "add_reader of a huge number": lambda loop: loop.add_reader(2**40, int),
    "add_writer of a huge number": lambda loop: loop.add_writer(2**70, int),
    "remove_reader of a huge number": lambda loop: loop.remove_reader(2**70),
    "run_until_complete of nothing": lambda loop: loop.run_until_complete(None),
    "set_debug of an object": lambda loop: (loop.set_debug(object()), loop.set_debug(False)),
    "slow_callback_duration of text": lambda loop: setattr(
        loop, "slow_callback_duration", "a while"
    ),
    "set_exception_handler of text": lambda loop: loop.set_exception_handler("text"),
    "call_exception_handler of text": lambda loop: loop.call_exception_handler("text"),
    "default_exception_handler of text": lambda loop: loop.default_exception_handler("text"),
    "create_task of a generator": lambda loop: loop.create_task(i for i in ()),
    "create_task of a class": lambda loop: loop.create_task(int),
    "add_signal_handler of a huge number": lambda loop: loop.add_signal_handler(2**70, int),
    "create_future with an argument": lambda loop: loop.create_future(1),
    "delattr": lambda loop: delattr(loop, "call_soon"),
}


@pytest.mark.parametrize("name", WRONG)
def test_trap_11_no_panic_on_wrong_arguments(
    loop: Loop, reported: list[dict[str, Any]], name: str
) -> None:
    try:
        WRONG[name](loop)
    except Exception:
        # A Rust panic would be a BaseException.
        pass
    if is_stock(loop):
        # asyncio itself does not survive all of this.
        return
    loop.slow_callback_duration = 0.1
    assert loop.run_until_complete(asyncio.sleep(0, "works")) == "works"


WRONG_AWAITED: dict[str, Callable[[Any, Any], Any]] = {
    "sock_recv -1": lambda loop, sock: loop.sock_recv(sock, -1),
    "sock_recv huge": lambda loop, sock: loop.sock_recv(sock, 2**62),
    "sock_recv too huge": lambda loop, sock: loop.sock_recv(sock, 2**70),
    "sock_recv text": lambda loop, sock: loop.sock_recv(sock, "text"),
    "sock_recv of no socket": lambda loop, sock: loop.sock_recv(object(), 10),
    "sock_recv of None": lambda loop, sock: loop.sock_recv(None, 10),
    "sock_recv_into bytes": lambda loop, sock: loop.sock_recv_into(sock, b"read only"),
    "sock_recv_into None": lambda loop, sock: loop.sock_recv_into(sock, None),
    "sock_recvfrom -1": lambda loop, sock: loop.sock_recvfrom(sock, -1),
    "sock_recvfrom_into too much": lambda loop, sock: loop.sock_recvfrom_into(
        sock, bytearray(1), 100
    ),
    "sock_sendall text": lambda loop, sock: loop.sock_sendall(sock, "text"),
    "sock_sendall None": lambda loop, sock: loop.sock_sendall(sock, None),
    "sock_sendto a number": lambda loop, sock: loop.sock_sendto(sock, b"x", 42),
    "sock_accept of no socket": lambda loop, sock: loop.sock_accept(object()),
    "sock_connect to a number": lambda loop, sock: loop.sock_connect(sock, 42),
    "sock_connect to half an address": lambda loop, sock: loop.sock_connect(sock, (HOST,)),
    "sock_connect to a strange port": lambda loop, sock: loop.sock_connect(sock, (HOST, "x y")),
    "create_connection of no factory": lambda loop, sock: loop.create_connection(None, sock=sock),
    "create_connection of no protocol": lambda loop, sock: loop.create_connection(
        lambda: None, sock=sock
    ),
    "create_connection with a number": lambda loop, sock: loop.create_connection(Recorder, sock=42),
    "create_server backlog": lambda loop, sock: loop.create_server(
        Recorder, HOST, 0, backlog=2**70
    ),
    "create_server host": lambda loop, sock: loop.create_server(Recorder, 42, 0),
    "getaddrinfo": lambda loop, sock: loop.getaddrinfo(object(), object()),
    "getnameinfo": lambda loop, sock: loop.getnameinfo(None),
}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", WRONG_AWAITED)
def test_trap_11_no_panic_on_wrong_awaited_arguments(
    loop: Loop, run: Run, reported: list[dict[str, Any]], name: str
) -> None:
    async def main() -> str:
        with tcp_pair() as (near, far):
            far.send(b"hello")
            try:
                async with asyncio.timeout(0.2):
                    result = await WRONG_AWAITED[name](loop, near)
            except Exception:
                pass
            else:
                if isinstance(result, asyncio.AbstractServer):
                    result.close()
                elif isinstance(result, tuple) and isinstance(result[0], asyncio.Transport):
                    result[0].abort()
            await turns(3)
        return "works"

    assert run(main) == "works"
    gc.collect()
    for context in reported:
        assert isinstance(context["exception"], Exception)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda transport: transport.set_write_buffer_limits(high=2**70),
        lambda transport: transport.set_write_buffer_limits(high="text"),
        lambda transport: transport.set_write_buffer_limits(low=-(2**70)),
        lambda transport: transport.set_protocol(None),
        lambda transport: transport.get_extra_info(42),
        lambda transport: transport.get_extra_info([]),
        lambda transport: transport.write(memoryview(bytes(12)).cast("B", (3, 4))),
        lambda transport: transport.write(memoryview(bytes(12))[::2]),
        lambda transport: transport.writelines([None]),
        lambda transport: transport.writelines(transport),
        lambda transport: transport.write(),
        lambda transport: delattr(transport, "write"),
        lambda transport: type(transport)(),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_trap_11_no_panic_on_a_misused_transport(
    run: Run, reported: list[dict[str, Any]], misuse: Callable[[Any], object]
) -> None:
    async def main() -> None:
        async with connected() as (transport, _, peer):
            try:
                misuse(transport)
            except Exception:
                pass
            peer.send(b"hello")
            await asyncio.sleep(0.005)

    run(main)
    for context in reported:
        assert isinstance(context["exception"], Exception)

"""getaddrinfo and getnameinfo, and programs that bring a resolver of their own."""

import asyncio
import functools
import ipaddress
import logging
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import HOST, LoopFactory, Recorder, listening_socket

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

STREAM = socket.SOCK_STREAM


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the type and arguments of what it raises."""
    try:
        return call()
    except Exception as exc:
        return type(exc), exc.args


QUESTIONS: list[tuple[tuple[Any, ...], dict[str, int]]] = [
    ((HOST, 80), {}),
    ((HOST, 80), {"type": STREAM}),
    ((HOST, 80), {"type": socket.SOCK_DGRAM, "proto": socket.IPPROTO_UDP}),
    ((HOST, 80), {"family": socket.AF_INET, "type": STREAM}),
    ((HOST, 80), {"family": socket.AF_INET6, "type": STREAM}),
    ((HOST, None), {"type": STREAM}),
    ((HOST, "80"), {"type": STREAM}),
    ((HOST, "no such service"), {"type": STREAM}),
    ((HOST, 70000), {"type": STREAM}),
    ((HOST, -1), {"type": STREAM}),
    ((HOST, 80), {"type": STREAM, "flags": socket.AI_CANONNAME}),
    ((b"127.0.0.1", 80), {"type": STREAM}),
    (("127.1", 80), {"type": STREAM}),
    (("0x7f.1", 80), {"type": STREAM}),
    (("::1", 80), {"type": STREAM}),
    (("::1", 80), {"family": socket.AF_INET, "type": STREAM}),
    (("fe80::1%lo", 80), {"type": STREAM}),
    (("::ffff:127.0.0.1", 80), {"type": STREAM}),
    (("::1", 80), {"type": STREAM, "flags": socket.AI_NUMERICHOST}),
    (("256.0.0.1", 80), {"type": STREAM, "flags": socket.AI_NUMERICHOST}),
    (("name", 80), {"type": STREAM, "flags": socket.AI_NUMERICHOST}),
    ((None, 80), {"type": STREAM}),
    ((None, 80), {"type": STREAM, "flags": socket.AI_PASSIVE}),
    ((None, None), {"type": STREAM}),
    (("localhost", 80), {"type": STREAM}),
    ((HOST, 80), {"type": 77}),
    ((HOST, 80), {"family": 99}),
    (("", 80), {"type": STREAM}),
    (("a\0b", 80), {"type": STREAM}),
    ((1, 80), {"type": STREAM}),
]


@pytest.mark.parametrize(("args", "kwargs"), QUESTIONS, ids=[str(q) for q in QUESTIONS])
@pytest.mark.parametrize("debug", [False, True])
def test_getaddrinfo_answers_as_socket_getaddrinfo(
    loop: Loop, run: Run, args: tuple[Any, ...], kwargs: dict[str, int], debug: bool
) -> None:
    loop.set_debug(debug)

    async def main() -> Any:
        return await loop.getaddrinfo(*args, **kwargs)

    expected = outcome(lambda: socket.getaddrinfo(*args, **kwargs))
    assert outcome(lambda: run(main)) == expected


def test_any_address_is_answered_as_the_system_answers(loop: Loop, run: Run) -> None:
    numbers = random.Random(5)
    hosts = ["::", "::1", "::1.2.3.4", "::2:0", "1::", "0:0:1::", "::ffff:0:1.2.3.4", "1.2.3.04"]
    for _ in range(300):
        groups = [numbers.choice((0, 0, 1, 0xFFFF, numbers.getrandbits(16))) for _ in range(8)]
        hosts.append(":".join(f"{group:x}" for group in groups))
        hosts.append(str(ipaddress.IPv4Address(numbers.getrandbits(32))))

    async def main(*question: Any) -> Any:
        return await loop.getaddrinfo(*question)

    for host in hosts:
        question = (host, numbers.randrange(65536))
        expected = outcome(functools.partial(socket.getaddrinfo, *question))
        assert outcome(functools.partial(run, main, *question)) == expected, question


def test_getaddrinfo_does_not_block_the_loop(
    loop: Loop, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    threads: list[int] = []

    def slow(*args: Any, **kwargs: Any) -> list[Any]:
        threads.append(threading.get_ident())
        release.wait(10)
        return [("resolved", args)]

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def main() -> None:
        task = loop.create_task(loop.getaddrinfo("name.invalid", 80))
        await asyncio.sleep(0.02)
        assert not task.done()
        release.set()
        assert await task == [("resolved", ("name.invalid", 80, 0, 0, 0, 0))]
        assert threads != [threading.get_ident()]

    run(main)


def test_getnameinfo(loop: Loop, run: Run) -> None:
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV

    async def main() -> None:
        assert await loop.getnameinfo((HOST, 80), numeric) == (HOST, "80")
        assert await loop.getnameinfo((HOST, 80)) == socket.getnameinfo((HOST, 80), 0)
        assert await loop.getnameinfo(("::1", 80, 0, 0), numeric) == ("::1", "80")
        for wrong in (("name", 80), (HOST,), "text"):
            expected = outcome(lambda wrong=wrong: socket.getnameinfo(wrong, 0))
            with pytest.raises(expected[0]) as caught:
                await loop.getnameinfo(wrong)  # type: ignore[arg-type]
            assert caught.value.args == expected[1]

    run(main)


def test_getaddrinfo_is_logged_in_debug_mode(
    loop: Loop, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="asyncio")
    loop.set_debug(True)

    async def main() -> None:
        await loop.getaddrinfo("localhost", 80, type=STREAM)

    run(main)
    messages = [record.getMessage() for record in caplog.records]
    question = f"localhost:80, type={STREAM!r}"
    assert f"Get address info {question}" in messages
    assert any(message.startswith(f"Getting address info {question} took ") for message in messages)


# --- resolvers of the program's own ------------------------------------------------------------


def answer(port: int) -> list[Any]:
    return [(socket.AF_INET, STREAM, socket.IPPROTO_TCP, "", (HOST, port))]


def test_assigned_getaddrinfo_is_used(loop: Loop, run: Run) -> None:
    asked: list[Any] = []

    async def main() -> None:
        with listening_socket() as listener:
            port = listener.getsockname()[1]

            async def getaddrinfo(host: Any, wanted: Any, **kwargs: Any) -> list[Any]:
                asked.append((host, wanted))
                return answer(port)

            loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment]
            transport, _ = await loop.create_connection(Recorder, "database.invalid", 5432)
            assert transport.get_extra_info("peername") == (HOST, port)
            transport.abort()
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, ("cache.invalid", 6379))
                assert sock.getpeername() == (HOST, port)
            _, writer = await asyncio.open_connection("web.invalid", "http")
            writer.close()
            await writer.wait_closed()

    run(main)
    assert asked == [("database.invalid", 5432), ("cache.invalid", 6379), ("web.invalid", "http")]


def test_overridden_getaddrinfo_is_used(loop_factory: LoopFactory) -> None:
    probe = loop_factory()
    base: Any = type(probe)
    probe.close()

    class Resolving(base):
        asked: list[Any]
        port: int

        async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> list[Any]:
            self.asked.append(host)
            return answer(self.port)

    loop = Resolving()
    loop.asked = []

    async def main() -> None:
        with listening_socket() as listener:
            loop.port = listener.getsockname()[1]
            transport, _ = await loop.create_connection(Recorder, "database.invalid", 5432)
            transport.abort()
            loop.port = 0
            server = await loop.create_server(Recorder, "listen.invalid", 0)
            server.close()
            await asyncio.sleep(0)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert loop.asked == ["database.invalid", "listen.invalid"]


@pytest.mark.parametrize(
    "error",
    [
        OSError("my resolver failed"),
        socket.gaierror(socket.EAI_AGAIN, "try again"),
        LookupError("not even an OSError"),
    ],
    ids=["OSError", "gaierror", "LookupError"],
)
def test_errors_of_a_resolver_are_passed_on(loop: Loop, run: Run, error: Exception) -> None:
    async def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise error

    async def main() -> None:
        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
        for call in (
            loop.create_connection(Recorder, "name.invalid", 80),
            loop.create_server(Recorder, "name.invalid", 80),
        ):
            with pytest.raises(type(error)) as caught:
                await call
            assert caught.value is error

    run(main)


def test_port_that_does_not_exist(loop: Loop, run: Run) -> None:
    async def main() -> None:
        for port in (70000, -1):
            with pytest.raises(OverflowError, match="port must be 0-65535"):
                await loop.create_connection(Recorder, HOST, port)
            with pytest.raises(OverflowError, match="port must be 0-65535"):
                await loop.create_server(Recorder, HOST, port)

    run(main)


def test_default_executor_resolves(loop: Loop, run: Run) -> None:
    """Names are looked up in the executor that the program chose, as asyncio does."""
    import concurrent.futures

    class Counting(concurrent.futures.ThreadPoolExecutor):
        calls = 0

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            Counting.calls += 1
            return super().submit(*args, **kwargs)

    async def main() -> None:
        loop.set_default_executor(Counting(1))
        await loop.getaddrinfo("localhost", 80)

    run(main)
    assert Counting.calls == 1


LITERALS = [
    *("127.0.0.1", "0.0.0.0", "::1", "::", "0:0::1", "fe80::1", "::ffff:1.2.3.4"),
    *("2001:DB8::0001", "1.2.3", "01.2.3.4", "::1%lo"),
]


@pytest.mark.parametrize("host", LITERALS)
def test_addresses_are_answered_as_the_system_answers(loop: Loop, host: str) -> None:
    async def ask(*args: object, **keywords: int) -> object:
        try:
            return await loop.getaddrinfo(*args, **keywords)  # type: ignore[arg-type]
        except OSError as exc:
            return type(exc), str(exc)

    def ask_the_system(*args: object, **keywords: int) -> object:
        try:
            return socket.getaddrinfo(*args, **keywords)  # type: ignore[arg-type]
        except OSError as exc:
            return type(exc), str(exc)

    async def main() -> None:
        for port in (None, 0, 80, 65535, 65536, -1, "80", True):
            for family in (0, socket.AF_INET, socket.AF_INET6):
                for kind in (0, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, 5):
                    for proto in (0, socket.IPPROTO_TCP):
                        keywords = {"family": family, "type": kind, "proto": proto}
                        answer = await ask(host, port, **keywords)
                        expected = ask_the_system(host, port, **keywords)
                        assert repr(answer) == repr(expected), (port, keywords)

    loop.run_until_complete(main())

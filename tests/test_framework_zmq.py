"""pyzmq.asyncio: ZeroMQ's sockets over TCP on one loop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
import zmq.asyncio
from support import HOST, LoopFactory, run_on

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


class Sockets:
    """Makes the sockets of a test and connects them."""

    def __init__(self, context: zmq.asyncio.Context) -> None:
        self.context = context

    def bound(self, kind: int) -> tuple[zmq.asyncio.Socket, str]:
        """A socket on a port that the system chose, and its address."""
        made = self.context.socket(kind)
        made.bind(f"tcp://{HOST}:*")
        return made, made.getsockopt_string(zmq.LAST_ENDPOINT)

    def connected(self, kind: int, address: str) -> zmq.asyncio.Socket:
        made = self.context.socket(kind)
        made.connect(address)
        return made


@contextlib.contextmanager
def sockets() -> Iterator[Sockets]:
    context = zmq.asyncio.Context()
    try:
        yield Sockets(context)
    finally:
        context.destroy(linger=0)


def test_request_and_reply(run: Run) -> None:
    async def main() -> None:
        with sockets() as make:
            server, address = make.bound(zmq.REP)
            client = make.connected(zmq.REQ, address)

            async def answer() -> None:
                while True:
                    await server.send_multipart([b"re:", *await server.recv_multipart()])

            answering = asyncio.create_task(answer())
            for number in range(200):
                await client.send_multipart([b"%d" % number, b"x" * number])
                assert await client.recv_multipart() == [b"re:", b"%d" % number, b"x" * number]
            body = bytes(2_000_000)
            await client.send(body)
            assert await client.recv_multipart() == [b"re:", body]
            answering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answering

    run(main)


def test_publish_and_subscribe(run: Run) -> None:
    async def main() -> None:
        with sockets() as make:
            # XPUB tells who subscribes, so that nothing is published before anybody listens.
            publisher, address = make.bound(zmq.XPUB)
            everything = make.connected(zmq.SUB, address)
            everything.subscribe(b"")
            some = make.connected(zmq.SUB, address)
            some.subscribe(b"even")
            subscribed = {await publisher.recv(), await publisher.recv()}
            assert subscribed == {b"\x01", b"\x01even"}

            for number in range(500):
                topic = b"odd" if number % 2 else b"even"
                await publisher.send_multipart([topic, b"%d" % number])
            got = [int((await everything.recv_multipart())[1]) for _ in range(500)]
            assert got == list(range(500))
            got = [int((await some.recv_multipart())[1]) for _ in range(250)]
            assert got == list(range(0, 500, 2))

    run(main)


def test_push_and_pull_with_many_waiting(run: Run) -> None:
    async def main() -> None:
        with sockets() as make:
            pull, address = make.bound(zmq.PULL)
            waiting = [asyncio.ensure_future(pull.recv()) for _ in range(50)]
            push = make.connected(zmq.PUSH, address)
            for number in range(50):
                await push.send(b"%d" % number)
            assert await asyncio.gather(*waiting) == [b"%d" % number for number in range(50)]

    run(main)


def test_poll_and_cancel(run: Run) -> None:
    async def main() -> None:
        with sockets() as make:
            pull, address = make.bound(zmq.PULL)
            assert await pull.poll(20) == 0
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pull.recv(), 0.02)
            push = make.connected(zmq.PUSH, address)
            poller = zmq.asyncio.Poller()
            poller.register(pull, zmq.POLLIN)
            polling = asyncio.ensure_future(poller.poll(5000))
            await push.send(b"one")
            assert await polling == [(pull, zmq.POLLIN)]
            # A cancelled recv() has taken no message.
            assert await pull.recv() == b"one"

    run(main)


@pytest.mark.usefixtures("no_descriptor_left")
def test_one_loop_after_the_other(loop_factory: LoopFactory) -> None:
    """What pyzmq knows of a loop ends with it."""

    async def main() -> None:
        with sockets() as make:
            pull, address = make.bound(zmq.PULL)
            push = make.connected(zmq.PUSH, address)
            await push.send(b"one")
            assert await pull.recv() == b"one"

    for _ in range(3):
        with contextlib.closing(loop_factory()) as loop:
            run_on(loop, main)

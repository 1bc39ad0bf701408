"""Sockets between waits of sock_*: closed, replaced, watched otherwise or given to a transport."""

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from support import HOST, Recorder, is_stock, tcp_pair, until

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


async def waiting_recv(loop: Loop, sock: socket.socket, size: int = 100) -> asyncio.Task[bytes]:
    """A task that is known to wait for the socket."""
    task = asyncio.ensure_future(loop.sock_recv(sock, size))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def exchange(loop: Loop, near: socket.socket, far: socket.socket) -> None:
    """Wait for data on the socket, twice."""
    for data in (b"one", b"two"):
        task = await waiting_recv(loop, near)
        far.send(data)
        assert await asyncio.wait_for(task, 10) == data


def pair_at(fd: int) -> tuple[socket.socket, socket.socket]:
    """A socket pair whose first has a given number, which is free."""
    near, far = socket.socketpair()
    if near.fileno() != fd:
        # The lowest free number is taken first.
        far.close()
        near, far = near.dup(), near
        far.close()
        spare = []
        while True:
            near.close()
            near, far = socket.socketpair()
            if fd in (near.fileno(), far.fileno()):
                break
            spare.append((near.dup(), far.dup()))
            far.close()
        for first, second in spare:
            first.close()
            second.close()
    if far.fileno() == fd:
        near, far = far, near
    near.setblocking(False)
    far.setblocking(False)
    assert near.fileno() == fd
    return near, far


def test_a_number_with_a_new_owner(run: Run, loop: Loop) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        with far:
            await exchange(loop, near, far)
            for _ in range(3):
                fd = near.fileno()
                near.close()
                near, other = pair_at(fd)
                with other:
                    await exchange(loop, near, other)
        near.close()

    run(main)


def test_the_old_connection_lives_on_elsewhere(run: Run, loop: Loop) -> None:
    # With a duplicate of the descriptor the kernel does not forget the first.
    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        with far:
            await exchange(loop, near, far)
            fd = near.fileno()
            with near.dup() as copy:
                near.close()
                new, other = pair_at(fd)
                with new, other:
                    task = await waiting_recv(loop, new)
                    far.send(b"for the copy")
                    await asyncio.sleep(0.05)
                    assert not task.done()
                    other.send(b"for the new one")
                    assert await asyncio.wait_for(task, 10) == b"for the new one"
                    await exchange(loop, new, other)
                copy.setblocking(False)
                assert await loop.sock_recv(copy, 100) == b"for the copy"
                await exchange(loop, copy, far)

    run(main)


def test_another_object_for_the_same_connection(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            await exchange(loop, near, far)
            again = socket.socket(fileno=near.detach())
            with again:
                again.setblocking(False)
                await exchange(loop, again, far)

    run(main)


def test_add_reader_between_waits(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            for _ in range(2):
                await exchange(loop, near, far)
                calls: list[int] = []
                loop.add_reader(near, calls.append, 1)
                far.send(b"unread")
                # It is called again and again.
                await until(lambda calls=calls: len(calls) > 3)
                assert loop.remove_reader(near)
                assert not loop.remove_reader(near)
                assert await loop.sock_recv(near, 100) == b"unread"

    run(main)


def test_add_writer_between_waits(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            await exchange(loop, near, far)
            calls: list[int] = []
            task = await waiting_recv(loop, near)
            loop.add_writer(near, calls.append, 1)
            await until(lambda: len(calls) > 3)
            far.send(b"data")
            assert await asyncio.wait_for(task, 10) == b"data"
            await exchange(loop, near, far)
            assert loop.remove_writer(near)
            await exchange(loop, near, far)

    run(main)


def test_remove_reader_ends_the_watch(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            assert not loop.remove_reader(near)
            await exchange(loop, near, far)
            assert not loop.remove_reader(near)
            task = await waiting_recv(loop, near)
            assert loop.remove_reader(near)
            assert not loop.remove_reader(near)
            far.send(b"data")
            await asyncio.sleep(0.05)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await loop.sock_recv(near, 100) == b"data"

    run(main)


def test_receiving_while_sending_waits(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair(small=True) as (near, far):
            await exchange(loop, near, far)
            receiving = await waiting_recv(loop, near)
            size = 4_000_000
            sending = asyncio.ensure_future(loop.sock_sendall(near, bytes(size)))
            await asyncio.sleep(0.01)
            assert not sending.done()
            far.send(b"meanwhile")
            assert await asyncio.wait_for(receiving, 10) == b"meanwhile"
            receiving = await waiting_recv(loop, near)
            got = 0
            while got < size:
                got += len(await asyncio.wait_for(loop.sock_recv(far, 1 << 18), 10))
            await asyncio.wait_for(sending, 10)
            far.send(b"at the end")
            assert await asyncio.wait_for(receiving, 10) == b"at the end"

    run(main)


def test_a_second_wait_takes_the_place(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            await exchange(loop, near, far)
            first = await waiting_recv(loop, near)
            second = await waiting_recv(loop, near)
            far.send(b"data")
            assert await asyncio.wait_for(second, 10) == b"data"
            await asyncio.sleep(0.02)
            assert not first.done()
            # The end of the first wait is not that of a third.
            third = await waiting_recv(loop, near)
            first.cancel()
            await asyncio.sleep(0)
            far.send(b"more")
            assert await asyncio.wait_for(third, 10) == b"more"

    run(main)


def test_cancelled_waits(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            for number in range(20):
                task = await waiting_recv(loop, near)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                if number % 2:
                    far.send(b"x")
                    assert await asyncio.wait_for(loop.sock_recv(near, 9), 10) == b"x"

    run(main)


def test_data_that_nobody_waited_for(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            await exchange(loop, near, far)
            far.send(b"abcdef")
            await asyncio.sleep(0.02)
            parts = [await asyncio.wait_for(loop.sock_recv(near, 2), 10) for _ in range(3)]
            assert parts == [b"ab", b"cd", b"ef"]
            await exchange(loop, near, far)
            far.shutdown(socket.SHUT_WR)
            for _ in range(2):
                assert await asyncio.wait_for(loop.sock_recv(near, 9), 10) == b""

    run(main)


def test_the_end_wakes(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            await exchange(loop, near, far)
            task = await waiting_recv(loop, near)
            far.close()
            assert await asyncio.wait_for(task, 10) == b""

    run(main)


def test_a_crowd_of_connections(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with socket.create_server((HOST, 0), backlog=64) as listener:
            listener.setblocking(False)
            for _ in range(3):
                first = asyncio.ensure_future(loop.sock_accept(listener))
                await asyncio.sleep(0)
                clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
                accepted = [await asyncio.wait_for(first, 10)]
                accepted += [
                    await asyncio.wait_for(loop.sock_accept(listener), 10) for _ in range(19)
                ]
                names = {address for _, address in accepted}
                assert names == {client.getsockname() for client in clients}
                for sock in [*clients, *(sock for sock, _ in accepted)]:
                    sock.close()

    run(main)


def test_a_transport_takes_the_socket(run: Run, loop: Loop) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            await exchange(loop, near, far)
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            far.send(b"data")
            await until(lambda: protocol.data == b"data")
            transport.write(b"answer")
            assert await asyncio.wait_for(loop.sock_recv(far, 100), 10) == b"answer"
            far.send(b" more")
            await until(lambda: protocol.data == b"data more")
            with pytest.raises(RuntimeError, match="is used by transport"):
                await loop.sock_recv(near, 1)
            transport.close()
            await until(lambda: protocol.lost)

    run(main)


def test_a_datagram_transport_takes_the_socket(run: Run, loop: Loop) -> None:
    class Datagrams(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.got: list[bytes] = []

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.got.append(data)

    async def main() -> None:
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            near.bind((HOST, 0))
            near.setblocking(False)
            for data in (b"one", b"two"):
                task = asyncio.ensure_future(loop.sock_recvfrom(near, 100))
                await asyncio.sleep(0)
                far.sendto(data, near.getsockname())
                assert (await asyncio.wait_for(task, 10))[0] == data
            address = near.getsockname()
            transport, protocol = await loop.create_datagram_endpoint(Datagrams, sock=near)
            for number in range(3):
                far.sendto(bytes([number]), address)
                await until(lambda number=number: len(protocol.got) > number)
            transport.close()
            await asyncio.sleep(0)

    run(main)


def test_a_listener_becomes_a_server(run: Run, loop: Loop) -> None:
    async def main() -> None:
        listener = socket.create_server((HOST, 0))
        listener.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await asyncio.sleep(0)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = await asyncio.wait_for(accepting, 10)
            accepted.close()
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder())
            return protocols[-1]

        server = await loop.create_server(factory, sock=listener)
        address = listener.getsockname()
        for number in range(2):
            with socket.create_connection(address) as client:
                client.send(b"hello")
                await until(
                    lambda number=number: (
                        len(protocols) > number and protocols[number].data == b"hello"
                    )
                )
        server.close()
        await server.wait_closed()

    run(main)


def test_from_one_loop_to_the_next(loop_factory: Callable[[], Loop]) -> None:
    with tcp_pair() as (near, far):
        for _ in range(3):
            loop = loop_factory()
            try:
                loop.run_until_complete(exchange(loop, near, far))
            finally:
                loop.close()


def test_many_sockets_come_and_go(run: Run, loop: Loop) -> None:
    async def one(number: int) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        with near, far:
            for turn in range(1 + number % 3):
                task = asyncio.ensure_future(loop.sock_recv(near, 100))
                await asyncio.sleep(0)
                far.send(b"%d %d" % (number, turn))
                assert await asyncio.wait_for(task, 15) == b"%d %d" % (number, turn)

    async def main() -> None:
        for start in range(0, 400, 40):
            await asyncio.gather(*(one(number) for number in range(start, start + 40)))

    run(main)


def test_the_socket_is_not_kept(run: Run, loop: Loop) -> None:
    async def main() -> Any:
        with tcp_pair() as (near, far):
            await exchange(loop, near, far)
            return weakref.ref(near)

    ref = run(main)
    gc.collect()
    assert ref() is None


class Buffer(bytearray):
    """A buffer that can hold on to things."""

    held: Any


@pytest.mark.parametrize("started", [False, True])
def test_the_collector_sees_into_coroutines(loop: Loop, started: bool) -> None:
    with tcp_pair() as (near, _):
        buffer = Buffer(10)
        coroutine: Any = loop.sock_recv_into(near, buffer)
        if started:
            assert coroutine.send(None) is not None
        buffer.held = coroutine
        ref = weakref.ref(buffer)
        del buffer, coroutine
        if started:
            gc.collect()
            if is_stock(loop):
                assert ref() is not None  # its selector has it
                return
        else:
            with pytest.warns(RuntimeWarning, match="was never awaited"):
                gc.collect()
        assert ref() is None

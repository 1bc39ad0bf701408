"""add_reader, add_writer and their removal."""

import asyncio
import contextvars
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import connected, in_thread, run_turn, run_until, skip_if_asyncio_errs, tcp_pair

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected non-blocking sockets."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


Pair = tuple[socket.socket, socket.socket]


def fill(sock: socket.socket) -> int:
    """Write until the kernel takes no more; return the number of bytes."""
    total = 0
    try:
        while True:
            total += sock.send(bytes(65536))
    except BlockingIOError:
        return total


def several_turns(loop: Loop, count: int = 20) -> None:
    for _ in range(count):
        run_turn(loop)


def test_reader_is_called_with_its_arguments(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen: list[Any] = []

    def readable(*args: object) -> None:
        seen.append((args, near.recv(100)))

    assert loop.add_reader(near, readable, 1, "two") is None
    several_turns(loop)
    assert seen == []
    far.send(b"data")
    run_until(loop, lambda: seen)
    several_turns(loop)
    assert seen == [((1, "two"), b"data")]
    assert loop.remove_reader(near) is True


def test_writer_is_called_while_there_is_room(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls = 0

    def writable() -> None:
        nonlocal calls
        calls += 1

    assert loop.add_writer(near, writable) is None
    run_until(loop, lambda: calls >= 3)
    fill(near)
    several_turns(loop, 3)
    full = calls
    several_turns(loop)
    assert calls == full
    while True:
        try:
            far.recv(1 << 20)
        except BlockingIOError:
            break
    run_until(loop, lambda: calls > full)
    assert loop.remove_writer(near) is True


def test_reader_that_does_not_read_is_called_again(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls = 0

    def readable() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            assert near.recv(100) == b"data"

    loop.add_reader(near, readable)
    far.send(b"data")
    run_until(loop, lambda: calls == 5)
    several_turns(loop)
    assert calls == 5
    loop.remove_reader(near)


def test_reader_that_reads_a_part_is_called_again(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen = bytearray()
    loop.add_reader(near, lambda: seen.extend(near.recv(3)))
    far.send(b"0123456789")
    run_until(loop, lambda: len(seen) == 10)
    assert seen == b"0123456789"
    loop.remove_reader(near)


def test_reader_is_called_once_a_turn(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls = 0

    def readable() -> None:
        nonlocal calls
        calls += 1

    far.send(b"data")
    loop.add_reader(near, readable)
    loop.stop()
    loop.run_forever()
    before = calls
    for _ in range(50):
        loop.stop()
        loop.run_forever()
    assert calls - before <= 50
    run_until(loop, lambda: calls >= 3)
    loop.remove_reader(near)


def test_reader_sees_the_end_of_file(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen: list[bytes] = []

    def readable() -> None:
        seen.append(near.recv(100))
        if not seen[-1]:
            loop.remove_reader(near)

    loop.add_reader(near, readable)
    far.send(b"data")
    far.close()
    run_until(loop, lambda: b"" in seen)
    assert seen == [b"data", b""]


def test_reader_and_writer_of_one_descriptor(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen: list[Any] = []
    loop.add_reader(near, lambda: seen.append(near.recv(100)))
    loop.add_writer(near, lambda: (seen.append("writable"), loop.remove_writer(near)))
    run_until(loop, lambda: seen)
    assert seen == ["writable"]
    far.send(b"data")
    run_until(loop, lambda: len(seen) == 2)
    assert seen == ["writable", b"data"]
    assert loop.remove_reader(near) is True
    assert loop.remove_writer(near) is False


def test_removal_returns_whether_there_was_one(loop: Loop, pair: Pair) -> None:
    near, _ = pair
    assert loop.remove_reader(near) is False
    assert loop.remove_writer(near) is False
    loop.add_reader(near, print)
    assert loop.remove_writer(near) is False
    assert loop.remove_reader(near) is True
    assert loop.remove_reader(near) is False
    loop.add_writer(near, print)
    assert loop.remove_reader(near) is False
    assert loop.remove_writer(near) is True
    assert loop.remove_writer(near) is False


def test_second_callback_replaces_the_first(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen: list[str] = []
    loop.add_reader(near, seen.append, "first")
    loop.add_reader(near, lambda: (seen.append("second"), near.recv(100)))
    far.send(b"data")
    run_until(loop, lambda: seen)
    assert seen == ["second"]
    assert loop.remove_reader(near) is True
    assert loop.remove_reader(near) is False


def test_replaced_while_it_is_due(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.add_reader(near, second)

    def second() -> None:
        seen.append("second")
        near.recv(100)

    loop.add_reader(near, first)
    far.send(b"data")
    run_until(loop, lambda: "second" in seen)
    several_turns(loop)
    assert seen == ["first", "second"]
    loop.remove_reader(near)


def test_removed_reader_is_not_called_any_more(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen: list[str] = []
    loop.add_reader(near, seen.append, "called")
    far.send(b"data")
    assert loop.remove_reader(near) is True
    several_turns(loop)
    assert seen == []


def test_callback_removes_another_that_is_due_in_the_same_turn(loop: Loop) -> None:
    first, second = socket.socketpair(), socket.socketpair()
    seen: list[str] = []
    pairs = {"first": first, "second": second}

    def readable(name: str) -> None:
        seen.append(name)
        for near, _ in pairs.values():
            loop.remove_reader(near)

    try:
        for name, (near, far) in pairs.items():
            near.setblocking(False)
            far.send(b"data")
            loop.add_reader(near, readable, name)
        run_until(loop, lambda: seen)
        several_turns(loop)
        assert len(seen) == 1
    finally:
        for near, far in pairs.values():
            near.close()
            far.close()


def test_plain_descriptors_and_objects_with_fileno(loop: Loop) -> None:
    read, write = os.pipe()
    seen: list[bytes] = []

    class Wrapper:
        def fileno(self) -> int:
            return read

    try:
        for each in (read, Wrapper()):
            loop.add_reader(each, lambda: seen.append(os.read(read, 100)))
            os.write(write, b"data")
            run_until(loop, lambda: seen)
            assert seen == [b"data"]
            seen.clear()
            # Both name the same descriptor.
            assert loop.remove_reader(read) is True
            assert loop.remove_reader(Wrapper()) is False
    finally:
        os.close(read)
        os.close(write)


def test_pipe_that_lost_its_reader(loop: Loop) -> None:
    read, write = os.pipe()
    seen: list[str] = []
    try:
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, bytes(65536))
        except BlockingIOError:
            pass
        loop.add_writer(write, lambda: (seen.append("writable"), loop.remove_writer(write)))
        several_turns(loop)
        assert seen == []
        os.close(read)
        # The error makes it "writable": the write will say what is wrong.
        run_until(loop, lambda: seen)
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
    finally:
        os.close(write)


def test_reader_wakes_a_waiting_loop(loop: Loop, pair: Pair) -> None:
    near, far = pair
    loop.add_reader(near, loop.stop)
    with in_thread(lambda: (select.select([], [], [], 0.05), far.send(b"x"))):
        loop.run_forever()
    loop.remove_reader(near)


def test_exception_in_a_reader_is_reported_each_time(
    loop: Loop, pair: Pair, reported: list[dict[str, Any]]
) -> None:
    near, far = pair
    error = ValueError("mine")

    def readable() -> None:
        if len(reported) == 1:
            near.recv(100)
        raise error

    loop.add_reader(near, readable)
    far.send(b"x")
    run_until(loop, lambda: len(reported) == 2)
    assert [context["exception"] for context in reported] == [error, error]
    assert all("readable() at " in context["message"] for context in reported)
    assert loop.remove_reader(near) is True


def test_reader_runs_in_the_context_of_add_reader(loop: Loop, pair: Pair) -> None:
    near, far = pair
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="default")
    seen: list[str] = []
    token = var.set("at add_reader")
    loop.add_reader(near, lambda: seen.append(var.get()))
    var.reset(token)
    far.send(b"x")
    run_until(loop, lambda: seen)
    assert set(seen) == {"at add_reader"}
    loop.remove_reader(near)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
@pytest.mark.parametrize("wrong", ["text", None, 1.5, object()])
def test_what_is_no_descriptor(loop: Loop, method: str, wrong: Any) -> None:
    with pytest.raises(ValueError) as caught:
        getattr(loop, method)(wrong, print)
    assert str(caught.value) == f"Invalid file object: {wrong!r}"


@pytest.mark.parametrize("method", ["remove_reader", "remove_writer"])
def test_removal_of_what_is_no_descriptor(loop: Loop, method: str) -> None:
    with pytest.raises(ValueError, match=r"^Invalid file object: 'text'$"):
        getattr(loop, method)("text")


def test_negative_descriptor(loop: Loop) -> None:
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        loop.add_reader(-1, print)
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        loop.add_writer(-1, print)


def test_closed_socket(loop: Loop) -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(ValueError, match="Invalid file"):
        loop.add_reader(sock, print)


def test_closed_descriptor(loop: Loop) -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    for method in (loop.add_reader, loop.add_writer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            method(read, print)
    assert loop.remove_reader(read) is False
    assert loop.remove_writer(read) is False


def test_regular_file_cannot_be_watched(loop: Loop, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    with path.open("rb") as file:
        for method in (loop.add_reader, loop.add_writer):
            with pytest.raises(PermissionError):
                method(file, print)
        assert loop.remove_reader(file) is False


def test_descriptor_of_a_transport_is_refused(loop: Loop, run: Run) -> None:
    async def main() -> None:
        async with connected() as (transport, _, _):
            sock = transport.get_extra_info("socket")
            for fd in (sock.fileno(), sock):
                text = f"File descriptor {fd!r} is used by transport {transport!r}"
                for call in (
                    lambda fd: loop.add_reader(fd, print),
                    lambda fd: loop.add_writer(fd, print),
                    loop.remove_reader,
                    loop.remove_writer,
                ):
                    with pytest.raises(RuntimeError) as caught:
                        call(fd)
                    assert str(caught.value) == text

    run(main)


# --- descriptors that are closed and used again ------------------------------------------------


def test_descriptor_closed_by_the_program_is_forgotten_quietly(loop: Loop, pair: Pair) -> None:
    near, far = pair
    seen: list[str] = []
    loop.add_reader(near, seen.append, "called")
    fd = near.fileno()
    near.close()
    far.close()
    several_turns(loop, 3)
    assert seen == []
    assert loop.remove_reader(fd) in (True, False)
    assert loop.remove_reader(fd) is False
    several_turns(loop, 3)


def test_new_descriptor_with_the_same_number_gets_its_own_events(loop: Loop) -> None:
    skip_if_asyncio_errs(loop, "its selector takes the new descriptor for the old one")
    seen: list[str] = []
    old_near, old_far = socket.socketpair()
    fd = old_near.fileno()
    loop.add_reader(fd, seen.append, "old")
    old_far.send(b"x")
    old_near.close()
    near, far = socket.socketpair()
    if near.fileno() != fd:
        near, far = far, near
    assert near.fileno() == fd
    with near, far, old_far:
        loop.add_reader(near, lambda: (seen.append("new"), near.recv(100)))
        several_turns(loop)
        assert seen == []
        far.send(b"x")
        run_until(loop, lambda: seen)
        several_turns(loop)
        assert seen == ["new"]
        assert loop.remove_reader(near) is True


def test_removed_then_closed_and_used_again(loop: Loop) -> None:
    for _ in range(50):
        seen: list[bytes] = []
        near, far = socket.socketpair()
        near.setblocking(False)
        with near, far:
            loop.add_reader(near, lambda near=near, seen=seen: seen.append(near.recv(100)))
            far.send(b"x")
            run_until(loop, lambda seen=seen: seen)
            assert seen == [b"x"]
            assert loop.remove_reader(near) is True


def test_many_descriptors(loop: Loop) -> None:
    count = 300
    seen: list[int] = []
    pairs = [socket.socketpair() for _ in range(count)]
    try:
        for i, (near, far) in enumerate(pairs):
            loop.add_reader(near, lambda i=i, near=near: (seen.append(i), near.recv(1)))
            far.send(b"x")
        run_until(loop, lambda: len(seen) == count)
        assert sorted(seen) == list(range(count))
        for near, _ in pairs:
            assert loop.remove_reader(near) is True
    finally:
        for near, far in pairs:
            near.close()
            far.close()


def test_descriptors_stay_the_programs(loop: Loop, pair: Pair) -> None:
    near, far = pair
    loop.add_reader(near, print)
    loop.add_writer(far, lambda: loop.remove_writer(far))
    several_turns(loop, 2)
    loop.close()
    assert near.fileno() != -1
    near.send(b"still open")
    assert far.recv(100) == b"still open"


def test_reader_on_a_tcp_listener(loop: Loop) -> None:
    accepted: list[socket.socket] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        loop.add_reader(listener, lambda: accepted.append(listener.accept()[0]))
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        run_until(loop, lambda: len(accepted) == 3)
        for sock in (*clients, *accepted):
            sock.close()
        loop.remove_reader(listener)


def test_transport_may_take_a_socket_after_its_reader_was_removed(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            seen: list[bytes] = []
            loop.add_reader(near, lambda: seen.append(near.recv(100)))
            far.send(b"first")
            while not seen:
                await asyncio.sleep(0)
            assert loop.remove_reader(near) is True
            reader, writer = await asyncio.open_connection(sock=near)
            far.send(b"second")
            assert await reader.readexactly(6) == b"second"
            assert seen == [b"first"]
            writer.close()
            await writer.wait_closed()

    run(main)

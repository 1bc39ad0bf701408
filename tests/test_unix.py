"""Unix stream sockets: create_unix_connection(), create_unix_server() and what differs from TCP."""

import array
import asyncio
import contextlib
import os
import pathlib
import socket
import ssl
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import Recorder, open_fds, until
from tls import NAME, client_context, server_context

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

since_3_13 = pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket is of 3.13")


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "s")


@contextlib.contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        near.setblocking(False)
        yield near, far


async def echoed(loop: Loop, address: Any) -> tuple[asyncio.Transport, Recorder]:
    """Connect, send a line and wait for it to come back."""
    transport, protocol = await loop.create_unix_connection(Recorder, address)
    transport.write(b"hello")
    await until(lambda: bytes(protocol.data) == b"hello")
    return transport, protocol


@pytest.mark.parametrize("form", [str, os.fsencode, pathlib.Path])
def test_path_in_each_form(loop: Loop, run: Run, path: str, form: Callable[[str], Any]) -> None:
    async def main() -> None:
        served: list[Echo] = []

        def factory() -> Echo:
            served.append(Echo())
            return served[-1]

        server = await loop.create_unix_server(factory, form(path))
        transport, protocol = await echoed(loop, form(path))
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_extra_info("peername") == path
        assert transport.get_extra_info("sockname") == ""
        sock = transport.get_extra_info("socket")
        assert sock.family == socket.AF_UNIX
        assert served[0].transport.get_extra_info("peername") == ""
        assert served[0].transport.get_extra_info("sockname") == path
        assert served[0].transport.get_extra_info("socket").family == socket.AF_UNIX
        assert server.sockets[0].getsockname() == path
        transport.close()
        await until(lambda: protocol.lost and served[0].lost)
        server.close()
        await server.wait_closed()

    run(main)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract names are Linux's")
@pytest.mark.parametrize("kind", [str, bytes])
def test_abstract_name(loop: Loop, run: Run, kind: type) -> None:
    async def main() -> None:
        name: Any = "\0rondel-" + uuid.uuid4().hex
        if kind is bytes:
            name = name.encode()
        server = await loop.create_unix_server(Echo, name)
        transport, protocol = await echoed(loop, name)
        as_bytes = name if kind is bytes else name.encode()
        assert transport.get_extra_info("peername") == as_bytes
        transport.close()
        await until(lambda: protocol.lost)
        server.close()

    run(main)


def test_socket_left_behind_is_replaced(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        server = await loop.create_unix_server(Echo, path)
        transport, _ = await echoed(loop, path)
        transport.close()
        server.close()
        await server.wait_closed()

    run(main)


def test_file_in_the_way_is_not_removed(loop: Loop, run: Run, path: str) -> None:
    pathlib.Path(path).write_text("precious")

    async def main() -> None:
        before = open_fds()
        with pytest.raises(OSError, match=f"^\\[Errno 98\\] Address '{path}' is already in use$"):
            await loop.create_unix_server(Echo, path)
        assert open_fds() == before

    run(main)
    assert pathlib.Path(path).read_text() == "precious"


def test_server_in_a_directory_that_is_not_there(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        before = open_fds()
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_server(Echo, path + "/deeper")
        assert open_fds() == before

    run(main)


@since_3_13
@pytest.mark.parametrize("keep", [False, True])
def test_server_removes_its_file(loop: Loop, run: Run, path: str, keep: bool) -> None:
    async def main() -> None:
        kwargs: dict[str, Any] = {"cleanup_socket": False} if keep else {}
        server = await loop.create_unix_server(Echo, path, **kwargs)
        assert os.path.exists(path)
        server.close()
        assert os.path.exists(path) is keep

    run(main)


@since_3_13
def test_server_leaves_the_file_of_a_successor(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        first = await loop.create_unix_server(Echo, path)
        # Kept, so that the second cannot get its inode.
        os.rename(path, path + ".old")
        second = await loop.create_unix_server(Echo, path)
        first.close()
        transport, _ = await echoed(loop, path)
        transport.close()
        second.close()
        assert not os.path.exists(path)

    run(main)


@since_3_13
def test_server_whose_file_is_gone(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        server = await loop.create_unix_server(Echo, path)
        os.unlink(path)
        server.close()
        await server.wait_closed()

    run(main)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="3.13 has cleanup_socket")
def test_cleanup_socket_is_unknown_before_3_13(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'cleanup_socket'"):
            await loop.create_unix_server(Echo, path, cleanup_socket=True)
        server = await loop.create_unix_server(Echo, path)
        server.close()
        assert os.path.exists(path)

    run(main)


def test_connecting_to_nobody(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        before = open_fds()
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_connection(Recorder, path)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        with pytest.raises(ConnectionRefusedError):
            await loop.create_unix_connection(Recorder, path)
        assert open_fds() == before

    run(main)


def test_sock_that_is_connected(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with unix_pair() as (near, far):
            near.setblocking(True)
            transport, protocol = await loop.create_unix_connection(Recorder, sock=near)
            assert near.gettimeout() == 0
            assert transport.get_extra_info("peername") == ""
            transport.write(b"out")
            assert far.recv(10) == b"out"
            far.close()
            await until(lambda: protocol.lost)

    run(main)


def test_sock_that_listens(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            server = await loop.create_unix_server(Echo, sock=sock, start_serving=False)
            assert not server.is_serving()
            await server.start_serving()
            transport, _ = await echoed(loop, path)
            transport.close()
            server.close()

    run(main)


def test_arguments_that_do_not_go_together(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        connect, serve = loop.create_unix_connection, loop.create_unix_server
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        both = "path and sock can not be specified at the same time"
        expected = "A UNIX Domain Stream Socket was expected"
        with (
            socket.socket(socket.AF_INET) as tcp,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
            socket.socket(socket.AF_UNIX) as stream,
        ):
            for kwargs, message in (
                ({}, "no path and sock were specified"),
                ({"path": path, "sock": stream}, both),
                ({"sock": tcp}, expected),
                ({"sock": datagram}, expected),
                ({"path": path, "ssl": context}, "you have to pass server_hostname when using ssl"),
                (
                    {"path": path, "server_hostname": "x"},
                    "server_hostname is only meaningful with ssl",
                ),
                (
                    {"path": path, "ssl_handshake_timeout": 1},
                    "ssl_handshake_timeout is only meaningful with ssl",
                ),
                (
                    {"path": path, "ssl_shutdown_timeout": 1},
                    "ssl_shutdown_timeout is only meaningful with ssl",
                ),
            ):
                with pytest.raises(ValueError, match=message):
                    await connect(Recorder, **kwargs)
            for kwargs, message in (
                ({}, "path was not specified, and no sock specified"),
                ({"path": path, "sock": stream}, both),
                ({"sock": tcp}, expected),
                ({"sock": datagram}, expected),
                (
                    {"path": path, "ssl_handshake_timeout": 1},
                    "ssl_handshake_timeout is only meaningful with ssl",
                ),
                (
                    {"path": path, "ssl_shutdown_timeout": 1},
                    "ssl_shutdown_timeout is only meaningful with ssl",
                ),
            ):
                with pytest.raises(ValueError, match=message):
                    await serve(Recorder, **kwargs)
            with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
                await serve(Recorder, path, ssl=True)
            for sock in (tcp, datagram, stream):
                assert sock.fileno() >= 0
        assert not os.path.exists(path)

    run(main)


def test_streams_over_unix_sockets(loop: Loop, run: Run, path: str) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read()).upper())
            writer.close()

        server = await asyncio.start_unix_server(serve, path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"a" * 500_000)
        writer.write_eof()
        assert await reader.read() == b"A" * 500_000
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main)


@pytest.mark.parametrize("buffered", [False, True])
def test_nothing_is_left_behind_a_passed_descriptor(loop: Loop, run: Run, buffered: bool) -> None:
    # The kernel ends a read where a descriptor was passed, though more has arrived.
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.memory = bytearray(1000)
            self.data = bytearray()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.memory

        def buffer_updated(self, nbytes: int) -> None:
            self.data += self.memory[:nbytes]

    async def main() -> None:
        with unix_pair() as (near, far), open(os.devnull) as null:
            factory: Any = Buffered if buffered else Recorder
            transport, protocol = await loop.create_unix_connection(factory, sock=near)
            # No await between these: one event for all of them.
            for number in range(20):
                far.send(b"<%02d" % number)
                socket.send_fds(far, [b"F"], [null.fileno()])
                far.send(b">")
            await until(lambda: protocol.data.endswith(b"<19F>"), limit=3)
            assert bytes(protocol.data) == b"".join(b"<%02dF>" % n for n in range(20))
            transport.close()
            await asyncio.sleep(0)

    run(main)


def test_nothing_is_left_behind_a_change_of_credentials(loop: Loop, run: Run) -> None:
    if not hasattr(socket, "SO_PASSCRED") or os.getuid() != 0:
        pytest.skip("needs Linux and the right to give other credentials")

    async def main() -> None:
        with unix_pair() as (near, far):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            transport, protocol = await loop.create_unix_connection(Recorder, sock=near)
            for uid in range(6):
                credentials = array.array("i", [os.getpid(), uid, 0])
                far.sendmsg(
                    [b"%d" % uid], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
                )
            await until(lambda: bytes(protocol.data) == b"012345", limit=3)
            transport.close()
            await asyncio.sleep(0)

    run(main)


def test_tls(run: Run, loop: Loop, path: str) -> None:
    async def main() -> None:
        echoes = await loop.create_unix_server(Echo, path, ssl=server_context())
        async with echoes:
            reader, writer = await asyncio.open_unix_connection(
                path, ssl=client_context(), server_hostname=NAME
            )
            writer.write(b"secret")
            assert await reader.readexactly(6) == b"secret"
            assert writer.get_extra_info("peercert")["subjectAltName"][0] == ("DNS", NAME)
            writer.close()
            await writer.wait_closed()

    run(main)

"""WebSockets: the same program with rondel.http and with aiohttp, against the same servers."""

import asyncio
import base64
import contextlib
import hashlib
import random
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from http_peers import CLIENTS, lineage, raw_server
from support import HOST, run_on
from tls import client_context, server_context

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


async def _echo(request: web.Request) -> web.WebSocketResponse:
    """Sends back what comes; some texts are orders."""
    socket = web.WebSocketResponse(protocols=("two", "three"), autoping=False, max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            if message.data == "close":
                await socket.close(code=4321, message=b"as told")
            elif message.data == "ping":
                await socket.ping(b"are you there")
            elif message.data == "vanish":
                assert request.transport is not None
                request.transport.abort()
            elif message.data == "extensions":
                await socket.send_str(request.headers.get("Sec-WebSocket-Extensions", "none"))
            else:
                await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type is WSMsgType.PONG:
            await socket.send_str(f"pong {message.data!r}")
    return socket


async def _refuses(request: web.Request) -> web.Response:
    return web.Response(status=403, body=b"no")


@contextlib.asynccontextmanager
async def socket_server(tls: bool = False) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.get("/echo", _echo), web.get("/refuses", _refuses)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        context = server_context() if tls else None
        await web.TCPSite(runner, HOST, 0, ssl_context=context).start()
        yield f"{'https' if tls else 'http'}://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


Program = Callable[[Any, Any], Awaitable[Any]]


def _plain(value: Any) -> Any:
    """A message (or a list of what programs see) without its client's own types."""
    if isinstance(value, BaseException):
        return lineage(value), str(value)
    if isinstance(value, tuple) and hasattr(value, "type"):
        return type(value).__name__, repr(value.type), _plain(value.data), value.extra
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


async def outcome(client: Any, url: str, program: Program, arguments: dict[str, Any]) -> Any:
    """What a program sees of a WebSocket, how it ends, and what is known then."""
    told: list[Any] = []
    arguments = {k: v(client) if callable(v) else v for k, v in arguments.items()}
    async with client.ClientSession() as session:
        try:
            async with session.ws_connect(url, **arguments) as socket:
                told.append([socket.protocol, socket.compress, socket.client_notakeover])
                told.append(_plain(await program(client, socket)))
            error = socket.exception()
            told.append([socket.closed, socket.close_code, _plain(error)])
        except (client.ClientError, TimeoutError, TypeError, ValueError) as error:
            message, status = getattr(error, "message", ""), getattr(error, "status", None)
            told.append([lineage(error), message or str(error), status])
    return told


def same(loop: Any, program: Program, tls: bool = False, **arguments: Any) -> Any:
    """Assert that both clients see the same of the echoing server; returns it."""

    async def main() -> Any:
        async with socket_server(tls) as base:
            path = arguments.pop("path", "/echo")
            told = [await outcome(client, base + path, program, arguments) for client in CLIENTS]
        assert told[1] == told[0]
        return told[1]

    return run_on(loop, main)


async def _everything(client: Any, socket: Any) -> Any:
    told = []
    for size in (0, 1, 125, 126, 65535, 65536, 300_000):
        await socket.send_bytes(b"\x00\xff" * (size // 2) + b"x" * (size % 2))
        told.append(await socket.receive())
        await socket.send_str("ü" * size)
        told.append(await socket.receive_str())
    await socket.send_bytes(bytearray(b"array"))
    told.append(await socket.receive_bytes())
    await socket.send_bytes(memoryview(b"view"))
    told.append(await socket.receive_bytes())
    await socket.send_json({"a": [1, "ü"]})
    told.append(await socket.receive_json())
    await socket.send_json_bytes([1], dumps=lambda data: repr(data).encode())
    told.append(await socket.receive())
    await socket.send_str("[1]")
    told.append((await socket.receive()).json())
    await socket.send_str("ping")
    told.append(await socket.receive())
    await socket.ping()
    await socket.send_frame(b"frame", client.WSMsgType.TEXT)
    told.append(await socket.receive())
    await socket.send_str("once", compress=12) if socket.compress else None
    return told


@pytest.mark.parametrize("compress", [0, 9, 12, 15])
def test_messages(rondel_loop: Any, compress: int) -> None:
    told = same(rondel_loop, _everything, compress=compress)
    assert told[0][1] == (15 if compress else 0) and told[-1] == [True, 1000, None]


def test_tls_and_protocols(rondel_loop: Any) -> None:
    arguments = {"ssl": client_context(), "protocols": ("one", "three"), "origin": "http://x"}
    told = same(rondel_loop, _everything, tls=True, **arguments)
    assert told[0][0] == "three"


async def _closed_by_peer(_: Any, socket: Any) -> Any:
    await socket.send_str("close")
    first = await socket.receive()
    return [first, socket.closed, socket.close_code, await socket.receive()]


async def _vanished(_: Any, socket: Any) -> Any:
    await socket.send_str("vanish")
    told = [await socket.receive(), socket.closed, socket.close_code, await socket.receive()]
    return [*told, await socket.close()]


async def _iterated(_: Any, socket: Any) -> Any:
    for text in ("a", "b", "close"):
        await socket.send_str(text)
    return [message async for message in socket]


async def _wrong_kinds(client: Any, socket: Any) -> Any:
    told: list[Any] = []
    for send, receive in (
        (lambda: socket.send_str("x"), socket.receive_bytes),
        (lambda: socket.send_bytes(b"x"), socket.receive_str),
        (lambda: socket.send_str(b"x"), None),
        (lambda: socket.send_bytes("x"), None),
    ):
        try:
            await send()
            await receive()
        except TypeError as error:
            told.append(error)
    return told


async def _closed_twice(_: Any, socket: Any) -> Any:
    told = [await socket.close(code=3000, message=b"bye"), await socket.close(), socket.close_code]
    try:
        await socket.send_str("too late")
    except ConnectionError as error:
        told.append(error)
    return [*told, await socket.receive()]


async def _closed_while_receiving(_: Any, socket: Any) -> Any:
    receiver = asyncio.ensure_future(socket.receive())
    await asyncio.sleep(0)
    try:
        await socket.receive()
    except RuntimeError as error:
        told = [error]
    return [*told, await socket.close(), await receiver, socket.close_code]


async def _timed_out(_: Any, socket: Any) -> Any:
    try:
        await socket.receive(timeout=0.01)
    except TimeoutError as error:
        return [error, socket.close_code, socket.closed]


async def _nothing(_: Any, socket: Any) -> Any:
    return None


async def _next(_: Any, socket: Any) -> Any:
    await socket.send_str("x" * 100)
    return [await socket.receive(), socket.close_code, socket.closed]


async def _pings(_: Any, socket: Any) -> Any:
    await socket.send_str("ping")
    first = await socket.receive()
    await socket.pong(first.data)
    await socket.ping(b"!")
    return [first, await socket.receive(), await socket.receive()]


async def _beaten(_: Any, socket: Any) -> Any:
    await asyncio.sleep(0.7)
    await socket.send_str("still there")
    return await socket.receive()


CASES: dict[str, tuple[Program, dict[str, Any]]] = {
    "closed by the peer": (_closed_by_peer, {}),
    "not closed by itself": (_closed_by_peer, {"autoclose": False}),
    "vanished": (_vanished, {}),
    "iterated": (_iterated, {}),
    "wrong kinds": (_wrong_kinds, {}),
    "closed twice": (_closed_twice, {}),
    "closed while receiving": (_closed_while_receiving, {}),
    "timed out": (_timed_out, {}),
    "timeout of all": (_next, {"timeout": lambda c: c.ClientWSTimeout(ws_receive=5, ws_close=5)}),
    "refused": (_nothing, {"path": "/refuses"}),
    "not found": (_nothing, {"path": "/nowhere"}),
    "wrong method": (_nothing, {"method": "POST"}),
    "wrong window": (_nothing, {"compress": 8}),
    "too big": (_next, {"max_msg_size": 100}),
    "not too big": (_next, {"max_msg_size": 101}),
    "too big when unpacked": (_next, {"max_msg_size": 99, "compress": 15}),
    "bytes": (_next, {"decode_text": False}),
    "pings": (_pings, {"autoping": False}),
    "heartbeat": (_beaten, {"heartbeat": 0.4}),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(rondel_loop: Any, case: str) -> None:
    program, arguments = CASES[case]
    same(rondel_loop, program, **arguments)


def frame(opcode: int, data: bytes = b"", first: int = 0x80) -> bytes:
    size = struct.pack("!B", len(data)) if len(data) < 126 else struct.pack("!BH", 126, len(data))
    return bytes([first | opcode]) + size + data


FRAMES: dict[str, bytes] = {
    "fragments": frame(1, b"Gr\xc3", 0) + frame(9, b"in between") + frame(0, b"\xbc\xc3\x9fe"),
    "masked": b"\x81\x83abcd" + bytes(a ^ b for a, b in zip(b"xyz", b"abc", strict=True)),
    "reserved": frame(1, b"x", 0xA0),
    "compressed": frame(1, b"x", 0xC0),
    "opcode": frame(3, b"x"),
    "fragmented ping": frame(9, b"x", 0),
    "long ping": frame(9, b"x" * 126),
    "bad text": frame(1, b"\xff"),
    "continuation of nothing": frame(0, b"x"),
    "new before the end": frame(1, b"x", 0) + frame(1, b"y"),
    "new fragment before the end": frame(1, b"x", 0) + frame(2, b"y", 0),
    "close without code": frame(8),
    "close with code": frame(8, b"\x0f\xa0bye"),
    "close with half a code": frame(8, b"\x03"),
    "close with a wrong code": frame(8, b"\x03\xed"),
    "close with a bad text": frame(8, b"\x03\xe8\xff"),
    "huge": b"\x82\x7f" + b"\xff" * 8,
    "large": b"\x82\x7f" + (1 << 40).to_bytes(8, "big"),
    "message, then nonsense": frame(2, b"fine") + frame(3),
    "half a frame": frame(2, b"fine") + b"\x82\x05ab",
    "nothing": b"",
}


def _handshake(key: bytes, extra: bytes = b"") -> bytes:
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n" + extra + b"\r\n"
    )


async def agree(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    extra: bytes = b"",
    data: bytes = b"",
) -> bool:
    """Agree to a WebSocket and send these bytes; returns whether compression was offered."""
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (x.partition(b":") for x in lines)}
    writer.write(_handshake(fields[b"sec-websocket-key"], extra) + data)
    await writer.drain()
    return b"sec-websocket-extensions" in fields


def sends(data: bytes, extra: bytes = b"", waits: bool = True) -> Any:
    """A server that agrees to a WebSocket, sends these bytes and closes.

    With `waits`, after the client has answered.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await agree(reader, writer, extra, data)
        if waits:
            await reader.read(1)

    return answer


async def _drained(_: Any, socket: Any) -> Any:
    return [await socket.receive() for _ in range(4)] + [socket.closed, socket.close_code]


@pytest.mark.parametrize("case", FRAMES)
def test_frames(rondel_loop: Any, case: str) -> None:
    async def main() -> None:
        waits = case not in ("masked", "half a frame", "nothing")
        async with raw_server(sends(FRAMES[case], waits=waits)) as url:
            told = [await outcome(client, url, _drained, {}) for client in CLIENTS]
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_bytes_one_by_one(rondel_loop: Any) -> None:
    """Frames are whole wherever packets end; a small one does not become megabytes."""
    names = ("fragments", "masked", "message, then nonsense")
    wire = frame(2, b"x" * 300) + b"".join(FRAMES[name] for name in names)
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(5_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    bomb = b"\xc2\x7e" + len(bomb[:-4]).to_bytes(2, "big") + bomb[:-4]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        extension = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
        data = bomb if await agree(reader, writer, extension) else wire
        step = 1 if data is wire else len(data)
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await asyncio.sleep(0)
        await reader.read()

    async def main() -> None:
        async with raw_server(answer) as url:

            async def received(_: Any, socket: Any) -> Any:
                return [await socket.receive() for _ in range(6)]

            for compress in (0, 15):
                arguments = {"compress": compress}
                told = [await outcome(client, url, received, arguments) for client in CLIENTS]
                assert told[1] == told[0]

    run_on(rondel_loop, main)


HANDSHAKES: dict[str, bytes] = {
    "accept": b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Accept: no\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 x\r\nUpgrade: other\r\nConnection: upgrade\r\n\r\n",
    "connection": b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: x\r\n\r\n",
    "status": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "closed": b"",
}


@pytest.mark.parametrize("case", HANDSHAKES)
def test_handshakes(rondel_loop: Any, case: str) -> None:
    async def main() -> None:
        async with raw_server(HANDSHAKES[case]) as url:
            told = [await outcome(client, url, _nothing, {}) for client in CLIENTS]
            assert told[1] == told[0]

    run_on(rondel_loop, main)


@pytest.mark.parametrize(
    "extension",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits=10",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; nonsense=1",
        "something-else",
    ],
)
def test_extensions(rondel_loop: Any, extension: str) -> None:
    async def main() -> None:
        answer = sends(frame(8, b"\x03\xe8"), f"Sec-WebSocket-Extensions: {extension}\r\n".encode())
        async with raw_server(answer) as url:
            told = [await outcome(client, url, _nothing, {"compress": 15}) for client in CLIENTS]
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_heartbeat_without_an_answer(rondel_loop: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await agree(reader, writer)
        await reader.read()

    async def main() -> None:
        async with raw_server(silent) as url:

            async def received(_: Any, socket: Any) -> Any:
                return [await socket.receive(), socket.closed, socket.close_code]

            arguments = {"heartbeat": 0.1}
            told = [await outcome(client, url, received, arguments) for client in CLIENTS]
            assert told[1] == told[0]

    run_on(rondel_loop, main)


def test_much_that_is_not_read(rondel_loop: Any) -> None:
    """A peer that sends faster than the program receives is slowed down, and nothing is lost."""

    async def main() -> None:
        count, size = 300, 50_000
        sent = 0

        async def floods(request: web.Request) -> web.WebSocketResponse:
            nonlocal sent
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            for number in range(count):
                await socket.send_bytes(number.to_bytes(4, "big") * (size // 4))
                sent += 1
            await socket.close()
            return socket

        app = web.Application()
        app.add_routes([web.get("/", floods)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        url = f"http://{HOST}:{runner.addresses[0][1]}/"
        client = CLIENTS[1]
        try:
            async with client.ClientSession() as session, session.ws_connect(url) as socket:
                before = -1
                while before != sent:
                    before = sent
                    await asyncio.sleep(0.2)
                assert sent < count
                seen = [message.data[:4] async for message in socket]
            assert seen == [number.to_bytes(4, "big") for number in range(count)]
        finally:
            await runner.cleanup()

    run_on(rondel_loop, main, limit=30)


def test_masks_and_sizes(rondel_loop: Any) -> None:
    """Every length around the ends of words and headers arrives as it was sent, both ways."""
    noise = random.Random(5).randbytes(1 << 20)
    sizes = [*range(40), 124, 125, 126, 127, 65534, 65535, 65536, 65537, 100_001, 300_003, 1 << 20]

    async def all_sizes(_: Any, socket: Any) -> Any:
        same = []
        for size in sizes:
            await socket.send_bytes(memoryview(noise)[:size])
            same.append(await socket.receive_bytes() == noise[:size])
        # Large and small ones that arrive together, of which memory is used again.
        for size in sizes[::-1]:
            await socket.send_bytes(noise[:size])
        same += [await socket.receive_bytes() == noise[:size] for size in sizes[::-1]]
        return [all(same), len(same)]

    told = same(rondel_loop, all_sizes, max_msg_size=0)
    assert told[1] == [True, 2 * len(sizes)]


def test_fragments_around_control_frames(rondel_loop: Any) -> None:
    """Large fragments, compressed or not, with pings between them and smaller messages after."""
    text = "".join(random.Random(9).choices("abcdefgh ü", k=200_000))
    packer = zlib.compressobj(wbits=-15)
    packed = (packer.compress(text.encode()) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def large(first: int, data: bytes) -> bytes:
        return bytes([first, 127]) + len(data).to_bytes(8, "big") + data

    def fragments(kind: int, data: bytes) -> bytes:
        third = len(data) // 3
        parts = [data[:third], data[third : 2 * third], data[2 * third :]]
        wire = large(kind, parts[0]) + frame(9, b"1") + large(0, parts[1]) + frame(10, b"2")
        return wire + large(0x80, parts[2]) + frame(2, b"small") + frame(9, b"3") + frame(1, b"end")

    async def received(_: Any, socket: Any) -> Any:
        return [await socket.receive() for _ in range(6)]

    async def main() -> None:
        for compressed in (False, True):
            extension = b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if compressed else b""
            wire = fragments(0x41, packed) if compressed else fragments(0x01, text.encode())
            async with raw_server(sends(wire, extension)) as url:
                arguments = {"compress": 15 * compressed, "autoping": False}
                told = [await outcome(client, url, received, arguments) for client in CLIENTS]
                assert told[1] == told[0]
                assert [message[2] for message in told[1][1]] == [
                    b"1",
                    b"2",
                    text,
                    b"small",
                    b"3",
                    "end",
                ]

    run_on(rondel_loop, main)

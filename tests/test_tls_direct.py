"""TLS through the OpenSSL that ``_ssl`` shares, beside SSLObject's: no one can tell."""

import _ssl
import asyncio
import ctypes
import os
import socket
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import HOST, Recorder, collected, is_stock, tcp_pair, until
from tls import NAME, Peer, authority, certificate, client_context, connected_tls, server_context

Run = Callable[..., Any]

BOTH_TLS = True


def is_shared() -> bool:
    """Whether ``_ssl`` is linked with an OpenSSL whose functions can be found."""
    path = getattr(_ssl, "__file__", None)
    if path is None or not ssl.OPENSSL_VERSION.startswith("OpenSSL "):
        return False
    library = ctypes.CDLL(path)
    try:
        version = library.OpenSSL_version_num
    except AttributeError:
        return False
    version.restype = ctypes.c_ulong
    return bool(version() == ssl.OPENSSL_VERSION_NUMBER)


def is_direct(transport: asyncio.Transport) -> bool:
    """Whether a TLS transport of rondel's does without MemoryBIOs."""
    buffer = transport._ssl_protocol._incoming  # type: ignore[attr-defined]
    assert isinstance(buffer, ssl.MemoryBIO) or type(buffer).__name__ == "TLSBuffer"
    return not isinstance(buffer, ssl.MemoryBIO)


def test_the_way_is_chosen(
    rondel_loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(ssl.SSLObject):
        pass

    async def ways() -> list[bool]:
        found = []
        for kind in ("stock", "own"):
            with tcp_pair() as (near, far):
                context = client_context()
                if kind == "own":
                    context.sslobject_class = Own  # type: ignore[misc]
                peer = Peer(far, server_context())
                shaking = asyncio.ensure_future(peer.handshake())
                transport, _ = await asyncio.get_running_loop().create_connection(
                    Recorder, sock=near, ssl=context, server_hostname=NAME
                )
                await shaking
                found.append(is_direct(transport))
                transport.abort()
        return found

    assert rondel_loop.run_until_complete(ways()) == [is_shared(), False]
    monkeypatch.setenv("RONDEL_TLS", "bio")
    assert rondel_loop.run_until_complete(ways()) == [False, False]


def test_the_buffers_are_those_of_the_layer(rondel_loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            layer = transport._ssl_protocol  # type: ignore[attr-defined]
            incoming, outgoing = layer._incoming, layer._outgoing
            # The tickets came before this.
            await peer.send(b"by socket ")
            await until(lambda: protocol.data)
            assert (incoming.pending, outgoing.pending) == (0, 0)
            assert outgoing.read() == b""
            transport.get_extra_info("ssl_object").write(b"told by the object")
            sent = outgoing.pending
            assert sent > len(b"told by the object")
            first = outgoing.read(5)
            assert len(first) == 5
            assert outgoing.pending == sent - 5
            peer.incoming.write(first + outgoing.read())
            assert peer.object.read(100) == b"told by the object"
            # Ciphertext may be put in by hand.
            peer.object.write(b"by hand")
            data = peer.outgoing.read()
            assert incoming.write(memoryview(data)) == len(data)
            assert incoming.pending == transport.get_read_buffer_size() == len(data)  # type: ignore[attr-defined]
            assert incoming.read(3) + incoming.read() == data
            layer.data_received(data)
            assert protocol.data == b"by socket by hand"
            with pytest.raises(TypeError):
                incoming.write("text")

    rondel_loop.run_until_complete(main())


def described(error: BaseException | None) -> tuple[Any, ...]:
    assert isinstance(error, ssl.SSLError)
    # The line of _ssl.c is part of the text.
    return type(error), error.args, str(error), error.library, error.reason


#: What asyncio's loop said, by test: it comes first.
oracle: dict[str, Any] = {}


def compare(name: str, loop: asyncio.AbstractEventLoop, said: Any) -> None:
    if is_stock(loop):
        oracle[name] = said
    elif name in oracle:
        assert said == oracle[name]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("before", [b"", b"data before"])
def test_the_error_of_a_bad_record(
    run: Run, loop: asyncio.AbstractEventLoop, version: ssl.TLSVersion, before: bytes
) -> None:
    async def main() -> None:
        context = client_context()
        context.maximum_version = context.minimum_version = version
        with tcp_pair() as (near, far):
            peer = Peer(far, server_context())
            shaking = asyncio.ensure_future(peer.handshake())
            protocol = Recorder()
            transport, _ = await loop.create_connection(
                lambda: protocol, sock=near, ssl=context, server_hostname=NAME
            )
            await shaking
            await peer.flush()
            if before:
                peer.object.write(before)
            good = peer.outgoing.read()
            peer.object.write(b"data")
            bad = bytearray(peer.outgoing.read())
            bad[-1] ^= 1
            far.send(good + bad)
            await until(lambda: protocol.lost)
            # asyncio loses what was before.
            assert is_stock(loop) or protocol.data == before
            compare(f"bad record {version} {before!r}", loop, described(protocol.lost[0]))
            transport.close()

    run(main)


def test_the_error_of_a_refused_certificate(
    run: Run, loop: asyncio.AbstractEventLoop, reported: list[dict[str, Any]]
) -> None:
    # With TLS 1.3 the client is connected before the server has looked at its certificate: the
    # refusal is an alert in the middle of data.
    async def main() -> None:
        server = server_context()
        server.verify_mode = ssl.CERT_REQUIRED
        with tcp_pair() as (near, far):
            peer = Peer(far, server)

            async def refuse() -> None:
                with pytest.raises(ssl.SSLError):
                    await peer.handshake()
                await peer.flush()

            refusing = asyncio.ensure_future(refuse())
            protocol = Recorder()
            transport, _ = await loop.create_connection(
                lambda: protocol, sock=near, ssl=client_context(), server_hostname=NAME
            )
            await refusing
            await until(lambda: protocol.lost)
            error = protocol.lost[0]
            compare("refused certificate", loop, described(error))
            assert isinstance(error, ssl.SSLError)
            assert error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
            transport.close()

    run(main)
    reported.clear()


def test_the_program_may_use_the_object(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            found = transport.get_extra_info("ssl_object")
            size = 300_000
            receiving = asyncio.ensure_future(peer.read(size))
            for _ in range(size // 1000):
                transport.write(bytes(1000))
                assert found.pending() == 0
                assert found.version() == "TLSv1.3"
                assert found.getpeercert()["subjectAltName"]
                assert found.cipher() == transport.get_extra_info("cipher")
                await asyncio.sleep(0)
            assert await receiving == bytes(size)
            await peer.send(b"x" * size)
            await until(lambda: len(protocol.data) == size)
            assert found.session is not None
            assert found.session.has_ticket

    run(main)


def test_a_ticket_resumes(run: Run, loop: asyncio.AbstractEventLoop) -> None:
    # Tickets come after the handshake, in the way of data.
    async def main() -> None:
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder())
            return protocols[-1]

        server = await loop.create_server(factory, HOST, 0, ssl=server_context())
        port = server.sockets[0].getsockname()[1]

        def visit() -> list[bool]:
            context, session, reused = client_context(), None, []
            for _ in range(2):
                with (
                    socket.create_connection((HOST, port), timeout=10) as sock,
                    context.wrap_socket(sock, server_hostname=NAME, session=session) as secure,
                ):
                    secure.sendall(b"hello")
                    assert secure.recv(100) == b"answer"
                    session = secure.session
                    reused.append(bool(secure.session_reused))
            return reused

        visiting = asyncio.ensure_future(asyncio.to_thread(visit))
        for number in range(2):
            await until(lambda number=number: len(protocols) > number and protocols[number].data)
            protocols[number].transport.write(b"answer")
        assert await visiting == [False, True]
        server.close()

    run(main)


def test_a_client_authenticates_later(run: Run, loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        client, server = client_context(), server_context()
        client.post_handshake_auth = True
        certificate(NAME).configure_cert(client)
        server.verify_mode = ssl.CERT_REQUIRED
        server.post_handshake_auth = True
        authority().configure_trust(server)
        with tcp_pair() as (near, far):
            peer = Peer(far, client, server_side=False, server_hostname=NAME)
            shaking = asyncio.ensure_future(peer.handshake())
            protocol = Recorder()
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock=near, ssl=server
            )
            await shaking
            found = transport.get_extra_info("ssl_object")
            assert not found.getpeercert()
            found.verify_client_post_handshake()
            transport.write(b"who are you?")
            assert await peer.read(12) == b"who are you?"
            await peer.send(b"me")
            await until(lambda: protocol.data == b"me")
            assert found.getpeercert()["subjectAltName"]
            transport.abort()

    run(main)


def test_callbacks_of_the_context_are_called(
    run: Run, loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        messages: list[str] = []
        names: list[str | None] = []
        server = server_context()
        server.sni_callback = lambda _object, name, _context: names.append(name)
        client = client_context()
        client._msg_callback = lambda *about: messages.append(about[1])  # type: ignore[attr-defined]
        logged = client_context()
        logged.keylog_filename = str(tmp_path / "keys")  # type: ignore[misc]
        listener = await loop.create_server(Recorder, HOST, 0, ssl=server)
        port = listener.sockets[0].getsockname()[1]
        for context in (client, logged):
            transport, protocol = await loop.create_connection(
                Recorder, HOST, port, ssl=context, server_hostname=NAME
            )
            transport.write(b"data")
            transport.close()
            await until(lambda protocol=protocol: protocol.lost)
        assert set(messages) == {"read", "write"}
        assert names == [NAME, NAME]
        assert "TRAFFIC_SECRET" in (tmp_path / "keys").read_text()
        listener.close()

    run(main)


def test_other_threads_may_ask_the_object(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, peer):
            found = transport.get_extra_info("ssl_object")
            done = threading.Event()
            answers: set[str] = set()

            def ask() -> None:
                while not done.is_set():
                    answers.add(found.version())
                    assert found.getpeercert()
                    found.pending()

            asking = asyncio.ensure_future(asyncio.to_thread(ask))
            try:
                for _ in range(100):
                    transport.write(bytes(10_000))
                    assert await peer.read(10_000) == bytes(10_000)
                    await peer.send(b"y" * 10_000)
                await until(lambda: len(protocol.data) == 1_000_000)
            finally:
                done.set()
            await asking
            assert answers == {"TLSv1.3"}

    run(main, limit=25)


def test_nothing_leaks(run: Run) -> None:
    async def main() -> Any:
        async with connected_tls() as (transport, _, peer):
            transport.write(b"data")
            assert await peer.read(4) == b"data"
            layer = transport._ssl_protocol  # type: ignore[attr-defined]
            return weakref.ref(layer)

    assert collected(run(main))


CHECK = """
import asyncio, gc, resource, ssl, sys
sys.path.insert(0, sys.argv[1])
import rondel
from support import Recorder
from tls import connected_tls

async def main():
    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    for round in range(4):
        for _ in range(60):
            async with connected_tls() as (transport, protocol, peer):
                transport.write(bytes(100_000))
                assert len(await peer.read(100_000)) == 100_000
        if round == 1:
            before = resident()
    # 120 connections with 100 kB each: a lost buffer would show.
    print(resident() - before)

rondel.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["", "bio"])
def test_memory_stays(way: str, rondel: Any) -> None:
    environ = {**os.environ, "RONDEL_TLS": way}
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, tests],
        env=environ, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 4_000_000

"""TLS connections: the handshake, what the context asks for, and what is known afterwards."""

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support import HOST, Recorder, collected, connected, is_stock, tcp_pair, until
from tls import NAME, Peer, authority, certificate, client_context, connected_tls, server_context

Loop = asyncio.AbstractEventLoop
Run = Callable[..., Any]

BOTH_TLS = True


class Echo(Recorder):
    """Sends back what it gets."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


@contextlib.asynccontextmanager
async def serving(
    factory: Callable[[], asyncio.BaseProtocol] = Echo,
    context: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[int]:
    """A TLS server of the running loop; its port."""
    loop = asyncio.get_running_loop()
    context = server_context() if context is None else context
    server = await loop.create_server(factory, HOST, 0, ssl=context, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def connect(
    port: int, context: ssl.SSLContext | None = None, name: str = NAME, **options: Any
) -> tuple[asyncio.Transport, Recorder]:
    loop = asyncio.get_running_loop()
    context = client_context() if context is None else context
    transport, protocol = await loop.create_connection(
        Recorder, HOST, port, ssl=context, server_hostname=name, **options
    )
    assert isinstance(transport, asyncio.Transport)
    return transport, protocol


async def finish(transport: asyncio.Transport, protocol: Recorder) -> None:
    transport.close()
    await until(lambda: protocol.lost)
    assert protocol.lost == [None]


def test_echo(run: Run) -> None:
    async def main() -> None:
        servers: list[Echo] = []

        def factory() -> Echo:
            servers.append(Echo())
            return servers[-1]

        async with serving(factory) as port:
            transport, client = await connect(port)
            assert client.events == ["made"]
            assert client.transport is transport
            transport.write(b"one")
            transport.write(bytearray(b" two"))
            transport.writelines([b" three", bytearray(b" "), memoryview(b"four")])
            transport.write(b"")
            await until(lambda: client.data == b"one two three four")
            await finish(transport, client)
            await until(lambda: servers[0].lost)
            assert servers[0].events[0] == "made"
            assert servers[0].events[-2:] == ["eof", "lost"]
            assert servers[0].lost == [None]

    run(main)


def test_default_context_by_true(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    context = client_context()
    monkeypatch.setattr(ssl, "create_default_context", lambda: context)

    async def main() -> None:
        async with serving() as port:
            loop = asyncio.get_running_loop()
            transport, client = await loop.create_connection(Recorder, HOST, port, ssl=True)
            assert transport.get_extra_info("sslcontext") is context
            await finish(transport, client)

    run(main)


def test_host_is_the_name_that_is_verified(run: Run) -> None:
    async def main() -> None:
        async with serving() as port:
            loop = asyncio.get_running_loop()
            transport, client = await loop.create_connection(
                Recorder, HOST, port, ssl=client_context()
            )
            await finish(transport, client)  # 127.0.0.1 is in the certificate too

    run(main)


def test_extra_info(run: Run) -> None:
    async def main() -> None:
        async with serving() as port:
            context = client_context()
            transport, client = await connect(port, context)
            info = transport.get_extra_info
            assert info("sslcontext") is context
            assert isinstance(info("ssl_object"), ssl.SSLObject)
            assert info("peercert") == info("ssl_object").getpeercert()
            assert ("DNS", NAME) in info("peercert")["subjectAltName"]
            assert info("cipher") == info("ssl_object").cipher()
            assert info("compression") is None
            assert info("peername") == (HOST, port)
            assert info("sockname")[0] == HOST
            assert info("socket").getpeername() == (HOST, port)
            assert info("nothing") is None
            assert info("nothing", 7) == 7
            await finish(transport, client)
            # rondel's knows the addresses still, as a plain transport does.
            gone = "gone" if is_stock(asyncio.get_running_loop()) else (HOST, port)
            assert info("peername", "gone") == gone
            assert info("sslcontext") is context

    run(main)


def test_transport_looks_like_asyncios(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, protocol, _):
            assert isinstance(transport, asyncio.Transport)
            assert transport.get_protocol() is protocol
            assert transport.can_write_eof() is False
            with pytest.raises(NotImplementedError):
                transport.write_eof()
            for wrong in ("text", 1, None, [b"x"]):
                with pytest.raises(TypeError, match="^data: expecting a bytes-like instance, got "):
                    transport.write(wrong)  # type: ignore[arg-type]
            transport.note = "mine"  # type: ignore[attr-defined]
            assert weakref.ref(transport)() is transport
            below = transport._ssl_protocol._transport  # type: ignore[attr-defined]
            assert isinstance(below, asyncio.Transport)
            context = transport.get_extra_info("sslcontext")
            assert transport._ssl_protocol._sslcontext is context  # type: ignore[attr-defined]
            assert transport._start_tls_compatible is True  # type: ignore[attr-defined]

    run(main)


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("other.example", {}, "Hostname mismatch"),
        (NAME, {"expired": True}, "certificate has expired"),
        (NAME, {"trust": False}, "unable to get local issuer|self.signed"),
    ],
)
def test_verification_fails(run: Run, name: str, options: dict[str, bool], code: str) -> None:
    async def main() -> None:
        expired = options.get("expired", False)
        server = Recorder()
        async with serving(lambda: server, server_context(expired=expired)) as port:
            context = client_context(trust=options.get("trust", True))
            with pytest.raises(ssl.SSLCertVerificationError, match=code) as caught:
                await connect(port, context, name)
            assert isinstance(caught.value, ssl.SSLError)
            await asyncio.sleep(0.05)
            # Neither was the connection made for anybody, nor is it lost.
            assert server.events == []

    run(main)


def test_verification_can_be_off(run: Run) -> None:
    async def main() -> None:
        context = client_context(trust=False)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        async with serving(context=server_context(expired=True)) as port:
            transport, client = await connect(port, context, "other.example")
            assert transport.get_extra_info("peercert") == {}
            await finish(transport, client)

    run(main)


def test_client_certificate(run: Run) -> None:
    async def main() -> None:
        server = server_context()
        server.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(server)
        protocol = Recorder()
        async with serving(lambda: protocol, server) as port:
            context = client_context()
            certificate("client.example").configure_cert(context)
            transport, client = await connect(port, context)
            await until(lambda: protocol.events)
            names = protocol.transport.get_extra_info("peercert")["subjectAltName"]
            assert ("DNS", "client.example") in names
            await finish(transport, client)
            await until(lambda: protocol.lost)

    run(main)


def test_client_certificate_is_missing(loop: Loop, run: Run) -> None:
    async def main() -> None:
        server = server_context()
        server.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(server)
        server.maximum_version = ssl.TLSVersion.TLSv1_2
        protocol = Recorder()
        async with serving(lambda: protocol, server) as port:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect(port)
            assert protocol.events == []

    run(main)


def test_failed_handshake_of_a_server_is_told_in_debug_mode(
    loop: Loop,
    run: Run,
    reported: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "asyncio")

    async def main() -> None:
        protocol = Recorder()
        async with serving(lambda: protocol) as port:
            for debug in (False, True):
                loop.set_debug(debug)
                caplog.clear()
                with socket.create_connection((HOST, port)) as sock:
                    sock.setblocking(False)
                    sock.send(b"GET / HTTP/1.0\r\n\r\n")
                    await until(lambda s=sock: _ended(s))
                    await asyncio.sleep(0.01)
                failed = [r for r in caplog.records if "SSL handshake failed" in r.getMessage()]
                if not debug:
                    assert (reported, failed) == ([], [])
                    continue
                assert len(failed) == 1
                [context] = reported
                assert context["message"] == ("Error on transport creation for incoming connection")
                assert isinstance(context["exception"], ssl.SSLError)
                assert context["protocol"] is protocol
                assert isinstance(context["transport"], asyncio.Transport)
                loop.set_debug(False)
        assert protocol.events == []

    run(main)


def _ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(4096) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_alpn(run: Run) -> None:
    async def main() -> None:
        server = server_context()
        server.set_alpn_protocols(["h2", "http/1.1"])
        async with serving(context=server) as port:
            context = client_context()
            context.set_alpn_protocols(["spdy", "http/1.1"])
            transport, client = await connect(port, context)
            ssl_object = transport.get_extra_info("ssl_object")
            assert ssl_object.selected_alpn_protocol() == "http/1.1"
            await finish(transport, client)

    run(main)


def test_sni_callback_chooses_the_certificate(run: Run) -> None:
    async def main() -> None:
        asked: list[str | None] = []
        other = server_context("other.example")

        def choose(sslobj: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            asked.append(name)
            if name == "other.example":
                sslobj.context = other

        server = server_context()
        server.sni_callback = choose  # type: ignore[assignment]
        async with serving(context=server) as port:
            for name in (NAME, "other.example"):
                transport, client = await connect(port, name=name)
                cert = transport.get_extra_info("peercert")
                assert ("DNS", name) in cert["subjectAltName"]
                await finish(transport, client)
        assert asked == [NAME, "other.example"]

    run(main)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_is_resumed(run: Run, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        server = server_context()
        context = client_context()
        context.maximum_version = context.minimum_version = version
        sessions: list[ssl.SSLSession] = []
        reused: list[bool] = []

        class Resuming(ssl.SSLObject):
            """A class of the program's own, which is asked and not passed by."""

            def do_handshake(self) -> None:
                if sessions and self.session is None:
                    self.session = sessions[-1]
                super().do_handshake()

        context.sslobject_class = Resuming
        async with serving(context=server) as port:
            for _ in range(2):
                transport, client = await connect(port, context)
                transport.write(b"tickets come with the answer")
                await until(lambda c=client: c.data)
                ssl_object = transport.get_extra_info("ssl_object")
                assert type(ssl_object) is Resuming
                reused.append(ssl_object.session_reused)
                sessions.append(ssl_object.session)
                await finish(transport, client)
        assert reused == [False, True]

    run(main)


def test_versions_that_do_not_meet(run: Run) -> None:
    async def main() -> None:
        server = server_context()
        server.minimum_version = ssl.TLSVersion.TLSv1_3
        async with serving(context=server) as port:
            context = client_context()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await connect(port, context)
            context = client_context()
            transport, client = await connect(port, context)
            assert transport.get_extra_info("ssl_object").version() == "TLSv1.3"
            await finish(transport, client)

    run(main)


def test_keylog(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        context = client_context()
        context.keylog_filename = str(tmp_path / "keys")
        async with serving() as port:
            transport, client = await connect(port, context)
            await finish(transport, client)
        assert b"SECRET" in (tmp_path / "keys").read_bytes()

    run(main)


def test_wrong_arguments(loop: Loop, run: Run) -> None:
    context = client_context()

    async def refused(
        error: type[Exception], message: str, method: str, *args: Any, **options: Any
    ) -> None:
        with pytest.raises(error, match=message):
            await getattr(loop, method)(*args, **options)

    async def main() -> None:
        client = "create_connection", asyncio.Protocol
        await refused(ValueError, "only meaningful with ssl", *client, HOST, 1, server_hostname="x")
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            text = f"{name} is only meaningful with ssl"
            await refused(ValueError, text, *client, HOST, 1, **{name: 1})
            await refused(ValueError, text, "create_server", asyncio.Protocol, HOST, 0, **{name: 1})
            for wrong in (0, -1, -0.5):
                with tcp_pair() as (near, _):
                    await refused(
                        ValueError,
                        f"{name} should be a positive number, got {wrong}",
                        *client,
                        sock=near,
                        ssl=context,
                        server_hostname="x",
                        **{name: wrong},
                    )
        with tcp_pair() as (near, _):
            await refused(ValueError, "You must set server_hostname", *client, sock=near, ssl=True)
        for wrong in (True, False):
            await refused(
                TypeError,
                "ssl argument must be an SSLContext or None",
                "create_server",
                asyncio.Protocol,
                HOST,
                0,
                ssl=wrong,
            )

    run(main)


def test_socket_is_closed_when_the_context_refuses(loop: Loop, run: Run) -> None:
    if is_stock(loop):
        pytest.skip("asyncio leaves the socket to the collector")

    async def main() -> None:
        with tcp_pair() as (near, _):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with pytest.raises(ssl.SSLError):
                await loop.create_connection(
                    asyncio.Protocol, sock=near, ssl=context, server_hostname=NAME
                )
            assert near.fileno() == -1

    run(main)


def test_connect_accepted_socket(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            peer = Peer(far, client_context(), server_side=False, server_hostname=NAME)
            shaking = asyncio.ensure_future(peer.handshake())
            transport, protocol = await loop.connect_accepted_socket(
                Echo, near, ssl=server_context()
            )
            await shaking
            await peer.send(b"hello")
            assert await peer.read(5) == b"hello"
            transport.close()
            await peer.unwrap()
            await until(lambda: protocol.lost)

    run(main)


def test_ssl_socket_is_refused(loop: Loop, run: Run) -> None:
    async def main() -> None:
        with tcp_pair() as (near, _):
            wrapped = client_context().wrap_socket(
                near, server_hostname=NAME, do_handshake_on_connect=False
            )
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await loop.create_connection(
                    asyncio.Protocol, sock=wrapped, ssl=client_context(), server_hostname=NAME
                )
            wrapped.close()

    run(main)


def test_set_protocol(run: Run) -> None:
    async def main() -> None:
        async with connected_tls() as (transport, first, peer):
            await peer.send(b"first")
            await until(lambda: first.data == b"first")
            second = Recorder()
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            await peer.send(b"second")
            await until(lambda: second.data == b"second")
            transport.abort()
            await until(lambda: second.lost)
            assert first.lost == []
            assert transport.get_protocol() is None

    run(main)


def test_nothing_keeps_a_connection_that_is_over(run: Run) -> None:
    async def main() -> list[Any]:
        async with serving() as port:
            context = client_context()
            transport, client = await connect(port, context)
            transport.write(b"x")
            await until(lambda: client.data)
            await finish(transport, client)
            things = [transport, client, context, transport._ssl_protocol]  # type: ignore[attr-defined]
            return [weakref.ref(thing) for thing in things]

    refs = run(main)
    assert all(map(collected, refs))


def test_unclosed_transport_is_warned_about(loop: Loop) -> None:
    async def main() -> None:
        async with connected() as (below, _, _):
            protocol = Recorder()
            starting = asyncio.ensure_future(
                loop.start_tls(below, protocol, client_context(), server_hostname=NAME)
            )
            await asyncio.sleep(0.01)
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting

    loop.run_until_complete(main())
    gc.collect()


def test_name_of_asyncios_stream_functions(run: Run) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, HOST, 0, ssl=server_context())
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            HOST, port, ssl=client_context(), server_hostname=NAME
        )
        writer.write(b"line\n")
        assert await reader.read() == b"line\n"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main)

"""What rondel does not do yet says so by name."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support import HOST, tcp_pair

Loop = asyncio.AbstractEventLoop

CALLS: dict[str, Callable[[Any], Any]] = {
    "start_tls": lambda loop: loop.start_tls(None, None, None),
    "connect_read_pipe": lambda loop: loop.connect_read_pipe(asyncio.Protocol, None),
    "connect_write_pipe": lambda loop: loop.connect_write_pipe(asyncio.Protocol, None),
    "subprocess_exec": lambda loop: loop.subprocess_exec(asyncio.SubprocessProtocol, "true"),
    "subprocess_shell": lambda loop: loop.subprocess_shell(asyncio.SubprocessProtocol, "true"),
}


@pytest.mark.parametrize("name", CALLS)
def test_method_says_that_it_is_not_there_yet(rondel_loop: Loop, name: str) -> None:
    async def main() -> None:
        await CALLS[name](rondel_loop)

    with pytest.raises(NotImplementedError, match=rf"\b{name}\b"):
        rondel_loop.run_until_complete(main())


def test_tls_says_that_it_is_not_there_yet(rondel_loop: Loop) -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def main() -> None:
        with tcp_pair() as (near, _), socket.socket() as listener:
            listener.bind((HOST, 0))
            before = len(os.listdir("/proc/self/fd"))
            for name, call in (
                (
                    "create_connection",
                    lambda: rondel_loop.create_connection(
                        asyncio.Protocol, sock=near, ssl=context, server_hostname="x"
                    ),
                ),
                (
                    "create_server",
                    lambda: rondel_loop.create_server(asyncio.Protocol, sock=listener, ssl=context),
                ),
            ):
                with pytest.raises(NotImplementedError, match=rf"\b{name}\b"):
                    await call()
            assert len(os.listdir("/proc/self/fd")) == before

    rondel_loop.run_until_complete(main())

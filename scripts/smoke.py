"""What a wheel must do wherever it was installed: run on its own with nothing but the package."""

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
import tempfile

import rondel


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, rondel.Loop), loop

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.close()
    await writer.wait_closed()
    server.close()

    async with asyncio.timeout(20):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print('child')", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await child.communicate()
    assert output == b"child\n", output
    assert child.returncode == 0

    assert await asyncio.to_thread(sum, [1, 2]) == 3
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
            raise AssertionError("the timeout did not come")
    # Whether TLS's way into this interpreter works shows as soon as a handshake begins.
    near, far = await asyncio.to_thread(__import__("socket").socketpair)
    with far:
        far.send(b"no TLS at all\n")
        try:
            await loop.create_connection(
                asyncio.Protocol, sock=near, ssl=ssl.create_default_context(), server_hostname="x"
            )
        except ssl.SSLError:
            pass
        else:
            raise AssertionError("there was no TLS")


rondel.run(main())
with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
    print("import asyncio; print(type(asyncio.new_event_loop()).__name__)", file=script, flush=True)
    command = [os.path.join(os.path.dirname(sys.executable), "rondel"), "run", script.name]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.stdout == "Loop\n", told
print(f"rondel {rondel.__version__} works on Python {sys.version.split()[0]}")

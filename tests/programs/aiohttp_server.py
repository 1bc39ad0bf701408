"""web.run_app with a handler that is still at work when the server is told to stop."""

import asyncio
import socket
import sys

from aiohttp import web
from loops import name_of, new_event_loop

stopping = asyncio.Event()


async def handler(request: web.Request) -> web.Response:
    print("handler started", flush=True)
    await stopping.wait()
    return web.Response(text=name_of(asyncio.get_running_loop()))


async def on_shutdown(app: web.Application) -> None:
    print("on_shutdown", flush=True)
    stopping.set()


async def on_cleanup(app: web.Application) -> None:
    print("on_cleanup", flush=True)


app = web.Application()
app.router.add_get("/", handler)
app.on_shutdown.append(on_shutdown)
app.on_cleanup.append(on_cleanup)
with socket.create_server(("127.0.0.1", 0)) as sock:
    print(sock.getsockname()[1], flush=True)
    web.run_app(app, sock=sock, print=None, loop=new_event_loop(sys.argv[1]))

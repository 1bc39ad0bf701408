"""An ASGI application that shows what a server does: it says on standard output what happens.

It is written to the ASGI specification (HTTP, WebSocket and Lifespan, version 3 and 2.x of it)
and imports no framework.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from loops import name_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

release = asyncio.Event()


def say(word: str) -> None:
    print(word, flush=True)


async def app(scope: Message, receive: Receive, send: Send) -> None:
    await {"lifespan": lifespan, "http": http, "websocket": websocket}[scope["type"]](
        scope, receive, send
    )


async def lifespan(scope: Message, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    scope["state"]["loop"] = name_of(asyncio.get_running_loop())
    say("startup")
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    say("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def http(scope: Message, receive: Receive, send: Send) -> None:
    route: dict[str, Callable[[Message, Receive, Send], Awaitable[None]]] = {
        "/about": about,
        "/echo": echo,
        "/stream": stream,
        "/release": release_stream,
        "/held": held,
        "/big": big,
    }
    await route[scope["path"]](scope, receive, send)


async def start(send: Send, status: int = 200, **headers: str) -> None:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def chunk(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def about(scope: Message, receive: Receive, send: Send) -> None:
    """What the server told: the loop it runs on, where the client is."""
    facts = {"loop": scope["state"]["loop"], "client": scope["client"]}
    body = json.dumps(facts).encode()
    await start(send, content_length=str(len(body)))
    await chunk(send, body, more=False)


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """The request's body, part by part as it arrives."""
    await start(send)
    more = True
    while more:
        message = await receive()
        assert message["type"] == "http.request", message
        more = message.get("more_body", False)
        await chunk(send, message["body"], more=more)


async def stream(scope: Message, receive: Receive, send: Send) -> None:
    """A first part; the second only after another request asked for it."""
    release.clear()
    await start(send)
    await chunk(send, b"first", more=True)
    await release.wait()
    await chunk(send, b"second", more=False)


async def release_stream(scope: Message, receive: Receive, send: Send) -> None:
    release.set()
    await start(send, 204)
    await chunk(send, b"", more=False)


async def held(scope: Message, receive: Receive, send: Send) -> None:
    """A response that is under way when the server is told to stop."""
    say("held")
    await asyncio.sleep(0.5)
    await start(send, content_length="4")
    await chunk(send, b"done", more=False)


async def big(scope: Message, receive: Receive, send: Send) -> None:
    """A body without end, until the client leaves."""
    await start(send)
    gone = asyncio.create_task(disconnected(receive))
    while not gone.done():
        await chunk(send, bytes(100_000), more=True)
        # A server does not wait in send() for a client that is gone; `gone` needs a turn.
        await asyncio.sleep(0)
    say("client left")


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def websocket(scope: Message, receive: Receive, send: Send) -> None:
    """Echo; "leave" closes from this side."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "leave":
            await send({"type": "websocket.close", "code": 4001, "reason": "as told"})
            return
        kind = "text" if message.get("text") is not None else "bytes"
        await send({"type": "websocket.send", kind: message[kind]})
    say(f"websocket closed {message['code']}")

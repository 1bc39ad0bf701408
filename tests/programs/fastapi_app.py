"""A FastAPI application that uses what its users use; it says on standard output what happens."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from asgi_app import say
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from loops import name_of
from pydantic import BaseModel


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    say("startup")
    yield {}
    await asyncio.sleep(0)
    say("shutdown")


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    """What /items takes."""

    name: str
    count: int


async def opened() -> AsyncIterator[str]:
    """A dependency that is torn down after the response."""
    yield "resource"
    say("resource closed")


@app.get("/about")
async def about() -> dict[str, str]:
    return {"loop": name_of(asyncio.get_running_loop())}


@app.get("/thread")
def thread() -> dict[str, bool]:
    """A plain function, which FastAPI runs in a worker thread."""
    return {"main": threading.current_thread() is threading.main_thread()}


@app.post("/items")
async def items(item: Item) -> Item:
    return Item(name=item.name.upper(), count=item.count + 1)


@app.get("/missing")
async def missing() -> None:
    raise HTTPException(404, "nothing here")


@app.get("/resource")
async def resource(held: Annotated[str, Depends(opened)]) -> dict[str, str]:
    return {"held": held}


@app.get("/background")
async def background(later: BackgroundTasks) -> None:
    later.add_task(say, "in the background")


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(100):
            await asyncio.sleep(0)
            yield b"%d;" % number * 1000

    return StreamingResponse(parts())


@app.get("/held")
async def held() -> str:
    """A response that is under way when the server is told to stop."""
    say("held")
    await asyncio.sleep(0.3)
    return "done"


@app.websocket("/echo/{name}")
async def echo(websocket: WebSocket, name: str) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_json({"to": name, "text": text})
    say(f"{name} left")

"""gRPC's asyncio server and client on one loop; prints what came of it as JSON.

Messages are plain bytes: no generated code is needed. Argument: the loop's name.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from loops import name_of, new_event_loop

SERVICE = "rondel.Echo"


async def unary(request: bytes, context: Any) -> bytes:
    if request == b"forbidden":
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "as told")
    return request[::-1]


async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number


async def up(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"%d" % sum([int(request) async for request in requests])


async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()


async def slow(request: bytes, context: Any) -> bytes:
    started.set()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        cancelled.set()
        raise
    return b""


started = asyncio.Event()
cancelled = asyncio.Event()


def handlers() -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Down": grpc.unary_stream_rpc_method_handler(down),
            "Up": grpc.stream_unary_rpc_method_handler(up),
            "Both": grpc.stream_stream_rpc_method_handler(both),
            "Slow": grpc.unary_unary_rpc_method_handler(slow),
        },
    )


async def failure(call: Any) -> list[str]:
    """The status and the details that a call fails with."""
    try:
        await call
    except grpc.aio.AioRpcError as exc:
        return [exc.code().name, exc.details() or ""]
    raise AssertionError("the call did not fail")


async def calls(channel: grpc.aio.Channel) -> dict[str, Any]:
    def path(name: str) -> str:
        return f"/{SERVICE}/{name}"

    async def texts() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"text %d" % number

    async def numbers() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d" % number

    one = channel.unary_unary(path("Unary"))
    out: dict[str, Any] = {}
    out["unary"] = (await one(b"abc")).decode()
    requests = [b"%d" % number for number in range(1000, 1200)]
    answers = await asyncio.gather(*map(one, requests))
    out["many"] = answers == [request[::-1] for request in requests]
    # Two megabytes; gRPC takes no message of more than four.
    big = bytes(range(256)) * 8000
    out["big"] = await one(big) == big[::-1]
    out["down"] = [int(part) async for part in channel.unary_stream(path("Down"))(b"100")]
    out["up"] = int(await channel.stream_unary(path("Up"))(numbers()))
    both = channel.stream_stream(path("Both"))(texts())
    out["both"] = [part.decode() async for part in both]
    out["abort"] = await failure(one(b"forbidden"))
    out["deadline"] = (await failure(channel.unary_unary(path("Slow"))(b"", timeout=1)))[0]
    await cancelled.wait()
    cancelled.clear()
    started.clear()
    call = channel.unary_unary(path("Slow"))(b"")
    await started.wait()
    call.cancel()
    await cancelled.wait()
    out["cancelled"] = call.cancelled()
    out["unknown"] = (await failure(channel.unary_unary(path("Nothing"))(b"")))[0]
    return out


async def main() -> dict[str, Any]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(15), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        out = await calls(channel)
    await server.stop(grace=None)
    out["loop"] = name_of(asyncio.get_running_loop())
    return out


with asyncio.Runner(loop_factory=lambda: new_event_loop(sys.argv[1])) as runner:
    print(json.dumps(runner.run(main())))

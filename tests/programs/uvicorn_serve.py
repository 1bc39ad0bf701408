"""uvicorn embedded: a Server whose serve() coroutine is run by the program itself."""

import asyncio
import sys

import uvicorn
from asgi_app import app
from loops import new_event_loop

server = uvicorn.Server(uvicorn.Config(app, port=0, loop="none", access_log=False))
if sys.argv[1] == "rondel":
    import rondel

    rondel.run(server.serve())
else:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(sys.argv[1])) as runner:
        runner.run(server.serve())

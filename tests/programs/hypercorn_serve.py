"""hypercorn embedded: its serve() coroutine, run by the program itself.

Arguments: the loop's name, then for TLS the files of a certificate and its key.
"""

import asyncio
import sys

from asgi_app import app
from hypercorn.asyncio import serve
from hypercorn.config import Config
from loops import new_event_loop

config = Config()
config.bind = ["127.0.0.1:0"]
config.graceful_timeout = 5
if sys.argv[2:]:
    config.certfile, config.keyfile = sys.argv[2:]
with asyncio.Runner(loop_factory=lambda: new_event_loop(sys.argv[1])) as runner:
    runner.run(serve(app, config))

"""grpc.aio on the loop, in a process of its own: gRPC has threads that outlive a test."""

import json
import os
import subprocess
import sys

import pytest
from servers import PROGRAMS


@pytest.mark.parametrize("loop_name", ["asyncio", "rondel"])
def test_calls_of_every_kind(loop_name: str) -> None:
    done = subprocess.run(
        [sys.executable, "grpc_echo.py", loop_name],
        cwd=PROGRAMS,
        # A proxy of the machine's has no business on the loopback interface.
        env={**os.environ, "no_grpc_proxy": "127.0.0.1"},
        capture_output=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {
        "unary": "cba",
        "many": True,
        "big": True,
        "down": list(range(100)),
        "up": sum(range(100)),
        "both": [f"TEXT {number}" for number in range(100)],
        "abort": ["PERMISSION_DENIED", "as told"],
        "deadline": "DEADLINE_EXCEEDED",
        "cancelled": True,
        "unknown": "UNIMPLEMENTED",
        "loop": loop_name,
    }
    assert b"Traceback" not in done.stderr, done.stderr.decode()

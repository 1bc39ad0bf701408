"""What test_advice.py has advised on. Worker processes import it, so it holds nothing else."""

import asyncio
import hashlib
import pathlib
import time
import urllib.request

BUFFER = bytes(4 << 20)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


async def sleep_on_a_loop(seconds: float) -> None:
    await asyncio.sleep(seconds)


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        body: bytes = response.read()
    return body


async def fetch_on_a_loop(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.endswith(b"hello")
    return answer


def hash_buffer() -> bytes:
    return hashlib.sha256(BUFFER).digest()


def compute(count: int) -> int:
    return sum(number * number for number in range(count))


def compute_and_sleep(count: int, seconds: float) -> None:
    compute(count)
    time.sleep(seconds)


def read_file(path: str) -> int:
    return len(pathlib.Path(path).read_bytes())


def multiply(size: int) -> float:
    import numpy

    matrix = numpy.ones((size, size))
    return float((matrix @ matrix)[0, 0])


def increment(number: int) -> int:
    return number + 1


def fail(text: str) -> None:
    raise LookupError(text)

"""rondel.files against Python's own files: the same random calls, the same results and errors."""

import asyncio
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rondel")
import rondel.files

#: How many files each case goes through; more by the environment, to look for rare differences.
ROUNDS = int(os.environ.get("RONDEL_FUZZ_ROUNDS", "40"))
CALLS = 40

BINARY_MODES = ["rb", "wb", "ab", "xb", "r+b", "w+b", "a+b"]
TEXT_MODES = ["r", "w", "a", "x", "r+", "w+", "a+"]
ENCODINGS = ["utf-8", "ascii", "latin-1", "utf-16", "utf-8-sig", "cp1252", "utf-16-le"]
# fmt: off
BINARY_CALLS = [
    "read", "read", "read1", "readline", "readline", "readlines", "readinto", "readinto1", "peek",
    "write", "write", "writelines", "seek", "seek", "tell", "flush", "truncate", "fileno",
    "isatty", "readable", "writable", "seekable", "next", "close",
]
TEXT_CALLS = [
    "read", "read", "readline", "readline", "readline", "readlines", "write", "write",
    "writelines", "seek", "seek", "tell", "tell", "flush", "truncate", "isatty", "writable",
    "seekable", "readable", "next", "next", "close",
]
# fmt: on
NEWLINES = [None, "", "\n", "\r", "\r\n"]


def sizes(rng: random.Random) -> int:
    return rng.choice([0, 1, 2, 7, 100, 4095, 4096, 4097, 8192, 8193, 20_000, 140_000, -1])


def content(rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    length = rng.choice([0, 1, 10, 100, 5000, 9000, 30_000, 300_000])
    if kind == 0:
        return rng.randbytes(length)
    ends = [b"\n", b"\r\n", b"\r", b"\n\n"]
    out = bytearray()
    while len(out) < length:
        out += b"x" * rng.choice([0, 1, 30, 80, 5000])
        out += "äé€\U0001f600".encode() * (kind == 1)
        out += ends[kind % 4] if rng.random() < 0.9 else rng.choice(ends)
    return bytes(out)


def text(rng: random.Random) -> str:
    parts = ["a", "line\n", "\r\n", "\r", "ä", "€", "\U0001f600", "x" * 300, "y" * 9000]
    return "".join(rng.choice(parts) for _ in range(rng.randrange(6)))


def binary_call(rng: random.Random) -> tuple[str, tuple[Any, ...]]:
    name = rng.choice(BINARY_CALLS)
    if name in ("read", "readline", "readlines"):
        return name, rng.choice([(), (None,), (sizes(rng),), (sizes(rng),), ("x",), (-2,)])
    if name == "read1":
        return name, rng.choice([(), (sizes(rng),), (None,)])
    if name in ("readinto", "readinto1"):
        return name, (max(sizes(rng), 0),)
    if name == "peek":
        return name, rng.choice([(), (1,), (9000,)])
    if name == "write":
        length = rng.choice([0, 1, 50, 1024, 5000, 9000, 140_000, 300_000])
        return name, (rng.choice([bytes, bytearray, memoryview])(rng.randbytes(length)),)
    if name == "writelines":
        return name, ([rng.randbytes(20) for _ in range(rng.randrange(5))],)
    if name == "seek":
        whence = rng.choice([(), (0,), (1,), (2,), (9,)])
        return name, (rng.choice([0, 1, 3, 4096, 5000, 10_000, -1, -100]), *whence)
    if name == "truncate":
        return name, rng.choice([(), (None,), (10,), (5000,), (-1,)])
    return name, ()


def text_call(rng: random.Random, cookies: list[int]) -> tuple[str, tuple[Any, ...]]:
    name = rng.choice(TEXT_CALLS)
    if name in ("read", "readline", "readlines"):
        return name, rng.choice([(), (sizes(rng),), (sizes(rng),), ("x",)])
    if name == "write":
        return name, (rng.choice([text(rng), text(rng), b"bytes"]),)
    if name == "writelines":
        return name, ([text(rng) for _ in range(rng.randrange(4))],)
    if name == "seek":
        at = rng.choice([(0,), (0,), (0, 2), (0, 1), (3, 1), (-1,), (0, 9)])
        return name, ((rng.choice(cookies),) if cookies and rng.random() < 0.6 else at)
    if name == "truncate":
        return name, rng.choice([(), (10,), (5000,)])
    return name, ()


def plain(file: Any, name: str, args: tuple[Any, ...]) -> Any:
    if name == "next":
        return file.readline()
    if name in ("readinto", "readinto1"):
        memory = bytearray(args[0])
        return getattr(file, name)(memory), bytes(memory)
    if name == "close":
        return None
    return getattr(file, name)(*args)


async def awaited(file: Any, name: str, args: tuple[Any, ...]) -> Any:
    if name == "next":
        try:
            return await anext(file)
        except StopAsyncIteration:
            return "" if "encoding" in dir(file) else b""
    if name in ("readinto", "readinto1"):
        memory = bytearray(args[0])
        return await getattr(file, name)(memory), bytes(memory)
    if name == "close":
        return None
    result = getattr(file, name)(*args)
    return await result if hasattr(result, "__await__") else result


def same(name: str, expected: Any, found: Any, mode: str) -> bool:
    if name == "fileno" and isinstance(expected, int):
        return isinstance(found, int)
    if name == "readinto1" and "+" in mode and isinstance(expected, tuple):
        (count, memory), (our_count, our_memory) = expected, found
        if isinstance(count, int) and isinstance(our_count, int):
            expected, found = memory[:count], our_memory[:our_count]
    if name in ("peek", "read1", "readinto1") and "+" in mode and isinstance(expected, bytes):
        # How much is read ahead of what was written before is not promised.
        return bool(expected.startswith(found) or found.startswith(expected))
    return bool(type(expected) is type(found) and expected == found)


async def outcome(call: Any) -> Any:
    try:
        return await call
    except AttributeError:
        return AttributeError  # its text names the class
    except UnicodeDecodeError:
        return UnicodeDecodeError  # its text counts from where a piece began
    except Exception as error:
        return type(error), str(error)


async def compare(
    rng: random.Random, folder: Path, modes: list[str], options: dict[str, Any]
) -> None:
    data = content(rng)
    mode = rng.choice(modes)
    theirs, ours = folder / "theirs", folder / "ours"
    for path in (theirs, ours):
        path.unlink(missing_ok=True)
        if not (mode.startswith("x") and rng.random() < 0.9):
            path.write_bytes(data)
    if theirs.exists() != ours.exists():
        theirs.unlink(missing_ok=True)
        ours.unlink(missing_ok=True)
    told: list[str] = [f"mode {mode!r}, {options}, {len(data)} bytes"]

    async def open_plain() -> Any:
        return open(theirs, mode, **options)

    async def open_ours() -> Any:
        return await rondel.files.open(ours, mode, **options)

    left, right = await outcome(open_plain()), await outcome(open_ours())
    if isinstance(left, tuple):
        assert isinstance(right, tuple), (told, left, right)
        assert str(right).replace("ours", "theirs") == str(left), (told, left, right)
        return
    assert not isinstance(right, tuple), (told, right)
    cookies: list[int] = []
    lost = False
    try:
        for _ in range(rng.randrange(CALLS)):
            binary = "b" in mode
            name, args = binary_call(rng) if binary else text_call(rng, cookies)
            if name == "close" and rng.random() < 0.7:
                continue
            moves = name in ("write", "writelines", "truncate") and not left.closed
            if moves and ("a" in mode or ("+" in mode and "b" not in mode)):
                # Where Python believes to be when it appends elsewhere is nothing to go by; and
                # where text goes after reading depends on how much was read ahead.
                assert left.seek(0, 2) == await right.seek(0, 2), told
            told.append(f"{name}{str(args)[:60]}")
            if name == "close":
                left.close()
                await right.close()
                continue

            async def call_plain(name: str = name, args: Any = args) -> Any:
                return plain(left, name, args)

            expected = await outcome(call_plain())
            found = await outcome(awaited(right, name, args))
            assert same(name, expected, found, mode), (
                f"{told[0]}, {told[-5:]}: {str(expected)[:200]} != {str(found)[:200]}"
            )
            if name in ("peek", "read1", "readinto1") and expected != found:
                # From here on the positions differ, if it moved them.
                lost = name != "peek"
                if lost:
                    break
            if name == "tell" and isinstance(expected, int):
                cookies.append(expected)
            assert left.closed == right.closed
            if "+" in mode and moves:
                # Without a move between writing and reading Python's own buffer may read on as if
                # nothing had been written, or written elsewhere.
                there = rng.choice([(0, 0), (0, 2)])
                assert left.seek(*there) == await right.seek(*there), told
    finally:
        await outcome(right.close())
        try:
            left.close()
        except OSError:
            pass
    if not lost:
        assert theirs.read_bytes() == ours.read_bytes(), told


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where files are read without a thread as far as the system can tell, and where it cannot."""
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory under /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(2))
def test_binary_files(loop: Any, folder: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        for _ in range(ROUNDS):
            options = {"buffering": rng.choice([-1, -1, -1, 0, 2, 16, 5000, 100_000])}
            await compare(rng, folder, BINARY_MODES, options)

    loop.run_until_complete(asyncio.wait_for(main(), 200))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(2))
def test_text_files(loop: Any, folder: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        for _ in range(ROUNDS):
            options = {
                "buffering": rng.choice([-1, -1, -1, 1, 16, 5000]),
                "encoding": rng.choice(ENCODINGS),
                "errors": rng.choice([None, "strict", "replace", "surrogateescape"]),
                "newline": rng.choice(NEWLINES),
            }
            await compare(rng, folder, TEXT_MODES, options)

    loop.run_until_complete(asyncio.wait_for(main(), 200))


@pytest.mark.parametrize("mode", ["", "q", "rw", "rb+t", "rr", "bt", "b", "r+w", "U", "+", "rbb"])
def test_modes_that_are_none(loop: Any, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(ValueError) as expected:
        open(path, mode).close()

    async def main() -> None:
        with pytest.raises(ValueError) as found:
            await rondel.files.open(path, mode)
        assert str(found.value) == str(expected.value)

    loop.run_until_complete(main())


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("rb", {"encoding": "utf-8"}),
        ("rb", {"errors": "strict"}),
        ("rb", {"newline": "\n"}),
        ("r", {"buffering": 0}),
        ("r", {"newline": "x"}),
        ("r", {"newline": 1}),
        ("r", {"encoding": "no-such-encoding"}),
        ("r", {"encoding": 1}),
        ("r", {"buffering": "x"}),
        ("r", {"closefd": False}),
        ("rb", {"buffering": -5, "opener": lambda name, flags: -1}),
    ],
)
def test_arguments_that_are_refused(
    loop: Any, tmp_path: Path, mode: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(Exception) as expected:
        open(path, mode, **options).close()

    async def main() -> None:
        with pytest.raises(type(expected.value)) as found:
            await rondel.files.open(path, mode, **options)
        assert str(found.value) == str(expected.value)

    loop.run_until_complete(main())

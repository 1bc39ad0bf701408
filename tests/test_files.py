"""rondel.files: aiofiles' documented interface, on asyncio's loop and on ours."""

import asyncio
import concurrent.futures
import gc
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import open_fds

pytest.importorskip("rondel")
from rondel import files

Run = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\nthree")
    return path


class Counting(concurrent.futures.ThreadPoolExecutor):
    """Counts what goes to threads."""

    def __init__(self) -> None:
        super().__init__(2)
        self.calls = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().submit(*args, **kwargs)


def test_it_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, rondel; assert 'rondel.files' not in sys.modules; rondel.files.open; "
        "assert rondel.files is sys.modules['rondel.files']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_open_awaited_or_entered(run: Run, path: Path, no_descriptor_left: None) -> None:
    async def main() -> None:
        file = await files.open(path)
        assert await file.read() == "one\ntwo\nthree"
        assert not file.closed
        await file.close()
        assert file.closed
        await file.close()
        async with files.open(path, mode="rb") as file:
            assert await file.read() == b"one\ntwo\nthree"
        assert file.closed
        async with files.open(os.fsencode(path)) as file:
            assert file.name == os.fsencode(path)
            assert await file.readline() == "one\n"
        with pytest.warns(RuntimeWarning, match="line buffering"):
            await (await files.open(path, "rb", buffering=1)).close()
        async with await files.open(path) as file:
            assert await file.readline() == "one\n"
        assert file.closed
        task = asyncio.create_task(files.open(path))
        file = await task
        await file.close()
        with pytest.raises(ZeroDivisionError):
            async with files.open(path) as file:
                _ = 1 / 0
        assert file.closed

    run(main)


def test_kinds_and_attributes(run: Run, path: Path) -> None:
    async def main() -> None:
        for mode, kind in [
            ("rb", files.AsyncBufferedReader),
            ("r+b", files.AsyncBufferedReader),
            ("wb", files.AsyncBufferedIOBase),
            ("ab", files.AsyncBufferedIOBase),
            ("r", files.AsyncTextIOWrapper),
            ("w+", files.AsyncTextIOWrapper),
        ]:
            with open(path, mode) as plain:
                async with files.open(path, mode) as file:
                    assert type(file) is kind
                    for name in ("mode", "name", "closed"):
                        assert getattr(file, name) == getattr(plain, name), (mode, name)
                    assert await file.seekable() is plain.seekable()
                    assert await file.writable() is plain.writable()
                    assert await file.isatty() is False
                    assert os.fstat(file.fileno()).st_ino == path.stat().st_ino
                    if "b" in mode:
                        assert file.readable() is plain.readable()
                        assert isinstance(file.raw, io.FileIO)
                    else:
                        assert await file.readable() is plain.readable()
                        for name in ("encoding", "errors", "line_buffering", "newlines"):
                            assert getattr(file, name) == getattr(plain, name), (mode, name)
        async with files.open(path, "rb", buffering=0) as file:
            assert type(file) is files.AsyncFileIO
            assert await file.readall() == b""
            assert "AsyncFileIO" in repr(file)

    run(main)


def test_lines(run: Run, path: Path) -> None:
    async def main() -> None:
        async with files.open(path) as file:
            assert [line async for line in file] == ["one\n", "two\n", "three"]
            assert await file.tell() == 13
        async with files.open(path, "rb") as file:
            assert await anext(file) == b"one\n"
            assert await file.readlines() == [b"two\n", b"three"]
            with pytest.raises(StopAsyncIteration):
                await anext(file)
            await file.seek(1)
            assert await file.peek() == b"ne\ntwo\nthree"
            memory = bytearray(4)
            assert await file.readinto(memory) == 4
            assert memory == b"ne\nt"
            assert await file.readinto1(memory) == 4
            assert await file.read1(2) == b"hr"

    run(main)


def test_detach(run: Run, path: Path) -> None:
    async def main() -> None:
        file = await files.open(path, "r+b")
        await file.write(b"ONE")
        raw = file.detach()
        assert path.read_bytes().startswith(b"ONE\n")
        raw.close()
        with pytest.raises(ValueError, match="detached"):
            await file.read()

    run(main)


def test_writing(run: Run, path: Path) -> None:
    async def main() -> None:
        async with files.open(path, "w", newline="\r\n") as file:
            assert await file.write("a\n") == 2
            await file.writelines(["b\n", "c"])
            assert await file.tell() == 7
            await file.flush()
            assert path.read_bytes() == b"a\r\nb\r\nc"
            assert await file.truncate(3) == 3
        assert path.read_bytes() == b"a\r\n"
        async with files.open(path, "ab") as file:
            assert await file.write(memoryview(b"xyz")) == 3
            assert await file.tell() == 6
        async with files.open(path, "r+b") as file:
            assert await file.read(1) == b"a"
            assert await file.write(b"!") == 1
            assert await file.read() == b"\nxyz"
        assert path.read_bytes() == b"a!\nxyz"
        with pytest.raises(FileExistsError) as caught:
            await files.open(path, "x")
        assert caught.value.filename == str(path)

    run(main)


def test_small_writes_are_gathered(run: Run, path: Path) -> None:
    async def main() -> None:
        executor = Counting()
        async with files.open(path, "wb", executor=executor) as file:
            opened = executor.calls
            chunk = bytes(1024)
            for _ in range(10 * 1024):
                assert await file.write(chunk) == 1024
        assert path.stat().st_size == 10 * 1024 * 1024
        assert executor.calls - opened < 200
        executor.shutdown()

    run(main)


def test_large_and_small_writes_keep_their_order(run: Run, path: Path) -> None:
    async def main() -> None:
        expected = bytearray()
        async with files.open(path, "wb") as file:
            waiting = []
            for number in range(300):
                size = [10, 1000, 70_000, 300_000, 1_500_000][number % 5]
                data = bytes([number % 251]) * size
                expected += data
                waiting.append(file.write(data if number % 2 else bytearray(data)))
                if number % 7 == 0:
                    await asyncio.gather(*waiting)
                    waiting.clear()
            await asyncio.gather(*waiting)
            assert await file.tell() == len(expected)
        assert path.read_bytes() == expected

    run(main)


def test_operations_come_one_after_the_other(run: Run, path: Path) -> None:
    async def main() -> None:
        async with files.open(path, "w+b") as file:
            *_, data = await asyncio.gather(
                file.write(b"a" * 400_000),
                file.flush(),
                file.write(b"b" * 10),
                file.seek(399_995),
                file.read(),
            )
            assert data == b"aaaaabbbbbbbbbb"

    run(main)


def test_nothing_happens_before_it_is_awaited(run: Run, path: Path) -> None:
    async def main() -> None:
        async with files.open(path, "rb") as file:
            unused = file.read()
            assert await file.tell() == 0
            unused.close()
            assert await file.read(3) == b"one"

    run(main)


def test_what_is_cached_needs_no_thread(run: Run, path: Path) -> None:
    path.write_bytes(os.urandom(300_000))
    with open(path, "rb") as plain:
        try:
            os.preadv(plain.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT)
        except (OSError, AttributeError):
            pytest.skip("this file system cannot tell what is cached")

    async def main() -> None:
        executor = Counting()
        loop = asyncio.get_running_loop()
        before = loop.time
        async with files.open(path, "rb", executor=executor) as file:
            assert len(await file.read(65536)) == 65536
            assert len(await file.readline()) > 0
            await file.seek(0)
            assert len(await file.read()) == 300_000
        async with files.open(path, encoding="latin-1", executor=executor) as file:
            _ = await file.read(1)
            calls = executor.calls
            assert len([line async for line in file]) > 100
        assert (await files.read_bytes(path, executor=executor)) == path.read_bytes()
        assert before is not None
        assert executor.calls == calls <= 1
        executor.shutdown()

    run(main)


def test_a_read_at_once_does_not_leave_the_task(run: Run, path: Path) -> None:
    async def main() -> None:
        turns = 0

        def count() -> None:
            nonlocal turns
            turns += 1

        async with files.open(path, "rb") as file:
            await file.peek()
            asyncio.get_running_loop().call_soon(count)
            for _ in range(3):
                await file.seek(0)
                assert await file.read(3) == b"one"
            assert turns == 0

    run(main)


def test_errors(run: Run, path: Path, tmp_path: Path) -> None:
    async def main() -> None:
        missing = tmp_path / "missing"
        for call in (
            lambda: files.open(missing),
            lambda: files.open(missing, "r+b"),
            lambda: files.read_bytes(missing),
            lambda: files.read_text(missing),
            lambda: files.stat(missing),
            lambda: files.os.remove(missing),
        ):
            with pytest.raises(FileNotFoundError) as caught:
                await call()  # type: ignore[no-untyped-call]
            assert caught.value.errno == 2
            assert os.fspath(caught.value.filename) == str(missing)
        with pytest.raises(IsADirectoryError):
            await files.open(tmp_path)
        with pytest.raises(IsADirectoryError):
            await files.read_bytes(tmp_path)
        async with files.open(path, "rb") as file:
            with pytest.raises(io.UnsupportedOperation, match="write"):
                await file.write(b"x")
        async with files.open(path, "w") as file:
            with pytest.raises(io.UnsupportedOperation, match="not readable"):
                await file.read()
            with pytest.raises(TypeError):
                await file.write(b"x")
        with pytest.raises(ValueError, match="closed file"):
            await file.write("x")
        with pytest.raises(ValueError, match="closed file"):
            async with file:
                await file.read()

    run(main)


def test_descriptors(run: Run, path: Path) -> None:
    async def main() -> None:
        fd = os.open(path, os.O_RDONLY)
        async with files.open(fd, "rb", closefd=False) as file:
            assert file.name == fd
            assert await file.read() == b"one\ntwo\nthree"
        os.lseek(fd, 4, os.SEEK_SET)
        async with files.open(fd) as file:
            assert await file.read() == "two\nthree"
        with pytest.raises(OSError):
            os.fstat(fd)
        async with files.open(
            path, opener=lambda name, flags: os.open(name, flags | os.O_NOATIME)
        ) as file:
            assert await file.readline() == "one\n"

    run(main)


def test_pipes(run: Run) -> None:
    async def main() -> None:
        near, far = os.pipe()
        async with files.open(near, "rb") as reading, files.open(far, "wb", buffering=0) as writing:
            first = asyncio.create_task(reading.readline())
            await asyncio.sleep(0.05)
            assert not first.done()
            await writing.write(b"a line\nand")
            assert await first == b"a line\n"
            with pytest.raises(OSError):
                await reading.tell()
            assert not await reading.seekable()

    run(main)


def test_opening_a_fifo_does_not_block_the_loop(run: Run, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def main() -> None:
        opening = asyncio.create_task(files.open(fifo, "rb"))
        await asyncio.sleep(0.05)
        assert not opening.done()
        async with files.open(fifo, "wb") as writing:
            async with await opening as reading:
                await writing.write(b"x")
                await writing.close()
                assert await reading.read() == b"x"

    run(main)


def test_an_executor_of_its_own(run: Run, path: Path) -> None:
    async def main() -> None:
        executor = Counting()
        async with files.open(path, "w", executor=executor) as file:
            await file.write("x")
        assert executor.calls == 2
        await files.os.stat(path, executor=executor)
        assert executor.calls == 3
        executor.shutdown()

    run(main)


def test_unclosed_files_are_told_and_written(run: Run, path: Path) -> None:
    async def main() -> None:
        for mode, data in (("wb", b"bytes"), ("w", "text")):
            file = await files.open(path, mode)
            await file.write(data)
            with pytest.warns(ResourceWarning, match="unclosed file"):
                del file
                gc.collect()
            assert path.read_text() == (data if isinstance(data, str) else data.decode())

    run(main)


def test_without_a_loop(path: Path) -> None:
    operation = files.write_bytes(path, b"x")
    with pytest.raises(RuntimeError, match="no running event loop"):
        operation.send(None)


def test_closed_by_cancelled_tasks(run: Run, path: Path, no_descriptor_left: None) -> None:
    async def use(delay: int) -> None:
        async with files.open(path, "rb") as file:
            await file.read()
        async with files.open(path, "w+b") as file:
            for _ in range(3):
                await file.write(bytes(300_000))
                await file.flush()
                await file.seek(0)
                await file.read(10)

    async def main() -> None:
        before = open_fds()
        for number in range(300):
            task = asyncio.create_task(use(number))
            for _ in range(number % 17):
                await asyncio.sleep(0)
            if number % 3 == 0:
                await asyncio.sleep(0.0002 * (number % 11))
            task.cancel()
            if number % 5 == 0:
                await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
                raise asyncio.CancelledError  # it was done already
        # What a thread opens from here on would be closed only when the loop runs again.
        await asyncio.get_running_loop().shutdown_default_executor()
        async with asyncio.timeout(10):
            while open_fds() > before:
                await asyncio.sleep(0.01)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        run(main, limit=25)
        gc.collect()


def test_a_cancelled_operation_leaves_the_file_usable(run: Run) -> None:
    async def main() -> None:
        near, far = os.pipe()
        async with files.open(near, "rb", buffering=0) as reading:
            first = asyncio.create_task(reading.read(10))
            second = asyncio.create_task(reading.read(10))
            third = asyncio.create_task(reading.read(3))
            await asyncio.sleep(0.05)
            first.cancel()
            second.cancel()
            await asyncio.sleep(0)
            os.write(far, b"lost")  # the first was reading already
            await asyncio.sleep(0.1)
            os.write(far, b"found")
            assert await third == b"fou"
            assert await reading.read(5) == b"nd"
        os.close(far)

    run(main)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(run: Run, small_disk: Path, no_descriptor_left: None) -> None:
    async def main() -> None:
        # The error of what a thread writes later comes with one of the next operations.
        file = await files.open(small_disk / "a", "wb")
        with pytest.raises(OSError, match="No space left") as caught:
            for _ in range(2000):
                await file.write(bytes(1024))
            await file.flush()
        assert caught.value.errno == 28
        with pytest.raises(OSError, match="No space left"):
            await file.close()
        assert file.closed
        (small_disk / "a").unlink()
        # Room again after a failed flush: nothing was lost.
        file = await files.open(small_disk / "b", "wb")
        filler = small_disk / "filler"
        filler.write_bytes(bytes(240 * 1024))
        await file.write(bytes(range(256)) * 256)
        with pytest.raises(OSError, match="No space left"):
            await file.flush()
        filler.unlink()
        await file.close()
        assert (small_disk / "b").read_bytes() == bytes(range(256)) * 256
        (small_disk / "c").write_bytes(b"old")
        with pytest.raises(OSError, match="No space left"):
            await files.write_bytes(small_disk / "c", bytes(1 << 20), atomic=True)
        assert (small_disk / "c").read_bytes() == b"old"
        assert sorted(os.listdir(small_disk)) == ["b", "c"]

    run(main)


def test_what_is_not_cached(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cold"
    lines = [f"{number}: {'ä€x' * (number % 40)}\n" for number in range(40_000)]
    path.write_text("".join(lines), encoding="utf-8")
    data = path.read_bytes()

    def forget(number: int) -> None:
        # Parts of the file leave the page cache, so that reading stops here and there.
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            start = number * 300_007 % len(data)
            os.posix_fadvise(file.fileno(), start, 900_000, os.POSIX_FADV_DONTNEED)

    async def main() -> None:
        forget(0)
        async with files.open(path, encoding="utf-8") as file:
            found = []
            async for line in file:
                found.append(line)
                if len(found) % 5000 == 0:
                    forget(len(found))
            assert found == lines
        async with files.open(path, encoding="utf-8") as file:
            text = "".join(lines)
            at = 0
            for number in range(300):
                size = number * 7919 % 20_000
                if number % 10 == 0:
                    forget(number)
                assert await file.read(size) == text[at : at + size]
                at += size
        async with files.open(path, "rb") as file:
            at = 0
            for number in range(300):
                size = number * 7919 % 30_000
                if number % 10 == 0:
                    forget(number)
                assert await file.read(size) == data[at : at + size]
                at += size
                position = number * 999_983 % len(data)
                assert await file.seek(position) == position
                end = data.find(b"\n", position) + 1 or len(data)
                assert await file.readline() == data[position:end]
                at = end
        forget(1)
        assert await files.read_bytes(path) == data

    run(main)

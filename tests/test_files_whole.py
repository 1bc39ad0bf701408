"""rondel.files beside open(): whole files, trees, os, temporary files and the standard streams."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rondel")
from rondel import files

Run = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\nthree")
    return path


def test_whole_files(run: Run, path: Path, tmp_path: Path, no_descriptor_left: None) -> None:
    async def main() -> None:
        big = os.urandom(3_000_000)
        assert await files.write_bytes(path, big) == len(big)
        assert await files.read_bytes(path) == big
        assert await files.read_bytes(os.fsencode(path)) == big
        assert await files.write_bytes(path, memoryview(b"small")) == 5
        assert await files.read_bytes(str(path)) == b"small"
        assert await files.write_text(path, "ä\n", "latin-1", newline="\r\n") == 2
        assert path.read_bytes() == b"\xe4\r\n"
        assert await files.read_text(path, "latin-1") == "ä\n"
        assert await files.read_text(path, "latin-1", newline="") == "ä\r\n"
        with pytest.raises(UnicodeDecodeError):
            await files.read_text(path, "utf-8")
        with pytest.raises(UnicodeEncodeError):
            await files.write_text(path, "€", "latin-1")
        assert path.read_bytes() == b"\xe4\r\n"
        await files.write_bytes(path, b"")
        assert await files.read_bytes(path) == b""
        assert await files.read_bytes("/proc/self/status") != b""
        assert (await files.stat(path)).st_size == 0
        copy = await files.copy(path, tmp_path / "copy")
        assert copy == tmp_path / "copy"
        assert (await files.copy(path, tmp_path / "copy", metadata=True)).exists()

    run(main)


def test_atomic_replacement(run: Run, path: Path, tmp_path: Path) -> None:
    async def main() -> None:
        path.chmod(0o640)
        link = tmp_path / "link"
        link.symlink_to(path.name)
        inode = path.stat().st_ino
        await files.write_bytes(link, b"new", atomic=True, fsync=True)
        assert path.read_bytes() == b"new"
        assert link.is_symlink()
        assert path.stat().st_mode & 0o777 == 0o640
        assert path.stat().st_ino != inode
        await files.write_text(tmp_path / "other", "new", atomic=True)
        mask = os.umask(0)
        os.umask(mask)
        assert (tmp_path / "other").stat().st_mode & 0o777 == 0o666 & ~mask
        folder = tmp_path / "folder"
        folder.mkdir()
        with pytest.raises(IsADirectoryError) as caught:
            await files.write_bytes(folder, b"new", atomic=True)
        assert caught.value.filename == str(folder)
        with pytest.raises(FileNotFoundError) as missing:
            await files.write_bytes(tmp_path / "no" / "file", b"new", atomic=True)
        assert missing.value.filename == str(tmp_path / "no" / "file")
        assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link", "other"]

    run(main)


def test_trees(run: Run, tmp_path: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("x")

    async def main() -> None:
        for topdown in (True, False):
            found = [item async for item in files.walk(tmp_path, topdown)]
            assert found == list(os.walk(tmp_path, topdown))
        seen = []
        async for here, folders, _ in files.walk(tmp_path):
            folders[:] = [name for name in folders if name != "b"]
            seen.append(os.path.basename(here))
        assert sorted(seen[1:]) == ["a", "d", "e"]
        await files.remove_tree(tmp_path / "a")
        assert os.listdir(tmp_path) == ["e"]
        with pytest.raises(FileNotFoundError):
            await files.remove_tree(tmp_path / "a")
        await files.remove_tree(tmp_path / "a", missing_ok=True)
        await files.remove_tree(tmp_path / "a", ignore_errors=True)

    run(main)


def test_os_functions(run: Run, path: Path, tmp_path: Path) -> None:
    async def main() -> None:
        other = tmp_path / "other"
        assert (await files.os.stat(path)).st_size == 13
        assert (await files.os.lstat(path)).st_size == 13
        assert (await files.os.statvfs(path)).f_bsize > 0
        await files.os.rename(path, other)
        await files.os.replace(other, path)
        await files.os.renames(path, other)
        await files.os.renames(other, path)
        await files.os.link(path, other)
        assert await files.os.path.samefile(path, other)
        await files.os.unlink(other)
        await files.os.symlink(path, other)
        assert await files.os.readlink(other) == str(path)
        assert await files.os.path.islink(other)
        await files.os.remove(other)
        await files.os.mkdir(other)
        await files.os.rmdir(other)
        await files.os.makedirs(other / "a" / "b", exist_ok=True)
        await files.os.removedirs(other / "a" / "b")
        assert await files.os.access(path, os.R_OK)
        assert await files.os.getcwd() == os.getcwd()
        assert await files.os.listdir(tmp_path) == ["file"]
        entries = await files.os.scandir(tmp_path)
        assert [entry.name for entry in entries] == ["file"]
        assert await files.os.path.exists(path)
        assert await files.os.path.isfile(path)
        assert await files.os.path.isdir(tmp_path)
        assert not await files.os.path.ismount(tmp_path)
        assert await files.os.path.getsize(path) == 13
        for name in ("getatime", "getmtime", "getctime"):
            function: Callable[..., Awaitable[float]] = getattr(files.os.path, name)
            assert await function(path) == getattr(os.path, name)(path)
        assert await files.os.path.abspath("x") == os.path.abspath("x")
        with open(path, "rb") as source, open(tmp_path / "target", "wb") as target:
            assert await files.os.sendfile(target.fileno(), source.fileno(), 4, 9) == 9
            assert await files.os.path.sameopenfile(source.fileno(), source.fileno())
        assert (tmp_path / "target").read_bytes() == b"two\nthree"

        def multiply(a: int, *, b: int) -> int:
            return a * b

        assert await files.os.wrap(multiply)(6, b=7) == 42

    run(main)


def test_temporary_files(run: Run, tmp_path: Path, no_descriptor_left: None) -> None:
    async def main() -> None:
        async with files.tempfile.TemporaryFile("w+", dir=tmp_path) as file:
            await file.write("text\n")
            await file.seek(0)
            assert await file.read() == "text\n"
            assert os.listdir(tmp_path) == []
        async with files.tempfile.NamedTemporaryFile(
            "wb", prefix="p", suffix=".s", dir=tmp_path
        ) as file:
            name = Path(file.name)
            assert name.name.startswith("p")
            assert name.suffix == ".s"
            await file.write(b"x")
            await file.flush()
            assert name.read_bytes() == b"x"
        assert not name.exists()
        async with files.tempfile.NamedTemporaryFile(delete=False, dir=tmp_path) as file:
            await file.write(b"kept")
        assert Path(file.name).read_bytes() == b"kept"
        os.unlink(file.name)
        with pytest.raises(ValueError):
            await files.tempfile.TemporaryFile("rq")
        async with files.tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            assert os.path.isdir(folder)
            Path(folder, "file").write_text("x")
        assert not os.path.exists(folder)
        directory = await files.tempfile.TemporaryDirectory(dir=tmp_path)
        assert os.path.isdir(directory.name)
        await directory.cleanup()
        assert os.listdir(tmp_path) == []

    run(main)


@pytest.mark.parametrize("mode", ["w+b", "w+"])
def test_spooled_files(run: Run, tmp_path: Path, mode: str, no_descriptor_left: None) -> None:
    def data(text: str) -> Any:
        return text.encode() if "b" in mode else text

    async def main() -> None:
        spooled = files.tempfile.SpooledTemporaryFile
        async with spooled(100, mode, dir=tmp_path, newline=None if "b" in mode else "") as file:
            assert await file.write(data("one\n")) == 4
            await file.writelines([data("two\n"), data("three")])
            await file.seek(0)
            assert [line async for line in file] == [data("one\n"), data("two\n"), data("three")]
            await file.write(data("x" * 200))
            assert await file.tell() == 213
            await file.seek(4)
            assert await file.readline() == data("two\n")
            assert isinstance(await file.fileno(), int)
            await file.truncate(5)
            await file.seek(0)
            assert await file.read() == data("one\nt")
            assert not file.closed
        assert file.closed
        with pytest.raises(ValueError, match="closed file"):
            await file.read()

    run(main)


STANDARD = """
import asyncio, sys, rondel
from rondel import files
async def main():
    line = await files.stdin.readline()
    await files.stdout.write("out " + line)
    await files.stdout.flush()
    await files.stdout_bytes.write(b"bytes\\n")
    await files.stdout_bytes.flush()
    await files.stderr.write("err\\n")
    await files.stderr_bytes.write(b"err bytes\\n")
    await files.stderr_bytes.flush()
    assert await files.stdin_bytes.read() == b"", "all is in the text layer"
    assert files.stdin.fileno() == 0
{run}(main())
"""


@pytest.mark.parametrize("runner", ["rondel.run", "asyncio.run"])
def test_standard_streams(runner: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STANDARD.replace("{run}", runner)],
        input=b"a line\n",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"out a line\nbytes\n", b"err\nerr bytes\n")
    assert done.returncode == 0

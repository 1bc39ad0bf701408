"""rondel.http.download and downloads, on either loop."""

import asyncio
import gc
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rondel import http
from support import counted_turns, open_fds, run_on
from test_get import noise, sha256, wait_until
from web import LIMIT, Request, files, odd

pytestmark = pytest.mark.timeout(LIMIT)

CONTENT = noise(600_000, "python")
#: The engine takes no proxy and no netrc from the machine that tests run on.
PLAIN: dict[str, Any] = {"proxy": None, "netrc": False}


async def serve(request: Request) -> None:
    if request.target.startswith("/missing"):
        await request.answer(b"", "404 Not Found")
    elif request.target.startswith("/slow"):
        await request.answer(CONTENT[:300_000], length=len(CONTENT), ETag='"v1"')
        await asyncio.sleep(LIMIT)
    elif request.target.startswith("/headers"):
        await request.answer(request.headers.get("x-token", "").encode())
    else:
        await request.serve(CONTENT)


def test_one_file(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> http.Downloaded:
        return await http.download(f"{server.url}/file", to=tmp_path / "new", **PLAIN)

    with odd(serve) as server:
        done = run_on(loop, main)
    assert done.path == tmp_path / "new" / "file"
    assert (done.size, done.received, done.unchanged, done.error) == (600_000, 600_000, False, None)
    assert files(tmp_path) == {"new/file": CONTENT}


def test_many_files_in_their_order(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> list[http.Downloaded]:
        wanted: list[str | http.File] = [f"{server.url}/{number}" for number in range(100)]
        wanted.append(
            http.File(
                f"{server.url}/missing",
                mirrors=(f"{server.url}/x",),
                name="sub/named",
                checksum=f"sha256:{sha256(CONTENT)}",
                size=len(CONTENT),
            )
        )
        wanted.append(http.File(f"{server.url}/headers", headers={"X-Token": "abc"}))
        return await http.download(wanted, to=tmp_path, **PLAIN)

    with odd(serve) as server:
        results = run_on(loop, main, limit=30)
    assert [result.index for result in results] == list(range(102))
    assert results[100].verified and not results[99].verified
    expected = {str(number): CONTENT for number in range(100)}
    assert files(tmp_path) == expected | {"sub/named": CONTENT, "headers": b"abc"}


def test_each_as_it_ends(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> dict[str, Any]:
        names = [f"{server.url}/{name}" for name in ("a", "missing", "b")]
        return {
            result.url.rpartition("/")[2]: result.error and result.error.status
            async for result in http.downloads(names, to=tmp_path, **PLAIN)
        }

    with odd(serve) as server:
        assert run_on(loop, main) == {"a": None, "missing": 404, "b": None}


def test_failures_are_raised(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def one() -> None:
        await http.download(f"{server.url}/missing", to=tmp_path, **PLAIN)

    async def several() -> None:
        urls = [f"{server.url}/{name}" for name in ("missing1", "file", "missing2")]
        await http.download(urls, to=tmp_path, **PLAIN)

    with odd(serve) as server:
        with pytest.raises(http.DownloadError, match="404 Not Found") as raised:
            run_on(loop, one)
        with pytest.raises(ExceptionGroup) as group:
            run_on(loop, several)
    error = raised.value
    assert (error.kind, error.status, error.url) == ("status", 404, f"{server.url}/missing")
    assert isinstance(error, OSError)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.kind, str(copy)) == (error.kind, str(error))
    assert [each.url for each in group.value.exceptions] == [
        f"{server.url}/missing1",
        f"{server.url}/missing2",
    ]
    # The good one arrived nevertheless.
    assert files(tmp_path) == {"file": CONTENT}


def test_a_disk_error_has_its_number(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        await http.download(f"{server.url}/file", to=tmp_path / "file", **PLAIN)

    (tmp_path / "file").write_bytes(b"no folder")
    with odd(serve) as server, pytest.raises(http.DownloadError) as raised:
        run_on(loop, main)
    assert raised.value.kind == "disk"
    assert raised.value.errno


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"concurrency": 0}, ValueError, "--jobs"),
        ({"existing": "what"}, ValueError, "--existing"),
        ({"headers": {"a b": "c"}}, http.DownloadError, "not a header"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_mistakes(
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    async def main() -> None:
        await http.download("http://h.invalid/", to=tmp_path, **(PLAIN | options))

    with pytest.raises(error, match=text):
        run_on(loop, main)


def test_progress_is_told(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    seen: list[http.DownloadProgress] = []
    threads = set()

    def on_progress(progress: http.DownloadProgress) -> None:
        threads.add(threading.get_ident())
        seen.append(progress)

    async def slowly(request: Request) -> None:
        await request.answer(b"", length=500_000)
        for _ in range(10):
            await request.send(bytes(50_000))
            await asyncio.sleep(0.06)

    async def main() -> None:
        await http.download(f"{server.url}/x", to=tmp_path, on_progress=on_progress, **PLAIN)

    with odd(slowly) as server:
        run_on(loop, main)
    assert threads == {threading.get_ident()}
    assert len(seen) >= 3
    received = [progress.received for progress in seen]
    assert received == sorted(received)
    assert any(
        active.size == 500_000 and 0 < active.present <= 500_000
        for progress in seen
        for active in progress.active
    )
    last = seen[-1]
    assert (last.files, last.done, last.failed, last.received) == (1, 1, 0, 500_000)


@pytest.mark.parametrize("way", ["cancel", "break"])
def test_stopped_early_it_leaves_what_can_be_resumed(
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    way: str,
    no_descriptor_left: None,
) -> None:
    part = tmp_path / "slow.rondel-part"

    async def main() -> None:
        urls = [f"{server.url}/slow", f"{server.url}/file"]
        if way == "cancel":
            task = asyncio.ensure_future(http.download(urls, to=tmp_path, **PLAIN))
            while not (part.exists() and part.stat().st_size == 300_000):
                await asyncio.sleep(0.01)
            task.cancel()
            started = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - started < 3
        else:
            run = http.downloads(urls, to=tmp_path, **PLAIN)
            async for done in run:
                assert done.url == urls[1]
                break
            while not (part.exists() and part.stat().st_size == 300_000):
                await asyncio.sleep(0.01)
            await run.aclose()

    with odd(serve) as server:
        run_on(loop, main)
        kept = files(tmp_path)
        assert kept["slow.rondel-part"] == CONTENT[:300_000]
        assert "slow.rondel-state" in kept
    # Every thread of the engine is gone.
    wait_until(lambda: not any(name.startswith("rondel-") for name in native_threads()))


def native_threads() -> list[str]:
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:
            continue
    return names


def test_the_loop_runs_meanwhile(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        async with counted_turns() as turns:
            results = await http.download(
                [f"{server.url}/{number}" for number in range(300)], to=tmp_path, **PLAIN
            )
        return len(results), turns()

    with odd(serve) as server:
        count, turns = run_on(loop, main, limit=30)
    assert count == 300
    assert turns > 100


def test_runs_side_by_side(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    before = open_fds()

    async def main() -> list[list[http.Downloaded]]:
        def one(number: int) -> Any:
            urls = [f"{server.url}/{index}" for index in range(5)]
            return http.download(urls, to=tmp_path / str(number), **PLAIN)

        return await asyncio.gather(*map(one, range(8)))

    with odd(serve) as server:
        results = run_on(loop, main, limit=30)
    assert [len(each) for each in results] == [5] * 8
    assert len(files(tmp_path)) == 40
    gc.collect()
    wait_until(lambda: open_fds() <= before)


def test_what_on_progress_raises_ends_it(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    def on_progress(progress: http.DownloadProgress) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        await http.download(f"{server.url}/slow", to=tmp_path, on_progress=on_progress, **PLAIN)

    with odd(serve) as server, pytest.raises(ZeroDivisionError):
        run_on(loop, main)

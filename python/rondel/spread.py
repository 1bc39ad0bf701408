"""``rondel get --dask``: one list of downloads, shared out to the workers of a Dask cluster.

The list is cut into shards. A worker has one of them at a time and runs the engine of ``rondel
get`` in its own process; what happens there is asked for twice a second. Which shard goes where is
decided here and not by Dask: so the files of a shard that are still missing when its worker is lost
go to another one, and those that are there already stay done.
"""

import asyncio
import contextlib
import json
import select
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from ._rondel import Downloads, get, get_plan
from .running import run

#: Seconds between two questions to a worker.
PERIOD = 0.5
#: A worker that has not been asked for so many seconds stops: whoever wanted the files is gone.
LEASE = 60.0
#: Seconds to wait for a scheduler and a first worker.
PATIENCE = 30.0
#: Workers that a file may take down, or be refused by, before it counts as failed.
ATTEMPTS = 4
#: Shards for each worker, so that fast ones do more, and the most files that one has.
SHARDS = 8
LARGEST = 1000

_STATUS = {"input": 2, "status": 4, "checksum": 5, "disk": 6, "exists": 7, "cancelled": 1}

# --- on a worker ------------------------------------------------------------------------------

_running: dict[str, "_Shard"] = {}
#: Shards that were stopped, perhaps before they began.
_stopped: deque[str] = deque(maxlen=1000)


class _Shard:
    """A run of the engine in a worker's process."""

    def __init__(self, files: list[Any], arguments: list[str], directory: str) -> None:
        self._engine = Downloads(files, arguments, directory)
        self._lock = threading.Lock()
        self._news: deque[tuple[Any, ...]] = deque()
        self._asked = time.monotonic()

    def drive(self) -> None:
        poll = select.poll()
        poll.register(self._engine.fileno(), select.POLLIN)
        ended = False
        while not ended:
            poll.poll(PERIOD * 1000)
            for news in self._engine.take():
                ended = ended or news[0] == "end"
                self._news.append(news)
            if time.monotonic() - self._asked > LEASE:
                self._engine.stop()

    def report(self) -> tuple[int, list[tuple[Any, ...]]]:
        """Bytes received so far, and what happened since the last time."""
        self._asked = time.monotonic()
        news = []
        while self._news:
            news.append(self._news.popleft())
        return self._engine.progress()[0], news

    def stop(self) -> None:
        self._engine.stop()


def download_shard(
    key: str, files: list[Any], arguments: list[str], directory: str
) -> tuple[int, list[tuple[Any, ...]]]:
    """Download a shard's files; returns what `report_shard` has not told yet."""
    shard = _running[key] = _Shard(files, arguments, directory)
    try:
        if key in _stopped:
            shard.stop()
        shard.drive()
    finally:
        _running.pop(key, None)
    return shard.report()


def report_shard(key: str) -> tuple[int, list[tuple[Any, ...]]] | None:
    """How far a shard is; None before it begins and after it has ended."""
    shard = _running.get(key)
    return None if shard is None else shard.report()


def stop_shard(key: str) -> None:
    """Stop a shard; what can be resumed leaves its part."""
    _stopped.append(key)
    if (shard := _running.get(key)) is not None:
        shard.stop()


# --- where the command runs -------------------------------------------------------------------


class _Show:
    """What the run tells, on the same lines as ``rondel get`` on one machine."""

    def __init__(self, files: list[Any], *, as_json: bool, quiet: bool) -> None:
        self.urls = [file[0][0] for file in files]
        self.json = as_json
        self.quiet = quiet
        #: By file: True if downloaded, False if unchanged, or in one word why it failed.
        self.ended: dict[int, bool | str] = {}
        self.received = 0
        self._started = time.monotonic()

    def event(self, event: str, **fields: Any) -> None:
        if self.json:
            print(json.dumps({"event": event, **fields}, separators=(",", ":")), flush=True)

    def line(self, text: str, *, error: bool = False) -> None:
        if not self.json and (error or not self.quiet):
            print(text, file=sys.stderr, flush=True)

    def done(self, index: int, path: str, about: tuple[Any, ...], worker: str) -> None:
        size, _, unchanged, verified = about
        if isinstance(self.ended.get(index), bool):
            return
        self.ended[index] = not unchanged
        names = ("size", "received", "unchanged", "verified")
        self.event(
            "done",
            index=index,
            url=self.urls[index],
            path=path,
            worker=worker,
            **dict(zip(names, about, strict=True)),
        )
        what = ", unchanged" if unchanged else ", verified" if verified else ""
        count = f"[{len(self.ended)}/{len(self.urls)}]"
        self.line(f"{count} {path} ({_human(size)}{what}) on {worker}")

    def failed(self, index: int, failure: tuple[Any, ...], worker: str | None) -> None:
        kind, text, status, _ = failure
        self.ended[index] = kind
        url = self.urls[index]
        self.event(
            "error", index=index, url=url, kind=kind, status=status, error=text, worker=worker
        )
        self.line(f"failed: {url}: {text}", error=True)

    def finish(self, interrupted: bool) -> int:
        """The last line; the answer is the exit status."""
        seconds = time.monotonic() - self._started
        ended = list(self.ended.values())
        downloaded, unchanged = ended.count(True), ended.count(False)
        kinds = [kind for kind in ended if isinstance(kind, str)]
        self.event(
            "summary",
            files=len(self.urls),
            downloaded=downloaded,
            unchanged=unchanged,
            failed=len(kinds),
            received=self.received,
            seconds=round(seconds, 3),
            interrupted=interrupted,
        )
        rate = _human(self.received / max(seconds, 1e-9))
        self.line(
            f"{downloaded} of {len(self.urls)} downloaded"
            + (f", {unchanged} unchanged" if unchanged else "")
            + (f", {len(kinds)} failed" if kinds else "")
            + f"; {_human(self.received)} in {seconds:.2f} s ({rate}/s)"
            + ("; interrupted, the same command goes on from here" if interrupted else "")
        )
        statuses = {_STATUS.get(kind, 3) for kind in kinds}
        return 0 if not statuses else statuses.pop() if len(statuses) == 1 else 1


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"


class _Spread:
    """The shards of a run, and the workers that have them."""

    def __init__(self, client: Any, show: _Show, files: list[Any]) -> None:
        self._client = client
        self._show = show
        self._files = files
        self._attempts = [0] * len(files)
        self._shards: deque[list[int]] = deque()
        #: By worker, what it is doing.
        self._busy: dict[str, asyncio.Task[None]] = {}
        #: Workers that cannot do it: the engine is not there, say.
        self._unfit: dict[str, BaseException] = {}

    async def run(self, arguments: list[str], directory: str) -> None:
        try:
            await self._client.wait_for_workers(1, timeout=PATIENCE)
            workers = await self._workers()
            size = len(self._files) // (SHARDS * len(workers) or 1)
            count = -(-len(self._files) // min(max(size, 1), LARGEST))
            # One after the other, so that each shard has files of all hosts and sizes.
            everything = range(len(self._files))
            self._shards.extend(list(everything[first::count]) for first in range(count))
            idle_since = time.monotonic()
            while self._shards or self._busy:
                for worker in await self._workers() - self._busy.keys():
                    if self._shards:
                        work = self._work(worker, self._shards.popleft(), arguments, directory)
                        self._busy[worker] = asyncio.create_task(work)
                if self._busy:
                    idle_since = time.monotonic()
                    await asyncio.wait(self._busy.values(), timeout=PERIOD)
                elif self._unfit or time.monotonic() - idle_since > PATIENCE:
                    self._give_up()
                else:
                    await asyncio.sleep(PERIOD)
                for worker, task in list(self._busy.items()):
                    if task.done():
                        del self._busy[worker]
                        task.result()
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _workers(self) -> set[str]:
        return set(await self._client.ncores()) - self._unfit.keys()

    def _give_up(self) -> None:
        text = "the cluster has no worker"
        for worker, error in self._unfit.items():
            text = f"no worker can do it; {worker} says {type(error).__name__}: {error}"
        while self._shards:
            for index in self._shards.popleft():
                self._show.failed(index, ("cancelled", text, None, None), None)

    async def _work(
        self, worker: str, shard: list[int], arguments: list[str], directory: str
    ) -> None:
        """Have a worker do a shard, and hear of it until it has ended or the worker is lost."""
        key = f"rondel-get-{uuid.uuid4()}"
        files = [self._files[index] for index in shard]
        self._show.event("shard", worker=worker, files=len(shard))
        places = {"workers": [worker], "allow_other_workers": False, "pure": False}
        future = self._client.submit(
            download_shard, key, files, arguments, directory, key=key, **places
        )
        result = asyncio.ensure_future(_result_of(future))
        received = 0
        try:
            while not (await asyncio.wait([result], timeout=PERIOD))[0]:
                # Dask would wait for a worker of that address to come again.
                if worker not in await self._workers():
                    break
                told = await self._ask(worker, report_shard, key)
                received = self._take(worker, shard, received, told)
            if result.done():
                self._take(worker, shard, received, result.result())
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._ask(worker, stop_shard, key), 5)
            raise
        except Exception as error:
            # That of a worker which is lost says only that.
            if worker in await self._workers():
                self._unfit[worker] = error
        finally:
            result.cancel()
            with contextlib.suppress(Exception):
                await future.cancel(force=True)
        self._put_back(worker, shard)

    async def _ask(self, worker: str, question: Callable[[str], Any], key: str) -> Any:
        """Call a function in the worker's process; None if it does not answer."""
        answers = await self._client.run(question, key, workers=[worker], on_error="return")
        answer = answers.get(worker)
        return None if isinstance(answer, BaseException) else answer

    def _take(self, worker: str, shard: list[int], before: int, told: Any) -> int:
        if told is None:
            return before
        received, news = told
        self._show.received += received - before
        for what, *about in news:
            if what == "done":
                self._show.done(shard[about[0]], about[1], about[2], worker)
            elif what == "error":
                self._show.failed(shard[about[0]], about[1], worker)
            elif what == "end" and about[0] is not None:
                for index in shard:
                    if index not in self._show.ended:
                        self._show.failed(index, about[0], worker)
            elif what == "retry":
                index, (kind, text, *_), wait = about
                url = self._show.urls[shard[index]]
                self._show.event(
                    "retry", index=shard[index], url=url, kind=kind, error=text, wait=wait
                )
                self._show.line(f"{url}: {text}; again in {wait:.1f} s")
        self._show.event("progress", received=self._show.received, worker=worker)
        return int(received)

    def _put_back(self, worker: str, shard: list[int]) -> None:
        """What a shard has not brought goes to another worker, unless too many have tried."""
        missing = [index for index in shard if index not in self._show.ended]
        if not missing:
            return
        error = self._unfit.get(worker)
        what = "is lost" if error is None else f"says {type(error).__name__}: {error}"
        self._show.event("lost", worker=worker, files=len(missing), error=what)
        self._show.line(f"{worker} {what}; {len(missing)} files go to another worker")
        again = []
        for index in missing:
            self._attempts[index] += 1
            if self._attempts[index] < ATTEMPTS or error is not None:
                again.append(index)
            else:
                text = f"{ATTEMPTS} workers were lost while they had it"
                self._show.failed(index, ("connection", text, None, None), worker)
        if again:
            self._shards.appendleft(again)


async def _result_of(future: Any) -> Any:
    return await future


async def _spread(address: str, plan: tuple[Any, ...], arguments: list[str]) -> tuple[int, int]:
    """Do it all; the exit status, and the signal that ended it or 0."""
    as_json, quiet, directory, files = plan
    from distributed import Client

    show = _Show(files, as_json=as_json, quiet=quiet)
    stopped_by = 0

    def stop(number: int) -> None:
        nonlocal stopped_by
        stopped_by = number
        work.cancel()

    async def work_with_client() -> None:
        async with Client(  # type: ignore[no-untyped-call]
            address, asynchronous=True, set_as_default=False, timeout=PATIENCE
        ) as client:
            await _Spread(client, show, files).run(arguments, directory)

    work = asyncio.create_task(work_with_client())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        await work
    except asyncio.CancelledError:
        if not stopped_by:
            raise
    except (OSError, TimeoutError) as error:
        print(f"rondel get: {address}: {error}", file=sys.stderr)
        return 3, 0
    return show.finish(bool(stopped_by)), stopped_by


def main(arguments: list[str]) -> int:
    """``rondel get`` with these arguments, if they hold ``--dask``; returns the exit status."""
    plan = get_plan(arguments)
    if isinstance(plan, int):
        return plan
    address, *rest = plan
    if address is None:
        # It was the value of another option.
        return get(arguments)
    try:
        import distributed  # noqa: F401
    except ImportError:
        print("rondel get: --dask needs Dask: pip install rondel[dask]", file=sys.stderr)
        return 2
    status, stopped_by = run(_spread(address, tuple(rest), arguments))
    if stopped_by:
        signal.signal(stopped_by, signal.SIG_DFL)
        signal.raise_signal(stopped_by)
    return status

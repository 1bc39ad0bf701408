"""Calls on the machines of a Dask cluster, through the interface of the other pools.

Dask's own ``client.submit()`` costs the scheduler a message and a graph for each call. Here calls
that are made while the one before is being sent travel together, as one ``client.map()``; and
results that are there together are fetched together. Both happen on the client's own thread.
"""

import collections
import concurrent.futures
import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: The most calls that are sent in one message.
BATCH = 1000


class _Call:
    """A call on its way."""

    __slots__ = ("args", "fn", "future", "kwargs", "options", "remote")

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.options = options
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.remote: Any = None  # Dask's future

    def goes_with(self, other: "_Call") -> bool:
        """Whether the two can be one ``client.map()``."""
        return (
            self.fn is other.fn
            and self.options is other.options
            and len(self.args) == len(other.args) > 0
            and not self.kwargs
            and not other.kwargs
        )


class _Engine:
    """What pools over the same client share: sending and fetching, on the client's thread."""

    def __init__(self, client: Any, owned: bool) -> None:
        self.client = client
        self.owned = owned
        self._lock = threading.Lock()
        self._outgoing: collections.deque[_Call] = collections.deque()
        self._ended: collections.deque[tuple[_Call, Any]] = collections.deque()
        self._sending = self._fetching = False

    def send(self, call: _Call) -> None:
        call.future.add_done_callback(functools.partial(self._note_cancelled, call))
        self._outgoing.append(call)
        with self._lock:
            begin, self._sending = not self._sending, True
        if begin:
            self.client.loop.add_callback(self._send_all)

    # Everything below runs on the client's thread, except _note_cancelled().

    def _send_all(self) -> None:
        batch: list[_Call] = []
        while True:
            call = self._outgoing.popleft() if self._outgoing else None
            fits = call is not None and batch and batch[-1].goes_with(call) and len(batch) < BATCH
            if batch and not fits:
                self._send_batch(batch)
                batch = []
            if call is not None:
                if not call.future.cancelled():
                    batch.append(call)
                continue
            with self._lock:
                # Nobody can have added one since without having seen that this runs.
                if not self._outgoing:
                    self._sending = False
                    return

    def _send_batch(self, batch: list[_Call]) -> None:
        first = batch[0]
        client, options = self.client, first.options
        try:
            if len(batch) == 1:
                remotes = [
                    client.submit(first.fn, *first.args, pure=False, **options, **first.kwargs)
                ]
            else:
                columns = zip(*(call.args for call in batch), strict=True)
                # A tuple is how a column says that it is a list of arguments.
                remotes = client.map(
                    first.fn, *(list(column) for column in columns), pure=False, **options
                )
        except BaseException as error:
            for call in batch:
                _settle(call, error=error)
            return
        for call, remote in zip(batch, remotes, strict=True):
            call.remote = remote
            remote.add_done_callback(functools.partial(self._note_ended, call))

    def _note_ended(self, call: _Call, remote: Any) -> None:
        self._ended.append((call, remote))
        with self._lock:
            begin, self._fetching = not self._fetching, True
        if begin:
            self.client.loop.add_callback(self._fetch_all)

    async def _fetch_all(self) -> None:
        while True:
            with self._lock:
                if not self._ended:
                    self._fetching = False
                    return
            good: list[tuple[_Call, Any]] = []
            bad: list[tuple[_Call, Any]] = []
            while self._ended:
                call, remote = self._ended.popleft()
                (good if remote.status == "finished" else bad).append((call, remote))
            try:
                results = await self._gather([remote for _, remote in good])
            except BaseException:
                # Some are lost, broken or cancelled: each on its own, to know which.
                bad += good
            else:
                for (call, _), result in zip(good, results, strict=True):
                    _settle(call, result)
            for call, remote in bad:
                try:
                    (result,) = await self._gather([remote])
                except BaseException as error:
                    _settle(call, error=error)
                else:
                    _settle(call, result)

    async def _gather(self, remotes: list[Any]) -> list[Any]:
        if not remotes:
            return []
        results: list[Any] = await self.client.gather(remotes, asynchronous=True)
        return results

    def _note_cancelled(self, call: _Call, future: "concurrent.futures.Future[Any]") -> None:
        if future.cancelled():
            with contextlib.suppress(RuntimeError):  # the client is closed
                self.client.loop.add_callback(self._cancel, call)

    async def _cancel(self, call: _Call) -> None:
        call.future.set_running_or_notify_cancel()
        remote, call.remote = call.remote, None
        if remote is not None:
            with contextlib.suppress(Exception):
                await self.client.cancel([remote], asynchronous=True)


def _settle(call: _Call, result: Any = None, *, error: BaseException | None = None) -> None:
    # The data can go from the cluster, unless the program has it from elsewhere.
    call.remote = None
    if call.future.cancelled() or not call.future.set_running_or_notify_cancel():
        return
    if error is None:
        call.future.set_result(result)
    else:
        call.future.set_exception(error)


class DaskPool(concurrent.futures.Executor):
    """The workers of a Dask cluster as a ``concurrent.futures.Executor``.

    Calls made one after the other are sent together. Arguments that are Dask futures (from
    ``pool.client.scatter()``, say) are not fetched: the call goes to the worker that has the data.
    When a worker is lost Dask runs its calls again elsewhere, by Dask's rules: a call that has been
    under way on ``distributed.scheduler.allowed-failures`` + 1 workers as they died fails with
    ``KilledWorker``. Cancelling a future cancels the call on the cluster, unless it runs already.

    Args:
        client: The scheduler's address (``"tcp://10.0.0.1:8786"``), or a ``distributed.Client`` of
            the synchronous kind, which the pool does not close.
        workers: The workers (addresses, names or hosts) that may run the calls; None for all.
        allow_other_workers: Whether others may do it when these cannot.
        retries: How often a call that has failed is tried again.
        priority: Calls of higher priority are run first.

    Raises:
        ImportError: Dask is not installed (``pip install rondel[dask]``).
        TypeError: ``client`` is neither an address nor a synchronous client.
        OSError: There is no scheduler at the address.

    """

    def __init__(
        self,
        client: Any,
        *,
        workers: str | Iterable[str] | None = None,
        allow_other_workers: bool = False,
        retries: int | None = None,
        priority: int = 0,
    ) -> None:
        self._open(_engine(client))
        self._options = {
            "workers": [workers] if isinstance(workers, str) else workers and list(workers),
            "allow_other_workers": allow_other_workers,
            "retries": retries,
            "priority": priority,
        }

    def _open(self, engine: _Engine) -> None:
        self._engine = engine
        self._shutdown = False
        self._lock = threading.Lock()
        self._pending: set[concurrent.futures.Future[Any]] = set()

    @property
    def client(self) -> Any:
        """The ``distributed.Client``."""
        return self._engine.client

    @property
    def _max_workers(self) -> int:
        # As the scheduler last told, without asking it.
        known = self.client.scheduler_info().get("workers", {})
        return sum(worker["nthreads"] for worker in known.values()) or 1

    def with_options(self, **options: Any) -> "DaskPool":
        """A pool over the same client with other options: those of the constructor.

        To be shut down by itself; that leaves the client open.
        """
        unknown = options.keys() - self._options.keys()
        if unknown:
            raise TypeError(f"with_options() got an unexpected keyword argument {min(unknown)!r}")
        if isinstance(options.get("workers"), str):
            options["workers"] = [options["workers"]]
        other = DaskPool.__new__(DaskPool)
        other._open(_Engine(self.client, owned=False))
        other._options = {**self._options, **options}
        return other

    def submit(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> concurrent.futures.Future[_T]:
        """Schedule ``fn(*args, **kwargs)`` on the cluster and return its future.

        Raises:
            RuntimeError: The pool is shut down.

        """
        call = _Call(fn, args, kwargs, self._options)
        with self._lock:
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._pending.add(call.future)
        call.future.add_done_callback(self._pending.discard)
        self._engine.send(call)
        return call.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; disconnect, if the pool was made for an address.

        Args:
            wait: Return when all calls are done, rather than at once.
            cancel_futures: Cancel the calls that are not done.

        """
        with self._lock:
            first, self._shutdown = not self._shutdown, True
            pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            concurrent.futures.wait(pending)
        if first and self._engine.owned:
            self._close_when_done(pending, wait)

    def _close_when_done(self, pending: "list[concurrent.futures.Future[Any]]", wait: bool) -> None:
        def close() -> None:
            concurrent.futures.wait(pending)
            self.client.close()

        if wait:
            close()
        else:
            threading.Thread(target=close, name="rondel-dask-close").start()


def _engine(client: Any) -> _Engine:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise ImportError(
            "rondel.DaskPool needs Dask's distributed, which is not installed: "
            "pip install rondel[dask]"
        ) from error
    if isinstance(client, str):
        return _Engine(distributed.Client(client, set_as_default=False), owned=True)
    if not isinstance(client, distributed.Client):
        raise TypeError(f"client must be an address or a distributed.Client, not {client!r}")
    if client.asynchronous:
        raise TypeError("client must be a synchronous one (asynchronous=False)")
    return _Engine(client, owned=False)

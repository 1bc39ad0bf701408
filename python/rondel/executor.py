"""Calls in threads: run_in_executor(), the default executor, name resolution."""

import asyncio
import concurrent.futures
import contextvars
import functools
import logging
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import ErrorHandling
from .pools import is_process_pool
from .pools.threads import ThreadPool, is_thread_pool

logger = logging.getLogger("asyncio")

_T = TypeVar("_T")
# (family, type, proto, canonname, sockaddr), as socket.getaddrinfo() returns it.
AddrInfo = tuple[Any, Any, int, str, Any]


class Executing(ErrorHandling):
    """``run_in_executor()`` and what rests on it."""

    def __init__(self) -> None:
        super().__init__()
        self._default_executor: concurrent.futures.Executor | None = None
        self._executor_shutdown_called = False

    def _run_in_executor(
        self,
        executor: concurrent.futures.Executor | None,
        func: Callable[..., _T],
        args: tuple[Any, ...],
    ) -> "asyncio.Future[_T]":
        """Called by the native ``run_in_executor()`` for all but calls to thread pools of ours."""
        if self.get_debug():
            self._check_callback(func, "run_in_executor")
        if executor is None:
            executor = self._default_executor
            if executor is None or self._executor_shutdown_called:
                executor = self._make_default_executor()
        if is_thread_pool(executor):
            return executor._run_for(self, func, args)
        if is_process_pool(executor):
            return executor._run_for(self, func, args)
        return asyncio.wrap_future(executor.submit(func, *args), loop=self)

    def _make_default_executor(self) -> concurrent.futures.Executor:
        if self._executor_shutdown_called:
            raise RuntimeError("Executor shutdown has been called")
        self._default_executor = ThreadPool(thread_name_prefix="asyncio")
        return self._default_executor

    def _call_in_thread(
        self, func: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "asyncio.Future[_T]":
        """For ``rondel.to_thread()``: the default executor, in a copy of the current context."""
        executor = self._default_executor or self._make_default_executor()
        if is_thread_pool(executor) and not self._executor_shutdown_called:
            self._check_closed()
            return executor._run_for(self, func, args, kwargs, True)
        call = functools.partial(contextvars.copy_context().run, func, *args, **kwargs)
        return self.run_in_executor(None, call)

    def set_default_executor(self, executor: concurrent.futures.Executor) -> None:
        """Set the executor for ``run_in_executor(None, …)``; must be a ThreadPoolExecutor."""
        if not isinstance(executor, concurrent.futures.ThreadPoolExecutor):
            raise TypeError("executor must be ThreadPoolExecutor instance")
        self._default_executor = executor

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait until the default executor's threads are done, at most ``timeout`` seconds.

        When the time is over a RuntimeWarning says so and the threads are left to themselves.
        """
        self._executor_shutdown_called = True
        executor = self._default_executor
        if executor is None:
            return
        future = self.create_future()
        thread = threading.Thread(target=self._join_executor, args=(executor, future))
        thread.start()
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            warnings.warn(
                f"The executor did not finishing joining its threads within {timeout} seconds.",
                RuntimeWarning,
                stacklevel=2,
            )
            executor.shutdown(wait=False)
        else:
            thread.join()

    def _join_executor(
        self, executor: concurrent.futures.Executor, future: "asyncio.Future[None]"
    ) -> None:
        try:
            executor.shutdown(wait=True)
            if not self.is_closed():
                self.call_soon_threadsafe(_set_unless_done, future)
        except Exception as exc:
            if not self.is_closed() and not future.cancelled():
                self.call_soon_threadsafe(future.set_exception, exc)

    def _close_executor(self) -> None:
        self._executor_shutdown_called = True
        executor = self._default_executor
        if executor is not None:
            self._default_executor = None
            executor.shutdown(wait=False)

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Resolve a name as ``socket.getaddrinfo()`` does, without blocking the loop.

        Addresses (``"127.0.0.1"``, ``"::1"``) are answered at once.
        """
        resolve: Callable[..., Any] = socket.getaddrinfo
        if self.get_debug():
            resolve = self._getaddrinfo_debug
        else:
            known = answer_for_literal(host, port, family, type, proto, flags)
            if known is not None:
                return known
        infos: list[Any] = await self.run_in_executor(
            None, resolve, host, port, family, type, proto, flags
        )
        return infos

    def _getaddrinfo_debug(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        family: int,
        type: int,
        proto: int,
        flags: int,
    ) -> list[Any]:
        what = [f"{host!s}:{port!r}"]
        for name, value in (("family", family), ("type", type), ("proto", proto), ("flags", flags)):
            if value:
                what.append(f"{name}={value!r}")
        question = ", ".join(what)
        logger.debug("Get address info %s", question)
        start = self.time()
        answer = socket.getaddrinfo(host, port, family, type, proto, flags)
        seconds = self.time() - start
        level = logging.INFO if seconds >= self.slow_callback_duration else logging.DEBUG
        message = f"Getting address info {question} took {seconds * 1e3:.3f}ms: {answer!r}"
        logger.log(level, message)
        return answer

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int = 0
    ) -> tuple[str, str]:
        """Name an address as ``socket.getnameinfo()`` does, without blocking the loop."""
        return await self.run_in_executor(None, socket.getnameinfo, sockaddr, flags)


def _set_unless_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


# What the system makes of a service that is only a number: a socket of each kind.
_KINDS = (
    (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.SOCK_RAW, 0),
)


def answer_for_literal(
    host: object, port: object, family: int, type: int, proto: int, flags: int
) -> list[AddrInfo] | None:
    """What ``socket.getaddrinfo()`` says of an address; None when it has to be asked itself."""
    if not is_literal(host) or proto or flags:
        return None
    # No subclass of int either: the system's function takes none.
    if not isinstance(port, int | None) or isinstance(port, bool):
        return None
    port = port or 0
    if not 0 <= port <= 65535:
        return None  # wraps around, or is an error: the system's to say
    own = socket.AF_INET6 if ":" in str(host) else socket.AF_INET
    if family not in (socket.AF_UNSPEC, own) or type == socket.SOCK_RAW:
        return None
    address: tuple[Any, ...] = (host, port)
    if own == socket.AF_INET6:
        # In its shortest form, as the system writes it.
        shortest = socket.inet_ntop(own, socket.inet_pton(own, str(host)))
        address = (shortest, port, 0, 0)
    found = [(own, kind, proto, "", address) for kind, proto in _KINDS if type in (0, kind)]
    return found or None


def is_literal(host: object) -> bool:
    """Whether a host is an IPv4 or IPv6 address rather than a name."""
    if not isinstance(host, str):
        return False
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        return False
    return True

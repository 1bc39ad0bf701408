"""Fixtures for every test: which loop a test runs on, and the limits it runs under.

Most tests run twice, on asyncio's own selector loop and on rondel's. asyncio is the oracle: an
assertion that does not hold there says nothing about rondel.
"""

import asyncio
import faulthandler
import gc
import importlib.util
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from pools import ThreadPoolFactory
from support import LoopFactory, children, open_fds, run_on

#: Seconds after which a test fails, unless it sets its own with ``pytest.mark.timeout``.
TEST_LIMIT = 30
#: Seconds after which the process is ended with every thread's stack, for a loop that is stuck
#: in native code, where no Python signal handler (hence no pytest-timeout) gets to run.
HARD_LIMIT = 240

_stderr = -1


def pytest_configure(config: pytest.Config) -> None:
    global _stderr
    # Capturing replaces fd 2 while tests run; the stacks must reach the terminal.
    _stderr = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(_stderr)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_LIMIT))
        if not {"rondel", "rondel_loop"}.isdisjoint(getattr(item, "fixturenames", ())):
            # `-k "not rondel"` runs the suite on asyncio alone, without the extension.
            item.extra_keyword_matches.add("rondel")


def pytest_collection_finish() -> None:
    # Each test ends with a full collection; what pytest itself has made need not be looked
    # through two thousand times.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def hard_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the process if the test outlives even its own time limit."""
    marker = request.node.get_closest_marker("timeout")
    own = marker.args[0] if marker is not None and marker.args else TEST_LIMIT
    faulthandler.dump_traceback_later(max(HARD_LIMIT, 2 * own), exit=True, file=_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loop_factory" not in metafunc.fixturenames:
        return
    # rondel has two ways of doing TLS. What is said of TLS is said of both.
    ways = ["rondel-bio"] if getattr(metafunc.module, "BOTH_TLS", False) else []
    metafunc.parametrize("loop_factory", ["asyncio", "rondel", *ways], indirect=True)


@pytest.fixture(params=["stdlib", "rondel"])
def make_pool(request: pytest.FixtureRequest) -> Iterator[ThreadPoolFactory]:
    """Makes thread pools, the standard library's or ours, which are shut down at the test's end."""
    import rondel

    kind = ThreadPoolExecutor if request.param == "stdlib" else rondel.ThreadPool
    made: list[ThreadPoolExecutor] = []

    def make(*args: Any, **kwargs: Any) -> ThreadPoolExecutor:
        made.append(kind(*args, **kwargs))
        return made[-1]

    yield make
    for pool in made:
        pool.shutdown()


@pytest.fixture
def loop_factory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LoopFactory:
    """A callable that makes a loop: the test runs once with asyncio's and once with rondel's."""
    if request.param == "asyncio":
        return asyncio.SelectorEventLoop
    if request.param == "rondel-bio":
        monkeypatch.setenv("RONDEL_TLS", "bio")
    import rondel

    return rondel.new_event_loop


@pytest.fixture
def reported() -> list[dict[str, Any]]:
    """The contexts given to the exception handler of ``loop``.

    A test that asks for this expects some and checks them itself; for any other test one
    context is a failure.
    """
    return []


def _managed(
    loop: asyncio.AbstractEventLoop,
    reported: list[dict[str, Any]],
    expects_reports: bool,
) -> Iterator[asyncio.AbstractEventLoop]:
    loop.set_exception_handler(lambda _, context: reported.append(context))
    try:
        yield loop
    finally:
        if not loop.is_closed():
            _finish(loop)
    # A future whose exception nobody took reports it when it is collected.
    gc.collect()
    if not expects_reports:
        assert reported == [], "the exception handler was called"


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the test left behind and close the loop, as asyncio.Runner does."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@pytest.fixture
def loop(
    loop_factory: LoopFactory,
    reported: list[dict[str, Any]],
    request: pytest.FixtureRequest,
) -> Iterator[asyncio.AbstractEventLoop]:
    """An open loop, closed after the test. It is not the current loop of the thread."""
    yield from _managed(loop_factory(), reported, _asked_for_reports(request))


@pytest.fixture
def rondel_loop(
    reported: list[dict[str, Any]], request: pytest.FixtureRequest
) -> Iterator[asyncio.AbstractEventLoop]:
    """A rondel loop, for what is said of rondel alone."""
    import rondel

    yield from _managed(rondel.new_event_loop(), reported, _asked_for_reports(request))


@pytest.fixture
def rondel() -> Iterator[Any]:
    """The package, not installed; asyncio's policy is the default one before, restored after."""
    import rondel

    before = asyncio.events._event_loop_policy  # type: ignore[attr-defined]
    asyncio.events._event_loop_policy = None  # type: ignore[attr-defined]
    yield rondel
    rondel.streams.uninstall()
    rondel.sync.uninstall()
    asyncio.events._event_loop_policy = before  # type: ignore[attr-defined]


def _asked_for_reports(request: pytest.FixtureRequest) -> bool:
    """Whether the test function itself, not only ``loop``, names ``reported``."""
    function = getattr(request.node, "function", None)
    code = getattr(function, "__code__", None)
    return code is not None and "reported" in code.co_varnames[: code.co_argcount]


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """The test closes every file descriptor that it opens."""
    before = open_fds()
    yield
    if open_fds() > before:
        gc.collect()
        assert open_fds() <= before


@pytest.fixture
def no_child_left() -> Iterator[None]:
    """The test leaves neither a running child nor a zombie."""
    before = set(children())
    yield
    deadline = time.monotonic() + 5
    while set(children()) - before:
        subprocess._cleanup()  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, f"left: {children()}"
        gc.collect()
        time.sleep(0.01)


@pytest.fixture
def run(loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    """``run(main, *args)`` runs the coroutine function on ``loop`` and returns its result."""

    def runner(main: Callable[..., Any], *args: Any, limit: float = 15) -> Any:
        return run_on(loop, main, *args, limit=limit)

    return runner


@pytest.fixture
def anyio_run(loop_factory: LoopFactory) -> Callable[..., Any]:
    """``anyio_run(main)`` runs the coroutine function by anyio.run() on a loop made for it."""
    import anyio

    def runner(main: Callable[[], Awaitable[Any]], limit: float = 15) -> Any:
        loops: list[asyncio.AbstractEventLoop] = []

        def make() -> asyncio.AbstractEventLoop:
            loops.append(loop_factory())
            return loops[-1]

        async def bounded() -> Any:
            assert [asyncio.get_running_loop()] == loops
            with anyio.fail_after(limit):
                return await main()

        result = anyio.run(bounded, backend_options={"loop_factory": make})
        assert [loop.is_closed() for loop in loops] == [True]
        return result

    return runner


@pytest.fixture(scope="session")
def browser() -> ModuleType:
    """examples/browser.py, where there is a browser for it."""
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        reason = "Chromium is missing (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    example = pathlib.Path(__file__).parent.parent / "examples" / "browser.py"
    spec = importlib.util.spec_from_file_location("browser", example)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

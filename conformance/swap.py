"""Puts rondel's loop where CPython's own test classes look for asyncio's.

The tests make their loops in four ways, and each leads to one of the names replaced here:

* `asyncio.new_event_loop()`, `asyncio.run()`, `asyncio.Runner()`, `IsolatedAsyncioTestCase` and the
  policies all end in `_loop_factory` of the default policy;
* `asyncio.SelectorEventLoop(selector)` and `asyncio.EventLoop()`, in the `create_event_loop`
  methods of the functional tests;
* `BaseEventLoop()`, or a subclass of it, with its selector mocked away, where a test only wants
  some loop that has nothing to poll;
* `new_test_loop()` of `test.test_asyncio.utils`, a mock loop whose clock a generator drives. The
  tests get a loop whose time passes by itself; those that look at the clock are excluded.

Nothing of rondel is changed: the tests get instances of `rondel.Loop` itself, not of a subclass,
since a subclass may take other paths.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import asyncio.locks
import asyncio.queues
import asyncio.selector_events
import asyncio.streams
import asyncio.unix_events
import concurrent.futures
import importlib
import types
from typing import Any

LOOP_CLASSES = {
    "EventLoop",
    "SelectorEventLoop",
    "_UnixSelectorEventLoop",
    "BaseSelectorEventLoop",
    "BaseEventLoop",
}


class Created:
    """Loops created so far in this process, by whose they are; in tests of thread pools, pools."""

    ours = 0
    stock = 0


class _StandInType(type):
    """The type of a class that is called for a loop, and asked whether something is a loop."""

    loop_class: type[Any]

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type[Any]:
        for base in bases:
            if isinstance(base, _StandInType):  # a test derives a class from asyncio's loop
                return type(name, (_Counted, base.loop_class), namespace)
        return super().__new__(cls, name, bases, namespace)

    def __call__(cls, selector: object = None) -> Any:
        # The selector is asyncio's way of choosing between epoll, poll and select; rondel has its
        # own poller. The classes of tests that differ by it only are excluded as twins.
        Created.ours += 1
        return cls.loop_class()

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.loop_class)


class _Counted:
    def __init__(self) -> None:
        Created.ours += 1
        super().__init__()


def _count_stock_loops() -> None:
    base: Any = asyncio.base_events.BaseEventLoop
    init = base.__init__

    def counting_init(self: Any, *args: Any, **kwargs: Any) -> None:
        Created.stock += 1
        init(self, *args, **kwargs)

    base.__init__ = counting_init


def _replace_test_loop(stand_in: Any) -> None:
    utils: Any = importlib.import_module("test.test_asyncio.utils")

    def new_test_loop(self: Any, gen: object = None) -> Any:
        loop = stand_in()
        self.set_event_loop(loop)
        return loop

    utils.TestCase.new_test_loop = new_test_loop


def install(loop_class: type) -> None:
    """Makes every way above give a `loop_class()`. To be called before a test module is imported.

    `loop_class` is called without arguments.
    """
    _count_stock_loops()
    stand_in: Any = _StandInType("EventLoop", (), {"loop_class": loop_class})
    # This imports the tests' own mock loop. It is a subclass of BaseEventLoop, as asyncio's loops
    # are, so it has to be there before that name is replaced.
    _replace_test_loop(stand_in)

    unix_events: Any = asyncio.unix_events
    policy = getattr(unix_events, "_UnixDefaultEventLoopPolicy", None) or (
        unix_events._DefaultEventLoopPolicy  # since 3.14
    )
    policy._loop_factory = stand_in
    modules = (asyncio, unix_events, asyncio.base_events, asyncio.selector_events)
    for module in modules:
        for name in LOOP_CLASSES & vars(module).keys():
            setattr(module, name, stand_in)


def install_streams(streams: types.ModuleType) -> None:
    """Puts the classes and functions of `rondel.streams` where the tests look for asyncio's.

    A program that calls `rondel.install()` gets the functions only; the tests of the classes make
    theirs by asyncio's names.
    """
    for name in (
        "StreamReader",
        "StreamWriter",
        "StreamReaderProtocol",
        "open_connection",
        "start_server",
        "open_unix_connection",
        "start_unix_server",
    ):
        for module in (asyncio, asyncio.streams):
            setattr(module, name, getattr(streams, name))


def install_sync(sync: types.ModuleType) -> None:
    """Puts the classes and functions of `rondel.sync` where the tests look for asyncio's."""
    sync.install()
    names = (
        ("Queue", asyncio.queues),
        ("PriorityQueue", asyncio.queues),
        ("LifoQueue", asyncio.queues),
        ("Lock", asyncio.locks),
    )
    # The tests derive classes, and those are to be native, too.
    for name, home in names:
        for module in (asyncio, home):
            setattr(module, name, getattr(sync, name))


def install_pools(thread_pool: Any, process_pool: Any) -> None:
    """Puts our pools in the place of `concurrent.futures.ThreadPoolExecutor` and
    `ProcessPoolExecutor`, here and in the programs that the tests start. To be called before a test
    module is imported.
    """
    for pool_class in (thread_pool, process_pool):
        _count_instances(pool_class)
    concurrent.futures.ThreadPoolExecutor = thread_pool
    concurrent.futures.ProcessPoolExecutor = process_pool

    helper: Any = importlib.import_module("test.support.script_helper")
    run = helper.assert_python_ok
    # The programs import the classes by their own names, too.
    swap = "import concurrent.futures, rondel\n" + "".join(
        f"concurrent.futures.{name} = concurrent.futures.{ours} = rondel.{ours}\n"
        for name, ours in (
            ("ThreadPoolExecutor", thread_pool.__name__),
            ("ProcessPoolExecutor", process_pool.__name__),
        )
    )

    def assert_python_ok(*args: str, **kwargs: Any) -> Any:
        if len(args) == 2 and args[0] == "-c":
            args = ("-c", swap + args[1])
        return run(*args, **kwargs)

    helper.assert_python_ok = assert_python_ok


def _count_instances(pool_class: Any) -> None:
    init = pool_class.__init__

    def counting_init(self: Any, *args: Any, **kwargs: Any) -> None:
        Created.ours += 1
        init(self, *args, **kwargs)

    pool_class.__init__ = counting_init


def adapt(test_module: types.ModuleType) -> None:
    """Replaces helpers of a test module that look into asyncio's queue of ready callbacks."""
    gather_tests: Any = getattr(test_module, "GatherTestsBase", None)
    if gather_tests is not None:
        utils: Any = importlib.import_module("test.test_asyncio.utils")

        def run_loop(self: Any, loop: Any) -> None:
            # The original goes on until the queue is empty. A chain of gathered coroutines is
            # a few turns long, and a turn more does no harm.
            for _ in range(10):
                utils.run_briefly(loop)

        gather_tests._run_loop = run_loop

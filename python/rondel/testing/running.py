"""Running programs on loops for tests."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from .loop import Loop
from .network import Network

_T = TypeVar("_T")


def run(
    main: Coroutine[Any, Any, _T],
    *,
    seed: int | None = None,
    network: Network | None = None,
    debug: bool | None = None,
    trace: list[str] | None = None,
) -> _T:
    """Run a coroutine on a :class:`Loop` of its own and return its result, as ``asyncio.run()``
    does.

    The functions of the module ``random`` follow from the seed during the run, too.

    Args:
        main: The coroutine.
        seed: Of the loop.
        network: How the loop's connections behave.
        debug: Whether to use asyncio's debug mode.
        trace: A list that gets a line for each callback (see :attr:`Loop.trace`).

    Raises:
        Deadlock: The program waits for something that cannot happen.
        RuntimeError: Another loop runs in this thread.

    What the program raises comes with a note of the seed.

    """
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("rondel.testing.run() cannot be called from a running event loop")
    loop = Loop(seed, network=network, record=trace is not None)
    try:
        with _seeded_random(loop), asyncio.Runner(debug=debug, loop_factory=lambda: loop) as runner:
            return runner.run(main)
    except Exception as exc:
        if seed is not None:
            exc.add_note(f"rondel.testing: seed={seed}")
        raise
    finally:
        if trace is not None and loop.trace is not None:
            trace += loop.trace


def explore(
    main: Callable[[], Coroutine[Any, Any, object]],
    *,
    seeds: Iterable[int] = range(100),
    network: Network | None = None,
    debug: bool | None = None,
) -> None:
    """Run ``main()`` once with each seed, and end with the first exception.

    The exception has a note of the seed, with which :func:`run` repeats it.
    """
    for seed in seeds:
        run(main(), seed=seed, network=network, debug=debug)


@contextlib.contextmanager
def _seeded_random(loop: Loop) -> Iterator[None]:
    """The module ``random`` follows from the loop's seed meanwhile."""
    if loop.tape.seed is None:
        yield
        return
    before = random.getstate()
    random.setstate(loop.tape.random().getstate())
    try:
        yield
    finally:
        random.setstate(before)

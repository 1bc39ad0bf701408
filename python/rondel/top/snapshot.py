"""What a loop is doing now, as plain data: its metrics, its tasks, and what has blocked it."""

import asyncio
import collections
import dataclasses
import os
import sysconfig
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from .. import metering, watchdog

if TYPE_CHECKING:
    from ..loop import Loop

#: How many tasks are told one by one, and how many places and culprits.
MOST = 200

_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
_ASYNCIO = os.path.join(sysconfig.get_path("stdlib"), "asyncio", "")
#: Longer chains of awaits are told up to here.
_DEEPEST = 100


def of_loop(loop: "Loop", watch: "watchdog.Watch | None") -> dict[str, Any]:
    """Return a loop's state. Times are seconds. May be called from any thread."""
    tasks = [_task(task, loop) for task in asyncio.all_tasks(loop)]
    places = collections.Counter((task["state"], task["where"], task["on"]) for task in tasks)
    measured = metering.metrics(loop)
    return {
        "metrics": dataclasses.asdict(measured),
        "task_count": len(tasks),
        "tasks": tasks[:MOST],
        "places": [
            {"state": state, "where": where, "on": on, "count": count}
            for (state, where, on), count in places.most_common(MOST)
        ],
        "threshold": watch.threshold if watch else None,
        "slow": [culprit._asdict() for culprit in watch.summary()[:MOST]] if watch else [],
    }


def _task(task: "asyncio.Task[Any]", loop: "Loop") -> dict[str, str]:
    if task is asyncio.current_task(loop):
        state = "running"
    else:
        state = "ready" if getattr(task, "_fut_waiter", None) is None else "waiting"
    chain = _chain(task.get_coro())
    own = next((at for at in reversed(chain) if not _is_plumbing(at[1].co_filename)), None)
    at = own or (chain[-1] if chain else None)
    inner = chain[-1] if chain and chain[-1] is not at else None
    return {
        "name": task.get_name(),
        "state": state,
        "where": _place(at) if at else "?",
        "on": inner[1].co_qualname if inner else "",
    }


def _chain(awaited: Any) -> list[tuple[FrameType, CodeType]]:
    """Return the suspended frames of coroutines that await each other, the innermost last."""
    found: list[tuple[FrameType, CodeType]] = []
    while awaited is not None and len(found) < _DEEPEST:
        for kind in ("cr", "ag", "gi"):
            if (frame := getattr(awaited, f"{kind}_frame", None)) is not None:
                found.append((frame, frame.f_code))
                next_one = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
                awaited = getattr(awaited, next_one, None)
                break
        else:
            break
    return found


def _is_plumbing(file: str) -> bool:
    return file.startswith((_ASYNCIO, _OWN))


def _place(at: tuple[FrameType, CodeType]) -> str:
    frame, code = at
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"

"""What this version does not do yet.

Each method says so by its name, instead of failing somewhere inside.
"""

from typing import Any, NoReturn


def _not_yet(name: str) -> Any:
    async def method(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"rondel does not support loop.{name}() yet")

    method.__name__ = method.__qualname__ = name
    method.__doc__ = "Not supported yet: raises NotImplementedError."
    return method


class NotYet:
    """Methods of an asyncio loop that raise NotImplementedError for now."""

    start_tls = _not_yet("start_tls")
    connect_read_pipe = _not_yet("connect_read_pipe")
    connect_write_pipe = _not_yet("connect_write_pipe")
    subprocess_exec = _not_yet("subprocess_exec")
    subprocess_shell = _not_yet("subprocess_shell")

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

    sendfile = _not_yet("sendfile")
    sock_sendfile = _not_yet("sock_sendfile")

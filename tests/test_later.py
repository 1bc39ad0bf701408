"""What rondel does not do yet says so by name."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

Loop = asyncio.AbstractEventLoop

CALLS: dict[str, Callable[[Any], Any]] = {
    "sendfile": lambda loop: loop.sendfile(None, None),
    "sock_sendfile": lambda loop: loop.sock_sendfile(None, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_method_says_that_it_is_not_there_yet(rondel_loop: Loop, name: str) -> None:
    async def main() -> None:
        await CALLS[name](rondel_loop)

    with pytest.raises(NotImplementedError, match=rf"\b{name}\b"):
        rondel_loop.run_until_complete(main())

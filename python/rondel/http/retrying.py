"""Requests that are made again when they fail; aiohttp has nothing of the kind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Container
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from .exceptions import ClientConnectionError, ClientPayloadError
from .formdata import payload_of
from .sending import IDEMPOTENT

if TYPE_CHECKING:
    from .client import ClientSession
    from .response import ClientResponse

_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a request is made again.

    `attempts`: in all, the first one included. A request of these `methods` is made again after
    these `statuses`, ClientConnectionError and TimeoutError. `backoff`: seconds before the second
    attempt, doubled for each further one up to `backoff_max`; `jitter` (0 to 1) is the part of that
    which is random. A server's Retry-After goes before that, unless it asks for more than
    `retry_after_max` seconds: the response is then given to the program.

    Each attempt has the request's `timeout` for itself. A body that cannot be sent twice (an
    iterator) is not. The last response or exception is the request's.
    """

    attempts: int = 4
    statuses: Container[int] = _STATUSES
    methods: Container[str] = IDEMPOTENT
    backoff: float = 0.5
    backoff_max: float = 30.0
    jitter: float = 0.5
    retry_after_max: float = 120.0

    async def request(self, session: ClientSession, arguments: dict[str, Any]) -> ClientResponse:
        """Make a session's request, with its arguments."""
        if arguments.get("data") is not None:
            arguments["data"] = payload_of(arguments["data"])
            attempts = self.attempts if arguments["data"].replayable else 1
        else:
            attempts = self.attempts
        if arguments["method"].upper() not in self.methods:
            attempts = 1
        check = arguments.pop("raise_for_status", None)
        for attempt in range(1, attempts):
            try:
                response = await session.start(**arguments, raise_for_status=False)
            except (ClientConnectionError, ClientPayloadError, TimeoutError):
                await asyncio.sleep(self._pause(attempt))
                continue
            pause = self._pause(attempt)
            if response.status in self.statuses:
                asked = _retry_after(response)
                pause = pause if asked is None else asked
            if response.status not in self.statuses or pause > self.retry_after_max:
                await session.check(response, check)
                return response
            await _drain(response)
            await asyncio.sleep(pause)
        return await session.start(**arguments, raise_for_status=check)

    def _pause(self, attempt: int) -> float:
        longest = min(self.backoff * 2.0 ** (attempt - 1), self.backoff_max)
        return longest * (1 - self.jitter * random.random())


def _retry_after(response: ClientResponse) -> float | None:
    """Seconds that the server asks for; None when it does not, or not in a way that is known."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


async def _drain(response: ClientResponse) -> None:
    """Read a small rest, so that the connection can be used again; close it otherwise."""
    length = response.content_length
    if length is not None and length <= 65536:
        try:
            await response.read()
        except (ClientConnectionError, ClientPayloadError, TimeoutError):
            pass
    response.release()

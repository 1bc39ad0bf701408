"""What a session's methods return: requests that are awaited or entered."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from .connector import BaseConnector, TCPConnector
from .repeating import repeat
from .response import ClientResponse

if TYPE_CHECKING:
    from yarl import URL

    from .client import ClientSession

Result = TypeVar("Result")


class Deferred(Coroutine[Any, Any, Result]):
    """A coroutine by another's hand."""

    __slots__ = ("_coroutine",)

    _coroutine: Coroutine[Any, Any, Result]

    def send(self, value: Any) -> Any:
        """Resume the coroutine."""
        return self._coroutine.send(value)

    def throw(self, *exception: Any) -> Any:
        """Raise an exception where the coroutine waits."""
        return self._coroutine.throw(*exception)

    def close(self) -> None:
        """Give the coroutine up."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()


class RequestContext(Deferred[ClientResponse]):
    """What a session's methods return: to be awaited, or entered with `async with`."""

    __slots__ = ("response",)

    #: Set when there is one.
    response: ClientResponse

    def __init__(
        self, session: ClientSession, method: str, url: str | URL, **arguments: Any
    ) -> None:
        if not arguments and session.is_plain and type(url) is str:
            self._coroutine = repeat(session, method, url, self)
            return
        if session.is_plain and "retry" not in arguments:
            self._coroutine = session._request(method, url, _context=self, **arguments)
            return
        arguments.update(method=method, str_or_url=url, _context=self)
        retry = arguments.pop("retry", session.retry)
        if retry is None:
            self._coroutine = session.start(**arguments)
        else:
            self._coroutine = retry.request(session, arguments)

    def __aenter__(self) -> Coroutine[Any, Any, ClientResponse]:
        return self._coroutine

    def __aexit__(self, *exc_info: object) -> Awaitable[None]:
        return self.response.release()


class _SingleRequest:
    """A request with a session of its own."""

    __slots__ = ("_context", "_session")

    def __init__(self, context: RequestContext, session: ClientSession) -> None:
        self._context = context
        self._session = session

    async def __aenter__(self) -> ClientResponse:
        try:
            response: ClientResponse = await self._context
            return response
        except BaseException:
            await self._session.close()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._context.response.release()
        await self._session.close()


def request(
    method: str,
    url: str | URL,
    *,
    connector: BaseConnector | None = None,
    **arguments: Any,
) -> _SingleRequest:
    """Make one request with a session of its own; only for `async with`."""
    owner = connector is None
    if connector is None:
        connector = TCPConnector(force_close=True)
    from .client import ClientSession

    session = ClientSession(connector=connector, connector_owner=owner)
    return _SingleRequest(RequestContext(session, method, url, **arguments), session)

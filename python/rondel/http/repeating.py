"""A request without arguments that was made before: what was prepared for it is sent again.

This is what remains of :meth:`ClientSession._request` for such a request. All else is left to that,
also what comes of a request that went out here and was not simply answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .exceptions import BadHttpMessage, ClientOSError, ServerDisconnectedError
from .sending import bad_message, begin, expired, may_go_again

if TYPE_CHECKING:
    from .client import ClientSession
    from .context import RequestContext
    from .request import Exchange
    from .response import ClientResponse

REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Begun(NamedTuple):
    """A request that went out already, and how it was redirected; None if nothing came back."""

    exchange: Exchange
    deadline: float | None
    response: ClientResponse | None


async def repeat(
    session: ClientSession, method: str, url: str, context: RequestContext
) -> ClientResponse:
    """Make a request that has no arguments."""
    exchange = session._prepared.get((method, url))
    limits = session._timeout
    if (
        exchange is None
        or session._closed
        or not session._remembers
        or limits.sock_read
        or len(session._cookie_jar)
    ):
        return await session._request(method, url, _context=context)
    connector = session._connector
    connection = connector.idle_connection(exchange.key)
    if connection is None:
        return await session._request(method, url, _context=context)
    timer = deadline = None
    if limits.total:
        loop = session._loop
        deadline = loop.time() + limits.total
        timer = loop.call_at(deadline, expired, connection)
    bodiless, decode = method == "HEAD", session._auto_decompress
    try:
        number = begin(connection, exchange.head, bodiless, False, decode, timer, connector.release)
        try:
            head = await connection.response()
        except BaseException:
            # Not another's: when the response is complete the connection may be in use again.
            connection.close(number)
            raise
    except (ClientOSError, ServerDisconnectedError) as error:
        # The server may have closed the connection before it saw the request.
        if not may_go_again(error, method):
            raise
        begun = Begun(exchange, deadline, None)
        return await session._request(method, url, _context=context, _begun=begun)
    except BadHttpMessage as error:
        raise bad_message(exchange, (), error) from error
    parts = (method, exchange.url, exchange.headers, head, connection, ())
    response = session.response_class(session, *parts)
    if session._read_bufsize is not None:
        head.content.set_limit(session._read_bufsize)
    if head.status in REDIRECTS:
        begun = Begun(exchange, deadline, response)
        return await session._request(method, url, _context=context, _begun=begun)
    if head.has("set-cookie"):
        session._keep_cookies(response)
    if session._raise_for_status:
        await session.check(response, None)
    context.response = response
    return response

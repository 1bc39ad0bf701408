"""Hooks that are told of each step of a request: aiohttp's TraceConfig."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multidict import CIMultiDict
    from yarl import URL

    from .client import ClientSession
    from .response import ClientResponse

Hook = Callable[["ClientSession", SimpleNamespace, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class TraceRequestStartParams:
    """A request begins; what a hook puts into `headers` is sent."""

    method: str
    url: URL
    headers: CIMultiDict[str]


@dataclass(frozen=True, slots=True)
class TraceRequestChunkSentParams:
    """Part of a request's body was sent."""

    method: str
    url: URL
    chunk: bytes


@dataclass(frozen=True, slots=True)
class TraceResponseChunkReceivedParams:
    """A response's body was read."""

    method: str
    url: URL
    chunk: bytes


@dataclass(frozen=True, slots=True)
class TraceRequestEndParams:
    """A request's response is there."""

    method: str
    url: URL
    headers: CIMultiDict[str]
    response: ClientResponse


@dataclass(frozen=True, slots=True)
class TraceRequestExceptionParams:
    """A request failed."""

    method: str
    url: URL
    headers: CIMultiDict[str]
    exception: BaseException


@dataclass(frozen=True, slots=True)
class TraceRequestRedirectParams:
    """A response redirects the request."""

    method: str
    url: URL
    headers: CIMultiDict[str]
    response: ClientResponse


@dataclass(frozen=True, slots=True)
class TraceConnectionQueuedStartParams:
    """The request waits for a connection to become free."""


@dataclass(frozen=True, slots=True)
class TraceConnectionQueuedEndParams:
    """The request waits no longer."""


@dataclass(frozen=True, slots=True)
class TraceConnectionCreateStartParams:
    """A connection is being made."""


@dataclass(frozen=True, slots=True)
class TraceConnectionCreateEndParams:
    """A connection was made."""


@dataclass(frozen=True, slots=True)
class TraceConnectionReuseconnParams:
    """A connection that was there is used again."""


@dataclass(frozen=True, slots=True)
class _Name:
    host: str


class TraceDnsResolveHostStartParams(_Name):
    """A name is being resolved."""


class TraceDnsResolveHostEndParams(_Name):
    """A name was resolved."""


class TraceDnsCacheHitParams(_Name):
    """A name was known; never told, since there is no cache of names."""


class TraceDnsCacheMissParams(_Name):
    """A name was not known."""


@dataclass(frozen=True, slots=True)
class TraceRequestHeadersSentParams:
    """A request's head was sent."""

    method: str
    url: URL
    headers: CIMultiDict[str]


_SIGNALS: dict[type, str] = {
    TraceRequestStartParams: "on_request_start",
    TraceRequestChunkSentParams: "on_request_chunk_sent",
    TraceResponseChunkReceivedParams: "on_response_chunk_received",
    TraceRequestEndParams: "on_request_end",
    TraceRequestExceptionParams: "on_request_exception",
    TraceRequestRedirectParams: "on_request_redirect",
    TraceConnectionQueuedStartParams: "on_connection_queued_start",
    TraceConnectionQueuedEndParams: "on_connection_queued_end",
    TraceConnectionCreateStartParams: "on_connection_create_start",
    TraceConnectionCreateEndParams: "on_connection_create_end",
    TraceConnectionReuseconnParams: "on_connection_reuseconn",
    TraceDnsResolveHostStartParams: "on_dns_resolvehost_start",
    TraceDnsResolveHostEndParams: "on_dns_resolvehost_end",
    TraceDnsCacheHitParams: "on_dns_cache_hit",
    TraceDnsCacheMissParams: "on_dns_cache_miss",
    TraceRequestHeadersSentParams: "on_request_headers_sent",
}


class Signal(list[Hook]):
    """Hooks of a step; once frozen, RuntimeError for whoever would change them."""

    frozen = False

    def freeze(self) -> None:
        """Let nothing be changed any more."""
        self.frozen = True


def _guarded(name: str) -> Callable[..., Any]:
    change = getattr(list, name)

    def guarded(self: Signal, *arguments: Any, **named: Any) -> Any:
        if self.frozen:
            raise RuntimeError("Cannot modify frozen list.")
        return change(self, *arguments, **named)

    guarded.__name__ = name
    return guarded


_CHANGES = "append clear extend insert pop remove reverse sort"
_OPERATORS = "__delitem__ __setitem__ __iadd__ __imul__"
for _name in (*_CHANGES.split(), *_OPERATORS.split()):
    setattr(Signal, _name, _guarded(_name))


class TraceConfig:
    """Lists of hooks, one for each step; `trace_config_ctx_factory` makes what they share.

    A hook is an async function of the session, the context and the step's parameters. The lists
    cannot be changed any more once a session has them.
    """

    on_request_start: Signal
    on_request_chunk_sent: Signal
    on_response_chunk_received: Signal
    on_request_end: Signal
    on_request_exception: Signal
    on_request_redirect: Signal
    on_connection_queued_start: Signal
    on_connection_queued_end: Signal
    on_connection_create_start: Signal
    on_connection_create_end: Signal
    on_connection_reuseconn: Signal
    on_dns_resolvehost_start: Signal
    on_dns_resolvehost_end: Signal
    on_dns_cache_hit: Signal
    on_dns_cache_miss: Signal
    on_request_headers_sent: Signal

    def __init__(self, trace_config_ctx_factory: Callable[..., Any] = SimpleNamespace) -> None:
        self._factory = trace_config_ctx_factory
        self._signals = {name: Signal() for name in _SIGNALS.values()}
        self.__dict__.update(self._signals)

    def trace_config_ctx(self, trace_request_ctx: Any = None) -> Any:
        """A new context, for one request."""
        return self._factory(trace_request_ctx=trace_request_ctx)

    def freeze(self) -> None:
        """Let no hook be added any more."""
        for signal in self._signals.values():
            signal.freeze()


class Tracing:
    """One request's hooks."""

    __slots__ = ("_configs", "_session", "headers", "method", "started", "url")

    method: str
    url: URL
    headers: CIMultiDict[str]

    def __init__(self, session: ClientSession, configs: list[TraceConfig], context: Any) -> None:
        self._session = session
        self._configs = [(config, config.trace_config_ctx(context)) for config in configs]
        self.started = False

    async def tell(self, params: Any) -> None:
        """Call the hooks of a step, one after the other."""
        name = _SIGNALS[type(params)]
        for config, context in self._configs:
            for hook in getattr(config, name):
                await hook(self._session, context, params)

    async def start(self, method: str, url: URL, headers: CIMultiDict[str]) -> None:
        """Tell that the request begins."""
        self.method, self.url, self.headers = method, url, headers
        await self.tell(TraceRequestStartParams(method, url, headers))
        self.started = True

    async def redirect(self, response: ClientResponse) -> None:
        """Tell that a response redirects."""
        parts = (self.method, self.url, self.headers, response)
        await self.tell(TraceRequestRedirectParams(*parts))

    async def queued(self, begins: bool) -> None:
        """Tell that the request waits for a connection, or no longer."""
        await self.tell(
            TraceConnectionQueuedStartParams() if begins else TraceConnectionQueuedEndParams()
        )

    async def reused(self) -> None:
        """Tell that a connection is used again."""
        await self.tell(TraceConnectionReuseconnParams())

    async def creating(self, begins: bool) -> None:
        """Tell that a connection is being made, or was."""
        await self.tell(
            TraceConnectionCreateStartParams() if begins else TraceConnectionCreateEndParams()
        )

    async def resolving(self, host: str, begins: bool, missed: bool = False) -> None:
        """Tell that a name is being resolved, or was."""
        if missed:
            await self.tell(TraceDnsCacheMissParams(host))
        kind = TraceDnsResolveHostStartParams if begins else TraceDnsResolveHostEndParams
        await self.tell(kind(host))

    async def headers_sent(self, method: str, url: URL, headers: CIMultiDict[str]) -> None:
        """Tell that a request's head was sent."""
        await self.tell(TraceRequestHeadersSentParams(method, url, headers))

    async def chunk_sent(self, method: str, url: URL, chunk: bytes) -> None:
        """Tell that part of a request's body was sent."""
        await self.tell(TraceRequestChunkSentParams(method, url, chunk))


async def traced(
    session: ClientSession, configs: list[TraceConfig], arguments: dict[str, Any]
) -> ClientResponse:
    """Make a request whose hooks are told of its beginning and its end."""
    tracing = Tracing(session, configs, arguments.get("trace_request_ctx"))
    try:
        response = await session._request(**arguments, _tracing=tracing)
    except BaseException as error:
        if tracing.started:
            parts = (tracing.method, tracing.url, tracing.headers, error)
            await tracing.tell(TraceRequestExceptionParams(*parts))
        raise
    try:
        end = (tracing.method, tracing.url, tracing.headers, response)
        await tracing.tell(TraceRequestEndParams(*end))
    except BaseException:
        response.close()
        raise
    return response

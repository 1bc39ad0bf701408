"""What the HTTP client raises: aiohttp's names and hierarchy."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy, MultiMapping

    from .connector import ConnectionKey
    from .response import ClientResponse, RequestInfo

__all__ = (
    "ClientConnectionError",
    "ClientConnectionResetError",
    "ClientConnectorCertificateError",
    "ClientConnectorDNSError",
    "ClientConnectorError",
    "ClientConnectorSSLError",
    "ClientError",
    "ClientHttpProxyError",
    "ClientOSError",
    "ClientPayloadError",
    "ClientProxyConnectionError",
    "ClientResponseError",
    "ClientSSLError",
    "ConnectionTimeoutError",
    "ContentTypeError",
    "EofStream",
    "InvalidURL",
    "InvalidUrlClientError",
    "InvalidUrlRedirectClientError",
    "NonHttpUrlClientError",
    "NonHttpUrlRedirectClientError",
    "RedirectClientError",
    "ServerConnectionError",
    "ServerDisconnectedError",
    "ServerFingerprintMismatch",
    "ServerTimeoutError",
    "SocketTimeoutError",
    "TooManyRedirects",
    "UnixClientConnectorError",
    "WSMessageTypeError",
    "WSServerHandshakeError",
    "WebSocketError",
)


class BadHttpMessage(Exception):
    """What a server sent is no HTTP; the session makes a ClientResponseError of it."""


class ClientError(Exception):
    """The base of everything that goes wrong with a request."""


class ClientResponseError(ClientError):
    """A response came, and it is not what was asked for."""

    def __init__(
        self,
        request_info: RequestInfo,
        history: tuple[ClientResponse, ...],
        *,
        status: int | None = None,
        message: str = "",
        headers: MultiMapping[str] | None = None,
    ) -> None:
        self.request_info = request_info
        self.history = history
        self.status = status if status is not None else 0
        self.message = message
        self.headers: CIMultiDictProxy[str] | MultiMapping[str] | None = headers
        self.args = (request_info, history)

    def __str__(self) -> str:
        return f"{self.status}, message={self.message!r}, url={str(self.request_info.real_url)!r}"

    def __repr__(self) -> str:
        parts = f"{self.request_info!r}, {self.history!r}"
        if self.status != 0:
            parts += f", status={self.status!r}"
        if self.message != "":
            parts += f", message={self.message!r}"
        if self.headers is not None:
            parts += f", headers={self.headers!r}"
        return f"{type(self).__name__}({parts})"


class ContentTypeError(ClientResponseError):
    """The content type is not the expected one."""


class ClientHttpProxyError(ClientResponseError):
    """A proxy refuses to make a tunnel."""


class WSServerHandshakeError(ClientResponseError):
    """The server does not switch to the WebSocket protocol."""


class TooManyRedirects(ClientResponseError):
    """More redirects than `max_redirects` allows."""


class ClientConnectionError(ClientError):
    """The base of what goes wrong with a connection."""

    #: Of HTTP/2: whether the server says that it has not begun with the request; None is unknown.
    unprocessed: bool | None = None


class ClientConnectionResetError(ClientConnectionError, ConnectionResetError):
    """The connection was reset while something was being sent."""


class ClientOSError(ClientConnectionError, OSError):
    """An OSError of a connection."""


class ClientConnectorError(ClientOSError):
    """No connection could be made."""

    def __init__(self, connection_key: ConnectionKey, os_error: OSError) -> None:
        self._conn_key = connection_key
        self._os_error = os_error
        super().__init__(os_error.errno, os_error.strerror)
        self.args = (connection_key, os_error)

    @property
    def os_error(self) -> OSError:
        """The error of the system."""
        return self._os_error

    @property
    def host(self) -> str:
        """To which no connection could be made."""
        return self._conn_key.host

    @property
    def port(self) -> int | None:
        """To which no connection could be made."""
        return self._conn_key.port

    @property
    def ssl(self) -> Any:
        """The request's `ssl` argument."""
        return self._conn_key.ssl

    def __str__(self) -> str:
        kind = "default" if self.ssl is True else self.ssl
        reason = self._os_error.strerror or str(self._os_error)
        return f"Cannot connect to host {self.host}:{self.port} ssl:{kind} [{reason}]"

    __reduce__ = BaseException.__reduce__


class ClientProxyConnectionError(ClientConnectorError):
    """No connection to a proxy could be made."""


class ClientConnectorDNSError(ClientConnectorError):
    """The host's name could not be resolved."""


class UnixClientConnectorError(ClientConnectorError):
    """No connection to a Unix socket could be made."""

    def __init__(self, path: str, connection_key: ConnectionKey, os_error: OSError) -> None:
        self._path = path
        super().__init__(connection_key, os_error)

    @property
    def path(self) -> str:
        """The socket's path."""
        return self._path

    def __str__(self) -> str:
        reason = self._os_error.strerror or str(self._os_error)
        return f"Cannot connect to unix socket {self.path} ssl:{self.ssl} [{reason}]"


class ClientSSLError(ClientConnectorError):
    """TLS could not be agreed upon."""


class ClientConnectorSSLError(ClientSSLError, ssl.SSLError):
    """TLS could not be agreed upon."""


class ClientConnectorCertificateError(ClientSSLError, ssl.CertificateError):
    """The server's certificate is not accepted."""

    def __init__(self, connection_key: ConnectionKey, certificate_error: Exception) -> None:
        inner = certificate_error if isinstance(certificate_error, OSError) else OSError()
        super().__init__(connection_key, inner)
        self._certificate_error = certificate_error
        self.args = (connection_key, certificate_error)

    @property
    def certificate_error(self) -> Exception:
        """What is wrong with the certificate."""
        return self._certificate_error

    @property
    def ssl(self) -> bool:
        """Whether the URL's scheme was https."""
        return self._conn_key.is_ssl

    def __str__(self) -> str:
        error = self._certificate_error
        return (
            f"Cannot connect to host {self.host}:{self.port} ssl:{self.ssl} "
            f"[{type(error).__name__}: {error.args}]"
        )


class ServerConnectionError(ClientConnectionError):
    """The base of what the server does to a connection."""


class ServerDisconnectedError(ServerConnectionError):
    """The server closed the connection before a response came."""

    def __init__(self, message: str | None = None) -> None:
        self.message = "Server disconnected" if message is None else message
        self.args = (self.message,)


class ServerFingerprintMismatch(ServerConnectionError):
    """The server's certificate is not the one that is asked for."""

    def __init__(self, expected: bytes, got: bytes, host: str, port: int) -> None:
        self.expected = expected
        self.got = got
        self.host = host
        self.port = port
        self.args = (expected, got, host, port)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} expected={self.expected!r} got={self.got!r} "
            f"host={self.host!r} port={self.port!r}>"
        )


class ServerTimeoutError(ServerConnectionError, asyncio.TimeoutError):
    """The server took too long."""


class ConnectionTimeoutError(ServerTimeoutError):
    """Connecting took too long."""


class SocketTimeoutError(ServerTimeoutError):
    """Nothing arrived for too long."""


class ClientPayloadError(ClientError):
    """The body is incomplete or cannot be decoded."""


class InvalidURL(ClientError, ValueError):
    """The URL is malformed."""

    def __init__(self, url: Any, description: str | None = None) -> None:
        self._url = url
        self._description = description
        super().__init__(*((url, description) if description else (url,)))

    @property
    def url(self) -> Any:
        """As it was given."""
        return self._url

    @property
    def description(self) -> str | None:
        """What is wrong with it."""
        return self._description

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __str__(self) -> str:
        return f"{self._url} - {self._description}" if self._description else str(self._url)


class InvalidUrlClientError(InvalidURL):
    """The request's URL is malformed."""


class RedirectClientError(ClientError):
    """The base of what is wrong with a redirect."""


class NonHttpUrlClientError(ClientError):
    """The request's URL is not http or https."""


class InvalidUrlRedirectClientError(InvalidUrlClientError, RedirectClientError):
    """A redirect's URL is malformed."""


class NonHttpUrlRedirectClientError(NonHttpUrlClientError, RedirectClientError):
    """A redirect's URL is not http or https."""


class EofStream(Exception):
    """A WebSocket's connection ended where a message was waited for."""


class WSMessageTypeError(TypeError):
    """A WebSocket's message is not of the kind that was asked for."""


class WebSocketError(Exception):
    """What a WebSocket's peer sent is against the protocol; `code` is the close code for it."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(code, message)

    def __str__(self) -> str:
        return str(self.args[1])

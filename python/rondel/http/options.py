"""Small values that requests are made with: timeouts and credentials."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from yarl import URL


@dataclass(frozen=True, slots=True)
class ClientTimeout:
    """Limits in seconds; None (and 0) is no limit.

    `total`: the whole request, its redirects and reading the body. `connect`: getting a connection,
    waiting for a free one included. `sock_connect`: making a new connection. `sock_read`: silence
    of the server. `ceil_threshold` is accepted for aiohttp's sake and not used: limits are exact.
    """

    total: float | None = None
    connect: float | None = None
    sock_read: float | None = None
    sock_connect: float | None = None
    ceil_threshold: float = 5


DEFAULT_TIMEOUT = ClientTimeout(total=300, sock_connect=30)


class BasicAuth(NamedTuple):
    """A name and a password for HTTP's basic authentication."""

    login: str
    password: str = ""
    encoding: str = "latin1"

    @classmethod
    def from_url(cls, url: URL, *, encoding: str = "latin1") -> Self | None:
        """The credentials in a URL; None when it has none."""
        if url.raw_user is None and url.raw_password is None:
            return None
        return cls(url.user or "", url.password or "", encoding)

    @classmethod
    def decode(cls, auth_header: str, encoding: str = "latin1") -> Self:
        """The credentials of an Authorization header's value; ValueError when it has none."""
        kind, _, encoded = auth_header.partition(" ")
        if kind.lower() != "basic" or not encoded:
            raise ValueError(f"Unknown authorization method {kind}")
        try:
            decoded = base64.b64decode(encoded.encode("ascii"), validate=True).decode(encoding)
        except binascii.Error:
            raise ValueError("Invalid base64 encoding.") from None
        login, colon, password = decoded.partition(":")
        if not colon:
            raise ValueError("Invalid credentials.")
        return cls(login, password, encoding)

    def encode(self) -> str:
        """The value of an Authorization header."""
        if ":" in self.login:
            raise ValueError('A ":" is not allowed in login (RFC 1945#section-11.1)')
        pair = f"{self.login}:{self.password}".encode(self.encoding)
        return "Basic " + base64.b64encode(pair).decode("ascii")


def encode_basic_auth(login: str, password: str = "", encoding: str = "utf-8") -> str:
    """The value of an Authorization header; ValueError for a colon in the login."""
    return BasicAuth(login, password, encoding).encode()

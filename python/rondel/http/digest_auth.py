"""Digest authentication (RFC 7616) as a middleware; the answers are those of `rondel get`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from yarl import URL

from .._rondel import HttpDigest
from .exceptions import ClientError

if TYPE_CHECKING:
    from .middlewares import ClientHandlerType, ClientRequest
    from .response import ClientResponse


class DigestAuthMiddleware:
    """Answers a server's digest challenge, and repeats the request that it came for.

    MD5, SHA-256 and SHA-512 (and `-sess`), for the request (`auth`) or also its body (`auth-int`).
    Later requests in the same protection space carry an answer at once, unless `preemptive` is
    False. Only the origin of the first request, and what that names as its domain, gets answers.
    """

    def __init__(self, login: str, password: str, preemptive: bool = True) -> None:
        if login is None:
            raise ValueError("None is not allowed as login value")
        if password is None:
            raise ValueError("None is not allowed as password value")
        if ":" in login:
            raise ValueError('A ":" is not allowed in username (RFC 1945#section-11.1)')
        self._login = login
        self._password = password
        self._preemptive = preemptive
        self._challenge: HttpDigest | None = None
        self._origin: URL | None = None
        # Prefixes of the URLs that the credentials are for.
        self._space: list[str] = []

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send a request."""
        origin = request.url.origin()
        if self._origin is None:
            self._origin = origin
        elif origin != self._origin and not self._protects(request.url):
            return await handler(request)
        if self._preemptive and self._challenge is not None and self._protects(request.url):
            await self._answer(request, self._challenge)
        response = await handler(request)
        challenge = self._challenged(response)
        if challenge is None:
            return response
        response.release()
        await self._answer(request, challenge)
        response = await handler(request)
        self._challenged(response)
        return response

    def _protects(self, url: URL) -> bool:
        text = str(url)
        return any(
            text == space or text.startswith(space if space.endswith("/") else space + "/")
            for space in self._space
        )

    async def _answer(self, request: ClientRequest, challenge: HttpDigest) -> None:
        body = request.body if isinstance(request.body, bytes) else await request.body.as_bytes()
        request.headers["Authorization"] = challenge.answer(
            request.method.upper(),
            request.url.raw_path_qs,
            body,
            self._login,
            self._password,
            secrets.token_hex(8),
        )

    def _challenged(self, response: ClientResponse) -> HttpDigest | None:
        """The challenge of a response that asks for another request; it is kept."""
        if response.status != 401:
            return None
        fields = response.headers.getall("WWW-Authenticate", ())
        header = ", ".join(fields)
        challenge = HttpDigest.find(header)
        if challenge is None:
            if any(field.lower().startswith("digest ") for field in fields):
                raise ClientError(
                    f"Digest auth error: Unsupported or malformed challenge: {header}"
                )
            return None
        origin = response.url.origin()
        named = [URL(one) for one in (challenge.domain or "").split()]
        self._space = [str(origin.join(url)) for url in named] or [str(origin)]
        self._challenge = challenge
        return challenge

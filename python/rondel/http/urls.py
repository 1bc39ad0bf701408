"""URLs of requests, and those that redirects lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yarl import URL

from .exceptions import (
    InvalidUrlClientError,
    InvalidUrlRedirectClientError,
    NonHttpUrlClientError,
    NonHttpUrlRedirectClientError,
)

if TYPE_CHECKING:
    from .response import ClientResponse


def full_url(str_or_url: str | URL, base: URL | None) -> URL:
    """A request's URL, relative to `base` if it is; InvalidURL, NonHttpUrlClientError."""
    try:
        url = URL(str_or_url)
        if base is not None and not url.absolute:
            url = base.join(url)
    except (TypeError, ValueError) as error:
        raise InvalidUrlClientError(str_or_url) from error
    if url.scheme not in ("http", "https", "ws", "wss"):
        if not url.scheme:
            raise InvalidUrlClientError(url)
        raise NonHttpUrlClientError(url)
    if not url.raw_host:
        raise InvalidUrlClientError(url)
    return url


def redirected(response: ClientResponse, url: URL, location: str, requote: bool) -> URL:
    """Where a response redirects to; closes it and raises when that is nowhere."""
    try:
        target = URL(location, encoded=not requote)
    except ValueError as error:
        response.close()
        text = "Server attempted redirecting to a location that does not look like a URL"
        raise InvalidUrlRedirectClientError(location, text) from error
    if target.scheme not in ("http", "https", ""):
        response.close()
        raise NonHttpUrlRedirectClientError(location)
    authority = location.partition(":")[2].startswith("//")
    if not target.scheme or (target.scheme == url.scheme and not authority):
        # "http:path" is a reference to where we are, as browsers take it.
        target = url.join(target)
    if not target.raw_host:
        response.close()
        raise InvalidUrlRedirectClientError(target, "Invalid redirect URL origin")
    return target

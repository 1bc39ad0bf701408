"""Cookies (RFC 6265): what servers set, and what goes back to them."""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from http.cookies import BaseCookie, CookieError, Morsel, SimpleCookie
from ipaddress import ip_address
from typing import Any

from yarl import URL

LooseCookies = (
    Mapping[str, "str | BaseCookie[str] | Morsel[Any]"]
    | Iterable[tuple[str, "str | BaseCookie[str] | Morsel[Any]"]]
    | BaseCookie[str]
)

_FLAGS = ("secure", "httponly", "partitioned")


def _set(morsel: Morsel[str], name: str, value: str, coded: str) -> None:
    """Give a Morsel any name: set() is stricter than servers are."""
    state: Any = morsel
    state.__setstate__({"key": name, "value": value, "coded_value": coded})


def _morsel(name: str, value: str) -> Morsel[str] | None:
    """A cookie of any name that a header can carry; None for one that it cannot."""
    if not name or any(character in name or character in value for character in "\r\n\0;"):
        return None
    coded = value
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = SimpleCookie().value_decode(value)[0]
    morsel: Morsel[str] = Morsel()
    try:
        morsel.set(name, value, coded)
    except CookieError:
        _set(morsel, name, value, coded)
    return morsel


def parse_set_cookies(headers: Iterable[str]) -> list[Morsel[str]]:
    """The cookies of Set-Cookie fields; malformed ones are left out."""
    found = []
    for header in headers:
        first, *attributes = header.split(";")
        name, equals, value = first.partition("=")
        morsel = _morsel(name.strip(), value.strip()) if equals else None
        if morsel is None:
            continue
        for attribute in attributes:
            key, _, setting = attribute.strip().partition("=")
            key = key.strip().lower()
            if key in _FLAGS:
                if morsel.isReservedKey(key):
                    morsel[key] = True
            elif morsel.isReservedKey(key):
                setting = setting.strip()
                if len(setting) >= 2 and setting[0] == setting[-1] == '"':
                    setting = setting[1:-1]
                morsel[key] = setting
        found.append(morsel)
    return found


def _named(cookies: LooseCookies) -> Iterator[Morsel[str]]:
    pairs = cookies.items() if isinstance(cookies, Mapping) else cookies
    for name, value in pairs:
        if isinstance(value, Morsel):
            yield value
        elif isinstance(value, BaseCookie):
            yield from value.values()
        else:
            cookie = SimpleCookie()
            cookie[name] = value
            yield cookie[name]


def cookie_header(cookies: Iterable[Morsel[str]]) -> str:
    """The value of a Cookie field."""
    return "; ".join(f"{morsel.key}={morsel.coded_value}" for morsel in cookies)


def plain_cookies(cookies: LooseCookies) -> dict[str, Morsel[str]]:
    """Cookies that a request is given, by their names."""
    return {morsel.key: morsel for morsel in _named(cookies)}


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _domain_matches(domain: str, host: str) -> bool:
    if host == domain:
        return True
    return host.endswith("." + domain) and not _is_address(host)


def _path_matches(path: str, requested: str) -> bool:
    if not requested.startswith("/"):
        requested = "/"
    if path == requested:
        return True
    return requested.startswith(path) and (path.endswith("/") or requested[len(path)] == "/")


class AbstractCookieJar:
    """What a ClientSession needs of a cookie jar."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Morsel[str]]:
        raise NotImplementedError

    def clear(self, predicate: Any = None) -> None:
        """Forget all cookies, or those for which `predicate(morsel)` is true."""
        raise NotImplementedError

    def clear_domain(self, domain: str) -> None:
        """Forget the cookies of a domain and those below it."""
        raise NotImplementedError

    def update_cookies(self, cookies: LooseCookies, response_url: URL = URL()) -> None:  # noqa: B008
        """Remember cookies as if a response from that URL had set them."""
        raise NotImplementedError

    def filter_cookies(self, request_url: URL) -> BaseCookie[str]:
        """The cookies that go with a request for that URL."""
        raise NotImplementedError


class CookieJar(AbstractCookieJar):
    """Remembers cookies and tells which belong to a request.

    `unsafe`: also take cookies of hosts that are addresses. `quote_cookie`: quote odd values.
    `treat_as_secure_origin`: origins that get secure cookies although they are not https.
    """

    def __init__(
        self,
        *,
        unsafe: bool = False,
        quote_cookie: bool = True,
        treat_as_secure_origin: str | URL | Iterable[str | URL] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        del loop
        self._unsafe = unsafe
        self._quote = quote_cookie
        given = treat_as_secure_origin or ()
        origins = [given] if isinstance(given, (str, URL)) else list(given)
        self._secure_origins = frozenset(URL(origin).origin() for origin in origins)
        # By domain (""  for cookies given without a response), path and name.
        self._cookies: dict[tuple[str, str, str], Morsel[str]] = {}
        self._host_only: set[tuple[str, str, str]] = set()
        self._expirations: dict[tuple[str, str, str], float] = {}
        self._expiring: list[tuple[float, tuple[str, str, str]]] = []

    @property
    def quote_cookie(self) -> bool:
        """Whether values with special characters are quoted."""
        return self._quote

    @property
    def unsafe(self) -> bool:
        """Whether cookies of hosts that are addresses are taken."""
        return self._unsafe

    @property
    def treat_as_secure_origin(self) -> frozenset[URL]:
        """Origins that get secure cookies although they are not https."""
        return self._secure_origins

    def save(self, file_path: str | os.PathLike[str]) -> None:
        """Write the cookies to a file, which aiohttp reads as well. OSError."""
        from .cookie_files import save

        save(self, file_path)

    def load(self, file_path: str | os.PathLike[str]) -> None:
        """Replace the cookies by those of a file; OSError, and ValueError for a wrong file.

        Files in the pickle format of older aiohttp are not read.
        """
        from .cookie_files import load

        found = load(file_path)
        self.clear()
        for key, morsel, host_only, when in found:
            if not self._unsafe and _is_address(key[0]):
                continue
            self._cookies[key] = morsel
            if host_only:
                self._host_only.add(key)
            if when is not None:
                self._expirations[key] = when
                heapq.heappush(self._expiring, (when, key))
        self._expire()

    def __len__(self) -> int:
        return len(self._cookies)

    def __iter__(self) -> Iterator[Morsel[str]]:
        self._expire()
        return iter(list(self._cookies.values()))

    def _forget(self, key: tuple[str, str, str]) -> None:
        self._cookies.pop(key, None)
        self._host_only.discard(key)
        self._expirations.pop(key, None)

    def _expire(self) -> None:
        now = time.time()
        while self._expiring and self._expiring[0][0] <= now:
            when, key = heapq.heappop(self._expiring)
            if self._expirations.get(key) == when:
                self._forget(key)

    def clear(self, predicate: Any = None) -> None:
        """Forget all cookies, or those for which `predicate(morsel)` is true."""
        for key, morsel in list(self._cookies.items()):
            if predicate is None or predicate(morsel):
                self._forget(key)

    def clear_domain(self, domain: str) -> None:
        """Forget the cookies of a domain and those below it."""
        self.clear(lambda morsel: _domain_matches(domain, morsel["domain"]))

    def update_cookies(self, cookies: LooseCookies, response_url: URL = URL()) -> None:  # noqa: B008
        """Remember cookies as if a response from that URL had set them."""
        self._update(_named(cookies), response_url)

    def update_cookies_from_headers(self, headers: Iterable[str], response_url: URL) -> None:
        """Remember the cookies of Set-Cookie fields."""
        self._update(parse_set_cookies(headers), response_url)

    def _update(self, morsels: Iterable[Morsel[str]], url: URL) -> None:
        host = url.raw_host or ""
        if host and not self._unsafe and _is_address(host):
            return
        for original in morsels:
            morsel = original.copy()
            domain = str(morsel["domain"]).lower()
            host_only = False
            domain = domain.removeprefix(".")
            if domain.endswith("."):
                domain = ""
            if not domain:
                domain = host
                host_only = True
            elif host and not _domain_matches(domain, host):
                continue
            path = str(morsel["path"])
            if not path.startswith("/"):
                # The directory of what was asked for.
                path = "/" + url.path.lstrip("/").rpartition("/")[0] if host else "/"
            morsel["domain"] = domain
            morsel["path"] = path
            key = (domain, path, morsel.key)
            expires = _expiry(morsel)
            self._forget(key)
            self._cookies[key] = morsel
            if host_only:
                self._host_only.add(key)
            if expires is not None:
                self._expirations[key] = expires
                heapq.heappush(self._expiring, (expires, key))
        self._expire()

    def filter_cookies(self, request_url: URL) -> BaseCookie[str]:
        """The cookies that go with a request for that URL, those with longer paths last."""
        chosen: BaseCookie[str] = SimpleCookie() if self._quote else BaseCookie()
        if not self._cookies:
            return chosen
        self._expire()
        host = request_url.raw_host or ""
        if not self._unsafe and _is_address(host):
            keys = [key for key in self._cookies if not key[0]]
        else:
            keys = [key for key in self._cookies if self._belongs(key, host)]
        secure = request_url.scheme in ("https", "wss") or (
            bool(self._secure_origins) and request_url.origin() in self._secure_origins
        )
        for key in sorted(keys, key=lambda key: len(key[1])):
            morsel = self._cookies[key]
            if morsel["secure"] and not secure:
                continue
            if key[0] and not _path_matches(key[1], request_url.path):
                continue
            sent: Morsel[str] = Morsel()
            coded = morsel.coded_value if self._quote else morsel.value
            _set(sent, morsel.key, morsel.value, coded)
            dict.__setitem__(chosen, morsel.key, sent)
        return chosen

    def _belongs(self, key: tuple[str, str, str], host: str) -> bool:
        domain = key[0]
        if not domain:
            return True
        return domain == host if key in self._host_only else _domain_matches(domain, host)


def _expiry(morsel: Morsel[str]) -> float | None:
    """When a cookie goes, in seconds since the epoch; None when it stays."""
    if morsel["max-age"]:
        try:
            return time.time() + int(morsel["max-age"])
        except ValueError:
            morsel["max-age"] = ""
    if morsel["expires"]:
        try:
            return parsedate_to_datetime(str(morsel["expires"])).timestamp()
        except (ValueError, OverflowError):
            morsel["expires"] = ""
    return None


class DummyCookieJar(AbstractCookieJar):
    """Remembers nothing."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        del loop

    quote_cookie = True
    unsafe = False
    treat_as_secure_origin: frozenset[URL] = frozenset()

    def update_cookies_from_headers(self, headers: Iterable[str], response_url: URL) -> None:
        """Forgotten at once."""

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Morsel[str]]:
        return iter(())

    def clear(self, predicate: Any = None) -> None:
        """Nothing to forget."""

    def clear_domain(self, domain: str) -> None:
        """Nothing to forget."""

    def update_cookies(self, cookies: LooseCookies, response_url: URL = URL()) -> None:  # noqa: B008
        """Forgotten at once."""

    def filter_cookies(self, request_url: URL) -> BaseCookie[str]:
        """No cookies."""
        del request_url
        return SimpleCookie()

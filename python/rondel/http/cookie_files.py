"""Cookies in a file, in the form of aiohttp's: JSON, by domain and path, then by name."""

from __future__ import annotations

import json
import math
import os
from http.cookies import Morsel
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cookies import CookieJar

_OWN = ("key", "value", "coded_value", "host_only", "expires_timestamp")
# Where the moment is known these would say it anew, from when the file is read.
_RELATIVE = ("expires", "max-age")


def save(jar: CookieJar, path: str | os.PathLike[str]) -> None:
    """Write a jar's cookies; a new file can be read by its owner only. OSError."""
    data: dict[str, dict[str, dict[str, Any]]] = {}
    for key, morsel in jar._cookies.items():
        domain, folder, name = key
        told: dict[str, Any] = {
            "key": morsel.key,
            "value": morsel.value,
            "coded_value": morsel.coded_value,
        }
        told |= {name: value for name, value in morsel.items() if value and name not in _RELATIVE}
        if key in jar._host_only:
            told["host_only"] = True
        if key in jar._expirations:
            told["expires_timestamp"] = jar._expirations[key]
        data.setdefault(f"{domain}|{folder}", {})[name] = told
    with open(
        path, "w", encoding="utf-8", opener=lambda p, flags: os.open(p, flags, 0o600)
    ) as file:
        json.dump(data, file, indent=2)


def load(path: str | os.PathLike[str]) -> list[tuple[tuple[str, str, str], Morsel[str], bool, Any]]:
    """The cookies of a file: key, cookie, whether it is for its host only, and when it goes.

    OSError, and ValueError for what is no such file.
    """
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    found = []
    try:
        for place, cookies in data.items():
            domain, bar, folder = place.partition("|")
            if not bar:
                raise ValueError(f"no path in {place!r}")
            for name, told in cookies.items():
                morsel: Morsel[str] = Morsel()
                state: Any = morsel
                values = {key: str(told[key]) for key in ("key", "value", "coded_value")}
                state.__setstate__(values)
                for attribute, value in told.items():
                    if attribute not in _OWN and morsel.isReservedKey(attribute):
                        morsel[attribute] = value
                when = told.get("expires_timestamp")
                if when is not None and not math.isfinite(when):
                    raise ValueError(f"{when} is no time")
                found.append(((domain, folder, name), morsel, bool(told.get("host_only")), when))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of cookies") from error
    return found

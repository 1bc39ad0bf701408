"""Header fields of responses that say more than one thing: Link and Content-Disposition."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.message import Message
from email.utils import collapse_rfc2231_value
from types import MappingProxyType
from typing import NamedTuple

from multidict import MultiDict, MultiDictProxy
from yarl import URL

_PARAMETER = re.compile(r"""([^\s=]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|(\S*))""")

Links = MultiDictProxy[MultiDictProxy[str | URL]]


class ContentDisposition(NamedTuple):
    """What a response is for: `attachment` or `inline`, and under which name."""

    type: str | None
    parameters: MappingProxyType[str, str]
    filename: str | None


def links(fields: Iterable[str], base: URL) -> Links:
    """The links of Link fields (RFC 8288) by their `rel`, or by their URL where they have none.

    Each has its parameters and `url`, which is absolute.
    """
    found: MultiDict[MultiDictProxy[str | URL]] = MultiDict()
    # A comma may be in a URL; what follows the one between links is "<".
    for text in re.split(r",(?=\s*<)", ", ".join(fields)):
        target, closed, rest = text.strip().removeprefix("<").partition(">")
        if not closed:
            continue
        link: MultiDict[str | URL] = MultiDict()
        for parameter in rest.split(";")[1:]:
            match = _PARAMETER.fullmatch(parameter.strip())
            if match is not None:
                name, *values = match.groups()
                link.add(name, next((value for value in values if value is not None), ""))
        key = str(link.get("rel", target))
        link.add("url", base.join(URL(target)))
        found.add(key, MultiDictProxy(link))
    return MultiDictProxy(found)


def content_disposition(field: str | None) -> ContentDisposition | None:
    """A Content-Disposition field (RFC 6266); None for one that is missing.

    The names are the server's: a file's is not made safe.
    """
    if field is None:
        return None
    message = Message()
    message["Content-Disposition"] = field
    (kind, _), *given = message.get_params([("", "")], "Content-Disposition") or [("", "")]
    parameters = {}
    for name, value in given:
        extended = isinstance(value, tuple)
        parameters[name.lower() + "*" * extended] = collapse_rfc2231_value(value)
    filename = parameters.get("filename*", parameters.get("filename"))
    return ContentDisposition(kind.lower() or None, MappingProxyType(parameters), filename)

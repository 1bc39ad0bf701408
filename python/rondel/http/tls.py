"""TLS: the argument `ssl`, and contexts of our own."""

from __future__ import annotations

import functools
import ssl as ssl_module

from .fingerprint import Fingerprint

SSLArgument = ssl_module.SSLContext | bool | Fingerprint


@functools.cache
def default_context(verified: bool, http2: bool) -> ssl_module.SSLContext:
    """A context that is the same for all; `http2` is offered beside HTTP/1.1."""
    context = ssl_module.create_default_context()
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl_module.CERT_NONE
    context.set_alpn_protocols(("h2", "http/1.1") if http2 else ("http/1.1",))
    return context


def check_ssl(ssl: object) -> SSLArgument:
    """The argument `ssl`, or TypeError."""
    if ssl is None:
        return True
    if isinstance(ssl, (bool, ssl_module.SSLContext, Fingerprint)):
        return ssl
    text = f"ssl should be SSLContext, bool, Fingerprint or None, got {ssl!r} instead."
    raise TypeError(text)

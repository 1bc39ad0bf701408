"""Certificates that are known by their hash."""

from __future__ import annotations

import asyncio
import hashlib

from .exceptions import ServerFingerprintMismatch


class Fingerprint:
    """The SHA-256 of a server's certificate (DER), as the argument `ssl`: no other one is accepted.

    Nothing else is checked of the certificate. ValueError for what is no SHA-256.
    """

    def __init__(self, fingerprint: bytes) -> None:
        if len(fingerprint) in (16, 20):
            raise ValueError("md5 and sha1 are insecure and not supported. Use sha256.")
        if len(fingerprint) != 32:
            raise ValueError("fingerprint has invalid length")
        self._fingerprint = bytes(fingerprint)

    @property
    def fingerprint(self) -> bytes:
        """The hash."""
        return self._fingerprint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and other._fingerprint == self._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    def check(self, transport: asyncio.BaseTransport) -> None:
        """ServerFingerprintMismatch when the transport's peer has another certificate.

        A transport without TLS passes.
        """
        tls = transport.get_extra_info("ssl_object")
        if tls is None:
            return
        certificate = tls.getpeercert(binary_form=True) or b""
        got = hashlib.sha256(certificate).digest()
        if got != self._fingerprint:
            host, port, *_ = transport.get_extra_info("peername")
            raise ServerFingerprintMismatch(self._fingerprint, got, host, port)

"""PostgreSQL and Redis as processes of their own, in a folder that goes with them.

scripts/system-packages.sh installs both; a test for which one is missing is skipped, and with
CI=true it fails.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tls
from support import HOST, unused_port

#: Seconds that a server has to start or to stop.
LIMIT = 60
#: Where Debian has PostgreSQL's programs, most of which are not on PATH.
POSTGRES_FOLDERS = "usr/lib/postgresql/*/bin"


def needed(program: str, folders: str | None = None) -> str:
    """The path of a server's program, looked for on PATH and then in folders below "/"."""
    found = shutil.which(program)
    if found is None and folders is not None:
        paths = [path / program for path in sorted(Path("/").glob(folders))]
        found = next((str(path) for path in reversed(paths) if path.exists()), None)
    if found is None:
        reason = f"{program} is not installed (see scripts/system-packages.sh)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _folder(owner: pwd.struct_passwd | None, name: str) -> Path:
    """A new folder for a server that runs as owner, with a certificate for localhost."""
    folder = Path(tempfile.mkdtemp(prefix=f"rondel-{name}-"))
    certificate = tls.certificate()
    (folder / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    (folder / "cert.pem").write_bytes(b"".join(p.bytes() for p in certificate.cert_chain_pems))
    (folder / "ca.pem").write_bytes(tls.authority().cert_pem.bytes())
    (folder / "key.pem").chmod(0o600)
    if owner is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    return folder


class _Server:
    """A process that is started on a port of 127.0.0.1, and again after it was killed."""

    def __init__(self, folder: Path, owner: pwd.struct_passwd | None) -> None:
        self.folder = folder
        self.port = 0
        self.as_user: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL}
        if owner is not None:
            self.as_user |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, on the port that it had before if there was one, and wait until it answers."""
        for _ in range(5):
            # Between our look and the server's bind somebody else may take the port.
            port, self.port = self.port, self.port or unused_port()
            with (self.folder / "log").open("ab") as log:
                process = subprocess.Popen(
                    self.command(), stdout=log, stderr=subprocess.STDOUT, **self.as_user
                )
            self._process = process
            if self._comes_up(process):
                return
            self.kill()
            self.port = port
        log_text = (self.folder / "log").read_text(errors="replace")
        raise AssertionError(f"the server did not start:\n{log_text}")

    def _comes_up(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < deadline:
            if self.is_ready():
                return True
            time.sleep(0.02)
        return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it by a signal, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Postgres(_Server):
    """A PostgreSQL server with an empty database."""

    def __init__(self, folder: Path, owner: pwd.struct_passwd | None) -> None:
        super().__init__(folder, owner)
        self._password = secrets.token_hex(16)
        self._data = folder / "data"
        self._initialize()

    def _initialize(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self._password)
        options = ["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=scram-sha-256"]
        options += [f"--pwfile={secret}", "--username=postgres", f"--pgdata={self._data}"]
        initdb = needed("initdb", POSTGRES_FOLDERS)
        done = subprocess.run(
            [initdb, *options], capture_output=True, text=True, timeout=LIMIT, **self.as_user
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": self.folder / "cert.pem",
            "ssl_key_file": self.folder / "key.pem",
            "max_connections": 50,
        }
        program = needed("postgres", POSTGRES_FOLDERS)
        return [program, "-D", str(self._data), *(f"--{k}={v}" for k, v in settings.items())]

    def is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def login(self, over: str) -> dict[str, Any]:
        """The arguments of asyncpg's and psycopg's connect() for "tcp" or "unix"."""
        host = {"tcp": HOST, "unix": str(self.folder)}[over]
        return {
            "host": host,
            "port": self.port,
            "user": "postgres",
            "password": self._password,
        }


class Redis(_Server):
    """A Redis server that keeps nothing."""

    def __init__(self, folder: Path, owner: pwd.struct_passwd | None = None) -> None:
        super().__init__(folder, owner)
        self.path = folder / "socket"
        self.tls_port = 0

    def command(self) -> list[str]:
        self.tls_port = unused_port()
        options = {
            "bind": HOST,
            "port": self.port,
            "unixsocket": self.path,
            "tls-port": self.tls_port,
            "tls-cert-file": self.folder / "cert.pem",
            "tls-key-file": self.folder / "key.pem",
            "tls-ca-cert-file": self.folder / "ca.pem",
            "tls-auth-clients": "no",
            "save": "",
        }
        words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
        return [needed("redis-server"), *words]

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(LIMIT)
            try:
                # Its own socket: on the port somebody else might answer.
                sock.connect(str(self.path))
                sock.sendall(b"PING\r\n")
                return sock.recv(16) == b"+PONG\r\n"
            except OSError:
                return False


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL server; it refuses to run as root, so root runs it as nobody."""
    needed("initdb", POSTGRES_FOLDERS)
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    folder = _folder(owner, "postgres")
    try:
        server = Postgres(folder, owner)
        try:
            server.start()
            yield server
        finally:
            # SIGQUIT ends it and its processes at once.
            server.kill(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def redis_server() -> Iterator[Redis]:
    """A running Redis server."""
    needed("redis-server")
    folder = _folder(None, "redis")
    server = Redis(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)

"""What `rondel get` downloads from: nginx as a process of its own, and servers that misbehave."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from databases import _folder, _Server, needed
from support import HOST, unused_port
from tls import NAME

#: Seconds that one `rondel get` may take.
LIMIT = 60

NGINX = """
{user}
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    types {{ }}
    default_type application/octet-stream;
    sendfile on;
    client_body_temp_path {folder}/tmp;
    proxy_temp_path {folder}/tmp;
    fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp;
    scgi_temp_path {folder}/tmp;
    limit_req_zone $binary_remote_addr zone=requests:1m rate=2r/s;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl http2;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        root {folder}/www;
        location /slow/ {{ alias {folder}/www/; limit_rate 2m; }}
        location /no-ranges/ {{ alias {folder}/www/; max_ranges 0; }}
        location /busy/ {{
            alias {folder}/www/;
            limit_req zone=requests;
            limit_req_status 429;
            error_page 429 = @busy;
        }}
        location @busy {{ add_header Retry-After 1 always; return 429; }}
        location /named/ {{
            alias {folder}/www/;
            add_header Content-Disposition 'attachment; filename="../../the name.bin"';
        }}
        location /hidden/ {{
            alias {folder}/www/;
            add_header Content-Disposition "attachment; filename*=UTF-8''..%2f.profile";
        }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
        location /loop {{ return 302 /loop; }}
        location /elsewhere {{ return 301 ftp://example.invalid/; }}
        location /private/ {{
            alias {folder}/www/;
            auth_basic "private";
            auth_basic_user_file {folder}/users;
        }}
        location /cookie/set {{ add_header Set-Cookie "k=v; Path=/"; return 302 /cookie/get; }}
        location /cookie/get {{ if ($http_cookie != "k=v") {{ return 403; }} return 200 "got it"; }}
        location /headers {{ return 200 "$http_x_token|$http_user_agent|$http_accept_encoding"; }}
        location /connection {{ return 200 "$connection"; }}
        location /protocol {{ return 200 "$server_protocol"; }}
        location /broken {{ return 503; }}
    }}
}}
"""


class Nginx(_Server):
    """nginx, serving the files in `www`."""

    #: What it is told, with the names that command() fills in.
    configuration = NGINX

    def __init__(self) -> None:
        super().__init__(_folder(None, "nginx"), None)
        self.www = self.folder / "www"
        self.www.mkdir()
        (self.folder / "tmp").mkdir()
        # "me" with the password "secret".
        (self.folder / "users").write_text("me:{PLAIN}secret\n")
        self.tls_port = 0

    def command(self) -> list[str]:
        self.tls_port = unused_port()
        user = "user root;" if os.geteuid() == 0 else ""
        configuration = self.configuration.format(
            folder=self.folder, port=self.port, tls_port=self.tls_port, user=user
        )
        (self.folder / "nginx.conf").write_text(configuration)
        program = needed("nginx", "usr/sbin")
        return [program, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/headers", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://localhost:{self.tls_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Nginx"]:
        try:
            self.start()
            yield self
        finally:
            self.kill(signal.SIGTERM)
            shutil.rmtree(self.folder)

    def file(self, name: str, content: bytes) -> str:
        """Serve a file; its URL."""
        path = self.www / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"{self.url}/{name}"

    def requests(self, part: str = "") -> list[str]:
        """The lines of the access log with that part in them."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [line for line in lines if part in line]


@dataclass
class Request:
    """A request as a misbehaving server got it."""

    #: How many came before it.
    number: int
    target: str
    headers: dict[str, str]
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    @property
    def start(self) -> int:
        """Where the range begins that it asks for; 0 without one."""
        return int(self.headers.get("range", "bytes=0-")[6:].split("-")[0])

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(
        self, body: bytes, status: str = "200 OK", length: int | None = None, **headers: str
    ) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def serve(self, content: bytes, most: int | None = None, **headers: str) -> None:
        """Answer as a server with ranges does, but break off after `most` bytes."""
        start = self.start if self.headers.get("if-range", '"v1"') == '"v1"' else 0
        body = content[start:]
        headers |= {"ETag": '"v1"', "Accept_Ranges": "bytes"}
        status = "200 OK"
        if start:
            status = "206 Partial Content"
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        await self.answer(body[:most], status, length=len(body), **headers)
        if most is not None and most < len(body):
            self.reset()

    def reset(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()


@dataclass
class Odd:
    """A server that does with each request what it was told."""

    handle: Callable[[Request], Awaitable[None]]
    requests: list[Request] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    url: str = ""
    connections: int = 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                pairs = (line.split(": ", 1) for line in head[1:] if line)
                headers = {name.lower(): value for name, value in pairs}
                target = head[0].split(" ")[1]
                request = Request(len(self.requests), target, headers, writer, reader)
                self.requests.append(request)
                await self.handle(request)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort() if sys.exception() else writer.close()

    @contextlib.contextmanager
    def running(self) -> Iterator["Odd"]:
        loop = asyncio.SelectorEventLoop()
        # What a client's going away interrupts is nobody's business.
        loop.set_exception_handler(lambda *_: None)
        starting = asyncio.start_server(self._connected, HOST, 0, ssl=self.tls)
        server = loop.run_until_complete(starting)
        origin = f"https://{NAME}" if self.tls else f"http://{HOST}"
        self.url = f"{origin}:{server.sockets[0].getsockname()[1]}"
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(server.close)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            # The tasks end, their transports are closed, and the sockets.
            for _ in range(5):
                loop.run_until_complete(asyncio.sleep(0))
            loop.close()


@contextlib.contextmanager
def odd(handle: Callable[[Request], Awaitable[None]]) -> Iterator[Odd]:
    """A server with that handler, in a thread."""
    with Odd(handle).running() as server:
        yield server


def environment(**changes: str) -> dict[str, str]:
    """The environment without proxies, and without anybody's netrc."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return kept | {"NETRC": os.devnull, "LC_ALL": "C.UTF-8"} | changes


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rondel", "get", *map(str, arguments)]


def get(
    *arguments: object, cwd: Path, stdin: str = "", **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run `rondel get`."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment(**changes),
        check=False,
    )


@contextlib.contextmanager
def started(*arguments: object, cwd: Path, **streams: int) -> Iterator["subprocess.Popen[str]"]:
    """`rondel get` under way, which heeds SIGINT."""
    with subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **streams,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def events(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The JSON events that `rondel get --json` printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

"""`rondel get` and servers, networks and disks that misbehave."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import HOST, in_thread
from test_get import noise, sha256, wait_until
from web import LIMIT, Request, command, environment, events, files, get, odd

pytestmark = pytest.mark.timeout(2 * LIMIT)

CONTENT = noise(3_000_000, "odd")


# --- servers ------------------------------------------------------------------------------------


def test_a_transfer_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        await request.serve(CONTENT, most=700_000)

    with odd(handle) as server:
        result = get("--json", "--retries", "2", f"{server.url}/file", cwd=tmp_path)
    # More breaks than retries, but each attempt brought something.
    assert result.returncode == 0, result.stdout
    assert files(tmp_path) == {"file": CONTENT}
    starts = [request.start for request in server.requests]
    assert len(starts) >= 5 and starts == sorted(set(starts))
    assert {request.headers.get("if-range") for request in server.requests} == {None, '"v1"'}
    done = next(event for event in events(result) if event["event"] == "done")
    assert done["received"] == len(CONTENT)


def test_a_file_that_changes_meanwhile_comes_from_the_start(tmp_path: Path) -> None:
    new = noise(2_000_000, "new")

    async def handle(request: Request) -> None:
        if request.number == 0:
            await request.serve(CONTENT, most=1_000_000)
        elif request.number == 1:
            assert request.headers["if-range"] == '"v1"'
            await request.answer(new, ETag='"v2"')

    with odd(handle) as server:
        result = get(f"{server.url}/file", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {"file": new}


@pytest.mark.parametrize("lie", ["start", "total", "etag"])
def test_a_part_of_something_else_is_not_taken(tmp_path: Path, lie: str) -> None:
    """A 206 that does not continue what is there is asked for again as a whole."""

    async def handle(request: Request) -> None:
        if request.number == 0:
            await request.serve(CONTENT, most=1_000_000)
        elif "range" in request.headers:
            start = request.start + (lie == "start")
            total = len(CONTENT) + (lie == "total")
            await request.answer(
                CONTENT[start:],
                "206 Partial Content",
                Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{total}",
                ETag='"v2"' if lie == "etag" else '"v1"',
            )
        else:
            await request.serve(CONTENT)

    with odd(handle) as server:
        result = get(f"{server.url}/file", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {"file": CONTENT}
    assert len(server.requests) == 3


def test_without_ranges_every_attempt_is_a_new_one(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        assert "range" not in request.headers
        if request.number < 2:
            await request.answer(CONTENT[:1_000_000], length=len(CONTENT))
            request.reset()
        else:
            await request.answer(CONTENT)

    with odd(handle) as server:
        result = get(f"{server.url}/file", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {"file": CONTENT}


BAD = {
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc",
    "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "not HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "nothing": b"",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "part of a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 2_000_000,
    "206 unasked": b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n"
    b"Content-Range: bytes 5-7/8\r\n\r\nabc",
    "304 unasked": b"HTTP/1.1 304 Not Modified\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_is_not_taken_for_one(tmp_path: Path, name: str) -> None:
    async def handle(request: Request) -> None:
        await request.send(BAD[name])
        request.writer.close()

    with odd(handle) as server:
        result = get("--retries", "1", f"{server.url}/file", cwd=tmp_path)
    assert result.returncode in (3, 4), result.stderr
    assert files(tmp_path) == {}
    assert len(server.requests) == (1 if "304" in name else 2)


def test_chunked_and_unknown_lengths(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        if request.target == "/chunked":
            await request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(CONTENT), 50_000):
                piece = CONTENT[at : at + 50_000]
                await request.send(b"%x;extension=1\r\n%b\r\n" % (len(piece), piece))
            await request.send(b"0\r\nTrailer: x\r\n\r\n")
        else:
            await request.send(b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT)
            request.writer.close()

    with odd(handle) as server:
        result = get(f"{server.url}/chunked", f"{server.url}/closed", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {"chunked": CONTENT, "closed": CONTENT}


def test_silence_is_given_up(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        if request.target == "/head":
            await asyncio.sleep(LIMIT)
        await request.answer(CONTENT[:100_000], length=len(CONTENT))
        await asyncio.sleep(LIMIT)

    with odd(handle) as server:
        started = time.monotonic()
        urls = [f"{server.url}/head", f"{server.url}/body"]
        result = get("--timeout", "0.5", "--retries", "0", *urls, cwd=tmp_path)
        assert time.monotonic() - started < 10
        assert result.returncode == 3
        assert result.stderr.count("nothing came from the server for 0.5 s") == 2
        whole = get("--max-time", "0.5", urls[1], cwd=tmp_path)
        assert whole.returncode == 3
        assert "not done within 0.5 s" in whole.stderr


def test_a_stale_connection_is_no_failure(tmp_path: Path) -> None:
    """A server that closes after each answer, without saying so."""

    async def handle(request: Request) -> None:
        await request.answer(request.target.encode())
        request.reset() if request.number % 3 else request.writer.close()

    with odd(handle) as server:
        urls = [f"{server.url}/{number}" for number in range(60)]
        result = get("-j", "2", "--json", *urls, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert files(tmp_path) == {str(number): f"/{number}".encode() for number in range(60)}


def test_mirrors_take_over(tmp_path: Path) -> None:
    async def broken(request: Request) -> None:
        if request.target == "/file":
            await request.serve(CONTENT, most=1_500_000)
        else:
            await request.answer(b"", "404 Not Found")

    async def good(request: Request) -> None:
        await request.serve(CONTENT)

    with odd(broken) as first, odd(good) as second:
        text = (
            f"{first.url}/file\t{second.url}/file\n  checksum=sha256:{sha256(CONTENT)}\n"
            f"{first.url}/gone\t{second.url}/gone\n"
        )
        result = get("-i", "-", cwd=tmp_path, stdin=text)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {"file": CONTENT, "gone": CONTENT}
    # With a checksum to tell in the end, the mirror goes on where the first one broke off.
    by_target = {request.target: request for request in second.requests}
    assert by_target["/file"].start > 0
    assert by_target["/gone"].start == 0


def test_credentials_do_not_follow_to_another_server(tmp_path: Path) -> None:
    async def other(request: Request) -> None:
        await request.answer(b"x")

    with odd(other) as stranger:

        async def handle(request: Request) -> None:
            target = f"{stranger.url}/x"
            await request.answer(b"", "302 Found", Location=target, Set_Cookie="k=v")

        with odd(handle) as server:
            secret = ("-H", "Authorization: Bearer abc", "-H", "Cookie: own=1")
            for credentials in (secret, ("-u", "me:secret")):
                result = get(*credentials, "--existing", "replace", f"{server.url}/x", cwd=tmp_path)
                assert result.returncode == 0, result.stderr
    for request in server.requests:
        assert "authorization" in request.headers
    for request in stranger.requests:
        assert not {"authorization"} & set(request.headers)
        assert "own" not in request.headers.get("cookie", "")
    assert len(stranger.requests) == 2


# --- many connections ---------------------------------------------------------------------------


def test_segments(tmp_path: Path) -> None:
    content = noise(40_000_000, "segments")

    async def handle(request: Request) -> None:
        start = request.start
        end = request.headers.get("range", "bytes=0-").split("-")[1]
        body = content[start : int(end) + 1 if end else None]
        status = "206 Partial Content" if "range" in request.headers else "200 OK"
        span = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nContent-Range: {span}\r\n"
            'ETag: "v1"\r\nAccept-Ranges: bytes\r\n\r\n'
        )
        await request.send(head.encode())
        for at in range(0, len(body), 500_000):
            await request.send(body[at : at + 500_000])
            await asyncio.sleep(0.05)
            if request.number == 2 and at > 2_000_000:
                request.reset()

    with odd(handle) as server:
        url = f"{server.url}/file"
        checksum = f"sha256:{sha256(content)}"
        result = get("--segments", "4", "--checksum", checksum, url, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert files(tmp_path) == {"file": content}
        starts = [request.start for request in server.requests]
        assert len(starts) >= 4 and len(set(starts)) == len(starts)
        # One that is killed goes on with all of what its connections brought.
        (tmp_path / "file").unlink()
        server.requests.clear()
        state = tmp_path / "file.rondel-state"
        with subprocess.Popen(
            command("-q", "--segments", "4", url), cwd=tmp_path, env=environment()
        ) as process:
            wait_until(lambda: state.exists() and state.read_text().count("done: ") >= 3)
            process.kill()
        found = [
            line.split("done: ")[1] for line in state.read_text().splitlines() if "done" in line
        ]
        kept = sum(int(span.split("-")[1]) - int(span.split("-")[0]) for span in found)
        result = get("--json", url, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert files(tmp_path) == {"file": content}
    by_name = {event["event"]: event for event in events(result)}
    assert by_name["start"]["resumed"] == kept
    assert by_name["done"]["received"] == len(content) - kept


def test_no_more_connections_than_allowed(tmp_path: Path) -> None:
    now = most = 0

    async def handle(request: Request) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        await request.answer(b"x")

    with odd(handle) as server:
        urls = [f"{server.url}/{number}" for number in range(40)]
        assert get("--per-host", "3", *urls, cwd=tmp_path).returncode == 0
        assert (most, server.connections) == (3, 3)


def test_the_rate_is_kept(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        await request.serve(CONTENT[:1_000_000])

    with odd(handle) as server:
        urls = [f"{server.url}/{number}" for number in range(2)]
        started = time.monotonic()
        result = get("--rate", "1M", *urls, cwd=tmp_path)
        seconds = time.monotonic() - started
    assert result.returncode == 0, result.stderr
    # Two million bytes at 1,048,576 per second, less what fits into the bucket.
    assert seconds > 1.5


# --- proxies ------------------------------------------------------------------------------------


def test_proxies(tmp_path: Path) -> None:
    """Plain URLs are asked for in full; for TLS the proxy makes a tunnel."""

    async def origin(request: Request) -> None:
        await request.answer(b"from the origin")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def proxy(request: Request) -> None:
        if request.headers.get("proxy-authorization") != "Basic bWU6c2VjcmV0":
            await request.answer(b"", "407 Proxy Authentication Required")
        elif request.target.startswith("http://"):
            await request.answer(request.target.encode())
        else:
            host, port = request.target.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            await request.send(b"HTTP/1.1 200 OK\r\n\r\n")
            up = asyncio.ensure_future(pump(request.reader, writer))
            await pump(reader, request.writer)
            await up

    with odd(origin) as server, odd(proxy) as through:
        url = through.url.replace("http://", "http://me:secret@")
        plain = "http://name.invalid/dir/file?query"
        assert get("--proxy", url, plain, cwd=tmp_path).returncode == 0
        assert files(tmp_path) == {"file": plain.encode()}
        by_environment = get("http://name.invalid/other", cwd=tmp_path, http_proxy=url)
        assert by_environment.returncode == 0, by_environment.stderr
        direct = get(f"{server.url}/direct", cwd=tmp_path, http_proxy=url, no_proxy=HOST)
        assert direct.returncode == 0, direct.stderr
        assert (tmp_path / "direct").read_bytes() == b"from the origin"
        refused = get("--proxy", through.url, "--retries=0", plain, cwd=tmp_path)
        assert refused.returncode == 4
        # The tunnel ends at a server without TLS: what matters here is that it was asked for.
        target = server.url.replace("http://", "")
        tunnel = get(
            "--proxy",
            url,
            "--retries=0",
            "--connect-timeout=1",
            f"https://{target}/x",
            cwd=tmp_path,
        )
        assert tunnel.returncode == 3
        assert through.requests[-1].target == target
        closed = get("--proxy", through.url, "--retries=0", "https://name.invalid/", cwd=tmp_path)
        assert closed.returncode == 4
        assert "407" in closed.stderr


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_what_was_there(small_disk: Path, tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        await request.serve(CONTENT if request.target == "/file" else CONTENT[:100_000])

    (small_disk / "file").write_bytes(b"old")
    (small_disk / "small").write_bytes(b"old")
    filler = small_disk / "filler"
    with odd(handle) as server:
        url, small = f"{server.url}/file", f"{server.url}/small"
        result = get("-o", small_disk, "--retries", "3", url, cwd=tmp_path)
        assert result.returncode == 6
        assert "No space left on device" in result.stderr
        assert (small_disk / "file").read_bytes() == b"old"
        # No attempt was repeated: the disk would not be emptier.
        assert len(server.requests) == 1
        (small_disk / "file.rondel-part").unlink()
        filler.write_bytes(bytes(2 * 1024 * 1024 - 5 * 4096))
        assert get("-o", small_disk, small, cwd=tmp_path).returncode == 6
        assert (small_disk / "small").read_bytes() == b"old"
        filler.unlink()
        assert get("-o", small_disk, small, cwd=tmp_path).returncode == 0
        assert (small_disk / "small").read_bytes() == CONTENT[:100_000]


def test_where_it_cannot_write(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        await request.serve(CONTENT if request.target == "/large" else b"small")

    (tmp_path / "file").write_bytes(b"a file, no folder")
    for name in ("large", "small"):
        (tmp_path / "taken" / name).mkdir(parents=True)
    with odd(handle) as server:
        for name in ("large", "small"):
            url = f"{server.url}/{name}"
            inside_file = get("-o", "file", url, cwd=tmp_path)
            assert inside_file.returncode == 6, inside_file.stderr
            assert "cannot" in inside_file.stderr
            over_folder = get("-o", "taken", url, cwd=tmp_path)
            assert over_folder.returncode == 6, over_folder.stderr
            assert "Is a directory" in over_folder.stderr
    assert (tmp_path / "file").read_bytes() == b"a file, no folder"
    assert not [name for name in os.listdir(tmp_path / "taken") if name.startswith("small.")]


def test_one_process_at_a_time_writes_a_part(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        await request.answer(CONTENT[:1_000_000], length=len(CONTENT), ETag='"v1"')
        if request.number == 0:
            await asyncio.sleep(LIMIT)

    with odd(handle) as server:
        url = f"{server.url}/file"
        with subprocess.Popen(command("-q", url), cwd=tmp_path, env=environment()) as process:
            part = tmp_path / "file.rondel-part"
            wait_until(lambda: part.exists() and part.stat().st_size)
            result = get("--retries=0", url, cwd=tmp_path)
            process.terminate()
    assert result.returncode == 6
    assert "being written by another download" in result.stderr


# --- what is shown ------------------------------------------------------------------------------


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        await request.answer(b"", length=4_000_000)
        for _ in range(40):
            await request.send(bytes(100_000))
            await asyncio.sleep(0.03)

    main, terminal = os.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(main, 65_536)
            except OSError:
                return
            if not data:
                return
            shown.extend(data)

    with odd(handle) as server, in_thread(read) as reader:
        urls = [f"{server.url}/first", f"{server.url}/second"]
        process = subprocess.Popen(
            command(*urls),
            cwd=tmp_path,
            stderr=terminal,
            env=environment(TERM="xterm", COLUMNS="100"),
        )
        os.close(terminal)
        assert process.wait(LIMIT) == 0
        reader.join(LIMIT)
    os.close(main)
    text = shown.decode(errors="replace")
    for part in ("first", "second", "3.81 MiB", "0/2 files", "/s", "2 of 2 downloaded"):
        assert part in text, part


def test_a_reader_that_leaves_ends_it(tmp_path: Path) -> None:
    async def handle(request: Request) -> None:
        await request.answer(b"x", length=1_000_000)
        await asyncio.sleep(LIMIT)

    with (
        odd(handle) as server,
        subprocess.Popen(
            command("--json", f"{server.url}/x"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            env=environment(),
        ) as process,
    ):
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["event"] == "start"
        process.stdout.close()
        assert process.wait(20) != 0

"""`rondel get` and 20,000 files, and servers that ask for digest authentication."""

import hashlib
import re
import subprocess
import time
from pathlib import Path

import pytest
from web import LIMIT, Request, command, environment, files, get, odd

pytestmark = pytest.mark.timeout(3 * LIMIT)


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_digest_authentication(tmp_path: Path, algorithm: str) -> None:
    def hashed(*parts: str) -> str:
        name = algorithm.replace("-", "").lower()
        return hashlib.new(name, ":".join(parts).encode()).hexdigest()

    counts: list[str] = []

    async def handle(request: Request) -> None:
        given = request.headers.get("authorization", "")
        said = dict(re.findall(r'(\w+)="?([^",]*)"?', given))
        # The nonce of the first two answers becomes stale after them.
        nonce = "first" if len(counts) < 2 else "second"
        right = hashed(
            hashed("me", "the realm", "secret"),
            nonce,
            said.get("nc", ""),
            said.get("cnonce", ""),
            "auth",
            hashed("GET", request.target),
        )
        if given.startswith("Digest ") and said["response"] == right and said["opaque"] == "o=o":
            counts.append(said["nc"])
            await request.answer(b"private")
            return
        challenge = f'qop="auth", algorithm={algorithm}, nonce="{nonce}", opaque="o=o", stale=true'
        await request.answer(
            b"no", "401 Unauthorized", WWW_Authenticate=f'Digest realm="the realm", {challenge}'
        )

    with odd(handle) as server:
        urls = [f"{server.url}/{name}?q=1" for name in "abcd"]
        result = get("-u", "me:secret", "-j1", *urls, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert files(tmp_path) == dict.fromkeys("abcd", b"private")
        assert counts == ["00000001", "00000002"] * 2
        # Asked once for each nonce, not for each file; a wrong password is asked for once more.
        assert len(server.requests) == 6
        wrong = get("-u", "me:wrong", "-o", "w", urls[0], cwd=tmp_path)
        assert wrong.returncode == 4
        assert len(server.requests) == 8


# --- many ----------------------------------------------------------------------------------------


def peak_memory(process: "subprocess.Popen[bytes]") -> int:
    """The most resident memory of a process until it ends, in KiB."""
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        except OSError:
            break
        peak = max(peak, int(found[1])) if found else peak
        time.sleep(0.02)
    return peak


def test_twenty_thousand_files(tmp_path: Path) -> None:
    count = 20_000

    async def handle(request: Request) -> None:
        await request.answer(request.target.encode())

    with odd(handle) as server:
        (tmp_path / "list").write_text("\n".join(f"{server.url}/{n}" for n in range(count)))
        arguments = command("-q", "-i", "list", "-o", "out", "-j", "16", "--per-host", "16")
        with subprocess.Popen(
            ["/bin/sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *arguments],
            cwd=tmp_path,
            env=environment(),
        ) as process:
            peak = peak_memory(process)
            assert process.wait(2 * LIMIT) == 0
        # Twice what Python and an empty list need; a kibibyte for each file would be beyond it.
        assert 0 < peak < 32 << 10, f"{peak} KiB"
        assert server.connections <= 16 + len(server.requests) - count
    names = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert names == {str(number): b"/%d" % number for number in range(count)}

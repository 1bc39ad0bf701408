"""`rondel get` and nginx: lists, names, what is there already, checksums, TLS, credentials."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import HOST, unused_port
from web import LIMIT, Nginx, environment, events, files, get, started

pytestmark = pytest.mark.timeout(2 * LIMIT)


@pytest.fixture(scope="module")
def nginx() -> Iterator[Nginx]:
    with Nginx().running() as server:
        yield server


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- what arrives -------------------------------------------------------------------------------


def test_two_thousand_files_arrive_unharmed(nginx: Nginx, tmp_path: Path) -> None:
    contents = {f"{number:04}.bin": noise(number * 7 % 3000, number) for number in range(2000)}
    urls = [nginx.file(f"many/{name}", content) for name, content in contents.items()]
    (tmp_path / "list").write_text("\n".join(urls))
    result = get("-i", "list", "-o", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "out") == contents
    assert "2000 of 2000 downloaded" in result.stderr
    # Connections are used again.
    again = get("-i", "list", "-o", "out", cwd=tmp_path)
    assert again.returncode == 0
    assert "0 of 2000 downloaded, 2000 unchanged; 0 B" in again.stderr


@pytest.mark.parametrize("size", [0, 1, 65_536, 131_072, 131_073, 5_000_000])
def test_sizes(nginx: Nginx, tmp_path: Path, size: int) -> None:
    content = noise(size, size)
    url = nginx.file(f"size-{size}", content)
    result = get("--json", url, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {f"size-{size}": content}
    found = {event["event"]: event for event in events(result)}
    assert found["start"]["size"] == found["done"]["size"] == found["done"]["received"] == size
    assert found["summary"]["downloaded"] == 1
    # The server's time.
    ours, theirs = (tmp_path / f"size-{size}").stat(), (nginx.www / f"size-{size}").stat()
    assert int(ours.st_mtime) == int(theirs.st_mtime)


def test_https_speaks_http2(nginx: Nginx, tmp_path: Path) -> None:
    nginx.file("secure", noise(300_000))
    authority = nginx.folder / "ca.pem"
    urls = [f"{nginx.tls_url}/secure", f"{nginx.tls_url}/protocol"]
    result = get("--ca-file", authority, *urls, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {"secure": noise(300_000), "protocol": b"HTTP/2.0"}
    assert get("--ca-file", authority, "--http1", urls[1], cwd=tmp_path).returncode == 0
    assert (tmp_path / "protocol").read_bytes() == b"HTTP/1.1"
    refused = get(urls[0], cwd=tmp_path)
    assert refused.returncode == 3
    assert "UnknownIssuer" in refused.stderr
    (tmp_path / "secure").unlink()
    assert get("--insecure", urls[0], cwd=tmp_path).returncode == 0
    assert (tmp_path / "secure").read_bytes() == noise(300_000)


# --- lists and names ----------------------------------------------------------------------------


def test_a_list_with_options(nginx: Nginx, tmp_path: Path) -> None:
    one, two = nginx.file("one", b"one"), nginx.file("two", b"two!")
    text = (
        f"# a list\n{one}\n  out=dir/first.txt\n  checksum=sha-256={sha256(b'one')}\n\n"
        f"{nginx.url}/missing\t{two}\n  size=4\n{nginx.url}/headers\n  header=X-Token: abc\n"
    )
    result = get("-i", "-", "--user-agent", "me/1", cwd=tmp_path, stdin=text)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == {
        "dir/first.txt": b"one",
        "missing": b"two!",
        "headers": b"abc|me/1|identity",
    }
    wrong = get("-i", "-", cwd=tmp_path, stdin=f"{one}\n  nonsense=1\n")
    assert wrong.returncode == 2
    assert "line 2" in wrong.stderr


def test_a_metalink(nginx: Nginx, tmp_path: Path) -> None:
    url = nginx.file("linked", noise(200_000))
    (tmp_path / "all.meta4").write_text(
        '<?xml version="1.0"?><metalink xmlns="urn:ietf:params:xml:ns:metalink">'
        f'<file name="sub/linked.bin"><size>200000</size>'
        f'<hash type="sha-256">{sha256(noise(200_000))}</hash>'
        f'<url priority="1">{nginx.url}/missing</url><url priority="2">{url}</url></file>'
        "</metalink>"
    )
    assert get("-o", "out", "all.meta4", cwd=tmp_path).returncode == 0
    assert files(tmp_path / "out") == {"sub/linked.bin": noise(200_000)}
    nginx.file("all.meta4", (tmp_path / "all.meta4").read_bytes())
    assert get("-o", "two", "-i", f"{nginx.url}/all.meta4", cwd=tmp_path).returncode == 0
    assert files(tmp_path / "two") == files(tmp_path / "out")


def test_names(nginx: Nginx, tmp_path: Path) -> None:
    plain = nginx.file("a/x.tar.gz", b"a")
    other = nginx.file("b/x.tar.gz", b"b")
    named, hidden = f"{nginx.url}/named/a/x.tar.gz", f"{nginx.url}/hidden/a/x.tar.gz"
    out = tmp_path / "out"
    # Two files of one name keep apart; a URL that is there twice is wanted once.
    assert get("-o", "out", "-j1", plain, other, plain, cwd=tmp_path).returncode == 0
    assert files(out) == {"x.tar.gz": b"a", "x.1.tar.gz": b"b"}
    shutil.rmtree(out)
    assert get("-o", "out", named, hidden, cwd=tmp_path).returncode == 0
    assert files(out) == {"the name.bin": b"a", "_profile": b"a"}
    shutil.rmtree(out)
    assert get("-o", "out", "--no-content-disposition", named, cwd=tmp_path).returncode == 0
    assert files(out) == {"x.tar.gz": b"a"}
    template = "{index:3}/{host}/{stem}-x{ext}"
    assert get("-o", "out", "--name", template, plain, named, cwd=tmp_path).returncode == 0
    assert {f"00{number}/{HOST}/x-x.tar.gz" for number in (1, 2)} < set(files(out))
    # Nothing got out of the folder.
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    escape = get("-i", "-", cwd=tmp_path, stdin=f"{plain}\n  out=../escaped\n")
    assert escape.returncode == 2
    assert "no usable file name" in escape.stderr


# --- what is there already ----------------------------------------------------------------------


def test_a_file_that_is_there(nginx: Nginx, tmp_path: Path) -> None:
    url = nginx.file("there", b"old")
    target = tmp_path / "there"

    def again(*options: str) -> tuple[int, str]:
        result = get(*options, url, cwd=tmp_path)
        summary = result.stderr.splitlines()[-1]
        return result.returncode, summary.split(";")[0]

    assert again() == (0, "1 of 1 downloaded")
    assert again() == (0, "0 of 1 downloaded, 1 unchanged")
    later = (nginx.www / "there").stat().st_mtime + 10
    nginx.file("there", b"new")
    os.utime(nginx.www / "there", (later, later))
    assert again("--existing", "skip") == (0, "0 of 1 downloaded, 1 unchanged")
    assert again("--existing", "fail") == (7, "0 of 1 downloaded, 1 failed")
    assert target.read_bytes() == b"old"
    assert again("--existing", "rename") == (0, "1 of 1 downloaded")
    assert files(tmp_path) == {"there": b"old", "there.1": b"new"}
    assert again() == (0, "1 of 1 downloaded")
    assert target.read_bytes() == b"new"
    # What was changed here is not taken for the server's.
    target.write_bytes(b"own")
    assert again() == (0, "1 of 1 downloaded")
    assert target.read_bytes() == b"new"
    before = len(nginx.requests("GET /there "))
    assert again("--checksum", f"sha256:{sha256(b'new')}") == (0, "0 of 1 downloaded, 1 unchanged")
    assert len(nginx.requests("GET /there ")) == before


def test_checksums(nginx: Nginx, tmp_path: Path) -> None:
    small, large = noise(10_000, "s"), noise(3_000_000, "l")
    urls = [nginx.file("sums/small", small), nginx.file("sums/large", large)]
    right = f"{sha256(small)}  small\n{sha256(large)} *large\n"
    (tmp_path / "SHA256SUMS").write_text(right)
    result = get("-o", "out", "--checksum", "SHA256SUMS", "--json", *urls, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert [event["verified"] for event in events(result) if event["event"] == "done"] == [True] * 2
    for url, content in zip(urls, (small, large), strict=True):
        for algorithm in ("md5", "sha512"):
            good = hashlib.new(algorithm, content).hexdigest()
            bad = hashlib.new(algorithm, b"else").hexdigest()
            folder = tmp_path / algorithm
            wrong = get("-o", folder, "--checksum", f"{algorithm}:{bad}", url, cwd=tmp_path)
            assert wrong.returncode == 5
            assert f"its {algorithm} is {good}, not {bad}" in wrong.stderr
            # Nothing wrong gets the name, and nothing of it is left to be continued.
            assert not folder.exists() or files(folder) == {}
            okay = get("-o", folder, "--checksum", f"{algorithm}:{good}", url, cwd=tmp_path)
            assert okay.returncode == 0
            shutil.rmtree(folder)
    nginx.file("sums/SHA256SUMS", right.replace(sha256(large), sha256(small)).encode())
    sums = f"{nginx.url}/sums/SHA256SUMS"
    mixed = get("-o", "fresh", "--checksum", sums, *urls, cwd=tmp_path)
    assert mixed.returncode == 5
    assert files(tmp_path / "fresh") == {"small": small}


# --- how it asks --------------------------------------------------------------------------------


def test_redirects_cookies_and_credentials(nginx: Nginx, tmp_path: Path) -> None:
    nginx.file("target", b"here")
    moved = f"{nginx.url}/moved/target"
    assert get(moved, f"{nginx.url}/cookie/set", cwd=tmp_path).returncode == 0
    assert files(tmp_path) == {"target": b"here", "set": b"got it"}
    loop = get(f"{nginx.url}/loop", "--max-redirects", "7", cwd=tmp_path)
    assert (loop.returncode, len(nginx.requests("GET /loop"))) == (4, 8)
    assert "more than 7 redirects" in loop.stderr
    elsewhere = get(f"{nginx.url}/elsewhere", cwd=tmp_path)
    assert elsewhere.returncode == 4
    assert "not HTTP" in elsewhere.stderr

    private = f"{nginx.url}/private/target"
    (tmp_path / "target").unlink()
    refused = get(private, cwd=tmp_path)
    assert refused.returncode == 4
    assert "401 Unauthorized" in refused.stderr
    assert get("-u", "me:secret", private, cwd=tmp_path).returncode == 0
    (tmp_path / "netrc").write_text(f"machine {HOST} login me password secret\n")
    for netrc, expected in ((str(tmp_path / "netrc"), 0), (os.devnull, 4)):
        (tmp_path / "target").unlink(missing_ok=True)
        assert get(private, cwd=tmp_path, NETRC=netrc).returncode == expected
    in_url = private.replace("http://", "http://me:secret@")
    assert get(in_url, cwd=tmp_path).returncode == 0


def test_a_busy_server_is_asked_again_when_it_says(nginx: Nginx, tmp_path: Path) -> None:
    urls = [nginx.file(f"busy-{number}", b"x") for number in range(3)]
    busy = [url.replace("/busy-", "/busy/busy-") for url in urls]
    started = time.monotonic()
    result = get("--json", *busy, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert time.monotonic() - started > 1
    retries = [event for event in events(result) if event["event"] == "retry"]
    assert retries and all(event["wait"] == 1 for event in retries)
    assert "429" in retries[0]["error"]


def test_exit_statuses(nginx: Nginx, tmp_path: Path) -> None:
    good, missing = nginx.file("good", b"good"), f"{nginx.url}/missing"
    refused = f"http://{HOST}:{unused_port()}/x"
    once = ("--retries", "0")
    for arguments, status, text in [
        ([missing, good], 4, "404 Not Found"),
        ([refused], 3, "Connection refused"),
        ([missing, refused], 1, "404"),
        ([f"{nginx.url}/broken"], 4, "503"),
        (["http://name.invalid/x"], 3, "no address for name.invalid"),
        (["ftp://example.org/x"], 2, "only http and https"),
        (["-i", "absent"], 2, "No such file"),
        (["--nonsense", good], 2, "nonsense"),
        ([], 2, "no URL"),
    ]:
        result = get(*once, *arguments, cwd=tmp_path)
        assert (result.returncode, text in result.stderr) == (status, True), result.stderr
    # The good one arrived nevertheless, and those that failed left nothing.
    assert files(tmp_path) == {"good": b"good"}
    quiet = get("-q", good, missing, cwd=tmp_path)
    assert quiet.stderr.splitlines() == [f"failed: {missing}: the server answers 404 Not Found"]


def test_it_starts_without_asyncio() -> None:
    code = (
        "import sys\nfrom rondel.__main__ import main\n"
        "status = main(['get', '--version'])\n"
        "names = {'asyncio', 'http', 'ssl', 'socket', 'argparse', 'typing'}\n"
        "sys.exit(status or repr(sorted(names & set(sys.modules))))"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert (result.stderr, result.returncode) == ("[]\n", 1)
    assert re.fullmatch(r"rondel \d+\.\d+\.\d+\n", result.stdout)


# --- interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_it_goes_on_from_there(
    nginx: Nginx, tmp_path: Path, number: signal.Signals
) -> None:
    content = noise(8_000_000, "slow")
    nginx.file("large", content)
    url = f"{nginx.url}/slow/large"
    part = tmp_path / "large.rondel-part"
    with started(url, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
        wait_until((tmp_path / "large.rondel-state").exists)
        asked = time.monotonic()
        process.send_signal(number)
        assert process.wait(LIMIT) == -number
        assert time.monotonic() - asked < 3
        assert process.stderr is not None
        assert ("interrupted" in process.stderr.read()) is (number != signal.SIGKILL)
    assert not (tmp_path / "large").exists()
    left = part.stat().st_size
    assert content.startswith(part.read_bytes())

    whole = f"{nginx.url}/slow/large"
    result = get("--json", "--checksum", f"sha256:{sha256(content)}", whole, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    found = {event["event"]: event for event in events(result)}
    assert 1_000_000 < found["start"]["resumed"] <= left
    assert found["done"]["received"] == len(content) - found["start"]["resumed"]
    assert files(tmp_path) == {"large": content}


@pytest.mark.parametrize("count", [1, 30], ids=["alone", "among many"])
def test_what_an_earlier_run_left_is_found(nginx: Nginx, tmp_path: Path, count: int) -> None:
    contents = {f"left{number}": noise(1000, str(number)) for number in range(count)}
    for name, content in contents.items():
        nginx.file(name, content)
    urls = [f"{nginx.url}/{name}" for name in contents]
    for folder in (".", "new", "new"):
        if (tmp_path / folder).exists():
            (tmp_path / folder / "left0.rondel-part").write_bytes(contents["left0"][:400])
            state = f"rondel download state 1\nurl: {urls[0]}\nlength: 1000\ndone: all\nend\n"
            (tmp_path / folder / "left0.rondel-state").write_text(state)
            (tmp_path / folder / "left0").unlink(missing_ok=True)
            resumed = 400
        else:
            resumed = 0
        result = get("--json", "-o", folder, *urls, cwd=tmp_path)
        assert result.returncode == 0, result.stdout
        starts = {one["index"]: one["resumed"] for one in events(result) if one["event"] == "start"}
        assert starts[0] == resumed
        there = {path.name: path.read_bytes() for path in (tmp_path / folder).glob("left*")}
        assert there == contents


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + LIMIT
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

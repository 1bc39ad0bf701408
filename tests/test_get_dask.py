"""`rondel get --dask`: a list shared out to the workers of a cluster, one of which is killed."""

import hashlib
import json
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_cluster import Cluster, distributed, running
from web import LIMIT, Nginx, events, files, get, started

pytestmark = pytest.mark.timeout(3 * LIMIT)


@pytest.fixture(scope="module")
def nginx() -> Iterator[Nginx]:
    with Nginx().running() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


def serve(nginx: Nginx, count: int, size: int) -> dict[str, bytes]:
    """Serve so many files; their contents by name."""
    contents = {f"{n:03}.bin": random.Random(n).randbytes(size + n) for n in range(count)}
    for name, content in contents.items():
        nginx.file(f"dask/{name}", content)
    return contents


def test_a_list_is_shared_out(nginx: Nginx, cluster: Cluster, tmp_path: Path) -> None:
    contents = serve(nginx, 40, 1000)
    lines = [f"{nginx.url}/dask/{name}" for name in contents]
    # The same name twice, in shards that know nothing of each other; one that is not there.
    twin = nginx.file("else/000.bin", b"twin")
    lines += [twin, f"  checksum=sha256:{hashlib.sha256(b'twin').hexdigest()}"]
    (tmp_path / "list").write_text("\n".join([*lines, f"{nginx.url}/missing"]))
    arguments = ("--dask", cluster.address, "-i", "list", "-o", "out", "--retries", "0")
    result = get("--json", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (4, ""), result.stdout
    # The workers run elsewhere: the folder is this one nevertheless.
    assert files(tmp_path / "out") == contents | {"000.1.bin": b"twin"}
    told = events(result)
    done = {event["index"]: event for event in told if event["event"] == "done"}
    assert sorted(done) == list(range(41))
    assert done[40]["verified"] is True
    assert {event["worker"] for event in done.values()} == set(addresses(cluster).values())
    assert [event["status"] for event in told if event["event"] == "error"] == [404]
    summary = told[-1]
    assert (summary["downloaded"], summary["failed"]) == (41, 1)
    assert summary["received"] == sum(map(len, contents.values())) + len(b"twin")
    again = get(*arguments, cwd=tmp_path)
    assert again.returncode == 4
    assert re.search(r"^failed: .*/missing: the server answers 404", again.stderr, re.MULTILINE)
    assert "0 of 42 downloaded, 41 unchanged, 1 failed; " in again.stderr.splitlines()[-1]


def addresses(cluster: Cluster) -> dict[str, str]:
    """The workers' addresses by their names."""
    with distributed.Client(cluster.address, set_as_default=False) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
    return {worker["name"]: address for address, worker in workers.items()}


def until(process: "subprocess.Popen[str]", event: str, worker: str = "") -> list[dict[str, Any]]:
    """Read events until that one, of that worker if one is named."""
    told: list[dict[str, Any]] = []
    assert process.stdout is not None
    for line in process.stdout:
        told.append(json.loads(line))
        if told[-1]["event"] == event and worker in ("", told[-1].get("worker")):
            break
    return told


def test_a_worker_killed_in_the_midst(nginx: Nginx, tmp_path: Path) -> None:
    contents = serve(nginx, 40, 200_000)
    (tmp_path / "list").write_text("\n".join(f"{nginx.url}/slow/dask/{name}" for name in contents))
    (tmp_path / "cluster").mkdir()
    with running(tmp_path / "cluster") as cluster:
        workers = addresses(cluster)
        arguments = ("--dask", cluster.address, "-i", "list", "-o", "out", "-j", "2")
        with started("--json", *arguments, cwd=tmp_path, stdout=subprocess.PIPE) as process:
            told = until(process, "done", workers["one"])
            # It has something to do when it is killed.
            told += until(process, "shard", workers["one"])
            cluster.workers["one"].kill()
            told += until(process, "summary")
            assert process.wait(LIMIT) == 0, told
    assert files(tmp_path / "out") == contents
    lost = [event for event in told if event["event"] == "lost"]
    assert {event["worker"] for event in lost} == {workers["one"]}
    done = [event for event in told if event["event"] == "done"]
    # Each once, whoever did it.
    assert sorted(event["index"] for event in done) == list(range(40))
    assert {event["worker"] for event in done} == set(workers.values())
    assert told[-1]["downloaded"] + told[-1]["unchanged"] == 40


def test_an_interrupt_stops_the_workers(
    nginx: Nginx,
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    contents = serve(nginx, 12, 600_000)
    (tmp_path / "list").write_text("\n".join(f"{nginx.url}/slow/dask/{name}" for name in contents))
    arguments = ("--dask", cluster.address, "-i", "list", "-o", "out", "-j", "1")
    with started("--json", *arguments, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        until(process, "done")
        process.send_signal(signal.SIGINT)
        told = until(process, "summary")
        assert process.wait(LIMIT) == -signal.SIGINT
    assert told[-1]["interrupted"] is True
    # They stop, so that no file is being written any more, and the same command goes on.
    assert len(list((tmp_path / "out").glob("*.bin"))) < len(contents)
    result = get(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "out") == contents


def test_what_cannot_be(tmp_path: Path) -> None:
    for arguments, text in [
        (["--dask", "tcp://127.0.0.1:1", "--existing", "rename", "http://h/"], "--existing update"),
        (["--dask", "tcp://127.0.0.1:1"], "no URL"),
        (["http://h/", "--dask"], "missing argument"),
    ]:
        result = get(*arguments, cwd=tmp_path)
        assert (result.returncode, text in result.stderr) == (2, True), result.stderr
    helped = get("--dask", "x", "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--dask ADDRESS" in helped.stdout

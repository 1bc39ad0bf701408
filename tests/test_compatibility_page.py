"""docs/compatibility.md names tests that exist, all of the loop's methods, and the versions."""

import asyncio
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "compatibility.md").read_text()


def pins() -> dict[str, str]:
    """The versions that requirements/ prescribe, by the package's name."""
    text = "".join((ROOT / "requirements" / f"{n}.txt").read_text() for n in ("run", "test"))
    return dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)$", text, re.MULTILINE))


def test_links_lead_to_tests() -> None:
    links = re.findall(r"\[([\w.]+)\]\(\.\./(\w+)/([\w.]+)\)(?: `(\w+)`)?", PAGE)
    assert len(links) > 100
    for name, folder, file, test in links:
        assert name == file
        text = (ROOT / folder / file).read_text()
        assert not test.startswith("test_") or f"def {test}(" in text, (file, test)


def test_every_method_is_there() -> None:
    methods = [name for name in dir(asyncio.AbstractEventLoop) if not name.startswith("_")]
    assert [name for name in methods if not re.search(rf"\b{name}\b", PAGE)] == []


def frameworks() -> list[tuple[str, list[str]]]:
    """The rows of the table of frameworks: names and versions."""
    section = PAGE.partition("## Frameworks")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    return [(row[0].removeprefix("| "), row[1].split(", ")) for row in rows]


@pytest.mark.parametrize(("names", "versions"), frameworks())
def test_versions_of_frameworks(names: str, versions: list[str]) -> None:
    pinned = pins()
    others = {"grpc.aio": "grpcio", "psycopg_pool": "psycopg-pool", "redis-py": "redis"}
    assert versions == [pinned[others.get(n, n.lower())] for n in names.split(", ")]

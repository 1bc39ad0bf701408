"""The documentation runs: every code block of it, as its reader would run it."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_blocks import Block, PageError, Runner, blocks_of
from support import HOST

pytest.importorskip("rondel")

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Origin(http.server.BaseHTTPRequestHandler):
    """Answers every GET with a text that holds its path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"<h1>This is {self.path}</h1>\n".encode() * 100
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass  # a client that leaves early may


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Server((HOST, 0), Origin) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, server: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, server)
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.is_code:
            runner.run(block)


def one(text: str) -> Block:
    return blocks_of(text)[0]


def test_what_a_page_does_wrong_is_found(server: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, server)
    runner.run(one("```python\nimport asyncio\nawait asyncio.sleep(0)\n```\n"))
    wrong = [
        "```python\n1 / 0\n```",
        "```python\nawait 1\n```",
        "<!-- fails: ValueError -->\n```python\n1 / 0\n```",
        "<!-- fails: ValueError -->\n```python\n1 / 1\n```",
        "```python\nprint(1)\n```\n\n<!-- output -->\n```\n2\n```",
        "```console\n$ false\n$ true\n```",
        "```console\ntrue\n```",
    ]
    for text in wrong:
        with pytest.raises(PageError):
            runner.run(one(text))
    for text in ("<!-- continues -->\ntext", "```python\n1\n", "<!-- output -->\n```\n1\n```"):
        with pytest.raises(PageError):
            blocks_of(text)

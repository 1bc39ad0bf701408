"""Wait for what a web page brings later: Playwright drives a browser, on rondel's loop.

    python examples/browser.py

serves a page on loopback that adds its heading after a while, opens it in headless Chromium, and
waits for the heading as a program would that scrapes or tests a real site. Needs the packages
rondel and playwright, and Chromium (Debian: apt-get install chromium); no browser is downloaded.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator

import rondel
from playwright.async_api import BrowserContext, async_playwright
from playwright.async_api import TimeoutError as NotFoundInTime

PAGE = """<!DOCTYPE html>
<title>Later</title>
<h1>The heading comes later</h1>
<script>
  setTimeout(() => {
    document.body.innerHTML += '<h3><a href="/found">Found</a></h3>';
  }, %(delay)d);
</script>
"""

#: Headless, without the services of its maker that a browser calls on its own.
FLAGS = (
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextlib.asynccontextmanager
async def serve(page: str) -> AsyncIterator[str]:
    """Serve one page on loopback; its URL."""
    body = page.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[BrowserContext]:
    """Start the system's Chromium with an empty profile."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("browser.py needs Chromium on PATH (Debian: apt-get install chromium).")
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with async_playwright() as playwright:
            context = await playwright.chromium.launch_persistent_context(
                profile, executable_path=path, headless=True, args=flags
            )
            try:
                yield context
            finally:
                await context.close()


async def wait_for_heading(context: BrowserContext, delay: int, timeout: int) -> str:
    """Open a page whose heading comes after `delay` ms; wait for it for `timeout` ms."""
    async with serve(PAGE % {"delay": delay}) as url:
        page = await context.new_page()
        await page.goto(url)
        link = await page.wait_for_selector("h3 a", timeout=timeout)
        assert link is not None
        return await link.inner_text()


async def main() -> None:
    """Wait for a heading that comes, and for one that comes too late."""
    print(f"on {type(asyncio.get_running_loop()).__module__}.Loop")
    async with chromium() as context:
        text = await wait_for_heading(context, delay=500, timeout=5000)
        print(f"wait_for_selector('h3 a', timeout=5000): {text!r}")
        try:
            await wait_for_heading(context, delay=60_000, timeout=1000)
        except NotFoundInTime as error:
            print(f"wait_for_selector('h3 a', timeout=1000): {str(error).splitlines()[0]}")


if __name__ == "__main__":
    rondel.run(main())

"""A real browser that Playwright drives: examples/browser.py, on both loops."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from playwright.async_api import Error
from playwright.async_api import TimeoutError as NotFoundInTime

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(120)


def test_waiting_for_a_selector(run: Run, browser: ModuleType) -> None:
    async def main() -> None:
        async with browser.chromium() as context:
            text = await browser.wait_for_heading(context, delay=300, timeout=5000)
            assert text == "Found"
            with pytest.raises(NotFoundInTime, match="Timeout 500ms exceeded"):
                await browser.wait_for_heading(context, delay=600_000, timeout=500)

    run(main, limit=100)


def test_pages_side_by_side_and_their_scripts(run: Run, browser: ModuleType) -> None:
    async def main() -> None:
        async with browser.chromium() as context:
            texts = await asyncio.gather(
                *(browser.wait_for_heading(context, delay=200, timeout=30_000) for _ in range(4))
            )
            assert texts == ["Found"] * 4
            page = await context.new_page()
            told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            await page.expose_function("tell", lambda number: told.set_result(number + 1))
            await page.evaluate("tell(41)")
            assert await told == 42
            with pytest.raises(Error, match="on purpose"):
                await page.evaluate("() => { throw new Error('on purpose') }")

    run(main, limit=100)


def test_the_example_as_a_program(browser: ModuleType) -> None:
    told = subprocess.run(
        [sys.executable, browser.__file__ or ""],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == [
        "on rondel.loop.Loop",
        "wait_for_selector('h3 a', timeout=5000): 'Found'",
        "wait_for_selector('h3 a', timeout=1000): Page.wait_for_selector: Timeout 1000ms exceeded.",
    ]

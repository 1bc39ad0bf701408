"""rondel run --html: the page with a run's timeline, opened in a real browser."""

import json
import pathlib
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import rondel
from playwright.async_api import Error

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the watchdog is Linux's"),
    pytest.mark.timeout(120),
]

PROGRAM = """
import asyncio, os, time

def load():
    time.sleep(0.2)

async def worker():
    for _ in range(20):
        await asyncio.sleep(0.001)
    load()
    await asyncio.sleep(0.01)

async def forever():
    await asyncio.get_running_loop().create_future()

async def main():
    waits = asyncio.create_task(forever(), name="</script><script>document.title='taken'</script>")
    await asyncio.gather(*(asyncio.create_task(worker(), name=f"worker {n}") for n in range(2)))

asyncio.run(main())
asyncio.run(asyncio.sleep(0.01))
if os.fork() == 0:
    raise SystemExit(0)  # The page is the parent's.
os.wait()
print("done")
"""


def run(folder: pathlib.Path, *options: str) -> tuple[pathlib.Path, str]:
    script, report = folder / "script.py", folder / "report.html"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "rondel", "run", "--html", str(report), *options, str(script)]
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "done\n"
    return report, ended.stderr


def test_what_is_recorded(tmp_path: pathlib.Path) -> None:
    report, logged = run(tmp_path)
    assert "blocked" not in logged
    text = report.read_text(encoding="utf-8")
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data: dict[str, Any] = json.loads(found)
    tasks = {task[0]: task for task in data["tasks"]}
    assert {"callbacks", "worker 0", "worker 1"} < tasks.keys()
    _, coroutine, first, last, done, steps, ran = tasks["worker 0"]
    assert coroutine == "worker"
    assert 0 < first < last <= data["length"]
    assert done
    assert steps == 22
    assert 0.2 <= ran <= last - first
    # What was recorded of it is where it ran.
    row = data["tasks"].index(tasks["worker 0"])
    spans = [span for span in data["spans"] if span[0] == row]
    assert sum(span[2] for span in spans) == pytest.approx(ran, abs=0.05)
    assert all(first - 1e-6 <= span[1] <= last for span in spans)
    blocked = [one for one in data["blocked"] if one["row"] == row]
    assert [one["who"].split(" ")[0] for one in blocked] == ["load"]
    assert "sleeping, in load" in blocked[0]["text"]
    assert first < blocked[0]["at"] < last
    assert blocked[0]["seconds"] >= 0.2
    assert max(stretch[1] for stretch in data["busy"]) >= 0.2
    assert data["lost"] == 0


def test_with_a_threshold_and_the_log(tmp_path: pathlib.Path) -> None:
    report, logged = run(tmp_path, "--watch", "150ms")
    assert "sleeping, in load (" in logged
    assert "sleeping, in load (" in report.read_text(encoding="utf-8")


def test_in_a_browser(tmp_path: pathlib.Path, browser: ModuleType) -> None:
    report, _ = run(tmp_path)

    async def look() -> None:
        async with browser.chromium() as context:
            page = await context.new_page()
            problems: list[str] = []
            asked: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text))
            page.on("request", lambda request: asked.append(request.url))
            await page.goto(report.as_uri())
            assert "script.py" in await page.title()
            assert "times blocked" in await page.inner_text("#summary")
            # The program's names are text.
            assert "</script><script>" in await page.inner_text("#tasks")

            whole = await page.inner_text("#range")
            box = await page.locator("#timeline").bounding_box()
            assert box is not None
            assert await painted(page)
            await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            await page.mouse.wheel(0, -500)
            await changes(page, whole)
            zoomed = await page.inner_text("#range")
            await page.mouse.down()
            await page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + 100, steps=3)
            await page.mouse.up()
            await changes(page, zoomed)
            await page.click("#all")
            assert await page.inner_text("#range") == whole

            await page.click("#blocked tbody tr >> nth=0")
            assert "in load" in await page.inner_text("#stack")
            await changes(page, whole)
            # Zoomed to it: its bar is in the middle.
            await page.evaluate("document.getElementById('stack').textContent = ''")
            row = await page.evaluate("y(data.blocked.find(one => x(one.at) > LABEL).row) + 8")
            await page.mouse.click(box["x"] + 180 + (box["width"] - 180) / 2, box["y"] + row)
            assert "in load" in await page.inner_text("#stack")
            assert problems == []
            assert asked == [report.as_uri()]

    try:
        rondel.run(look())
    except Error as error:
        pytest.fail(str(error))


async def painted(page: Any) -> bool:
    """Whether red, for what blocked, is on the canvas."""
    return bool(
        await page.evaluate("""() => {
            const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
            for (let i = 0; i < pixels.length; i += 4)
                if (pixels[i] > 150 && pixels[i + 1] < 80 && pixels[i + 2] < 80) return true;
            return false;
        }""")
    )


async def changes(page: Any, before: str) -> None:
    await page.wait_for_function(
        "before => document.getElementById('range').textContent !== before", arg=before
    )

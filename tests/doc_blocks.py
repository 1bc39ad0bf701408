"""The code blocks of a page of the documentation, and running them as its reader would.

Each block is a program of its own, in an empty folder that the blocks of one page share. What a
page need not show its reader stands in HTML comments, straight before the block it is about:

    <!-- not run: why -->      it is not run: a fragment, or it needs what tests lack
    <!-- continues -->         it goes on from the block before, whose code is put before it
    <!-- file: name.py -->     it is not run but written to this file
    <!-- fails: SomeError -->  running it ends with this exception
    <!-- output -->            it (of no language) is what the block before prints; "..." in it
                               stands for anything
    <!-- before                Python code that is put before the block and that the page does not
    code                       show
    -->

Python blocks may use ``await`` at the top, as in a notebook; of ``console`` blocks the lines that
begin with ``$`` are run by a shell. ``https://example.com`` is a server of the tests.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

#: Seconds that one block may take.
LIMIT = 60

COMMENT = re.compile(r"<!-- (not run|continues|file|fails|output|before)(?:: (.*?))?( -->)?$")
FENCE = re.compile(r"( *)```(\w*)")

# Top-level await, on the loop that the page is about.
AWAITING = """\
import ast, inspect, sys, rondel
_path = sys.argv.pop(1)
with open(_path) as _file:
    _code = compile(_file.read(), _path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
async def _main():
    result = eval(_code, globals())
    if inspect.isawaitable(result):
        await result
rondel.run(_main())
"""


@dataclass
class Block:
    """One fenced block of a page."""

    line: int
    language: str
    code: str
    directives: dict[str, str] = field(default_factory=dict)
    output: str | None = None

    @property
    def is_code(self) -> bool:
        return self.language in ("python", "console")


class PageError(Exception):
    """A page that is not written as the tests ask, or whose blocks do not do what it says."""


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page's Markdown text, in order, with what its comments say of each."""
    found: list[Block] = []
    directives: dict[str, str] = {}
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        if comment := COMMENT.match(line):
            name, value, closed = comment.groups()
            if name == "before":
                value = _until(lines, "-->")
            elif not closed:
                raise PageError(f"line {number}: the comment does not end")
            directives[name] = value or ""
        elif fence := FENCE.match(line):
            indent, language = fence.groups()
            code = _until(lines, indent + "```").replace("\n" + indent, "\n")
            block = Block(number, language, code.removeprefix(indent), directives)
            if "output" in directives:
                if not found:
                    raise PageError(f"line {number}: no block prints this")
                found[-1].output = block.code
            found.append(block)
            directives = {}
        elif line.strip() and directives:
            raise PageError(f"line {number}: {', '.join(directives)} is of no block")
    return found


def _until(lines: object, end: str) -> str:
    taken = []
    for _, line in lines:  # type: ignore[attr-defined]
        if line == end:
            return "\n".join(taken) + "\n"
        taken.append(line)
    raise PageError(f"no {end!r} ends what begins there")


class Runner:
    """Runs the blocks of one page in a folder."""

    def __init__(self, folder: Path, server: str) -> None:
        self._folder = folder
        self._server = server
        self._last = ""
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "HOME": str(folder),
            "TERM": "dumb",
        }

    def run(self, block: Block) -> None:
        """Run one block, or do with it what its page says; PageError if that goes wrong."""
        code = self._here(block.code)
        if "continues" in block.directives:
            code = self._last + "\n" + code
        if block.language == "python":
            self._last = code
        if "not run" in block.directives:
            return
        if name := block.directives.get("file"):
            (self._folder / name).write_text(code)
            return
        if block.language == "python":
            done = self._python(block, self._here(block.directives.get("before", "")) + code)
        else:
            done = self._console(code)
        self._check(block, done)

    def _here(self, code: str) -> str:
        return code.replace("https://example.com", self._server)

    def _python(self, block: Block, code: str) -> subprocess.CompletedProcess[str]:
        path = self._folder / f"line_{block.line}.py"
        path.write_text(code)
        try:
            ast.parse(code)
            compile(code, str(path), "exec")
            command = [sys.executable, str(path)]
        except SyntaxError:
            command = [sys.executable, "-c", AWAITING, str(path)]
        return self._execute(command)

    def _console(self, code: str) -> subprocess.CompletedProcess[str]:
        commands = [line[2:] for line in code.splitlines() if line.startswith("$ ")]
        if not commands:
            raise PageError("no line begins with $")
        return self._execute(["sh", "-ec", "\n".join(commands)])

    def _execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def _check(self, block: Block, done: subprocess.CompletedProcess[str]) -> None:
        said = f"\n{done.stdout}{done.stderr}"
        if expected := block.directives.get("fails"):
            if done.returncode == 0 or f"{expected}" not in done.stderr:
                raise PageError(f"line {block.line}: it does not fail with {expected}:{said}")
        elif done.returncode != 0:
            raise PageError(f"line {block.line}: exit status {done.returncode}:{said}")
        if block.output is not None:
            match = doctest.OutputChecker().check_output(
                block.output, done.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            )
            if not match:
                raise PageError(f"line {block.line}: it does not print what the page says:{said}")

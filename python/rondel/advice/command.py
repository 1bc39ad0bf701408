"""``rondel advise``: measured advice for a function or a script, on the command line."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from .choosing import choose
from .recommendation import Recommendation
from .script import ScriptReport, sample_script

DESCRIPTION = """
TARGET is module:function, which is called with ARGS under each option (asyncio, threads,
processes), or a script, which is run once and sampled.
"""


def add_parser(commands: Any) -> None:
    """Add the command's parser to an argparse subparsers object."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "advise",
        help="measure whether asyncio, threads or processes suit a function or a script",
        description=DESCRIPTION,
    )
    parser.add_argument("--json", action="store_true", help="print the evidence as JSON")
    parser.add_argument(
        "--output", metavar="FILE", help="write the advice to FILE instead of standard output"
    )
    parser.add_argument(
        "--args", default="[]", help="the function's arguments, as a JSON array (default: none)"
    )
    parser.add_argument(
        "--budget", type=float, default=5.0, help="seconds to measure a function for (default: 5)"
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("target", metavar="TARGET", help="module:function, or a script's path")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")


def advise(options: argparse.Namespace, run_script: Callable[[str], int]) -> int:
    """Carry the command out, `run_script` running a script as ``__main__``; return its status."""
    module, colon, name = options.target.partition(":")
    if colon and not os.path.exists(options.target):
        _options_behind(options)
        outcome = _function(options, module, name)
        return outcome if isinstance(outcome, int) else _print(options, outcome)
    return _script(options, run_script)


def _options_behind(options: argparse.Namespace) -> None:
    # What stands behind a script is the script's. A function gets its arguments by --args, so what
    # stands behind it is ours.
    target = options.target
    options.parser.parse_args([*options.arguments, target], options)
    if options.target != target or options.arguments:
        options.parser.error("a function gets its arguments by --args")


def _function(options: argparse.Namespace, module: str, name: str) -> Recommendation | int:
    try:
        arguments = json.loads(options.args)
    except ValueError as exc:
        return _fail(f"--args is not JSON: {exc}")
    if not isinstance(arguments, list):
        return _fail("--args must be a JSON array")
    sys.path.insert(0, os.getcwd())
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError) as exc:
        return _fail(f"no such function: {exc}")
    return choose(function, *arguments, budget=options.budget)  # type: ignore[arg-type]


def _script(options: argparse.Namespace, run_script: Callable[[str], int]) -> int:
    status = 0

    def execute() -> None:
        nonlocal status
        try:
            status = run_script(options.target)
        except SystemExit as exc:
            if isinstance(exc.code, int):
                status = exc.code
            elif exc.code is not None:
                print(exc.code, file=sys.stderr)
                status = 1

    sys.argv = [options.target, *options.arguments]
    folder = os.path.dirname(os.path.realpath(options.target))
    report = sample_script(execute, folder)
    if report.doing:
        _print(options, report)
    return status


def _print(options: argparse.Namespace, advice: Recommendation | ScriptReport) -> int:
    text = json.dumps(advice.to_dict(), indent=2, default=repr) if options.json else str(advice)
    if options.output is None:
        print(text)
        return 0
    try:
        with open(options.output, "w", encoding="utf-8") as file:
            print(text, file=file)
    except OSError as exc:
        return _fail(f"cannot write {options.output!r}: {exc.strerror}")
    return 0


def _fail(text: str) -> int:
    print(f"rondel advise: {text}", file=sys.stderr)
    return 2

"""The command line: ``rondel run script.py`` and ``rondel run -m module``."""

import argparse
import runpy
import sys

from . import __version__
from .policy import install


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rondel", description="Python's asyncio, implemented in Rust."
    )
    parser.add_argument("--version", action="version", version=f"rondel {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run an asyncio program on rondel's event loop, unchanged",
        description="Run an asyncio program on rondel's event loop, unchanged.",
        usage="rondel run SCRIPT [ARGUMENT ...]\n       rondel run -m MODULE [ARGUMENT ...]",
    )
    run.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m")
    run.add_argument("program", help="the script's path, or the module's name with -m")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status unless the program itself exits."""
    options = _parser().parse_args(argv)
    install()
    # The program must find what it would find under python: its arguments and its own folder.
    sys.argv = [options.program, *options.arguments]
    if options.module:
        sys.path.insert(0, "")
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)
    else:
        import os

        if not os.path.exists(options.program):
            print(f"rondel: can't open file {options.program!r}", file=sys.stderr)
            return 2
        sys.path.insert(0, os.path.dirname(os.path.abspath(options.program)))
        runpy.run_path(options.program, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())

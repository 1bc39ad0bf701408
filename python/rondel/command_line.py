"""The command line but for ``rondel get``: ``rondel run script.py``, ``rondel run -m module``."""

import argparse
import importlib.machinery
import io
import os
import runpy
import sys
import types

from . import __version__, kernel
from .advice import command as advice
from .policy import install
from .top import view as top
from .watchdog import parse_threshold


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rondel", description="Python's asyncio, implemented in Rust."
    )
    parser.add_argument("--version", action="version", version=f"rondel {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # For the list of commands alone; __main__ has taken it out before.
    commands.add_parser("get", help="download files", add_help=False)
    run = commands.add_parser(
        "run",
        help="run an asyncio program on rondel's event loop, unchanged",
        description="Run an asyncio program on rondel's event loop, unchanged.",
        usage=(
            "rondel run [--watch TIME] [--top] [--html FILE] SCRIPT [ARGUMENT ...]\n"
            "       rondel run [--watch TIME] [--top] [--html FILE] -m MODULE [ARGUMENT ...]"
        ),
    )
    run.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m")
    run.add_argument(
        "--watch",
        metavar="TIME",
        type=_threshold,
        help="report callbacks that block the loop for TIME (100ms, 0.5s) or longer",
    )
    run.add_argument(
        "--top", action="store_true", help="let 'rondel top' look at the program while it runs"
    )
    run.add_argument(
        "--html", metavar="FILE", help="write a page with the timeline of the run, at its end"
    )
    run.add_argument("program", help="the script's path, or the module's name with -m")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")
    advice.add_parser(commands)
    top.add_parser(commands)
    kernel.add_parser(commands)
    return parser


def _threshold(text: str) -> str:
    parse_threshold(text)
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status unless the program itself exits."""
    options = _parser().parse_args(argv)
    if options.command == "advise":
        return advice.advise(options, _run_script)
    if options.command == "top":
        return top.main(options)
    if options.command == "kernel":
        return kernel.manage(options)
    if options.top:
        os.environ["RONDEL_TOP"] = "1"
    if options.html is not None:
        from .timeline import record

        threshold = parse_threshold(options.watch or "100ms")
        record(os.path.abspath(options.html), threshold=threshold, log=options.watch is not None)
    elif options.watch is not None:
        os.environ["RONDEL_WATCH"] = options.watch
    install()
    # The program finds what it would find under python: its arguments and, first on the path, its
    # own folder instead of rondel's.
    sys.argv = [options.program, *options.arguments]
    if options.module:
        _set_first_path(os.getcwd())
        _run_main_module(options.program)
    elif os.path.isdir(options.program) or _is_archive(options.program):
        _set_first_path(os.path.abspath(options.program))
        _run_main_module("__main__", alter_argv=False)
    else:
        return _run_script(options.program)
    return 0


def _set_first_path(folder: str) -> None:
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _run_main_module(name: str, *, alter_argv: bool = True) -> None:
    # What python -m itself calls: the module becomes the real __main__, for pickle and for
    # multiprocessing, and a missing one is an error message instead of a traceback.
    runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]


def _is_archive(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def _run_script(path: str) -> int:
    path = os.path.join(os.getcwd(), path)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as exc:
        print(
            f"rondel: can't open file {path!r}: [Errno {exc.errno}] {exc.strerror}",
            file=sys.stderr,
        )
        return 2
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    module.__dict__["__builtins__"] = __builtins__
    module.__dict__["__cached__"] = None
    # A new module, that stays: threads and exit handlers of the program use it to the end.
    sys.modules["__main__"] = module
    exec(compile(source, path, "exec"), module.__dict__)
    return 0

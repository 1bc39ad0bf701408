"""The ``rondel`` command: ``rondel get`` at once, everything else by ``command_line``.

``rondel get`` runs in Rust. Python's part of its start is this module and the extension, so neither
may import more than it does.
"""

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status unless the program itself exits.

    ``argv`` are the arguments after the command's name; ``sys.argv``'s without.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["get"]:
        if any(argument.partition("=")[0] == "--dask" for argument in arguments):
            from .spread import main as spread

            return spread(arguments[1:])
        from ._rondel import get

        status = get(arguments[1:])
        if argv is None:
            # The process is over and nothing of Python's is left to be finished, which takes 2 ms.
            os._exit(status)
        return status
    from .command_line import main as other_commands

    return other_commands(arguments)


if __name__ == "__main__":
    sys.exit(main())

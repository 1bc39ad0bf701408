"""A Jupyter kernel on rondel's loop: IPython's, whose own loop is ours and may be run again.

``rondel kernel install`` tells Jupyter of it; ``python -m rondel.kernel -f FILE`` is what Jupyter
then starts.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from typing import Any

NAME = "rondel"
DISPLAY_NAME = "Python 3 (rondel)"


def launch() -> None:
    """Run IPython's kernel on a rondel loop; the arguments are ipykernel's."""
    # As ipykernel's own launcher: the kernel imports nothing that lies in the notebook's folder.
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    from ipykernel.kernelapp import IPKernelApp

    from .loop import new_event_loop
    from .policy import install as install_policy

    install_policy()
    loop = new_event_loop()
    loop.nesting = True
    asyncio.set_event_loop(loop)
    try:
        IPKernelApp.launch_instance()
    finally:
        loop.close()


def add_parser(commands: Any) -> None:
    """Add ``rondel kernel`` to the command line."""
    parser = commands.add_parser(
        "kernel",
        help="add a Jupyter kernel that runs on rondel's event loop, or remove it",
        description="Add a Jupyter kernel that runs on rondel's event loop, or remove it.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser("install", help="add it; needs ipykernel")
    where = install.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user")
    where.add_argument(
        "--sys-prefix", action="store_true", help="for this Python's environment (the default)"
    )
    where.add_argument("--prefix", metavar="FOLDER", help="under FOLDER/share/jupyter/kernels")
    install.add_argument("--display-name", default=DISPLAY_NAME, help="what Jupyter shows")
    uninstall = actions.add_parser("uninstall", help="remove it")
    for action in install, uninstall:
        action.add_argument("--name", default=NAME, help=f"the kernel's name ({NAME!r})")


def manage(options: argparse.Namespace) -> int:
    """Run ``rondel kernel install`` or ``rondel kernel uninstall``; returns the exit status."""
    try:
        import ipykernel  # noqa: F401
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError as exc:
        print(f"rondel: {exc}; install ipykernel first", file=sys.stderr)
        return 1
    manager = KernelSpecManager()
    try:
        if options.action == "install":
            print(f"Installed the kernel {options.name!r} in {_install(manager, options)}")
        else:
            print(f"Removed {manager.remove_kernel_spec(options.name)}")
    except KeyError:
        print(f"rondel: there is no kernel {options.name!r}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as exc:
        print(f"rondel: {exc}", file=sys.stderr)
        return 1
    return 0


def _install(manager: Any, options: argparse.Namespace) -> str:
    spec = {
        "argv": [sys.executable, "-m", "rondel.kernel", "-f", "{connection_file}"],
        "display_name": options.display_name,
        "language": "python",
        "metadata": {"debugger": True},
    }
    prefix = None if options.user else options.prefix or sys.prefix
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "kernel.json"), "w", encoding="utf-8") as file:
            json.dump(spec, file, indent=1)
        # What others may read, as the files of other kernels.
        os.chmod(folder, 0o755)
        place: str = manager.install_kernel_spec(
            folder, options.name, user=options.user, prefix=prefix
        )
    return place


if __name__ == "__main__":
    launch()

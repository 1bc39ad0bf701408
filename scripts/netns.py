"""Run a command in a network namespace that has nothing but loopback.

CPython's suites name public hosts here and there and rely on a mock to stop the traffic; on a loop
that does not use the mocked module they would really connect. In such a namespace they cannot.

    python scripts/netns.py COMMAND [ARGUMENT...]

Where the kernel does not permit namespaces the command runs as it is, after one line that says so;
with CI=true that is a failure.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

# linux/sched.h, linux/sockios.h, linux/if.h; os.unshare exists only from Python 3.12 on.
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFREQ = struct.Struct("16sH22x")


def main(command: list[str]) -> int:
    """Replace this process by `command`, isolated where possible; returns only on failure."""
    if not command:
        print("usage: netns.py COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    # A namespace cannot be left again, so a child tries first whether all of it is permitted.
    refusal = try_in_child()
    if refusal is None:
        enter()
    elif os.environ.get("CI") == "true":
        print(f"netns: cannot isolate the network ({refusal}), and CI=true demands it")
        return 1
    else:
        print(f"netns: running without network isolation ({refusal})", flush=True)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"netns: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if error.errno == errno.ENOENT else 126


def try_in_child() -> str | None:
    """Enter a namespace in a child; return why that is refused, or None when it is permitted."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter()
        except OSError as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return None if status == 0 else message or f"the attempt ended with status {status}"


def enter() -> None:
    """Move this process into a new network namespace whose loopback is up.

    Who is not root gets a user namespace as well, in which the user stays who they are: the
    capabilities it grants until the next exec suffice to bring loopback up.
    """
    if os.geteuid() == 0:
        unshare(CLONE_NEWNET)
    else:
        uid, gid = os.geteuid(), os.getegid()
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    bring_up("lo")


def unshare(flags: int) -> None:
    """Call unshare(2); raises OSError as the kernel answers."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def bring_up(interface: str) -> None:
    """Set IFF_UP on `interface`, as `ip link set INTERFACE up` does; see netdevice(7)."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, IFREQ.pack(name, 0))
        flags = IFREQ.unpack(answer)[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, IFREQ.pack(name, flags | IFF_UP))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

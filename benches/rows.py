"""The table's rows: what each is called, how it is measured and what its figure means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import loops


class How(Enum):
    """What a measurement starts, and which of its figures is the row's."""

    #: One process on one core; wall time per operation.
    MICRO = "micro"
    #: The same with both cores, for rows that use threads or processes.
    MICRO_THREADS = "micro, all cores"
    #: A client in Python against the bare server; CPU time of the client per operation.
    CLIENT = "client"
    #: A server and the load generator on a core each; CPU time of the server per request.
    SERVER = "server"
    #: A server with silent connections; resident bytes per connection.
    HOLD = "hold"
    #: One process and its worker processes, all cores; wall time per call.
    POOL = "pool"
    #: One process that waits; CPU time per second.
    IDLE = "idle"


@dataclass(frozen=True)
class Row:
    name: str
    group: str
    label: str
    how: How
    #: In the quick run too.
    quick: bool = True
    #: `servers.py`'s kind, for SERVER and HOLD.
    server: str = ""
    #: `loadgen`'s transport, for SERVER and HOLD.
    transport: str = "tcp"
    connections: int = 1
    size: int = 1024
    #: The path to GET, for http.
    path: str = ""
    #: The transport of the bare server that a MICRO or CLIENT row connects to.
    peer: str = ""
    #: For POOL: whether the machine's own price can be measured, too.
    bare: bool = False

    @property
    def has_bare(self) -> bool:
        return self.bare or self.how in (How.SERVER, How.HOLD)

    def between(self, names: list[str]) -> list[str]:
        """Those of the names that the row is measured for: loops, or pools."""
        peers = loops.POOLS if self.how is How.POOL else loops.PEERS
        return [name for name in names if name in (*peers, *loops.NO_PEERS)]

    @property
    def unit(self) -> str:
        """`ns` (per operation), `bytes` (per connection) or `share` (CPU time over time)."""
        return {How.HOLD: "bytes", How.IDLE: "share"}.get(self.how, "ns")


SCHEDULING = "Scheduling"
TASKS = "Tasks, futures and synchronisation"
SYSTEM = "Threads, names, connections, processes"
POOLS = "Processes (rondel.ProcessPool beside other pools)"
STREAMS = "Streams in one process"
FILES = "Files (rondel.files; aiofiles on the other loops)"
ECHO = "Echo servers"
HTTP = "HTTP"
IDLE = "Idle cost"

MICRO_ROWS = [
    Row("call_soon_chain", SCHEDULING, "call_soon, each callback schedules the next", How.MICRO),
    Row("call_soon_args", SCHEDULING, "call_soon, batches of 1,000 with 2 arguments", How.MICRO),
    Row(
        "call_soon_threadsafe",
        SCHEDULING,
        "call_soon_threadsafe from another thread",
        How.MICRO_THREADS,
    ),
    Row("call_later_cancel", SCHEDULING, "call_later and cancel", How.MICRO),
    Row("timers_fire", SCHEDULING, "100,000 timers that fire", How.MICRO),
    Row(
        "gil_wait",
        SCHEDULING,
        "a thread's wait for the GIL beside a busy loop",
        How.MICRO_THREADS,
        quick=False,
    ),
    Row("open_run_close", SCHEDULING, "open a loop, run an empty coroutine, close", How.MICRO),
    Row("sleep0", TASKS, "await sleep(0)", How.MICRO),
    Row("gather_10k", TASKS, "gather of 10,000 tasks", How.MICRO),
    Row("gather_50k", TASKS, "gather of 50,000 tasks", How.MICRO, quick=False),
    Row("futures", TASKS, "create_future, set_result by call_soon, await", How.MICRO),
    Row("timeout", TASKS, "asyncio.timeout around sleep(0)", How.MICRO),
    Row("queue", TASKS, "Queue put and get between two tasks", How.MICRO),
    Row("lock", TASKS, "async with a free Lock", How.MICRO, quick=False),
    Row("executor_sequential", SYSTEM, "run_in_executor, one at a time", How.MICRO_THREADS),
    Row("executor_gathered", SYSTEM, "run_in_executor, 1,000 gathered", How.MICRO_THREADS),
    Row("getaddrinfo", SYSTEM, "getaddrinfo of an address literal", How.MICRO),
    Row("connect", SYSTEM, "create_connection and close", How.MICRO, peer="tcp"),
    Row("spawn", SYSTEM, "spawn /bin/true and wait", How.MICRO_THREADS),
    Row("streams_256mib", STREAMS, "256 MiB through streams, per MiB", How.MICRO),
    Row("readline", STREAMS, "100,000 × readline", How.MICRO),
    Row("file_read", FILES, "cached 64 KiB, seek and read", How.MICRO_THREADS, quick=False),
    Row("file_whole", FILES, "4 KiB file: open, read, close", How.MICRO_THREADS),
    Row("file_write", FILES, "write of 1,024 bytes", How.MICRO_THREADS, quick=False),
    Row("file_lines", FILES, "a line of a text file", How.MICRO_THREADS, quick=False),
]

ECHO_SERVERS = [
    ("protocol", "tcp", "TCP Protocol"),
    ("buffered", "tcp", "TCP BufferedProtocol"),
    ("streams", "tcp", "TCP streams"),
    ("sock", "tcp", "TCP sock_*"),
    ("unix", "unix", "Unix Protocol"),
    ("udp", "udp", "UDP"),
    ("tls_protocol", "tls", "TLS Protocol"),
    ("tls_streams", "tls", "TLS streams"),
]
ECHO_LOADS = [
    (1, 1024, "1×1 KiB"),
    (16, 1024, "16×1 KiB"),
    (200, 1024, "200×1 KiB"),
    (16, 64 * 1024, "16×64 KiB"),
    (1000, 1024, "1,000×1 KiB"),
]
#: The largest payload of an IPv4 datagram, in place of 64 KiB.
LARGEST_DATAGRAM = 65_507
QUICK_LOADS_OF_TCP = {"1×1 KiB", "16×1 KiB", "200×1 KiB", "16×64 KiB"}


def echo_rows() -> list[Row]:
    found = []
    for server, transport, title in ECHO_SERVERS:
        for connections, size, load in ECHO_LOADS:
            quick = QUICK_LOADS_OF_TCP if server == "protocol" else {"16×1 KiB"}
            name = f"echo_{server}_{connections}x{size // 1024}k"
            if transport == "udp" and size > LARGEST_DATAGRAM:
                size = LARGEST_DATAGRAM
                load = f"{connections}×{size:,} bytes"
            found.append(
                Row(
                    name,
                    ECHO,
                    f"{title}, {load}",
                    How.SERVER,
                    quick=load in quick,
                    server=server,
                    transport=transport,
                    connections=connections,
                    size=size,
                )
            )
    return found


def http_row(name: str, label: str, server: str, path: str, quick: bool = True) -> Row:
    return Row(
        name, HTTP, label, How.SERVER, quick, server, "http", connections=16, size=0, path=path
    )


HTTP_ROWS = [
    http_row("uvicorn_plaintext", "uvicorn + httptools, plaintext", "uvicorn", "/plaintext"),
    http_row("uvicorn_10k", "uvicorn + httptools, 10 KiB", "uvicorn", "/10k", quick=False),
    http_row("aiohttp_server", "aiohttp server, plaintext", "aiohttp", "/plaintext"),
    Row("aiohttp_client", HTTP, "aiohttp client, 16 at a time", How.CLIENT, peer="http"),
]

IDLE_ROWS = [
    Row(
        "idle_memory",
        IDLE,
        "memory of an idle connection, of 10,000",
        How.HOLD,
        server="protocol",
        connections=10_000,
    ),
    Row("idle_cpu", IDLE, "CPU of an idle server, per second", How.IDLE),
]

POOL_ROWS = [
    Row("pool_start", POOLS, "4 workers: start to first result", How.POOL, quick=False),
    Row("pool_one", POOLS, "await a no-op, one at a time", How.POOL, bare=True),
    Row("pool_gathered", POOLS, "1,000 no-ops gathered, each", How.POOL),
    Row("pool_bytes", POOLS, "64 MiB of bytes to a worker", How.POOL, quick=False, bare=True),
    Row("pool_array", POOLS, "64 MiB NumPy array to a worker", How.POOL, quick=False, bare=True),
    Row("pool_returned", POOLS, "64 MiB NumPy array back", How.POOL, quick=False, bare=True),
    Row("pool_shared", POOLS, "64 MiB NumPy array in shared memory", How.POOL, quick=False),
]

ALL = [*MICRO_ROWS, *POOL_ROWS, *echo_rows(), *HTTP_ROWS, *IDLE_ROWS]
NAMES = [row.name for row in ALL]


def select(patterns: list[str], quick: bool) -> list[Row]:
    """The rows whose name has one of the patterns in it, or whose group begins with it (all rows
    without patterns).

    ValueError if a pattern matches nothing.
    """
    rows = [row for row in ALL if patterns or row.quick or not quick]
    if not patterns:
        return rows
    for pattern in patterns:
        if not any(matches(row, pattern) for row in rows):
            raise ValueError(f"no row matches {pattern!r}; there are {', '.join(NAMES)}")
    return [row for row in rows if any(matches(row, pattern) for pattern in patterns)]


def matches(row: Row, pattern: str) -> bool:
    return pattern in row.name or row.group.lower().startswith(pattern.lower())


def fewer(row: Row, most: int, why: str) -> Row:
    """The row with at most that many connections; its label says so if that is less."""
    if row.connections <= most:
        return row
    return replace(row, connections=most, label=f"{row.label} ({most:,} only: {why})")

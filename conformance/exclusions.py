"""The tests of CPython that are not run on rondel's loop, each with the reason.

Nothing is excluded because it fails: the kinds below are all there is, and `run.py --run-excluded`
runs the excluded tests as well and lists those that pass. An entry that matches no test of the
running Python is reported as stale.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
from typing import Literal

#: goes-on     asserts that the standard library's process pool is broken, or cannot cancel any
#:             more, where rondel's goes on
#: white-box   asserts on, calls or replaces private parts of asyncio's own loop classes, or mocks a
#:             function that asyncio's implementation happens to call
#: twin        the same tests as another class that is run, with something chosen that only asyncio
#:             has: its selector, its child watcher
Kind = Literal["goes-on", "white-box", "twin"]


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """Tests of one module that are not run."""

    module: str
    kind: Kind
    reason: str
    tests: tuple[str, ...]  # patterns for Class.test_method, as fnmatch takes them
    since: int = 11  # the first and the last minor version of Python 3 that this is for
    until: int = 99

    def matching(self, name: str) -> set[str]:
        """The patterns that match the test `name`."""
        return {pattern for pattern in self.tests if fnmatch.fnmatchcase(name, pattern)}


def names(prefix: str, methods: str) -> tuple[str, ...]:
    """Patterns from the part of the name that they share and the rest of each, blanks between."""
    return tuple(prefix + method for method in methods.split())


QUEUE = "reads or fills BaseEventLoop's private queues, or calls its private _run_once()"
SOCKET_MODULE = (
    "puts a mock in the place of asyncio's socket module, and asserts on the calls to it or on "
    "what they cause; a loop that makes its sockets elsewhere really connects"
)
SELECTOR = "the same tests with another selector of asyncio's; rondel has one poller"
WATCHER = "the same tests with another of asyncio's child watchers (gone in 3.14)"

OTHER_POOLS = "the same tests with pools of interpreters"

POOL_PARTS = (
    "looks at the parts of the standard library's pool (its manager thread, its queues, the table "
    "of its processes right after submit()), or replaces them"
)


def _in_pool_tests(
    module: str, kind: Kind, reason: str, tests: tuple[str, ...]
) -> tuple[Exclusion, Exclusion]:
    """The same for the one file that the tests of pools were up to 3.11."""
    return (
        Exclusion(module, kind, reason, tests, since=12),
        Exclusion("test_concurrent_futures", kind, reason, tests, until=11),
    )


TABLE: tuple[Exclusion, ...] = (
    # ---- pools of processes
    *_in_pool_tests(
        "test_deadlock",
        "goes-on",
        "one call that cannot be unpickled, there or here, is that call's error; the standard "
        "library's pool is broken by it",
        names(
            "ProcessPool*.test_",
            "error_at_task_unpickle exit_at_task_unpickle "
            "error_during_result_unpickle_in_result_handler "
            "exit_during_result_unpickle_in_result_handler",
        ),
    ),
    *_in_pool_tests(
        "test_shutdown",
        "goes-on",
        "asserts that some of the queued calls cannot be cancelled while workers start, since the "
        "standard library's pool counts those in its pipe as running",
        ("ProcessPool*.test_cancel_futures",),
    ),
    *_in_pool_tests("test_deadlock", "white-box", POOL_PARTS, ("*.test_shutdown_deadlock_pickle",)),
    *_in_pool_tests(
        "test_shutdown",
        "white-box",
        POOL_PARTS,
        names("ProcessPool*.test_", "del_shutdown processes_terminate shutdown_[gn]*"),
    ),
    *_in_pool_tests(
        "test_process_pool",
        "white-box",
        POOL_PARTS,
        names("ProcessPool*.test_", "kill* python_finalization_error s[ah]*"),
    ),
    Exclusion(
        "test_process_pool",
        "white-box",
        POOL_PARTS,
        names(
            "ProcessPool*.test_",
            "broken_process_pool_traceback failed_worker_replacement_breaks_pool force_shutdown_* "
            "gc_during_max_tasks_worker_exit_* terminate_workers",
        ),
        since=14,
    ),
    # ---- pools of interpreters
    *(
        Exclusion(module, "twin", OTHER_POOLS, ("InterpreterPool*",), since=14)
        for module in ("test_as_completed", "test_init")
    ),
    # ---- white-box
    Exclusion(
        "test_base_events",
        "white-box",
        QUEUE,
        names(
            "BaseEventLoopTests.test_",
            "_add_callback_handle _add_callback_cancelled_handle _run_once "
            "_run_once_schedule_handle _run_once_cancelled_event_cleanup call_soon call_later "
            "set_exc_handler_custom set_exc_handler_broken default_exc_handler_broken",
        ),
    ),
    Exclusion(
        "test_base_events",
        "white-box",
        "the mock that it puts in the place of the loop's selector makes the events, or is asked "
        "for its calls",
        names(
            "BaseEventLoopTests.test_",
            "run_forever_pre_stopped single_selecter_event_callback_after_stopping",
        ),
    ),
    Exclusion(
        "test_base_events",
        "white-box",
        "asserts that BaseEventLoop's private methods raise NotImplementedError, or drives the "
        "loop by its private _run_forever_setup()",
        ("BaseEventLoopTests.test_not_implemented",),
    ),
    Exclusion(
        "test_base_events",
        "white-box",
        "drives the loop by BaseEventLoop's private _run_forever_setup() and _run_once()",
        ("BaseEventLoopTests.test_custom_run_forever_integration",),
        since=13,
    ),
    Exclusion(
        "test_base_events",
        "white-box",
        SOCKET_MODULE,
        names(
            "BaseEventLoopWithSelectorTests.test_create_",
            "connection_multiple_errors connection_multiple_errors_local_addr connection_timeout "
            "connection_ip_addr connection_no_inet_pton connection_ipv6_scope "
            "connection_service_name connection_bluetooth server_nosoreuseport "
            "server_soreuseport_only_defined server_cant_bind datagram_endpoint_no_addrinfo "
            "datagram_endpoint_socket_err datagram_endpoint_setblk_err "
            "datagram_endpoint_cant_bind datagram_endpoint_nosoreuseport "
            "datagram_endpoint_ip_addr",
        ),
    ),
    Exclusion(
        "test_base_events",
        "white-box",
        SOCKET_MODULE,
        ("BaseEventLoopWithSelectorTests.test_create_connection_transport_error_closes_sock",),
        since=14,
    ),
    Exclusion(
        "test_futures",
        "white-box",
        "a test of Future's C code that passes a mock for a contextvars.Context to call_soon() of "
        "a loop derived from BaseEventLoop; rondel takes nothing but a Context",
        ("*.test_use_after_free_on_fut_context_0_with_evil__getattribute__",),
        since=14,
    ),
    Exclusion(
        "test_base_events",
        "white-box",
        "calls or replaces private methods of asyncio's selector loop (_accept_connection, "
        "_make_ssl_transport)",
        (
            "BaseEventLoopWithSelectorTests.test_accept_connection_*",
            "BaseEventLoopWithSelectorTests.test_create_connection_ssl_server_hostname_default",
        ),
    ),
    Exclusion(
        "test_base_events",
        "white-box",
        "asserts that asyncio's portable base class has no native sendfile",
        (
            "BaseLoopSockSendfileTests.test__sock_sendfile_native_failure",
            "BaseLoopSockSendfileTests.test_sock_sendfile_no_fallback",
        ),
    ),
    Exclusion(
        "test_events",
        "white-box",
        "replaces asyncio's socket module by a mock and the private _start_serving() and "
        "_stop_serving() as well",
        (
            "*EventLoopTests.test_create_server_multiple_hosts_ipv4",
            "*EventLoopTests.test_create_server_multiple_hosts_ipv6",
        ),
    ),
    Exclusion(
        "test_events",
        "white-box",
        "asserts on private attributes of asyncio's selector loop (_internal_fds, _csock) or "
        "calls its private methods (_stop_serving, _run_once)",
        names("*EventLoopTests.test_", "internal_fds prompt_cancellation timeout_rounding"),
    ),
    Exclusion(
        "test_tasks",
        "white-box",
        QUEUE,
        ("*Task*Future*.test_log_destroyed_pending_task",),
    ),
    Exclusion(
        "test_tasks",
        "white-box",
        "asserts on the time, in steps of its own making, that test_utils.TestLoop shows",
        names(
            "*Task*Future*.test_",
            "as_completed as_completed_reverse_wait as_completed_with_timeout sleep "
            "stop_while_run_in_complete task_cancel_sleeping_task wait wait_concurrent_complete "
            "wait_first_completed wait_first_exception wait_first_exception_in_wait "
            "wait_with_exception wait_with_iterator_of_tasks wait_with_timeout",
        ),
    ),
    Exclusion(
        "test_tasks",
        "white-box",
        "patches a method of the class BaseEventLoop and asserts on the loop's having it",
        ("CoroutineGatherTests.test_issue46672",),
    ),
    Exclusion(
        "test_sendfile",
        "white-box",
        "replaces the loop's private _sendfile_native() by BaseEventLoop's",
        names(
            "*EventLoopTests.test_sendfile_",
            "force_fallback force_unsupported_native "
            "fallback_close_peer_in_the_middle_of_receiving",
        ),
    ),
    Exclusion(
        "test_unix_events",
        "white-box",
        "puts a mock in the place of asyncio's signal module, or uses its private _check_signal(), "
        "_handle_signal() and _signal_handlers",
        names(
            "SelectorEventLoopSignalTests.test_",
            "check_signal handle_signal_no_handler handle_signal_cancelled_handler "
            "add_signal_handler add_signal_handler_setup_error add_signal_handler_install_error* "
            "remove_signal_handler remove_signal_handler_2 remove_signal_handler_error* "
            "close close_on_finalizing",
        ),
    ),
    Exclusion(
        "test_unix_events",
        "white-box",
        SOCKET_MODULE,
        ("SelectorEventLoopUnixSocketTests.test_create_unix_server_bind_error",),
    ),
    Exclusion(
        "test_unix_events",
        "white-box",
        "calls the private _sock_sendfile_native_impl() of asyncio's loop, or hides os.sendfile "
        "from its module",
        names(
            "SelectorEventLoopUnixSockSendfileTests.test_sock_sendfile_",
            "not_available cancel1 cancel2 blocking_error os_error_first_call os_error_next_call "
            "exception",
        ),
    ),
    Exclusion(
        "test_unix_events",
        "white-box",
        "makes asyncio's private pipe transports over mocks, on a mock loop",
        ("UnixReadPipeTransportTests.*", "UnixWritePipeTransportTests.*"),
    ),
    Exclusion(
        "test_subprocess",
        "white-box",
        "makes asyncio's private BaseSubprocessTransport over mocks",
        ("SubprocessTransportTests.*",),
    ),
    Exclusion(
        "test_unix_events",
        "white-box",
        "replaces os.waitpid, and calls the process transport's private _process_exited()",
        ("PidfdChildWatcherTests.test_pidfd_closed_when_waitpid_raises",),
        since=14,
    ),
    Exclusion(
        "test_subprocess",
        "white-box",
        "asserts that the loop asks the policy's child watcher, deprecated in 3.12, gone in 3.14",
        ("GenericWatcherTests.*",),
        until=13,
    ),
    Exclusion(
        "test_subprocess",
        "white-box",
        "looks into the loop's private child watcher",
        (
            "Subprocess*WatcherTests.test_watcher_implementation",
            "SubprocessThreadedWatcherTests.test_pid_not_reaped_before_exit_published",
        ),
        since=14,
    ),
    Exclusion(
        "test_server",
        "white-box",
        "calls asyncio.Server's private _attach() as 3.12 has it, without a transport",
        ("TestServer2.test_wait_closed_basic", "TestServer2.test_wait_closed_race"),
        since=12,
        until=12,
    ),
    Exclusion(
        "test_ssl",
        "white-box",
        "puts plaintext into the private backlog of asyncio's TLS protocol",
        ("TestSSL.test_remote_shutdown_receives_trailing_data*",),
    ),
    Exclusion(
        "test_sslproto",
        "white-box",
        "learns of the transport by replacing a method of asyncio's own TLS protocol",
        ("*.test_create_connection_ssl_failed_certificate_no_cycles",),
        since=14,
    ),
    # ---- twins
    Exclusion(
        "test_events",
        "twin",
        SELECTOR,
        ("PollEventLoopTests.*", "SelectEventLoopTests.*"),
    ),
    Exclusion(
        "test_sendfile",
        "twin",
        SELECTOR,
        ("PollEventLoopTests.*", "SelectEventLoopTests.*"),
    ),
    Exclusion(
        "test_sock_lowlevel",
        "twin",
        SELECTOR,
        ("PollEventLoopTests.*", "SelectEventLoopTests.*"),
    ),
    Exclusion(
        "test_subprocess",
        "twin",
        WATCHER,
        names("Subprocess", "SafeWatcherTests.* FastWatcherTests.* PidfdWatcherTests.*"),
        until=13,
    ),
)


def for_module(module: str, loop: str) -> list[Exclusion]:
    """What is excluded of `module` on this Python; asyncio's own loop runs everything."""
    if loop != "rondel":
        return []
    short = module.rpartition(".")[2]
    minor = sys.version_info.minor
    return [e for e in TABLE if e.module == short and e.since <= minor <= e.until]

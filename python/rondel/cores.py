"""Waiting for a core: what a busy machine adds to a call, and no waiting of the call itself."""


def queued() -> float:
    """Return the seconds for which this thread has been ready to run and had no core.

    From Linux's ``/proc/thread-self/schedstat``; 0 where that is not to be read.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0

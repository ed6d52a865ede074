"""How many files, and so how many connections, a process may have open."""

from __future__ import annotations

import contextlib

# What a process needs besides its connections.
_BESIDE = 256


def allow_open_files(count: int) -> None:
    """Raise the process's limit of open files to hold `count` sockets, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

"""Memory that models leave behind when they go.

Python's collector goes through all objects now and then and stops every thread meanwhile; with PyTorch loaded that
takes hundreds of milliseconds. So what stays for good is taken out of its sight. Whatever was taken out together with a
model has to come back once that model goes, or its cycles would never be found.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

# Objects that the collector goes through in about ten milliseconds.
_MANY = 50_000
# Objects after which it looks at the newest ones. A few requests make Python's 700, and next to none of them is garbage
# that only it can find.
_NEWEST = 10_000


def look_seldom() -> None:
    """Have the collector look at the newest objects less often than Python does by itself."""
    gc.set_threshold(_NEWEST)


def settle() -> None:
    """Take all that there is now out of the collector's sight."""
    gc.collect()
    gc.freeze()


def crowded() -> bool:
    """Whether so much is in the collector's sight that it would be noticed, such as modules that were imported late."""
    return len(gc.get_objects()) > _MANY


def clear() -> None:
    """Find all garbage, also what was taken out of sight, and settle again. Stops every thread for a moment."""
    gc.unfreeze()
    settle()


def trim() -> None:
    """Give freed memory back to the system, which glibc's allocator otherwise keeps; nothing elsewhere."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)

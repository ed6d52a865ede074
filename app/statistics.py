"""What the protocol's extension ``statistics`` tells of each version of a model: counts, and sums of times.

A request is counted when it was answered, a call when it was made. Of a request, ``compute_input`` is the time in which
its body was decoded, ``queue`` that in which it waited, ``compute_infer`` that of its call, and ``compute_output`` that
in which its answer was encoded. A call as such is neither decoded nor encoded, so in ``batch_stats`` both count zero.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Key = tuple[str, str]


@dataclass(slots=True)
class Duration:
    """How often something was done, and how long that took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """It was done once more, and took so long."""
        self.count += 1
        self.seconds += seconds

    def document(self) -> dict[str, int]:
        """In the protocol's form, nanoseconds."""
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


class Parts(NamedTuple):
    """How long the parts of a request took, seconds."""

    queue: float
    compute_input: float
    compute_infer: float
    compute_output: float


def _parts() -> dict[str, Duration]:
    return {name: Duration() for name in Parts._fields}


@dataclass(slots=True)
class _Version:
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    parts: dict[str, Duration] = field(default_factory=_parts)
    calls: dict[int, Duration] = field(default_factory=dict)
    rows: int = 0
    last: int = 0


class Statistics:
    """Collects them; told by the batcher and by the middleware, on the event loop."""

    def __init__(self) -> None:
        self._versions: dict[Key, _Version] = {}

    def call_done(self, key: Key, rows: int, seconds: float) -> None:
        """A call of so many rows was made on a version, and took so long."""
        version = self._of(key)
        version.rows += rows
        version.last = time.time_ns() // 10**6
        calls = version.calls.get(rows)
        if calls is None:
            calls = version.calls[rows] = Duration()
        calls.add(seconds)

    def request_done(self, key: Key, seconds: float, parts: Parts | None) -> None:
        """A request for an inference was answered after so long.

        Args:
            parts: what of it took how long; None if it got an error.
        """
        version = self._of(key)
        if parts is None:
            version.fail.add(seconds)
            return
        version.success.add(seconds)
        for duration, part in zip(version.parts.values(), parts, strict=True):
            duration.add(part)

    def _of(self, key: Key) -> _Version:
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = _Version()
        return version

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget all other versions."""
        kept = set(keys)
        for key in [key for key in self._versions if key not in kept]:
            del self._versions[key]

    def document(self, keys: Iterable[Key]) -> dict[str, Any]:
        """In the protocol's form, for these versions; all zero for one that was never asked."""
        return {"model_stats": [_document(key, self._versions.get(key, _Version())) for key in keys]}


def _document(key: Key, version: _Version) -> dict[str, Any]:
    none = Duration().document()
    return {
        "name": key[0],
        "version": key[1],
        # Milliseconds since the epoch; 0 before the first.
        "last_inference": version.last,
        "inference_count": version.rows,
        "execution_count": sum(calls.count for calls in version.calls.values()),
        "inference_stats": {
            "success": version.success.document(),
            "fail": version.fail.document(),
            **{name: duration.document() for name, duration in version.parts.items()},
            # No answer is kept for later.
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [
            {"batch_size": rows, "compute_input": none, "compute_infer": calls.document(), "compute_output": none}
            for rows, calls in sorted(version.calls.items())
        ],
    }

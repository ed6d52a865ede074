"""Drawn members that are kept, since whoever asks for some often asks for them again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor

# Of memory, beside the numbers themselves: for each tensor, and what it is found by.
_TENSOR_BYTES = 1024


class Kept:
    """Drawn members by what they were drawn from; the least recently used go first. For one thread.

    Args:
        limit: bytes, with what tensors take beside their numbers.

    Attributes:
        nbytes: of what is kept.
        hits, misses: how often something was there, or not.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found: OrderedDict[Any, dict[str, Tensor]] = OrderedDict()
        self.nbytes = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._found)

    def described(self) -> dict[str, int]:
        """How many there are, and how often they helped."""
        return {"count": len(self), "bytes": self.nbytes, "hits": self.hits, "misses": self.misses}

    def get(self, key: Any) -> dict[str, Tensor] | None:
        """What is kept under a key, now the most recently used; None if there is nothing."""
        if key not in self._found:
            self.misses += 1
            return None
        self.hits += 1
        self._found.move_to_end(key)
        return self._found[key]

    def put(self, key: Any, weights: dict[str, Tensor]) -> None:
        """Keep something, unless it alone is more than the limit."""
        size = _size(weights)
        if size > self._limit or key in self._found:
            return
        self._found[key] = weights
        self.nbytes += size
        while self.nbytes > self._limit:
            self.nbytes -= _size(self._found.popitem(last=False)[1])


def _size(weights: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes + _TENSOR_BYTES for tensor in weights.values())

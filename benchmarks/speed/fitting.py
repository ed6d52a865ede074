"""What fits into memory, known from shapes before anything is made."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.speed.counting import Size
from benchmarks.speed.running import WAYS

# A process with PyTorch and a runtime in it.
PROCESS = 700 * 2**20
# What a call that runs members in chunks holds at most, the library's bound and as much again for temporaries.
_CHUNKED = 512 * 2**20
# Values of the largest size that a call holds at the same time: an operation's input and output, and a temporary.
_HELD = 3
GIGABYTE = 1e9


def holding(way: str, size: Size, members: int) -> int:
    """Bytes that a way holds between calls."""
    recipe = WAYS[way].recipe
    if way in size.own:
        return int(PROCESS + WAYS[way].copies * (size.shared[recipe] + members * size.own[recipe]))
    return int(PROCESS + WAYS[way].copies * members * size.member)


def calling(way: str, size: Size, members: int, rows: int) -> int:
    """Bytes that a call takes beside that."""
    activations = _HELD * size.activation * rows * members
    return activations if WAYS[way].whole else min(activations, _CHUNKED)


def shifts(needs: Mapping[str, int], free: int, first: str) -> tuple[list[list[str]], dict[str, str]]:
    """Divide ways into groups that fit into memory together, each with ``first`` where that fits beside them.

    Args:
        needs: bytes of each way.
        free: bytes that there are.
        first: the way that the others are compared with.

    Returns:
        The groups, and why a way is in none.
    """
    reasons = {way: unfit(need) for way, need in needs.items() if need > free}
    base = [first] if first in needs and first not in reasons else []
    groups: list[list[str]] = []
    current, used = list(base), sum(needs[way] for way in base)
    for way in needs:
        if way in reasons or way in base:
            continue
        if used + needs[way] > free:
            if current and current != base:
                groups.append(current)
            current = [*base, way] if sum(needs[w] for w in base) + needs[way] <= free else [way]
            used = sum(needs[w] for w in current)
        else:
            current.append(way)
            used += needs[way]
    # The first group that is left has the reference way even if nothing fits beside it.
    if current:
        groups.append(current)
    if base and not any(base[0] in group for group in groups):
        groups.insert(0, base)
    return groups, reasons


def unfit(need: float) -> str:
    return f"does not fit: {need / GIGABYTE:.3g} GB"

"""How a run's time is shared: among numbers of members, among what fits into memory together, and within that.

This library and the loop come before the peers: neither a peer that hangs nor the holding of dense copies takes their
time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from benchmarks.models import RECIPES
from benchmarks.speed.running import WAYS

LOOP = "loop"
# Shares of the time that there is, after which no further way is started, nor one waited for that is starting, and none
# prepared: it is left for those that are.
STARTING, PREPARING = 0.7, 0.7
# Seconds, of a few sizes of models: a peer is held, prepared and timed, and the loop held again beside it, in so many.
# Sharing what is left in smaller parts would leave none of them a time.
LEAST = 40.0
# Share of the time for starting that plans may take: what is held around a plan takes time as well, and so do the last
# steps of one, and a way that is not done when that time ends has taken it for nothing, from the peers too.
_PLANNING = 0.6
# Seconds that a way takes to be prepared for a batch size, about; this library plans on top of that.
_PREPARED = 2.0


def ours(ways: Sequence[str]) -> bool:
    """Some way is this library's."""
    return any(way in RECIPES for way in ways)


def order(ways: Sequence[str], measured: Collection[str] = ()) -> list[str]:
    """The order in which ways are started, prepared and timed: where time runs out, the last ones go without.

    Members that share weights come first, since they are held at once, then the loop, whose copies can take long, and
    then this library's dense members. A way that has been measured already is last.
    """

    def late(way: str) -> tuple[bool, bool, bool]:
        return way in measured, way != LOOP and WAYS[way].recipe == "dense", way not in RECIPES

    # Within a rank they stay as they are.
    return sorted(ways, key=late)


def effort(shifts: Sequence[Sequence[str]], batches: int, timing: float, planning: float) -> float:
    """Seconds that some shifts would like to have, about.

    Args:
        shifts: ways that run together.
        batches: how many numbers of rows.
        timing, planning: seconds of each way for a number of rows.
    """
    return batches * sum(timing + _PREPARED + planning * (way in RECIPES) for ways in shifts for way in ways)


def end(shift: Sequence[str], others: int, now: float, deadline: float) -> float:
    """When a shift has to end.

    Args:
        shift: ways that run together.
        others: how many shifts come after it.
        now: a time.
        deadline: when the last one has to end.
    """
    if ours(shift):
        return deadline
    left = max(0.0, deadline - now)
    return now + min(left, max(LEAST, left / (1 + others)))


def cell(shift: Sequence[str], others: int, now: float, deadline: float) -> float:
    """When preparing for one batch size has to end.

    Args:
        shift: ways that run together. Peers by themselves have a time for the first batch sizes rather than for none.
        others: how many batch sizes come after it.
        now: a time.
        deadline: when the shift has to end.
    """
    return now + (deadline - now) / (1 + others) if ours(shift) else deadline


def planning(wanted: float, ways: Sequence[str], batches: int, left: float) -> float:
    """Seconds for one way's plan, a batch size.

    Args:
        wanted: how many it would have.
        ways: that are still to be started, itself included.
        batches: how many numbers of rows.
        left: seconds until no further way is started.
    """
    return min(wanted, _PLANNING * max(0.0, left) / batches / max(1, sum(way in RECIPES for way in ways)))

"""How many members a compiled call takes at once."""

from __future__ import annotations

from ensemble.members import Members
from ensemble.program.program import Program

# Activations of one call: as many as a machine can spare, and as many as stay in a processor's cache.
_MOST_BYTES = 1 * 2**30
_CACHE_BYTES = 32 * 2**20
_KERNEL_BYTES = 16 * 2**20
# Calls that one batch may be divided into, each compiled for its own members.
MOST_CALLS = 16


def with_any_weights(program: Program, members: Members, rows: int) -> list[int]:
    """Of a call that is compiled once and takes the weights of any members: smaller chunks cost calls only."""
    return [_fitting(members.count, _KERNEL_BYTES // activations(program, rows))]


def with_their_weights(program: Program, members: Members, rows: int) -> list[int]:
    """Of calls that have their members' weights in them: as many as fit into memory, and into the cache."""
    per_member = activations(program, rows)
    whole, near = (_fitting(members.count, most // per_member) for most in (_MOST_BYTES, _CACHE_BYTES))
    return [chunk for chunk in dict.fromkeys((whole, near)) if members.count // chunk <= MOST_CALLS]


def activations(program: Program, rows: int) -> int:
    """Bytes of one member's activations."""
    return max(1, program.activation_bytes * rows)


def spared(nbytes: int) -> bool:
    """Whether a machine can spare so many bytes for activations."""
    return nbytes <= _MOST_BYTES


def _fitting(members: int, most: int) -> int:
    """The largest divisor of all members that is not over a bound."""
    return max(size for size in range(1, members + 1) if members % size == 0 and size <= max(1, most))

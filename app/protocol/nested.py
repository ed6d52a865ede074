"""Nested lists of JSON values to one flat array, and the exact place where they are not what they should be.

Two steps, each one pass in C: `unnest` peels the levels off a nested list and finds its sizes, `pack` puts
the flat values into memory as one datatype. Neither looks at single elements in Python. Only when a step
fails does a slow second look find the first culprit and say what it is.

`pack` uses `struct`, not numpy: it is faster on lists of Python numbers, it refuses text (numpy would read
"1" as a number, and would give every element the room of the longest text), and it refuses fractions and
out-of-range values for integers. What it lets through are booleans, which Python counts as numbers; see
`pack`.
"""

import struct
import sys
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.datatypes import Datatype, all_finite
from app.protocol.wording import describe

__all__ = ["pack", "unnest"]

# Up to here a float is exactly the whole number that was written; beyond, the parser may have rounded.
_EXACT = 2**53
_CHUNK = 1024
# In the machine's own order `struct` casts floats in C; in a named order it puts their bytes together.
_ORDER = "" if sys.byteorder == "little" else "<"


def unnest(data: list[Any], rank: int, *, subject: str, layout: str) -> tuple[tuple[int, ...], list[Any]]:
    """Peels `rank` levels of lists.

    Args:
        data: the outermost list.
        rank: levels of lists that there must be.
        subject: who is at fault in an error, such as "input 'x'".
        layout: what the levels are in an error, such as "[batch, 784]".

    Returns:
        The size of each level, and the innermost elements, whatever they are.
    """
    sizes = [len(data)]
    level = data
    for depth in range(1, rank):
        if not level:
            raise BadRequest(f"{subject} must not be empty, however: level {depth} of its lists has no elements")
        if set(map(type, level)) != {list}:
            raise BadRequest(_not_lists(level, depth, rank, tuple(sizes), subject, layout))
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise BadRequest(_ragged(level, tuple(sizes), subject))
        sizes.append(lengths.pop())
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return tuple(sizes), level


def pack(
    flat: list[Any], datatype: Datatype, sizes: tuple[int, ...], *, subject: str, may_hold_booleans: bool
) -> NDArray[Any]:
    """Packs values into a new one-dimensional array.

    Args:
        flat: the values, which must be as many as `sizes` multiply to.
        datatype: what each must be.
        sizes: the levels that `flat` was peeled from, to name a place in an error.
        subject: who is at fault in an error.
        may_hold_booleans: False promises that no value is a boolean, and saves the look at each one's type.
    """
    if datatype.name == "BOOL":
        if set(map(type, flat)) <= {bool}:
            return np.array(flat, dtype=np.bool_)
    else:
        packed = _pack_numbers(flat, datatype)
        if packed is not None and not (may_hold_booleans and _holds_booleans(flat, packed)):
            return packed
    raise BadRequest(_culprit(flat, datatype, sizes, subject))


def _holds_booleans(flat: list[Any], packed: NDArray[Any]) -> bool:
    # They became 0 and 1, and where there is neither, no look at each type is needed.
    return bool(np.count_nonzero((packed == 0) | (packed == 1))) and bool in set(map(type, flat))


def _pack_numbers(flat: list[Any], datatype: Datatype) -> NDArray[Any] | None:
    packed = np.empty(len(flat), dtype=datatype.dtype)
    form = f"{_ORDER}{len(flat)}{datatype.code}"
    try:
        struct.pack_into(form, packed.data, 0, *flat)
    except (struct.error, OverflowError):
        if datatype.is_float:
            return None
        # 3.0 is a whole number too, if a rarer way to write one.
        whole = [int(value) if type(value) is float and _is_whole(value) else value for value in flat]
        try:
            struct.pack_into(form, packed.data, 0, *whole)
        except (struct.error, OverflowError):
            return None
    if datatype.is_float and not all_finite(packed):
        return None
    return packed


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) <= _EXACT


def _culprit(flat: list[Any], datatype: Datatype, sizes: tuple[int, ...], subject: str) -> str:
    problem = f"{subject} must hold {datatype.name} values ({datatype.values})"
    # Whole chunks first, so that a bad value at the end of a large body costs about as much as a good body.
    start = next(start for start in range(0, len(flat), _CHUNK) if not _fit(flat[start : start + _CHUNK], datatype))
    index = next(index for index in range(start, len(flat)) if not _fit(flat[index : index + 1], datatype))
    value = flat[index]
    text = f"{problem}, however: element {_place(index, sizes)} is {describe(value)}"
    if type(value) is float and abs(value) > _EXACT and not datatype.is_float:
        text += "; beyond 2**53 they must be written without a fraction or exponent"
    return text


def _fit(values: list[Any], datatype: Datatype) -> bool:
    types = set(map(type, values))
    if datatype.name == "BOOL":
        return types == {bool}
    return types <= {int, float} and _pack_numbers(values, datatype) is not None


def _not_lists(level: list[Any], depth: int, rank: int, sizes: tuple[int, ...], subject: str, layout: str) -> str:
    index = next(index for index, value in enumerate(level) if type(value) is not list)
    found = f"element {_place(index, sizes)} is {describe(level[index])}"
    text = f"{subject} must be lists nested {rank} deep as {layout}, however: {found}"
    batch_is_missing = depth == rank - 1 and list not in set(map(type, level))
    return f"{text}; a single row is a batch of one: [[...]]" if batch_is_missing else text


def _ragged(level: list[list[Any]], sizes: tuple[int, ...], subject: str) -> str:
    first = len(level[0])
    index = next(index for index, value in enumerate(level) if len(value) != first)
    return (
        f"{subject} must hold lists of equal length, however: element {_place(0, sizes)} has {first} and "
        f"element {_place(index, sizes)} has {len(level[index])}"
    )


def _place(index: int, sizes: tuple[int, ...]) -> str:
    places = []
    for size in reversed(sizes):
        index, place = divmod(index, size)
        places.append(f"[{place}]")
    return "".join(reversed(places))

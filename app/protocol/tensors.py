"""Tensors between the wire and numpy: from JSON values, from raw bytes, and back to JSON.

A `TensorSpec` says what a model takes: a name, a datatype and a shape whose first dimension is the batch.
Every way in which a client's tensor can differ from it is a `BadRequest` that names the input, what was wrong
and what would be right. Nothing is ever allocated from a shape that a client declared: memory follows from
the data that is there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES, Datatype, all_finite
from app.protocol.nested import pack, unnest
from app.protocol.wording import describe, listing

__all__ = [
    "MAX_ELEMENTS",
    "TensorSpec",
    "array_from_bytes",
    "array_from_json",
    "array_to_json",
    "checked_shape",
]

MAX_ELEMENTS = 2**40
# numpy before version 2 has no more.
_MAX_RANK = 32
_MOST_SIZES_SHOWN = 6


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output.

    Attributes:
        name: as clients call it.
        datatype: the protocol's name of it, such as "FP32".
        shape: -1 stands for any size; the first is the batch and always -1.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise ValueError(f"datatype must be one of {listing(DATATYPES)}, however: {self.datatype!r}")
        if not 1 <= len(self.shape) <= _MAX_RANK or self.shape[0] != -1 or min(self.shape) < -1:
            raise ValueError(f"shape must be -1 for the batch, then sizes of -1 or more, however: {self.shape}")

    @cached_property
    def type(self) -> Datatype:
        """The datatype's row of the table."""
        return DATATYPES[self.datatype]

    @cached_property
    def layout(self) -> str:
        """The shape in words, such as [batch, 3, any, any]."""
        sizes = ("any" if size == -1 else str(size) for size in self.shape[1:])
        return f"[{', '.join(('batch', *sizes))}]"

    @cached_property
    def subject(self) -> str:
        """How an error names this tensor."""
        return f"input {self.name!r}"


def checked_shape(shape: object, spec: TensorSpec) -> tuple[int, ...]:
    """A shape that a client declared, once it is known to be one that the spec allows."""
    if not isinstance(shape, list | tuple):
        raise BadRequest(f"{spec.subject} must have a shape such as {spec.layout}, however: {describe(shape)}")
    sizes = tuple(shape)
    _element_count(sizes, spec.subject)
    _check_sizes(sizes, spec)
    return sizes


def array_from_json(
    data: object, spec: TensorSpec, shape: object = None, *, may_hold_booleans: bool = True
) -> NDArray[Any]:
    """A new C-contiguous array of the spec's datatype from an already parsed JSON value.

    Args:
        data: nested lists; or, if `shape` is given, nested or flat in row-major order.
        spec: what the model takes.
        shape: the shape that the client declared, not yet checked, or None to read it off the nesting.
        may_hold_booleans: False promises that the document has no `true` or `false` anywhere, which is cheap
            to find in its bytes and saves looking for booleans among the numbers.
    """
    if not spec.type.in_json:
        raise BadRequest(
            f"{spec.subject} is {spec.datatype}, which travels in binary only: send it with "
            "binary_data_size, as the V2 protocol's binary extension says"
        )
    declared = None if shape is None else checked_shape(shape, spec)
    if type(data) is not list:
        raise BadRequest(f"{spec.subject} must have data that is a list of numbers, however: {describe(data)}")
    if declared is not None and (not data or type(data[0]) is not list):
        sizes: tuple[int, ...] = (len(data),)
        flat = data
        if len(data) != math.prod(declared):
            raise BadRequest(_wrong_count(len(data), declared, spec))
    else:
        sizes, flat = _unnested(data, spec, declared)
    array = pack(flat, spec.type, sizes, subject=spec.subject, may_hold_booleans=may_hold_booleans)
    return array.reshape(sizes if declared is None else declared)


def array_from_bytes(
    buffer: memoryview, datatype: Datatype, shape: Sequence[int], *, subject: str = "the tensor"
) -> NDArray[Any]:
    """An array over little-endian, row-major bytes, without a copy.

    The array is read-only if the buffer is, and need not be aligned, as JSON of any length comes before it:
    copy it into the batch, do not compute on it in place. NaN and infinity pass.
    """
    count = _element_count(tuple(shape), subject)
    if count * datatype.size != buffer.nbytes:
        raise BadRequest(
            f"{subject} must have {count * datatype.size} bytes, as {datatype.name} {_shown(shape)} takes, "
            f"however: {buffer.nbytes}"
        )
    if count == 0:
        return np.empty(tuple(shape), dtype=datatype.dtype)
    if datatype.name == "BOOL" and np.frombuffer(buffer, dtype=np.uint8).max() > 1:
        raise BadRequest(f"{subject} must hold BOOL bytes that are 0 or 1, however: some byte is larger")
    return np.frombuffer(buffer, dtype=datatype.dtype).reshape(tuple(shape))


def array_to_json(array: NDArray[Any]) -> tuple[Any, bool]:
    """What orjson with OPT_SERIALIZE_NUMPY writes fast and exactly, and whether any of it becomes null.

    JSON has no NaN or infinity, and orjson writes null for them. A float32 is written with the fewest digits
    that give the same float32 again.
    """
    had_nonfinite = array.dtype.kind == "f" and not all_finite(array)
    # Exact, and not every orjson that the project allows writes float16.
    dtype = np.dtype(np.float32) if array.dtype == np.float16 else array.dtype.newbyteorder("=")
    if array.ndim == 0:
        return array.astype(dtype)[()], had_nonfinite
    return np.ascontiguousarray(array, dtype=dtype), had_nonfinite


def _unnested(data: list[Any], spec: TensorSpec, declared: tuple[int, ...] | None) -> tuple[tuple[int, ...], list[Any]]:
    if not data:
        raise BadRequest(f"{spec.subject} must have at least one row, however: the batch is empty")
    sizes, flat = unnest(data, len(spec.shape), subject=spec.subject, layout=spec.layout)
    if flat and type(flat[0]) is list:
        raise BadRequest(f"{spec.subject} must be lists nested {len(sizes)} deep as {spec.layout}, however: deeper")
    if declared is None:
        _element_count(sizes, spec.subject)
        _check_sizes(sizes, spec)
    elif sizes != declared:
        raise BadRequest(
            f"{spec.subject} must have data that is flat or nested as its shape {_shown(declared)}, "
            f"however: {_shown(sizes)}"
        )
    return sizes, flat


def _element_count(sizes: tuple[Any, ...], subject: str) -> int:
    if len(sizes) > _MAX_RANK:
        raise BadRequest(f"{subject} must have at most {_MAX_RANK} dimensions, however: {len(sizes)}")
    count = 1
    for size in sizes:
        if type(size) is not int or size < 0:
            raise BadRequest(f"{subject} must have a shape of whole numbers from 0 up, however: {describe(size)}")
        # A later zero must not hide that the product before it is out of bounds.
        count *= size or 1
        if count > MAX_ELEMENTS:
            raise BadRequest(f"{subject} must have a shape whose product is at most {MAX_ELEMENTS}")
    return 0 if 0 in sizes else count


def _check_sizes(sizes: tuple[int, ...], spec: TensorSpec) -> None:
    if len(sizes) == len(spec.shape):
        if sizes[0] == 0:
            raise BadRequest(f"{spec.subject} must have at least one row, however: the batch is empty")
        if all(size == wanted or (wanted == -1 and size > 0) for size, wanted in zip(sizes, spec.shape, strict=True)):
            return
    text = f"{spec.subject} must have the shape {spec.layout}, however: {_shown(sizes)}"
    if len(sizes) == len(spec.shape) - 1 and all(
        wanted in (-1, size) for size, wanted in zip(sizes, spec.shape[1:], strict=True)
    ):
        text += f"; a single row is a batch of one: {_shown((1, *sizes))}"
    elif 0 in sizes:
        text += "; no dimension may be empty"
    raise BadRequest(text)


def _wrong_count(count: int, declared: tuple[int, ...], spec: TensorSpec) -> str:
    return (
        f"{spec.subject} must have {math.prod(declared)} numbers, as its shape {_shown(declared)} says, "
        f"however: {count}"
    )


def _shown(sizes: Sequence[int]) -> str:
    few = [str(size) for size in sizes[:_MOST_SIZES_SHOWN]]
    return f"[{', '.join(few if len(sizes) <= _MOST_SIZES_SHOWN else (*few, '...'))}]"

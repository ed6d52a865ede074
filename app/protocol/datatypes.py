"""The datatypes of the Open Inference Protocol: name, numpy dtype, size, and what JSON may carry.

On the wire a tensor is little-endian and row-major, and BOOL takes one byte. FP16 and BF16 travel in binary
only. BYTES is missing from the table: the protocol has it, but models here take and give numbers.

numpy has no bfloat16. In this layer a BF16 tensor is an array of uint16 bit patterns, and `bfloat16_bits` and
`bfloat16_values` go between these and float32. A bfloat16 is the upper half of a float32, so going back is
exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.protocol.wording import listing

__all__ = ["DATATYPES", "Datatype", "all_finite", "bfloat16_bits", "bfloat16_values", "datatype_of"]


@dataclass(frozen=True)
class Datatype:
    """One row of the table.

    Attributes:
        name: as the protocol spells it.
        dtype: the little-endian numpy dtype; uint16 bit patterns for BF16.
        in_json: whether tensors of this datatype may travel as JSON.
        code: the letter of the `struct` module.
        values: what an element may be in JSON, in words.
    """

    name: str
    dtype: np.dtype[Any]
    in_json: bool
    code: str
    values: str

    @property
    def size(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether JSON elements are numbers with a fraction."""
        return self.name.startswith("FP")


def _integer(name: str, dtype: str, code: str) -> Datatype:
    limits = np.iinfo(np.dtype(dtype))
    return Datatype(name, np.dtype(dtype), True, code, f"whole numbers from {limits.min} to {limits.max}")


_ROWS = (
    Datatype("BOOL", np.dtype("?"), True, "?", "true or false"),
    _integer("UINT8", "<u1", "B"),
    _integer("UINT16", "<u2", "H"),
    _integer("UINT32", "<u4", "I"),
    _integer("UINT64", "<u8", "Q"),
    _integer("INT8", "<i1", "b"),
    _integer("INT16", "<i2", "h"),
    _integer("INT32", "<i4", "i"),
    _integer("INT64", "<i8", "q"),
    Datatype("FP16", np.dtype("<f2"), False, "e", "binary data"),
    Datatype("BF16", np.dtype("<u2"), False, "H", "binary data"),
    Datatype("FP32", np.dtype("<f4"), True, "f", "finite numbers up to ±3.4028235e+38"),
    Datatype("FP64", np.dtype("<f8"), True, "d", "finite numbers"),
)
DATATYPES: Mapping[str, Datatype] = MappingProxyType({row.name: row for row in _ROWS})
_BY_DTYPE = {row.dtype: row for row in _ROWS if row.name != "BF16"}


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """The datatype whose elements a numpy array of this dtype holds (uint16 is UINT16, never BF16).

    Raises:
        ValueError: the protocol has no datatype for it.
    """
    try:
        return _BY_DTYPE[dtype.newbyteorder("<")]
    except KeyError:
        raise ValueError(f"dtype must be one of {listing(DATATYPES)}, however: {dtype}") from None


def all_finite(array: NDArray[Any]) -> bool:
    """Whether no number is NaN or infinite."""
    # For few numbers counting takes a fifth of the time of `all`.
    return bool(np.count_nonzero(np.isfinite(array)) == array.size)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 to bfloat16 bit patterns, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).reshape(values.shape)
    upper = bits >> np.uint32(16)
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    # Rounding would carry a NaN's low bits into infinity or the sign; setting the quiet bit keeps it a NaN.
    return np.where(np.isnan(values), upper | np.uint32(0x40), rounded).astype(np.uint16)


def bfloat16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bit patterns to the float32 numbers that they stand for, exactly."""
    wide = np.left_shift(bits, 16, dtype=np.uint32)
    return np.asarray(wide).view(np.float32)

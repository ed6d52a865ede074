"""Standard normal numbers that are a pure function of (seed, member, parameter, position).

Member 17 must be the same, bit for bit, in an ensemble of 20 and of 2,000, on every machine (the design's rule 1).
Two things stand in the way of that: generators whose state depends on what was drawn before, and transforms to the
normal distribution that call ``log``, ``cos`` or ``exp``, whose last bit differs between C libraries.

The bits therefore come from Philox4x64-10, a counter-based generator (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011), keyed by a BLAKE2b hash of (seed, member, parameter); NumPy guarantees the raw stream of
its bit generators. The transform is the inverse distribution function by a table, evaluated with integer operations
and single IEEE additions and multiplications alone, which round alike everywhere: one bit is the sign, 31 are the
tail probability p; each octave of p is cut into 64 segments, and in each a parabola runs through three exact values.
Its error is below 5e-7 and the largest magnitude is 6.34.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, MutableMapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_OCTAVES = 32
_SEGMENT_BITS = 6
_FRACTION_BITS = 23 - _SEGMENT_BITS
# float32 bit patterns are ordered like their values, so their high bits number the segments of 0.5 .. 2**31.
_FIRST_SEGMENT = (127 - 1) << _SEGMENT_BITS
# Values are rounded to this grid before the parabolas are laid through them: no value lies within 1e-12 of the
# middle between two grid points (a test shows it), so a C library's error of 1e-15 cannot change the table.
_GRID = 2.0**24
_BLOCK = 1 << 18
_WORD = 2**64 - 1


def _tail_quantile(p: float) -> float:
    """z with P(|Z| > z) = p, on the grid."""
    return round(-NormalDist().inv_cdf(p / 2) * _GRID) / _GRID if p < 1 else 0.0


@functools.cache
def _parabolas() -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients c0, c1, c2, each (segments,): z(t) = c0 + t (c1 + t c2) for t in [0, 1) across a segment."""
    per_octave = 1 << _SEGMENT_BITS
    knots = [
        math.ldexp(1 + half / (2 * per_octave), octave - _OCTAVES)
        for octave in range(_OCTAVES)
        for half in range(2 * per_octave)
    ]
    z = np.array([*map(_tail_quantile, knots), 0.0, 0.0, 0.0])
    left, middle, right = z[:-2:2], z[1:-1:2], z[2::2]
    coefficients = (left, 4 * middle - 3 * left - right, 2 * (left + right) - 4 * middle)
    c0, c1, c2 = (torch.from_numpy(c.astype(np.float32)) for c in coefficients)
    return c0, c1, c2


def _key(seed: int, member: int, parameter: str) -> int:
    text = f"{seed}\0{member}\0{parameter}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"ensembled").digest(), "little")


def stream(seed: int, member: int, purpose: str) -> np.random.Philox:
    """Random bits of one member for one purpose: ``random_raw`` gives 64 at a time, the same on every machine."""
    return np.random.Philox(key=_key(seed, member, purpose))


def _normal_from_bits(bits: Tensor) -> Tensor:
    """int32 (n,) random bits -> float32 (n,) standard normal."""
    position = ((bits >> 1) & 0x7FFFFFFF).to(torch.float32).add_(0.5)
    pattern = position.view(torch.int32)
    segment = (pattern >> _FRACTION_BITS).sub_(_FIRST_SEGMENT)
    t = (pattern & ((1 << _FRACTION_BITS) - 1)).to(torch.float32).mul_(2.0**-_FRACTION_BITS)
    c0, c1, c2 = _parabolas()
    z = c2[segment].mul_(t).add_(c1[segment]).mul_(t).add_(c0[segment])
    # The lowest bit becomes the sign bit of the result.
    return (z.view(torch.int32) ^ (bits << 31)).view(torch.float32)


def standard_normal(seed: int, members: range, parameter: str, shape: Sequence[int]) -> Tensor:
    """Draw E for every member of a range.

    Returns:
        float32 tensor of shape (len(members), *shape) on the CPU. Row k depends on ``seed``, ``members[k]``,
        ``parameter`` and the position within the row alone.
    """
    size = math.prod(shape)
    out = torch.empty((len(members), size), dtype=torch.float32, device="cpu")
    words = (size + 1) // 2
    # Several small rows at a time, or a piece of a large one: the temporaries stay small beside the result.
    rows, width = max(1, _BLOCK // max(size, 1)), min(words, _BLOCK // 2)
    for start in range(0, len(members), rows):
        for left, raw in _raw(seed, members[start : start + rows], parameter, words, width):
            bits = torch.from_numpy(raw.view("<i4").astype(np.int32, copy=False))
            piece = out[start : start + rows, 2 * left : 2 * (left + raw.shape[1])]
            piece.copy_(_normal_from_bits(bits[:, : piece.shape[1]].reshape(-1)).view(piece.shape))
    return out.view(len(members), *shape)


def _raw(
    seed: int, members: range, parameter: str, words: int, width: int
) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.uint64]]]]:
    """Random bits of every member, at most ``width`` words at a time: where they begin, and (members, words)."""
    if words <= width:
        # A generator costs several times as much to make as to set to another key.
        generator = np.random.Philox(key=0)
        state: Any = generator.state
        raw = np.empty((len(members), words), dtype="<u8")
        for row, member in enumerate(members):
            key = _key(seed, member, parameter)
            state["state"]["key"] = np.array([key & _WORD, key >> 64], dtype=np.uint64)
            generator.state = state
            raw[row] = generator.random_raw(words)
        yield 0, raw
        return
    streams = [stream(seed, member, parameter) for member in members]
    for left in range(0, words, max(width, 1)):
        taken = min(width, words - left)
        yield left, np.stack([each.random_raw(taken) for each in streams]).astype("<u8", copy=False)


# A request that brings its own seed has them all again; with the version of the weight that each was computed of.
_known: MutableMapping[Tensor, tuple[int, float]] = WeakTensorKeyDictionary()


def root_mean_square(weight: Tensor) -> float:
    """√(mean of squares), by a summation tree of fixed shape so that every machine gets the same bits."""
    if weight.is_inference():
        # It does not say when it changes.
        return _root_mean_square(weight)
    version, found = _known.get(weight, (-1, 0.0))
    if version != weight._version:
        found = _root_mean_square(weight)
        _known[weight] = weight._version, found
    return found


def _root_mean_square(weight: Tensor) -> float:
    flat = weight.detach().to("cpu").reshape(-1)
    size = flat.numel()
    if size == 0:
        return 0.0
    # The first level in pieces, since a float64 copy of the weight would be twice its size.
    left = (size + 1) // 2
    sums = torch.empty(left, dtype=torch.float64, device="cpu")
    for start in range(0, left, _BLOCK):
        stop = min(left, start + _BLOCK)
        sums[start:stop] = flat[start:stop].double().square()
        upper = flat[left + start : left + stop].double().square()
        sums[start : start + len(upper)] += upper
    while left > 1:
        half = (left + 1) // 2
        sums[: left - half] += sums[half:left]
        left = half
    return math.sqrt(float(sums[0]) / size)

"""What the members answer as plain modules, one after the other: every way is held to it before it is timed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.models import MODELS, Case
from benchmarks.speed.worker import RefusedError

# In float32, relative to the largest magnitude.
BOUND = 1e-4
MOST = 192


def order(members: int, first: int) -> list[int]:
    """The first so many members, then others in an order of which every beginning is spread over all."""
    bits = max(1, math.ceil(math.log2(max(2, members))))
    spread = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    head = list(range(min(first, members)))
    return [*head, *(index for index in spread if len(head) <= index < members)][:MOST]


def write(model: str, recipe: str, members: int, batches: Sequence[int], path: Path, seconds: float) -> int:
    """Answers of a model's members by a recipe, kept in a file.

    Args:
        members: of the largest ensemble; member i is the same in a smaller one.
        batches: numbers of rows.
        seconds: when they are spent, no further member is computed; at least 4 are.

    Returns:
        How many members were computed.
    """
    case = MODELS[model]()
    begun = time.perf_counter()
    indices: list[int] = []
    found: dict[int, list[np.ndarray]] = {rows: [] for rows in batches}
    for index in order(members, 16):
        if len(indices) >= 4 and time.perf_counter() - begun > seconds:
            break
        module = _member(case, recipe, index)
        indices.append(index)
        with torch.no_grad():
            for rows in batches:
                found[rows].append(module(*case.inputs(rows)).numpy())
    arrays = {f"rows{rows}": np.stack(outputs) for rows, outputs in found.items()}
    with path.open("wb") as file:
        np.savez(file, indices=np.array(indices), **arrays)  # type: ignore[arg-type]
    return len(indices)


def _member(case: Case, recipe: str, index: int) -> torch.nn.Module:
    module = copy.deepcopy(case.module).requires_grad_(False)
    parameters = dict(module.named_parameters())
    for _, name, value in case.drawn(recipe, range(index, index + 1)):
        parameters[name].copy_(value[0])
    return module


def difference(outputs: np.ndarray, path: Path, rows: int) -> tuple[float, int]:
    """How far outputs, (members, rows, ...), are from the reference, relative to its largest magnitude.

    Returns:
        That, and how many members were compared.

    Raises:
        RefusedError: the outputs are wrong.
    """
    with np.load(path) as kept:
        indices, want = kept["indices"], kept[f"rows{rows}"]
    among = indices < len(outputs)
    want, got = want[among].astype(np.float64), outputs[indices[among]].astype(np.float64)
    if got.shape != want.shape:
        raise RefusedError(f"wrong: outputs of shape {list(outputs.shape[1:])} instead of {list(want.shape[1:])}")
    error = float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-30))
    # Not "error > BOUND": a NaN is wrong too.
    if not error <= BOUND:
        raise RefusedError(f"wrong: differs from the loop by {error:.1e}")
    return error, int(among.sum())

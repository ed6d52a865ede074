"""Rows that each member is trained on, in which order, and is judged by: a function of (seed, member) alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.random import stream

# A mean over so many rows is known well enough; more that are held back are not looked at.
MOST_HELD = 4096
_HELD_BACK = 0.1


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of some members.

    Args:
        seed: of the members' random streams.
        members: their numbers.
        own: rows that each member is trained on, (members, rows) int64; of a resample some more than once.
        held: rows that each is judged by, (members, most) int64; where one has fewer, filled up with row 0. None where
            none are held back.
        counts: how many of them are a member's own, (members,) int64.
    """

    seed: int
    members: range
    own: Tensor
    held: Tensor | None
    counts: Tensor

    @staticmethod
    def draw(seed: int, members: range, rows: int, *, bootstrap: bool, hold_back: bool) -> Rows:
        """Draw them.

        Args:
            rows: how many there are.
            bootstrap: each member is trained on a resample of its own, as many rows drawn with replacement (bagging;
                Breiman 1996), and may be judged by the rows that were not drawn, about 37 %; else it is trained on
                all rows, or on all but a tenth.
            hold_back: keep rows back to judge it by.

        Raises:
            RecipeError: too few rows to keep one back.
        """
        own: list[Tensor] = []
        held: list[Tensor] = []
        for member in members:
            random = stream(seed, member, "rows")
            if bootstrap:
                picked = (random.random_raw(rows) % np.uint64(rows)).astype(np.int64)
                left = np.setdiff1d(np.arange(rows), picked)
            else:
                picked, left = np.arange(rows), np.arange(0)
            if hold_back and not bootstrap:
                order, kept = _shuffled(random, rows), round(_HELD_BACK * rows)
                picked, left = np.sort(order[kept:]), order[:kept]
            if hold_back and len(left) > MOST_HELD:
                left = left[_shuffled(random, len(left))[:MOST_HELD]]
            own.append(torch.from_numpy(picked))
            held.append(torch.from_numpy(left))
        counts = torch.tensor([len(some) for some in held])
        filled = None
        if hold_back:
            if int(counts.min()) == 0:
                raise RecipeError(
                    f"Of {rows} row{'s' if rows > 1 else ''} none is left to be held back from every member: give more "
                    "data, or early_stopping=False."
                )
            filled = torch.zeros(len(members), int(counts.max()), dtype=torch.long)
            for place, some in enumerate(held):
                filled[place, : len(some)] = some
        return Rows(seed, members, torch.stack(own), filled, counts)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Rows of one step after the other, (members, size), without end.

        A member goes through its rows in a new order each time. What is left over at the end, fewer than ``size``, is
        skipped, so that every step is the same work; the next order begins with other rows.
        """
        streams = [stream(self.seed, member, "order of rows") for member in self.members]
        rows = self.own.shape[1]
        size = min(size, rows)
        while True:
            order = torch.from_numpy(np.stack([_shuffled(each, rows) for each in streams]))
            mixed = self.own.gather(1, order)
            for start in range(0, rows - size + 1, size):
                yield mixed[:, start : start + size]


def _shuffled(random: np.random.Philox, count: int) -> np.ndarray:
    # An order by random numbers; NumPy's own shuffling may change from version to version.
    return np.argsort(random.random_raw(count), kind="stable")

"""Which held-out rows choose settings, which vouch for intervals, and what recipes learn from."""

from __future__ import annotations

import dataclasses
import math

import torch

from ensemble.calibration.conformal import required_rank
from ensemble.data import Data
from ensemble.errors import InputError

LEAST_ROWS = 20
# More rows than these tell settings no better apart than noise does, nor thresholds.
MOST_SELECTING = 5000
MOST_CONFORMAL = 10_000
_FEW = 100
_LEAST_LEARNING = 200


@dataclasses.dataclass(frozen=True)
class Rows:
    """The parts of what was given, no row in two of them.

    Args:
        learning: what recipes that depend on data make their members from; None if there is nothing for them.
        selection: rows that settings are compared on.
        conformal: rows that are used for nothing but thresholds; None if none are set aside.
        notes: what a user should know of them.
    """

    learning: Data | None
    selection: Data
    conformal: Data | None
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows each part has."""
        return {
            "learning": len(self.learning) if self.learning else 0,
            "selection": len(self.selection),
            "conformal": len(self.conformal) if self.conformal else 0,
        }


def divide(
    data: Data,
    validation: Data | None,
    *,
    conformal: float,
    confidence_level: float,
    seed: int,
    learns: bool = False,
    most: int = MOST_SELECTING,
) -> Rows:
    """Split what was given.

    Args:
        data: rows that the model was not trained on; with ``validation`` what recipes learn from instead.
        validation: rows that the model was not trained on.
        conformal: share of the held-out rows that is set aside for thresholds, in [0, 1); 0 for none.
        confidence_level: that intervals are to hold at.
        seed: of the random split.
        learns: whether a recipe was asked for that needs rows to learn from.
        most: how many rows at most select.

    Raises:
        InputError: too few rows, or a share that is none.
    """
    if not isinstance(conformal, int | float) or isinstance(conformal, bool) or not 0 <= conformal < 1:
        raise InputError(f"conformal must be a share of the rows from 0 (none) to below 1, however: {conformal!r}.")
    held = data if validation is None else validation
    if len(held) < LEAST_ROWS:
        raise InputError(
            f"Fitting needs at least {LEAST_ROWS} rows that the model was not trained on, however: {len(held)}. With "
            "so few, give the recipe and its scale to perturb()."
        )
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))
    total, learning = len(held), data if validation is not None else None
    taken = 0
    if validation is None and learns:
        taken = round(total / 3)
        learning = held.rows(order[:taken])
    left = total - taken
    aside = min(MOST_CONFORMAL, round(conformal * left))
    selecting = min(most, left - aside)
    spare = left - aside - selecting
    if validation is None and not learns and spare >= _LEAST_LEARNING:
        learning = held.rows(order[total - spare :])
    parts = Rows(
        learning,
        held.rows(order[taken + aside : taken + aside + selecting]),
        held.rows(order[taken : taken + aside]) if aside else None,
        tuple(_notes(selecting, aside, conformal, confidence_level)),
    )
    if selecting < LEAST_ROWS // 2:
        raise InputError(
            f"Of {total} held-out rows {selecting} are left to choose by, which are too few; lower conformal= "
            f"({conformal})."
        )
    return parts


def _notes(selecting: int, aside: int, conformal: float, level: float) -> list[str]:
    found = []
    if selecting < _FEW:
        found.append(
            f"Only {selecting} rows choose the settings, so many settings stay likely and are averaged; from about "
            f"{_FEW} rows on the choice is dependable."
        )
    if conformal and required_rank(aside, level) > aside:
        needed = math.ceil(level / (1 - level) - 1e-9)
        found.append(
            f"{aside} rows set aside for intervals vouch for none at a confidence level of {level:g}: they will be "
            f"infinite. At least {needed} such rows are needed."
        )
    return found

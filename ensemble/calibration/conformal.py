"""Conformal prediction: intervals and sets that hold the target as often as they say, whatever the model.

Split conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Papadopoulos et
al., "Inductive Confidence Machines for Regression", 2002). Scores say how strange a target is to the model. Of n rows
that were used for nothing else, the ⌈(n + 1) level⌉-th smallest is the threshold, and what is not stranger than that
is in the interval or the set. A new row that is exchangeable with those n is then covered with a probability of at
least ``level``, and of at most ``level`` + 1 / (n + 1) where no scores are equal. That is over rows and calibrations
together: it says nothing of one row, and of rows from elsewhere.

All functions are pure, compute in float64, and treat each element of a target by itself.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from ensemble.errors import InputError


def lac(probabilities: Tensor, targets: Tensor) -> Tensor:
    """1 − p of the true class: the least ambiguous set-valued classifier (Sadinle, Lei and Wasserman, 2019).

    Args:
        probabilities: (rows, ..., classes).
        targets: class indices, (rows, ...) int64.

    Returns:
        Scores, (rows, ...).
    """
    return 1 - probabilities.double().gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def aps(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The summed probability of the classes down to the true one, the most probable first: adaptive prediction sets
    (Romano, Sesia and Candès, 2020), without randomisation, so that the same row always gets the same set.

    Args:
        probabilities, targets: as for :func:`lac`.

    Returns:
        Scores, (rows, ...).
    """
    return _cumulated(probabilities).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def normalised(mean: Tensor, std: Tensor, targets: Tensor) -> Tensor:
    """|y − mean| / std (Lei et al., "Distribution-Free Predictive Inference for Regression", 2018).

    Args:
        mean, std, targets: (rows, ...). Where std is 0 the score is 0 for a target that is the mean, else infinite.

    Returns:
        Scores, (rows, ...).
    """
    distance = (targets.double() - mean.double()).abs()
    return torch.where(distance == 0, 0.0, distance / std.double())


def cqr(lower: Tensor, upper: Tensor, targets: Tensor) -> Tensor:
    """max(lower − y, y − upper): conformalised quantile regression (Romano, Patterson and Candès, 2019).

    Args:
        lower, upper: quantiles of the prediction, (rows, ...).
        targets: (rows, ...).

    Returns:
        Scores, (rows, ...), below 0 inside the quantiles.
    """
    y = targets.double()
    return torch.maximum(lower.double() - y, y - upper.double())


def threshold(scores: Tensor, level: float) -> Tensor:
    """The ⌈(n + 1) level⌉-th smallest of n scores.

    Args:
        scores: ascending along the first dimension, (n, ...).
        level: between 0 and 1.

    Returns:
        (...), infinite where that rank exceeds n: so few scores vouch for no bound.

    Raises:
        InputError: no level.
    """
    rank = required_rank(len(scores), level)
    if rank > len(scores):
        return torch.full(scores.shape[1:], math.inf, dtype=torch.float64, device=scores.device)
    return scores[rank - 1].double()


def required_rank(rows: int, level: float) -> int:
    """⌈(rows + 1) level⌉, exact for a level as it is written: 100 · 0.07 is 7, and not the next double after it.

    Raises:
        InputError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"A confidence level must be between 0 and 1, such as 0.9, however: {level}.")
    return math.ceil((rows + 1) * Fraction(repr(float(level))))


def normalised_interval(mean: Tensor, std: Tensor, threshold: Tensor) -> Tensor:
    """The targets whose :func:`normalised` score is at most the threshold: mean ∓ threshold · std.

    Args:
        mean, std: (rows, ...).
        threshold: (...).

    Returns:
        Lower and upper ends, (rows, ..., 2); of an infinite threshold from −∞ to ∞.
    """
    # Infinity times a std of 0 would be no number.
    half = torch.where(threshold.isinf(), threshold, threshold * std.double())
    return torch.stack([mean.double() - half, mean.double() + half], -1)


def cqr_interval(lower: Tensor, upper: Tensor, threshold: Tensor) -> Tensor:
    """The targets whose :func:`cqr` score is at most the threshold: the quantiles, moved apart by it.

    Args:
        lower, upper: quantiles of the same levels as the scores were made with, (rows, ...).
        threshold: (...); below 0 it moves the ends together, until they meet in the middle.

    Returns:
        Lower and upper ends, (rows, ..., 2).
    """
    low, high = lower.double() - threshold, upper.double() + threshold
    middle = (lower.double() + upper.double()) / 2
    return torch.stack([torch.where(low > high, middle, low), torch.where(low > high, middle, high)], -1)


def lac_set(probabilities: Tensor, threshold: Tensor) -> Tensor:
    """The classes whose :func:`lac` score is at most the threshold.

    The set may be empty, as in the literature: no class is probable enough, which tells that the row is unlike those
    that were calibrated with. It counts as not covered, and coverage holds all the same.

    Args:
        probabilities: (rows, ..., classes). Where one is no number the set is every class.
        threshold: (...).

    Returns:
        Which classes are in the set, (rows, ..., classes) bool.
    """
    outside: Tensor = 1 - probabilities.double() > threshold.unsqueeze(-1)
    return ~outside


def aps_set(probabilities: Tensor, threshold: Tensor) -> Tensor:
    """The classes whose :func:`aps` score is at most the threshold, and always the most probable class.

    That class alone may exceed the threshold where the model is very sure, and to answer none would then be absurd.
    A set that is larger covers at least as often.

    Args:
        probabilities: (rows, ..., classes). Where one is no number the set is every class.
        threshold: (...).

    Returns:
        Which classes are in the set, (rows, ..., classes) bool.
    """
    outside: Tensor = _cumulated(probabilities) > threshold.unsqueeze(-1)
    return (~outside).scatter(-1, probabilities.argmax(-1, keepdim=True), True)


def percentile(scores: Tensor, values: Tensor) -> Tensor:
    """Which share of the scores lies below each value.

    Args:
        scores: ascending, (n,).
        values: (rows,).

    Returns:
        From 0 to 1, (rows,); not a number where the value is none.
    """
    below = torch.searchsorted(scores.double(), values.double().contiguous())
    return torch.where(values.isnan(), math.nan, below / len(scores))


def _cumulated(probabilities: Tensor) -> Tensor:
    # Equal probabilities keep their order, or scores would depend on what shares a batch.
    ordered, order = torch.sort(probabilities.double(), dim=-1, descending=True, stable=True)
    sums = ordered.cumsum(-1)
    # The last class has summed all, which rounding must not put above a threshold of 1.
    return torch.empty_like(sums).scatter(-1, order, sums / sums[..., -1:])

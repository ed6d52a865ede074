"""Quantiles of the mixture that members are.

The quantile of level p is the smallest t at which the mixture's distribution function F(t) = Σ w_i F_i(t) reaches p. Of
a mixture it is found by a search: it is neither the mean of the members' quantiles nor a quantile of the one Gaussian
that has the mixture's mean and variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

# Elements of the temporaries of one search; more are searched one part after the other.
_AT_ONCE = 2**19
# How near the distribution function comes to the level, as a share of the smaller of level and 1 − level.
_NEAR = 1e-12
_MOST_STEPS = 200


def quantiles(
    values: Tensor, variances: Tensor | None, levels: Sequence[float], weights: Tensor | None = None
) -> Tensor:
    """Quantiles of a mixture of Gaussians, or where there are no variances of the members' values.

    Args:
        values: the members' means, (members, ...).
        variances: theirs, ≥ 0, what broadcasts to the means; None if each member stands for its value alone.
        levels: between 0 and 1.
        weights: of the members, (members,), ≥ 0 and of sum 1; equal by default.

    Returns:
        (..., levels) float64. Not a number where a member that has weight gives none.
    """
    shape = values.shape[1:]
    means = values.double().reshape(len(values), -1)
    spread = None if variances is None else variances.double().expand_as(values).reshape(len(values), -1)
    if weights is not None and not bool((some := weights > 0).all()):
        means, weights = means[some], weights[some]
        spread = None if spread is None else spread[some]
    if spread is None or not bool(spread.any()):
        return _of_values(means, levels, weights).reshape(*shape, len(levels))
    share = torch.full((len(means),), 1 / len(means), dtype=torch.float64, device=means.device)
    share = share if weights is None else weights.to(means.device, torch.float64)
    part = max(1, _AT_ONCE // (len(means) * len(levels)))
    found = [
        _of_gaussians(m, s.sqrt(), share, levels)
        for m, s in zip(torch.split(means, part, 1), torch.split(spread, part, 1), strict=True)
    ]
    return torch.cat(found).reshape(*shape, len(levels))


def _of_values(values: Tensor, levels: Sequence[float], weights: Tensor | None) -> Tensor:
    """(members, elements) -> (elements, levels): values of which the weight up to them reaches the level."""
    ordered, order = values.sort(0)
    if weights is None:
        ranks = [math.ceil(len(values) * Fraction(repr(float(level)))) - 1 for level in levels]
        found = ordered[ranks].T
    else:
        reached = weights.to(values.device, torch.float64)[order].cumsum(0).T.contiguous()
        # A sum that is a level but for its rounding has reached it.
        wanted = torch.tensor(levels, dtype=torch.float64, device=values.device) - _NEAR
        index = torch.searchsorted(reached, wanted.expand(len(reached), -1).contiguous())
        found = ordered.T.gather(1, index.clamp_max(len(values) - 1))
    return torch.where(values.isnan().any(0).unsqueeze(1), torch.nan, found)


def _of_gaussians(means: Tensor, deviations: Tensor, weights: Tensor, levels: Sequence[float]) -> Tensor:
    """(members, elements) -> (elements, levels), by Newton's method in an interval that always holds the root."""
    proper = (means.isfinite() & deviations.isfinite()).all(0)
    mean = torch.where(proper, means, 0.0).unsqueeze(-1)
    deviation = torch.where(proper, deviations, 1.0).unsqueeze(-1)
    sharp = deviation == 0
    any_sharp = bool(sharp.any())
    scale = torch.where(sharp, 1.0, deviation) if any_sharp else deviation
    level = torch.tensor(levels, dtype=torch.float64, device=means.device)

    # At the least of the members' quantiles no member is beyond its level, at the largest all are.
    each = mean + deviation * torch.special.ndtri(level)
    low, high = each.amin(0), each.amax(0)
    point = torch.tensordot(weights, each, dims=1)
    point = torch.minimum(torch.maximum(point, low), high)
    wide = 1e-13 * (high - low) + 1e-15 * torch.maximum(low.abs(), high.abs())
    near = _NEAR * torch.minimum(level, 1 - level)
    found, before = high, torch.full_like(high, math.inf)
    for _ in range(_MOST_STEPS):
        standard = (point - mean) / scale
        if any_sharp:
            standard = torch.where(sharp, torch.where(point >= mean, math.inf, -math.inf), standard)
        above = torch.tensordot(weights, torch.special.ndtr(standard), dims=1) - level
        low, high = torch.where(above < 0, point, low), torch.where(above >= 0, point, high)
        hit = above.abs() <= near
        found = torch.where(hit, point, high)
        done = hit | (high - low <= wide)
        if bool(done.all()):
            break
        density = torch.tensordot(weights, (-0.5 * standard.square()).exp() / scale, dims=1) / math.sqrt(2 * math.pi)
        newton = point - above / density
        # The interval is halved where the last step did not halve the distance from the level, so that the search ends.
        good = (newton > low) & (newton < high) & (above.abs() < before / 2)
        point = torch.where(done, found, torch.where(good, newton, (low + high) / 2))
        before = torch.where(good, above.abs(), math.inf)
    return torch.where(proper.unsqueeze(-1), found, torch.nan)

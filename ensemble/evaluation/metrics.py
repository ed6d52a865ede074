"""How good predictions and their uncertainty are: pure functions of what was predicted and what came.

NLL, RMSE, Brier score, ECE, CRPS, PICP and MPIW, AURC and AUROC as the literature names them. Everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers that the pairs of members of one part may take.
_PAIRS = 2**23


@dataclass(frozen=True)
class Bins:
    """A reliability diagram.

    Attributes:
        expected: what was promised in each bin: mean confidence, or the level of a quantile, (bins,).
        observed: what came: accuracy, or the share of targets below the quantile, (bins,).
        count: rows in each bin, (bins,).
    """

    expected: Tensor
    observed: Tensor
    count: Tensor


def brier(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Σ_c (p_c − 1[c = target])² (Brier, 1950): from 0 to 2, lower is better.

    Args:
        probabilities: (rows, ..., classes).
        targets: class indices, (rows, ...) int64.

    Returns:
        Of each target, (rows, ...).
    """
    truth = torch.nn.functional.one_hot(targets, probabilities.shape[-1])
    return (probabilities.double() - truth).square().sum(-1)


def confidence_bins(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Bins:
    """Accuracy beside confidence, the probability of the label, in bins of equal width; empty ones are left out.

    Args:
        probabilities: (rows, classes).
        targets: (rows,).
    """
    confidence, label = probabilities.double().max(-1)
    # A confidence on an edge belongs to the bin below, as in the original (Guo et al., arXiv 1706.04599).
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(index, minlength=bins)
    some = count > 0
    total = torch.bincount(index, confidence, bins)[some]
    right = torch.bincount(index, (label == targets).double(), bins)[some]
    return Bins(total / count[some], right / count[some], count[some])


def calibration_error(bins: Bins) -> float:
    """ECE: mean over rows of the distance between what was promised and what came."""
    return float(((bins.expected - bins.observed).abs() * bins.count).sum() / bins.count.sum())


def mixture_cdf(targets: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """F(y) = Σ w_i Φ((y − μ_i) / σ_i), the probability integral transform, in [0, 1].

    Args:
        targets: (...).
        means: (members, ...).
        variances: ≥ 0, broadcast to the means.
        weights: (members,), of sum 1.
    """
    away = (targets.double() - means.double()) / variances.double().sqrt().clamp_min(1e-150)
    below: Tensor = torch.tensordot(weights.double(), torch.special.ndtr(away), dims=1)
    return below


def quantile_bins(cdf: Tensor, levels: int = 19) -> Bins:
    """Which share of the targets lies below each quantile of the prediction (Kuleshov et al., arXiv 1807.00263).

    Args:
        cdf: the prediction's distribution function at each target.
        levels: how many, evenly spaced between 0 and 1.
    """
    flat = cdf.double().flatten()
    expected = torch.arange(1, levels + 1, dtype=torch.float64) / (levels + 1)
    observed = torch.searchsorted(flat.sort().values, expected, right=True) / len(flat)
    return Bins(expected, observed, torch.full((levels,), len(flat)))


def crps(targets: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """∫ (F(t) − 1[t ≥ y])² dt of a mixture of Gaussians, in closed form (Grimit et al., 2006); the target's unit.

        Σ w_i A(y − μ_i, σ_i²) − ½ Σ Σ w_i w_j A(μ_i − μ_j, σ_i² + σ_j²),  A(m, s²) = 2 s φ(m/s) + m (2 Φ(m/s) − 1)

    Args:
        targets: (...).
        means, variances, weights: as for :func:`mixture_cdf`.

    Returns:
        Of each target, (...).
    """
    size = len(means)
    center = means.double().reshape(size, -1)
    spread = variances.double().expand(means.shape).reshape(size, -1)
    flat, share = targets.double().flatten(), weights.double()
    part = max(1, _PAIRS // size**2)
    found = []
    for y, mean, variance in zip(
        torch.split(flat, part), torch.split(center, part, 1), torch.split(spread, part, 1), strict=True
    ):
        near = torch.tensordot(share, _absolute(y - mean, variance), dims=1)
        between = _absolute(mean.unsqueeze(0) - mean.unsqueeze(1), variance.unsqueeze(0) + variance.unsqueeze(1))
        found.append(near - 0.5 * torch.einsum("i,j,ijr->r", share, share, between))
    return torch.cat(found).reshape(targets.shape)


def aurc(uncertainty: Tensor, loss: Tensor) -> float:
    """Area under the risk-coverage curve: the mean loss of the k least uncertain rows, averaged over k (Geifman et al.,
    arXiv 1805.08206). Rows of equal uncertainty count as their mean.

    Args:
        uncertainty, loss: (rows,).
    """
    _, group, count = torch.unique(uncertainty.double(), return_inverse=True, return_counts=True)
    mean = torch.zeros(len(count), dtype=torch.float64).index_add_(0, group, loss.double()) / count
    order = group.argsort(stable=True)
    levelled = mean[group][order]
    return float((levelled.cumsum(0) / torch.arange(1, len(levelled) + 1)).mean())


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The probability that a score from outside is above one from inside, ties counting half (Mann and Whitney, 1947).

    Args:
        inside, outside: scores, (rows,) each.
    """
    ordered = inside.double().sort().values
    wanted = outside.double().contiguous()
    below = torch.searchsorted(ordered, wanted)
    upto = torch.searchsorted(ordered, wanted, right=True)
    return float((below + upto).double().mean() / (2 * len(ordered)))


def _absolute(mean: Tensor, variance: Tensor) -> Tensor:
    """E|Z| of Z ~ N(mean, variance)."""
    std = variance.sqrt()
    ratio = mean / std.clamp_min(1e-150)
    density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    found: Tensor = 2 * std * density + mean * (2 * torch.special.ndtr(ratio) - 1)
    return found

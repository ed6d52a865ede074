"""What a method is judged by: log-likelihood of the mixture and RMSE; for classes NLL, accuracy, ECE and AUROC."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


def log_likelihood(means: Tensor, variances: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Log density of targets under a mixture of Gaussians.

    Args:
        means: (members, rows).
        variances: broadcasts to the same.
        targets: (rows,).
        weights: of the members, (members,), of sum 1; equal by default.

    Returns:
        (rows,), nats.
    """
    means, variances = means.double(), variances.double()
    each = -((targets.double() - means).square() / variances + variances.log() + math.log(2 * math.pi)) / 2
    share = torch.full((len(means),), 1 / len(means)).double() if weights is None else weights.double()
    return torch.logsumexp(each + share.log().unsqueeze(1), 0)


def noise_variance(means: Tensor, targets: Tensor, weights: Tensor | None = None) -> float:
    """The noise variance under which the mixture of point members makes targets likeliest, by a fine grid.

    Args:
        means: (members, rows).
        targets: (rows,).
    """
    grid = torch.logspace(-5, 1, 241, dtype=torch.float64)
    found = torch.stack([log_likelihood(means, v.expand(len(means), 1), targets, weights).mean() for v in grid])
    return float(grid[found.argmax()])


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one method on one split's test rows.

    Args:
        log_likelihood: mean over rows, in the target's own units, nats.
        rmse: of the mixture's mean, in the target's own units.
        cost: what making it took besides the one net, in trainings of one net (gradient steps times members).
        seconds: the time that it took.
        note: what was chosen.
    """

    log_likelihood: float
    rmse: float
    cost: float = 0.0
    seconds: float = 0.0
    note: str = ""


def score(
    means: Tensor, variances: Tensor, targets: Tensor, unit: float, weights: Tensor | None = None
) -> tuple[float, float]:
    """Log-likelihood and RMSE in the target's own units, of normalised predictions and targets."""
    share = torch.full((len(means),), 1 / len(means)).double() if weights is None else weights.double()
    mean = (share.unsqueeze(1) * means.double()).sum(0)
    found = log_likelihood(means, variances, targets, weights).mean() - math.log(unit)
    return float(found), float((mean - targets.double()).square().mean().sqrt() * unit)


def closed(value: float, single: float, ensemble: float) -> float | None:
    """The share of the gap between the single net and the deep ensemble that is closed; None where there is none."""
    return None if ensemble == single else (value - single) / (ensemble - single)


def classified(probabilities: Tensor, targets: Tensor, bins: int = 15) -> dict[str, float]:
    """Accuracy, NLL in nats, and expected calibration error over bins of equal width.

    Args:
        probabilities: (rows, classes).
        targets: class indices, (rows,).
    """
    p = probabilities.double()
    sure, label = p.max(-1)
    right = (label == targets).double()
    nll = -p.gather(1, targets.unsqueeze(1)).clamp_min(1e-300).log().mean()
    bin_of = (sure * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, right - sure)
    return {"accuracy": float(right.mean()), "nll": float(nll), "ece": float(gaps.abs().sum() / len(targets))}


def separation(known: Tensor, other: Tensor) -> float:
    """AUROC of the predictive entropy: how often it is higher for another kind of row than for one of the known kinds.

    Args:
        known, other: mean probabilities, (rows, classes).
    """
    entropies = [torch.special.entr(p.double()).sum(-1) for p in (known, other)]
    ranks = torch.cat(entropies)
    # Mann-Whitney, where equal values count a half.
    ordered = ranks.sort().values
    low, high = (torch.searchsorted(ordered, entropies[1], right=right).double() for right in (False, True))
    rank = (low + high + 1) / 2
    n, m = len(known), len(other)
    return float((rank.sum() - m * (m + 1) / 2) / (n * m))

"""Averaging over settings by how likely each makes held-out targets, and what that average is worth on rows not seen.

A cell is one setting: a recipe with its scale, and a noise variance or temperature. With L_c the summed log-likelihood
of cell c its weight is exp(L_c) / Σ exp(L): Bayesian model averaging with equal prior weights. Few rows leave many
cells likely and the average wide; many rows single out the best. The average's likelihood of row i, leaving out row i
from the weights,

    Σ_c exp(L_c − ℓ_ci) exp(ℓ_ci) / Σ_c exp(L_c − ℓ_ci) = Σ exp(L_c) / Σ_c exp(L_c − ℓ_ci),

costs nothing more, so averages are compared by what they give on rows that did not choose their weights.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(cells: Tensor, prior: Tensor | None = None) -> Tensor:
    """Weights of the cells.

    Args:
        cells: log-likelihood of each row under each cell, (cells, rows) float64.
        prior: log prior weights, up to a constant, (cells,); equal by default.

    Returns:
        (cells,), ≥ 0 and of sum 1.
    """
    return _summed(cells, prior).softmax(0)


def left_out(cells: Tensor, prior: Tensor | None = None) -> Tensor:
    """Log-likelihood of each row under the average of the cells, weighted by all other rows, (rows,).

    Args:
        cells, prior: as for :func:`weights`.
    """
    summed = _summed(cells, prior)
    return summed.logsumexp(0) - (summed.unsqueeze(1) - cells).logsumexp(0)


def evidence(cells: Tensor, prior: Tensor | None = None) -> float:
    """Log of the summed likelihood of the cells, by which further settings are told apart."""
    return float(_summed(cells, prior).logsumexp(0))


def gain(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Mean of the rows' differences and its standard error.

    Args:
        ours, theirs: log-likelihoods of the same rows, (rows,).
    """
    difference = ours - theirs
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.tensor(float("inf"))
    return float(difference.mean()), float(error)


def slots(share: Tensor, count: int) -> list[tuple[int, float]]:
    """So many places given to cells in proportion to their weights, each with a weight of its own.

    A cell gets as many places as its weight is worth, the largest remainders first, so that places have nearly equal
    weights; cells that are worth less than half a place get none unless places are left. Cells are spread out, so that
    the first places hold about what all hold.

    Args:
        share: weights of the cells, (cells,).
        count: how many places, ≥ 1.

    Returns:
        (cell, weight) for each place; the weights sum to 1.
    """
    wanted = share.double() * count
    places = wanted.floor()
    remainder = wanted - places
    for cell in remainder.argsort(descending=True, stable=True)[: count - int(places.sum())].tolist():
        places[cell] += 1
    kept = float(share[places > 0].sum())
    found = [
        ((rank + 0.5) / n, cell, float(share[cell]) / n / kept)
        for cell, n in enumerate(map(int, places.tolist()))
        for rank in range(n)
    ]
    return [(cell, weight) for _, cell, weight in sorted(found)]


def _summed(cells: Tensor, prior: Tensor | None) -> Tensor:
    total = cells.sum(1)
    return total if prior is None else total + prior

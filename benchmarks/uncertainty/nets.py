"""Methods that train nets of their own: the single net, deep ensembles, and Monte-Carlo dropout."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from benchmarks.uncertainty import scores
from benchmarks.uncertainty.data import Parts, stacked
from benchmarks.uncertainty.networks import HIDDEN, Head, Weights, dropout, run, variance
from benchmarks.uncertainty.settings import DEEP, MASKS, NETS, RATES, SEED
from benchmarks.uncertainty.training import Schedule, Trained, train


@dataclasses.dataclass(frozen=True)
class Base:
    """Nets of all splits of a data set.

    Args:
        parts: of each split.
        head: what they return.
        plain: ``NETS`` for each split.
        dropped: rate of dropout -> one net for each split.
    """

    parts: list[Parts]
    head: Head
    plain: Trained
    dropped: dict[float, Trained]


def trained(
    parts: list[Parts], head: Head, schedule: Schedule, *, nets: int = NETS, rates: tuple[float, ...] = RATES
) -> Base:
    """Train everything."""
    data, held = (stacked([getattr(p, name) for p in parts]) for name in ("train", "held"))
    plain = train(data, held, nets=nets, head=head, schedule=schedule, seed=SEED)
    dropped = {
        rate: train(data, held, nets=1, head=head, schedule=schedule, seed=SEED + 1, rate=rate) for rate in rates
    }
    return Base(parts, head, plain, dropped)


def single(base: Base, split: int) -> scores.Score:
    """The net that all members are made of."""
    return _mixture(base, split, base.plain.of(split, 1), cost=0.0)


def deep(base: Base, split: int, count: int) -> scores.Score:
    """The first nets of a split, equally weighted."""
    return _mixture(base, split, base.plain.of(split, count), cost=count - 1.0)


def monte_carlo_dropout(base: Base, split: int) -> scores.Score:
    """A net trained with dropout, and its masks when it predicts; the rate, and a noise variance, on held-out rows."""
    found: dict[float, tuple[float, scores.Score]] = {}
    for rate, nets in base.dropped.items():
        weights = {name: w.expand(MASKS, *w.shape[1:]) for name, w in nets.of(split).items()}
        features = weights["hidden.weight"].shape[-1]
        masks = dropout(rate, MASKS, 1, features, HIDDEN, torch.Generator().manual_seed(SEED))
        found[rate] = _judged(base, split, weights, masks, cost=1.0, note=f"rate {rate:g}")
    return max(found.values(), key=lambda pair: pair[0])[1]


def _mixture(base: Base, split: int, weights: Weights, *, cost: float) -> scores.Score:
    return _judged(base, split, weights, None, cost=cost, note="")[1]


def _judged(
    base: Base, split: int, weights: Weights, masks: tuple[Tensor, Tensor] | None, *, cost: float, note: str
) -> tuple[float, scores.Score]:
    """Log-likelihood of the held-out rows, and the score of the test rows."""
    parts, count = base.parts[split], len(weights["output.bias"])

    def predicted(x: Tensor) -> tuple[Tensor, Tensor]:
        found = run(weights, x.expand(count, *x.shape), masks)
        return found[..., 0], variance(found[..., 1]) if base.head == "variance" else torch.empty(0)

    means, variances = predicted(parts.held[0])
    test_means, test_variances = predicted(parts.test[0])
    if base.head == "point":
        noise = scores.noise_variance(means, parts.held[1])
        variances, test_variances = (torch.full_like(m, noise) for m in (means, test_means))
    held = float(scores.log_likelihood(means, variances, parts.held[1]).mean())
    test = scores.score(test_means, test_variances, parts.test[1], parts.unit)
    return held, scores.Score(*test, cost=cost, note=note)


NAMES = ("single", *(f"deep-{count}" for count in DEEP), "mc-dropout")


def scored(base: Base, split: int, name: str) -> scores.Score:
    """One of ``NAMES``."""
    if name == "single":
        return single(base, split)
    if name == "mc-dropout":
        return monte_carlo_dropout(base, split)
    return deep(base, split, int(name.removeprefix("deep-")))

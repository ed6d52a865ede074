"""Running sums over members.

Members' outputs are seen once, a chunk at a time, and only running moments are kept (the design's rule 5). Moments
are float64, merged by the update of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
sample variances", 1979), with weights in the place of counts, which does not cancel as E[x²] − E[x]² does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ensemble.tasks import Sample


class Moments:
    """Running sums over members, of only what the asked statistics need.

    Args:
        needs: which sums to keep: "mean", "deviation", "variance", "entropy", "votes", "likelihood", "values",
            "variances".
        noise_variance: variance of the observation noise where neither the model nor its members give one.
        mixture: weights of all members there are, in the order in which they come, (N,) float64; equal by default.
            Those of the members that were seen are normalised, so that the first few are a mixture, too.

    Attributes:
        count: members seen.
        weight: the sum of their weights; of equal ones their number.
    """

    def __init__(
        self, needs: Iterable[str], noise_variance: float | None = None, mixture: Tensor | None = None
    ) -> None:
        self.needs = frozenset(needs)
        self.noise_variance = noise_variance
        self.mixture = mixture
        self.count = 0
        self.weight = 0.0
        self.mean: Tensor = torch.zeros(())
        self._squares = 0.0
        self._deviation: Tensor = torch.zeros(())
        self._likelihood: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._kept: dict[str, list[Tensor]] = {"values": [], "variances": []}

    def update(self, sample: Sample) -> None:
        """Take in the next members.

        Args:
            sample: their values, (members, batch, ...).
        """
        for name, tensor in (("values", sample.value), ("variances", sample.variance)):
            if name in self.needs and tensor is not None:
                self._kept[name].append(tensor)
        first, self.count = self.count, self.count + sample.value.shape[0]
        if self.mixture is None:
            self._add(sample, None)
            return
        weights = self.mixture[first : self.count]
        if not bool((some := weights > 0).all()):
            # What has no weight has no say, even if it is no number.
            weights, sample = weights[some], sample.members(some.nonzero().squeeze(1))
        if len(weights):
            self._add(sample, weights)

    def _add(self, sample: Sample, weights: Tensor | None) -> None:
        value = sample.value
        new = float(len(value)) if weights is None else float(weights.sum())
        on_device = None if weights is None else weights.to(value.device)
        if "mean" in self.needs or "deviation" in self.needs:
            self._merge(value, new, on_device)
        self.weight += new
        self._squares += new if weights is None else float(weights.square().sum())
        if "variance" in self.needs and sample.variance is not None:
            # Of a member that has one noise for all, it is one number.
            self._sum("variance", _total(sample.variance, on_device).expand(value.shape[1:]))
        if "entropy" in self.needs:
            self._sum("entropy", _total(entropy(value.double()), on_device))
        if "votes" in self.needs:
            votes = torch.nn.functional.one_hot(value.argmax(-1), value.shape[-1])
            self._sum("votes", _total(votes, on_device))
        if "likelihood" in self.needs and sample.log_likelihood is not None:
            each = sample.log_likelihood.double()
            if on_device is not None:
                each = each + on_device.log().view(-1, *[1] * (each.ndim - 1))
            part = each.logsumexp(0)
            self._likelihood = part if self._likelihood is None else torch.logaddexp(self._likelihood, part)

    def _merge(self, value: Tensor, new: float, weights: Tensor | None) -> None:
        # Within a chunk torch's own two-pass variance; float64 only where chunks are merged.
        if weights is None:
            variance, mean = torch.var_mean(value.double(), dim=0, correction=0)
        else:
            mean = _total(value, weights / new)
            variance = _total((value.double() - mean).square(), weights / new)
        if self.weight == 0:
            self.mean, self._deviation = mean, variance * new
            return
        delta = mean - self.mean
        total = self.weight + new
        self.mean = self.mean + delta * (new / total)
        self._deviation = self._deviation + variance * new + delta.square() * (self.weight * new / total)

    def _sum(self, name: str, part: Tensor) -> None:
        self._sums[name] = self._sums[name] + part if name in self._sums else part

    def rows(self, index: Tensor) -> Moments:
        """The same sums for some rows of the batch. Not of what keeps every member's values.

        Args:
            index: which, (some,) int64, on the device of the sums.
        """
        some = Moments(self.needs, self.noise_variance, self.mixture)
        some.count, some.weight, some._squares = self.count, self.weight, self._squares
        if "mean" in self.needs or "deviation" in self.needs:
            some.mean, some._deviation = self.mean[index], self._deviation[index]
        if self._likelihood is not None:
            some._likelihood = self._likelihood[index]
        some._sums = {name: total[index] for name, total in self._sums.items()}
        return some

    @property
    def monte_carlo_variance(self) -> Tensor:
        """Of the mean as an estimate from these members: epistemic_variance · Σ w_i², which of equal weights is
        epistemic_variance / N."""
        return self.epistemic_variance * (self._squares / self.weight**2)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean: for each row the largest over its elements, (batch,)."""
        variance = self.monte_carlo_variance
        return variance.reshape(len(variance), -1).amax(1).sqrt()

    @property
    def epistemic_variance(self) -> Tensor:
        return self._deviation / self.weight

    @property
    def aleatoric_variance(self) -> Tensor:
        if "variance" in self._sums:
            return self._sums["variance"] / self.weight
        return torch.full_like(self.mean, self.noise_variance or 0.0)

    @property
    def total_variance(self) -> Tensor:
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def expected_entropy(self) -> Tensor:
        return self._sums["entropy"] / self.weight

    @property
    def votes(self) -> Tensor:
        """The share of the members that vote for each class."""
        return self._sums["votes"] / self.weight

    @property
    def log_likelihood(self) -> Tensor:
        """Of the targets under the mixture: log Σ w_i p_i(target)."""
        assert self._likelihood is not None
        return self._likelihood - torch.tensor(self.weight, dtype=torch.float64).log()

    def every(self, name: str) -> Tensor:
        """Kept values of all members, (batch, members, ...)."""
        return torch.cat(self._kept[name]).movedim(0, 1)

    def components(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the mixture is made of: kept values and variances (None if there is no noise), each (members, batch,
        ...) or what broadcasts to it, and the weights, (members,), which sum to 1 (None if they are equal)."""
        values = torch.cat(self._kept["values"])
        weights = None if self.mixture is None else self.mixture[: self.count].to(values.device) / self.weight
        if self._kept["variances"]:
            return values, torch.cat(self._kept["variances"]), weights
        noise = None if self.noise_variance is None else values.new_tensor(self.noise_variance, dtype=torch.float64)
        return values, noise, weights


def entropy(probabilities: Tensor) -> Tensor:
    """H(p) = −Σ p log p over the last dimension, in nats; 0 log 0 is 0."""
    each: Tensor = torch.special.entr(probabilities)
    return each.sum(-1)


def _total(tensor: Tensor, weights: Tensor | None) -> Tensor:
    """The sum over the first dimension, weighted, in float64."""
    return tensor.double().sum(0) if weights is None else torch.tensordot(weights, tensor.double(), dims=1)

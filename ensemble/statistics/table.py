"""What an ensemble's outputs are condensed to: each statistic by its name, streamed over chunks of members.

Members' outputs are seen once, a chunk at a time, and only running moments are kept (the design's rule 5). Moments
are float64, merged by the update of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
sample variances", 1979), which does not cancel as E[x²] − E[x]² does.

Notation: members i = 1..N. A classifier's member gives probabilities p_i, a regressor's μ_i, and σ_i² where the
network has a variance head. Entropies are in nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ensemble.errors import StatisticError
from ensemble.tasks import Sample, Task


class Moments:
    """Running sums over members, of only what the asked statistics need.

    Args:
        needs: which sums to keep: "mean", "deviation", "variance", "entropy", "votes", "values", "variances".
        noise_variance: variance of the observation noise where the model itself gives none.
    """

    def __init__(self, needs: Iterable[str], noise_variance: float | None = None) -> None:
        self.needs = frozenset(needs)
        self.noise_variance = noise_variance
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self._deviation: Tensor = torch.zeros(())
        self._sums: dict[str, Tensor] = {}
        self._kept: dict[str, list[Tensor]] = {"values": [], "variances": []}

    def update(self, sample: Sample) -> None:
        """Take in the next members.

        Args:
            sample: their values, (members, batch, ...).
        """
        value = sample.value
        new = value.shape[0]
        if "mean" in self.needs or "deviation" in self.needs:
            self._merge(value, new)
        self.count += new
        if "variance" in self.needs and sample.variance is not None:
            self._add("variance", sample.variance.double().sum(0))
        if "entropy" in self.needs:
            self._add("entropy", entropy(value.double()).sum(0))
        if "votes" in self.needs:
            votes = torch.nn.functional.one_hot(value.argmax(-1), value.shape[-1])
            self._add("votes", votes.sum(0))
        for name, tensor in (("values", value), ("variances", sample.variance)):
            if name in self.needs and tensor is not None:
                self._kept[name].append(tensor)

    def _merge(self, value: Tensor, new: int) -> None:
        # Within a chunk torch's own two-pass variance; float64 only where chunks are merged.
        variance, mean = torch.var_mean(value.double(), dim=0, correction=0)
        if self.count == 0:
            self.mean, self._deviation = mean, variance * new
            return
        delta = mean - self.mean
        total = self.count + new
        self.mean = self.mean + delta * (new / total)
        self._deviation = self._deviation + variance * new + delta.square() * (self.count * new / total)

    def _add(self, name: str, part: Tensor) -> None:
        self._sums[name] = self._sums[name] + part if name in self._sums else part

    def rows(self, index: Tensor) -> Moments:
        """The same sums for some rows of the batch.

        Args:
            index: which, (some,) int64, on the device of the sums.
        """
        some = Moments(self.needs, self.noise_variance)
        some.count = self.count
        if "mean" in self.needs or "deviation" in self.needs:
            some.mean, some._deviation = self.mean[index], self._deviation[index]
        some._sums = {name: total[index] for name, total in self._sums.items()}
        some._kept = {name: [t[:, index] for t in kept] for name, kept in self._kept.items()}
        return some

    @property
    def standard_error(self) -> Tensor:
        """Of the mean: for each row the largest over its elements, (batch,)."""
        variance = self.epistemic_variance / self.count
        return variance.reshape(len(variance), -1).amax(1).sqrt()

    @property
    def epistemic_variance(self) -> Tensor:
        return self._deviation / self.count

    @property
    def aleatoric_variance(self) -> Tensor:
        if "variance" in self._sums:
            return self._sums["variance"] / self.count
        return torch.full_like(self.mean, self.noise_variance or 0.0)

    @property
    def total_variance(self) -> Tensor:
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def expected_entropy(self) -> Tensor:
        return self._sums["entropy"] / self.count

    @property
    def votes(self) -> Tensor:
        return self._sums["votes"]

    def every(self, name: str) -> Tensor:
        """Kept values of all members, (batch, members, ...)."""
        return torch.cat(self._kept[name]).movedim(0, 1)


def entropy(probabilities: Tensor) -> Tensor:
    """H(p) = −Σ p log p over the last dimension, in nats; 0 log 0 is 0."""
    each: Tensor = torch.special.entr(probabilities)
    return each.sum(-1)


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One named output.

    Args:
        name: as it is asked for.
        description: what it is, with its formula.
        unit: of the values; "target" stands for the unit of the model's target.
        tasks: which tasks have it.
        needs: the moments that it is computed from.
        finish: moments -> (batch, ...).
        shape: trailing shape of the model's output -> trailing shape of the statistic, -1 for the members.
        integer: int64 instead of float32.
        default: part of the default set.
    """

    name: str
    description: str
    unit: str
    tasks: tuple[Task, ...]
    needs: tuple[str, ...]
    finish: Callable[[Moments], Tensor]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda trailing: trailing
    integer: bool = False
    default: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.integer else torch.float32


_ALL: tuple[Task, ...] = ("classification", "regression", "gaussian", "raw")
_CLASSES: tuple[Task, ...] = ("classification",)
_NOISY: tuple[Task, ...] = ("classification", "gaussian")


def _per_row(trailing: tuple[int, ...]) -> tuple[int, ...]:
    return trailing[:-1]


def _per_member(trailing: tuple[int, ...]) -> tuple[int, ...]:
    return (-1, *trailing)


def _label(m: Moments) -> Tensor:
    # The largest of what is no number would be a class like any other.
    return torch.where(m.mean.isfinite().all(-1), m.mean.argmax(-1), -1)


def _variation(m: Moments) -> Tensor:
    # The modal class is the one with most votes; label may differ from it.
    return 1 - m.votes.amax(-1).double() / m.count


def _information(m: Moments) -> Tensor:
    return (entropy(m.mean) - m.expected_entropy).clamp_min(0)


_TABLE = (
    Statistic("label", "argmax of mean: the class with the highest probability; −1 where mean is no number",
              "class index", _CLASSES,
              ("mean",), _label, _per_row, integer=True, default=True),
    Statistic("mean", "mean over members of the prediction (for classes: of the probabilities, never the logits)",
              "target", _ALL, ("mean",), lambda m: m.mean, default=True),
    Statistic("std", "√total_variance", "target", _ALL, ("deviation", "variance"),
              lambda m: m.total_variance.sqrt(), default=True),
    Statistic("aleatoric_variance", "noise in the target itself: the mean of the members' variances "
              "(for classes: of p_i (1 − p_i))", "target²", (*_NOISY, "regression"), ("mean", "variance"),
              lambda m: m.aleatoric_variance),
    Statistic("epistemic_variance", "disagreement of the members: the variance over members of the prediction",
              "target²", _ALL, ("deviation",), lambda m: m.epistemic_variance),
    Statistic("total_variance", "aleatoric_variance + epistemic_variance (the latter alone where no noise variance "
              "is known)", "target²", _ALL, ("deviation", "variance"), lambda m: m.total_variance),
    Statistic("standard_error", "Monte-Carlo standard error of mean: √(epistemic_variance / N)", "target", _ALL,
              ("deviation",), lambda m: (m.epistemic_variance / m.count).sqrt()),
    Statistic("predictive_entropy", "H(mean p): the whole uncertainty of the class", "nats", _CLASSES, ("mean",),
              lambda m: entropy(m.mean), _per_row, default=True),
    Statistic("expected_entropy", "mean of H(p_i): the aleatoric part", "nats", _CLASSES, ("entropy",),
              lambda m: m.expected_entropy, _per_row, default=True),
    Statistic("mutual_information", "predictive_entropy − expected_entropy: the epistemic part (BALD)", "nats",
              _CLASSES, ("mean", "entropy"), _information, _per_row, default=True),
    Statistic("variation_ratio", "1 − (members voting for the modal class) / N", "", _CLASSES, ("votes",),
              _variation, _per_row),
    Statistic("members", "every member's own prediction (for classes: probabilities)", "target", _ALL, ("values",),
              lambda m: m.every("values"), _per_member),
    Statistic("member_variances", "every member's own variance", "target²", ("gaussian",), ("variances",),
              lambda m: m.every("variances"), _per_member),
)  # fmt: skip

STATISTICS: Mapping[str, Statistic] = {statistic.name: statistic for statistic in _TABLE}


def available(task: Task, noise_variance: float | None = None) -> list[Statistic]:
    """The statistics that a task has, in the order in which they are listed everywhere.

    Args:
        noise_variance: a regressor without one has no aleatoric variance.
    """
    return [
        s
        for s in _TABLE
        if task in s.tasks and not (s.name == "aleatoric_variance" and task == "regression" and noise_variance is None)
    ]


def resolve(names: Sequence[str] | None, task: Task, noise_variance: float | None = None) -> list[Statistic]:
    """The statistics of these names, the task's default ones for None.

    Raises:
        StatisticError: an unknown name, or one that the task does not have.
    """
    having = {s.name: s for s in available(task, noise_variance)}
    if names is None:
        return [s for s in having.values() if s.default]
    if isinstance(names, str):
        raise StatisticError(f"statistics must be a list of names, such as [{names!r}].")
    if not names:
        raise StatisticError(f"statistics must name at least one of {', '.join(having)}.")
    for name in names:
        if name == "aleatoric_variance" and task == "regression":
            if noise_variance is None:
                raise StatisticError(
                    "aleatoric_variance of a regression is its noise variance, which this ensemble does not know; "
                    "give noise_variance= when it is made."
                )
        elif name not in having:
            why = f"which {task} does not have" if name in STATISTICS else "which does not exist"
            raise StatisticError(f"Asked for {str(name)[:60]!r}, {why}; there are {', '.join(having)}.")
    return [having[name] for name in dict.fromkeys(names)]

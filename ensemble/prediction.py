"""What a prediction is: named statistics of one head, or of several heads by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor

from ensemble.errors import StatisticError


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Statistics of a batch, as attributes: ``p.mean``, ``p.std``, ``p.predictive_entropy``.

    Intervals have their lower and upper end as the last dimension, quantiles the levels: ``lower, upper =
    p.prediction_interval.unbind(-1)``.

    Args:
        heads: statistics by name, for each of the model's outputs; a tensor is (batch, ...).
        count: how many members they are computed from; with a tolerance, for the row that needed most.
        counts: with a tolerance, how many members each row is computed from, (batch,); None without.
        several: whether the model has several outputs, though only one of them may have been asked about.

    Example:
        >>> p = ens.predict(x)                          # one output
        >>> p.mean, p["mean"], dict(p)
        >>> p = ens.predict(x)                          # a model that returns {"policy": ..., "value": ...}
        >>> p["policy"].mean
    """

    heads: Mapping[str, Mapping[str, Tensor]]
    count: int
    several: bool = False
    counts: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "several", self.several or len(self.heads) > 1)

    def flat(self) -> dict[str, Tensor]:
        """Every statistic under one name: "mean", or "policy.mean" where there are several outputs."""
        return {
            qualified(head, name, 2 if self.several else 1): tensor
            for head, statistics in self.heads.items()
            for name, tensor in statistics.items()
        }

    def keys(self) -> list[str]:
        """Names of the statistics, or of the heads where there are several."""
        return list(self.heads) if self.several else list(self._only())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, name: str) -> Tensor | Prediction:
        if self.several and name in self.heads:
            return Prediction({name: self.heads[name]}, self.count, counts=self.counts)
        return self._statistic(name)

    def __getattr__(self, name: str) -> Tensor:
        # Copying and pickling probe for methods before the fields exist.
        if name.startswith("_") or "heads" not in self.__dict__:
            raise AttributeError(name)
        try:
            return self._statistic(name)
        except StatisticError as error:
            raise AttributeError(str(error)) from None

    def _only(self) -> Mapping[str, Tensor]:
        (statistics,) = self.heads.values()
        return statistics

    def _statistic(self, name: str) -> Tensor:
        if len(self.heads) > 1:
            first = next(iter(self.heads))
            raise StatisticError(
                f"This model has the outputs {list(self.heads)}; say which: prediction[{first!r}].{name}."
            )
        if name not in self._only():
            raise StatisticError(
                f"{name!r} was not computed, only {', '.join(self._only())}; "
                f"ask for it: predict(x, statistics=[{name!r}])."
            )
        return self._only()[name]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {list(tensor.shape)}" for name, tensor in self.flat().items())
        return f"Prediction({shapes}; from {self.count} members)"


def qualified(head: str, statistic: str, heads: int) -> str:
    """A statistic's name among all outputs of a model."""
    return statistic if heads == 1 else f"{head}.{statistic}"

"""Members' outputs to statistics, as they come.

Whoever evaluates members, in whatever way, hands their outputs on chunk by chunk; nothing here knows how they were
made. ``Ensemble.predict`` is this with the members of an ensemble.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ensemble import losses
from ensemble.errors import InputError
from ensemble.statistics.moments import Moments
from ensemble.statistics.statistic import Asked
from ensemble.tasks import Head, Sample, sample


def condense(asked: Asked, chunks: Iterable[Sequence[Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The statistics of a batch.

    Args:
        asked: what is asked, from :meth:`~ensemble.outputs.Outputs.asked`.
        chunks: flat outputs of the next members, each (some members, ...) and then as the model gives it. Members come
            in the order of ``asked.mixture`` and of the calibration's noise variances; not all need to come.

    Returns:
        By the head's name and the statistic's, (batch, ...).
    """
    running = Running(asked)
    for outputs in chunks:
        running.update(outputs)
    return running.finish()


class Running:
    """Statistics in the making.

    Args:
        asked: what is asked.
        judged: whether :attr:`standard_error` will be read, which is over all heads, asked about or not.
    """

    def __init__(self, asked: Asked, *, judged: bool = False) -> None:
        self.asked = asked
        fitted = asked.calibration
        self._temperature = 1.0 if fitted is None else fitted.temperature
        self._noise = None if fitted is None else fitted.noise_variances
        self._factors = None if fitted is None else fitted.variance_factors
        self._targets = dict(asked.targets)
        needs: dict[str, set[str]] = {head.name: {"deviation"} for head in asked.heads} if judged else {}
        for head, statistics in asked.statistics:
            needs.setdefault(head.name, set()).update(need for s in statistics for need in s.needs)
        self._heads = [head for head in asked.heads if head.name in needs]
        self._moments = {
            head.name: Moments(needs[head.name], asked.noise_variance, asked.mixture) for head in self._heads
        }

    @property
    def count(self) -> int:
        """Members seen."""
        return next(iter(self._moments.values())).count

    @property
    def weight(self) -> float:
        """The sum of their weights in the mixture; of equal ones their number."""
        return next(iter(self._moments.values())).weight

    def update(self, outputs: Sequence[Tensor]) -> None:
        """Take in the next members.

        Args:
            outputs: flat, each (some members, ...).
        """
        some = slice(self.count, self.count + outputs[0].shape[0])
        noise = None if self._noise is None else self._noise[some]
        factors = None if self._factors is None else self._factors[some]
        for head in self._heads:
            found = sample(
                self.asked.task,
                head,
                outputs,
                temperature=self._temperature,
                noise_variances=noise,
                variance_factors=factors,
            )
            if head.name in self._targets:
                found = dataclasses.replace(found, log_likelihood=self._log_likelihood(head, found))
            self._moments[head.name].update(found)

    def finish(self) -> dict[str, dict[str, Tensor]]:
        """The statistics of the members seen, by the head's name and their own."""
        return {
            head.name: {s.name: s.finish(self._moments[head.name], self.asked).to(s.dtype) for s in statistics}
            for head, statistics in self.asked.statistics
        }

    def rows(self, index: Tensor) -> Running:
        """The same for some rows of the batch. Not of statistics that keep every member's output.

        Args:
            index: which, (some,) int64, on the device of the outputs.
        """
        some = Running.__new__(Running)
        some.__dict__.update(self.__dict__)
        some._moments = {name: moments.rows(index) for name, moments in self._moments.items()}
        some._targets = {name: target[index.to(target.device)] for name, target in self._targets.items()}
        return some

    @property
    def standard_error(self) -> Tensor:
        """Monte-Carlo standard error of the mean, for each row the largest over all elements of all heads, (batch,)."""
        return torch.stack([moments.standard_error for moments in self._moments.values()]).amax(0)

    def _log_likelihood(self, head: Head, found: Sample) -> Tensor:
        """Of the targets under each member, (members, batch, ...)."""
        target = self._targets[head.name] = self._targets[head.name].to(found.value.device)
        shape = found.value.shape[1:] if found.logits is None else found.value.shape[1:-1]
        if target.shape != shape:
            # Where the model's own outputs have a size of their own for each call.
            raise InputError(f"The target must have the shape {list(shape)}, however: {list(target.shape)}.")
        if found.logits is not None:
            logits = found.logits.double()
            return -losses.cross_entropy(logits, target.expand(logits.shape[:-1]))
        variance = found.variance
        if variance is None:
            assert self.asked.noise_variance is not None
            variance = found.value.new_tensor(self.asked.noise_variance)
        return -losses.gaussian(found.value.double(), variance.double(), target.double())

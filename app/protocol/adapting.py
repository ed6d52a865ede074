"""What a request may ask for that adapts a model to examples which it brings, the same in both APIs.

The examples are the support: rows of the model's inputs, and targets that its predictions are compared with. How they
come is told in :mod:`app.protocol.plain_adaptation` and :mod:`app.protocol.v2_adaptation`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import BadRequest, Forbidden
from app.protocol.datatypes import all_finite
from app.protocol.tensors import TensorSpec
from app.protocol.wording import describe, listing

__all__ = ["LEARNING_RATE", "NOT_ADAPTING", "STEPS", "SUPPORT", "TARGETS", "Adapt", "Adapting", "Limits"]

SUPPORT = "support."
TARGETS = "targets"
STEPS, LEARNING_RATE = 5, 0.01
_MOST_PATTERNS = 64
_LONGEST_PATTERN = 256


@dataclass(frozen=True)
class Limits:
    """What one request may ask for at most.

    Attributes:
        steps: of gradient descent.
        examples: rows of support.
        queries: rows of queries.
        keep_seconds: for which weights may be kept; 0 if they may not.
    """

    steps: int = 0
    examples: int = 0
    queries: int = 0
    keep_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Adapt:
    """What a request adapts a model to, and how.

    Attributes:
        support: one array for each input, (examples, ...).
        targets: by the name of the prediction that they are for, (examples, ...); of a model that makes one under "".
        steps, learning_rate, loss: of gradient descent.
        weights: patterns of the weights that adapt.
        factors: whether the members' factors adapt instead of full weights.
        keep_seconds: how long the adapted weights are kept; None for not at all.
    """

    support: Mapping[str, NDArray[Any]]
    targets: Mapping[str, NDArray[Any]]
    steps: int
    learning_rate: float
    loss: str
    weights: tuple[str, ...]
    factors: bool
    keep_seconds: float | None

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(next(iter(self.support.values())))


@dataclass(frozen=True)
class Adapting:
    """What of a model can be adapted, to what, and within which limits.

    Attributes:
        inputs: what the model takes.
        targets: what its predictions are compared with, by their names, "" where it makes one; -1 first for the rows.
        classes: of each prediction, how many classes targets are indices of; None where they are values.
        losses: by name, the default first.
        outputs, defaults: names that may be asked of the adapted model, and those that are sent by default.
        members: how many the model has.
        limits: of the service.
        refusal: why nothing can be adapted; empty if it can.
        forbidden: whether that is since the operator does not permit it.
    """

    inputs: Sequence[TensorSpec] = ()
    targets: Mapping[str, TensorSpec] = field(default_factory=dict)
    classes: Mapping[str, int | None] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    outputs: Collection[str] = ()
    defaults: Sequence[str] = ()
    members: int = 0
    limits: Limits = Limits()
    refusal: str = ""
    forbidden: bool = False

    def check(self) -> None:
        """Raise unless something can be adapted.

        Raises:
            Forbidden, BadRequest: as :attr:`refusal` says.
        """
        if self.refusal:
            raise Forbidden(self.refusal) if self.forbidden else BadRequest(self.refusal)

    def read(
        self,
        given: Mapping[str, Any],
        support: Mapping[str, NDArray[Any]],
        targets: Mapping[str, NDArray[Any]],
        where: str = "",
    ) -> Adapt:
        """What is asked for beside the examples, and these checked.

        Args:
            given: by the names of both APIs.
            support: by the inputs' names.
            targets: by the predictions' names.
            where: before each name in errors.

        Raises:
            BadRequest: something has a value that it cannot have.
        """
        self._check_examples(support, targets)
        loss, factors, steps = given.get("loss"), given.get("factors"), given.get("steps")
        if steps is not None and (type(steps) is not int or not 1 <= steps <= self.limits.steps):
            raise BadRequest(
                f"{where}steps must be a whole number from 1 to {self.limits.steps}, however: {describe(steps)}"
            )
        if loss is not None and loss not in self.losses:
            raise BadRequest(
                f"{where}loss must be one of {listing(self.losses)} for this model, however: {describe(loss)}"
            )
        if factors is not None and type(factors) is not bool:
            raise BadRequest(f"{where}factors must be true or false, however: {describe(factors)}")
        keep = given.get("keep_seconds")
        if keep is not None and not self.limits.keep_seconds:
            raise BadRequest(f"{where}keep_seconds cannot be used: this service keeps no adapted models")
        return Adapt(
            support,
            targets,
            min(STEPS, self.limits.steps) if steps is None else steps,
            _number(given.get("learning_rate"), f"{where}learning_rate") or LEARNING_RATE,
            loss or self.losses[0],
            _patterns(given.get("weights"), where),
            bool(factors),
            _number(keep, f"{where}keep_seconds", self.limits.keep_seconds),
        )

    def check_queries(self, rows: int, adapt: Adapt | None, outputs: object) -> None:
        """That something is asked, or kept.

        Args:
            rows: of the queries.
            adapt: what is adapted to; None where a kept model is asked.
            outputs: what the request asks for.

        Raises:
            BadRequest: it is neither, or too much.
        """
        if rows > self.limits.queries:
            raise BadRequest(f"queries must have {self.limits.queries} rows at most, however: {rows}")
        if rows:
            return
        if adapt is None or adapt.keep_seconds is None:
            raise BadRequest(
                "a request must have queries to answer, or keep_seconds to keep the adapted model for; or both"
            )
        if outputs:
            raise BadRequest("outputs are of queries, and there are none")

    def _check_examples(self, support: Mapping[str, NDArray[Any]], targets: Mapping[str, NDArray[Any]]) -> None:
        counts = {name: len(array) for name, array in support.items()}
        count = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            raise BadRequest(f"all inputs of the examples must have the same number of rows, however: {counts}")
        if count > self.limits.examples:
            raise BadRequest(f"support must have {self.limits.examples} examples at most, however: {count}")
        for name, array in support.items():
            if array.dtype.kind == "f" and not all_finite(array):
                raise BadRequest(f"support input {name!r} must hold finite numbers, however: some are not")
        for name, array in targets.items():
            subject, classes = SUPPORT + self.targets[name].name, self.classes[name]
            if len(array) != count:
                raise BadRequest(f"{subject} must have {count} rows, as support.inputs have, however: {len(array)}")
            if classes is not None and bool(np.any((array < 0) | (array >= classes))):
                raise BadRequest(f"{subject} must be classes from 0 to {classes - 1}, however: some are not")
            if array.dtype.kind == "f" and not all_finite(array):
                raise BadRequest(f"{subject} must hold finite numbers, however: some are not")


NOT_ADAPTING = Adapting(refusal="this service adapts no models")


def _number(value: object, subject: str, most: float = math.inf) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most or value == math.inf:
        limit = f" and up to {most:g}" if most < math.inf else ""
        raise BadRequest(f"{subject} must be a number above 0{limit}, however: {describe(value)}")
    return float(value)


def _patterns(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ("*",)
    given = value if isinstance(value, list) else [value]
    fine = all(isinstance(text, str) and 0 < len(text) <= _LONGEST_PATTERN for text in given)
    if not 1 <= len(given) <= _MOST_PATTERNS or not fine:
        raise BadRequest(
            f'{where}weights must be names or patterns such as "head.*", one or a list of up to {_MOST_PATTERNS}, '
            f"however: {describe(value)}"
        )
    return tuple(given)

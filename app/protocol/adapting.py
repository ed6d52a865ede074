"""What a request may ask for that adapts a model to examples which it brings, the same in both APIs.

The examples are the support: rows of the model's inputs, and targets that its outputs are compared with. In V2 they are
inputs more, named `support.` and the input's name, and `support.targets` (of a model that makes several predictions
`support.targets.` and the prediction's name), with as many rows as there are examples; the rest are parameters. The
plain API has keys for all of it, see :mod:`app.protocol.adaptation`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import BadRequest, Forbidden
from app.protocol.datatypes import all_finite
from app.protocol.tensors import TensorSpec
from app.protocol.wording import describe, listing

__all__ = ["LEARNING_RATE", "NOT_ADAPTING", "STEPS", "Adapt", "Adapting", "Limits"]

SUPPORT = "support."
TARGETS = "targets"
STEPS, LEARNING_RATE = 5, 0.01
_MOST_PATTERNS = 64
_LONGEST_PATTERN = 256
_LONGEST_HANDLE = 64


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

    def asked_by_v2(self, document: Mapping[str, Any], own: Collection[str]) -> bool:
        """Whether a V2 request brings examples, or names an adapted model.

        Args:
            document: the request.
            own: names of the model's inputs.

        Raises:
            Forbidden, BadRequest: it does, and may not.
        """
        parameters, inputs = document.get("parameters"), document.get("inputs")
        names = [entry.get("name") for entry in inputs if isinstance(entry, dict)] if isinstance(inputs, list) else []
        handle = isinstance(parameters, dict) and parameters.get("adapted") is not None
        asked = handle or any(isinstance(n, str) and n.startswith(SUPPORT) and n not in own for n in names)
        if asked:
            self.check()
        return asked

    @cached_property
    def v2_inputs(self) -> tuple[TensorSpec, ...]:
        """The examples as inputs of V2."""
        return tuple(
            TensorSpec(SUPPORT + spec.name, spec.datatype, spec.shape)
            for spec in (*self.inputs, *self.targets.values())
        )

    def from_v2(self, parameters: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> Adapt | None:
        """What a V2 request adapts to; None if it brings no examples but names an adapted model.

        Args:
            parameters: of the request.
            arrays: by the names of V2; those of the examples are taken out.

        Raises:
            BadRequest: something is missing, or has a value that it cannot have.
        """
        handle = read_handle(parameters)
        given = {s.name.removeprefix(SUPPORT): arrays.pop(s.name) for s in self.v2_inputs if s.name in arrays}
        if handle is not None:
            if given:
                raise BadRequest("a request may bring examples or name an adapted model, however: both")
            return None
        missing = [SUPPORT + spec.name for spec in self.inputs if spec.name not in given]
        if missing:
            raise BadRequest(f"examples must have all inputs of the model, however: {listing(missing)} missing")
        targets = {name: given[spec.name] for name, spec in self.targets.items() if spec.name in given}
        if not targets:
            wanted = listing(SUPPORT + spec.name for spec in self.targets.values())
            raise BadRequest(f"examples must have targets, as input {wanted}")
        patterns = parameters.get("weights")
        if isinstance(patterns, str):
            # Not every client of V2 can send a list.
            patterns = [part.strip() for part in patterns.split(",")]
        support = {spec.name: given[spec.name] for spec in self.inputs}
        return self.read({**parameters, "weights": patterns}, support, targets, "parameters.")

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

    def explain_v2(self) -> dict[str, str]:
        """What the parameters mean, for people; nothing where nothing can be adapted."""
        if self.refusal:
            return {}
        found = {
            "steps": "of gradient descent on the examples that come as inputs named support.*: 1 to "
            f"{self.limits.steps}, {min(STEPS, self.limits.steps)} if it is not given",
            "learning_rate": f"the step size, above 0; {LEARNING_RATE:g} if it is not given",
            "loss": f"what the steps minimise: {' or '.join(self.losses)}",
            "weights": "patterns of the names of weights that adapt, with commas between them; those in which members "
            "differ if they are not given",
            "factors": "true to adapt the members' factors instead of full weights",
        }
        if self.limits.keep_seconds:
            found["keep_seconds"] = (
                f"keep the adapted model for so long, up to {self.limits.keep_seconds:g}; the answer says its handle"
            )
            found["adapted"] = "the handle of an adapted model that was kept: it answers instead of the model"
        return found

    def described(self) -> dict[str, Any]:
        """What may be adapted to, for the metadata; nothing where nothing can be."""
        if self.refusal:
            return {}
        return {
            "support_inputs": [
                {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in self.v2_inputs
            ],
            "losses": list(self.losses),
            "most_steps": self.limits.steps,
            "most_examples": self.limits.examples,
            "longest_keep_seconds": self.limits.keep_seconds,
        }

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


def read_handle(parameters: Mapping[str, Any]) -> str | None:
    """The handle of an adapted model that a V2 request names.

    Raises:
        BadRequest: it is none.
    """
    handle = parameters.get("adapted")
    if handle is None:
        return None
    if not isinstance(handle, str) or not 0 < len(handle) <= _LONGEST_HANDLE:
        raise BadRequest(f"parameters.adapted must be the handle of an adapted model, however: {describe(handle)}")
    return handle


def _number(value: object, subject: str, most: float = math.inf) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= most or value == math.inf:  # type: ignore[operator]
        limit = f" and up to {most:g}" if most < math.inf else ""
        raise BadRequest(f"{subject} must be a number above 0{limit}, however: {describe(value)}")
    return float(value)  # type: ignore[arg-type]


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

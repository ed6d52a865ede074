"""What a request may bring of its own: a perturbation of the trained weights, or weights.

A perturbation is a recipe by its name, its settings, a seed and a number of members. In V2 these are parameters of the
request, in the plain API they stand under `parameters.perturbation`. What is left out is as in the model's own recipe.

Weights are inputs of V2 that are named for the model's weights. Unlike other inputs they have no batch: their shape is
the weight's, or has a dimension of members before it. Instead of a weight W the factors of what is added to it may
come, W + L Rᵀ, under its name with `.left`, (rows, rank), and `.right`, (columns, rank).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from app.errors import BadRequest
from app.protocol.tensors import TensorSpec, checked_shape
from app.protocol.wording import describe, listing, quote

__all__ = ["NOTHING_BROUGHT", "Bringable", "Perturbed", "WeightSpec"]

_LEFT, _RIGHT = ".left", ".right"
_MOST_SEED = 2**63 - 1
_LONGEST_TEXT = 256

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Perturbed:
    """A perturbation that a request asks for; None is what the request leaves to the model's own recipe.

    Attributes:
        recipe: its name.
        settings: of the recipe, by their names.
        seed: that the members are drawn from.
        members: how many.
    """

    recipe: str | None = None
    settings: tuple[tuple[str, Scalar], ...] = ()
    seed: int | None = None
    members: int | None = None


@dataclass(frozen=True)
class WeightSpec(TensorSpec):
    """A weight as an input: its shape has -1 first, for the members."""

    @cached_property
    def layout(self) -> str:
        """The shapes that it may have, in words."""
        sizes = ["rank" if size == -1 else str(size) for size in self.shape[1:]]
        return f"[{', '.join(sizes)}] or [{', '.join(['members', *sizes])}]"

    @cached_property
    def subject(self) -> str:
        """How an error names it."""
        return f"weight {self.name!r}"

    def with_members(self, shape: Sequence[Any]) -> tuple[list[Any], bool]:
        """A shape that a client declared with a dimension of members, and whether it lacked one.

        Raises:
            BadRequest: the weight has another shape.
        """
        alone = len(shape) == len(self.shape) - 1
        whole = [1, *shape] if alone else list(shape)
        try:
            checked_shape(whole, self)
        except BadRequest:
            shown = [size if type(size) is int else describe(size) for size in shape[:8]]
            raise BadRequest(f"{self.subject} must have the shape {self.layout}, however: {shown}") from None
        return whole, alone


@dataclass(frozen=True)
class Bringable:
    """What requests to one model may bring.

    Attributes:
        settings: names of recipes' settings; empty where perturbations are not known at all.
        members: most members of a perturbation or of weights.
        weights: the weights that may come, by name; empty where none may.
        weight_bytes: most bytes of all weights of a request.
        refusals: why something may not come: by "perturbation" and "weights".
        named: names of all the model's weights, to tell who sends one where none may come.
    """

    settings: frozenset[str] = frozenset()
    members: int = 0
    weights: Mapping[str, WeightSpec] = field(default_factory=dict)
    weight_bytes: int = 0
    refusals: Mapping[str, str] = field(default_factory=dict)
    named: frozenset[str] = frozenset()

    def from_v2(self, parameters: Mapping[str, Any]) -> Perturbed | None:
        """The perturbation among a V2 request's parameters; None if there is none.

        Raises:
            BadRequest: it may not be asked for, or has a value that it cannot have.
        """
        given = {name: parameters[name] for name in self._names if parameters.get(name) is not None}
        if not given:
            return None
        return self._read({**given, "members": parameters.get("members")}, "parameters.")

    def from_plain(self, parameters: Mapping[str, Any]) -> Perturbed | None:
        """The same under ``perturbation`` among a plain request's parameters; other names are refused."""
        given = parameters.get("perturbation")
        if given is None or not self.settings:
            return None
        if not isinstance(given, dict):
            raise BadRequest(f"parameters.perturbation must be an object, however: {describe(given)}")
        names = sorted({*self._names, "members"})
        for name in given:
            if name not in names:
                raise BadRequest(f"parameters.perturbation may hold {listing(names)}, however: {quote(name)}")
        if parameters.get("members") is not None:
            raise BadRequest("parameters.members must be left out beside perturbation, which has members of its own")
        return self._read(given, "parameters.perturbation.")

    def weight(self, name: str) -> WeightSpec | None:
        """The weight of this name, or the factor of one; None if it is none."""
        return self._sendable.get(name)

    @cached_property
    def _sendable(self) -> dict[str, WeightSpec]:
        found: dict[str, WeightSpec] = {}
        for name, whole in self.weights.items():
            if len(whole.shape) > 2:
                sides = {_LEFT: whole.shape[1], _RIGHT: math.prod(whole.shape[2:])}
                for side, rows in sides.items():
                    found[name + side] = WeightSpec(name + side, whole.datatype, (-1, rows, -1))
        # A weight may have the name that another's factor would have.
        return found | dict(self.weights)

    def refusal(self, name: object) -> str:
        """What to tell whoever sends a weight where none may come; empty if it is none."""
        bases = {name, *(name.removesuffix(side) for side in (_LEFT, _RIGHT))} if isinstance(name, str) else set()
        return f"; {self.refusals['weights']}" if "weights" in self.refusals and bases & self.named else ""

    def explain_v2(self) -> dict[str, str]:
        """What the parameters of a perturbation mean, for people; nothing where none may be asked for."""
        if not self.settings or "perturbation" in self.refusals:
            return {}
        settings = ", ".join(sorted(self.settings))
        return {
            "recipe": "members of another recipe, drawn from the trained weights for this request; what is not given "
            "is as in the model's own recipe, and what was fitted to the model's own members is not used. Settings of "
            f"recipes are parameters too: {settings}; several patterns are one text with commas",
            "seed": "that the members are drawn from, whether recipe is given or not; then members is how many: "
            f"1 to {self.members}",
        }

    def explain_plain(self) -> dict[str, str]:
        """The same for the plain API."""
        found = self.explain_v2()
        if not found:
            return {}
        return {"perturbation": f"an object with recipe, seed, members and settings. {found['recipe']}"}

    @property
    def names(self) -> list[str]:
        """What a perturbation may hold; empty where none may be asked for."""
        if not self.settings or "perturbation" in self.refusals:
            return []
        return ["recipe", "seed", "members", *sorted(self.settings)]

    def described(self) -> list[dict[str, Any]]:
        """The weights that may come, as inputs: their shapes are those of one member."""
        return [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape[1:])}
            for spec in self.weights.values()
        ]

    @property
    def _names(self) -> frozenset[str]:
        # Of a model that is not known to a service these are parameters that mean nothing.
        return frozenset({"recipe", "seed"}) | self.settings if self.settings else frozenset()

    def _read(self, given: Mapping[str, Any], where: str) -> Perturbed:
        if "perturbation" in self.refusals:
            raise BadRequest(self.refusals["perturbation"])
        recipe = given.get("recipe")
        if recipe is not None and not isinstance(recipe, str):
            raise BadRequest(f"{where}recipe must be the name of a recipe, however: {describe(recipe)}")
        settings = {name: given[name] for name in sorted(self.settings) if given.get(name) is not None}
        for name, value in settings.items():
            if not isinstance(value, Scalar) or (isinstance(value, str) and len(value) > _LONGEST_TEXT):
                raise BadRequest(f"{where}{name} must be a number, a short text, true or false")
        return Perturbed(
            recipe,
            tuple(settings.items()),
            _whole(given.get("seed"), f"{where}seed", 0, _MOST_SEED),
            _whole(given.get("members"), f"{where}members", 1, self.members),
        )


NOTHING_BROUGHT = Bringable()


def _whole(value: object, subject: str, least: int, most: int) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"{subject} must be a whole number from {least} to {most}, however: {describe(value)}")
    return value

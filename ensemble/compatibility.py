"""How each weight of an ensemble runs, and why: in words that a user can act on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ensemble.ensemble import Ensemble
from ensemble.perturbation.stacked import Stacked
from ensemble.structured import LEFT, RIGHT, factorable, structures

How = Literal["shared", "stacked", "factored", "dense fallback"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight.

    Attributes:
        name: in the model's state dict.
        shape: of one member.
        how: "shared" stands once for all members; "factored" once, with thin factors for each member; "stacked" and
            "dense fallback" are held in full by each member, the latter although the recipe has factors.
        why: the reason, and what would change it.
        nbytes: memory for all members.
    """

    name: str
    shape: tuple[int, ...]
    how: How
    why: str
    nbytes: int


def compatibility(ensemble: Ensemble) -> list[Row]:
    """A row for each weight that the program reads, in its order."""
    members = ensemble.members
    reasons = _fallbacks(ensemble)

    def size(*names: str) -> int:
        tensors = [{**members.shared, **members.stacked}[name] for name in names]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    rows = []
    for name in ensemble.program.weight_names:
        if name in members.factored:
            shape = members.factored[name].size
            text = "used in products only, which run on the shared weight and the factors"
            rows.append(Row(name, shape, "factored", text, size(name, name + LEFT, name + RIGHT)))
        elif name in members.shared:
            text = _shared(ensemble)
            rows.append(Row(name, tuple(members.shared[name].shape), "shared", text, size(name)))
        else:
            shape = tuple(members.stacked[name].shape[1:])
            if name in reasons:
                text = f"used by {reasons[name]}, which has no form on factors; exclude it to keep it shared"
                rows.append(Row(name, shape, "dense fallback", text, size(name)))
            else:
                rows.append(Row(name, shape, "stacked", _dense(ensemble, len(shape)), size(name)))
    return rows


def _shared(ensemble: Ensemble) -> str:
    recipe = ensemble.origin.recipe
    if recipe is None or isinstance(recipe, Stacked):
        return "equal in all models" if recipe is None else "equal in all models, and no recipe touches it"
    return (
        "the recipe does not touch it"
        if ensemble.origin.replayable
        else f"{recipe.name} leaves it the same in all members"
    )


def _dense(ensemble: Ensemble, dimensions: int) -> str:
    recipe = ensemble.origin.recipe
    if recipe is None:
        return "differs between the models"
    if isinstance(recipe, Stacked):
        return "differs between the models, so every member has it in full"
    if not ensemble.origin.replayable:
        return f"{recipe.name} gives every member a weight of its own"
    if recipe.structure((2, 2)) is not None:
        return "a vector, too small to factor"
    advice = "; low_rank or rank1 would need far less" if dimensions > 1 else ""
    return f"{recipe.name} gives every member a full weight{advice}"


def _fallbacks(ensemble: Ensemble) -> dict[str, str]:
    """Weights that the recipe would factor and the program does not let it: {name: operation}."""
    recipe, origin = ensemble.origin.recipe, ensemble.origin
    if recipe is None or not ensemble.origin.replayable:
        return {}
    _, reasons = factorable(ensemble.program, structures(recipe, origin.reference))
    return reasons

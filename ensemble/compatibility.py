"""How each weight of an ensemble runs, and why: in words that a user can act on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ensemble.ensemble import Ensemble
from ensemble.perturbation.factors import Form, Shape
from ensemble.perturbation.stacked import Stacked
from ensemble.structured import LEFT, RIGHT, factorable, structures
from ensemble.vectorised import evaluate

How = Literal["shared", "stacked", "factored", "dense fallback", "loop"]
# The other form that factors may have, and the recipe that has it.
_OTHERS: dict[Form, tuple[Form, str]] = {
    "additive": ("multiplicative", "rank1"),
    "multiplicative": ("additive", "low_rank"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight.

    Attributes:
        name: in the model's state dict.
        shape: of one member.
        how: "shared" stands once for all members; "factored" once, with thin factors for each member; "stacked" and
            "dense fallback" are held in full by each member, the latter although the recipe has factors. "loop": held
            as ``why`` says, and used by one member after the other, since ``vmap`` refuses the model.
        why: the reason, and what would change it.
        nbytes: memory for all members.
    """

    name: str
    shape: tuple[int, ...]
    how: How
    why: str
    nbytes: int


def compatibility(ensemble: Ensemble) -> list[Row]:
    """A row for each weight that the program reads, in its order.

    One member is run on the example, unless it is known already whether ``vmap`` takes the model.
    """
    members = ensemble.members
    reasons = _fallbacks(ensemble)
    looped = _looped(ensemble)

    def size(*names: str) -> int:
        tensors = [{**members.shared, **members.stacked}[name] for name in names]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def own(name: str, shape: tuple[int, ...], how: How, why: str, nbytes: int) -> Row:
        return Row(name, shape, "loop", f"{why}; {looped}", nbytes) if looped else Row(name, shape, how, why, nbytes)

    rows = []
    for name in ensemble.program.weight_names:
        if name in members.factored:
            shape = members.factored[name].size
            text = "used in products only, which run on the shared weight and the factors"
            rows.append(own(name, shape, "factored", text, size(name, name + LEFT, name + RIGHT)))
        elif name in members.shared:
            text = _shared(ensemble)
            rows.append(Row(name, tuple(members.shared[name].shape), "shared", text, size(name)))
        else:
            shape = tuple(members.stacked[name].shape[1:])
            if name in reasons:
                rows.append(own(name, shape, "dense fallback", reasons[name], size(name)))
            else:
                rows.append(own(name, shape, "stacked", _dense(ensemble, len(shape)), size(name)))
    return rows


def _looped(ensemble: Ensemble) -> str:
    """Why members run one after the other; empty if they do not."""
    program = ensemble.running
    if not program.looped_because:
        # What vmap refuses, it refuses for one member too.
        next(evaluate(program, ensemble.members, ensemble.example(), count=1))
    if not program.looped_because:
        return ""
    return f"members run one after the other, since vmap refuses the model: {program.looped_because.removesuffix('.')}"


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
    """Weights that the recipe would factor and the program does not let it: why, and what to do, by name."""
    recipe, origin = ensemble.origin.recipe, ensemble.origin
    if recipe is None or not origin.replayable:
        return {}
    wanted = structures(recipe, origin.reference)
    _, reasons = factorable(ensemble.program, wanted)
    if ensemble.program.live:
        return {name: f"{reason}; make the ensemble without live=True" for name, reason in reasons.items()}
    found = {}
    for name, reason in reasons.items():
        form, other = _OTHERS[wanted[name].form]
        fits, _ = factorable(ensemble.program, {name: Shape(form, 1, wanted[name].size)})
        instead = f"{other} would put it on factors; " if fits else ""
        found[name] = f"{reason}; {instead}exclude it to keep it shared"
    return found

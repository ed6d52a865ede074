"""The members of a saved ensemble: the tensors that are kept of them, and how they come back.

Of members that a recipe draws, the trained weights are kept, and a fingerprint shows that drawing gave the same again.
All others (separately trained models, recipes that learn from data) are kept themselves, stacked or as factors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ensemble import members as member_weights
from ensemble.errors import ArtifactError, ModelError
from ensemble.members import Members, Progress, proper_mixture
from ensemble.perturbation import Perturbation
from ensemble.perturbation.factors import Shape
from ensemble.program.program import Program
from ensemble.storage.manifest import MANIFEST, Manifest
from ensemble.structured import LEFT, RIGHT, factorable

if TYPE_CHECKING:
    from ensemble.ensemble import Ensemble

WEIGHTS = "weights.safetensors"
# Stacked weights, weights as trained, state that the graph does not read, and the members' weights in the mixture, side
# by side in one file.
_STACKED, _SINGLE, _UNUSED, _MIXTURE = "stacked/", "weight/", "unused/", "mixture/weights"


def tensors(ensemble: Ensemble) -> dict[str, Tensor]:
    """What of an ensemble's weights is kept."""
    members, origin = ensemble.members, ensemble.origin
    parts = {_UNUSED: origin.unused, _SINGLE: {**members.shared, **origin.reference}}
    if not origin.replayable:
        parts[_STACKED] = members.stacked
    named = {prefix + name: tensor for prefix, group in parts.items() for name, tensor in group.items()}
    if members.mixture is not None:
        named[_MIXTURE] = members.mixture
    # Clones, since two names may share storage (views of one tensor), which safetensors refuses.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}


def unused(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the state dict holds beyond what the graph reads."""
    return _by_prefix(kept, _UNUSED)


def empty(manifest: Manifest, kept: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors without storage of the shape and dtype that each weight of one member has.

    Raises:
        ArtifactError: stored weights that are not of so many members, or NaN where members differ.
    """
    single, stacked = _by_prefix(kept, _SINGLE), _by_prefix(kept, _STACKED)
    replayed = isinstance(manifest.make_recipe(), Perturbation)
    if not replayed and (not stacked or any(t.ndim == 0 or t.shape[0] != manifest.members for t in stacked.values())):
        raise ArtifactError(f"{WEIGHTS} does not hold the {manifest.members} members that {MANIFEST} states.")
    for name in [n for n in manifest.perturbed if n in single] if replayed else stacked:
        if bool((single if replayed else stacked)[name].isnan().any()):
            raise ArtifactError(f"{WEIGHTS}: {name!r} holds NaN, so no answer would be a number. Build it again.")
    factors = {name + side for name in manifest.factored for side in (LEFT, RIGHT)}
    own = {} if replayed else {name: tensor[0] for name, tensor in stacked.items() if name not in factors}
    return {
        name: torch.empty_like(tensor, device="meta", dtype=dtype if tensor.is_floating_point() else None)
        for name, tensor in {**single, **own}.items()
    }


def members(
    manifest: Manifest,
    program: Program,
    kept: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> tuple[Members, dict[str, Tensor]]:
    """The members, and the trained values of what the recipe selected.

    Raises:
        ArtifactError: the tensors do not go with the manifest, or drawing gave other members than were saved.
        MemoryLimitError: they do not fit.
    """
    weights, mixture = _by_prefix(kept, _SINGLE), kept.get(_MIXTURE)
    if mixture is not None and not proper_mixture(mixture, manifest.members):
        raise ArtifactError(f"{WEIGHTS}: the members' weights in the mixture are none. Build the ensemble again.")
    recipe = manifest.make_recipe()
    if not isinstance(recipe, Perturbation):
        shapes = _stored_factors(manifest, program, kept)
        stacked = _by_prefix(kept, _STACKED)
        factors = {name + side for name in shapes for side in (LEFT, RIGHT)}
        if unread := sorted(set(stacked) - factors - set(program.weight_names)):
            raise ArtifactError(f"{WEIGHTS}: the graph does not read {unread[0]!r}. Build the ensemble again.")
        shared = {name: weight for name, weight in weights.items() if name not in stacked}
        found = Members(manifest.members, shared, stacked, shapes, mixture)
        reference = {name: weights[name] for name in manifest.perturbed if name in weights}
        return found.to(device, dtype), reference
    if missing := sorted(set(manifest.perturbed) - set(weights)):
        raise ArtifactError(f"{WEIGHTS} lacks the perturbed weights {missing[:5]}; build the ensemble again.")
    for name in manifest.perturbed:
        if not weights[name].is_floating_point():
            raise ArtifactError(f"{WEIGHTS}: the perturbed weight {name!r} is not floating point.")
    names = list(manifest.perturbed)
    if fingerprint(recipe, weights, names, manifest.seed, manifest.members) != manifest.fingerprint:
        raise ArtifactError(
            "The members drawn from the recipe are not those that were saved: the recipe's code or this platform's "
            "arithmetic has changed. Build the ensemble again with this version."
        )
    drawn = member_weights.draw(
        recipe,
        program,
        weights,
        names,
        count=manifest.members,
        seed=manifest.seed,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    return drawn, {name: weights[name] for name in names}


def _stored_factors(manifest: Manifest, program: Program, kept: Mapping[str, Tensor]) -> dict[str, Shape]:
    single, stacked = _by_prefix(kept, _SINGLE), _by_prefix(kept, _STACKED)
    shapes = manifest.shapes({name: tuple(tensor.shape) for name, tensor in single.items()})
    for name, shape in shapes.items():
        left, right = shape.factors
        if any(
            side not in stacked or tuple(stacked[side].shape[1:]) != size
            for side, size in ((name + LEFT, left), (name + RIGHT, right))
        ):
            raise ArtifactError(f"{WEIGHTS}: the factors of {name!r} are not those that {MANIFEST} states.")
    if dense := factorable(program, shapes)[1]:
        raise ArtifactError(f"{MANIFEST}: {next(iter(dense))!r} cannot have factors in this graph.")
    return shapes


def fingerprint(
    recipe: Perturbation, weights: Mapping[str, Tensor], names: Sequence[str], seed: int, count: int
) -> str:
    """SHA-256 over the own weights of a few members, which shows that drawing gives what it gave before."""
    digest = hashlib.sha256()
    for name in names:
        for member in _probed(count):
            drawn = recipe.draw(name, weights[name].cpu(), seed, range(member, member + 1))
            digest.update(
                f"{name}\0{member}\0".encode() + drawn.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def _probed(count: int) -> list[int]:
    # Of recipes that draw in pairs the second member differs in kind from the first.
    return sorted({0, min(1, count - 1), count - 1})


def check_replayable(ensemble: Ensemble) -> None:
    """That drawn members are those that loading will draw again.

    Raises:
        ModelError: they are not.
    """
    recipe = ensemble.origin.recipe
    if not isinstance(recipe, Perturbation):
        return
    for name, weight in ensemble.origin.reference.items():
        for member in _probed(len(ensemble)):
            only = range(member, member + 1)
            kept = ensemble.members.one(member)
            pairs = [(kept.get(name), recipe.draw(name, weight, ensemble.origin.seed, only)[0])]
            if name in ensemble.members.factored:
                factors = recipe.factors(name, weight, ensemble.origin.seed, only)
                assert factors is not None
                pairs = [(kept.get(name + LEFT), factors.left[0]), (kept.get(name + RIGHT), factors.right[0])]
            if any(own is None or not torch.equal(drawn.to(own.dtype), own.cpu()) for own, drawn in pairs):
                raise ModelError(
                    f"{name!r} of member {member} is not what the recipe draws: the members were changed, or cast to "
                    "a smaller dtype and back. Save the ensemble as it was made."
                )


def _by_prefix(kept: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}

"""An ensemble on disk.

A directory of four files: ``manifest.json`` says what it is, ``graph.json`` is the exported graph with the signature,
``weights.safetensors`` holds tensors, and ``example.safetensors`` a few rows to try it with. A perturbed ensemble
stores the trained weights and the recipe, not its members: they are drawn again, and a fingerprint shows that they
came out the same. Nothing in it is code or a pickle, and nothing is believed before its hash and shape were checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as write_tensors
from torch import Tensor

from ensemble import members as member_weights
from ensemble.ensemble import Ensemble, Origin
from ensemble.errors import ArtifactError, MemoryLimitError, ModelError
from ensemble.files import MAX_JSON_BYTES, parse_json, parse_tensors, read_plain, read_verified, write_directory
from ensemble.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MIXED,
    Manifest,
    dtype_named,
    read_program,
    write_program,
)
from ensemble.members import Members, Progress
from ensemble.memory import available, human
from ensemble.perturbation import Perturbation
from ensemble.program import Program, plain
from ensemble.structured import LEFT, RIGHT

GRAPH, WEIGHTS, EXAMPLE = "graph.json", "weights.safetensors", "example.safetensors"
# Stacked weights, weights as trained, and state that the graph does not read, side by side in one file.
_STACKED, _SINGLE, _UNUSED = "stacked/", "weight/", "unused/"


def save(
    ensemble: Ensemble, path: str | os.PathLike[str], *, overwrite: bool = False, keep_example: bool = True
) -> None:
    """See :meth:`ensemble.Ensemble.save`."""
    if ensemble.program.live:
        raise ModelError("This ensemble runs a live module, whose code cannot be saved; make it without live=True.")
    target = Path(path)
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target} exists; save somewhere else, or with overwrite=True.")
    if target.exists() and not (target / MANIFEST).is_file():
        raise ArtifactError(f"{target} is not a saved ensemble, so it is not replaced.")
    _check_replayable(ensemble)
    files = {
        GRAPH: json.dumps(write_program(ensemble.program, ensemble.origin.state_names)).encode(),
        WEIGHTS: write_tensors(_tensors(ensemble)),
    }
    if keep_example and ensemble.origin.example:
        rows = zip(ensemble.program.inputs, ensemble.origin.example, strict=True)
        files[EXAMPLE] = write_tensors({spec.name: tensor.contiguous() for spec, tensor in rows})
    files[MANIFEST] = _manifest(ensemble, files).to_bytes()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_directory(target, files)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error.strerror or error}.") from error


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Read an ensemble that :meth:`ensemble.Ensemble.save` wrote.

    Args:
        path: its directory.
        device: where the members live.
        dtype: of the floating weights; what they were saved as by default.
        progress: called with (members done, members in all) while members are drawn.

    Raises:
        ArtifactError: damaged, unsafe, or of another version; the text says which file and what to do.
        MemoryLimitError: the members do not fit.
        ModelError: the graph does not go with ``dtype``.
    """
    directory = Path(path)
    manifest = read_manifest(directory)
    contents = {name: read_verified(directory, name, entry) for name, entry in manifest.files.items()}
    for name in (GRAPH, WEIGHTS):
        if name not in contents:
            raise ArtifactError(f"{MANIFEST} lists no {name}; the ensemble is incomplete. Build it again.")
    tensors = parse_tensors(WEIGHTS, contents[WEIGHTS])
    place = torch.device(device)
    saved = None if manifest.dtype == MIXED else dtype_named(manifest.dtype)
    program, state_names = _program(parse_json(GRAPH, contents[GRAPH]), _check_tensors(manifest, tensors, saved), place)
    unused = _by_prefix(tensors, _UNUSED)
    known = {*program.weight_names, *unused}
    if lost := [name for name in state_names if program.aliases.get(name, name) not in known]:
        raise ArtifactError(f"{WEIGHTS} lacks a part of the state dict: {lost[:5]}. Build the ensemble again.")
    members, reference = _members(manifest, program, tensors, place, dtype or saved, progress)
    dtypes = members.dtypes
    example = parse_tensors(EXAMPLE, contents[EXAMPLE]) if EXAMPLE in contents else {}
    origin = Origin(
        recipe=manifest.make_recipe(),
        seed=manifest.seed,
        reference=reference,
        unused=unused,
        state_names=state_names,
        example=_example(program.inputs, example),
    )
    try:
        made = Ensemble(
            program.to(place, dtypes),
            members,
            origin,
            task=manifest.task,
            noise_variance=manifest.noise_variance,
            metadata=manifest.metadata,
        )
    except ModelError as error:
        raise ArtifactError(f"{MANIFEST} does not fit {GRAPH}: {error}") from error
    try:
        made.try_one()
    except ModelError as error:
        if dtype is not None:
            raise
        raise ArtifactError(f"{GRAPH} is damaged: {error} Build the ensemble again.") from error
    return made


def _program(data: Any, weights: Mapping[str, Tensor], device: torch.device) -> tuple[Program, tuple[str, ...]]:
    """The program, rehearsed without data, so that it is known to hold together and what it would allocate."""
    try:
        program, state_names = read_program(data, weights, device)
        largest = program.largest_bytes
    except ArtifactError:
        raise
    except Exception as error:
        # What was rehearsed is a graph from a file: it may raise anything.
        line = next(iter(str(error).splitlines()), "")
        raise ArtifactError(
            f"{GRAPH} is damaged: {type(error).__name__} {line[:200]}. Build the ensemble again."
        ) from error
    free = available(device)
    if free is not None and largest > free:
        raise MemoryLimitError(
            f"{GRAPH} makes a value of {human(largest)} for one row of one member on {device}, of which {human(free)} "
            "is free. Use a machine with more, or a smaller model."
        )
    return program, state_names


def _check_tensors(manifest: Manifest, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors without storage of the shape and dtype that each weight of one member has.

    Raises:
        ArtifactError: stacked weights that are not of so many members, or NaN where members differ.
    """
    single, stacked = _by_prefix(tensors, _SINGLE), _by_prefix(tensors, _STACKED)
    if manifest.recipe is None and (
        not stacked or any(t.ndim == 0 or t.shape[0] != manifest.members for t in stacked.values())
    ):
        raise ArtifactError(f"{WEIGHTS} does not hold the {manifest.members} members that {MANIFEST} states.")
    for name in stacked if manifest.recipe is None else [n for n in manifest.perturbed if n in single]:
        if bool((stacked if manifest.recipe is None else single)[name].isnan().any()):
            raise ArtifactError(f"{WEIGHTS}: {name!r} holds NaN, so no answer would be a number. Build it again.")
    own = {name: tensor[0] for name, tensor in stacked.items()} if manifest.recipe is None else {}
    return {
        name: torch.empty_like(tensor, device="meta", dtype=dtype if tensor.is_floating_point() else None)
        for name, tensor in {**single, **own}.items()
    }


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a saved ensemble, checked.

    Raises:
        ArtifactError: it is missing, unreadable, or of another version.
    """
    if not directory.is_dir():
        raise ArtifactError(f"There is no directory {directory}; an ensemble is a directory with a {MANIFEST}.")
    if not (directory / MANIFEST).is_file():
        raise ArtifactError(f"{directory} has no {MANIFEST}, so it is not a saved ensemble.")
    return Manifest.from_json(parse_json(MANIFEST, read_plain(directory, MANIFEST, limit=MAX_JSON_BYTES)))


def _members(
    manifest: Manifest,
    program: Program,
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> tuple[Members, dict[str, Tensor]]:
    """The members, and the trained values of what the recipe perturbs."""
    weights = _by_prefix(tensors, _SINGLE)
    recipe = manifest.make_recipe()
    if recipe is None:
        return Members(manifest.members, weights, _by_prefix(tensors, _STACKED)).to(device, dtype), {}
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


def _check_replayable(ensemble: Ensemble) -> None:
    """The members must be those that loading will draw again."""
    recipe = ensemble.origin.recipe
    if recipe is None:
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


def _tensors(ensemble: Ensemble) -> dict[str, Tensor]:
    members, origin = ensemble.members, ensemble.origin
    parts = {_UNUSED: origin.unused, _SINGLE: {**members.shared, **origin.reference}}
    if origin.recipe is None:
        parts[_STACKED] = members.stacked
    # Clones, since two names may share storage (views of one tensor), which safetensors refuses.
    return {
        prefix + name: tensor.detach().cpu().contiguous().clone()
        for prefix, group in parts.items()
        for name, tensor in group.items()
    }


def _manifest(ensemble: Ensemble, files: Mapping[str, bytes]) -> Manifest:
    origin = ensemble.origin
    recipe = origin.recipe
    # As trained, whatever dtype the members were cast to: the draw is made from these.
    names = list(origin.reference)
    weights = [*ensemble.members.stacked.values(), *ensemble.members.shared.values()]
    dtypes = {weight.dtype for weight in weights if weight.is_floating_point()}
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by=f"ensembled {_version()}, torch {torch.__version__}",
        task=ensemble.task,
        members=len(ensemble),
        seed=origin.seed,
        recipe={"name": recipe.name, "settings": recipe.settings()} if recipe else None,
        perturbed=tuple(names),
        fingerprint=fingerprint(recipe, origin.reference, names, origin.seed, len(ensemble)) if recipe else "",
        dtype=plain(next(iter(dtypes))) if len(dtypes) == 1 else MIXED,
        noise_variance=ensemble.noise_variance,
        inputs=tuple(_describe(spec) for spec in ensemble.program.inputs),
        outputs=tuple(_describe(spec) for spec in ensemble.program.outputs),
        metadata=ensemble.metadata,
        files={
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    )


def _describe(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": plain(spec.dtype), "shape": list(spec.shape)}


def _version() -> str:
    try:
        return version("ensembled")
    except PackageNotFoundError:
        return "(source)"


def _by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _example(inputs: Any, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    if any(spec.name not in tensors for spec in inputs):
        return []
    found = [tensors[spec.name] for spec in inputs]
    for spec, tensor in zip(inputs, found, strict=True):
        if tensor.ndim == 0 or not tensor.shape[0] or tuple(tensor.shape[1:]) != spec.trailing:
            raise ArtifactError(f"{EXAMPLE} does not fit the input {spec.name!r}; build the ensemble again.")
        if not torch.can_cast(tensor.dtype, spec.dtype) or tensor.shape[0] != len(found[0]):
            raise ArtifactError(f"{EXAMPLE} does not fit the input {spec.name!r}; build the ensemble again.")
    return found

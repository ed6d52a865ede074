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
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as write_tensors
from torch import Tensor

from ensemble.calibration.state import Calibration
from ensemble.ensemble import Ensemble
from ensemble.errors import ArtifactError, MemoryLimitError, ModelError, first_line
from ensemble.members import Members, Progress
from ensemble.memory import available, human
from ensemble.origin import Origin
from ensemble.perturbation import Perturbation
from ensemble.program.program import Program, plain
from ensemble.storage import stored
from ensemble.storage.files import MAX_JSON_BYTES, parse_json, parse_tensors, read_plain, read_verified, write_directory
from ensemble.storage.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MIXED,
    Manifest,
    dtype_named,
    read_program,
    write_program,
)
from ensemble.storage.stored import WEIGHTS

GRAPH, EXAMPLE, CALIBRATION, REPORT = "graph.json", "example.safetensors", "calibration.safetensors", "report.json"


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
    stored.check_replayable(ensemble)
    files = {
        GRAPH: json.dumps(write_program(ensemble.program, ensemble.origin.state_names)).encode(),
        WEIGHTS: write_tensors(stored.tensors(ensemble)),
    }
    if keep_example and ensemble.origin.example:
        rows = zip(ensemble.program.inputs, ensemble.origin.example, strict=True)
        files[EXAMPLE] = write_tensors({spec.name: tensor.contiguous() for spec, tensor in rows})
    if ensemble.calibration is not None and (fitted := ensemble.calibration.tensors()):
        files[CALIBRATION] = write_tensors({name: t.cpu().contiguous().clone() for name, t in fitted.items()})
    if ensemble.report is not None:
        try:
            files[REPORT] = json.dumps(ensemble.report, indent=2, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"The report must be plain JSON values: {error}.") from None
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
    program, state_names = _program(parse_json(GRAPH, contents[GRAPH]), stored.empty(manifest, tensors, saved), place)
    unused = stored.unused(tensors)
    known = {*program.weight_names, *unused}
    if lost := [name for name in state_names if program.aliases.get(name, name) not in known]:
        raise ArtifactError(f"{WEIGHTS} lacks a part of the state dict: {lost[:5]}. Build the ensemble again.")
    members, reference = stored.members(manifest, program, tensors, place, dtype or saved, progress)
    dtypes = members.dtypes
    example = parse_tensors(EXAMPLE, contents[EXAMPLE]) if EXAMPLE in contents else {}
    origin = Origin(
        recipe=manifest.make_recipe(),
        seed=manifest.seed,
        reference=reference,
        unused=unused,
        state_names=state_names,
        example=_example(program.inputs, example),
        trainable=manifest.trainable,
    )
    try:
        made = Ensemble(
            program.to(place, dtypes),
            members,
            origin,
            task=manifest.task,
            noise_variance=manifest.noise_variance,
            metadata=manifest.metadata,
            calibration=_calibration(manifest, contents),
            report=_report(contents),
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
        raise ArtifactError(
            f"{GRAPH} is damaged: {type(error).__name__} {first_line(error)[:200]}. Build the ensemble again."
        ) from error
    free = available(device)
    if free is not None and largest > free:
        raise MemoryLimitError(
            f"{GRAPH} makes a value of {human(largest)} for one row of one member on {device}, of which {human(free)} "
            "is free. Use a machine with more, or a smaller model."
        )
    return program, state_names


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


def _manifest(ensemble: Ensemble, files: Mapping[str, bytes]) -> Manifest:
    origin = ensemble.origin
    recipe = origin.recipe
    # As trained, whatever dtype the members were cast to: the draw is made from these.
    names = list(origin.reference)
    weights = [*ensemble.members.stacked.values(), *ensemble.members.shared.values()]
    replayed = ""
    if isinstance(recipe, Perturbation):
        replayed = stored.fingerprint(recipe, origin.reference, names, origin.seed, len(ensemble))
    dtypes = {weight.dtype for weight in weights if weight.is_floating_point()}
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by=f"ensembled {_version()}, torch {torch.__version__}",
        task=ensemble.task,
        members=len(ensemble),
        seed=origin.seed,
        recipe={"name": recipe.name, "settings": recipe.settings()} if recipe else None,
        perturbed=tuple(names),
        trainable=origin.trainable,
        factored={} if replayed else _factored(ensemble.members),
        fingerprint=replayed,
        dtype=plain(next(iter(dtypes))) if len(dtypes) == 1 else MIXED,
        noise_variance=ensemble.noise_variance,
        calibration=None if ensemble.calibration is None else ensemble.calibration.settings(),
        inputs=tuple(_describe(spec) for spec in ensemble.program.inputs),
        outputs=tuple(_describe(spec) for spec in ensemble.program.outputs),
        metadata=ensemble.metadata,
        files={
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    )


def _factored(members: Members) -> dict[str, dict[str, Any]]:
    return {name: {"form": shape.form, "rank": shape.rank} for name, shape in members.factored.items()}


def _calibration(manifest: Manifest, contents: Mapping[str, bytes]) -> Calibration | None:
    if manifest.calibration is None:
        return None
    tensors = parse_tensors(CALIBRATION, contents[CALIBRATION]) if CALIBRATION in contents else {}
    return Calibration.from_parts(manifest.calibration, tensors)


def _report(contents: Mapping[str, bytes]) -> dict[str, Any] | None:
    if REPORT not in contents:
        return None
    found = parse_json(REPORT, contents[REPORT])
    if not isinstance(found, dict):
        raise ArtifactError(f"{REPORT} is no JSON object. Fit the ensemble again.")
    return found


def _describe(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": plain(spec.dtype), "shape": list(spec.shape)}


def _version() -> str:
    try:
        return version("ensembled")
    except PackageNotFoundError:
        return "(source)"


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

"""An ensemble on disk.

A directory of four files: ``manifest.json`` says what it is, ``graph.json`` is the exported graph with the signature,
``weights.safetensors`` holds tensors, and ``example.safetensors`` a few rows to try it with. A perturbed ensemble
stores the trained weights and the recipe, not its members: they are drawn again, and a fingerprint shows that they
came out the same. Nothing in it is code or a pickle, and nothing is believed before its hash and shape were checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from ensemble import members as member_weights
from ensemble.ensemble import Ensemble, Origin
from ensemble.errors import ArtifactError, EnsembledError, ModelError
from ensemble.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    dtype_named,
    read_program,
    write_program,
)
from ensemble.members import Members, Progress

GRAPH, WEIGHTS, EXAMPLE = "graph.json", "weights.safetensors", "example.safetensors"
# Stacked weights, weights as trained, and state that the graph does not read, side by side in one file.
_STACKED, _SINGLE, _UNUSED = "stacked/", "weight/", "unused/"
_MAX_JSON_BYTES = 256 * 2**20


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
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed into it, so that nobody ever loads half an ensemble.
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        files = {
            GRAPH: json.dumps(write_program(ensemble.program, ensemble.origin.state_names)).encode(),
            WEIGHTS: write_tensors(_tensors(ensemble)),
        }
        if keep_example:
            names = [spec.name for spec in ensemble.program.inputs]
            rows = zip(names, ensemble.origin.example, strict=False)
            files[EXAMPLE] = write_tensors({name: tensor.contiguous() for name, tensor in rows})
        manifest = _manifest(ensemble, files)
        for name, content in {**files, MANIFEST: manifest.to_bytes()}.items():
            (staging / name).write_bytes(content)
        staging.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
    contents = {name: _verified(directory, name, entry) for name, entry in manifest.files.items()}
    for name in (GRAPH, WEIGHTS):
        if name not in contents:
            raise ArtifactError(f"{MANIFEST} lists no {name}; the ensemble is incomplete. Build it again.")
    tensors = _read_tensors(WEIGHTS, contents[WEIGHTS])
    place = torch.device(device)
    shapes = _by_prefix(tensors, _SINGLE) | {n: t[0] for n, t in _by_prefix(tensors, _STACKED).items() if t.ndim}
    try:
        program, state_names = read_program(_parse(GRAPH, contents[GRAPH]), shapes, place)
    except ArtifactError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, SyntaxError, EnsembledError) as error:
        raise ArtifactError(f"{GRAPH} cannot be read ({type(error).__name__}); build the ensemble again.") from error
    kept = dtype or dtype_named(manifest.dtype)
    members, reference = _members(manifest, tensors, place, kept, progress)
    dtypes = {name: w.dtype for name, w in {**members.shared, **members.stacked}.items()}
    example = _read_tensors(EXAMPLE, contents[EXAMPLE]) if EXAMPLE in contents else {}
    origin = Origin(
        recipe=manifest.make_recipe(),
        seed=manifest.seed,
        reference=reference,
        unused=_by_prefix(tensors, _UNUSED),
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
    made.try_dtype()
    return made


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a saved ensemble, checked.

    Raises:
        ArtifactError: it is missing, unreadable, or of another version.
    """
    if not directory.is_dir():
        raise ArtifactError(f"There is no directory {directory}; an ensemble is a directory with a {MANIFEST}.")
    if not (directory / MANIFEST).is_file():
        raise ArtifactError(f"{directory} has no {MANIFEST}, so it is not a saved ensemble.")
    return Manifest.from_json(_parse(MANIFEST, _read(directory, MANIFEST, limit=_MAX_JSON_BYTES)))


def _members(
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> tuple[Members, dict[str, Tensor]]:
    """The members, and the trained values of what the recipe perturbs."""
    weights = _by_prefix(tensors, _SINGLE)
    recipe = manifest.make_recipe()
    if recipe is None:
        stacked = _by_prefix(tensors, _STACKED)
        if not stacked or any(t.ndim == 0 or t.shape[0] != manifest.members for t in stacked.values()):
            raise ArtifactError(f"{WEIGHTS} does not hold the {manifest.members} members that {MANIFEST} states.")
        return Members(manifest.members, weights, stacked).to(device, dtype), {}
    if missing := sorted(set(manifest.perturbed) - set(weights)):
        raise ArtifactError(f"{WEIGHTS} lacks the perturbed weights {missing[:5]}; build the ensemble again.")
    for name in manifest.perturbed:
        if not weights[name].is_floating_point():
            raise ArtifactError(f"{WEIGHTS}: the perturbed weight {name!r} is not floating point.")
    names = list(manifest.perturbed)
    if fingerprint(recipe, weights, names, manifest.seed) != manifest.fingerprint:
        raise ArtifactError(
            "The members drawn from the recipe are not those that were saved: the recipe's code or this platform's "
            "arithmetic has changed. Build the ensemble again with this version."
        )
    drawn = member_weights.draw(
        recipe,
        weights,
        names,
        count=manifest.members,
        seed=manifest.seed,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    return drawn, {name: weights[name] for name in names}


def fingerprint(recipe: Any, weights: Mapping[str, Tensor], names: list[str], seed: int) -> str:
    """SHA-256 over the first member's own weights, which shows that drawing gives what it gave before."""
    digest = hashlib.sha256()
    for name in names:
        drawn = recipe.draw(name, weights[name].cpu(), seed, range(1))
        digest.update(f"{name}\0".encode() + drawn.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by=f"ensembled {_version()}, torch {torch.__version__}",
        task=ensemble.task,
        members=len(ensemble),
        seed=origin.seed,
        recipe={"name": recipe.name, "settings": recipe.settings()} if recipe else None,
        perturbed=tuple(names),
        fingerprint=fingerprint(recipe, origin.reference, names, origin.seed) if recipe else "",
        dtype=str(ensemble.dtype).removeprefix("torch."),
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
    return {"name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape)}


def _version() -> str:
    try:
        return version("ensembled")
    except PackageNotFoundError:
        return "(source)"


def _verified(directory: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    content = _read(directory, name, limit=int(entry["bytes"]))
    if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ArtifactError(f"{name} is not what {MANIFEST} says (size or SHA-256 differ): damaged or exchanged. Copy "
                            "it again from where it was built, or build it again.")  # fmt: skip
    return content


def _read(directory: Path, name: str, limit: int) -> bytes:
    file = directory / name
    if file.is_symlink() or not file.is_file():
        raise ArtifactError(f"{name} is missing, or not a plain file (links are not followed).")
    with contextlib.suppress(OSError), file.open("rb") as stream:
        # One byte more than allowed tells that there is more, without reading it.
        return stream.read(limit + 1)
    raise ArtifactError(f"{name} cannot be read; check its permissions.")


def _parse(name: str, content: bytes) -> Any:
    if len(content) > _MAX_JSON_BYTES:
        raise ArtifactError(f"{name} is over {_MAX_JSON_BYTES >> 20} MiB, which no ensemble needs.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not JSON: damaged, or not a saved ensemble.") from error


def _read_tensors(name: str, content: bytes) -> dict[str, Tensor]:
    try:
        return read_tensors(content)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise ArtifactError(
            f"{name} is not in the safetensors format; pickled weights (.pt, .bin) are never loaded. Build it again."
        ) from error


def _by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _example(inputs: Any, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    found = [tensors.get(spec.name) for spec in inputs]
    for spec, tensor in zip(inputs, found, strict=True):
        if tensor is None:
            return []
        if tuple(tensor.shape[1:]) != spec.trailing or not tensor.shape[0] or tensor.dtype != spec.dtype:
            raise ArtifactError(f"{EXAMPLE} does not fit the input {spec.name!r}; delete both or build it again.")
    return [tensor for tensor in found if tensor is not None]

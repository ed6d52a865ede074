"""What the JSON files of a saved ensemble hold, checked field by field when they are read."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.construct import MAX_MEMBERS
from ensemble.errors import ArtifactError, EnsembledError
from ensemble.perturbation import Recipe, recipes
from ensemble.perturbation.factors import Shape
from ensemble.program import graph as graphs
from ensemble.program.program import Program, Signature, TensorSpec
from ensemble.program.structure import Arguments, Structure
from ensemble.tasks import TASKS, Task

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MIXED = "mixed"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """``manifest.json``.

    Args:
        format_version: of this layout.
        created_by: versions that wrote it, for people.
        task: what the outputs mean.
        members: N.
        seed: of the members' noise.
        recipe: {"name", "settings"}, or None for separately trained models, whose weights are stored.
        perturbed: names of the weights that the recipe selected.
        trainable: names of the model's parameters, which other recipes may select; None if they are not known.
        factored: of members that are stored themselves, the weights that are so as factors: name -> {"form", "rank"}.
        fingerprint: SHA-256 of the own weights of a few members; empty where they are stored themselves.
        dtype: of the floating weights in use; "mixed" if they have several, as they are stored.
        noise_variance: of a regression, or None.
        calibration: what was fitted, but for its tensors; None if nothing was.
        inputs, outputs: {"name", "dtype", "shape"} of each, for people and tools; the graph's own count.
        metadata: free JSON values.
        files: {"sha256", "bytes"} of every other file.
    """

    format_version: int
    created_by: str
    task: Task
    members: int
    seed: int
    recipe: dict[str, Any] | None
    perturbed: tuple[str, ...]
    trainable: tuple[str, ...] | None
    factored: dict[str, dict[str, Any]]
    fingerprint: str
    dtype: str
    noise_variance: float | None
    calibration: dict[str, Any] | None
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    metadata: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def to_bytes(self) -> bytes:
        """As JSON for people.

        Raises:
            ArtifactError: the metadata is not plain JSON.
        """
        try:
            return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"metadata must be plain JSON values (text, numbers, lists, dicts): {error}.") from None

    def make_recipe(self) -> Recipe | None:
        """The recipe itself.

        Raises:
            ArtifactError: this version does not know it, or its settings.
        """
        if self.recipe is None:
            return None
        known = recipes.get(self.recipe["name"])
        if known is None:
            raise ArtifactError(
                f"{MANIFEST} names the recipe {str(self.recipe['name'])[:60]!r}, which this version does not know "
                f"(it knows {', '.join(sorted(recipes))}). Install a newer ensembled."
            )
        try:
            return known.from_settings(self.recipe["settings"])
        except (EnsembledError, TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{MANIFEST}: the recipe's settings are wrong: {str(error)[:300]}") from error

    def shapes(self, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Shape]:
        """The stored factors, of weights of these sizes.

        Raises:
            ArtifactError: a factored weight that is not there, or is no matrix.
        """
        for name in self.factored:
            if len(sizes.get(name, ())) < 2:
                raise ArtifactError(f"{MANIFEST}: {name!r} is no weight that has factors. Build the ensemble again.")
        return {name: Shape(entry["form"], entry["rank"], sizes[name]) for name, entry in self.factored.items()}

    @staticmethod
    def from_json(data: Any) -> Manifest:
        """Check what was read.

        Raises:
            ArtifactError: of another version, or a field that is missing or wrong.
        """
        if not isinstance(data, dict) or "format_version" not in data:
            raise ArtifactError(f"{MANIFEST} has no format_version, so it is not that of a saved ensemble.")
        if data["format_version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"{MANIFEST} has format version {str(data['format_version'])[:20]!r}; this ensembled reads version "
                f"{FORMAT_VERSION}. Build the ensemble again, or install the version that wrote it."
            )
        # What ensembles that were saved before had no need to say.
        data = {"factored": {}, "calibration": None, "trainable": None, **data}
        whole = re.compile(r"[0-9a-f]{64}")
        files = data.get("files")
        checks = {
            "created_by": isinstance(data.get("created_by"), str),
            "task": data.get("task") in TASKS,
            "members": _integer(data.get("members"), 1, MAX_MEMBERS),
            "seed": _integer(data.get("seed"), 0, 2**63 - 1),
            "recipe": data.get("recipe", 0) is None
            or (
                isinstance(data.get("recipe"), dict)
                and isinstance(data["recipe"].get("name"), str)
                and isinstance(data["recipe"].get("settings"), dict)
            ),
            "perturbed": _texts(data.get("perturbed")),
            "trainable": data.get("trainable") is None or _texts(data["trainable"]),
            "factored": isinstance(data.get("factored"), dict)
            and all(
                isinstance(entry, dict)
                and entry.keys() == {"form", "rank"}
                and entry["form"] in ("additive", "multiplicative")
                and _integer(entry["rank"], 1, 2**16)
                for entry in data["factored"].values()
            ),
            "calibration": isinstance(data.get("calibration"), dict | None),
            "fingerprint": isinstance(data.get("fingerprint"), str),
            "dtype": data.get("dtype") == MIXED or _floating(data.get("dtype")),
            "noise_variance": data.get("noise_variance", 0) is None
            or (_number(data.get("noise_variance")) and data["noise_variance"] >= 0),
            "inputs": isinstance(data.get("inputs"), list),
            "outputs": isinstance(data.get("outputs"), list),
            "metadata": isinstance(data.get("metadata"), dict),
            "files": isinstance(files, dict)
            and all(
                re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(json|safetensors)", name)
                and isinstance(entry, dict)
                and _integer(entry.get("bytes"), 0, 2**50)
                and isinstance(entry.get("sha256"), str)
                and whole.fullmatch(entry["sha256"])
                for name, entry in files.items()
            ),
        }
        if wrong := [name for name, fine in checks.items() if not fine]:
            raise ArtifactError(f"{MANIFEST}: missing or wrong: {', '.join(wrong)}. Build the ensemble again.")
        fields = {field.name for field in dataclasses.fields(Manifest)}
        listed = {
            name: None if data[name] is None else tuple(data[name])
            for name in ("perturbed", "trainable", "inputs", "outputs")
        }
        return Manifest(**{**{name: value for name, value in data.items() if name in fields}, **listed})


def write_program(program: Program, state_names: Sequence[str]) -> dict[str, Any]:
    """A program as ``graph.json``: the graph, the signature, the names of the state dict.

    Raises:
        ModelError: the graph holds something that cannot be written.
    """
    assert program.graph is not None

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape)}

    return {
        "inputs": [tensor(spec) for spec in program.inputs],
        "outputs": [tensor(spec) for spec in program.outputs],
        "positional": list(program.arguments.positional),
        "arguments": program.arguments.structure.layout,
        "results": program.results.layout,
        "state_names": list(state_names),
        "aliases": program.aliases,
        "graph": graphs.to_json(program.graph),
    }


def read_program(data: Any, weights: Mapping[str, Tensor], device: torch.device) -> tuple[Program, tuple[str, ...]]:
    """The inverse of :func:`write_program`.

    Args:
        weights: a tensor of the right shape and dtype for each weight.

    Raises:
        ArtifactError: anything that :func:`write_program` would not have written.
    """
    if not isinstance(data, dict):
        raise ArtifactError("graph: not an object.")
    inputs, outputs = (_specs(data.get(key), key) for key in ("inputs", "outputs"))
    texts = ("positional", "state_names")
    if not all(_texts(data.get(key)) for key in texts):
        raise ArtifactError("graph: positional and state_names must be lists of names.")
    aliases = data.get("aliases")
    if not isinstance(aliases, dict) or not _texts(list(aliases.values())):
        raise ArtifactError("graph: aliases must map names to names.")
    for layout, count in (("arguments", len(inputs)), ("results", len(outputs))):
        if _leaves(data.get(layout)) != list(range(count)):
            raise ArtifactError(f"graph: {layout} do not hold each tensor once, in order.")
    parameters = data["arguments"].get("dict")
    if not isinstance(parameters, dict) or not set(data["positional"]) <= set(parameters):
        raise ArtifactError("graph: arguments must be named, those that may be given by position included.")
    graph = graphs.from_json(data.get("graph"), device)
    placeholders = sum(node.op == "placeholder" for node in graph.nodes)
    results = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    if placeholders != len(inputs) or len(results) != len(outputs):
        raise ArtifactError("graph: the signature has not as many inputs and outputs as the graph.")
    used = list(graphs.used_weights(graph))
    if missing := [name for name in used if name not in weights]:
        raise ArtifactError(f"The graph reads weights that are not there: {missing[:5]}. Build the ensemble again.")
    signature = Signature(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        arguments=Arguments(tuple(data["positional"]), Structure(data["arguments"], tuple(s.name for s in inputs))),
        results=Structure(data["results"], tuple(spec.name for spec in outputs)),
        aliases=aliases,
    )
    module = graphs.skeleton(graph, {name: weights[name] for name in used})
    program = Program(module, signature, weight_names=used, graph=graph)
    return program, tuple(data["state_names"])


def dtype_named(name: Any, *, strict: bool = True) -> torch.dtype | None:
    """The torch dtype of a name such as "float32"; None where it is none and ``strict`` is off.

    Raises:
        ArtifactError: it is none.
    """
    found = vars(torch).get(name) if isinstance(name, str) and name.isidentifier() else None
    if isinstance(found, torch.dtype):
        return found
    if strict:
        raise ArtifactError(f"Unknown dtype {str(name)[:40]!r}.")
    return None


def _specs(data: Any, key: str) -> list[TensorSpec]:
    if not isinstance(data, list) or not data:
        raise ArtifactError(f"graph: {key} must be a list of tensors.")
    specs = []
    for entry in data:
        fine = (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("shape"), list)
            and all(_integer(size, -1, 2**40) for size in entry["shape"])
            and entry["shape"].count(-1) == 1
            and (key == "outputs" or entry["shape"][0] == -1)
        )
        if not fine:
            raise ArtifactError(f"graph: {key} hold an entry that is no tensor.")
        dtype = dtype_named(entry.get("dtype"))
        assert dtype is not None
        specs.append(TensorSpec(entry["name"], dtype, tuple(entry["shape"])))
    if len({spec.name for spec in specs}) != len(specs):
        raise ArtifactError(f"graph: {key} repeat a name.")
    return specs


def _leaves(layout: Any, depth: int = 0) -> list[int]:
    if isinstance(layout, dict) and len(layout) == 1 and depth < 32:
        ((kind, content),) = layout.items()
        if kind == "tensor" and _integer(content, 0, 2**20):
            return [content]
        if kind == "constant" and (content is None or isinstance(content, bool | int | float | str)):
            return []
        if kind in ("list", "tuple") and isinstance(content, list):
            return [leaf for item in content for leaf in _leaves(item, depth + 1)]
        if kind == "dict" and isinstance(content, dict):
            return [leaf for item in content.values() for leaf in _leaves(item, depth + 1)]
    raise ArtifactError("graph: unreadable structure of inputs or outputs.")


def _floating(name: Any) -> bool:
    found = dtype_named(name, strict=False)
    return found is not None and found.is_floating_point


def _integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

"""JSON files of saved ensembles changed at random: refused, or loaded, and never anything else."""

import copy
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ensemble
from ensemble import ArtifactError, MemoryLimitError
from ensemble.vectorised import evaluate
from tests.tampering import rehash


def leaves(tree, path=()):
    """Paths of every value in a JSON tree."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


VALUES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**62, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), "", "x",
     "0", "input", "v0", "v1", "aten.add.Tensor", "aten.expand.default", "operator.mul", "operator.getitem", "float64",
     "__class__", "import os", "\n", "'", [], {}, [[]], {"node": "v0"}, {"node": "v1"}, {"tensor": 0}, {"tensor": 1},
     {"constant": 1}, {"dtype": "float64"}, {"dtype": "int64"}, {"device": None}, {"float": "nan"}, {"word": "mean"},
     [1, 2], [-1], [2**40], {"dict": {}}, [{"node": "v0"}]]
).map(copy.deepcopy)  # fmt: skip


def mutated(tree, data):
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([p for p in leaves(tree) if p]))
        owner = tree
        for key in path:
            owner = owner[key]
        match data.draw(st.sampled_from(["put", "put", "put", "drop", "double", "swap"])):
            case "put":
                owner[last] = data.draw(VALUES)
            case "drop":
                del owner[last]
                if not tree:
                    return tree
            case "double" if isinstance(owner, list):
                owner.insert(last, copy.deepcopy(owner[last]))
            case "swap" if isinstance(owner, list):
                owner.reverse()
            case _:
                owner[last] = copy.deepcopy(tree)
    return tree


@pytest.mark.parametrize("name", ["mlp", "many_inputs"])
@pytest.mark.parametrize("file", ["manifest.json", "graph.json"])
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_changed_json_file_is_refused_or_loads_and_never_does_anything_else(saved, tmp_path, name, file, data):
    directory = tmp_path / "m"
    if not directory.exists():
        shutil.copytree(saved / name, directory)
    original = json.loads((saved / name / file).read_text())
    (directory / file).write_text(json.dumps(mutated(original, data)))
    if file != "manifest.json":
        shutil.copy(saved / name / "manifest.json", directory)
        rehash(directory)
    refusal = ""
    try:
        ens = ensemble.load(directory)
    except (ArtifactError, MemoryLimitError) as error:
        refusal = str(error)
    else:
        next(evaluate(ens.program, ens.members, ens.example()))
        for index in (0, len(ens) - 1):
            ens.member(index)
    assert "\n" not in refusal
    assert len(refusal) < 800
    assert torch.is_grad_enabled()

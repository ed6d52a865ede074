"""Saved ensembles made or changed to do harm: each is refused with a text that a person can act on."""

import io
import json
import os
import pickle
import shutil
import struct

import pytest
import torch

import ensemble
from ensemble import MemoryLimitError
from tests.tampering import change_json, change_tensors, refused, replace


class Payload:
    """Pickles to a program that makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


@pytest.mark.parametrize("name", ["weights.safetensors", "example.safetensors", "graph.json"])
def test_a_pickle_in_the_place_of_a_file_is_not_opened(victim, name):
    stream = io.BytesIO()
    torch.save({"weight/0.weight": Payload(victim.parent / "owned")}, stream)
    for content in (pickle.dumps(Payload(victim.parent / "owned")), stream.getvalue()):
        replace(victim, name, content)
        refused(victim, "pickled weights.*are never loaded|is not JSON")


FILES = ["weights.safetensors", "example.safetensors", "graph.json"]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_by_its_hash(victim, name):
    content = (victim / name).read_bytes()
    for changed in (content[:-1], content[: len(content) // 2], b"", bytes([content[0] ^ 1]) + content[1:]):
        (victim / name).write_bytes(changed)
        refused(victim, f"{name} is not what manifest.json says.*Copy it again")
    (victim / name).write_bytes(content + b" ")
    refused(victim, f"{name} is larger than the {len(content)} bytes")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_files_that_are_missing_links_directories_or_unreadable_are_refused(victim, name, monkeypatch):
    path = victim / name
    kept = path.rename(victim.parent / "kept")
    text = "has no manifest.json" if name == "manifest.json" else f"{name} is missing, or not a plain file"
    refused(victim, text)
    path.mkdir()
    refused(victim, text)
    path.rmdir()
    path.symlink_to(kept)
    refused(victim, f"{name} is missing, or not a plain file")
    path.unlink()
    os.mkfifo(path)
    refused(victim, text)
    path.unlink()
    shutil.copy(kept, path)

    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    refused(victim, r"cannot be read \(Permission denied\); check its permissions")


def test_no_directory_and_an_empty_one_say_what_an_ensemble_is(tmp_path):
    refused(tmp_path / "nothing", "There is no directory .*nothing; an ensemble is a directory with a manifest.json")
    refused(tmp_path, "has no manifest.json, so it is not a saved ensemble")
    (tmp_path / "manifest.json").write_text("{}")
    refused(tmp_path, "has no format_version")


@pytest.mark.parametrize(
    "name",
    ["../x.json", "/etc/passwd", "a/b.json", "..", "x.pt", "", ".hidden.json", "x.json\n", "a b.json", "C:x.json"],
)
def test_no_file_outside_the_directory_is_read(victim, name):
    entry = {"sha256": "0" * 64, "bytes": 1}
    change_json(victim, "manifest.json", lambda m: m["files"].update({name: entry}))
    refused(victim, "missing or wrong: files")


@pytest.mark.parametrize("size", [2**50, 2**40])
def test_a_huge_declared_size_allocates_nothing(victim, size):
    change_json(victim, "manifest.json", lambda m: m["files"]["graph.json"].update(bytes=size))
    refused(victim, "graph.json is not what manifest.json says")
    with (victim / "graph.json").open("ab") as stream:
        stream.truncate(2**34)
    refused(victim, "graph.json is larger than")


WRONG = {
    "created_by": [1, None],
    "task": ["regressing", None, ["raw"], {}, 1],
    "members": [0, -1, 1.5, True, "5", None, 2**20 + 1, 10**30, [5]],
    "seed": [-1, 2**63, 0.5, "0", None, False],
    "recipe": ["gaussian", [], {"name": "gaussian"}, {"name": 1, "settings": {}}, {"name": "gaussian", "settings": []}],
    "perturbed": ["0.weight", [1], None, [["a"]], {"a": 1}],
    "fingerprint": [None, 1],
    "dtype": ["int64", "complex64", "float33", "nn", "__class__", None, 1, "tensor"],
    "noise_variance": [-1, "1", float("nan"), float("inf"), 10**400, True, [1]],
    "inputs": [None, {}, "x"],
    "outputs": [None, {}, "x"],
    "metadata": [None, [], "x"],
    "files": [
        None,
        [],
        {"graph.json": {}},
        {"graph.json": {"sha256": "0" * 64, "bytes": -1}},
        {"graph.json": {"sha256": "0" * 63, "bytes": 1}},
        {"graph.json": {"sha256": "0" * 64, "bytes": 1e3}},
        {"graph.json": {"sha256": "0" * 64, "bytes": 10**60}},
        {"graph.json": 1},
    ],
}


@pytest.mark.parametrize("field", WRONG)
def test_every_field_of_the_manifest_is_checked(victim, field):
    original = json.loads((victim / "manifest.json").read_text())
    for value in WRONG[field]:
        (victim / "manifest.json").write_text(json.dumps({**original, field: value}))
        refused(victim, f"manifest.json: missing or wrong: {field}.")
    del original[field]
    (victim / "manifest.json").write_text(json.dumps(original))
    refused(victim, f"missing or wrong: {field}.")


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, [1], {"a": "b" * 900}])
def test_another_format_is_told_apart(victim, version):
    change_json(victim, "manifest.json", lambda m: m.update(format_version=version))
    refused(victim, "has format version .*; this ensembled reads version 1")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "has no format_version"),
        (b'"text"', "has no format_version"),
        (b"null", "has no format_version"),
    ],
)
def test_a_manifest_that_is_none_is_refused(victim, content, text):
    (victim / "manifest.json").write_bytes(content)
    refused(victim, text)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"name": "os.system", "settings": {}}, "names the recipe 'os.system', which this version does not know"),
        ({"name": "x" * 900, "settings": {}}, "names the recipe"),
        ({"name": "gaussian", "settings": {}}, "settings are wrong"),
        ({"name": "gaussian", "settings": {"scale": -1}}, "settings are wrong: scale must be"),
        ({"name": "gaussian", "settings": {"scale": 10**400}}, "settings are wrong: scale must be"),
        ({"name": "gaussian", "settings": {"scale": 1, "__class__": 1}}, "has no setting __class__"),
        ({"name": "gaussian", "settings": {"scale": 1, "include": 5}}, "settings are wrong"),
        ({"name": "gaussian", "settings": {"scale": 0.2}}, "not those that were saved"),
    ],
)
def test_recipes_that_are_unknown_wrong_or_changed_are_refused(victim, recipe, text):
    change_json(victim, "manifest.json", lambda m: m.update(recipe=recipe))
    refused(victim, text)


def test_members_that_do_not_fit_are_refused_before_they_are_allocated(victim, monkeypatch):
    stated = json.loads((victim / "manifest.json").read_text())["fingerprint"]
    change_json(victim, "manifest.json", lambda m: m.update(members=2**20))
    refused(victim, "not those that were saved")
    monkeypatch.setattr("ensemble.storage.stored.fingerprint", lambda *args: stated)
    monkeypatch.setattr("ensemble.memory.available", lambda device: 2**24)
    with pytest.raises(MemoryLimitError, match=r"1048576 members of .* What would fit: "):
        ensemble.load(victim)


TENSORS = {
    "a weight missing": (lambda t: t.pop("weight/0.weight"), "reads weights that are not there"),
    "another shape": (lambda t: t.update({"weight/0.weight": torch.zeros(16, 7)}), "graph.json is damaged"),
    "no dimension": (lambda t: t.update({"weight/0.weight": torch.zeros(())}), "graph.json is damaged"),
    "integers": (lambda t: t.update({"weight/0.weight": torch.zeros(16, 6, dtype=torch.int64)}), "damaged|floating"),
    "NaN": (lambda t: t["weight/3.bias"].fill_(torch.nan), "'3.bias' holds NaN"),
    "another value": (lambda t: t["weight/3.bias"].add_(1), "not those that were saved"),
    "nothing": (lambda t: t.clear(), "reads weights that are not there"),
    "names that are code": (lambda t: t.update({"weight/__class__.x": torch.zeros(1)}), None),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_do_not_fit_are_refused(victim, kind):
    change, text = TENSORS[kind]
    change_tensors(victim, "weights.safetensors", change)
    if text is None:
        ensemble.load(victim)
    else:
        refused(victim, text)


STACKED = {
    "fewer members": lambda t: t.update({"stacked/0.weight": t["stacked/0.weight"][:2]}),
    "no members": lambda t: t.update({"stacked/0.weight": t["stacked/0.weight"][:0]}),
    "no dimension": lambda t: t.update({"stacked/0.weight": torch.zeros(())}),
    "NaN": lambda t: t["stacked/3.bias"][1].fill_(torch.nan),
    "another shape": lambda t: t.update({"stacked/0.weight": torch.zeros(3, 5, 5)}),
    "nothing stacked": lambda t: [t.pop(name) for name in list(t)],
}


@pytest.mark.parametrize("kind", STACKED)
def test_stacked_weights_that_do_not_fit_are_refused(saved, tmp_path, kind):
    shutil.copytree(saved / "stacked", tmp_path / "m")
    change_tensors(tmp_path / "m", "weights.safetensors", STACKED[kind])
    refused(tmp_path / "m", "does not hold the 3 members|holds NaN|graph.json is damaged")


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b'{"a": 1}', b'{"weight/x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99999]}}',
     b'{"weight/x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
     b'{"weight/x": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 4]}}'],
)  # fmt: skip
def test_broken_safetensors_are_refused(victim, header):
    replace(victim, "weights.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 4)
    refused(victim, "not in the safetensors format")
    replace(victim, "weights.safetensors", struct.pack("<Q", 2**62) + b"{}")
    refused(victim, "not in the safetensors format")


EXAMPLES = {
    "another shape": lambda t: t.update(input=torch.zeros(2, 7)),
    "no rows": lambda t: t.update(input=torch.zeros(0, 6)),
    "no dimension": lambda t: t.update(input=torch.zeros(())),
    "another kind": lambda t: t.update(input=torch.zeros(2, 6, dtype=torch.complex64)),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_that_does_not_fit_is_refused(victim, kind):
    change_tensors(victim, "example.safetensors", EXAMPLES[kind])
    refused(victim, "example.safetensors does not fit the input 'input'")


def test_an_example_of_unequal_rows_is_refused(saved, tmp_path):
    shutil.copytree(saved / "many_inputs", tmp_path / "m")
    change_tensors(tmp_path / "m", "example.safetensors", lambda t: t.update(kind=t["kind"][:1]))
    refused(tmp_path / "m", "example.safetensors does not fit the input 'kind'")

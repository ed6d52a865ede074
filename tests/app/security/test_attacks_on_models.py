"""What lies in the directory of models, and names that lead out of it."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import zipfile

import pytest
import torch

import ensemble
from app.versions import NAME, VERSION
from tests.app.security.conftest import Trap
from tests.app.support import ROOT
from tests.tampering import replace

NAMES = ["..", ".", "", "../house", "..%2fhouse", "..%5chouse", "%2e%2e", "/etc", "%2fetc%2fpasswd", "linked", "a%20b",
         "-x", ".hidden", "x" * 65, "house%00", "house/", "house%2f1", "house%0d%0ax", "hou%73e/../../etc", "~root",
         "file:%2f%2f%2fetc%2fpasswd", "house:1", "house*", "%u002e%u002e", "..;", "ｈouse"]  # fmt: skip
VERSIONS = ["0", "01", "-1", "+1", "1.0", "1e0", "..", "%2e%2e", "1%2f..", "9" * 30, "٣", "1%00", "latest", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_out_of_the_directory_names_nothing(fortress, name):
    """4: whatever it is written like, it is 404 or 405, and the answer knows nothing of the machine."""
    for method, path in [("GET", ""), ("GET", "/ready"), ("GET", "/config"), ("GET", "/stats"), ("POST", "/infer")]:
        line = f"{method} /v2/models/{name}{path} HTTP/1.1".encode()
        status, _, body = fortress.server.raw(
            line + b"\r\nhost: localhost\r\nx-api-key: %s\r\ncontent-length: 2\r\n\r\n{}" % fortress.key.encode()
        )
        assert status in (400, 404, 405), (name, path)
        assert str(fortress.root).encode() not in body
        assert b"root:" not in body


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_that_is_none_names_nothing(fortress, version):
    """4: only what is written as a directory's name is written, and not what Python would take for the same number."""
    line = f"GET /v2/models/house/versions/{version} HTTP/1.1".encode()
    status, _, body = fortress.server.raw(
        line + b"\r\nhost: localhost\r\nx-api-key: %s\r\n\r\n" % fortress.key.encode()
    )
    assert status in (400, 404)
    assert str(fortress.root).encode() not in body


def test_what_is_no_name_or_leads_out_is_never_served(fortress):
    """4: a link out of the directory, hidden directories, a name that is too long, a version with a leading zero."""
    assert {path.name for path in fortress.root.iterdir()} > {"linked", "a b", ".hidden", "-x", "x" * 65}
    assert (fortress.root / "house" / "01" / "manifest.json").is_file()
    with fortress.client() as client:
        found = {(entry["name"], entry["version"]) for entry in client.post("/v2/repository/index").json()}
    assert found == {("house", "1"), ("pickled", "1")}
    assert all(NAME.fullmatch(name) and VERSION.fullmatch(version) for name, version in found)


def test_a_pickle_in_the_place_of_weights_is_not_opened(fortress):
    """5: its hash is right, its name says safetensors; it is refused, it did not run, and the other models answer."""
    with fortress.client() as client:
        entry = next(e for e in client.post("/v2/repository/index").json() if e["name"] == "pickled")
        assert entry["state"] == "UNAVAILABLE"
        assert "pickled weights (.pt, .bin) are never loaded" in entry["reason"]
        assert client.post("/v2/models/pickled/infer", json={"inputs": []}).status_code == 503
    assert not fortress.owned.exists()
    assert fortress.is_well()


def test_the_trap_is_one(tmp_path):
    """5: what the other attacks rely on: whoever unpickles it runs a command."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "example.safetensors", "graph.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["pickle", "torch.save", "exported program"])
def test_no_file_of_a_model_may_be_a_pickle(tmp_path, models, name, kind):
    """5: in any of its files and in any of PyTorch's own containers, loading refuses it before anything runs."""
    trap = Trap(tmp_path / "owned")
    match kind:
        case "pickle":
            content = pickle.dumps(trap)
        case "torch.save":
            torch.save({"weight": trap}, tmp_path / "file")
            content = (tmp_path / "file").read_bytes()
        case _:
            with zipfile.ZipFile(tmp_path / "file", "w") as archive:
                archive.writestr("archive_format", "pt2")
                archive.writestr("data/weights/weight_0", pickle.dumps(trap))
            content = (tmp_path / "file").read_bytes()
    shutil.copytree(models / "house" / "1", tmp_path / "m")
    if name == "manifest.json":
        (tmp_path / "m" / name).write_bytes(content)
    else:
        replace(tmp_path / "m", name, content)
    with pytest.raises(ensemble.ArtifactError):
        ensemble.load(tmp_path / "m")
    assert not (tmp_path / "owned").exists()


def test_a_manifest_cannot_name_files_elsewhere(tmp_path, models):
    """4, 5: files are those of the directory, whatever the manifest calls them."""
    shutil.copytree(models / "house" / "1", tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    for name in ("../secret", "/etc/passwd", "weights.safetensors/../../secret"):
        manifest["files"][name] = manifest["files"]["weights.safetensors"]
        (tmp_path / "m" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ensemble.ArtifactError):
            ensemble.load(tmp_path / "m")
        del manifest["files"][name]


def test_nothing_of_the_service_can_unpickle():
    """5, 6: neither package imports what unpickles, loads weights as Python objects, or evaluates text."""
    unpickles = {
        "pickle",
        "_pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
        "multiprocessing",
    }
    for file in [*(ROOT / "app").rglob("*.py"), *(ROOT / "ensemble").rglob("*.py")]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not unpickles & {name.split(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.export.load", "torch.jit.load"), file
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                # `ensembled build` reads weights for whoever calls it; the service reads none of these.
                assert called != "torch.load" or given.get("weights_only") == "True", file
                assert given.get("allow_pickle", "False") == "False", file

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ensemble
from ensemble import ArtifactError, ModelError
from tests.reference import call, tensors
from tests.scenarios import SCENARIOS, mlp, seeded
from tests.tampering import change_json

FILES = ["example.safetensors", "graph.json", "manifest.json", "weights.safetensors"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_loaded_ensemble_answers_bit_for_bit_as_the_saved_one(made, name, tmp_path):
    ens, scenario = made(name), SCENARIOS[name]
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == FILES
    for rows in (1, 2, 7):
        inputs = scenario.inputs(rows)
        for a, b in zip(tensors(call(ens, inputs)), tensors(call(again, inputs)), strict=True):
            assert torch.equal(a, b)
    for index in (0, 4):
        assert again.member(index).keys() == ens.member(index).keys()
        assert all(torch.equal(t, ens.member(index)[key]) for key, t in again.member(index).items())
    assert (again.origin.recipe, again.origin.seed, len(again)) == (ens.origin.recipe, 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(again.example(), ens.example(), strict=True))
    # What was loaded is saved as it was.
    again.save(tmp_path / "n")
    for file in FILES[:2] + FILES[3:]:
        assert (tmp_path / "n" / file).read_bytes() == (tmp_path / "m" / file).read_bytes()


FRESH = """
import sys, torch, ensemble
from pathlib import Path
from safetensors.torch import load_file, save_file
for directory in sys.argv[1:]:
    ens = ensemble.load(directory)
    given = load_file(directory + ".in")
    flat = [given[str(i)] for i in range(len(given))]
    outputs = ens({spec.name: tensor for spec, tensor in zip(ens.program.inputs, flat)})
    def leaves(v):
        if isinstance(v, torch.Tensor): return [v]
        return [t for item in (v.values() if isinstance(v, dict) else v) for t in leaves(item)] \\
            if isinstance(v, (dict, tuple, list)) else []
    save_file({str(i): t.contiguous() for i, t in enumerate(leaves(outputs))}, directory + ".out")
assert "tests" not in sys.modules
"""


def test_a_fresh_process_without_the_models_class_gives_the_same(made, tmp_path):
    names = ["cnn", "lstm", "encoder", "many_inputs", "odd", "tied"]
    for name in names:
        made(name).save(tmp_path / name)
        flat = tensors(SCENARIOS[name].inputs(4))
        save_file({str(i): t.contiguous() for i, t in enumerate(flat)}, tmp_path / f"{name}.in")
    command = [sys.executable, "-c", FRESH, *(str(tmp_path / name) for name in names)]
    subprocess.run(command, check=True, cwd=tmp_path)
    for name in names:
        found = load_file(tmp_path / f"{name}.out")
        expected = tensors(call(made(name), SCENARIOS[name].inputs(4)))
        for number, output in enumerate(expected):
            assert torch.equal(found[str(number)], output)


def test_separately_trained_models_go_round(tmp_path):
    models = [seeded(SCENARIOS["cnn"], seed) for seed in range(3)]
    x = SCENARIOS["cnn"].inputs(4)
    ens = ensemble.stack(models, example=x, task="classification", metadata={"class_names": ["a", "b", "ç"]})
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert torch.equal(again(x), ens(x))
    assert (again.task, again.metadata, again.origin.recipe) == (
        "classification",
        {"class_names": ["a", "b", "ç"]},
        None,
    )


def test_a_perturbed_ensemble_stores_its_reference_and_not_its_members(tmp_path):
    sizes = set()
    for members in (2, 400):
        ens = ensemble.perturb(
            seeded(SCENARIOS["mlp"]), ensemble.Gaussian(0.1), members=members, example=torch.zeros(2, 6)
        )
        ens.save(tmp_path / str(members))
        sizes.add((tmp_path / str(members) / "weights.safetensors").stat().st_size)
    assert len(sizes) == 1
    assert sizes.pop() < 2000


def test_task_noise_metadata_and_progress_are_kept(tmp_path):
    metadata = {"units": {"y": "m/s"}, "deep": [1, [2.5, None, True, "é\n"]]}
    ens = ensemble.perturb(
        mlp(), ensemble.Gaussian(0.1), members=2, example=torch.zeros(1, 6), task="regression", noise_variance=0.5,
        metadata=metadata,
    )  # fmt: skip
    ens.save(tmp_path / "m")
    seen = []
    again = ensemble.load(tmp_path / "m", progress=lambda *at: seen.append(at))
    assert (again.task, again.noise_variance, again.metadata) == ("regression", 0.5, metadata)
    assert seen[-1] == (2, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["mlp", "some", "gru", "encoder", "odd"])
def test_a_cast_ensemble_is_loaded_as_it_was_and_in_any_dtype(made, name, dtype, tmp_path):
    ens, inputs = made(name).to(dtype=dtype), SCENARIOS[name].inputs(3)
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.dtype == dtype
    for a, b in zip(tensors(call(ens, inputs)), tensors(call(again, inputs)), strict=True):
        assert torch.equal(a, b)
    for other in (torch.float32, torch.float64):
        loaded = ensemble.load(tmp_path / "m", dtype=other)
        assert loaded.dtype == other
        for a, b in zip(tensors(call(made(name), inputs)), tensors(call(loaded, inputs)), strict=True):
            assert float((a.double() - b.double()).abs().max()) < 0.1 * float(a.abs().max())


def test_a_model_of_several_dtypes_keeps_each(made, tmp_path):
    made("odd").save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "manifest.json").read_text())["dtype"] == "mixed"
    again = ensemble.load(tmp_path / "m")
    assert again.members.shared["scale"].dtype == torch.float64
    assert ensemble.load(tmp_path / "m", dtype=torch.float32).members.shared["scale"].dtype == torch.float32


def test_members_that_loading_would_not_draw_again_are_not_saved(made, tmp_path):
    rounded = made("mlp").to(dtype=torch.bfloat16).to(dtype=torch.float32)
    with pytest.raises(ModelError, match="cast to a smaller dtype and back"):
        rounded.save(tmp_path / "m")
    changed = made("mlp").to(dtype=torch.float64)
    changed.members.stacked["0.weight"][-1, 0, 0] += 1
    with pytest.raises(ModelError, match=r"'0.weight' of member 4 is not what the recipe draws"):
        changed.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_directory_is_replaced_only_on_request_and_only_if_it_is_an_ensemble(made, tmp_path):
    target = tmp_path / "deep" / "er" / "1"
    made("mlp").save(target)
    with pytest.raises(ArtifactError, match="exists; save somewhere else, or with overwrite=True"):
        made("some").save(target)
    made("some").save(target, overwrite=True)
    assert ensemble.load(target).origin.recipe.include == ("3.*",)
    assert [path.name for path in target.parent.iterdir()] == ["1"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not a saved ensemble, so it is not replaced"):
        made("mlp").save(other, overwrite=True)
    assert (other / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not a saved ensemble"):
        made("mlp").save(tmp_path / "file", overwrite=True)
    with pytest.raises(ArtifactError, match="cannot be written: File exists"):
        made("mlp").save(tmp_path / "file" / "1")


def test_a_save_that_fails_leaves_what_was_there_and_nothing_else(made, tmp_path, monkeypatch):
    target = tmp_path / "m"
    made("mlp").save(target)
    write = Path.write_bytes

    def full(self, content):
        if self.name == "weights.safetensors":
            raise OSError(28, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ArtifactError, match="cannot be written: No space left on device"):
            made("some").save(target, overwrite=True)
        with pytest.raises(ArtifactError, match="No space left"):
            made("some").save(tmp_path / "n")
    rename = Path.rename

    def stuck(self, to):
        if self.name == "new":
            raise OSError(13, "Permission denied")
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stuck)
        with pytest.raises(ArtifactError, match="Permission denied"):
            made("some").save(target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert ensemble.load(target).origin.recipe.include == ("*",)


@pytest.mark.parametrize("metadata", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}, {"x": b""}, {"x": "\ud800"}])
def test_metadata_that_is_no_json_is_refused_before_anything_is_written(metadata, tmp_path):
    ens = ensemble.perturb(
        mlp(), ensemble.Gaussian(0.1), members=2, example=torch.zeros(1, 6), metadata=metadata, live=False
    )
    with pytest.raises(ArtifactError, match="metadata must be plain JSON values"):
        ens.save(tmp_path / "a" / "m")
    assert not list(tmp_path.iterdir())


def test_a_live_ensemble_is_not_saved(tmp_path):
    ens = ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=2, example=torch.zeros(1, 6), live=True)
    with pytest.raises(ModelError, match="whose code cannot be saved; make it without live=True"):
        ens.save(tmp_path / "m")


def test_an_example_may_be_left_out(made, tmp_path):
    made("tied").save(tmp_path / "m", keep_example=False)
    again = ensemble.load(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "graph.json",
        "manifest.json",
        "weights.safetensors",
    ]
    assert again.example(7)[0].shape == (7, 3)
    assert again.check() < 1e-5
    again.save(tmp_path / "n")


def test_the_files_are_json_and_safetensors_for_people_and_tools(made, tmp_path):
    made("cnn").save(tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "image", "dtype": "float32", "shape": [-1, 2, 8, 8]}]
    assert manifest["recipe"] == {"name": "gaussian", "settings": {"scale": 0.1, "include": ["*"], "exclude": []}}
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    for content in (tmp_path / "m").iterdir():
        assert b"\x80\x04" not in content.read_bytes()[:2]
        assert oct(content.stat().st_mode & 0o777) == oct(0o666 & ~umask())
    assert oct((tmp_path / "m").stat().st_mode & 0o777) == oct(0o755 & ~umask())


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_copied_ensemble_and_one_with_more_fields_are_loaded(made, tmp_path):
    made("mlp").save(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    change_json(tmp_path / "n", "manifest.json", lambda m: m.update(comment="by hand"))
    x = torch.randn(2, 6)
    assert torch.equal(ensemble.load(tmp_path / "n")(x), made("mlp")(x))

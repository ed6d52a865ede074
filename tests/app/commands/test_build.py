"""`ensembled build`: every form of a source, and what is said of each mistake."""

from __future__ import annotations

import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ensemble
from ensemble.perturbation.stacked import Stacked
from tests.app.test_cli import run

SOURCE = '''
"""Models in every form that `ensembled build` takes."""
import torch
from torch import nn

import beside

torch.manual_seed(0)
x = torch.randn(3, 4)


def net(out=2):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, out)).eval()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, a, b):
        return {"sum": self.one(a) + self.two(b)}


instance = net()
pair = (net(), x)
several = [net(), net(), net()]
number = 5
nothing = None
empty = ()


def model():
    return net()


def with_example():
    return net(), x


def with_metadata():
    return net(), x, {"class_names": ["a", "b"], "from": beside.NAME}


def named():
    return Net(), {"a": x, "b": x}


def positional():
    return Net(), (x, x)


def models():
    return [net(), net()], x


def fails():
    raise ValueError("not today")


def needs(argument):
    return argument


def leaves():
    raise SystemExit(3)


def four():
    return net(), x, {}, 1


def words():
    return net(), x, "words"


def bad_metadata():
    return net(), x, {"a": object()}


def bad_example():
    return net(), torch.randn(3, 9)


def random():
    return nn.Sequential(nn.Linear(4, 2), Noise()), x


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)
'''


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("mine", "beside") or name.startswith(("mine", "ensemble_to")):
            del sys.modules[name]


def build(capsys, *arguments):
    status, out, err = run(capsys, "build", *arguments)
    assert out == ""
    assert "Traceback" not in err
    return status, err


def rows(name: str) -> str:
    x = np.random.default_rng(0).normal(size=(3, 4))
    match name.rsplit(".")[-1]:
        case "npy":
            np.save(name, x)
        case "npz":
            np.savez(name, a=x, b=x) if "named" in name else np.savez(name, x)
        case "json":
            with open(name, "w") as stream:
                json.dump({"a": x.tolist(), "b": x.tolist()} if "named" in name else x.tolist(), stream)
    return name


@pytest.mark.parametrize("name", ["with_example", "with_metadata", "pair", "named", "positional"])
def test_a_source_that_has_an_example(capsys, source, name):
    status, err = build(capsys, f"mine.py:{name}", "models/a/1", "--scale", "0.1", "--members", "3", "--seed", "7")
    assert status == 0
    assert "serve it:    ensembled serve --models models\n" in err
    assert "differs from the loop by" in err
    made = ensemble.load("models/a/1")
    assert (len(made), made.origin.seed, made.origin.recipe.scale) == (3, 7, 0.1)
    assert made.metadata == ({"class_names": ["a", "b"], "from": "beside"} if name == "with_metadata" else {})


@pytest.mark.parametrize(
    ("name", "file"),
    [("instance", "a.npy"), ("model", "a.npz"), ("net", "a.json"), ("Net", "named.npz"), ("Net", "named.json")],
)
def test_a_source_that_has_none_takes_it_from_a_file(capsys, source, name, file):
    status, _ = build(capsys, f"mine.py:{name}", "out", "--scale", "0.1", "--members", "2", "--example", rows(file))
    assert status == 0
    made = ensemble.load("out")
    assert [spec.name for spec in made.program.inputs] == (["a", "b"] if name == "Net" else ["input"])
    assert made.program.inputs[0].dtype == torch.float32


def test_a_module_on_the_path_is_a_source_too(capsys, source):
    status, _ = build(capsys, "mine:with_example", "out", "--scale", "0.1", "--members", "2")
    assert status == 0


@pytest.mark.parametrize("name", ["models", "several"])
def test_models_that_were_trained_apart_are_stacked(capsys, source, name):
    more = ["--example", rows("a.npy")] if name == "several" else []
    status, _ = build(capsys, f"mine.py:{name}", "out", "--task", "classification", *more)
    assert status == 0
    made = ensemble.load("out")
    assert len(made) == (3 if name == "several" else 2)
    assert made.origin.recipe is None
    assert made.task == "classification"


def test_task_recipe_metadata_dtype_and_the_rest(capsys, source):
    with open("about.json", "w") as stream:
        json.dump({"unit": "m"}, stream)
    status, _ = build(
        capsys, "mine.py:with_metadata", "out", "--task", "regression", "--noise-variance", "0.5", "--metadata",
        "about.json", "--set", "scale=0.3", "--set", 'exclude=["0.*"]', "--members", "2", "--dtype", "float64",
        "--no-example", "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    made = ensemble.load("out")
    assert (made.task, made.noise_variance, made.metadata) == ("regression", 0.5, {"unit": "m"})
    assert made.dtype == torch.float64
    assert made.origin.recipe.scale == 0.3
    assert set(made.members.stacked) == {"2.weight", "2.bias"}
    assert made.origin.example == []


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_weights_are_loaded_first(capsys, source, name):
    state = {"0.weight": torch.full((5, 4), 0.25), "0.bias": torch.zeros(5), "2.weight": torch.ones(2, 5),
             "2.bias": torch.zeros(2)}  # fmt: skip
    save_file(state, name) if name.endswith("safetensors") else torch.save(state, name)
    status, _ = build(capsys, "mine.py:with_example", "out", "--scale", "0", "--members", "2", "--weights", name)
    assert status == 0
    member = ensemble.load("out").member(1)
    assert all(torch.equal(member[key], tensor) for key, tensor in state.items())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_weights_that_would_run_code_are_refused(capsys, source):
    with open("evil.pt", "wb") as stream:
        pickle.dump({"0.weight": Evil()}, stream)
    torch.save({"0.weight": Evil()}, "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        status, err = build(capsys, "mine.py:with_example", "out", "--scale", "0.1", "--weights", name)
        assert status == 1
        assert f"the weights in {name}" in err
        assert "to read them would run code from the file" in err
        assert not os.path.exists("pwned")


def test_an_ensemble_that_is_there_is_replaced_only_when_asked_and_that_is_known_before_training(capsys, source):
    common = ("mine.py:with_example", "out", "--scale", "0.1", "--members", "2")
    assert build(capsys, *common)[0] == 0
    status, err = build(capsys, "mine.py:fails", *common[1:])
    assert (status, err) == (1, "ensembled build: out exists; --overwrite replaces it\n")
    assert build(capsys, *common, "--seed", "5", "--overwrite")[0] == 0
    assert ensemble.load("out").origin.seed == 5
    os.mkdir("other")
    status, err = build(capsys, "mine.py:with_example", "other", *common[2:], "--overwrite")
    assert status == 1
    assert "is not a saved ensemble, so it is not replaced" in err


def test_where_it_will_not_be_found_is_said(capsys, source):
    _, err = build(capsys, "mine.py:with_example", "out", "--scale", "0.1", "--members", "2")
    assert "to serve it, save it as MODELS/NAME/VERSION, such as models/mine/1" in err


def test_a_file_may_be_called_as_the_library_is(capsys, source):
    os.rename("mine.py", "ensemble.py")
    status, _ = build(capsys, "ensemble.py:with_example", "out", "--scale", "0.1", "--members", "2")
    assert status == 0
    assert len(ensemble.load("out")) == 2


FILES = {
    "about.json": b"[1]",
    "broken.json": b"{",
    "syntax.py": b"def",
    "exits.py": b"import sys; sys.exit('bye')",
    "wrong.safetensors": None,
    "text.safetensors": b"text",
    "text.pt": b"text",
    "file": b"",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mine.py",), "SOURCE is FILE.py:NAME or package.module:NAME, however: 'mine.py'"),
        (("mine.py:",), "SOURCE is FILE.py:NAME"),
        (("missing.py:x",), "there is no file missing.py"),
        (("no.such.module:x",), "no.such.module cannot be run: ModuleNotFoundError"),
        (("syntax.py:x",), "syntax.py cannot be run: SyntaxError"),
        (("exits.py:x",), "exits.py cannot be run: SystemExit: bye"),
        (("mine.py:missing",), "mine.py has no 'missing'"),
        (("mine.py:nothing",), "mine.py has no 'nothing'"),
        (("mine.py:number",), "must give a model, (model, example) or (model, example, metadata), however: int"),
        (("mine.py:empty",), "must give a model, (model, example) or (model, example, metadata), however: ()"),
        (("mine.py:four",), "however: (Sequential, Tensor, dict, int)"),
        (("mine.py:words",), "the metadata of mine.py:words must be a dict, however: str"),
        (("mine.py:fails",), "mine.py:fails failed: ValueError: not today"),
        (("mine.py:needs",), "mine.py:needs failed: TypeError: needs() missing 1 required"),
        (("mine.py:leaves",), "mine.py:leaves failed: SystemExit: 3"),
        (("mine.py:bad_metadata",), "metadata must be plain JSON values"),
        (("mine.py:bad_example",), "The model does not run on the example: mat1 and mat2 shapes"),
        (("mine.py:model",), "an example is needed: return (model, example) from the source, or give --example FILE"),
        (("mine.py:model", "--example", "missing.npy"), "missing.npy cannot be read: No such file"),
        (("mine.py:model", "--example", "about.json"), ""),
        (("mine.py:with_example", "--metadata", "about.json"), "about.json must hold a JSON object"),
        (("mine.py:with_example", "--metadata", "broken.json"), "broken.json cannot be read as JSON"),
        (("mine.py:with_example", "--metadata", "missing.json"), "missing.json cannot be read as JSON"),
        (("mine.py:with_example", "--weights", "missing.pt"), "missing.pt cannot be read: No such file"),
        (("mine.py:with_example", "--weights", "missing.safetensors"), "missing.safetensors cannot be read: No such"),
        (("mine.py:with_example", "--weights", "text.safetensors"), "text.safetensors cannot be read"),
        (("mine.py:with_example", "--weights", "text.pt"), "the weights in text.pt"),
        (
            ("mine.py:with_example", "--weights", "wrong.safetensors"),
            "do not fit the model: Error(s) in load",
        ),
        (("mine.py:with_example", "--members", "0"), "members must be an integer between 1 and"),
        (("mine.py:with_example", "--seed", "-1"), "seed must be an integer between 0 and"),
        (("mine.py:with_example", "--scale", "-1"), "scale must be a finite number ≥ 0"),
        (("mine.py:with_example", "--set", "scale"), "--set takes NAME=VALUE, however: 'scale'"),
        (("mine.py:with_example", "--set", "other=1"), "has no setting other"),
        (("mine.py:with_example", "--set", "exclude=zzz*"), "The pattern 'zzz*' matches none of this model's weights"),
        (("mine.py:with_example", "--device", "cuda:99"), "device 'cuda:99' is not there"),
        (("mine.py:with_example", "--device", "gpu"), "device must be cpu, cuda, cuda:N or auto"),
        (("mine.py:with_example", "--noise-variance", "1"), "noise_variance is for regression"),
        (("mine.py:with_example", "--task", "gaussian"), "A gaussian model returns (mean, variance)"),
        (("mine.py:models", "--weights", "wrong.safetensors"), "--weights is for one model; mine.py:models gives 2"),
        (("mine.py:random",), "rand"),
    ],
)
def test_each_mistake_is_status_1_and_says_what_is_wrong(capsys, source, arguments, says):
    for name, content in FILES.items():
        if content is not None:
            (source / name).write_bytes(content)
    save_file({"0.weight": torch.ones(1)}, "wrong.safetensors")
    first, *rest = arguments
    scale = [] if first == "mine.py:models" else ["--scale", "0.1"]
    status, err = build(capsys, first, "out", *scale, *rest)
    assert status == 1
    last = err.splitlines()[-1]
    assert says in err
    assert last.startswith("ensembled build: ")
    assert not os.path.exists("out")


def test_a_recipe_without_a_scale_says_what_to_give(capsys, source):
    status, err = build(capsys, "mine.py:with_example", "out")
    assert status == 1
    assert "needs more settings: give --scale, or --set NAME=VALUE" in err


def test_models_that_were_trained_apart_become_several_members_each(capsys, source):
    status, err = build(
        capsys, "mine.py:models", "out", "--recipe", "rank1", "--scale", "0.1", "--members", "5", "--seed", "3"
    )
    assert status == 0, err
    made = ensemble.load("out")
    assert repr(made.origin.recipe) == repr(Stacked((ensemble.Rank1(scale=0.1),), 2))
    assert len(made) == 5
    apart = (made.member(1)["0.weight"] - made.member(0)["0.weight"]).abs().max()
    near = (made.member(2)["0.weight"] - made.member(0)["0.weight"]).abs().max()
    assert apart > near > 0


@pytest.mark.parametrize("name", ["stacked", "swag"])
def test_recipes_that_no_option_can_describe_are_no_choice(capsys, source, name):
    status, err = build(capsys, "mine.py:with_example", "out", "--recipe", name)
    assert status == 2
    assert f"invalid choice: '{name}'" in err


def test_what_cannot_be_written_is_said(capsys, source):
    (source / "file").write_text("")
    status, err = build(capsys, "mine.py:with_example", "file/a/1", "--scale", "0.1", "--members", "2")
    assert status == 1
    assert err.splitlines()[-1].startswith("ensembled build: file/a/1 ")
    assert "ot a directory" in err.splitlines()[-1]

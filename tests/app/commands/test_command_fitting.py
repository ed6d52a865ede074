"""`ensembled build --data`, `inspect` of what it found, and `evaluate`: from files to numbers, as a user goes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ensemble
from app.commands.dataset import rows_and_targets
from app.commands.reading import ReadingError, read_data
from tests.app.test_cli import run

SOURCE = """
import torch
from torch import nn

torch.manual_seed(0)
line = nn.Linear(2, 1)
nn.init.constant_(line.weight, 1.0)
nn.init.zeros_(line.bias)
classes = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
two = [nn.Linear(2, 1), nn.Linear(2, 1)]
"""


def numbers(rows, seed=0, columns=2):
    return np.random.default_rng(seed).normal(size=(rows, columns))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tofit.py").write_text(SOURCE)
    x = numbers(150)
    y = x.sum(1) + 0.3 * numbers(150, 1, 1)[:, 0]
    table = np.column_stack([x[:, 0], y, x[:, 1]])
    np.savetxt("line.csv", table, delimiter=",", header="a,price,b", comments="")
    np.savetxt("plain.csv", np.column_stack([x, y]), delimiter=",")
    label = (np.arange(150) % 3).astype(float)
    np.savez("classes.npz", x=x, y=label.astype(int))
    np.savetxt("classes.csv", np.column_stack([x, label]), delimiter=",", header="a,b,label", comments="")
    np.save("far.npy", 30 * numbers(40, 5))
    return tmp_path


def test_the_whole_way_from_a_table(capsys, files):
    status, out, err = run(
        capsys, "build", "tofit.py:line", "models/line/1", "--task", "regression", "--data", "line.csv", "--target",
        "price", "--members", "16", "--budget", "20s", "--confidence-level", "0.8", "--recipe", "rank1",
    )  # fmt: skip
    assert (status, out) == (0, "")
    assert "the net alone" in err
    assert "90 rows chose, 60 vouch for intervals and sets" in err
    made = ensemble.load("models/line/1")
    assert 0.03 < made.noise_variance < 0.15
    assert made.calibration.confidence_level == 0.8

    status, out, err = run(capsys, "inspect", "models/line/1", "--plot", "curve.svg")
    assert status == 0
    assert "what fitting found" in out
    assert "kept: " in out
    assert "<svg" in (files / "curve.svg").read_text()
    about = json.loads(run(capsys, "inspect", "models/line/1", "--json")[1])
    assert about["report"] == made.report
    assert about["calibration"]["interval_scores_rows"] == 60

    status, out, err = run(capsys, "evaluate", "models/line/1", "line.csv", "--target", "1", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    x, y = torch.from_numpy(numbers(150)).float(), np.loadtxt("line.csv", delimiter=",", skiprows=1)[:, 1:2]
    assert found["metrics"] == ensemble.evaluate(made, (x, torch.from_numpy(y).float())).as_json()["metrics"]
    assert found["confidence_level"] == 0.8
    assert found["interval"] == "prediction_interval"


def test_a_classification_with_rows_from_elsewhere_and_a_diagram(capsys, files):
    status, _, err = run(
        capsys, "build", "tofit.py:classes", "out", "--task", "classification", "--data", "classes.npz", "--members",
        "8", "--recipe", "low_rank", "--set", "rank=2", "--risk", "0.9", "--dtype", "bfloat16",
    )  # fmt: skip
    assert status == 0, err
    made = ensemble.load("out")
    assert made.dtype == torch.bfloat16
    assert made.calibration.risk == 0.9
    status, out, err = run(
        capsys, "evaluate", "out", "classes.csv", "--ood", "far.npy", "--plot", "r.png", "--confidence-level", "0.7"
    )
    assert status == 0, err
    assert "auroc_mutual_information" in out
    assert "prediction_set at a confidence level of 0.7" in out
    assert (files / "r.png").read_bytes()[:4] == b"\x89PNG"


def test_without_a_recipe_the_best_is_found_and_data_are_what_recipes_learn_from(capsys, files):
    status, _, err = run(
        capsys, "build", "tofit.py:classes", "out", "--task", "classification", "--data", "classes.npz", "--validation",
        "classes.csv", "--members", "4", "--budget", "2s", "--conformal", "0",
    )  # fmt: skip
    assert status == 0, err
    report = ensemble.load("out").report
    assert {"gaussian", "low_rank", "rank1", "perturb_and_correct"} <= {one["recipe"] for one in report["recipes"]}
    assert report["rows"] == {"learning": 150, "selection": 150, "conformal": 0}


def test_data_without_fitting_are_for_the_recipe(capsys, files):
    status, _, err = run(
        capsys, "build", "tofit.py:classes", "out", "--task", "classification", "--data", "classes.npz", "--members",
        "4", "--no-fit", "--recipe", "perturb_and_correct", "--scale", "0.3",
    )  # fmt: skip
    assert status == 0, err
    made = ensemble.load("out")
    assert (made.origin.recipe.scale, made.report) == (0.3, None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--budget", "5s"], "--budget is about --data FILE, which is not given"),
        (["--no-fit"], "--no-fit is about --data FILE"),
        (["--recipe", "auto"], "--recipe auto compares recipes on held-out rows: give --data FILE"),
        (["--data", "line.csv", "--scale", "0.1"], "--scale and --set are settings of one recipe"),
        (["--data", "line.csv", "--scale", "0.1", "--recipe", "rank1"], "--scale is fitted to --data"),
        (["--data", "line.csv", "--set", "ridge=1", "--recipe", "perturb_and_correct"], "--set ridge is fitted"),
        (["--data", "line.csv", "--noise-variance", "1"], "--noise-variance is fitted to --data"),
        (["--data", "line.csv", "--no-fit"], "--no-fit needs --recipe NAME"),
        (["--data", "line.csv", "--budget", "soon"], "budget must be a time above 0"),
        (["--data", "none.csv"], "none.csv cannot be read"),
        (["--data", "far.npy"], "rows with targets are read from .npz or .json (named arrays) or .csv"),
        (["--data", "line.csv", "--target", "cost"], "has no column 'cost'; its columns are a, price, b"),
        (["--data", "plain.csv", "--target", "cost"], "its first line has no names; give a number from 0"),
        (["--data", "plain.csv", "--target", "3"], "has 3 columns, so there is no column 3"),
        (["--data", "classes.npz", "--target", "z"], "must hold inputs and an array called 'z', however: x, y"),
        (["--data", "line.csv", "--task", "classification"], "are class indices, whole numbers from 0"),
        (["--data", "classes.npz", "--task", "gaussian"], "A gaussian model returns (mean, variance)"),
        (["--data", "line.csv", "--task", "raw"], "needs to know what the outputs are"),
    ],
)
def test_what_does_not_go_together_is_told(capsys, files, options, text):
    task = [] if "--task" in options else ["--task", "regression"]
    status, out, err = run(capsys, "build", "tofit.py:classes", "out", *task, *options)
    assert (status, out) == (1, "")
    assert text in err
    assert "Traceback" not in err
    assert not (files / "out").exists()


def test_of_several_models_none_is_fitted_but_each_may_learn(capsys, files):
    told = ("build", "tofit.py:two", "out", "--task", "regression", "--data", "line.csv", "--target", "price")
    status, _, err = run(capsys, *told)
    assert status == 1
    assert "gives 2 models, and one is fitted: give one, or leave --data out" in err
    status, _, err = run(capsys, *told, "--no-fit", "--recipe", "adapted", "--set", "steps=2", "--members", "4")
    assert status == 0, err
    assert len(ensemble.load("out")) == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none", "line.csv"], "There is no directory none"),
        (["out", "none.csv"], "none.csv cannot be read"),
        (["out", "line.csv", "--target", "price", "--plot", "no/r.png"], "cannot be written"),
        (["out", "line.csv", "--target", "price", "--batch", "0"], "batch_size must be"),
        (["out", "line.csv", "--target", "price", "--confidence-level", "2"], "between 0 and 1"),
        (["out", "classes.npz", "--target", "x"], "must have shape [-1, 2]"),
        (["out", "line.csv", "--target", "price", "--device", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be_evaluated_is_told(capsys, files, arguments, text):
    x = torch.randn(3, 2)
    model = torch.nn.Linear(2, 1)
    ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=x, task="regression", noise_variance=1.0).save(
        "out"
    )
    status, out, err = run(capsys, "evaluate", *arguments)
    assert (status, out) == (1, "")
    assert text in err
    assert "Traceback" not in err


def test_targets_are_found_in_a_table(files):
    inputs, targets = read_data(files / "line.csv", "price")
    assert inputs[""].shape == (150, 2)
    assert targets[0] == pytest.approx(np.loadtxt("line.csv", delimiter=",", skiprows=1)[0, 1])
    assert np.array_equal(read_data(files / "line.csv", "1")[1], targets)
    assert np.array_equal(read_data(files / "plain.csv")[1], read_data(files / "plain.csv", "-1")[1])
    # A column that is called so, wherever it stands.
    np.savetxt("first.csv", [[1.0, 2, 3], [4, 5, 6]], delimiter=",", header="Label,a,b", comments="")
    assert read_data(files / "first.csv")[1].tolist() == [1, 4]
    one = files / "one.csv"
    one.write_text("1\n2\n")
    with pytest.raises(ReadingError, match="one column"):
        read_data(one)


def test_several_inputs_come_by_name_and_must_be_as_long(files):
    np.savez("both.npz", left=numbers(5), right=np.arange(5), target=numbers(5)[:, 0])
    inputs, targets = rows_and_targets(files / "both.npz", None, "regression")
    assert {name: t.dtype for name, t in inputs.items()} == {"left": torch.float32, "right": torch.int64}
    assert targets.dtype == torch.float32
    np.savez("uneven.npz", x=numbers(5), y=numbers(4)[:, 0])
    with pytest.raises(ReadingError, match="as many rows as each other"):
        rows_and_targets(files / "uneven.npz", None, "regression")
    np.savez("twice.npz", x=numbers(5), y=numbers(5)[:, 0], label=np.arange(5))
    with pytest.raises(ReadingError, match="--target says which"):
        read_data(files / "twice.npz")

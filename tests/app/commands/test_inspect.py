"""`ensembled inspect`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

import ensemble
from ensemble.backends.workshop import Workshop
from ensemble.planning.plan import Plan, Trial, Way
from tests.app.support import MEMBERS
from tests.app.test_cli import run
from tests.ensemble.test_vectorised import Masked


def test_a_table_says_all_that_matters(capsys, models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status, out, err = run(capsys, "inspect", models / "classes" / "2")
    assert (status, err) == (0, "")
    for part in ("classification", f"{MEMBERS} (gaussian", "seed 2", "every hash verified", "Three kinds.", "label *",
                 "mutual_information", "0.weight", '["a", "b", "c"]', "differs from the loop by"):  # fmt: skip
        assert part in out


def test_json_for_programs(capsys, models, loaded):
    status, out, _ = run(capsys, "inspect", "--json", models / "pair" / "1")
    about = json.loads(out)
    assert status == 0
    assert (about["task"], about["members"], about["seed"]) == ("raw", MEMBERS, 0)
    assert about["recipe"]["settings"]["scale"] == 0.2
    assert [spec["name"] for spec in about["inputs"]] == ["features", "tokens"]
    assert list(about["statistics"]) == list(loaded["pair"].available_statistics())
    assert about["bytes_of_weights"] == loaded["pair"].members.nbytes
    assert about["bytes_on_disk"] > 0
    assert about["checked_against_loop"]["relative_error"] < 1e-4
    assert sum(row["nbytes"] for row in about["weights"]) == about["bytes_of_weights"]
    assert about["operations"] > 0


def test_what_metadata_says_is_shown_as_it_is(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    made = ensemble.stack(
        [nn.Linear(2, 1), nn.Linear(2, 1)],
        example=torch.ones(1, 2),
        metadata={"note": "[bold]x[/bold] [/nothing]", "names": ["[red]", "b"]},
    )
    made.save(tmp_path / "a")
    status, out, err = run(capsys, "inspect", tmp_path / "a")
    assert (status, err) == (0, "")
    assert "[bold]x[/bold] [/nothing]" in out
    assert '["[red]", "b"]' in out
    assert "separately trained models" in out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "weights.safetensors").write_bytes(b"x"), "weights.safetensors is not what manifest.json says"),
        (lambda p: (p / "graph.json").unlink(), "graph.json is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda p: (p / "manifest.json").unlink(), "has no manifest.json"),
        (lambda p: shutil.rmtree(p), "There is no directory"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_damage_is_status_1_and_one_line(capsys, models, tmp_path, damage, says, form):
    shutil.copytree(models / "house" / "1", tmp_path / "1")
    damage(tmp_path / "1")
    status, out, err = run(capsys, "inspect", tmp_path / "1", *form)
    assert (status, out) == (1, "")
    assert err.startswith("ensembled inspect: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_the_plan_of_a_service_in_lower_precision_is_asked_for(capsys, models, tmp_path):
    made, threads = ensemble.load(models / "house" / "1"), torch.get_num_threads()
    with Workshop(tmp_path / "c") as workshop:
        made.measure((1,), seconds=0.1)
        made.remember((1,), workshop, "bfloat16")
    words = ("--json", "--threads", threads, "--max-batch", 1, "--cache-dir", tmp_path / "c")
    for precision, rows in (("bfloat16", [1]), ("float32", [])):
        status, out, _ = run(capsys, "inspect", models / "house" / "1", *words, "--precision", precision)
        assert status == 0
        assert [way["rows"] for way in json.loads(out)["plan"]] == rows


def keep_plan(made, sizes, plan, cache):
    """Keep a plan on this machine as a service does."""
    with Workshop(cache) as workshop:
        made.measure(sizes, seconds=0.1)
        made._runner.plan = plan
        made.remember(sizes, workshop)


PLAN = Plan(
    (
        Way.of(1, [Trial("loop", 0, 1, 0.002), Trial("vmap", 6, 1, 0.0005), Trial("vmap", 3, 1, 0.003)]),
        Way.of(2, [Trial("loop", 0, 2, 0.001), Trial("vmap", 6, 2, 0.004)]),
    ),
    {"inductor": "no compiler was found"},
)


def test_the_table_of_the_plan_says_what_is_chosen_why_and_what_is_not_used(capsys, models, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    threads = torch.get_num_threads()
    keep_plan(ensemble.load(models / "house" / "1"), (1, 2), PLAN, tmp_path)
    words = ("--threads", threads, "--max-batch", 2, "--cache-dir", tmp_path)
    status, out, err = run(capsys, "inspect", models / "house" / "1", *words)
    assert (status, err) == (0, "")
    _, table = out.split("ways of running, on this machine")
    rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in table.splitlines() if "│" in line]
    # Rows, way, members a call, its time, the loop's, error, and all others that were tried, fastest first.
    assert rows == [
        ["1", "vmap", "6", "0.5", "2", "", "loop 1: 2, vmap 3: 3"],
        ["2", "loop", "1", "1", "1", "", "vmap 6: 4"],
    ]
    assert "inductor is not used: no compiler was found" in table


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_plan_of_a_service_with_another_dtype_is_asked_for(capsys, models, tmp_path, dtype):
    path, threads = models / "house" / "1", torch.get_num_threads()
    made = ensemble.load(path, dtype=getattr(torch, dtype))
    keep_plan(made, (1, 2), PLAN, tmp_path)
    words = ("--json", "--threads", threads, "--max-batch", 2, "--cache-dir", tmp_path, "--device", "cpu")
    for asked, plan in ((["--dtype", dtype], [way.described() for way in PLAN.ways]), ([], [])):
        status, out, _ = run(capsys, "inspect", path, *words, *asked)
        about = json.loads(out)
        assert status == 0
        assert about["plan"] == plan
        assert about["dtype"] == (dtype if asked else "float32")
        assert about["inputs"][0]["dtype"] == about["dtype"]
        assert about["device"] == "cpu"
    assert about["bytes_of_weights"] * made.dtype.itemsize == made.members.nbytes * 4


def test_a_device_that_is_not_there_is_status_1_and_one_line(capsys, models):
    status, out, err = run(capsys, "inspect", models / "house" / "1", "--device", "cuda:999")
    assert (status, out) == (1, "")
    assert err.startswith("ensembled inspect: device 'cuda:999' is not there")
    assert len(err.splitlines()) == 1


def test_members_that_vmap_refuses_are_shown_to_run_in_the_loop(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    made = ensemble.perturb(Masked(), ensemble.LowRank(0.1), members=4, example=torch.randn(3, 3))
    made.save(tmp_path / "m")
    status, out, _ = run(capsys, "inspect", tmp_path / "m")
    assert status == 0
    assert "the loop, one member after the other: The size of a value in this model depends on other values" in out
    status, out, _ = run(capsys, "inspect", "--json", tmp_path / "m")
    about = json.loads(out)
    assert "depends on other values" in about["looped_because"]
    assert {row["how"] for row in about["weights"]} == {"loop", "shared"}

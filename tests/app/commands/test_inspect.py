"""`ensembled inspect`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

import ensemble
from ensemble.backends.workshop import Workshop
from tests.app.support import MEMBERS
from tests.app.test_cli import run


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

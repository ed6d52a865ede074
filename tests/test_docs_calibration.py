"""docs/calibration.md is true: its code runs, and what it says of rows, metrics and options is so."""

from __future__ import annotations

import argparse
import re

import pytest

import ensemble
from app.commands import build, evaluate, predict
from app.commands.reading import TARGETS
from ensemble.calibration.conformal import required_rank
from ensemble.evaluation.evaluate import _MEANINGS
from tests.app.support import ROOT

PAGE = (ROOT / "docs" / "calibration.md").read_text()


def test_its_code_runs_and_its_intervals_hold(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code.replace('"20s"', '"1s"').replace('"10s"', '"1s"'), names)
    # Of 120 rows that vouch the 109th smallest score is the threshold: a coverage of 109 / 121 on average.
    assert names["coverage"] == pytest.approx(0.9, abs=0.08)
    assert names["ens"].report["rows"] == {"learning": 40, "selection": 180, "conformal": 120}
    assert names["corrected"].report["rows"]["learning"] == 40
    assert names["found"]["nll"] < 0.6
    assert ((names["low"] <= names["test"][1]) & (names["test"][1] <= names["high"])).float().mean() > 0.8
    assert (tmp_path / "scales.png").read_bytes()[:4] == (tmp_path / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert ensemble.load(tmp_path / "models" / "mine" / "1").report["kept"]["recipe"] == names["chosen"]
    assert "the net alone" in capsys.readouterr().out


def test_its_table_of_metrics_names_all():
    rows = PAGE.split("| metric |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in rows.splitlines()[2:])))
    assert named == set(_MEANINGS)


def test_what_it_says_of_rows_is_so():
    assert (required_rank(9, 0.9), required_rank(8, 0.9)) == (9, 9)
    assert (required_rank(99, 0.99), required_rank(98, 0.99)) == (99, 99)
    assert {"y", "target", "label"} <= set(TARGETS)


def test_the_options_that_it_names_are_there():
    lines = PAGE.replace("\\\n", " ").splitlines()
    for command, words, target in (
        (build, "build", "target"),
        (evaluate, "evaluate", "target"),
        (predict, "predict", "targets"),
    ):
        parser = argparse.ArgumentParser()
        command.configure(parser)
        line = next(line for line in lines if line.startswith(f"$ ensembled {words}"))
        assert vars(parser.parse_args(line.split()[3:]))[target] == "price"

"""The README is true: its code runs, its commands exist, and its figures are what the example gives."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import ensemble
from app.cli import _COMMANDS
from app.settings import Settings
from tests.app.support import ROOT, command, serving

README = (ROOT / "README.md").read_text()
# Training sums in an order that differs between machines, so figures agree only about this well.
CLOSE = {"rel": 0.35, "abs": 0.01}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def recipe_line():
    """The example's build command in the Makefile."""
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "digits.py:trained" in line)
    return shlex.split(line.split("ensembled build", 1)[1].replace("$@", "models/digits/1"))


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example, built by the Makefile's own command."""
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("example") / "digits" / "1"
    done = command("build", *[str(out) if word == "models/digits/1" else word for word in recipe_line()])
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pictures():
    """The module that draws the README's picture."""
    sys.path.insert(0, str(ROOT / "docs" / "examples"))
    try:
        import uncertainty

        yield uncertainty
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("code", blocks("python"))
def test_its_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert torch.isfinite(names["p"].mutual_information).all()
    assert names["p"].prediction_set.shape == (300, 3)
    again = ensemble.load(tmp_path / "models" / "mine" / "1")
    assert again.report["kept"]["recipe"]
    assert torch.equal(again.predict(names["x"]).mean, names["ens"].predict(names["x"]).mean)


def test_a_smudged_digit_and_noise_are_less_certain_than_a_digit_and_the_table_says_how_much(example, pictures):
    found = pictures.table(ensemble.load(example))
    assert found["smudged"]["mutual_information"] > 3 * found["test digits"]["mutual_information"]
    assert found["noise"]["mutual_information"] > 10 * found["test digits"]["mutual_information"]
    for kind, row in found.items():
        printed = re.search(rf"^\| {kind} \| (.*) \|$", README, re.MULTILINE)[1]
        for value, shown in zip(row.values(), map(float, printed.split(" | ")), strict=True):
            assert value == pytest.approx(shown, **CLOSE), kind


def test_its_members_know_the_digits(example, pictures):
    digits = sys.modules["digits"]
    _, _, images, labels = digits.data()
    right = ensemble.load(example).predict(images, statistics=["label"]).label == labels
    assert right.float().mean() > 0.97


def test_its_picture_can_be_drawn(example, pictures, tmp_path):
    pytest.importorskip("matplotlib")
    pictures.draw(ensemble.load(example), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (ROOT / "docs" / "images" / "uncertainty.png").is_file()


def test_its_curl_gets_the_answer_that_it_shows(example, tmp_path):
    ask = re.search(r"\$ curl -s http://127.0.0.1:8000(\S+) -d '(.*?)'\n(\{[^\n]*\})", README, re.DOTALL)
    path, body, shown = ask[1], ask[2], json.loads(ask[3])
    with serving(tmp_path / "log", "--models", example.parents[1]) as server:
        server.wait_ready()
        # As curl sends it: its own content type.
        form = {"content-type": "application/x-www-form-urlencoded"}
        answer = server.post(path, content=body, headers=form).json()
    assert answer.keys() == shown.keys()
    assert answer["outputs"]["label"] == shown["outputs"]["label"] == [9]
    for key in ("model", "version", "members", "seed"):
        assert answer[key] == shown[key]
    for name, values in shown["outputs"].items():
        assert answer["outputs"][name] == pytest.approx(values, **CLOSE)


def test_every_command_that_it_shows_exists():
    shown = re.findall(r"^\$ (.+?)(?:\s+#.*)?$", "\n".join(blocks("console")), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    for line in shown:
        words = line.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        elif words[0] == "ensembled":
            assert words[1] in _COMMANDS, line
            options = command(words[1], "--help").stdout
            assert all(word in options for word in words if word.startswith("--")), line


def test_every_statistic_and_setting_that_it_names_exists():
    table = README.split("## The statistics")[1].split("## ")[0]
    named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert named == set(ensemble.statistics.STATISTICS)
    starred = set(re.findall(r"^\| `(\w+)` \*", table, re.MULTILINE))
    assert starred == {name for name, s in ensemble.statistics.STATISTICS.items() if s.default}
    flags = re.findall(r"`--([a-z-]+)`", README.split("## Configuration")[1].split("## ")[0])
    assert {flag.replace("-", "_") for flag in flags if flag != "config"} <= set(Settings.model_fields)


def test_the_image_builds_the_same_example_as_make():
    docker = (ROOT / "Dockerfile").read_text().replace("/models/digits/1", "models/digits/1")
    line = next(line for line in docker.splitlines() if "digits.py:trained" in line)
    assert shlex.split(line.split("ensembled build", 1)[1]) == recipe_line()


def test_the_layout_that_it_draws_is_there():
    drawing = README.split("## Layout")[1].split("```")[1]
    folder = Path()
    for line in drawing.splitlines():
        names = line.split("  ")
        if line and not line.startswith(" "):
            folder = Path(names[0].strip())
            assert (ROOT / folder).is_dir(), folder
        else:
            for name in line[:40].split("  ")[1].split() if line.strip() else []:
                assert (ROOT / folder / name).exists(), folder / name

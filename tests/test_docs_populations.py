"""docs/populations.md is true: its code runs, its table names the settings, and its example learns what it says."""

import inspect
import re
import sys

import pytest
import torch

import ensemble
from tests.app.support import ROOT

PAGE = (ROOT / "docs" / "populations.md").read_text()


@pytest.fixture(scope="module")
def evolution():
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(ROOT / "docs" / "examples"))
    try:
        import evolution

        yield evolution
    finally:
        sys.path.pop(0)


def test_its_code_runs_one_block_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    # More of the points lie outside than inside; a network that says so for all is right on this share.
    assert names["accuracy"] > float((names["inside"] == 0).float().mean()) + 0.1
    assert names["same"] is True
    assert names["again"].step == 60
    assert all(
        torch.equal(again, value)
        for again, value in zip(names["again"].weights().values(), names["population"].weights().values(), strict=True)
    )


def test_its_table_names_every_setting():
    table = PAGE.split("| setting | |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines()[2:])))
    # They stand in the cell beside.
    named |= {"momentum", "betas"}
    assert named == set(inspect.signature(ensemble.Population).parameters) - {"model", "example"}


def test_the_example_reads_digits_without_a_gradient_as_the_page_shows(evolution):
    """With its own 1,024 members a step, for a fifth of its steps."""
    images, labels, test_images, test_labels = evolution.data()
    population = evolution.population(images)
    assert len(population) == 1024
    before = evolution.accuracy(population, test_images, test_labels)
    for _ in evolution.train(population, images, labels, 40):
        pass
    after = evolution.accuracy(population, test_images, test_labels)
    assert before < 0.3
    assert after > 0.9
    shown = re.search(r"^ +40/200 +(\S+) +([\d.]+)%", PAGE, re.MULTILINE)
    assert after == pytest.approx(float(shown[2]) / 100, abs=0.03)


def test_the_page_shows_a_run_to_its_end_that_beats_nine_in_ten():
    rows = re.findall(r"^ *(\d+)/200 +(-[\d.]+) +([\d.]+)% +([\d.]+)$", PAGE, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(20, 201, 20))
    assert float(rows[-1][2]) > 95

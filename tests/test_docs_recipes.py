"""docs/recipes.md is true: its code runs, and it tells of every recipe that there is."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import ensemble
from ensemble.perturbation import Recipe, recipes
from ensemble.perturbation.stacked import Stacked
from tests.app.support import ROOT

PAGE = (ROOT / "docs" / "recipes.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in PAGE.split("\n## ")[1:]}


def python(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def run():
    """The namespace after all of its code, and the ensemble that each section made."""
    known = dict(Recipe.known)
    names: dict[str, object] = {}
    made = {}
    for title, section in SECTIONS.items():
        for code in python(section):
            exec(code, names)
            made[title] = names.get("ens")
    yield names, made
    Recipe.known.clear()
    Recipe.known.update(known)


def test_every_section_makes_the_ensemble_that_it_tells_of(run):
    names, made = run
    for title, ens in made.items():
        if title == "Examples":
            continue
        kind = {"Several models": Stacked, "A recipe of your own": names["Signs"]}.get(title)
        assert isinstance(ens.origin.recipe, kind or getattr(ensemble, title)), title
        assert torch.isfinite(ens(names["x"])).all(), title
        assert ens.check() <= 1e-4


def test_what_it_says_of_them_is_so(run):
    names, made = run
    assert names["far"] > 20 * names["near"]
    assert made["Rank1"].members.factored.keys() == {"0.weight", "3.weight", "5.weight"}
    assert made["Dropout"].origin.recipe.p == names["model"][2].p
    drawn = ("Rank1", "LowRank", "Gaussian", "Dropout", "Mixture", "A recipe of your own")
    assert {title for title, ens in made.items() if ens is not None and ens.origin.replayable} == set(drawn)
    pair = made["LowRank"].members.whole(0)["0.bias"] + made["LowRank"].members.whole(1)["0.bias"]
    torch.testing.assert_close(pair / 2, made["LowRank"].origin.reference["0.bias"])
    assert made["Mixture"].members.mixture is not None
    assert not set(made["Swag"].members.shared) & set(dict(names["model"].named_parameters()))
    assert names["snapshots"].count == 25


def test_it_tells_of_every_recipe_and_of_no_other():
    told = set(re.findall(r"^\| \[`?(\w[\w ]*?)`?\]\(#[\w-]+\) \|", PAGE, re.MULTILINE))
    # How members of several models were made is not given, but written down.
    known = {kind.__name__ for kind in recipes.values() if kind.__module__.startswith("ensemble.")} - {"Stacked"}
    assert told == known | {"several models"}
    assert {title for title in SECTIONS if title in known} == known
    assert all(getattr(ensemble, name, None) for name in known)


def test_its_links_lead_somewhere():
    anchors = {title.lower().replace(" ", "-") for title in SECTIONS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
    for path in re.findall(r"\]\((\w[\w/.]*\.md)\)", PAGE):
        assert (ROOT / "docs" / path).is_file(), path


def test_the_settings_that_it_shows_exist():
    shown = re.findall(r"ensemble\.(\w+)\(([^()]*)\)", "".join(python(PAGE)))
    for name, given in shown:
        parameters = inspect.signature(getattr(ensemble, name)).parameters
        assert set(re.findall(r"(\w+)=", given)) <= set(parameters), name

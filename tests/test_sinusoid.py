"""The example of docs/adaptation.md: a shorter training, the same order of errors, and a picture of a real service."""

from __future__ import annotations

import argparse
import importlib.util

import pytest
import torch

import ensemble
from tests.app.support import ROOT, serving


@pytest.fixture(scope="module")
def sinusoid():
    spec = importlib.util.spec_from_file_location("sinusoid", ROOT / "docs" / "examples" / "sinusoid.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(sinusoid):
    said = []
    models = {
        "meta-trained": sinusoid.meta_trained(400, said.append),
        "from scratch": sinusoid.network(),
        "trained on all tasks": sinusoid.trained_on_all(400, said.append),
    }
    assert len(said) == 10
    return models


def test_tasks_are_those_of_the_paper(sinusoid):
    x, y, asked, wanted = sinusoid.tasks(500, 10, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == asked.shape == wanted.shape == (500, 10, 1)
    assert -5 <= x.min() < -4.9
    assert 4.9 < x.max() <= 5
    assert 4.5 < y.abs().max() <= 5
    # One sine of at most this amplitude goes through the points of a task.
    assert (y.abs().amax(1) <= 5).all()
    amplitude = y.abs().amax((1, 2))
    assert 0.05 < amplitude.min() < 0.5


def test_few_steps_help_the_meta_trained_network_most(sinusoid, trained):
    found = sinusoid.table(trained, 200)
    errors = {name: row for name, (_, row) in found.items()}
    assert found["meta-trained"][0] == sinusoid.INNER
    assert (errors["meta-trained"] < errors["trained on all tasks"]).all()
    assert (errors["trained on all tasks"] < errors["from scratch"]).all()
    assert errors["meta-trained"][0] > errors["meta-trained"][1] > errors["meta-trained"][2]


def test_the_service_adapts_it_and_the_band_is_wide_where_there_is_no_point(sinusoid, trained, tmp_path):
    pytest.importorskip("matplotlib")
    made = sinusoid.members_of(trained["meta-trained"], 16)
    made.save(tmp_path / "models" / "sinusoid" / "1")
    with serving(tmp_path / "log", "--models", tmp_path / "models", "--adaptation") as server:
        server.wait_ready()
        sinusoid.draw(argparse.Namespace(url=server.url, picture=tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    x = torch.linspace(0.4, 4.8, 10).reshape(1, 10, 1)
    adapted = ensemble.adapt(made, (x, 4 * (x - 2.2).sin()), steps=10, lr=sinusoid.INNER)
    std = adapted.predict(torch.tensor([[[-3.0], [3.0]]])).std[0, :, 0]
    assert std[0] > 2 * std[1]

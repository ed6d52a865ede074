"""What is timed together, one at a time and in plain PyTorch is the same, for as many contexts as are said."""

import numpy as np
import pytest
import torch

from benchmarks.contexts.__main__ import library_row, served_row
from benchmarks.contexts.work import ROWS, asked, make, member_of, networks, plainly


@pytest.mark.parametrize("contexts", [1, 8, 64])
def test_there_are_as_many_contexts_as_are_said(contexts):
    given = asked("full", contexts)
    assert len(np.unique(given["context"], axis=0)) == contexts
    assert given["input"].shape == (ROWS, 64)


@pytest.mark.parametrize(("kind", "members"), [("full", 1), ("low_rank", 3)])
def test_every_way_gives_the_same(kind, members):
    made = make(kind, members)
    x, codes = (torch.from_numpy(array)[:3] for array in asked(kind, 64).values())
    target, hypernetwork = networks(kind)
    modules = [member_of(hypernetwork, made, index) for index in range(members)]
    with torch.no_grad():
        plain = torch.cat([plainly(modules, target, x[i : i + 1], codes[i : i + 1]) for i in range(3)])
    together = made.predict(x, codes, statistics=["mean"]).mean
    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-5)
    assert (together - together.flip(0)).abs().max() > 1e-3


def test_ratios_are_those_of_the_rates_beside_them():
    assert library_row(["MLP", "1"], 8, (10, 50, 1000)) == ["MLP", "1", "8", "10", "50", "1,000", "100.0", "20.0"]
    found = [(100, 0.01), (200, 0.005), (1000, 0.0012)]
    assert served_row(["MLP", "1"], 64, found) == ["MLP", "1", "64", "100", "200", "1,000", "10.0", "5.0", "5", "1.2"]

"""What is timed together, one at a time and in plain PyTorch is the same, for as many contexts as are said."""

import numpy as np
import pytest
import torch

from benchmarks.contexts.work import ROWS, _member, _plain, asked, make, networks


@pytest.mark.parametrize("contexts", [1, 8, 64])
def test_there_are_as_many_contexts_as_are_said(contexts):
    given = asked(contexts)
    assert len(np.unique(given["context"], axis=0)) == contexts
    assert given["input"].shape == (ROWS, 64)


@pytest.mark.parametrize(("kind", "members"), [("full", 1), ("low_rank", 3)])
def test_every_way_gives_the_same(kind, members):
    made = make(kind, members)
    x, codes = (torch.from_numpy(array)[:3] for array in asked(64).values())
    target, hypernetwork = networks(kind)
    modules = [_member(hypernetwork, made, index) for index in range(members)]
    with torch.no_grad():
        plain = torch.cat([_plain(modules, target, x[i : i + 1], codes[i : i + 1]) for i in range(3)])
    together = made.predict(x, codes, statistics=["mean"]).mean
    torch.testing.assert_close(together, plain, rtol=1e-4, atol=1e-5)
    assert (together - together.flip(0)).abs().max() > 1e-3

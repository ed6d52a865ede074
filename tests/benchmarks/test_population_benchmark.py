"""A step is timed in two ways that do the same, and the table's ratios are those of its figures."""

import re

import pytest
import torch

from benchmarks.population.__main__ import table
from benchmarks.population.work import Found, _difference, _loop_step, works


@pytest.fixture(scope="module")
def work():
    return works(8)["small"]


def test_the_library_does_what_its_members_do_as_modules(work):
    assert _difference(work, work.population(8), 8) < 1e-5


def test_the_loop_that_it_is_compared_with_climbs_too(work):
    before = {name: p.detach().clone() for name, p in work.network.named_parameters()}
    after = _loop_step(work, 64)
    with torch.no_grad():
        scores = [
            float(work.score(torch.func.functional_call(work.network, weights, (work.inputs,)).unsqueeze(0)))
            for weights in (before, after)
        ]
    assert scores[1] > scores[0]
    assert all(torch.equal(p.detach(), before[name]) for name, p in work.network.named_parameters())


def test_the_table_says_what_was_found():
    found = Found(draw=0.01, evaluate=0.03, update=0.01, loop=0.5, looped=4, difference=1e-7)
    row = table([("MLP", 1000, found)]).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["MLP", "1,000", "10", "30", "10", "50", "20,000", "500", "10.0"]
    assert not re.search("nan|inf", row)

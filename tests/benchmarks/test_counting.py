"""Flops and bytes against closed forms for a network of two layers, 10-50-1."""

import pytest
import torch
from torch import nn

from benchmarks.models import MODELS
from benchmarks.speed.counting import count, embedding_reads, size

FIRST, SECOND = 10 * 50, 50 * 1
BIASES = 50 + 1


@pytest.fixture(scope="module")
def case():
    return MODELS["tiny"]()


@pytest.mark.parametrize("rows", [1, 8])
def test_dense_members_share_nothing(case, rows):
    counted = count(case, case.ensemble("dense", 4), rows)
    assert counted.of(128) == (128 * 4 * (FIRST + SECOND + BIASES), 128 * 2 * rows * (FIRST + SECOND))


@pytest.mark.parametrize("rows", [1, 8])
def test_the_first_product_of_low_rank_members_counts_once(case, rows):
    counted = count(case, case.ensemble("low_rank", 4), rows)
    nbytes, flops = counted.of(1000)
    factors = (10 + 50) + (50 + 1)
    assert nbytes == 4 * (FIRST + SECOND) + 1000 * 4 * (factors + BIASES)
    # The shared product of the second layer is each member's own, since its input is; thin products come on top.
    assert counted.flops[0] == 2 * rows * FIRST
    assert 2 * rows * SECOND < counted.flops[1] <= 2 * rows * (SECOND + factors)
    assert flops == counted.flops[0] + 1000 * counted.flops[1]


def test_it_holds_for_another_number_of_members(case):
    """Counted on four members, true of nine."""
    from torch.utils.flop_counter import FlopCounterMode

    made = case.ensemble("low_rank", 9)
    with FlopCounterMode(display=False) as counter:
        made(*case.inputs(3), chunk=9)
    assert count(case, case.ensemble("low_rank", 4), 3).of(9)[1] == counter.get_total_flops()


def test_size(case):
    found = size(case, {recipe: case.ensemble(recipe, 4) for recipe in ("dense", "low_rank")})
    assert found.member == 4 * (FIRST + SECOND + BIASES) == found.own["dense"]
    assert found.shared == {"dense": 0, "low_rank": 4 * (FIRST + SECOND)}
    # The hidden layer of one row, and not the weights, transposed.
    assert found.activation == 4 * 50


def test_of_an_embedding_the_entries_that_are_looked_up_count():
    torch.manual_seed(0)
    layer = nn.Embedding(40, 8)
    module = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3))
    index = torch.tensor([[1, 2, 1], [2, 5, 7]])
    assert embedding_reads(module, (index,)) == {"0.weight": (4 / 40, 8)}
    assert not layer._forward_hooks


@pytest.mark.parametrize("recipe", ["dense", "low_rank"])
def test_bytes_of_members_with_an_embedding(recipe):
    from benchmarks.models import Case

    module = nn.Sequential(nn.Embedding(40, 8), nn.Flatten(), nn.Linear(24, 3)).eval()
    made_inputs = {2: torch.tensor([[0, 1, 2], [3, 4, 0]])}
    case = Case("embedding", module, (3,), make=lambda rows: (made_inputs[rows],))
    shared, own = count(case, case.ensemble(recipe, 4), 2).nbytes
    if recipe == "dense":
        assert (shared, own) == pytest.approx((0, 4 * (5 * 8 + 24 * 3 + 3)))
    else:
        assert shared == pytest.approx(4 * (5 * 8 + 24 * 3))
        # Of the left factor five entries, the right one in full, and the linear layer's factors and bias.
        assert own == pytest.approx(4 * (5 + 8 + (3 + 24) + 3))

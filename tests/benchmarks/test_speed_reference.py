import itertools

import numpy as np
import pytest
import torch

from benchmarks.models import MODELS
from benchmarks.speed.reference import difference, order, write
from benchmarks.speed.worker import RefusedError


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "tiny.npz"
    assert write("tiny", "low_rank", 20, [1, 3], path, 60) == 20
    return path


def test_order_covers_all_and_every_beginning_is_spread():
    assert sorted(order(100, 16)) == list(range(100))
    assert order(3, 16) == [0, 1, 2]
    chosen = order(1024, 16)
    assert chosen[:16] == list(range(16))
    later = sorted(chosen[16:48])
    assert max(b - a for a, b in itertools.pairwise(later)) <= 64
    assert len(chosen) == len(set(chosen))


def test_it_is_what_the_ensembles_members_answer(kept):
    case = MODELS["tiny"]()
    made = case.ensemble("low_rank", 7)
    (x,) = case.inputs(3)
    error, checked = difference(made.loop(x).numpy(), kept, 3)
    assert error < 1e-6
    assert checked == 7


@pytest.mark.parametrize("wrong", ["another", "nan", "shape", "order"])
def test_wrong_answers_are_refused(kept, wrong):
    case = MODELS["tiny"]()
    outputs = case.ensemble("low_rank", 7).loop(*case.inputs(3)).numpy()
    if wrong == "another":
        outputs[5, 2] += 1e-2
    elif wrong == "nan":
        outputs[0, 0] = np.nan
    elif wrong == "order":
        outputs = outputs[::-1]
    else:
        outputs = outputs[..., 0]
    with pytest.raises(RefusedError, match="wrong"):
        difference(outputs, kept, 3)


def test_when_time_is_up_some_members_were_computed(tmp_path):
    assert write("tiny", "dense", 50, [1], tmp_path / "a", 0) == 4
    assert torch.is_grad_enabled()

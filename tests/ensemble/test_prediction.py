import copy
import pickle

import pytest
import torch

from ensemble import Prediction, StatisticError
from tests.scenarios import SCENARIOS

ONE = Prediction({"output": {"mean": torch.tensor([1.0]), "members": torch.zeros(1, 3)}}, 3)
TWO = Prediction({"policy": {"mean": torch.tensor([1.0])}, "value": {"mean": torch.tensor([2.0])}}, 3)


def test_statistics_are_attributes_items_and_a_mapping():
    assert ONE.mean is ONE["mean"]
    assert ONE.members.shape == (1, 3)
    assert ONE.count == 3
    assert dict(ONE) == {"mean": ONE.mean, "members": ONE.members}
    assert list(ONE) == ["mean", "members"]
    assert ONE.flat().keys() == {"mean", "members"}


def test_several_outputs_are_asked_by_name():
    assert TWO["value"].mean.item() == 2
    assert list(TWO) == ["policy", "value"]
    assert list(TWO.flat()) == ["policy.mean", "value.mean"]
    with pytest.raises(StatisticError, match=r"say which: prediction\['policy'\].mean"):
        TWO["mean"]
    with pytest.raises(AttributeError, match="say which"):
        _ = TWO.mean


def test_what_was_not_computed_says_how_to_ask_for_it():
    with pytest.raises(AttributeError, match=r"'std' was not computed, only mean, members; ask for it: predict\(x, "):
        _ = ONE.std
    with pytest.raises(StatisticError, match="'std' was not computed"):
        ONE["std"]


def test_a_prediction_is_copied_and_shown():
    assert torch.equal(pickle.loads(pickle.dumps(ONE)).mean, ONE.mean)
    assert torch.equal(copy.deepcopy(ONE).mean, ONE.mean)
    assert repr(ONE) == "Prediction(mean: [1], members: [1, 3]; from 3 members)"


def test_a_model_of_several_outputs(made):
    ens, x = made("many_outputs"), SCENARIOS["many_outputs"].inputs(4)
    y = ens(x)
    p = ens.predict(x)
    assert torch.allclose(p["policy"].mean, y.policy.mean(0) if hasattr(y, "policy") else y[0].mean(0), atol=1e-6)
    assert torch.allclose(p["value"].std, y[1].std(0, correction=0), atol=1e-6)
    assert list(ens.available_statistics())[:2] == ["policy.mean", "policy.std"]
    assert ens.default_statistics() == ["policy.mean", "policy.std", "value.mean", "value.std"]
    some = ens.predict(x, statistics=["value.members", "mean"])
    assert {name: sorted(some[name]) for name in some} == {"policy": ["mean"], "value": ["mean", "members"]}
    for wrong, text in (
        ("policy.label", "which raw does not have"),
        ("head.mean", "'head.mean', which does not exist"),
    ):
        with pytest.raises(StatisticError, match=text):
            ens.predict(x, statistics=[wrong])
    with pytest.raises(StatisticError, match="must be a list of names"):
        ens.predict(x, statistics="mean")

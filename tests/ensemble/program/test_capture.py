import copy

import pytest
import torch
from torch import nn

import ensemble
from ensemble import ModelError
from tests.reference import alone, call, difference
from tests.scenarios import SCENARIOS, Model, floats, mlp, seeded


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_captured_model_is_left_as_it_was(name):
    scenario = SCENARIOS[name]
    model = seeded(scenario)
    model.train()
    next(iter(model.modules())).training = False
    modes = [module.training for module in model.modules()]
    # Export is the same for all; live runs the same code around it in a fraction of the time.
    state = copy.deepcopy(model.state_dict())
    wanted = [p.requires_grad for p in model.parameters()]
    example = scenario.inputs(2)
    if scenario.live:
        ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=example, live=True)
    else:
        ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=example)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def test_training_the_model_further_does_not_change_the_ensemble(tmp_path):
    for options in ({}, {"live": True}):
        model = seeded(SCENARIOS["cnn"])
        x = floats(2, 8, 8)(2)
        recipe = ensemble.Gaussian(0.1, include="head.weight")
        ens = ensemble.perturb(model, recipe, members=3, example=x, **options)
        before = ens(x), ens.member(1)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1)
        assert torch.equal(ens(x), before[0])
        assert all(torch.equal(tensor, before[1][name]) for name, tensor in ens.member(1).items())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_an_example_of_any_number_of_rows_gives_the_same_program(rows):
    model = mlp()
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=floats(6)(rows))
    x = floats(6)(4)
    assert difference(ens(x)[1], alone(model, ens.member(1), x)[0]) <= 1e-5


def test_one_tensor_given_twice_stays_two_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, a, b):
            return self.fc(a) - 2 * b

    model, x = Sum(), torch.randn(2, 3)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=(x, x))
    assert difference(ens(x, x + 1)[0], alone(model, ens.member(0), (x, x + 1))[0]) <= 1e-5


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ((), "does not fit the model's forward"),
        ({"y": torch.zeros(2, 6)}, "does not fit the model's forward"),
        (3.0, "holds no tensor"),
        (torch.zeros(()), "must be a batch of at least one row"),
        (torch.zeros(0, 6), "must be a batch of at least one row"),
        (object(), "is a object"),
    ],
)
def test_an_example_that_is_none_is_refused(example, text):
    with pytest.raises(ModelError, match=text):
        ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=2, example=example)


def test_one_row_is_enough_to_see_that_rows_influence_each_other():
    centred = Model(lambda model, x: model.fc(x) - model.fc(x).mean(0))
    with pytest.raises(ModelError, match="influence each other"):
        ensemble.perturb(centred, ensemble.Gaussian(0.1), members=2, example=torch.randn(1, 4))


def test_inputs_of_different_rows_in_an_example_are_refused():
    example = floats(2, 9)(2), floats(1, 4, 4, 4)(3)
    with pytest.raises(ModelError, match=r"must be the batch, got sizes \{'signal': 2, 'volume': 3\}"):
        ensemble.perturb(seeded(SCENARIOS["volumes"]), ensemble.Gaussian(0.1), members=2, example=example)


def test_a_parameter_that_is_not_a_number_is_refused():
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"'0.weight' holds NaN"):
        ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=torch.zeros(2, 6))


def test_extra_state_of_a_module_belongs_to_no_member():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            raise AssertionError

    model = nn.Sequential(Extra(3, 2))
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=torch.randn(2, 3))
    assert list(ens.member(0)) == ["0.weight", "0.bias"]


def test_a_frozen_or_evaluating_model_may_be_given_under_inference_or_grad_mode(made):
    model = mlp().eval().requires_grad_(False)
    with torch.inference_mode():
        ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=floats(6)(2))
        inside = ens(floats(6)(3))
    x = floats(6)(3).requires_grad_()
    assert not call(ens, x).requires_grad
    torch.testing.assert_close(ens(x), inside)

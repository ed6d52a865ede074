import pytest
import torch
from torch import nn

import ensemble
from ensemble import InputError
from ensemble.program.program import TensorSpec
from tests.reference import alone, call, difference, tensors, worst
from tests.scenarios import SCENARIOS, seeded

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_member_answers_as_its_own_module(made, name):
    scenario, ens = SCENARIOS[name], made(name)
    model = seeded(scenario)
    states = [ens.member(index) for index in range(len(ens))]
    for rows in (1, 2, 7):
        inputs = scenario.inputs(rows)
        assert worst(call(ens, inputs), model, states, inputs) <= TOLERANCE


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_loop_answers_as_the_modules_too(made, name):
    scenario, ens = SCENARIOS[name], made(name)
    inputs = scenario.inputs(2)
    states = [ens.member(index) for index in range(len(ens))]
    assert worst(call(ens.loop, inputs), seeded(scenario), states, inputs) <= TOLERANCE
    assert ens.check() <= TOLERANCE


@pytest.mark.parametrize("name", SCENARIOS)
def test_members_differ_from_each_other_and_from_the_model(made, name):
    scenario, ens = SCENARIOS[name], made(name)
    inputs = scenario.inputs(4)
    outputs = tensors(call(ens, inputs))[0]
    model = seeded(scenario)
    trained = alone(model, model.state_dict(), inputs)[0]
    for index in range(len(ens)):
        assert difference(outputs[index], trained) > 1e-4
        assert difference(outputs[index], outputs[index - 1]) > 1e-4


def test_no_rows_are_refused(made):
    with pytest.raises(InputError, match="no rows"):
        made("mlp")(torch.zeros(0, 6))


def test_nested_inputs_and_outputs_keep_their_names_and_nesting(made):
    ens = made("many_inputs")
    assert [spec.name for spec in ens.program.inputs] == ["features.a", "features.b", "pair.0", "pair.1", "kind"]
    assert [spec.name for spec in ens.program.outputs] == ["hidden", "heads.0", "heads.1.0"]
    y = call(ens, SCENARIOS["many_inputs"].inputs(2))
    assert y["version"] == 3
    assert y["heads"][1][1] is None
    assert isinstance(y["heads"], tuple)
    assert isinstance(y["heads"][1], list)


def test_inputs_may_be_given_by_name_by_position_or_as_one_flat_dict(made):
    ens, inputs = made("many_inputs"), SCENARIOS["many_inputs"].inputs(2)
    expected = call(ens, inputs)["hidden"]
    flat = dict(zip([s.name for s in ens.program.inputs], tensors(inputs), strict=True))
    assert torch.equal(ens(flat)["hidden"], expected)
    assert torch.equal(ens(inputs["features"], inputs["pair"], kind=inputs["kind"])["hidden"], expected)


def test_a_named_tuple_of_outputs_and_its_names(made):
    ens = made("many_outputs")
    assert [spec.name for spec in ens.program.outputs] == ["policy", "value"]
    policy, value = ens(SCENARIOS["many_outputs"].inputs(2))
    assert policy.shape == (5, 2, 3)
    assert value.shape == (5, 2)


def test_the_batch_may_be_another_dimension_of_an_output(made):
    hidden = made("raw_gru").program.outputs[1]
    assert hidden.shape == (2, -1, 5)
    assert (hidden.batch_dim, hidden.trailing) == (1, (2, 5))
    spread = made("raw_gru").predict(SCENARIOS["raw_gru"].inputs(3))
    assert spread["output_1"].mean.shape == (3, 2, 5)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (lambda: torch.randn(2, 5), r"'input' must have shape \[-1, 6\]"),
        (lambda: torch.randn(6), r"'input' must have shape \[-1, 6\]"),
        (lambda: torch.randn(2, 6, dtype=torch.complex64), "must be float32, got complex64"),
        (lambda: [[1.0] * 6], "differs from what was captured"),
        (lambda: {"input": [[1.0] * 6]}, "must be a tensor, got a list"),
        (lambda: None, "differs from what was captured"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_would(made, given, text):
    with pytest.raises(InputError, match=text):
        made("mlp")(given())


def test_inputs_of_different_rows_missing_unknown_or_given_twice_are_refused(made):
    ens, inputs = made("volumes"), SCENARIOS["volumes"].inputs(3)
    with pytest.raises(InputError, match=r"same number of rows, got \{'signal': 3, 'volume': 2\}"):
        ens(inputs[0], inputs[1][:2])
    with pytest.raises(InputError, match="'volume' is missing"):
        ens(inputs[0])
    with pytest.raises(InputError, match=r"Unknown inputs \['other'\]"):
        ens(*inputs, other=inputs[0])
    with pytest.raises(InputError, match="by position and by name: volume"):
        ens(*inputs, volume=inputs[1])
    with pytest.raises(InputError, match="Expected 2 positional inputs"):
        ens(*inputs, inputs[0])


def test_inputs_are_cast_within_their_kind(made):
    ens, x = made("mlp"), torch.arange(12).reshape(2, 6)
    assert torch.equal(ens(x), ens(x.float()))
    assert torch.equal(ens(x.double()), ens(x.float()))
    with pytest.raises(InputError, match="must be int64, got float32"):
        made("tied")(torch.zeros(2, 3))


def test_a_parameter_left_out_does_not_shift_the_others():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, a, b=None, c=None):
            return self.fc(a) + (0 if b is None else 10 * b) + (0 if c is None else 100 * c)

    model, x = Three(), torch.randn(3, 2)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example={"a": x, "c": x + 1})
    assert difference(ens(x, c=x + 1)[1], alone(model, ens.member(1), {"a": x, "c": x + 1})[0]) <= TOLERANCE
    with pytest.raises(InputError, match="Expected 1 positional"):
        ens(x, x)


def test_activations_are_an_upper_bound_of_what_one_row_makes(made):
    # Two products of 16 and 4 numbers, and between them the activation and the copy that dropout leaves.
    assert made("mlp").program.activation_bytes == 4 * (16 + 16 + 16 + 4)
    assert made("mlp").program.largest_bytes == 4 * 16


def test_a_spec_says_which_dimension_is_the_batch():
    spec = TensorSpec("x", torch.float32, (3, -1, 4))
    assert (spec.batch_dim, spec.trailing) == (1, (3, 4))

import copy

import pytest
import torch
from torch import nn

import ensemble
from ensemble import InputError, ModelError, checked
from tests.reference import alone, call, difference, tensors, worst
from tests.scenarios import SCENARIOS, mlp, seeded

# What PyTorch's kernels on the CPU do not have in these dtypes.
NOT_IN_BFLOAT16 = {"volumes"}


# The code of "odd" makes float32 constants, which the module itself cannot mix with float64 weights.
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "odd"])
def test_float64_weights_give_what_modules_in_float64_give(made, name):
    scenario = SCENARIOS[name]
    ens = made(name).to(dtype=torch.float64)
    assert ens.dtype == torch.float64
    inputs = _cast(scenario.inputs(3), torch.float64)
    model = seeded(scenario).double()
    states = [ens.member(index) for index in range(len(ens))]
    assert worst(call(ens, inputs), model, states, inputs) <= 1e-6


@pytest.mark.parametrize("name", SCENARIOS)
def test_bfloat16_weights_give_about_the_same(made, name):
    if name in NOT_IN_BFLOAT16:
        with pytest.raises(ModelError, match="does not run with bfloat16 weights on the cpu: "):
            made(name).to(dtype=torch.bfloat16)
        return
    inputs = SCENARIOS[name].inputs(3)
    ens = made(name).to(dtype=torch.bfloat16)
    assert all(t.dtype == torch.bfloat16 for t in ens.members.stacked.values())
    for low, full, spec in zip(
        tensors(call(ens, inputs)), tensors(call(made(name), inputs)), ens.program.outputs, strict=True
    ):
        assert low.dtype == spec.dtype
        if low.is_floating_point():
            assert float((low.float() - full).abs().max() / full.abs().max()) < 0.1
    assert ens.check() < 5e-2


def test_a_model_of_float64_stays_so():
    model = mlp().double()
    x = torch.randn(3, 6, dtype=torch.float64)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=x)
    assert ens(x).dtype == torch.float64
    assert difference(ens(x)[1], alone(model, ens.member(1), x)[0]) <= 1e-12


def test_what_a_model_casts_on_purpose_stays_cast():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(x).float().softmax(-1), self.fc(x)

    ens = ensemble.perturb(Careful(), ensemble.Gaussian(0.1), members=2, example=torch.randn(2, 6))
    low = ens.to(dtype=torch.bfloat16)
    # Export drops a cast from float32 to float32, so the first follows too unless the model was exported in bfloat16.
    model = Careful().bfloat16()
    own = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=torch.randn(2, 6).bfloat16())
    assert [spec.dtype for spec in own.program.outputs] == [torch.float32, torch.bfloat16]
    back = own.to(dtype=torch.float64)
    assert [spec.dtype for spec in back.program.outputs] == [torch.float32, torch.float64]
    assert [y.dtype for y in back(torch.randn(2, 6))] == [torch.float32, torch.float64]
    assert [y.dtype for y in low(torch.randn(2, 6))] == [spec.dtype for spec in low.program.outputs]


def test_only_floating_dtypes_are_taken(made):
    with pytest.raises(ModelError, match=r"must be a floating-point type, however: torch.int8"):
        made("mlp").to(dtype=torch.int8)


def test_moving_leaves_the_first_where_it_was(made):
    ens = made("mlp")
    moved = ens.to("cpu", torch.float64)
    assert (ens.dtype, moved.dtype, len(moved)) == (torch.float32, torch.float64, 5)
    same = ens.to()
    assert torch.equal(same(torch.ones(1, 6)), ens(torch.ones(1, 6)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_check_finds_a_difference(made, name, monkeypatch):
    ens = made(name)
    assert ens.check() < 1e-5
    loop = checked.loop

    def off(*args):
        outputs = loop(*args)
        return tuple(o + 1 if o.is_floating_point() else ~o if o.dtype == torch.bool else o + 1 for o in outputs)

    monkeypatch.setattr("ensemble.checked.loop", off)
    with pytest.raises(ModelError, match=r"differs from the loop over members by .* \(bound 0.0001\)"):
        ens.check()


def test_the_check_finds_what_is_not_finite():
    model = mlp()
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=torch.randn(2, 6))
    with pytest.raises(ModelError, match="'output' is not finite on the example"):
        ens.check([torch.full((2, 6), torch.inf)])


def test_an_example_has_as_many_rows_as_asked(made):
    ens = made("many_inputs")
    for rows in (1, 2, 3, 7, 8):
        assert [t.shape[0] for t in ens.example(rows)] == [rows] * 5
    assert [t.shape[0] for t in ens.example()] == [3] * 5
    long = ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=2, example=torch.randn(50, 6), live=True)
    assert [tuple(t.shape) for t in long.example()] == [(4, 6)]


def test_an_ensemble_says_what_it_is(made):
    assert repr(made("mlp")).endswith("seed=3, task=raw, cpu, 3.52 KiB)")
    stacked = ensemble.stack([mlp(), mlp()], example=torch.zeros(1, 6))
    assert repr(stacked).startswith("Ensemble(2 members, separately trained, seed=0")


def test_outputs_of_one_call_are_of_its_rows_alone(made):
    for name, scenario in SCENARIOS.items():
        inputs = scenario.inputs(5)
        many = tensors(call(made(name), inputs))
        first = tensors(call(made(name), _rows(inputs)))
        for spec, whole, one in zip(made(name).program.outputs, many, first, strict=True):
            assert difference(one, whole.narrow(1 + spec.batch_dim, 0, 1)) <= 1e-5


def test_predict_takes_what_a_call_takes(made):
    inputs = SCENARIOS["many_inputs"].inputs(2)
    p = made("many_inputs").predict(**inputs)
    assert torch.allclose(p["hidden"].mean, call(made("many_inputs"), inputs)["hidden"].mean(0), atol=1e-6)
    with pytest.raises(InputError, match="'kind' is missing"):
        made("many_inputs").predict(inputs["features"], inputs["pair"])


def test_every_name_of_the_package_is_there():
    assert sorted(ensemble.__all__) == list(ensemble.__all__)
    for name in ensemble.__all__:
        assert getattr(ensemble, name)
    for name in ("ModelError", "RecipeError", "InputError", "StatisticError", "MemoryLimitError", "ArtifactError"):
        assert issubclass(getattr(ensemble, name), ensemble.EnsembledError)


def _cast(value, dtype):
    match value:
        case torch.Tensor():
            return value.to(dtype) if value.is_floating_point() else value
        case dict():
            return {key: _cast(item, dtype) for key, item in value.items()}
        case tuple():
            return tuple(_cast(item, dtype) for item in value)
    return value


def _rows(value):
    match value:
        case torch.Tensor():
            return value[:1]
        case dict():
            return {key: _rows(item) for key, item in value.items()}
        case tuple():
            return tuple(map(_rows, value))
    return value


def test_a_deep_copy_gives_the_same_and_has_weights_of_its_own(made):
    ens, inputs = made("mlp"), SCENARIOS["mlp"].inputs(3)
    other = copy.deepcopy(ens)
    assert torch.equal(call(other, inputs), call(ens, inputs))
    before = call(ens, inputs)
    for weight in other.members.stacked.values():
        weight.zero_()
    assert torch.equal(call(ens, inputs), before)
    assert not torch.equal(call(other, inputs), before)

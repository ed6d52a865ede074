import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

import ensemble
from ensemble import PerturbAndCorrect, RecipeError
from ensemble.program.capture import capture
from tests.reference import alone, call, tensors, worst
from tests.scenarios import SCENARIOS, mlp, seeded

pytestmark = pytest.mark.usefixtures("exported_once")


@functools.cache
def network(width=40, bias=True, outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, outputs, bias=bias)).double()


def points(rows=15):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1)).double()


def test_members_agree_where_there_are_data_and_differ_away_from_them():
    model, x = network(), points()
    ens = ensemble.perturb(model, PerturbAndCorrect(scale=1.0, ridge=0), members=8, data=x, task="regression")
    trained = model(x).detach()
    assert torch.allclose(ens(x), trained.expand(8, -1, -1), atol=1e-9)
    spread = [float(ens(factor * x).std(0).mean()) for factor in (1, 1.5, 3, 10)]
    assert spread[0] < 1e-9
    assert 1e-3 < spread[1] < spread[2] < spread[3]


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_ridge_it_is_the_least_squares_of_least_norm(bias):
    """With more data than width, where the fit is not exact, and with fewer."""
    for rows in (200, 15):
        model, x = network(bias=bias), points(rows)
        ens = ensemble.perturb(model, PerturbAndCorrect(scale=0.5, ridge=0), members=3, data=x)
        features, weight = model[:2](x).detach().numpy(), model[2].weight.detach().numpy()
        for index in range(3):
            state = {name: value.numpy() for name, value in ens.member(index).items()}
            own = np.maximum(x.numpy() @ state["0.weight"].T + state["0.bias"], 0)
            missing, middle, level = (features - own) @ weight.T, 0.0, 0.0
            if bias:
                middle, level = own.mean(0), missing.mean(0)
            delta = np.linalg.lstsq(own - middle, missing - level, rcond=1e-9)[0]
            np.testing.assert_allclose(state["2.weight"], weight + delta.T, atol=1e-6)
            if bias:
                shift = level - middle @ delta
                np.testing.assert_allclose(state["2.bias"], model[2].bias.detach().numpy() + shift, atol=1e-6)


def test_the_ridge_is_relative_to_the_mean_eigenvalue():
    model, x, ridge = network(bias=False), points(60), 0.1
    ens = ensemble.perturb(model, PerturbAndCorrect(scale=0.5, ridge=ridge), members=2, data=x)
    state = {name: value.numpy() for name, value in ens.member(1).items()}
    own = np.maximum(x.numpy() @ state["0.weight"].T + state["0.bias"], 0)
    size = ridge * np.linalg.eigvalsh(own.T @ own).mean()
    weight = model[2].weight.detach().numpy()
    missing = (model[:2](x).detach().numpy() - own) @ weight.T
    # As least squares with more rows, which know nothing of normal equations.
    rows = np.vstack([own, np.sqrt(size) * np.eye(own.shape[1])])
    delta = np.linalg.lstsq(rows, np.vstack([missing, np.zeros((own.shape[1], 2))]), rcond=None)[0]
    np.testing.assert_allclose(state["2.weight"], weight + delta.T, atol=1e-10)


def test_a_scale_of_zero_is_the_trained_model():
    model, x = network(), points()
    for ridge in (0, 1e-3):
        ens = ensemble.perturb(model, PerturbAndCorrect(scale=0, ridge=ridge), members=2, data=x)
        assert torch.allclose(ens(3 * x), model(3 * x).detach().expand(2, -1, -1), atol=1e-12)


def test_a_member_depends_neither_on_the_others_nor_on_how_the_data_are_passed(monkeypatch):
    model, x, recipe = network(), points(50), PerturbAndCorrect(scale=0.5)
    few = ensemble.perturb(model, recipe, members=3, data=x, seed=7)
    many = ensemble.perturb(model, recipe, members=20, data=x, seed=7)
    monkeypatch.setattr("ensemble.learning.correction._MOST_ROWS", 7)
    monkeypatch.setattr("ensemble.learning.correction._BATCH_BYTES", 20_000)
    monkeypatch.setattr("ensemble.learning.correction._EQUATIONS_BYTES", 150_000)
    seen = []
    streamed = ensemble.perturb(model, recipe, members=20, data=x, seed=7, progress=lambda *at: seen.append(at))
    # More than one group of members, each over batches of seven rows.
    assert seen[0][1] >= 100
    assert len(seen) == 8 * seen[-1][1] // 50
    assert seen[-1][0] == seen[-1][1]
    for name, value in few.member(2).items():
        for other in (many, streamed):
            torch.testing.assert_close(other.member(2)[name], value, rtol=1e-9, atol=1e-11)
    other = ensemble.perturb(model, recipe, members=3, data=x, seed=8)
    assert not torch.allclose(other.member(2)["2.weight"], few.member(2)["2.weight"])


# What the model ends in after the layer that is perturbed by default, and whether the fit can be exact.
CHOSEN = {
    "mlp": "0",
    "cnn": "features.4",
    "encoder": "encoder.layers.1.linear2",
    "many_outputs": "body",
}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", list(CHOSEN))
def test_it_finds_its_layers_and_is_kept_as_it_was_made(name, rank, perturbed, scenario_model, tmp_path):
    model, data, inputs = scenario_model(name), SCENARIOS[name].inputs(6), SCENARIOS[name].inputs(4)
    ens = perturbed(name, PerturbAndCorrect(scale=0.3, ridge=0, rank=rank), members=4, data=data)
    assert ens.origin.recipe.layer == CHOSEN[name]
    assert ens.check() <= 1e-5
    assert worst(call(ens, inputs), model, [ens.member(i) for i in range(4)], inputs) <= 1e-5
    layer = next(n for n in ens.origin.recipe.weights if not n.endswith("bias"))
    assert (layer in ens.members.factored) == (rank is not None)
    # Six rows are fewer than any width here.
    for got, want in zip(tensors(call(ens, data)), alone(model, model.state_dict(), data), strict=True):
        torch.testing.assert_close(got, want.expand_as(got), rtol=1e-3, atol=1e-4)
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == ens.origin.recipe
    assert [row.how for row in ensemble.compatibility(again)] == [row.how for row in ensemble.compatibility(ens)]
    for before, after in zip(tensors(call(ens, inputs)), tensors(call(again, inputs)), strict=True):
        assert torch.equal(before, after)


def test_how_its_weights_run_is_told(perturbed):
    ens = perturbed("cnn", PerturbAndCorrect(scale=0.3, rank=1), members=2, data=SCENARIOS["cnn"].inputs(6))
    told = {row.name: (row.how, row.why) for row in ensemble.compatibility(ens)}
    assert told["features.0.weight"] == ("shared", "perturb_and_correct leaves it the same in all members")
    assert told["features.4.weight"][0] == "factored"
    assert told["head.weight"] == ("stacked", "perturb_and_correct gives every member a weight of its own")


class Convolutions(nn.Module):
    """The next layer is a strided, padded and dilated convolution; a depthwise one before it is gone through."""

    def __init__(self, dimensions):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        self.first, self.depth = conv(2, 6, 3), conv(6, 6, 1, groups=6)
        self.next = conv(6, 3, 2, stride=2, padding=1, dilation=2)

    def forward(self, x):
        return self.next(self.depth(self.first(x)).relu()).flatten(2).sum(-1)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_next_layer_may_be_a_convolution(dimensions):
    torch.manual_seed(0)
    model = Convolutions(dimensions).double()
    x = torch.randn(2, 2, *[5] * dimensions).double()
    # The patches: few positions in one dimension, more than the width in three, where the fit is not exact.
    ens = ensemble.perturb(model, PerturbAndCorrect(scale=0.4, layer="first", ridge=0), members=3, data=x)
    assert set(ens.origin.reference) == {"first.weight", "first.bias", "next.weight", "next.bias"}
    assert ens.check() < 1e-12
    shape = model.next.weight.shape
    with torch.no_grad():
        for index in range(3):
            state = ens.member(index)
            own = Convolutions(dimensions).double()
            own.load_state_dict(state)
            before = [m.depth(m.first(x)).relu() for m in (model, own)]
            target = model.next(before[0])

            def error(weight, bias, made=before[1], target=target):
                settings = {"stride": 2, "padding": 1, "dilation": 2}
                conv = getattr(nn.functional, f"conv{dimensions}d")
                return (conv(made, weight, bias, **settings) - target).square().sum()

            least = error(state["next.weight"], state["next.bias"])
            for _ in range(20):
                step = 1e-3 * torch.randn(shape).double()
                assert error(state["next.weight"] + step, state["next.bias"]) >= least
                assert error(state["next.weight"], state["next.bias"] + step.flatten()[:3]) >= least
            if dimensions == 1:
                assert least < 1e-18


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.c(self.b(self.a(x)).relu())


class Feeding(nn.Module):
    """What the second next layer reads comes from the first."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.a(x).relu()
        return self.c(hidden + self.b(hidden).relu())


def program(model):
    return capture(model, torch.randn(3, 4)).program


def test_another_layer_may_be_named():
    deep = program(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)))
    for layer, changed in [("0", {"0", "2"}), ("2.weight", {"2", "4"}), (-1, {"2", "4"}), (0, {"0", "2"})]:
        weights = PerturbAndCorrect(layer=layer).settled(deep).weights
        assert {name.split(".")[0] for name in weights} == changed


def test_places_count_layers_that_linear_ones_follow(exported):
    # Its first convolution is followed by the second.
    cnn = exported("cnn").program
    assert PerturbAndCorrect(layer=0).settled(cnn).layer == "features.4"
    assert PerturbAndCorrect(layer="features.0").settled(cnn).weights[2:] == ("features.4.weight", "features.4.bias")
    with pytest.raises(RecipeError, match=r"layer=1 is none of 'features.4', of which 0 is the first"):
        PerturbAndCorrect(layer=1).settled(cnn)
    only = capture(Convolutions(1), torch.randn(2, 2, 5)).program
    assert PerturbAndCorrect().settled(only).layer == "depth"
    assert PerturbAndCorrect(layer=0).settled(only).layer == "first"


def test_a_layer_that_does_not_fit_is_refused_with_those_that_do():
    residual, feeding = program(Residual()), program(Feeding())
    assert PerturbAndCorrect().settled(residual).layer == "b"
    with pytest.raises(RecipeError, match=r"'c' has a way to the outputs without another layer; .* chosen: 'a', 'b'"):
        PerturbAndCorrect(layer="c").settled(residual)
    with pytest.raises(RecipeError, match="'d' is no layer of this model; what can be chosen: 'a', 'b'"):
        PerturbAndCorrect(layer="d").settled(residual)
    assert PerturbAndCorrect().settled(feeding).layer == "b"
    with pytest.raises(RecipeError, match="'a' has a way"):
        PerturbAndCorrect(layer="a").settled(feeding)
    with pytest.raises(
        RecipeError, match=r"needs a linear layer or convolution whose every way .* layers are 'weight'"
    ):
        PerturbAndCorrect().settled(program(nn.Linear(4, 2)))
    with pytest.raises(RecipeError, match="make the ensemble without live=True"):
        ensemble.perturb(mlp(), PerturbAndCorrect(), members=2, data=torch.zeros(3, 6), live=True)


def test_what_rounding_alone_makes_of_nothing_is_not_fitted():
    """What a layer normalisation gives sums to 0, so one direction of it is rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    x = torch.randn(50, 4)
    recipe = PerturbAndCorrect(scale=1.0, ridge=0, layer="2")
    got = ensemble.perturb(model, recipe, members=3, data=x)
    exact = ensemble.perturb(copy.deepcopy(model).double(), recipe, members=3, data=x.double())
    for name in ("4.weight", "4.bias"):
        torch.testing.assert_close(
            got.members.stacked[name].double(), exact.members.stacked[name], atol=1e-4, rtol=1e-3
        )
    assert got.check() < 1e-5


@pytest.mark.parametrize("ridge", [0, 1e-3])
def test_inputs_that_are_no_numbers_are_told_of(ridge):
    x = points()
    x[3, 1] = torch.nan
    with pytest.raises(RecipeError, match=r"What the layer .2. reads is not finite .* look for NaN"):
        ensemble.perturb(network(), PerturbAndCorrect(ridge=ridge), members=2, data=x, example=points())


def test_data_may_stay_in_a_file(tmp_path, monkeypatch):
    x = points(300).numpy()
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("ensemble.learning.correction._MOST_ROWS", 64)
    one, other = (
        ensemble.perturb(network(), PerturbAndCorrect(scale=0.5), members=2, data=data)
        for data in (np.load(tmp_path / "x.npy", mmap_mode="r"), torch.from_numpy(x))
    )
    assert all(torch.equal(tensor, other.members.stacked[name]) for name, tensor in one.members.stacked.items())


def test_data_are_needed(perturbed):
    with pytest.raises(RecipeError, match="needs calibration inputs: give data=inputs"):
        perturbed("mlp", PerturbAndCorrect(), members=2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": -1}, "scale must be a finite number ≥ 0, however: -1"),
        ({"scale": float("nan")}, "scale must be"),
        ({"ridge": float("inf")}, "ridge must be a finite number ≥ 0"),
        ({"ridge": True}, "ridge must be"),
        ({"weights": (1,)}, "weights must be name patterns"),
        ({"layer": ""}, "layer must be a layer's name such as 'fc1'"),
        ({"layer": None}, "layer must be a layer's name"),
        ({"layer": True}, "layer must be a layer's name"),
        ({"rank": 0}, "rank must be an integer between 1"),
    ],
)
def test_settings_that_are_none_are_refused(settings, text):
    with pytest.raises(RecipeError, match=text):
        PerturbAndCorrect(**settings)


def test_settings_go_round():
    recipe = PerturbAndCorrect(0.3, "fc1", 0.1, 2)
    assert PerturbAndCorrect.from_settings(recipe.settings()) == recipe
    for candidate in PerturbAndCorrect.candidates():
        assert PerturbAndCorrect.from_settings(candidate).scale > 0


def test_members_that_do_not_fit_are_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr("ensemble.memory.available", lambda device: 60_000)
    with pytest.raises(
        ensemble.MemoryLimitError, match=r"normal equations of '2' for one member would take .* narrower"
    ):
        ensemble.perturb(network(64), PerturbAndCorrect(), members=2, data=points())


def test_weights_in_half_precision_are_refitted_in_double():
    model, x = seeded(SCENARIOS["mlp"]).bfloat16(), torch.randn(6, 6).bfloat16()
    ens = ensemble.perturb(model, PerturbAndCorrect(scale=0.3, ridge=1e-4), members=3, data=x)
    assert {weight.dtype for weight in ens.members.stacked.values()} == {torch.bfloat16}
    assert float((ens(x) - model.eval()(x)).detach().abs().max()) < 0.05

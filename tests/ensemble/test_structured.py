import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ensemble
from ensemble import LowRank, Rank1
from ensemble.ensemble import Ensemble
from ensemble.members import draw
from ensemble.structured import LEFT, RIGHT, factorable
from tests.reference import call, tensors, worst
from tests.scenarios import SCENARIOS, floats, seeded

RECIPES = [LowRank(scale=0.3), LowRank(scale=0.3, rank=3), Rank1(scale=0.3)]
FLOATING = [name for name in SCENARIOS if name != "some"]


def remade(ens, recipe, members=7):
    """The same captured model with other members, without exporting it again."""
    weights = {**ens.members.shared, **ens.origin.reference}
    names = recipe.select(weights, set(ens.origin.reference))
    drawn = draw(recipe, ens.program, weights, names, count=members, seed=3, device=ens.device)
    origin = copy.copy(ens.origin)
    object.__setattr__(origin, "recipe", recipe)
    return Ensemble(ens.program, drawn, origin)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("name", FLOATING)
def test_members_on_factors_give_what_their_own_modules_give(made, name, recipe):
    scenario, ens = SCENARIOS[name], remade(made(name), recipe)
    states = [ens.member(index) for index in range(7)]
    for rows in (1, 4):
        inputs = scenario.inputs(rows)
        assert worst(call(ens, inputs), seeded(scenario), states, inputs) <= 1e-5
        for chunk in (0, 3):
            assert worst(call(ens, inputs, chunk=chunk), seeded(scenario), states, inputs) <= 1e-5


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("name", ["cnn", "lstm", "attention", "tied"])
def test_they_are_saved_as_a_recipe_and_come_back_bit_for_bit(made, name, recipe, tmp_path):
    ens, inputs = remade(made(name), recipe), SCENARIOS[name].inputs(2)
    ens.save(tmp_path / "x")
    again = ensemble.load(tmp_path / "x")
    assert again.members.factored == ens.members.factored
    for before, after in zip(tensors(call(ens, inputs)), tensors(call(again, inputs)), strict=True):
        assert torch.equal(before, after)
    half = ens.to(dtype=torch.bfloat16)
    half.save(tmp_path / "half")
    assert ensemble.load(tmp_path / "half").check() <= 5e-2


def module(*layers):
    return nn.Sequential(*layers).eval()


CONVOLUTIONS = {
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), floats(4, 7, 7)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), floats(4, 7, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), floats(4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), floats(4, 7, 7)),
    "pointwise": (nn.Conv2d(4, 6, 1), floats(4, 7, 7)),
    "one dimension": (nn.Conv1d(4, 6, 3, stride=2, groups=2), floats(4, 9)),
    "three dimensions": (nn.Conv3d(2, 4, (3, 2, 1), padding=(1, 0, 0)), floats(2, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), floats(4, 5, 5)),
    "transposed and grouped": (nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, dilation=2), floats(4, 5, 5)),
    "transposed in one dimension": (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), floats(4, 9)),
}


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_kind_of_convolution_is_factored(name, recipe):
    layer, inputs = CONVOLUTIONS[name]
    # Behind another layer, so that its inputs differ between members too.
    kind = getattr(nn, type(layer).__name__.replace("Transpose", ""))
    first = kind(layer.in_channels, layer.in_channels, 1)
    model = module(first, nn.Tanh(), layer)
    ens = ensemble.perturb(model, recipe, members=5, example=inputs(3))
    assert sorted(ens.members.factored) == ["0.weight", "2.weight"]
    assert worst(ens(inputs(2)), model, [ens.member(i) for i in range(5)], inputs(2)) <= 1e-5


def test_the_full_weight_of_a_member_is_what_the_recipe_draws(made):
    for recipe in RECIPES:
        ens = remade(made("mlp"), recipe)
        for name, trained in ens.origin.reference.items():
            drawn = recipe.draw(name, trained, 3, range(7))
            for index in range(7):
                assert torch.equal(ens.member(index)[name], drawn[index])


class Added(nn.Module):
    """A matrix that is used in a product and added as well."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.product = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

    def forward(self, x):
        return self.product(x @ self.both) + self.both.sum(0)


def test_a_weight_that_is_not_only_used_in_products_is_dense_and_the_reason_is_told():
    ens = ensemble.perturb(Added(), LowRank(0.2), members=4, example=torch.randn(3, 4))
    assert list(ens.members.factored) == ["product.weight"]
    assert ens.members.stacked["both"].shape == (4, 4, 4)
    x = torch.randn(2, 4)
    assert worst(ens(x), Added(), [ens.member(i) for i in range(4)], x) <= 1e-5
    shape = ens.members.factored["product.weight"]
    _, reasons = factorable(ens.program, {"both": shape, "product.weight": shape})
    assert "sum" in reasons["both"]


def flops(ens, x):
    with FlopCounterMode(display=False) as counter:
        ens(x, chunk=len(ens))
    return counter.get_total_flops()


def test_what_does_not_depend_on_a_member_is_computed_once():
    """2 · rows · inputs · outputs for each product: the first layer's shared product once, the rest for each member."""
    model = module(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    rows, members, rank = 4, 16, 2
    x = torch.randn(rows, 32)
    ens = ensemble.perturb(model, LowRank(0.1, rank=rank), members=members, example=x)
    first, second = rows * 32 * 64, rows * 64 * 10
    thin = rows * rank * (32 + 64 + 64 + 10)
    assert flops(ens, x) == 2 * (first + members * (second + thin))
    # Multiplied inputs differ from the first layer on.
    ens = ensemble.perturb(model, Rank1(0.1), members=members, example=x)
    assert flops(ens, x) == 2 * members * (first + second)
    # A backbone that no recipe touches runs once.
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1, include="2.*"), members=members, example=x)
    assert flops(ens, x) == 2 * (first + members * second)


def test_a_thousand_factored_members_take_a_small_part_of_the_memory():
    model = module(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    ens = ensemble.perturb(model, LowRank(0.05), members=1024, example=torch.randn(2, 784))
    one = sum(p.numel() * p.element_size() for p in model.parameters())
    assert ens.members.nbytes < 0.03 * 1024 * one
    # Of the two big matrices only factors are members' own.
    assert ens.members.stacked["0.weight" + LEFT].shape == (1024, 512, 1)
    assert ens.members.stacked["0.weight" + RIGHT].shape == (1024, 784, 1)

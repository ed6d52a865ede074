import copy

import pytest
import torch
from torch import nn

import ensemble
from ensemble import InputError, RecipeError
from ensemble.variants import evaluation as module
from tests.reference import call, difference, tensors, worst
from tests.scenarios import SCENARIOS, seeded

RECIPES = [
    ensemble.Gaussian(0.2),
    ensemble.LowRank(0.3, rank=2),
    ensemble.Rank1(0.1),
    ensemble.LowRank(0.1, include="*.weight"),
    ensemble.Mixture(parts=(ensemble.Rank1(0.1), ensemble.Rank1(0.3)), weights=(1, 3)),
]


# What differs between models is which of their weights have factors.
@pytest.mark.parametrize(
    ("name", "recipe"),
    [*(("mlp", recipe) for recipe in RECIPES), *((name, RECIPES[1]) for name in ("cnn", "tied", "encoder"))],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_other_members_are_those_that_perturb_makes_bit_for_bit(made, name, recipe, tmp_path):
    scenario = SCENARIOS[name]
    want = ensemble.perturb(seeded(scenario), recipe, members=4, seed=9, example=scenario.inputs(3))
    made(name).save(tmp_path / "m")
    for ens in (made(name), ensemble.load(tmp_path / "m")):
        got = ens.perturbed(recipe, members=4, seed=9)
        assert got.members.stacked.keys() == want.members.stacked.keys()
        assert all(torch.equal(got.members.stacked[key], want.members.stacked[key]) for key in want.members.stacked)
        for index in range(4):
            state, other = got.member(index), want.member(index)
            assert state.keys() == other.keys()
            assert all(torch.equal(state[key], other[key]) for key in other)
        inputs = scenario.inputs(2)
        for one, another in zip(tensors(call(got, inputs)), tensors(call(want, inputs)), strict=True):
            assert torch.equal(one, another)
        assert got.origin.recipe == want.origin.recipe
        assert got.origin.seed == 9
        assert (got.members.mixture is None) == (want.members.mixture is None)
        assert got.program is ens.program


def test_a_variant_is_an_ensemble_like_any_other(made, tmp_path):
    ens = made("mlp").perturbed(ensemble.LowRank(0.2), members=6, seed=1)
    x = torch.randn(3, 6)
    assert ens.check() < 1e-5
    ens.save(tmp_path / "m")
    assert torch.equal(ensemble.load(tmp_path / "m")(x), ens(x))
    again = ens.perturbed(ensemble.Gaussian(0.1), members=5, seed=3)
    assert all(torch.equal(again.members.stacked[name], t) for name, t in made("mlp").members.stacked.items())


def test_what_is_shared_is_not_copied(made):
    ens = ensemble.perturb(seeded(SCENARIOS["mlp"]), ensemble.LowRank(0.1), members=2, example=torch.zeros(2, 6))
    other = ens.perturbed(ensemble.LowRank(0.2), members=2, seed=5)
    for name, weight in ens.members.shared.items():
        assert other.members.shared[name].data_ptr() == weight.data_ptr()


def test_members_of_another_dtype_are_drawn_from_what_was_trained(made):
    recipe = ensemble.LowRank(0.2)
    model, x = seeded(SCENARIOS["mlp"]), SCENARIOS["mlp"].inputs(3)
    want = ensemble.perturb(model, recipe, members=4, seed=2, example=x, dtype=torch.bfloat16)
    got = made("mlp").to(dtype=torch.bfloat16).perturbed(recipe, members=4, seed=2)
    assert all(torch.equal(got.members.stacked[key], want.members.stacked[key]) for key in want.members.stacked)


def test_what_was_fitted_is_not_carried_over(made):
    ens = ensemble.perturb(
        seeded(SCENARIOS["mlp"]),
        ensemble.Gaussian(0.1),
        members=3,
        example=torch.zeros(2, 6),
        task="regression",
        noise_variance=0.5,
        metadata={"unit": "K"},
    )
    ens.calibration = ensemble.Calibration(temperature=2.0)
    other = ens.perturbed(ensemble.Gaussian(0.1), members=3)
    assert other.calibration is None
    assert (other.task, other.noise_variance, other.metadata) == ("regression", 0.5, {"unit": "K"})


def test_an_ensemble_that_comes_from_no_one_model_refuses_recipes(saved):
    stacked = ensemble.load(saved / "stacked")
    several = ensemble.perturb(
        [seeded(SCENARIOS["mlp"], seed) for seed in range(2)],
        ensemble.LowRank(0.1),
        members=4,
        example=torch.zeros(2, 6),
    )
    for ens in (stacked, several):
        with pytest.raises(RecipeError, match="no trained weights that all of them come from"):
            ens.perturbed(ensemble.Gaussian(0.1), members=2)


def test_one_network_of_given_weights_is_what_was_trained(made):
    model, x, recipe = seeded(SCENARIOS["mlp"]), torch.randn(3, 6), ensemble.LowRank(0.2)
    weights = {"3.bias": torch.randn(4), "0.weight": torch.randn(16, 6)}
    model.load_state_dict(weights, strict=False)
    want = ensemble.perturb(model, recipe, members=4, seed=2, example=x)
    got = made("mlp").with_weights(weights).perturbed(recipe, members=4, seed=2)
    assert all(torch.equal(got.members.stacked[key], want.members.stacked[key]) for key in want.members.stacked)
    assert torch.equal(got(x), want(x))


def test_arguments_that_cannot_be_are_refused(made):
    with pytest.raises(RecipeError, match="one that draws members from a seed"):
        made("mlp").perturbed("gaussian", members=2)
    with pytest.raises(RecipeError, match="members must be an integer"):
        made("mlp").perturbed(ensemble.Gaussian(0.1), members=0)
    with pytest.raises(RecipeError, match="matches none of this model's weights"):
        made("mlp").perturbed(ensemble.Gaussian(0.1, include="nothing"), members=2)


def given(members, rank=2, scale=0.3):
    """Weights for the MLP: one whole with members, one whole without, one as factors of which one has members."""
    lead = () if members is None else (members,)
    generator = torch.Generator().manual_seed(0)

    def some(*shape):
        return scale * torch.randn(shape, generator=generator)

    return {
        "0.bias": some(*lead, 16),
        "3.bias": some(4),
        "3.weight.left": some(*lead, 4, rank),
        "3.weight.right": some(16, rank),
    }


def materialised(model, weights, member):
    """The state dict that a member with these weights has."""
    state = copy.deepcopy(model.state_dict())
    base = state["3.weight"].clone()

    def own(name, dims):
        return weights[name][member] if weights[name].ndim > dims else weights[name]

    state["0.bias"], state["3.bias"] = own("0.bias", 1), own("3.bias", 1)
    state["3.weight"] = base + own("3.weight.left", 2) @ own("3.weight.right", 2).T
    return state


@pytest.mark.parametrize("members", [None, 1, 3])
def test_weights_that_are_given_take_the_place_of_the_trained_ones(made, members, tmp_path):
    model, x = seeded(SCENARIOS["mlp"]), torch.randn(5, 6)
    weights = given(members)
    ens = made("mlp").with_weights(weights)
    assert len(ens) == (members or 1)
    states = [materialised(model, weights, member) for member in range(len(ens))]
    assert worst(ens(x), model, states, x) < 1e-5
    assert ens.check() < 1e-5
    assert {name for name, _ in ens.members.factored.items()} == {"3.weight"}
    ens.save(tmp_path / "m")
    assert torch.equal(ensemble.load(tmp_path / "m")(x), ens(x))
    # They are copies.
    before = ens(x)
    weights["0.bias"].zero_()
    assert torch.equal(ens(x), before)


def test_factors_of_a_weight_that_is_in_no_product_are_multiplied_out(made):
    scenario = SCENARIOS["encoder"]
    model, inputs = seeded(scenario), scenario.inputs(2)
    left, right = torch.randn(3, 5, 2), torch.randn(3, 16, 2)
    ens = made("encoder").with_weights({"positions.left": left, "positions.right": right})
    assert not ens.members.factored
    states = []
    for member in range(3):
        state = copy.deepcopy(model.state_dict())
        state["positions"] = state["positions"] + left[member] @ right[member].T
        states.append(state)
    assert worst(call(ens, inputs), model, states, inputs) < 1e-5


def test_separately_trained_members_can_be_replaced_as_a_whole(saved):
    ens = ensemble.load(saved / "stacked")
    names = list(ens.members.stacked)
    whole = {name: ens.members.stacked[name][:2] for name in names}
    x = torch.randn(2, 6)
    assert difference(ens.with_weights(whole)(x), ens(x)[:2]) < 1e-6
    with pytest.raises(InputError, match=r"'0\.weight' must be given too: this ensemble's members were trained"):
        ens.with_weights({name: whole[name] for name in names if name != "0.weight"})
    with pytest.raises(InputError, match="is added to a trained weight"):
        ens.with_weights({"0.weight.left": torch.zeros(16, 1), "0.weight.right": torch.zeros(6, 1)})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "at least one tensor"),
        ({"nothing": torch.zeros(3)}, "'nothing' is no weight of this model; it has '0.weight', '0.bias'"),
        ({"0.weight.middle": torch.zeros(3, 1)}, "'0.weight.middle' is no weight"),
        ({"0.bias": torch.zeros(15)}, r"'0.bias' must have shape \[16\], or \[members, 16\], however: \[15\]"),
        ({"0.bias": torch.zeros(0, 16)}, r"however: \[0, 16\]"),
        ({"0.bias": torch.zeros(2, 2, 16)}, r"however: \[2, 2, 16\]"),
        ({"0.bias": torch.zeros(16, dtype=torch.int64)}, "'0.bias' must be floats, however: int64"),
        ({"0.bias": torch.full((16,), torch.nan)}, "'0.bias' must hold finite numbers"),
        ({"0.bias": torch.full((16,), 1e300, dtype=torch.float64)}, "must hold finite numbers of float32"),
        ({"0.bias": torch.zeros(2, 16), "3.bias": torch.zeros(3, 4)}, "as many of them, however: {'0.bias': 2"),
        ({"3.weight.left": torch.zeros(4, 2)}, "'3.weight.left' must come with '3.weight.right'"),
        ({"3.weight.left": torch.zeros(4, 2), "3.weight.right": torch.zeros(16, 3)}, "of the same rank"),
        ({"3.weight.left": torch.zeros(4), "3.weight.right": torch.zeros(16, 1)}, "must be .rows, rank."),
        ({"3.weight.left": torch.zeros(4, 0), "3.weight.right": torch.zeros(16, 0)}, "rank from 1 to 256"),
        ({"0.bias.left": torch.zeros(16, 1), "0.bias.right": torch.zeros(1, 1)}, "is a vector and has no factors"),
        (
            {"3.weight": torch.zeros(4, 16), "3.weight.left": torch.zeros(4, 1), "3.weight.right": torch.zeros(16, 1)},
            "whole or as factors, not both",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(made, weights, message):
    with pytest.raises(InputError, match=message):
        made("mlp").with_weights(weights)


def test_a_weight_that_is_not_floating_stays_as_it_is(made):
    ens = made("attention")
    mask = next(name for name, w in ens.members.shared.items() if w.dtype == torch.bool)
    with pytest.raises(InputError, match="is bool and stays as it is"):
        ens.with_weights({mask: torch.ones(4, 4)})


ROWS = (1, 5, 2, 1, 9, 1)


@pytest.mark.parametrize("recipe", [ensemble.Gaussian(0.2), ensemble.LowRank(0.3, rank=2)], ids=["dense", "factored"])
@pytest.mark.parametrize("bound", [None, 1, 10_000])
def test_variants_of_one_kind_are_evaluated_together_and_each_is_what_it_is_alone(made, recipe, bound, monkeypatch):
    ens = made("many_outputs")
    if bound is not None:
        monkeypatch.setattr(module, "_STACKED_BYTES", bound)
    x = [torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)) for rows in ROWS]
    settled, kind = ens.variants.perturbed(recipe, 6)
    drawn = [ens.variants.draw(settled, kind, seed) for seed in range(len(ROWS))]
    names = ["policy.mean", "value.std", "value.members"]
    got = ens.variants.predict(kind, drawn, [[rows] for rows in x], names)
    assert got.count == 6
    start = 0
    for seed, rows in enumerate(x):
        alone = ens.perturbed(recipe, members=6, seed=seed).predict(rows, statistics=names).flat()
        for name, values in got.flat().items():
            assert difference(values[start : start + len(rows)], alone[name]) < 1e-5
        start += len(rows)
    calls = list(ens.variants.evaluate(kind, drawn, [[rows] for rows in x]))
    assert sorted(place for places, _ in calls for place in places) == list(range(len(ROWS)))
    # Few rows are made up: one, one, one and two; five and nine. Where memory does not suffice, each goes alone.
    assert [len(places) for places, _ in calls] == ([4, 2] if bound is None else [1] * 6 if bound == 1 else [4, 2])


def test_the_members_weights_in_a_mixture_count(made):
    ens, recipe = made("mlp"), RECIPES[-1]
    settled, kind = ens.variants.perturbed(recipe, 6)
    x = [torch.randn(2, 6), torch.randn(1, 6)]
    drawn = [ens.variants.draw(settled, kind, seed) for seed in (1, 2)]
    got = ens.variants.predict(kind, drawn, [[rows] for rows in x]).flat()["mean"]
    for rows, seed, part in zip(x, (1, 2), (got[:2], got[2:]), strict=True):
        assert difference(part, ens.perturbed(recipe, members=6, seed=seed).predict(rows).mean) < 1e-5


def test_kinds_are_told_apart_by_what_members_have_of_their_own(made):
    variants = made("mlp").variants

    def kind(recipe, members=4):
        return variants.perturbed(recipe, members)[1]

    one = kind(ensemble.LowRank(0.1))
    assert kind(ensemble.LowRank(0.7)) == one
    assert hash(kind(ensemble.LowRank(0.7))) == hash(one)
    others = {
        one,
        kind(ensemble.LowRank(0.1), 5),
        kind(ensemble.LowRank(0.1, rank=2)),
        kind(ensemble.LowRank(0.1, include="*.weight")),
        kind(ensemble.Gaussian(0.1)),
        kind(ensemble.Rank1(0.1)),
    }
    assert len(others) == 6
    assert kind(ensemble.Gaussian(0.1)).nbytes == 4 * 4 * (6 * 16 + 16 + 16 * 4 + 4)
    assert one.nbytes == 4 * 4 * (16 + 6 + 16 + 4 + 16 + 4)
    assert variants.brought(given(3))[0] != variants.brought(given(2))[0]


def test_an_ensemble_saved_before_its_parameters_were_kept_knows_them_where_all_were_perturbed(made):
    class Normed(nn.Sequential):
        pass

    model = Normed(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(2, 3)
    for include, knows in (("*", True), ("0.*", False)):
        ens = ensemble.perturb(model, ensemble.Gaussian(0.1, include=include), members=2, example=x)
        assert set(ens.origin.trainable) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        object.__setattr__(ens.origin, "trainable", None)
        if knows:
            assert set(ens.perturbed(ensemble.Gaussian(0.1), members=2).members.stacked) == set(ens.members.stacked)
        else:
            with pytest.raises(RecipeError, match="build it again"):
                ens.perturbed(ensemble.Gaussian(0.1), members=2)

import pytest
import torch

import ensemble
from ensemble import Gaussian, LowRank, Mixture, Rank1
from ensemble.perturbation import Recipe
from tests.scenarios import mlp

PARTS = (LowRank(0.0), LowRank(0.1), LowRank(0.3))


def test_a_member_is_the_one_that_its_part_has_under_the_same_number():
    weight = torch.randn(6, 5)
    drawn = Mixture(PARTS).draw("w", weight, 4, range(13))
    for member in range(13):
        part = PARTS[member // 2 % 3]
        assert torch.equal(drawn[member], part.draw("w", weight, 4, range(member, member + 1))[0])
    # Both members of an antithetic pair are of one part, so that their mean is the trained weight.
    torch.testing.assert_close(drawn[2::6] + drawn[3::6], 2 * weight.expand(2, 6, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", [Mixture(PARTS), Mixture((Gaussian(0.1), Rank1(0.2)))])
def test_a_member_is_the_same_alone_and_in_any_range(recipe):
    weight = torch.randn(6, 5)
    many = recipe.draw("w", weight, 1, range(20))
    for member in range(20):
        assert torch.equal(many[member], recipe.draw("w", weight, 1, range(member, member + 1))[0])
    assert torch.equal(many[3:12], recipe.draw("w", weight, 1, range(3, 12)))


def test_factors_are_kept_where_all_parts_have_the_same_form():
    recipe = Mixture(PARTS)
    weight = torch.randn(6, 5)
    assert recipe.structure((6, 5)) == LowRank(0.1).structure((6, 5))
    assert torch.equal(
        recipe.factors("w", weight, 0, range(7)).materialise(weight), recipe.draw("w", weight, 0, range(7))
    )
    mixed = Mixture((LowRank(0.1), Rank1(0.1)))
    assert mixed.structure((6, 5)) is None
    assert mixed.factors("w", weight, 0, range(7)) is None


def test_the_weights_of_the_parts_are_shared_by_their_members():
    # Of 7 members part 0 has 0, 1, 6, part 1 has 2, 3, part 2 has 4, 5.
    weights = Mixture(PARTS, (1.0, 3.0, 6.0)).mixture(7)
    expected = torch.tensor([1 / 3, 1 / 3, 1.5, 1.5, 3, 3, 1 / 3], dtype=torch.float64) / 10
    torch.testing.assert_close(weights, expected)
    assert Mixture(PARTS).mixture(7) is None
    assert Mixture(PARTS, (2.0, 2.0, 2.0)).mixture(12) is None
    # What is equal of parts is not equal of members where parts have unequally many.
    torch.testing.assert_close(Mixture(PARTS, (1.0, 1.0, 1.0)).mixture(7), Mixture(PARTS, (5.0, 5.0, 5.0)).mixture(7))
    # The only part that has weight is not among so few members.
    assert Mixture(PARTS, (0.0, 0.0, 1.0)).mixture(2) is None


def test_it_is_replayed_from_disk_without_its_members(tmp_path):
    x = torch.randn(8, 6)
    recipe = Mixture(PARTS, (0.2, 0.5, 0.3))
    ens = ensemble.perturb(mlp(), recipe, members=20, example=x, seed=5, task="classification")
    assert torch.allclose(ens(x), ens.loop(x), atol=1e-5)
    assert {row.how for row in ensemble.compatibility(ens) if len(row.shape) == 2} == {"factored"}
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == recipe
    assert torch.equal(again(x), ens(x))
    assert torch.equal(again.members.mixture, ens.members.mixture)
    stored = ensemble.load(tmp_path / "m").members.nbytes
    assert (tmp_path / "m" / "weights.safetensors").stat().st_size < stored


def test_settings_are_plain_values_and_back():
    recipe = Mixture((Gaussian(0.1, exclude="a*"), Rank1(0.2)), (1, 2))
    again = Recipe.known["mixture"].from_settings(recipe.settings())
    assert again == recipe


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Mixture(()), "between 1 and 256"),
        (lambda: Mixture((0.1,)), "such as Rank1"),
        (lambda: Mixture((Mixture(PARTS),)), "such as Rank1"),
        (lambda: Mixture(PARTS, (1.0, 2.0)), "for each of the 3 parts"),
        (lambda: Mixture(PARTS, (1.0, -2.0, 1.0)), "≥ 0"),
        (lambda: Mixture(PARTS, (0.0, 0.0, 0.0)), "not all 0"),
        (lambda: Mixture(PARTS, (float("nan"), 1.0, 1.0)), "≥ 0"),
    ],
)
def test_what_is_no_mixture_is_refused(make, match):
    with pytest.raises(ensemble.RecipeError, match=match):
        make()


def test_parts_that_perturb_different_weights_are_refused():
    recipe = Mixture((Gaussian(0.1), Gaussian(0.1, include="0.*")))
    with pytest.raises(ensemble.RecipeError, match=r"differ in 3\.bias, 3\.weight"):
        ensemble.perturb(mlp(), recipe, members=4, example=torch.randn(2, 6))

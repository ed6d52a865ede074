"""A recipe in a request: what it leaves out is the model's own, and what an answer tells of it gives it again."""

import pytest

import ensemble
from app.errors import BadRequest
from app.protocol import Perturbed
from app.variants.recipe import recipe_of, settable, told
from ensemble import Dropout, Gaussian, LowRank, Mixture, Rank1

LEARNED = ensemble.Laplace()
OWN = Gaussian(0.2, include=("0.*", "2.*"), exclude="0.bias")


def asked(recipe=None, **settings):
    return Perturbed(recipe, tuple(settings.items()))


@pytest.mark.parametrize(
    ("own", "ask", "want", "telling"),
    [
        (OWN, asked(), OWN, {"recipe": "gaussian", "scale": 0.2}),
        (OWN, asked("gaussian", scale=0.3), Gaussian(0.3, OWN.include, OWN.exclude), {"scale": 0.3}),
        # They are a recipe's defaults and not the model's, so they must be said.
        (OWN, asked(include="*", exclude=""), Gaussian(0.2), {"scale": 0.2, "include": "*", "exclude": ""}),
        (
            OWN,
            asked(include="2.*, 0.weight"),
            Gaussian(0.2, ("2.*", "0.weight"), "0.bias"),
            {"include": "2.*,0.weight"},
        ),
        (OWN, asked("low_rank", scale=1), LowRank(1.0), {"recipe": "low_rank", "scale": 1.0}),
        (LowRank(0.1, rank=4), asked(rank=1), LowRank(0.1), {"scale": 0.1, "rank": 1}),
        (OWN, asked("dropout", p=0.5), Dropout(0.5), {"recipe": "dropout", "p": 0.5}),
        # As an ensemble keeps it, with its layers found.
        (Dropout(0.1, include=("2.weight", "4.weight")), asked(), None, {"recipe": "dropout", "p": 0.1}),
        (Mixture((Rank1(0.1), Rank1(0.3)), (1, 3)), asked(), None, {"recipe": "mixture"}),
        (LEARNED, asked("rank1", scale=0.1), Rank1(0.1), {"recipe": "rank1", "scale": 0.1}),
    ],
)
def test_what_is_told_asks_for_the_same_again(own, ask, want, telling):
    got = recipe_of(ask, own)
    assert got == (own if want is None else want)
    said = told(got, own)
    assert telling.items() <= said.items()
    assert all(isinstance(value, str | int | float) for value in said.values())
    name = said.pop("recipe")
    assert recipe_of(asked(name, **said), own) == got


@pytest.mark.parametrize(
    ("own", "ask", "message"),
    [
        (OWN, asked("laplace"), r"recipe must be one of dropout, .*, however: 'laplace' \(its members are learned"),
        (OWN, asked("x" * 100), r"however: 'x{60}…'$"),
        (LEARNED, asked(), "recipe must be given, one of .*: the model's own draws no members"),
        (None, asked(), "recipe must be given"),
        (OWN, asked("mixture"), "the recipe 'mixture' can be asked for only where it is the model's own"),
        (OWN, asked("mixture", scale=1), "the recipe 'mixture' has no setting scale; a request sets none of it"),
        (OWN, asked(rank=2), "the recipe 'gaussian' has no setting rank; it has scale, include, exclude"),
        (OWN, asked("rank1"), "the recipe 'rank1' needs scale"),
        (OWN, asked("rank1", scale="big"), "scale must be a finite number ≥ 0, however: 'big'"),
        (OWN, asked("rank1", scale=True), "scale must be a finite number ≥ 0, however: True"),
        (OWN, asked("rank1", scale=1, include=3), "include must be name patterns with commas, .* however: 3"),
        (OWN, asked("rank1", scale=10**400), "cannot have these settings|scale must be a finite number"),
    ],
)
def test_what_is_no_recipe_is_refused_and_the_text_says_what_would_be(own, ask, message):
    with pytest.raises(BadRequest, match=message):
        recipe_of(ask, own)


def test_recipes_within_recipes_are_no_settings():
    assert {"scale", "rank", "p", "include", "exclude"} <= settable()
    assert not settable() & {"parts", "weights", "recipe"}

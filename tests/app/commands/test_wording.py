import pytest

from app.commands.wording import in_words
from ensemble import Dropout, Gaussian, LowRank, Mixture, Rank1
from ensemble.perturbation.adapted import Adapted


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Rank1(0.1), "rank1, scale 0.1"),
        (Gaussian(0.5, exclude=("head.*", "0.bias")), "gaussian, scale 0.5, exclude head.* 0.bias"),
        (Mixture((LowRank(0.1), LowRank(0.0), LowRank(0.1)), (0.2, 0.3, 0.5)),
         "mixture of 3 settings of low_rank, rank 1, scale 0, 0.1"),
        (Mixture((Dropout(0.1), Rank1(0.2))), "mixture of 2 settings: 1 of dropout, 1 of rank1"),
        (Mixture((Rank1(0.2), Rank1(0.2))), "mixture of 2 settings of rank1, scale 0.2"),
    ],
)  # fmt: skip
def test_a_recipe_fits_in_a_line(recipe, words):
    assert in_words(recipe.name, recipe.settings()) == words


def test_a_recipe_in_a_recipe_is_said_too():
    words = in_words("adapted", Adapted(steps=5, start=Gaussian(0.1)).settings())
    assert words.startswith("adapted, steps 5, lr 0.005")
    assert "start (gaussian, scale 0.1)" in words

import pytest
import torch

from ensemble import InputError
from ensemble.calibration.split import divide
from ensemble.data import Data


def rows(count):
    return Data((torch.arange(count).float().unsqueeze(1),), torch.arange(count))


def divided(data, validation=None, **more):
    return divide(data, validation, **{"conformal": 0.4, "confidence_level": 0.9, "seed": 0, **more})


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (50, {"learning": 0, "selection": 30, "conformal": 20}),
        (500, {"learning": 0, "selection": 300, "conformal": 200}),
        (50_000, {"learning": 35_000, "selection": 5000, "conformal": 10_000}),
    ],
)
def test_what_a_user_gets_of_so_many_rows(count, sizes):
    parts = divided(rows(count))
    assert parts.sizes == sizes
    every = torch.cat([p.targets for p in (parts.learning, parts.selection, parts.conformal) if p is not None])
    assert len(every.unique()) == len(every)
    assert bool(parts.notes) == (count == 50)


def test_with_a_validation_set_the_data_are_there_to_learn_from():
    data, validation = rows(100), rows(60)
    parts = divided(data, validation)
    assert parts.learning is data
    assert parts.sizes == {"learning": 100, "selection": 36, "conformal": 24}


def test_a_recipe_that_learns_gets_a_third_of_its_own():
    parts = divided(rows(300), learns=True)
    assert parts.sizes == {"learning": 100, "selection": 120, "conformal": 80}
    every = torch.cat([parts.learning.targets, parts.selection.targets, parts.conformal.targets])
    assert every.sort().values.equal(torch.arange(300))


def test_without_intervals_all_rows_choose():
    parts = divided(rows(50), conformal=0)
    assert (len(parts.selection), parts.conformal) == (50, None)


def test_too_few_rows_for_intervals_are_told():
    (few, infinite) = divided(rows(30), confidence_level=0.95).notes
    assert "Only 18 rows choose" in few
    assert "At least 19 such rows are needed" in infinite
    # So many are enough, and no fewer.
    assert len(divided(rows(48), confidence_level=0.95).notes) == 1
    assert len(divided(rows(45), confidence_level=0.95).notes) == 2


@pytest.mark.parametrize("share", [-0.1, 1, 2, "a", None, True])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="conformal must be a share"):
        divided(rows(100), conformal=share)


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="at least 20 rows that the model was not trained on, however: 19"):
        divided(rows(19))
    with pytest.raises(InputError, match="2 are left to choose by"):
        divided(rows(20), conformal=0.9)

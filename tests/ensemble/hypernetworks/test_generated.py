"""The forms of a hypernetwork's output, and what is said of one that is none."""

import pytest
import torch
from torch import nn

from ensemble.errors import ModelError, RecipeError
from ensemble.hypernetworks.generated import Generated, first_bad

TARGET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
WEIGHTS = {name: p.detach() for name, p in TARGET.named_parameters()}
NUMBERS = sum(weight.numel() for weight in WEIGHTS.values())


def form(output, count=5, **settings):
    settings.setdefault("aliases", {})
    return Generated.of(output, count, TARGET, WEIGHTS, **settings)


def test_a_vector_is_cut_in_the_order_of_the_parameters():
    vector = torch.arange(5.0 * NUMBERS).view(5, NUMBERS)
    found = form(vector)
    assert found.described() == dict.fromkeys(WEIGHTS, "full")
    own = found.read(vector)
    assert {name: tuple(t.shape[1:]) for name, t in own.items()} == {n: tuple(w.shape) for n, w in WEIGHTS.items()}
    assert torch.equal(torch.cat([own[name].flatten(1) for name in WEIGHTS], 1), vector)


def test_a_vector_may_hold_some_of_the_parameters_and_those_of_no_use_are_passed_over():
    some = form(torch.zeros(5, 8), include="2.*", exclude="*.bias")
    assert some.names == ["2.weight"]
    unread = Generated.of(torch.zeros(5, NUMBERS), 5, TARGET, {"2.bias": WEIGHTS["2.bias"]}, aliases={})
    vector = torch.arange(5.0 * NUMBERS).view(5, NUMBERS)
    assert torch.equal(unread.read(vector)["2.bias"], vector[:, -2:])


def test_chunks_are_one_vector_whose_last_part_may_be_too_long():
    vector = torch.arange(5.0 * 30).view(5, 30)
    found = form(vector.view(5, 3, 10))
    assert torch.equal(found.read(vector.view(5, 3, 10))["2.bias"], vector[:, NUMBERS - 2 : NUMBERS])


def test_a_dict_may_mix_full_weights_and_factors():
    output = {"0.weight": (torch.zeros(5, 4, 2), torch.zeros(5, 3, 2)), "2.bias": torch.ones(5, 2)}
    found = form(output)
    assert found.described() == {"2.bias": "full", "0.weight": "rank 2"}
    assert set(found.read(output)) == {"0.weight.left", "0.weight.right", "2.bias"}


def test_a_tied_weight_may_be_given_under_either_name():
    found = form({"again": torch.zeros(5, 2)}, aliases={"again": "2.bias"})
    assert found.names == ["2.bias"]
    assert list(found.read({"again": torch.ones(5, 2)})) == ["2.bias"]
    with pytest.raises(ModelError, match=r"gives '2.bias' twice, under both names of a tied weight"):
        form({"again": torch.zeros(5, 2), "2.bias": torch.zeros(5, 2)}, aliases={"again": "2.bias"})


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ([1], r"one vector of weights, \(codes, numbers\), or a dict by the target's names, however: a list"),
        (torch.zeros(5, 25), "gives 25 numbers for each code, and the target's chosen parameters have 26"),
        (torch.zeros(5, 2, 26), "gives 52 numbers for each code"),
        (torch.zeros(4, 26), r"For 5 codes a hypernetwork must give \[5, 26\] weights, .* however: \[4, 26\]"),
        (torch.zeros(5, 26, dtype=torch.int64), "weights are floating point"),
        ({}, "gives no weight at all"),
        ({"1.weight": torch.zeros(5, 1)}, "gives '1.weight', no weight of the target: 0.weight, 0.bias"),
        ({"2.bias": torch.zeros(5, 3)}, r"gives '2.bias' with shape \[5, 3\] for 5 codes; it must be \[5, 2\]"),
        ({"2.bias": 3}, r"a tensor for '2.bias', or a pair of factors \(L, R\) .* however: a int"),
        ({"2.bias": (torch.zeros(5, 2, 1), torch.zeros(5, 1, 1))}, r"'2.bias' has shape \[2\], which has no factors"),
        ({"0.weight": (torch.zeros(5, 4, 2), torch.zeros(5, 3, 1))}, r"right factor .* it must be \[5, 3, 2\]"),
        ({"0.weight": (torch.zeros(5, 3, 2), torch.zeros(5, 4, 2))}, r"left factor .* it must be \[5, 4, 2\]"),
        ({"0.weight": (torch.zeros(5, 4, 9), torch.zeros(5, 3, 9))}, "rank 9; of a weight .* between 1 and 3"),
    ],
)
def test_what_fits_no_form_is_refused_with_what_would(output, said):
    with pytest.raises(ModelError, match=said):
        form(output)


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(RecipeError, match=r"The pattern 'head.\*' matches none"):
        form(torch.zeros(5, 26), include="head.*")


def test_an_output_of_another_form_than_before_is_refused():
    with pytest.raises(ModelError, match="a vector before, and now a dict"):
        form(torch.zeros(5, NUMBERS)).read({})
    named = form({"2.bias": torch.zeros(5, 2)})
    with pytest.raises(ModelError, match="a dict before, and now a Tensor"):
        named.read(torch.zeros(5, 2))
    with pytest.raises(ModelError, match=r"gave \['2.bias'\] before, and now \['0.bias'\]"):
        named.read({"0.bias": torch.zeros(5, 4)})


def test_it_finds_the_code_whose_weight_is_not_finite():
    assert first_bad({"a": torch.zeros(3, 2)}) is None
    assert first_bad({"a": torch.zeros(3, 2), "b.left": torch.tensor([[0.0], [0.0], [torch.inf]])}) == ("b", 2)

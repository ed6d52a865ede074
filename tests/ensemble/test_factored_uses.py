"""The ways in which a model may use a weight in a product, and those that are none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ensemble
from ensemble import LowRank, MemoryLimitError, Rank1, memory
from tests.reference import worst
from tests.scenarios import floats, integers

RECIPES = [LowRank(scale=0.3), LowRank(scale=0.3, rank=3), Rank1(scale=0.3)]
MEMBERS, ROWS = 5, 2


class Using(nn.Module):
    """One weight, and what is done with it."""

    def __init__(self, size, use) -> None:
        super().__init__()
        self.w, self.use = nn.Parameter(torch.randn(*size)), use

    def forward(self, x):
        return self.use(x, self.w)


def einsum(equation):
    return lambda x, w: torch.einsum(equation, x, w)


# Of each the weight's shape, how it is used, on what, and how many products with a matrix of which sides a row takes.
PRODUCTS = {
    "einsum": ((7, 4), einsum("bi,oi->bo"), floats(4), 1, 4, 7),
    "einsum of a matrix the other way round": ((4, 7), einsum("bi,io->bo"), floats(4), 1, 4, 7),
    "einsum with the weight first": ((7, 4), lambda x, w: torch.einsum("oi,bi->bo", w, x), floats(4), 1, 4, 7),
    "einsum of sequences": ((7, 4), einsum("bti,oi->bto"), floats(3, 4), 3, 4, 7),
    "einsum to one output": ((1, 4), einsum("bti,oi->bto"), floats(3, 4), 3, 4, 1),
    "bmm of a repeated weight": ((7, 4), lambda x, w: x.bmm(w.t().expand(x.shape[0], 4, 7)), floats(3, 4), 3, 4, 7),
    "bmm with the weight first": ((7, 4), lambda x, w: w.expand(x.shape[0], 7, 4).bmm(x), floats(4, 3), 3, 4, 7),
    "baddbmm": ((4, 7), lambda x, w: x.new_ones(1).baddbmm(x, w.expand(x.shape[0], 4, 7)), floats(3, 4), 3, 4, 7),
    "matmul with the weight first": ((7, 4), lambda x, w: (w @ x.t()).t(), floats(4), 1, 4, 7),
    "tensordot": ((7, 4), lambda x, w: torch.tensordot(x, w, dims=([2], [1])), floats(3, 4), 3, 4, 7),
    "inner": ((7, 4), torch.inner, floats(4), 1, 4, 7),
    "a multiple": ((7, 4), lambda x, w: F.linear(x, w * 0.5), floats(4), 1, 4, 7),
    "a part": ((7, 4), lambda x, w: F.linear(x, -w / 3), floats(4), 1, 4, 7),
    "some columns": ((7, 4), lambda x, w: F.linear(x, w[:, 1:]), floats(3), 1, 3, 7),
    "some rows": ((7, 4), lambda x, w: F.linear(x, w[::2]), floats(4), 1, 4, 4),
    "columns in parts": ((7, 4), lambda x, w: F.linear(x, w.chunk(2, 1)[1]), floats(2), 1, 2, 7),
    "a kernel as a matrix": ((7, 4, 1, 1), lambda x, w: F.linear(x, w.flatten(1)), floats(4), 1, 4, 7),
    "a copy": ((4, 7), lambda x, w: F.linear(x, w.t().contiguous()), floats(4), 1, 4, 7),
    "in another precision": ((4, 7), lambda x, w: x.double() @ w.double(), floats(4), 1, 4, 7),
    "a dimension more and less": ((7, 4), lambda x, w: x @ w[None].transpose(1, 2), floats(3, 4), 3, 4, 7),
}  # fmt: skip
LOOKUPS = {
    "an index": ((9, 4), lambda x, w: w[x], integers(9, 3)),
    "an index from the end": ((9, 4), lambda x, w: w[x - 9], integers(9, 3)),
    "index_select": ((9, 4), lambda x, w: w.index_select(0, x), integers(9)),
    "an embedding of some rows": ((9, 4), lambda x, w: F.embedding(x, w[2:]), integers(7, 3)),
    "an embedding of columns": ((4, 9), lambda x, w: F.embedding(x, w.t()), integers(9, 3)),
    "sums of rows": ((9, 4), lambda x, w: F.embedding_bag(x, w, mode="sum"), integers(9, 3)),
    "weighted sums": (
        (9, 4),
        lambda x, w: F.embedding_bag(x, w, mode="sum", per_sample_weights=1.0 / (1 + x)),
        integers(9, 3),
    ),
}


def used(size, use, inputs, recipe, members=MEMBERS):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Using(size, use)
    return model, ensemble.perturb(model, recipe, members=members, example=inputs(3))


def flops(ens, x):
    with FlopCounterMode(display=False) as counter:
        ens(x, chunk=len(ens))
    return counter.get_total_flops()


def assert_like_its_members(ens, model, x):
    states = [ens.member(index) for index in range(len(ens))]
    for chunk in (None, 0, 3):
        assert worst(ens(x, chunk=chunk), model, states, x) <= 1e-5


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_runs_on_factors_however_it_is_written(name, recipe):
    size, use, inputs, products, inner, outer = PRODUCTS[name]
    model, ens = used(size, use, inputs, recipe)
    assert list(ens.members.factored) == ["w"]
    assert_like_its_members(ens, model, inputs(ROWS))
    rows = ROWS * products
    if isinstance(recipe, LowRank):
        # With the shared weight once, and with both factors for each member.
        assert flops(ens, inputs(ROWS)) == 2 * rows * (inner * outer + MEMBERS * recipe.rank * (inner + outer))
    else:
        # A member's scaled inputs are its own.
        assert flops(ens, inputs(ROWS)) == 2 * rows * MEMBERS * inner * outer


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_are_read_from_factors(name, recipe):
    size, use, inputs = LOOKUPS[name]
    model, ens = used(size, use, inputs, recipe)
    assert list(ens.members.factored) == ["w"]
    assert_like_its_members(ens, model, inputs(ROWS))


class Between(nn.Module):
    """Products whose inputs differ between members: of sequences, then of each head with its matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.heads = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(2, 3, 5))

    def forward(self, x):
        hidden = torch.einsum("bti,oi->bto", x, self.first).tanh().unflatten(-1, (2, 3))
        return torch.einsum("bthi,hio->btho", hidden, self.heads)


def test_a_batch_of_matrices_is_scaled_on_factors_and_dense_by_adding():
    model, x = Between(), floats(3, 4)
    for recipe, factored in ((Rank1(0.3), ["first", "heads"]), (LowRank(0.3), ["first"])):
        ens = ensemble.perturb(model, recipe, members=MEMBERS, example=x(3))
        assert list(ens.members.factored) == factored
        assert_like_its_members(ens, model, x(ROWS))
    why = {row.name: row.why for row in ensemble.compatibility(ens)}["heads"]
    assert why.startswith("used by bmm with a matrix for each of the batch; rank1 would put it on factors; exclude it")


@pytest.mark.parametrize("size", [(2, 1, 5), (2, 3, 1), (1, 3, 5), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("equation", ["bhi,hio->bho", "bho,hio->bhi", "hio,bhi->bho"])
def test_a_batch_of_matrices_with_a_side_of_one(size, equation):
    inputs = floats(size[0], size[2 if equation.startswith("bho") else 1])
    model, ens = used(
        size, lambda x, w: torch.einsum(equation, *((w, x) if equation[0] == "h" else (x, w))), inputs, Rank1(0.5)
    )
    assert_like_its_members(ens, model, inputs(ROWS))


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("size", [(1, 4), (7, 1), (1, 1)], ids=str)
def test_a_matrix_with_a_side_of_one(size, recipe):
    inputs = floats(size[1])
    model, ens = used(size, torch.inner, inputs, recipe)
    assert list(ens.members.factored) == ["w"]
    assert_like_its_members(ens, model, inputs(ROWS))


def test_the_mean_of_looked_up_rows_is_factored_by_adding_and_dense_by_scaling():
    size, use, inputs = (9, 4), lambda x, w: F.embedding_bag(x, w), integers(9, 3)
    for recipe, factored in ((LowRank(0.3, rank=2), ["w"]), (Rank1(0.3), [])):
        model, ens = used(size, use, inputs, recipe)
        assert list(ens.members.factored) == factored
        assert_like_its_members(ens, model, inputs(ROWS))
    assert "low_rank would put it on factors" in ensemble.compatibility(ens)[0].why


@pytest.mark.parametrize(
    ("size", "use", "inputs", "says"),
    [
        ((4, 4), lambda x, w: x + w.sum(0), floats(4), "used by sum, which has no form on factors"),
        ((7, 4), lambda x, w: x @ (w * w).t(), floats(4), "used by mul, which has no form on factors"),
        ((9, 4), lambda x, w: torch.gather(w, 0, x[:, None].expand(-1, 4)), integers(9), "used by gather,"),
        ((3, 4, 4), lambda x, w: F.bilinear(x, x, w), floats(4), "used by bilinear,"),
        ((9, 4), lambda x, w: F.embedding_bag(x, w, mode="max"), integers(9, 3), "used by embedding_bag for a maximum"),
        ((2, 3, 4), lambda x, w: F.linear(x, w.view(6, 4)), floats(4), "used by reshape, which joins dimensions"),
        ((2, 3, 4), lambda x, w: F.linear(x, w[:1].squeeze(0)), floats(4), "used by linear, where it is no matrix"),
        ((4, 4), lambda x, w: x @ (w @ w), floats(4), "used by mm,"),
        ((4, 4), lambda x, w: (x @ w, w.detach().expand(x.shape[0], 4, 4)), floats(4), "used by the output,"),
    ],
)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_what_is_no_product_is_dense_and_named_as_it_is_written(size, use, inputs, says, recipe):
    model, ens = used(size, use, inputs, recipe)
    (row,) = ensemble.compatibility(ens)
    assert row.how == "dense fallback"
    assert row.why.startswith(says)
    assert row.why.endswith("; exclude it to keep it shared")
    assert worst(ens(inputs(ROWS)), model, [ens.member(i) for i in range(MEMBERS)], inputs(ROWS)) <= 1e-5


def test_two_weights_multiplied_with_each_other_are_dense_but_for_one():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return x @ (self.one @ self.other)

    model, x = Chain(), torch.randn(2, 4)
    ens = ensemble.perturb(model, LowRank(0.3), members=4, example=x)
    (dense,) = [row for row in ensemble.compatibility(ens) if row.how != "factored"]
    assert dense.why.startswith("used by mm together with another weight that has factors")
    assert worst(ens(x), model, [ens.member(i) for i in range(4)], x) <= 1e-5


def test_members_that_do_not_fit_are_told_which_weights_are_held_in_full(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2000)
    with pytest.raises(MemoryLimitError, match=r"bmm with a matrix for each of the batch"):
        ensemble.perturb(Between(), LowRank(0.1), members=100, example=torch.randn(3, 3, 4))
    with pytest.raises(MemoryLimitError) as told:
        ensemble.perturb(Between(), Rank1(0.1), members=100, example=torch.randn(3, 3, 4))
    assert "in full" not in str(told.value)

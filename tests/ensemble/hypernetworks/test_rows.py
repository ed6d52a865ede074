"""Rows with weights of their own in one call, beside one row after the other, for every kind of model."""

import pytest
import torch
from torch import nn

from ensemble.hypernetworks.rows import run
from ensemble.program.capture import capture
from tests.reference import difference
from tests.scenarios import SCENARIOS, floats, integers, seeded


class Several(nn.Module):
    """Operations that torch.vmap would fix the number of rows of."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4, bias=False)
        self.conv, self.group = nn.Conv1d(4, 4, 2, bias=False), nn.GroupNorm(2, 4)
        self.added = nn.Parameter(torch.ones(1, 1, 4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.tokens(tokens))
        hidden = torch.cat([hidden, self.added.expand(hidden.shape[0], 1, 4)], 1).transpose(1, 2)
        return nn.functional.max_pool1d(self.group(self.conv(hidden)), 2).mean(2)


def own_weights(weights: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """Every floating weight, another one for each row."""
    factors = 1 + 0.1 * torch.arange(rows)
    return {
        name: torch.stack([(w * factor.to(w.dtype)) for factor in factors])
        for name, w in weights.items()
        if w.is_floating_point()
    }


def one_by_one(program, weights, own, inputs):
    """Flat outputs, each (rows, *those of a batch of one)."""
    with torch.no_grad():
        each = [
            program({**weights, **{name: w[row] for name, w in own.items()}}, [t[row : row + 1] for t in inputs])
            for row in range(len(inputs[0]))
        ]
    return [torch.stack(outputs) for outputs in zip(*each, strict=True)]


def shared(made):
    """The weights of an ensemble's first member."""
    return made.members.whole(0)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_row_is_answered_with_its_own_weights(made, name):
    program, weights = made(name).program, shared(made(name))
    inputs = program.bind(*call_of(SCENARIOS[name].inputs(4)), torch.device("cpu"))
    own = own_weights(weights, 4)
    got = run(program.graph, weights, own, inputs)
    for ours, want in zip(got, one_by_one(program, weights, own, inputs), strict=True):
        assert difference(ours, want) < 1e-5


def call_of(inputs):
    match inputs:
        case tuple():
            return inputs, {}
        case dict():
            return (), inputs
    return (inputs,), {}


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied", "norms"])
def test_rows_may_share_some_weights_or_all(made, name):
    program, weights = made(name).program, shared(made(name))
    inputs = program.bind(*call_of(SCENARIOS[name].inputs(3)), torch.device("cpu"))
    every = own_weights(weights, 3)
    for own in ({}, dict(list(every.items())[::2]), dict(list(every.items())[1::2])):
        got = run(program.graph, weights, own, inputs)
        for ours, want in zip(got, one_by_one(program, weights, own, inputs), strict=True):
            assert difference(ours, want) < 1e-5


class RowsOf(nn.Module):
    """A program whose rows have weights that follow an additional input: each times that number."""

    def __init__(self, program, weights) -> None:
        super().__init__()
        self.graph, self.names = [program.graph], list(weights)
        self.weights = nn.ParameterList([nn.Parameter(w, requires_grad=False) for w in weights.values()])

    def forward(self, factor, *inputs):
        weights = dict(zip(self.names, self.weights, strict=True))
        own = {
            name: factor.reshape(-1, *[1] * w.ndim).to(w.dtype) * w
            for name, w in weights.items()
            if w.is_floating_point()
        }
        return tuple(output.flatten(0, 1) for output in run(self.graph[0], weights, own, inputs))


def test_it_is_exported_for_any_number_of_rows():
    torch.manual_seed(0)
    tokens = integers(7, 5)
    target = capture(Several(), tokens(3))
    program, weights = target.program, target.weights
    captured = capture(RowsOf(program, weights), (torch.tensor([1.0, 1.1, 1.2]), tokens(3)))
    for rows in (1, 5):
        with torch.no_grad():
            (got,) = captured.program(captured.weights, [1 + 0.1 * torch.arange(rows), tokens(rows)])
        (want,) = one_by_one(program, weights, own_weights(weights, rows), [tokens(rows)])
        assert difference(got, want.flatten(0, 1)) < 1e-5


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2), (4, 11)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), (4, 5, 5)),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), (2, 4, 4)),
    ],
    ids=["strided", "transposed", "pooled"],
)
def test_layers_that_have_rules(layer, shape):
    torch.manual_seed(0)
    x = floats(*shape)(3)
    captured = capture(layer, x)
    own = own_weights(captured.weights, 3)
    (got,) = run(captured.program.graph, captured.weights, own, [x])
    (want,) = one_by_one(captured.program, captured.weights, own, [x])
    assert difference(got, want) < 1e-5


class Lookup(nn.Module):
    """A table that is read at the inputs, in one of the ways that there are."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by, self.table = by, nn.Parameter(torch.randn(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by == "embedding":
            return nn.functional.embedding(x, self.table).sum(1)
        return self.table[x].sum(1) if self.by == "index" else torch.gather(self.table, 0, x)


@pytest.mark.parametrize("by", ["embedding", "index", "gather"])
def test_an_index_beyond_a_rows_own_table_is_refused_and_reads_no_other_rows(by):
    torch.manual_seed(0)
    x = torch.tensor([[0, 4], [1, 2], [3, 3]])
    captured = capture(Lookup(by), x)
    own = own_weights(captured.weights, 3)
    # The others read the end of their table and its beginning; some ways count negative numbers from the end.
    (want,) = one_by_one(captured.program, captured.weights, own, [x])
    assert difference(run(captured.program.graph, captured.weights, own, [x])[0], want) < 1e-6
    for row in range(3):
        for bad in (5, 9, 14, 15, -1, -6, 2**31, 2**40):
            wrong = x.clone()
            wrong[row, 1] = bad
            try:
                (want,) = one_by_one(captured.program, captured.weights, own, [wrong])
            except (IndexError, RuntimeError):
                with pytest.raises((IndexError, RuntimeError)):
                    run(captured.program.graph, captured.weights, own, [wrong])
            else:
                assert (by, bad) == ("index", -1)
                assert difference(run(captured.program.graph, captured.weights, own, [wrong])[0], want) < 1e-6


def test_it_has_gradients_of_the_rows_weights():
    model = seeded(SCENARIOS["cnn"]).eval()
    x = floats(2, 8, 8)(3)
    captured = capture(model, x)
    own = {n: w.requires_grad_() for n, w in own_weights(captured.weights, 3).items() if n in captured.trainable}
    (got,) = run(captured.program.graph, captured.weights, own, [x])
    got.square().sum().backward()
    alone = {n: w[1].detach().clone().requires_grad_() for n, w in own.items()}
    (want,) = captured.program({**captured.weights, **alone}, [x[1:2]])
    want.square().sum().backward()
    for name, weight in alone.items():
        assert torch.allclose(own[name].grad[1], weight.grad, rtol=1e-3, atol=1e-5), name

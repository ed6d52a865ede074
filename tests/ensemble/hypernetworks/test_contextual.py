"""A model whose weights follow an input: each row beside the target with the weights of that row."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.func import functional_call

import ensemble
from ensemble.errors import ExportError, InputError, ModelError


def target() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


class Told(nn.Module):
    """Weights of every form: a full one, low-rank deltas on the target's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.bias, self.left, self.right = nn.Linear(2, 6), nn.Linear(2, 2), nn.Linear(2, 6)

    def forward(self, code: torch.Tensor) -> dict[str, object]:
        return {"0.bias": self.bias(code), "2.weight": (self.left(code)[..., None], self.right(code)[..., None])}


X = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
CODES = torch.randn(7, 2, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def made():
    """Export takes a second."""
    return ensemble.Contextual(Told(), target(), context="code", example=(X, CODES))


@pytest.fixture
def model(made):
    return copy.deepcopy(made)


def weights_of(model: nn.Module, row: int) -> dict[str, torch.Tensor]:
    given = model.hypernetwork(CODES[row : row + 1])
    left, right = given["2.weight"]
    own = dict(model.target.named_parameters())
    return {**own, "0.bias": given["0.bias"][0], "2.weight": own["2.weight"] + left[0] @ right[0].T}


def test_each_row_is_the_target_with_its_own_weights(model):
    want = torch.cat([functional_call(model.target, weights_of(model, row), (X[row : row + 1],)) for row in range(7)])
    for got in (model(X, CODES), model(X, code=CODES), model(input=X, code=CODES)):
        assert torch.allclose(got, want, atol=1e-6)


def test_it_learns_the_hypernetwork_and_what_is_left_of_the_target(model):
    model(X, CODES).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    # The target's first bias is generated in full, so its own plays no part.
    assert [name for name, grad in grads.items() if grad is None] == ["target.0.bias"]
    found = grads["hypernetwork.left.weight"].clone()
    model.zero_grad()
    sum(
        functional_call(model.target, weights_of(model, row), (X[row : row + 1],)).square().sum() for row in range(7)
    ).backward()
    assert torch.allclose(found, model.hypernetwork.left.weight.grad, atol=1e-5)


def test_a_frozen_target_stays_as_it_is(model):
    model.target.requires_grad_(False)
    model(X, CODES).sum().backward()
    assert all(p.grad is None for p in model.target.parameters())
    assert model.hypernetwork.bias.weight.grad is not None


def test_its_signature_is_the_targets_and_the_context(model):
    assert list(inspect.signature(model.forward).parameters) == ["input", "code"]


class Options(nn.Module):
    """A default before, and keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None, *, gain: torch.Tensor) -> dict[str, object]:
        y = self.body(x) * gain
        return {"y": y if shift is None else y + shift, "sum": y.sum(1), "kind": "linear"}


def test_a_target_may_have_defaults_keywords_and_several_outputs():
    network = Options()
    hyper = ensemble.Hypernetwork(network, 2)
    gain = torch.rand(7, 1)
    example = {"x": X, "gain": gain, "code": CODES}
    model = ensemble.Contextual(hyper, network, context="code", example=example)
    found = model(X, gain=gain, code=CODES)
    assert found["kind"] == "linear"
    own = hyper(CODES)
    want = torch.einsum("roi,ri->ro", own["body.weight"], X) + own["body.bias"]
    assert torch.allclose(found["y"], want * gain, atol=1e-6)
    assert torch.allclose(found["sum"], (want * gain).sum(1), atol=1e-6)


def test_codes_may_be_whole_numbers():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 38)

        def forward(self, which: torch.Tensor) -> torch.Tensor:
            return self.table(which)

    hyper, which = Table(), torch.tensor([0, 3, 3, 1, 2, 0, 1])
    model = ensemble.Contextual(hyper, target(), context="who", example=(X, which))
    found = model(X, which)
    alone = model(X[1:2], which[1:2])
    assert torch.allclose(found[1:2], alone, atol=1e-6)
    assert not torch.allclose(model(X[1:2], which[:1]), alone)


def test_it_can_be_copied_and_moved(model):
    again = copy.deepcopy(model).to(torch.device("cpu"))
    assert torch.equal(again(X, CODES), model(X, CODES))
    with torch.no_grad():
        again.hypernetwork.bias.bias.add_(1)
    assert not torch.equal(again(X, CODES), model(X, CODES))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"context": "an angle"}, "context must be a name such as 'angle', however: 'an angle'"),
        ({"context": "input"}, "The target has an input 'input' already"),
        ({"example": X}, "the target's inputs and the context: a tuple with 'code' last"),
        ({"example": {"input": X}}, r"a dict with 'code' in it; it has \['input'\]"),
        ({"example": (X, 3.0)}, "'code' must be a tensor whose first dimension is the batch"),
        ({"example": (X, CODES[:3])}, "7 rows of inputs and 3 of 'code'"),
        ({"hypernetwork": lambda code: code}, "hypernetwork must be a torch.nn.Module, however: function"),
        (
            {"hypernetwork": nn.Linear(2, 5)},
            "gives 5 numbers for each code, and the target's chosen parameters have 38",
        ),
        ({"hypernetwork": nn.Linear(9, 38)}, r"The hypernetwork does not run on \[7, 2\] of float32: RuntimeError"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(settings, said):
    arguments = {"hypernetwork": Told(), "context": "code", "example": (X, CODES), **settings}
    with pytest.raises(ModelError, match=said):
        ensemble.Contextual(arguments.pop("hypernetwork"), target(), **arguments)


def test_a_target_that_cannot_be_exported_is_not_told_to_be_live():
    class Branching(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input if float(input.sum()) > 0 else -input)

    with pytest.raises(ExportError, match="target of generated weights must be exported; live=True is not for it"):
        ensemble.Contextual(nn.Linear(2, 8), Branching(3, 2), context="code", example=(X, CODES))


def test_calls_that_do_not_fit_are_refused(model):
    with pytest.raises(InputError, match="The inputs do not fit"):
        model(X)
    with pytest.raises(InputError, match=r"7 rows of inputs and \[3, 2\] contexts"):
        model(X, CODES[:3])
    with pytest.raises(InputError, match=r"The input 'input' must have shape \[-1, 3\]"):
        model(X[:, :2], CODES)
    with pytest.raises(InputError, match=r"The input 'code' must have shape \[-1, 2\] \(-1: any\), got \[7, 3\]"):
        model(X, X)
    with pytest.raises(InputError, match="The input 'code' must be a tensor, got a list"):
        model(X, CODES.tolist())

"""Ensembles of generated weights: made, saved, loaded, and answered as the loop over members and rows does."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ensemble
import ensemble.hypernetworks.contextual
import ensemble.hypernetworks.generate
from ensemble.errors import MemoryLimitError, ModelError, RecipeError
from ensemble.random import standard_normal


def target() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


def hypernetwork(**settings) -> ensemble.Hypernetwork:
    made = ensemble.Hypernetwork(target(), 2, hidden=(8,), **settings)
    torch.manual_seed(1)
    # So that deltas are not zero, as they are at first.
    for head in made.heads:
        nn.init.normal_(head.weight, std=0.1)
    return made


X = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
CODES = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def _captured_once():
    """Export takes a second, and the target is always the same."""
    capture = ensemble.hypernetworks.contextual.capture
    found = capture(target(), X)

    def cached(module, example):
        return found if type(module) is nn.Sequential and type(module[0]) is nn.Conv2d else capture(module, example)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble.hypernetworks.contextual, "capture", cached)
        patch.setattr(ensemble.hypernetworks.generate, "capture", cached)
        yield


FORMS = {"full": {}, "low rank": {"rank": 2}, "chunks": {"chunk": 20}}


def module_of(hyper: nn.Module, code: torch.Tensor) -> nn.Module:
    """The target with the weights of one code, put in by hand."""
    module = target()
    with torch.no_grad():
        given, parameters = hyper(code[None]), dict(module.named_parameters())
        if isinstance(given, torch.Tensor):
            flat, start = given.flatten(), 0
            for parameter in parameters.values():
                parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()
        else:
            for name, value in given.items():
                if isinstance(value, tuple):
                    delta = value[0][0] @ value[1][0].T
                    parameters[name].add_(delta.view_as(parameters[name]))
                else:
                    parameters[name].copy_(value[0])
    return module.requires_grad_(False)


@pytest.mark.parametrize("name", FORMS)
def test_a_member_has_the_weights_of_its_code(name, tmp_path):
    hyper = hypernetwork(**FORMS[name])
    made = ensemble.generate(hyper, target(), codes=CODES, example=X, task="classification")
    want = torch.stack([module_of(hyper, code)(X) for code in CODES])
    assert torch.allclose(made(X), want, atol=1e-5)
    # In evaluation deltas are never added up.
    assert set(made.members.factored) == ({"0.weight", "3.weight"} if name == "low rank" else set())
    assert len(made) == 6
    for index in (0, 5):
        state = module_of(hyper, CODES[index]).state_dict()
        assert all(torch.allclose(value, state[key], atol=1e-6) for key, value in made.member(index).items())
    made.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert torch.equal(again(X), made(X))
    assert again.metadata["generated"]["codes"] == [6, 2]
    assert again.metadata["generated"]["weights"].keys() == dict(target().named_parameters()).keys()


def test_codes_are_drawn_from_the_seed_and_each_by_itself():
    hyper = hypernetwork()
    few = ensemble.generate(hyper, target(), codes=3, seed=5, example=X, metadata={"unit": "m"})
    assert few.metadata["unit"] == "m"
    assert repr(few).startswith("Ensemble(3 members, generated, seed=5")
    many = ensemble.generate(hyper, target(), codes=8, seed=5, example=X)
    assert torch.allclose(many(X)[:3], few(X), atol=1e-6)
    given = ensemble.generate(hyper, target(), codes=standard_normal(5, range(3), "code", (2,)), example=X)
    assert torch.equal(given(X), few(X))
    assert few.origin.seed == few.metadata["generated"]["drawn_from_seed"] == 5
    assert not torch.allclose(ensemble.generate(hyper, target(), codes=3, seed=6, example=X)(X), few(X))


@pytest.mark.parametrize("name", FORMS)
def test_each_row_is_answered_with_the_weights_of_its_context(name, tmp_path):
    hyper = hypernetwork(**FORMS[name])
    made = ensemble.generate(hyper, target(), context="code", example=(X, CODES), task="classification")
    want = torch.cat([module_of(hyper, code)(x[None]) for code, x in zip(CODES, X, strict=True)])
    assert torch.allclose(made(X, CODES)[0], want, atol=1e-5)
    assert [spec.name for spec in made.program.inputs] == ["input", "code"]
    made.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert len(again) == 1
    more = torch.randn(17, 1, 4, 4), torch.randn(17, 2)
    assert torch.equal(again(*more), made(*more))
    rows = [again(more[0][i : i + 1], more[1][i : i + 1]) for i in range(17)]
    assert torch.allclose(torch.cat(rows, 1), again(*more), atol=1e-5)


@pytest.mark.parametrize("recipe", [ensemble.Gaussian(0.1), ensemble.LowRank(0.1, include="hypernetwork.*")])
def test_members_of_a_context_model_are_perturbed_hypernetworks(recipe, tmp_path):
    hyper = hypernetwork(rank=2)
    made = ensemble.generate(
        hyper, target(), context="code", example=(X, CODES), recipe=recipe, members=3, seed=2, task="classification"
    )
    contextual = ensemble.Contextual(hyper, target(), context="code", example=(X, CODES))
    own = copy.deepcopy(contextual)
    own.load_state_dict(made.member(2))
    want = torch.cat([own(x[None], code[None]) for code, x in zip(CODES, X, strict=True)])
    assert not torch.allclose(want, contextual(X, CODES), atol=1e-3)
    assert torch.allclose(made(X, CODES)[2], want, atol=1e-5)
    made.save(tmp_path / "m")
    assert torch.equal(ensemble.load(tmp_path / "m")(X, CODES), made(X, CODES))
    assert made.check() < 1e-4
    assert made.metadata["generated"]["context"] == "code"
    assert (made.predict(X, CODES, statistics=["mutual_information"]).mutual_information > 0).all()


class Factors(nn.Module):
    """Low-rank deltas that are read off the code, without a product of its own."""

    def __init__(self, rank: int, *sizes: tuple[int, int]) -> None:
        super().__init__()
        self.rank, self.sizes = rank, sizes

    def forward(self, code: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        parts = iter(code.split([n * self.rank for size in self.sizes for n in size], 1))
        return {
            f"{2 * number}.weight": (next(parts).unflatten(1, (outputs, -1)), next(parts).unflatten(1, (inputs, -1)))
            for number, (outputs, inputs) in enumerate(self.sizes)
        }


def test_low_rank_deltas_take_thin_products_alone():
    """Counted: one product with the trained matrix, and two thin ones, for each row; no matrix of any row's own."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 30))
    hyper = Factors(2, (50, 40), (30, 50))
    rows, members = 5, 3
    x, codes = torch.randn(rows, 40), torch.randn(rows, 2 * 170)
    made = ensemble.generate(hyper, network, context="code", example=(x, codes))
    whole, thin = 40 * 50 + 50 * 30, 2 * (40 + 50 + 50 + 30)
    with FlopCounterMode(display=False) as counter:
        made(x, codes)
    assert counter.get_total_flops() == 2 * rows * (whole + thin)
    made = ensemble.generate(hyper, network, codes=codes[:members], example=x)
    with FlopCounterMode(display=False) as counter:
        made(x)
    # All members see the same rows, so the first layer's product with the trained matrix is one for all of them.
    assert counter.get_total_flops() == 2 * rows * (40 * 50 + members * (50 * 30 + thin))


class Added(nn.Module):
    """A matrix that is used in no product."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(1) * self.table).sum(2) + torch.tensor([0.5, -0.5])


def test_a_delta_on_a_weight_that_is_no_factor_is_added_up():
    torch.manual_seed(0)
    network, x = Added(), torch.randn(6, 3)
    hyper = ensemble.Hypernetwork(network, 2, rank=1)
    for head in hyper.heads:
        nn.init.normal_(head.weight)
    left, right = hyper(CODES)["table"]
    each = network.table + left @ right.transpose(1, 2)
    want = torch.einsum("mij,rj->mri", each, x) + torch.tensor([0.5, -0.5])
    assert torch.allclose(ensemble.generate(hyper, network, codes=CODES, example=x)(x), want, atol=1e-5)
    made = ensemble.generate(hyper, network, context="code", example=(x, CODES))
    assert torch.allclose(made(x, CODES)[0], want.diagonal().T, atol=1e-5)


def test_weights_that_are_not_generated_are_shared_and_the_modules_stay_as_they_were():
    hyper, network = hypernetwork(include="3.*"), target()
    before = copy.deepcopy(network.state_dict()), copy.deepcopy(hyper.state_dict())
    made = ensemble.generate(hyper, network, codes=4, example=X)
    assert set(made.members.stacked) == {"3.weight", "3.bias"}
    assert torch.equal(made.members.shared["0.weight"], network[0].weight)
    after = network.state_dict(), hyper.state_dict()
    assert all(torch.equal(a[k], b[k]) for a, b in zip(after, before, strict=True) for k in a)


class Batchwise(nn.Module):
    """A layer that looks at the whole batch."""

    def forward(self, code: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"3.bias": (code - code.mean(0)).repeat(1, 2)}


class Overflowing(nn.Module):
    """Infinite for large codes."""

    def forward(self, code: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"3.bias": (1000 * code).exp().repeat(1, 2)}


def test_what_cannot_be_made_is_refused_with_what_would_help(monkeypatch):
    def refused(error, said, hyper=None, **settings):
        with pytest.raises(error, match=said):
            ensemble.generate(hyper or hypernetwork(), target(), **{"example": X, **settings})

    refused(ModelError, "Give codes=, for a member of each code, or context=")
    refused(ModelError, "Give codes=, for a member of each code, or context=", codes=3, context="code")
    refused(ModelError, "recipe= and members= go with context=", codes=3, recipe=ensemble.Gaussian(0.1), members=3)
    refused(ModelError, "recipe= and members= go together", context="code", example=(X, CODES), members=3)
    refused(RecipeError, "members must be an integer between 1", codes=0)
    refused(RecipeError, "seed must be an integer", codes=3, seed=-1)
    refused(ModelError, "codes must be a tensor .*, or how many to draw, however: list", codes=CODES.tolist())
    refused(ModelError, "Say how many numbers a code has: size=", nn.Linear(2, 5), codes=3)
    refused(ModelError, "gives 5 numbers for each code", nn.Linear(2, 5), codes=3, size=2)
    refused(ModelError, r"codes must have a first dimension, the members, however: shape \[\]", codes=torch.tensor(1.0))
    refused(ModelError, "depends on the codes beside it", Batchwise(), codes=CODES)
    bad = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    refused(ModelError, "For code 1 the hypernetwork gives a '3.bias' that is not finite", Overflowing(), codes=bad)
    refused(ModelError, "hypernetwork must be a torch.nn.Module, however: int", hyper=3, codes=3)
    refused(ModelError, r"A gaussian model returns \(mean, variance\)", codes=CODES, task="gaussian")
    monkeypatch.setattr("ensemble.memory.available", lambda device: 1000)
    refused(MemoryLimitError, "What would fit", codes=100)

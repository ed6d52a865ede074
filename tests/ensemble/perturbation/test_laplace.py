import copy
import functools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch import nn
from torch.nn import functional as F

import ensemble
from ensemble import Laplace, ModelError, RecipeError
from ensemble.random import standard_normal
from tests.reference import call, tensors, worst
from tests.scenarios import SCENARIOS, mlp, seeded

pytestmark = pytest.mark.usefixtures("exported_once")


@functools.cache
def classifier(outputs=3, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs, bias=bias)).double()


class Heads(nn.Module):
    """Mean and variance from layers of their own, a row of two values each, and something behind both."""

    def __init__(self):
        super().__init__()
        self.body, self.mean, self.spread = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        hidden = self.body(x).tanh()
        return 3 * self.mean(hidden), F.softplus(self.spread(hidden)) + 0.1


class Together(nn.Module):
    """Both from one layer."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        mean, raw = self.out(self.body(x).tanh()).unbind(-1)
        return {"variance": raw.exp(), "mean": mean}


class Scaled(nn.Module):
    """Logits with a temperature, for two tokens in one row."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(4, 5), nn.Linear(5, 6)

    def forward(self, x):
        return (self.out(self.body(x).tanh()) / 0.7).unflatten(-1, (2, 3))


def rows(count=30):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1)).double()


def gauss_newton(model, names, x, task, noise_variance=None):
    """Σ Jᵀ F J over single rows, the parameters one after the other: F from the likelihood's own distribution."""
    parameters = dict(model.named_parameters())
    own = {name: parameters.pop(name).detach() for name in names}

    def outputs(own, row):
        found = torch.func.functional_call(model, {**parameters, **own}, (row[None],))
        if isinstance(found, dict):
            found = (found["mean"], found["variance"])
        return [value[0].flatten() for value in (found if isinstance(found, tuple) else (found,))]

    total = 0
    for row in x:
        jacobians = torch.func.jacrev(outputs)(own, row)
        at = outputs(own, row)
        for k, (jacobian, value) in enumerate(zip(jacobians, at, strict=True)):
            j = torch.cat([jacobian[name].flatten(1) for name in names], 1)
            if task == "classification":
                fisher = torch.block_diag(*[p.diag() - p.outer(p) for p in value.view(-1, 3).softmax(-1)])
            elif task == "regression":
                fisher = torch.eye(len(value)).double() / noise_variance
            else:
                variance = at[1]
                fisher = (1 / variance if k == 0 else 0.5 / variance.square()).diag()
            total = total + j.T @ fisher @ j
    return total.detach().numpy()


@pytest.mark.parametrize(
    ("model", "task", "layers"),
    [
        (classifier(), "classification", ["2"]),
        (classifier(bias=False), "classification", ["2"]),
        (classifier(2), "regression", ["2"]),
        (Scaled().double(), "classification", ["out"]),
        (Together().double(), "gaussian", ["out"]),
        (Heads().double(), "gaussian", ["mean", "spread"]),
    ],
    ids=["classes", "no bias", "values", "scaled", "together", "heads"],
)
def test_a_member_is_the_formula_with_the_curvature_found_row_by_row(model, task, layers):
    x, noise, precision = rows(12), 0.3 if task == "regression" else None, 0.5
    recipe = Laplace(scale=0.7, prior_precision=precision)
    ens = ensemble.perturb(model, recipe, members=3, data=x, seed=5, task=task, noise_variance=noise)
    state = model.state_dict()
    for layer in layers:
        names = [name for name in state if name.startswith(f"{layer}.")]
        root = fractional_matrix_power(
            gauss_newton(model, names, x, task, noise) + precision * np.eye(sum(state[n].numel() for n in names)), -0.5
        )
        for index in range(3):
            drawn = torch.cat([standard_normal(5, range(index, index + 1), n, state[n].shape).flatten() for n in names])
            want = torch.cat([state[n].flatten() for n in names]).numpy() + 0.7 * root @ drawn.double().numpy()
            got = torch.cat([ens.member(index)[n].flatten() for n in names]).numpy()
            np.testing.assert_allclose(got, want, atol=1e-8)
    assert set(ens.members.stacked) == set(ens.origin.recipe.weights)


def test_members_of_a_linear_regression_have_the_posterior_of_its_closed_form():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1, bias=False).double(), rows(50)
    y = x @ torch.randn(4, 1).double() + 0.5 * torch.randn(50, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(x.T @ x / 0.25 + 2 * torch.eye(4), x.T @ y / 0.25).T)
    ens = ensemble.perturb(
        model, Laplace(prior_precision=2), members=6_000, data=(x, y), task="regression", noise_variance=0.25
    )
    drawn, want = ens.members.stacked["weight"][:, 0], torch.linalg.inv(x.T @ x / 0.25 + 2 * torch.eye(4))
    spread = want.diag().sqrt()
    assert torch.allclose(drawn.mean(0), model.weight[0].detach(), atol=5 * float(spread.max()) / math.sqrt(6_000))
    assert float(((drawn.T.cov() - want) / spread.outer(spread)).abs().max()) < 6 * math.sqrt(2 / 6_000)
    # The variance of the prediction, which is what the members are for.
    epistemic = ens.predict(x, statistics=["epistemic_variance"]).epistemic_variance[:, 0]
    torch.testing.assert_close(epistemic.double(), ((x @ want) * x).sum(1), rtol=0.1, atol=0)


def test_the_prior_precision_is_that_of_greatest_marginal_likelihood():
    model, x = classifier(), rows()
    names = ["2.weight", "2.bias"]
    curvature = np.linalg.eigvalsh(gauss_newton(model, names, x, "classification"))
    square = float(sum(model.state_dict()[name].square().sum() for name in names))

    def evidence(log_precision):
        precision = math.exp(log_precision)
        return len(curvature) * log_precision - np.log(curvature.clip(0) + precision).sum() - precision * square

    grid = np.linspace(-12, 12, 100_001)
    best = math.exp(max(grid, key=evidence))
    found, given = (
        ensemble.perturb(model, Laplace(prior_precision=p), members=2, data=x, task="classification")
        for p in (None, best)
    )
    torch.testing.assert_close(found.member(1), given.member(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_it_is_what_laplace_torch_finds(task):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("laplace")
    torch.manual_seed(2)
    model, x = copy.deepcopy(classifier()).float(), rows(40).float()
    y = torch.randint(3, (40,)) if task == "classification" else torch.randn(40, 3)
    noise = 0.3 if task == "regression" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = package.Laplace(
            model, task, subset_of_weights="last_layer", hessian_structure="full", prior_precision=3.0,
            **({"sigma_noise": math.sqrt(noise)} if noise else {}),
        )  # fmt: skip
        theirs.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16))
    ens = ensemble.perturb(
        model, Laplace(prior_precision=3), members=2, data=(x, y), seed=1, task=task, noise_variance=noise
    )
    own, state = ens.member(1), model.state_dict()
    names = ["2.weight", "2.bias"]
    drawn = torch.cat([standard_normal(1, range(1, 2), n, state[n].shape).flatten() for n in names]).double()
    root = fractional_matrix_power(theirs.posterior_covariance.double().numpy(), 0.5)
    want = torch.cat([state[n].flatten() for n in names]).double().numpy() + root @ drawn.numpy()
    np.testing.assert_allclose(torch.cat([own[n].flatten() for n in names]).numpy(), want, rtol=1e-3, atol=1e-4)


def test_the_product_of_two_matrices_is_exact_where_the_information_is_the_same_for_all_rows():
    model, x = classifier(2), rows()
    for data in (x, x[:1]):
        full, kron = (
            ensemble.perturb(model, Laplace(0.5, 1.0, covariance=covariance), members=3, data=data, seed=2,
                             example=x, task="regression", noise_variance=0.2)
            for covariance in ("full", "kron")
        )  # fmt: skip
        torch.testing.assert_close(full.member(2), kron.member(2))


def test_a_product_of_two_matrices_draws_with_its_own_covariance(perturbed):
    ens = perturbed(
        "mlp", Laplace(prior_precision=2.0, covariance="kron"), members=6_000,
        data=SCENARIOS["mlp"].inputs(25), task="classification",
    )  # fmt: skip
    model = seeded(SCENARIOS["mlp"]).eval().double()
    x = SCENARIOS["mlp"].inputs(25).double()
    with torch.no_grad():
        hidden = torch.cat([model[:3](x), torch.ones(25, 1)], 1)
        p = model(x).softmax(-1)
    information = (p.diag_embed() - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    want = torch.linalg.inv(torch.kron(information, hidden.T @ hidden) + 2 * torch.eye(4 * 17))
    drawn = torch.cat([ens.members.stacked["3.weight"], ens.members.stacked["3.bias"].unsqueeze(2)], 2).flatten(1)
    spread = want.diag().sqrt()
    got = drawn.double().T.cov()
    assert float(((got - want) / spread.outer(spread)).abs().max()) < 6 * math.sqrt(2 / 6_000)


def test_the_noise_of_a_regression_is_taken_from_the_targets():
    model, x = classifier(2), rows()
    y = model(x).detach() + 0.4 * torch.randn(30, 2).double()
    variance = float((y - model(x).detach()).square().mean())
    taken = ensemble.perturb(model, Laplace(), members=2, data=(x, y), task="regression")
    given = ensemble.perturb(model, Laplace(), members=2, data=x, task="regression", noise_variance=variance)
    torch.testing.assert_close(taken.member(1), given.member(1))


def test_a_member_depends_neither_on_the_others_nor_on_how_the_data_are_passed(monkeypatch):
    model, x = Together().double(), rows()
    few, many = (ensemble.perturb(model, Laplace(), members=n, data=x, seed=3, task="gaussian") for n in (3, 50))
    monkeypatch.setattr("ensemble.learning.posterior._MOST_ROWS", 7)
    monkeypatch.setattr("ensemble.learning.posterior._BATCH_BYTES", 2000)
    monkeypatch.setattr("ensemble.perturbation.laplace._SLICE_BYTES", 2000)
    seen = []
    streamed = ensemble.perturb(
        model, Laplace(), members=50, data=x, seed=3, task="gaussian", progress=lambda *at: seen.append(at)
    )
    assert seen == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    for other in (many, streamed):
        torch.testing.assert_close(few.member(2), other.member(2), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "task"),
    [("cnn", "classification"), ("encoder", "classification"), ("gaussian", "gaussian"), ("attention", "regression")],
)
def test_its_members_are_kept_and_run_as_their_own_modules(name, task, perturbed, scenario_model, tmp_path):
    model, inputs = scenario_model(name), SCENARIOS[name].inputs(4)
    given = SCENARIOS[name].inputs(20)
    noise = 0.1 if task == "regression" else None
    ens = perturbed(name, Laplace(scale=0.5), members=4, data=given, task=task, noise_variance=noise)
    assert ens.check() <= 1e-5
    assert worst(call(ens, inputs), model, [ens.member(i) for i in range(4)], inputs) <= 1e-5
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == ens.origin.recipe
    for before, after in zip(tensors(call(ens, inputs)), tensors(call(again, inputs)), strict=True):
        assert torch.equal(before, after)


class Wide(nn.Module):
    """What the last layer gives has more than one row for a row of inputs, and is no output yet."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 3)

    def forward(self, x):
        return self.out(x.unflatten(-1, (2, 2))).sum(1)


def test_a_model_that_it_does_not_fit_is_refused():
    x = torch.randn(5, 4)
    y = torch.zeros(5, dtype=torch.long)
    convolution = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten())
    model = copy.deepcopy(classifier()).float()
    for what, recipe, options, text in [
        (model, Laplace(), {"data": (x, y)}, 'likelihood: give task="classification"'),
        (model, Laplace(), {"example": x, "task": "classification"}, r"training data: give data=\(inputs, targets\)"),
        (model, Laplace(), {"data": x, "task": "regression"}, r"give noise_variance=, or data=\(inputs, targets\)"),
        (
            model,
            Laplace(),
            {"data": (x, model(x).detach()), "task": "regression"},
            "fits these targets exactly, which tells no noise",
        ),
        (model, Laplace(layer="3"), {"data": x, "task": "classification"}, "'3' is no linear layer .* it has '0', '2'"),
        (convolution, Laplace(), {"data": x, "task": "classification"}, r"linear layers are \(none\)"),
        (Wide(), Laplace(), {"data": x, "task": "classification"}, r"values of shape \[5, 2, 3\] for 5 rows"),
        (model, Laplace(), {"data": x, "task": "classification", "live": True}, "without live=True"),
        (model, Laplace(), {"data": x * math.nan, "task": "classification"}, "look for NaN or infinity"),
        (model, Laplace(covariance="kron"), {"data": x * math.nan, "task": "classification"}, "look for NaN"),
        (Heads(), Laplace(), {"data": x, "task": "regression", "noise_variance": 1.0}, "with one prediction; this one"),
    ]:
        with pytest.raises((RecipeError, ModelError), match=text):
            ensemble.perturb(what, recipe, members=2, **options)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": -1}, "scale must be a finite number ≥ 0"),
        ({"scale": math.inf}, "scale must be"),
        ({"prior_precision": 0}, "prior_precision must be a finite number above 0"),
        ({"prior_precision": True}, "prior_precision must be"),
        ({"weights": (1,)}, "weights must be name patterns"),
        ({"layer": ""}, "layer must be a layer's name"),
        ({"covariance": "diag"}, "covariance must be one of auto, full, kron"),
    ],
)
def test_settings_that_are_none_are_refused(settings, text):
    with pytest.raises(RecipeError, match=text):
        Laplace(**settings)


def test_settings_go_round():
    recipe = Laplace(0.3, 2.0, "head", "kron")
    assert Laplace.from_settings(recipe.settings()) == recipe
    assert all(Laplace.from_settings(candidate) for candidate in Laplace.candidates())


def test_matrices_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr("ensemble.memory.available", lambda device: 4_000)
    with pytest.raises(ensemble.MemoryLimitError, match=r"curvature of the layer .3. would take .*kron"):
        ensemble.perturb(mlp(), Laplace(), members=1, data=torch.randn(5, 6), task="classification")
